"""Runs one real vLLM engine in a process of its own: `python -m tests.support.engine_process JOB.json`.

The environment of an engine must be set before torch is imported, and one process holds one engine. The job says where to
go: `{"base", "aligned" (one, or several by name), "settings", "cores", "requests", "parents", "line", "steps":
[[λ or null, output.parquet], …]}`; a null λ scores the weights the engine was started with. A step [λ, output.parquet,
{"prompts", "sampling"}] samples instead; texts are then the token ids. With "sabotage" the resident route takes the parents
for each other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from contract.points import by_name
from merge.line import Line
from serve.settings import EngineSettings, Sampling
from tests.support.paths import ROOT


def settings(tensor_parallel: int = 1, **changes: Any) -> EngineSettings:
    """Settings of a small CPU engine."""
    values: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "max_model_len": 256,
        "tensor_parallel": tensor_parallel,
        "threads": 1,
        "kv_cache_bytes": 64 << 20,
    }
    return EngineSettings(**(values | changes))


def start(job: Path, **values: Any) -> "subprocess.Popen[bytes]":
    """Start a job; its standard error goes to a file beside it."""
    job.write_text(json.dumps(values, default=str))
    with open(job.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.engine_process", str(job)], cwd=ROOT, stderr=log, stdout=log
        )


def finish(job: Path, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Wait for a job and return what it counted."""
    if process.wait(timeout=500):
        raise AssertionError(f"the engine process failed:\n{job.with_suffix('.log').read_text()[-4000:]}")
    counted: dict[str, Any] = json.loads(job.with_suffix(".out").read_text())
    return counted


def main(job: Path) -> None:
    from serve.engine import Engine, process_environment
    from serve.sampling import sample_unit
    from serve.scoring import score_unit

    values = json.loads(job.read_text())
    engine_settings = EngineSettings.from_json(values["settings"])
    os.environ.update(process_environment(engine_settings, values["cores"]))
    if values.get("sabotage"):
        from serve.switch import resident

        right = resident.theta
        resident.theta = lambda parents, lam, out, rule: right(parents[::-1], f"{float(lam) - 0.1}", out, rule)
    line = Line.from_json(values.get("line", {}))
    aligned = {name: Path(path) for name, path in by_name(values["aligned"]).items()}
    engine = Engine(Path(values["base"]), aligned, engine_settings, values["parents"], line=line)
    requests = pq.read_table(values["requests"])
    counted = []
    for lam, output, *asked in values["steps"]:
        if lam is not None:
            engine.switch(lam)
        if asked:
            prompts, sampling = pq.read_table(asked[0]["prompts"]), Sampling(**asked[0]["sampling"])
            samples = sample_unit(engine, prompts, lam or "0", sampling, lambda ids: " ".join(map(str, ids)))
            pq.write_table(samples.generations, output)
            counted.append(
                {
                    "quarantine": samples.quarantine.to_pylist(),
                    "prompt_tokens": samples.prompt_tokens,
                    "cached_tokens": samples.cached_tokens,
                    "new_tokens": samples.new_tokens,
                }
            )
            continue
        scores = score_unit(engine, requests, lam or "0")
        pq.write_table(scores.tokens, output)
        counted.append(
            {
                "prompt_tokens": scores.prompt_tokens,
                "cached_tokens": scores.cached_tokens,
                "quarantine": scores.quarantine.to_pylist(),
                "digests": engine.digests,
                "route": engine.route,
                "fallback": engine.fallback,
            }
        )
    job.with_suffix(".out").write_text(json.dumps(counted))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
