"""This runs the commands that users run on a GPU: the demo's sweep through Ray, and the OpenAI server."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_findings import ALIGNED, BASE, CUDA, WORK, finding
from peers import ROOT


def command_line(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lambdasweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def sweep() -> None:
    """Sweep the demo's pair and tasks, on a GPU that others use, too."""
    config = WORK / "demo.toml"
    tasks = [
        f'[[task]]\nname = "{form}"\nfile = "{ROOT}/lambdasweep/demo/{form}.jsonl"\nformat = "{form}"\nlimit = 40\n'
        for form in ("letters", "cloze")
    ]
    config.write_text("".join(tasks))
    flags: list[str | Path] = ["--base", BASE, "--aligned", ALIGNED, "--config", config, "--lambdas", "0:1.5:0.5"]
    for setting in ("gpu_memory_utilization=0.3", "kv_cache_memory_bytes=536870912") if CUDA else ():
        flags += ["--engine", setting]
    with finding("a sweep through Ray") as found:
        done = command_line("run", *flags, "--out", WORK / "demo-run")
        print(done.stdout[-6000:], done.stderr[-6000:])
        found |= {"exit": done.returncode, "last": done.stdout.strip().splitlines()[-2:]}
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no words"])[-1])


def serve() -> None:
    """Ask `lambdasweep serve` for a completion with logprobs at two λs, and at the first one again."""
    import urllib.request

    def ask(path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        query = urllib.request.Request(f"http://127.0.0.1:8399{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(query, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    flags: list[str] = ["--port", "8399", "--max-model-len", "256"]
    if CUDA:
        flags += ["--gpu-memory-utilization", "0.3", "--enforce-eager", "--kv-cache-memory-bytes", str(512 << 20)]
    parents = ["--base", str(BASE), "--aligned", str(ALIGNED), "--lam", "0.35"]
    with finding("the OpenAI server") as found, open(WORK / "serve.log", "w") as log:
        command = [sys.executable, "-m", "lambdasweep", "serve", *parents, "--", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            began = time.perf_counter()
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"it ended with {process.returncode}: {(WORK / 'serve.log').read_text()[-300:]}")
                with contextlib.suppress(OSError):
                    ask("/health")
                    break
                time.sleep(0.5)
            found["start_s"] = round(time.perf_counter() - began, 1)
            name = ask("/v1/models")["data"][0]["id"]
            body = {"model": name, "prompt": [11, 12, 13, 14, 15], "max_tokens": 2, "temperature": 0, "logprobs": 1}
            values = []
            for lam in ("0.35", "1", "0.35"):
                ask("/v1/lambda", {"lam": lam})
                values.append(ask("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"])
            found["verdict"] = "equal" if values[0] == values[2] != values[1] else "failed"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
