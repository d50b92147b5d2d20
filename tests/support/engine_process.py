"""Real vLLM engines, each in a process of its own.

vLLM takes three times as long to import as a tiny engine takes to start. One process imports it once and waits,
`python -m tests.support.engine_process`, and each job is a fork of it: the environment of an engine must be set before it
starts, and one process holds one engine. Ranks are forks, too. That ranks can be spawned, and find the plugin by
themselves, is seen where sweeps and servers run with several.

A job says where to go: `{"base", "aligned" (one, several by name, or null), "settings", "requests", "parents", "line",
"steps": [[λ or null, output.parquet], …]}`; a null λ scores the weights the engine was started with. A
step [λ, output.parquet, {"prompts", "sampling"}] samples instead; texts are then the token ids. With "sabotage" the
resident route takes the parents for each other.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.points import by_name
from merge.line import Line
from serve.settings import EngineSettings, Sampling
from tests.support.paths import ROOT
from tests.support.waiting import until

# What an engine imports while it starts.
_LATE = (
    "serve.switch.backend",
    "transformers.models.llama.configuration_llama",
    "vllm.compilation.decorators",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


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


class _Nursery:
    """The process that has imported vLLM, and what became of its forks: by job, the process's id and its status."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.engine_process"],
            cwd=ROOT,
            env={**os.environ, **_environment(settings())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, job: Path) -> None:
        self.ended.pop(str(job), None)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{job}\n")
        self._process.stdin.flush()

    def alive(self) -> bool:
        return self._process.poll() is None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, number, job = line.rstrip("\n").split(" ", 2)
            (self.begun if what == "begun" else self.ended)[job] = int(number)


_nursery = functools.cache(_Nursery)  # one of this process, which ends with its standard input


def start(job: Path, **values: Any) -> None:
    """Start a job; what it prints goes to a file beside it."""
    job.write_text(json.dumps(values, default=str))
    _nursery().start(job)


def finish(job: Path) -> dict[str, Any]:
    """Wait for a job and return what it counted."""
    _first_to_end([job])
    assert _nursery().ended.get(str(job)) == 0, (
        f"the engine process failed:\n{job.with_suffix('.log').read_text()[-4000:]}"
    )
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
    nursery = _nursery()

    def ended() -> list[Path]:
        return [job for job in jobs if str(job) in nursery.ended or not nursery.alive()]

    def shows() -> list[Any]:
        folders = {job.parent for job in jobs}
        logs = [log.stat().st_size for job in jobs if (log := job.with_suffix(".log")).exists()]
        return [len(nursery.begun), logs, sum(len(list(folder.glob("*.parquet"))) for folder in folders)]

    return until(ended, shows=shows)[0]


def _environment(engine: EngineSettings) -> dict[str, str]:
    from serve.engine import process_environment

    return process_environment(engine, [0])


def work(job: Path) -> None:
    """Do a job in this process."""
    from lambdasweep.tasks import load_tokenizer
    from serve import reference
    from serve.engine import Engine
    from serve.sampling import sample_unit
    from serve.scoring import score_unit

    values = json.loads(job.read_text())
    engine_settings = EngineSettings.from_json(values["settings"])
    assert engine_settings.threads == 1  # what OpenMP was loaded with
    os.environ.update(_environment(engine_settings))
    if values.get("sabotage"):
        from serve.switch import resident

        right = resident.theta
        resident.theta = lambda parents, lam, out, rule: right(parents[::-1], f"{float(lam) - 0.1}", out, rule)
    line = Line.from_json(values.get("line", {}))
    # None: a fresh engine, which nothing of ours has touched since vLLM loaded its weights.
    aligned = {name: Path(path) for name, path in by_name(values["aligned"]).items()} if values["aligned"] else None
    reference._ask = _ask_a_fork
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
            samples = sample_unit(engine, prompts, lam or "0", sampling, decode, tokenizer)
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


def _ask_a_fork(arguments: dict[str, Any], checkpoint: Path) -> Any:
    """As `serve.reference` asks a process of its own what vLLM makes of a parent, which would import vLLM anew."""
    from serve import reference

    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(arguments | {"model": str(checkpoint)}))
        pid = os.fork()
        if not pid:
            try:
                reference._main(job)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.waitpid(pid, 0)
        said = job.with_suffix(".out")
        assert said.exists(), f"vLLM did not start on {checkpoint}"
        return tuple(json.loads(said.read_text()))


def _forked(job: Path) -> int:
    """Do a job in a fork; return its process's id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        log = os.open(job.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log, stream.fileno())
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        work(job)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    raise AssertionError  # not reached


def main() -> None:
    """Import what engines need; then fork for each line of standard input, and say what became of it."""
    import importlib
    import multiprocessing
    import select
    import signal

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for module in _LATE:
        importlib.import_module(module)
    from vllm.platforms import current_platform
    from vllm.v1.executor import multiproc_executor

    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    # What each engine would do again: it looks through every module for kernels to replace.
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
    children: dict[int, str] = {}
    text = b""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.05 if children else None)
        if readable:
            got = os.read(sys.stdin.fileno(), 1 << 16)
            if not got:
                break
            *lines, text = (text + got).split(b"\n")
            for line in lines:
                job = line.decode()
                pid = _forked(Path(job))
                children[pid] = job
                answers.write(f"begun {pid} {job}\n")
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                answers.write(f"ended {os.waitstatus_to_exitcode(status)} {children.pop(pid)}\n")
    for pid in children:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
