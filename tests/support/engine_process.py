"""This runs real vLLM engines, each in a process of its own, because one process holds one engine.

The process is a warm Python, `python -m tests.support.engine_process JOB`, and its ranks are forks of it. Tests of
sweeps and servers with several ranks see that ranks can be spawned, and that they find the plugin by themselves.

A job says where to go: `{"base", "aligned" (one, several by name, or null), "settings", "requests", "parents", "line",
"steps": [[λ or null, output.parquet], …]}`; a null λ scores the weights the engine was started with. A
step [λ, output.parquet, {"prompts", "sampling", "p_true"}] samples instead; texts are then the token ids. With "sabotage"
the resident route takes the parents for each other, and with "misremembers" a wrong answer of a parent is remembered.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.commit import commit_json
from contract.points import by_name
from merge.line import Line
from serve.settings import EngineSettings, Sampling
from serve.start import process_environment
from tests.support.paths import ROOT
from tests.support.waiting import until
from tests.support.warm_python import warm_python


def settings(tensor_parallel: int = 1, **changes: Any) -> EngineSettings:
    """Return the settings of a small CPU engine."""
    values: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "max_model_len": 256,
        "tensor_parallel": tensor_parallel,
        "threads": 1,
        "kv_cache_bytes": 64 << 20,
    }
    return EngineSettings(**(values | changes))


_running: dict[Path, "subprocess.Popen[bytes]"] = {}


def start(job: Path, **values: Any) -> None:
    """Start a job; what it prints goes to a file beside it."""
    job.write_text(json.dumps(values, default=str))
    environment = os.environ | process_environment(settings(), [0])
    with open(job.with_suffix(".log"), "wb") as log:
        command = [warm_python(), "-m", "tests.support.engine_process", str(job)]
        _running[job] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def finish(job: Path) -> dict[str, Any]:
    """Wait for a job and return what it counted."""
    _first_to_end([job])
    status = _running.pop(job).returncode
    assert status == 0, f"the engine process failed:\n{job.with_suffix('.log').read_text()[-4000:]}"
    counted: dict[str, Any] = json.loads(job.with_suffix(".out").read_text())
    return counted


def run(root: Path, jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[pa.Table], Any]]:
    """Run jobs, as many at a time as there are cores; return the tables of each one's steps, and what it counted."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    room = max(1, len(os.sched_getaffinity(0)) // workers)
    waiting = {root / f"job-{number}.json": name for number, name in enumerate(jobs)}
    running: dict[Path, str] = {}
    found: dict[str, tuple[list[pa.Table], Any]] = {}
    while waiting or running:
        for job in [*waiting][: room - len(running)]:
            running[job] = waiting.pop(job)
            start(job, **jobs[running[job]])
        job = _first_to_end(running)
        name = running.pop(job)
        counted = finish(job)
        found[name] = [pq.read_table(step[1]) for step in jobs[name]["steps"]], counted
    return found


def _first_to_end(jobs: Collection[Path]) -> Path:
    """Wait for one of some jobs, for as long as any of them goes on."""

    def ended() -> list[Path]:
        return [job for job in jobs if _running[job].poll() is not None]

    def shows() -> list[Any]:
        folders = {job.parent for job in jobs}
        logs = [job.with_suffix(".log").stat().st_size for job in jobs]
        return [logs, sum(len(list(folder.glob("*.parquet"))) for folder in folders)]

    return until(ended, shows=shows)[0]


def work(job: Path) -> None:
    """Do a job in this process."""
    import multiprocessing

    from vllm.v1.executor import multiproc_executor

    from lambdasweep.tasks.p_true import question_of
    from lambdasweep.tasks.tokens import load_tokenizer
    from serve import reference
    from serve.engine import Engine
    from serve.sampling import sample_unit
    from serve.scoring import score_unit

    values = json.loads(job.read_text())
    engine_settings = EngineSettings.from_json(values["settings"])
    assert engine_settings.threads == 1  # OpenMP was loaded with one thread
    os.environ.update(process_environment(engine_settings, [0]))
    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    if values.get("sabotage"):
        from serve.switch import resident

        right = resident.theta
        resident.theta = lambda parents, lam, out, rule: right(parents[::-1], f"{float(lam) - 0.1}", out, rule)
    line = Line.from_json(values.get("line", {}))
    # None is a fresh engine: only vLLM has touched its weights.
    aligned = {name: Path(path) for name, path in by_name(values["aligned"]).items()} if values["aligned"] else None
    if values.get("misremembers"):
        reference._answer = functools.partial(_misremember, reference._answer)
    engine = Engine(Path(values["base"]), aligned, engine_settings, values["parents"], line=line)
    requests = pq.read_table(values["requests"])
    counted = []
    for lam, output, *asked in values["steps"]:
        if lam is not None:
            engine.switch(lam)
        if asked:
            prompts, sampling = pq.read_table(asked[0]["prompts"]), Sampling(**asked[0]["sampling"])
            tokenizer = load_tokenizer(values["base"]) if sampling.until else None
            decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
            if tokenizer is not None:
                decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
            question = question_of(asked[0].get("p_true"), tokenizer, None)[0] if tokenizer else None
            samples = sample_unit(engine, prompts, lam or "0", sampling, decode, tokenizer, question)
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


def _misremember(right: Any, question: Any) -> Any:
    """Say of the first parent what no engine says, as if an earlier start had computed it with other threads."""
    from serve import reference

    reference._answer = right
    (first, *others), _ = right(question)
    false = (first + 2e-6, *others)
    commit_json(question.entry, false)
    return false, True


if __name__ == "__main__":
    work(Path(sys.argv[1]))
