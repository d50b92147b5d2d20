"""This counts the processor time that each prompt costs besides the model: our scoring, and plain vLLM's `LLM.generate`.

    python benchmarks/per_prompt.py [--tiny]

Both get the same prompts of 4 and of 32 tokens, on a model of one layer that takes next to no time. Each has a process of
its own, with the engine core in it, and they take turns. Where the time goes comes from further rounds, in which the process
is interrupted each millisecond of its time and looks at its own stack. Plain vLLM is not even asked for logprobs.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from random_pair import write_random_pair

from serve.machine import hardware
from serve.settings import EngineSettings, available_cores, installed_device
from serve.start import process_environment

LENGTHS = (4, 32)
SIDES = ("ours", "vllm")
PARTS = ("lambdasweep", "requests in", "scheduler", "model runner", "model", "answers out", "rest")
_MODEL = {"_model_forward", "_score", "compute_logits", "_sample"}
_TAKES_IN = {"add_request", "_render_and_add_requests"}
_BY_FILE = {
    "/serve/": "lambdasweep",
    "/vllm/v1/core/": "scheduler",
    "/vllm/v1/worker/": "model runner",
    "/vllm/v1/engine/output_processor": "answers out",
    "/vllm/outputs": "answers out",
}


def part_of(frame: FrameType | None) -> str:
    """Return the part that a stack is in: the first one that is known, from its innermost function outwards."""
    part, is_model = "", False
    while frame is not None:
        code, frame = frame.f_code, frame.f_back
        is_model = is_model or code.co_name in _MODEL
        part = part or next((name for file, name in _BY_FILE.items() if file in code.co_filename), "")
        if not part and code.co_name in _TAKES_IN:
            part = "requests in"
    return "model" if is_model else part or "rest"


def rounds(run: Callable[[int], None]) -> None:
    """Answer each line of standard input, a number of tokens and whether the parts are wanted, by milliseconds of a run."""
    found: Counter[str] = Counter()
    signal.signal(signal.SIGPROF, lambda _, frame: found.update([part_of(frame)]))
    for line in sys.stdin:
        length, is_watched = json.loads(line)
        found.clear()
        every = 0.001 if is_watched else 0.0  # seconds of processor time; 0 is never
        signal.setitimer(signal.ITIMER_PROF, every, every)
        began = time.process_time()
        run(length)
        seconds = time.process_time() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("RESULT", json.dumps([1000 * seconds, found]), flush=True)


def side(name: str, job: dict[str, Any]) -> None:
    """Start one side's engine and serve its rounds."""
    settings = EngineSettings.from_json(job["settings"])
    os.environ.update(process_environment(settings, available_cores()[:1]))
    prompts: dict[int, list[list[int]]] = {int(length): ids for length, ids in job["prompts"].items()}
    if name == "ours":
        from serve.engine import Engine, Prompt

        engine = Engine(Path(job["model"]), None, settings)
        asked = {length: [Prompt(ids, length - 2, [7]) for ids in all_ids] for length, all_ids in prompts.items()}

        def run(length: int) -> None:
            engine.clear_prefix_cache()
            engine.score(asked[length])

    else:
        from plain_engine import plain_engine
        from vllm import SamplingParams

        llm = plain_engine(job["model"], job["settings"])
        sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)

        def run(length: int) -> None:
            llm.reset_prefix_cache()
            llm.generate([{"prompt_token_ids": ids} for ids in prompts[length]], sampling, use_tqdm=False)

    rounds(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few prompts, once")
    is_tiny = parser.parse_args().tiny
    count, repeats = (50, 1) if is_tiny else (1000, 7)
    device = installed_device()
    settings = EngineSettings(device=device, dtype="float32", max_model_len=64, threads=1, kv_cache_bytes=64 << 20)
    print(f"per_prompt: {hardware(device)}; {count} prompts, the median of {repeats} rounds; {settings.to_json()}")
    drawn = random.Random(0)
    prompts = {n: [[drawn.randrange(2, 250) for _ in range(n)] for _ in range(count)] for n in LENGTHS}
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "pair"
        write_random_pair(pair, "nano")
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"settings": settings.to_json(), "model": str(pair / "base"), "prompts": prompts}))
        running = {
            name: subprocess.Popen(
                [sys.executable, __file__, name, str(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name in SIDES
        }
        for length in LENGTHS:
            taken: dict[str, list[float]] = {name: [] for name in SIDES}
            parts: dict[str, Counter[str]] = {name: Counter() for name in SIDES}
            for number in range(-1, 2 * repeats):  # the first one of all is not counted
                for name, process in running.items():
                    milliseconds, found = ask(process, length, is_watched=number >= repeats)
                    if 0 <= number < repeats:
                        taken[name].append(milliseconds / count)
                    parts[name].update(found)
            for name in SIDES:
                whole, seen = statistics.median(taken[name]), max(parts[name].total(), 1)
                each = {part: whole * parts[name][part] / seen for part in PARTS}
                print(
                    f"{length:3} tokens, {name:5} {whole:.3f} ms: "
                    + ", ".join(f"{p} {ms:.3f}" for p, ms in each.items())
                )
                result |= {f"{name}_{length}_ms": whole} | {f"{name}_{length}_{p}_ms": ms for p, ms in each.items()}
        for process in running.values():
            process.communicate()
    print(json.dumps(result))


def ask(process: "subprocess.Popen[str]", length: int, is_watched: bool) -> tuple[float, dict[str, int]]:
    """Have a side do one round."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([length, is_watched]) + "\n")
    process.stdin.flush()
    for line in process.stdout:  # vLLM writes there, too
        if line.startswith("RESULT "):
            milliseconds, found = json.loads(line.removeprefix("RESULT "))
            return milliseconds, found
    sys.exit("per_prompt: an engine ended")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        side(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
    else:
        main()
