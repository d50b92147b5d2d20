"""This runs the command line in this process, with a stub in the place of the cluster."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import typer

from contract import schemas
from contract.commit import commit_table
from contract.location import read_table
from contract.rundir import RunDir
from lambdasweep import entry

IRON = {"query": "Which is a metal?", "choices": ["iron", "oxygen"], "gold": 0}
WATER = {"query": "Which is wet?", "choices": ["sand", "water", "salt"], "gold": 1}
# Typer builds the objects of all commands whenever one is called, which takes longer than most of them.
typer.main.get_command = functools.cache(typer.main.get_command)

_COMMAND = re.compile(rb"<dt>command</dt><dd>.*?</dd>\n")  # of a report


@dataclass(frozen=True)
class Result:
    """The result says how a command ended."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """Return the lines of the message under its title, or the title itself where it has none."""
        lines = self.err.rstrip("\n").split("\n")
        return [line.removeprefix("  - ") for line in lines[1:]] or [lines[0].removeprefix("lambdasweep: ")]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    # This is imported here because every test run loads these fixtures.
    from tests.support.checkpoints import write_checkpoint

    root = tmp_path_factory.mktemp("pair")
    return write_checkpoint(root / "base", seed=0), write_checkpoint(root / "aligned", seed=1)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the cluster by a stub that does nothing; return what was handed to it, one entry a call."""
    import ray_jobs.driver
    from ray_jobs.driver import DriverResult

    calls: list[dict[str, Any]] = []

    def run_units(spec, units, tables, replicas, progress, address=None, more=None) -> DriverResult:
        calls.append({"spec": spec, "units": units, "replicas": replicas, "address": address, "more": more})
        return DriverResult(done=0, given_up=(), interrupted=False, hardware=())

    monkeypatch.setattr(ray_jobs.driver, "run_units", run_units)
    monkeypatch.setattr("lambdasweep.monitor.phase.PATIENCE", 1e9)  # messages must not depend on the machine's load
    # The check starts a process that loads vLLM, and tests/real has a test of it.
    monkeypatch.setattr("serve.vllm_arguments.argument_problems", lambda *_: [])
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # `run` sets it, and other tests must not see it
    return calls


@pytest.fixture
def lambdasweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], handed: list[dict[str, Any]]
) -> Callable[..., Result]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr("sys.argv", ["lambdasweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:  # anything else would be a traceback
            entry.main()
        printed = capsys.readouterr()
        return Result(ended.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def flags(tmp_path: Path, pair: tuple[Path, Path]) -> Callable[..., list[object]]:
    """Make the flags of a sound sweep, changed by name; None leaves a flag out, and True is a flag without a value."""
    write_task(tmp_path / "metals.jsonl", IRON, WATER)

    def make(**changes: object) -> list[object]:
        sound = {"base": pair[0], "aligned": pair[1], "lambdas": "0:1:0.5", "out": tmp_path / "run"}
        values = sound | {"task": f"metals={tmp_path / 'metals.jsonl'}"} | changes
        line: list[object] = []
        for name, value in values.items():
            for each in value if isinstance(value, list) else [value]:
                flag = f"--{name.replace('_', '-')}"
                line += [] if each is None else [flag] if each is True else [flag, each]
        return line

    return make


@pytest.fixture
def refused(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> Callable[..., Result]:
    """Hold that `run` and `plan` refuse the changed flags alike, with one message, and write nothing; return how."""

    def check(plan: bool = True, **changes: object) -> Result:
        before = contents(tmp_path)
        result = lambdasweep("run", *flags(**changes))
        assert result.code == 2
        assert result.out == ""
        assert result.err.startswith("lambdasweep: ")
        assert all(line.startswith("  - ") for line in result.err.rstrip("\n").split("\n")[1:])
        assert contents(tmp_path) == before
        if plan:
            assert lambdasweep("plan", *flags(**changes)) == result
            assert contents(tmp_path) == before
        return result

    return check


def write_task(file: Path, *rows: object) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def contents(root: Path) -> dict[str, bytes | None]:
    """Every path below a directory and what is in it, apart from the lock, and from what tells of drivers and commands."""
    return {
        str(path.relative_to(root)): _COMMAND.sub(b"", path.read_bytes()) if path.is_file() else None
        for path in root.rglob("*")
        if path.name not in (".lock", "driver.json", "history.json")
    }


def changed_copy(source: Path, target: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


@pytest.fixture
def begun(lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path) -> RunDir:
    """Return a run directory of the sound flags in which nothing is done yet."""
    assert lambdasweep("run", *flags()).code == 0
    return RunDir(tmp_path / "run")


def score_all(run: RunDir) -> None:
    """Commit scores of all requests of `metals` at every λ."""
    requests = read_table(run.requests("metals"))
    lengths = pc.list_value_length(requests["token_ids"]).to_numpy() - requests["continuation_start"].to_numpy()
    for lam in ("0", "0.5", "1"):
        logprobs = [[-0.1 - row] * int(count) for row, count in enumerate(lengths)]
        columns = {
            "request_id": requests["request_id"],
            **schemas.place_columns(lam, len(requests)),
            "logprobs": logprobs,
            "ranks": [[1] * len(one) for one in logprobs],
            "top1_ids": [[5] * len(one) for one in logprobs],
            "top1_logprobs": logprobs,
        }
        identity = {"task": "metals", "lam": lam, "shard": 0}
        commit_table(run.unit("tokens", "metals", lam, 0), pa.table(columns, schema=schemas.TOKENS), identity)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command line compute metrics with 100 resamples, which takes a fraction of the time of 2,000."""
    for module in ("calibration.analyse.analyse", "calibration.frontier.running_curve.answer_curve"):
        folder, _, name = module.rpartition(".")
        whole = getattr(import_module(folder), name)
        monkeypatch.setattr(module, partial(whole, resamples=100))
