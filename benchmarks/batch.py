"""This compares `lambdasweep score` with a plain loop over `vllm.LLM.generate(prompt_logprobs=0)`, and its memory.

    python benchmarks/batch.py --model DIR [--quick] | --tiny

There are two workloads of generated text: whole prompts of distinct words, where nothing can be shared, and questions with
four answers each, a row an answer. Both sides read the same Parquet file and tokenise it, with the same engine settings
and all cores, each in a process of its own; the engine's start is not counted. Then the demo model scores whole prompts
once and 20 times as many, from one large row group, and the highest resident sizes of the driver and of the replica are
shown.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from peers import engine_settings, header

from lambdasweep.demo import BASE
from serve.settings import available_cores
from serve.start import process_environment

ROOT = Path(__file__).parent.parent
LENGTH = 512  # --max-model-len
SYLLABLES = ["ta", "ri", "no", "ke", "lu", "ma", "so", "vi", "de", "pa"]
GROWTH = 20


def words(generator: random.Random, count: int) -> str:
    return " ".join("".join(generator.choices(SYLLABLES, k=generator.randint(1, 3))) for _ in range(count))


def documents(rows: int, length: int) -> pa.Table:
    """Return whole prompts of `length` words."""
    generator = random.Random(0)
    return pa.table({"id": range(rows), "prompt": [words(generator, length) for _ in range(rows)]})


def choices(rows: int) -> pa.Table:
    """Return questions of 60 words with four short answers."""
    generator = random.Random(1)
    prompts = [words(generator, 60) + "\nAnswer:" for _ in range(rows // 4)]
    return pa.table(
        {
            "id": range(len(prompts) * 4),
            "prompt": [prompt for prompt in prompts for _ in range(4)],
            "continuation": [f" {words(generator, 2)}" for _ in range(len(prompts) * 4)],
        }
    )


def ours(model: Path, file: Path, out: Path) -> dict[str, Any]:
    """Score a file with one replica; return its receipts' seconds, the sums, and peak resident bytes by process."""
    command = [sys.executable, "-m", "lambdasweep", "score", "--model", model, "--requests", file, "--out", out]
    command += ["--replicas", "1", "--max-model-len", LENGTH, "--engine", f"kv_cache_memory_bytes={1 << 30}"]
    peaks = {"driver": 0, "replica": 0}
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=log, stderr=log)
        driver = psutil.Process(process.pid)
        replica = None
        while process.poll() is None:
            try:
                peaks["driver"] = max(peaks["driver"], driver.memory_info().rss)
                if replica is None:
                    children = (child for child in driver.children(recursive=True) if child.cmdline())
                    replica = next((child for child in children if child.cmdline()[0].startswith("ray::Replica")), None)
                if replica is not None:
                    peaks["replica"] = max(peaks["replica"], replica.memory_info().rss)
            except psutil.Error:  # the process ended just now
                pass
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"lambdasweep failed:\n{out.with_suffix('.log').read_text()[-3000:]}")
    receipts = [json.loads(path.read_text()) for path in (out / "receipts").iterdir()]
    return {
        "seconds": sum(receipt["score_seconds"] + receipt["commit_seconds"] for receipt in receipts),
        "tokens": sum(receipt["tokens_scheduled"] + receipt["tokens_cached"] for receipt in receipts),
        "units": len(receipts),
        "sums": pq.read_table(out / "scores", columns=["sum_logprob"])["sum_logprob"].to_pylist(),
        **peaks,
    }


def plain(model: Path, files: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Score files with plain vLLM; return what plain_vllm.py writes for each."""
    settings = engine_settings(LENGTH)
    job, log = folder / "job.json", folder / "plain.log"
    values = {"model": model, "settings": settings.to_json(), "files": files, "out": folder / "plain.out"}
    job.write_text(json.dumps(values, default=str))
    environment = {**os.environ, **process_environment(settings, available_cores())}
    with open(log, "w") as stream:
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("plain_vllm.py"), job]
        if subprocess.run(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream).returncode:
            sys.exit(f"vLLM failed:\n{log.read_text()[-3000:]}")
    found: list[dict[str, Any]] = json.loads((folder / "plain.out").read_text())
    return found


def speed(model: Path, folder: Path, scale: int, workloads: tuple[str, ...]) -> dict[str, float]:
    """Score workloads with both sides; return the speedups and the largest relative difference of a row's sum."""
    tables = {"documents": documents(200 // scale, 40), "choices": choices(400 // scale)}
    files = {name: folder / f"{name}.parquet" for name in workloads}
    for name, file in files.items():
        pq.write_table(tables[name], file)
    theirs = dict(zip(files, plain(model, list(files.values()), folder), strict=True))
    result, largest = {}, 0.0
    for name, file in files.items():
        mine, other = ours(model, file, folder / name), theirs[name]
        largest = max(largest, *(abs(a - b) / abs(b) for a, b in zip(mine["sums"], other["sums"], strict=True)))
        speedup = other["seconds"] / mine["seconds"]
        result["speedup" if name == "documents" else f"{name}_speedup"] = speedup
        print(
            f"{name:9} {len(mine['sums'])} rows: ours {mine['seconds']:.1f} s, plain vLLM {other['seconds']:.1f} s, "
            f"{speedup:.2f} ×",
            flush=True,
        )
    print(f"largest relative difference of a row's sum: {largest:.2g}", flush=True)
    return result | {"max_rel_diff": largest}


def memory(folder: Path, scale: int) -> dict[str, float]:
    """Score whole prompts, and GROWTH times as many; return the peak of the larger batch and what it is to the smaller's."""
    peaks = []
    for factor in (1, GROWTH):
        file = folder / f"large-{factor}.parquet"
        pq.write_table(documents(500 // scale * factor, 40), file, use_dictionary=False)
        seen = ours(BASE, file, folder / f"large-{factor}")
        peaks.append(seen)
        print(
            f"memory: {len(seen['sums'])} rows, {seen['tokens']} tokens, {seen['units']} units: driver "
            f"{seen['driver'] / 1e6:.0f} MB, replica {seen['replica'] / 1e6:.0f} MB",
            flush=True,
        )
    one, many = peaks
    return {
        "peak_gib": (many["driver"] + many["replica"]) / (1 << 30),
        "driver_growth": many["driver"] / one["driver"],
        "replica_growth": many["replica"] / one["replica"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint, for the speed")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--tiny", action="store_true", help="the demo's base, a few rows of choices, and no memory")
    arguments = parser.parse_args()
    if arguments.model is None and not arguments.tiny:
        parser.error("--model is needed")
    model = BASE if arguments.tiny else arguments.model.resolve()
    scale = 20 if arguments.tiny else 10 if arguments.quick else 1
    print(header("batch scoring", engine_settings(LENGTH), model), flush=True)
    with tempfile.TemporaryDirectory() as name:
        result = speed(model, Path(name), scale, ("choices",) if arguments.tiny else ("documents", "choices"))
        if not arguments.tiny:
            result |= memory(Path(name), scale)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
