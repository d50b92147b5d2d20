"""The command line has one clear message for each bad input, and then writes nothing.

No engine is started: where a command would go on to one, `run_units` is replaced by a stub that does nothing.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import ray_jobs.driver
from calibration.frontier.frontier import reported
from contract import schemas
from contract.errors import InputError
from contract.location import read_table
from contract.points import parse_points
from contract.records import read_asked
from contract.rundir import RunDir, commit_json, commit_table
from contract.units import Unit
from lambdasweep import record
from lambdasweep.config import load_config
from lambdasweep.tasks.tokens import load_tokenizer
from merge.line import Line
from ray_jobs.driver import SweepResult
from serve.machine import Gpus
from serve.switch.tiers import Room
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import (
    IRON,
    WATER,
    Result,
    contents,
    write_task,
)
from tests.support.receipts import receipt


def test_signals_are_its_callers_again_when_a_command_ends(lambdasweep: Callable[..., Result], tmp_path: Path) -> None:
    """SIGTERM to pytest ends pytest, and not the test that runs then."""

    def mine(*_: object) -> None: ...

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for arguments in (["status", tmp_path], ["--help"]):
            lambdasweep(*arguments)
            assert [signal.getsignal(number) for number in before] == [mine, mine]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def changed_copy(source: Path, target: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


# What is missing or malformed on the command line


def test_missing_flags_are_named_at_once(lambdasweep: Callable[..., Result]) -> None:
    for command in ("run", "plan"):
        result = lambdasweep(command)
        assert result.code == 2
        assert result.err.splitlines() == [
            "lambdasweep: the sweep cannot be set up",
            "  - --base is missing",
            "  - --aligned is missing",
            "  - --lambdas is missing",
            "  - --out is missing",
            "  - --task is missing: give at least one NAME=FILE.jsonl or lm-eval:TASK, or a --generate",
        ]


@pytest.mark.parametrize(
    ("lambdas", "says"),
    [
        ("", "--lambdas is missing"),
        (",", "an empty part between two commas: remove it"),
        ("0,0.5,0.50", "λ 0.5 is named by '0.5' and by '0.50': name each point once"),
        ("0:1", "'0:1' is not start:stop:step"),
        ("0:1:0", "'0:1:0' has step 0"),
        ("half", "λ 'half' is not a decimal number: write it like 0.35"),
    ],
)
def test_a_bad_grid(refused: Callable[..., Result], lambdas: str, says: str) -> None:
    assert says in refused(lambdas=lambdas).problems[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "fp8"}, "--dtype is 'fp8': use auto, float32, bfloat16, float16"),
        ({"tokenizer": "mine"}, "--tokenizer is 'mine': use base, aligned"),
        ({"method": "cubic"}, "--method is 'cubic': use linear, slerp"),
        ({"vocab": "any"}, "--vocab is 'any': use strict, shared"),
        ({"vocab": "shared", "tokenizer": "base"}, "--tokenizer base does not go with --vocab shared"),
        ({"lam_map": "mlp"}, "'mlp' is not PATTERN=WEIGHT"),
        ({"lam_map": "experts=1"}, "experts=1 matches no tensor of the pair"),
        ({"parents": "gpu"}, "--parents is 'gpu': use auto, device, pinned, mmap, reload"),
        ({"tp": 0}, "--tp is 0: give 1 or more"),
        ({"pp": 0}, "--pp is 0: give 1 or more"),
        ({"pp": 3}, "--pp 3 is more than the 2 layers of the model: each stage needs one"),
        ({"replicas": -1}, "--replicas is -1: give 1 or more"),
        ({"max_model_len": 0}, "--max-model-len is 0: give 1 or more"),
        ({"max_model_len": 513}, "--max-model-len 513 is more than the 512 positions of the model"),
        ({"engine": "junk"}, "--engine cannot be used: 'junk' is not KEY=VALUE"),
        ({"engine": "dtype=float16"}, "--engine cannot be used: dtype is set by lambdasweep: use --dtype"),
        (
            {"engine": "trust-remote-code=true"},
            "trust_remote_code is set by lambdasweep: use nothing: code from a checkpoint",
        ),
        (
            {"engine": "hf_token=secret"},
            "hf_token is set by lambdasweep: use HF_TOKEN in the environment: arguments stand",
        ),
        ({"engine": ["seed=1", "seed=2"]}, "--engine cannot be used: seed is given twice"),
        ({"engine": "block_size=many"}, "--engine block_size is 'many': give a whole number above 0"),
        ({"engine": "threads=0"}, "--engine threads is 0: give a whole number above 0"),
        ({"task": "metals.jsonl"}, "--task 'metals.jsonl' is not NAME=FILE.jsonl"),
        ({"task": ["a=x.jsonl", "a=y.jsonl"]}, "task 'a' is named twice: give each its own name"),
        ({"format": "essay"}, "format is 'essay': use cloze, letters"),
        ({"shots": -1}, "shots is -1: give 0 or more"),
        ({"shots": 2}, "2 shots from 2 rows leave none to evaluate: ask for fewer shots"),
        ({"limit": 0}, "limit is 0: give 1 or more"),
        ({"base_revision": "main"}, "--base-revision main was given, but"),
    ],
)
def test_a_bad_flag(refused: Callable[..., Result], changes: dict[str, object], says: str) -> None:
    (problem,) = refused(**changes).problems
    assert says in problem


def test_bad_flags_are_named_at_once(refused: Callable[..., Result]) -> None:
    grid, engine, task, tp, dtype = refused(
        lambdas="x", engine="model=gpt", task="=f", tp=0, dtype="int4", base=None
    ).problems[1:]
    assert "λ 'x' is not a decimal number" in grid
    assert "model is set by lambdasweep: use --base and --aligned" in engine
    assert task == "--task '=f' is not NAME=FILE.jsonl, lm-eval:TASK or NAME=lm-eval:TASK"
    assert (tp, dtype) == ("--tp is 0: give 1 or more", "--dtype is 'int4': use auto, float32, bfloat16, float16")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--lambda", "0"], "No such option: --lambda"),
        (["run", "--tp", "two"], "Invalid value for '--tp'"),
        (["sweep"], "No such command 'sweep'"),
        (["status"], "Missing argument 'RUN'"),
    ],
)
def test_what_is_no_flag_or_command(lambdasweep: Callable[..., Result], arguments: list[str], says: str) -> None:
    result = lambdasweep(*arguments)
    assert result.code == 2
    assert result.err.count("Error: ") == 1
    assert f"Error: {says}" in result.err


# Bad inputs


def test_paths_that_do_not_exist(refused: Callable[..., Result], tmp_path: Path) -> None:
    gone, away = tmp_path / "gone", tmp_path / "away"
    base, aligned, task = refused(base=gone, aligned=away, task=f"metals={tmp_path / 'x.jsonl'}").problems
    assert base.endswith(f"the base checkpoint {gone} does not exist: give a directory or a hub id like org/name")
    assert aligned.endswith(f"the aligned checkpoint {away} does not exist: give a directory or a hub id like org/name")
    assert task.endswith("the file cannot be read (No such file or directory): check the path and its permissions")


def test_a_truncated_checkpoint(refused: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    copy = changed_copy(pair[1], tmp_path / "cut", lambda copy: os.truncate(copy / "model.safetensors", 200_000))
    (problem,) = refused(aligned=copy).problems
    assert f"{copy / 'model.safetensors'} is truncated: its header tells of 26" in problem
    assert problem.endswith("the file has 200000")


def test_a_pair_that_does_not_fit(refused: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    def shorten(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, copy / "model.safetensors")

    result = refused(aligned=changed_copy(pair[1], tmp_path / "shortened", shorten))
    assert result.err.startswith("lambdasweep: base and aligned do not fit together\n")
    assert "tensors only in base: model.norm.weight" in result.problems


def test_a_parent_that_holds_nan(refused: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    def spoil(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        weights["model.norm.weight"][3] = float("nan")
        save_file(weights, copy / "model.safetensors")

    copy = changed_copy(pair[1], tmp_path / "spoiled", spoil)
    result = refused(plan=False, aligned=copy)  # `plan` reads no weights, and says so
    assert result.err == f"lambdasweep: the aligned checkpoint {copy} holds NaN or infinity\n  - model.norm.weight\n"


def test_a_parent_without_a_tokenizer(refused: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    def strip(copy: Path) -> None:
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer_config.json").unlink()

    copy = changed_copy(pair[0], tmp_path / "stripped", strip)
    assert refused(base=copy).problems == [f"{copy} has no tokenizer.json: put it there, or give --tokenizer aligned"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"query": ', "line 2: is not JSON (Expecting value at column 11): write one object a line"),
        ("[1]", "line 2: is of type list, not an object: write {…}"),
        ({"query": "x"}, "line 2: has neither choices (with query and gold) nor a continuation (with context)"),
        (IRON | {"choices": []}, "line 2: has 0 choices: give at least 2"),
        (IRON | {"choices": ["iron", " "]}, "line 2: choice 1 is empty: there is nothing to score"),
        (IRON | {"gold": 2}, "line 2: gold is 2: it counts from 0, so give 0 to 1"),
        (IRON | {"gold": -1}, "line 2: gold is -1: it counts from 0, so give 0 to 1"),
        (
            IRON | {"gold": "1"},
            "line 2: gold is '1': give the index of the right choice, counted from 0, or its letter",
        ),
    ],
)
def test_a_bad_row(refused: Callable[..., Result], tmp_path: Path, row: object, says: str) -> None:
    file = write_task(tmp_path / "bad.jsonl", IRON, row, WATER)
    result = refused(task=f"bad={file}")
    assert result.err == f"lambdasweep: task 'bad' cannot be built from {file}\n  - {says}\n"


def test_bad_tasks_and_a_bad_pair_are_named_at_once(refused: Callable[..., Result], tmp_path: Path) -> None:
    one = write_task(tmp_path / "one.jsonl", IRON, "{")
    two = write_task(tmp_path / "two.jsonl")
    pair, first, second = refused(base=tmp_path / "gone", task=[f"one={one}", f"two={two}"]).problems
    assert "gone does not exist" in pair
    assert first.startswith(f"task 'one' cannot be built from {one}: line 2: is not JSON")
    assert second == f"task 'two' cannot be built from {two}: the file is empty: give one JSON object a line"


# The run directory


def test_a_file_as_the_run_directory(refused: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    assert refused(out=file).problems == [f"{file} is a file: give a directory as --out"]
    below = refused(out=file / "run" / "deep").problems
    assert below == [f"{file / 'run' / 'deep'} cannot be made: {file} is a file; give another --out"]


def test_a_directory_of_something_else(refused: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    says = f"{tmp_path / 'out'} is not empty and no run directory (it holds thesis.tex): give another --out"
    assert refused(out=tmp_path / "out").problems == [says]


def test_no_disk_space(refused: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = SimpleNamespace(total=10**12, used=10**12 - 10**6, free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    (problem,) = refused().problems
    numbers = re.fullmatch(
        r"no disk space: ([\d.]+) MB are needed \(([\d.]+) kB for the tables, ([\d.]+) MB for the report and in reserve\), "
        rf"and {tmp_path} has ([\d.]+) MB free; make room or give another --out",
        problem,
    )
    assert numbers is not None, problem
    whole, tables, reserve, free = map(float, numbers.groups())
    assert whole == pytest.approx(tables / 1e3 + reserve, abs=0.02)
    assert tables > 0
    assert free == 1.0


def test_a_disk_that_cannot_be_written_to_is_no_traceback(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(target))

    monkeypatch.setattr(os, "replace", replace)
    result = lambdasweep("run", *flags())
    assert result.code == 1
    assert "Read-only file system" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "report"])
def test_what_is_no_run(lambdasweep: Callable[..., Result], tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    for name in ("sweep.json", "plan.json"):
        (tmp_path / "foreign" / name).write_text("[]")
    before = contents(tmp_path)
    for name, says in (
        ("gone", "gone does not exist: give the directory that `lambdasweep run --out` wrote"),
        ("file", "file is a file: give the directory that `lambdasweep run --out` wrote"),
        ("empty", "empty is not a run directory: it has no "),
        ("foreign", ".json is damaged (it lacks "),
    ):
        result = lambdasweep(command, tmp_path / name)
        assert result.code == 2
        assert result.out == ""
        assert says in result.err
        assert result.err.count("\n") == 1
    assert contents(tmp_path) == before


# One directory, one sweep


@pytest.fixture
def begun(lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path) -> RunDir:
    """Return a run directory of the sound flags in which nothing is done yet."""
    assert lambdasweep("run", *flags()).code == 0
    return RunDir(tmp_path / "run")


def test_a_sweep_is_recorded_before_its_units_are_handed_out(
    begun: RunDir, handed: list[dict[str, Any]], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    sweep, plan = begun.sweep(), begun.plan()
    assert [sweep["pair"][role]["source"] for role in ("base", "aligned")] == list(map(str, pair))
    assert sweep["engine"]["dtype"] == "float32"
    assert sweep["versions"].keys() >= {"lambdasweep", "vllm", "torch", "transformers"}
    assert plan["tasks"]["metals"]["lambdas"] == ["0", "0.5", "1"]
    assert plan["tasks"]["metals"]["file"] == str(tmp_path / "metals.jsonl")
    (call,) = handed
    assert [unit.key for unit in call["units"]] == [("metals", lam, 0) for lam in ("0", "0.5", "1")]
    assert call["spec"].identity["base"] == sweep["pair"]["base"]["fingerprint"]
    assert begun.requests("metals").is_file()


def test_requests_that_no_plan_names_are_written_anew(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    """A first command that was killed before it wrote the plan leaves requests of a file that may change since."""
    before = begun.requests("metals").read_bytes()
    begun.sweep_json.unlink()
    begun.plan_json.unlink()
    begun.driver_json.unlink()
    begun.history_json.unlink()
    begun.metrics_parquet.unlink()
    shutil.rmtree(begun.root / "report")
    write_task(tmp_path / "metals.jsonl", WATER, IRON)
    assert lambdasweep("run", *flags()).code == 0
    assert begun.requests("metals").read_bytes() != before


def test_the_same_command_again_changes_nothing(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    before = contents(begun.root)
    assert lambdasweep("run", *flags()).code == 0
    # It is the same sweep with fewer engines.
    assert lambdasweep("run", *flags(lambdas="0.50,1.0", replicas=1)).code == 0
    assert contents(begun.root) == before
    assert [len(call["units"]) for call in handed] == [3, 3, 2]


def test_where_the_inputs_lie_does_not_matter(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    pair: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    base = changed_copy(pair[0], tmp_path / "moved", lambda copy: None)
    task = shutil.copy(tmp_path / "metals.jsonl", tmp_path / "moved.jsonl")
    assert lambdasweep("run", *flags(base=base, task=f"metals={task}")).code == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "letters"}, 'task metals: format was "cloze" and is "letters" now'),
        ({"shots": 1}, "task metals: shots was 0 and is 1 now"),
        ({"limit": 1}, "task metals: limit was null and is 1 now"),
        ({"dtype": "bfloat16"}, 'engine.dtype was "float32" and is "bfloat16" now'),
        ({"max_model_len": 100}, "engine.max_model_len was 512 and is 100 now"),
        ({"tp": 2}, "engine.tensor_parallel was 1 and is 2 now"),
        ({"pp": 2}, "engine.pipeline_parallel was 1 and is 2 now"),
        ({"engine": "block_size=64"}, "engine.block_size was 32 and is 64 now"),
        ({"engine": "seed=7"}, "engine.extra.seed was null and is 7 now"),
        ({"tokenizer": "aligned"}, 'tokenizer was "base" and is "aligned" now'),
        ({"method": "slerp"}, 'line.method was "linear" and is "slerp" now'),
        ({"lam_map": "mlp=0.50"}, 'line.lam_map was "" and is "mlp=0.5" now'),
        ({"vocab": "shared"}, 'line.vocab was "strict" and is "shared" now'),
    ],
)
def test_a_changed_setting_is_another_sweep(
    begun: RunDir, refused: Callable[..., Result], changes: dict[str, object], says: str
) -> None:
    result = refused(**changes)
    assert result.err.startswith(
        f"lambdasweep: {begun.root} holds another sweep; give another --out, or the settings it was started with\n"
    )
    assert says in result.problems


def test_a_run_takes_no_longer_requests_than_it_began_with(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    refused: Callable[..., Result],
    tmp_path: Path,
) -> None:
    assert lambdasweep("run", *flags(max_model_len=100)).code == 0
    planned = re.search(r"requests up to 100 tokens \(the longest has \d+, (.*?)\)", lambdasweep("plan", *flags()).out)
    assert planned is not None
    assert planned[1] == "and the run began with so many"
    long = write_task(tmp_path / "long.jsonl", IRON | {"query": "word " * 150})
    assert refused(task=f"long={long}").problems == [
        "engine.max_model_len was 100 and is 512 now: --max-model-len 100 keeps it, and quarantines longer requests"
    ]
    short = write_task(tmp_path / "short.jsonl", WATER)
    assert lambdasweep("run", *flags(task=f"short={short}")).code == 0
    assert RunDir(tmp_path / "run").sweep()["engine"]["max_model_len"] == 100


def test_changed_weights_are_another_sweep(begun: RunDir, refused: Callable[..., Result], tmp_path: Path) -> None:
    before = begun.sweep()["pair"]["aligned"]["fingerprint"]
    aligned = write_checkpoint(tmp_path / "other", seed=2)
    (problem,) = refused(plan=False, aligned=aligned).problems
    assert problem.startswith(f'pair.aligned.fingerprint was "{before[:50]}')


def test_a_changed_task_file_is_another_sweep(begun: RunDir, refused: Callable[..., Result], tmp_path: Path) -> None:
    write_task(tmp_path / "metals.jsonl", IRON, WATER | {"gold": 0})
    (problem,) = refused().problems  # it follows that its requests are others, so that is not said
    assert problem.startswith("task metals: sha256 was ")


def test_another_version_is_another_sweep(
    begun: RunDir, refused: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = record.versions() | {"vllm": "0.99"}
    monkeypatch.setattr("lambdasweep.record.versions", lambda: versions)
    (problem,) = refused().problems
    assert problem.startswith("versions.vllm was ")
    assert problem.endswith(' and is "0.99" now')


def test_damaged_records_are_named(begun: RunDir, refused: Callable[..., Result]) -> None:
    begun.sweep_json.write_text('{"engine": {}}')
    (problem,) = refused().problems
    assert problem == (
        f"{begun.sweep_json} is damaged (it lacks engine, pair, versions): restore it, or start again in another directory"
    )


def test_more_points_and_tasks_grow_the_plan(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[Any],
    tmp_path: Path,
) -> None:
    sweep, first = begun.sweep_json.read_bytes(), begun.plan()["tasks"]["metals"]
    assert lambdasweep("run", *flags(lambdas="1.25,-0.5,0.5")).code == 0
    other = f"wet={write_task(tmp_path / 'wet.jsonl', WATER)}"
    assert lambdasweep("run", *flags(lambdas="0", task=other, format="letters")).code == 0
    tasks = begun.plan()["tasks"]
    assert tasks["metals"] == first | {"lambdas": ["-0.5", "0", "0.5", "1", "1.25"]}
    assert (tasks["wet"]["lambdas"], tasks["wet"]["format"]) == (["0"], "letters")
    assert begun.sweep_json.read_bytes() == sweep
    assert [sorted({unit.lam for unit in call["units"]}) for call in handed[1:]] == [["-0.5", "0.5", "1.25"], ["0"]]


def test_a_second_driver_is_refused(begun: RunDir, refused: Callable[..., Result]) -> None:
    with begun.lock():
        (problem,) = refused(plan=False).problems
    assert problem == f"another lambdasweep process is writing to {begun.root}: wait for it, or stop it first"


def test_leftovers_of_a_killed_writer_are_removed(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    leftover = begun.unit("tokens", "metals", "0", 0).with_name(".shard-00000.parquet.0f.tmp")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"PAR1")
    assert lambdasweep("status", begun.root).code == 0
    assert leftover.exists()
    assert lambdasweep("run", *flags()).code == 0
    assert not leftover.exists()


# What commands print


def test_status_counts_what_is_done_left_and_quarantined(begun: RunDir, lambdasweep: Callable[..., Result]) -> None:
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    rows = [{"request_id": row, "reason": reason} for row, reason in enumerate(["too long", "NaN", "too long"])]
    commit_table(begun.unit("quarantine", "metals", "0.5", 0), pa.Table.from_pylist(rows, schema=schemas.QUARANTINE))
    result = lambdasweep("status", begun.root)
    assert result.code == 0
    assert result.err == ""
    *lines, driver = result.out.splitlines()[3:]
    assert driver.startswith("driver was stopped ")  # the stub did nothing
    assert lines == [
        "metals: 1/3 units, 2 documents × 3 λ (cloze, 0 shots)",
        "  left at λ 0, 1",
        "  quarantined: 2 × too long",
        "  quarantined: 1 × NaN",
        "1 unit done, 2 left",
    ]


def test_a_report_of_nothing_says_so(begun: RunDir, lambdasweep: Callable[..., Result]) -> None:
    result = lambdasweep("report", begun.root)
    assert (result.code, result.out) == (0, f"report: {begun.index_html}\n")
    assert result.err == "no unit is committed yet, so there is nothing to report\n"
    assert "No λ is finished yet" in begun.index_html.read_text(encoding="utf-8")


def test_a_plan_tells_the_cost_and_writes_nothing(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[Any], tmp_path: Path
) -> None:
    before = contents(tmp_path)
    result = lambdasweep("plan", *flags())
    assert (result.code, result.err) == (0, "")
    lines = {line.split()[0].rstrip(":"): line.split(maxsplit=1)[1] for line in result.out.splitlines()}
    assert lines["pair"].startswith("20 tensors, 263 kB each; both parents per rank: 526 kB")
    assert lines["memory"].startswith("parents: mmap, 526 kB in the page cache, shared by all ranks; host memory ")
    assert lines["engine"].startswith("cpu, float32, TP 1, PP 1, requests up to 512 tokens (the longest has ")
    asked = lambdasweep("plan", *flags(max_model_len=100)).out
    assert "requests up to 100 tokens (--max-model-len)" in asked
    assert lines["task"].startswith("metals: 2 documents, 5 requests, ")
    assert lines["units"] == "3 to do of 3 (3 λ)"
    tokens = int(lines["task"].split(" requests, ")[1].split()[0])
    assert lines["tokens"].startswith(f"{3 * tokens} at most")
    assert re.fullmatch(r"\d\d kB of tables", lines["disk"])
    assert lines["lambdas"] == "0, 0.5, 1"
    halves = lambdasweep("plan", *flags(pp=2)).out
    assert "both parents per rank: 263 kB" in halves
    assert "TP 1, PP 2" in halves
    assert lines["time"].startswith("about ")
    assert lines["not"].startswith("checked: NaN and infinity in the weights (")
    assert contents(tmp_path) == before
    assert handed == []


GIB = 1 << 30


@pytest.mark.parametrize(
    ("parents", "device", "says"),
    [
        ("reload", {}, "every switch goes through vLLM's own loader (--parents reload)"),
        ("device", {}, "parents: device, 526 kB a rank; host memory "),
        (
            "auto",
            {"device_total": 0},
            "parents: 526 kB a rank, in GPU memory, else pinned (526 kB a replica), else in ",
        ),
        (
            "auto",
            {"device_total": 80 * GIB, "device_free": 79 * GIB},
            "parents: device, 526 kB a rank beside 263 kB live, of 84.83 GB free, of which 5.17 GB are for the KV cache, "
            "steps and vLLM; host memory 0 kB for 1 replica,",
        ),
        (
            "auto",
            {"device_total": 8 * GIB, "device_free": 1 * GIB},
            "parents: pinned, 526 kB a rank beside 263 kB live, of 1.07 GB free, of which 4.31 GB are for the KV cache, "
            "steps and vLLM, which may not fit: give more ranks (--tp); host memory 526 kB for 1 replica,",
        ),
    ],
)
def test_a_plan_tells_where_the_parents_go(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    parents: str,
    device: dict[str, int],
    says: str,
) -> None:
    if device:  # this stands for a machine with a GPU
        monkeypatch.setattr("serve.settings.installed_device", lambda: "cuda")
        found = Room(64 * GIB, 60 * GIB, 1, **device)
        monkeypatch.setattr("serve.engine.free_memory", lambda settings, ranks: replace(found, ranks=ranks))
        monkeypatch.setattr("serve.machine.gpus", lambda: Gpus(2, total) if (total := device["device_total"]) else None)
    result = lambdasweep("plan", *flags(parents=parents))
    assert (result.code, result.err) == (0, "")
    (engine,) = [line for line in result.out.splitlines() if line.startswith("engine")]
    assert (", TP 1 (auto), PP 1," in engine) == bool(device)
    (line,) = [line for line in result.out.splitlines() if line.startswith("memory")]
    assert says in line


def test_the_tier_asked_for_reaches_the_replicas_and_is_no_part_of_the_sweep(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    for parents in ("pinned", "mmap"):  # the second goes on with the first's run directory
        lambdasweep("run", *flags(parents=parents))
        assert handed[-1]["spec"].parents == parents


def test_the_line_is_part_of_the_sweep_and_reaches_the_replicas(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]], tmp_path: Path
) -> None:
    aligned = write_checkpoint(tmp_path / "chat", seed=1, vocab=520)
    line = {"method": "slerp", "lam_map": "layers=0.5:1,embed=1", "vocab": "shared"}
    planned = lambdasweep("plan", *flags(aligned=aligned, **line))
    assert "line      slerp, λ × embed=1,layers=0.5:1, shared vocabulary\n" in planned.out
    warning = (
        "warning: 8 of 520 rows of model.embed_tokens.weight are aligned's at every λ: their token ids stand for other"
    )
    assert warning in planned.out
    result = lambdasweep("run", *flags(aligned=aligned, **line))
    assert result.code == 0
    assert warning in result.err
    record = RunDir(tmp_path / "run").sweep()
    want = {**line, "lam_map": "embed=1,layers=0.5:1"}
    rows = {"model.embed_tokens.weight": 8}
    assert record["line"] == want | {"rows_from_aligned": rows, "ends_at_aligned": False}
    assert record["tokenizer"] == "aligned"
    spec = handed[-1]["spec"]
    assert spec.line == Line(**want)
    assert spec.identity["line"] == record["line"]
    # The same map in another order, with other zeros.
    again = flags(aligned=aligned, **line | {"lam_map": "embed=1.0, layers=0.50:1"})
    assert lambdasweep("run", *again).code == 0


def test_a_plan_for_a_begun_sweep_counts_what_is_left(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    plan = begun.plan_json.read_bytes()
    begun.plan_json.unlink()  # a first command was killed before it wrote the plan
    early = lambdasweep("plan", *flags())
    assert (early.code, early.err) == (0, "")
    assert "units     3 to do of 3 (3 λ)\n" in early.out
    begun.plan_json.write_bytes(plan)
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    assert "2 FLOP × parameters × tokens computed, " in lambdasweep("plan", *flags()).out
    unit = Unit("metals", "0.5", 0, 0, 5, 1)
    # The unit took 36 s.
    commit_json(begun.unit("receipts", "metals", "0.5", 0), receipt(unit, tokens_scheduled=7200).to_json())
    before = contents(begun.root)
    result = lambdasweep("plan", *flags(lambdas="0:1.5:0.5"))
    assert "engine start apart (at 200 tokens/s a replica, as in the 1 unit so far, " in result.out
    assert "units     3 to do of 4 (4 λ)\n" in result.out
    assert f"whether they are those of {begun.root} (`run` reads them)" in result.out
    assert contents(begun.root) == before


def test_warnings_are_said_and_do_not_stop(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def shorten(copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))

    aligned = changed_copy(pair[1], tmp_path / "short", shorten)
    result = lambdasweep("run", *flags(aligned=aligned))
    assert result.code == 0
    assert "warning: config.json: max_position_embeddings is 512 in base and 256 in aligned\n" in result.err
    assert RunDir(tmp_path / "run").sweep()["engine"]["max_model_len"] == 256


def test_a_plan_without_vllm_checks_the_headers_and_says_what_it_left(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    refused: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("lambdasweep.plan.find_spec", lambda name: None)
    result = lambdasweep("plan", *flags())
    assert result.code == 0
    assert "20 tensors, 263 kB each" in result.out
    assert "metals: 2 rows" in result.out
    assert result.out.splitlines()[-1].startswith(
        "not checked: NaN and infinity in the weights, tokens, units, time (install"
    )
    file = write_task(tmp_path / "bad.jsonl", IRON, "{")
    assert len(refused(base=tmp_path / "gone", task=f"bad={file}").problems) == 2


# How a sweep ends


@pytest.mark.parametrize(
    ("outcome", "code", "says"),
    [
        ({"interrupted": True}, 130, "stopped; what is committed is kept, and the same command goes on from there\n"),
        (
            {"given_up": True},
            1,
            "lambdasweep: 1 unit failed on every try; all others are committed. Run the same command again",
        ),
    ],
)
def test_a_sweep_that_does_not_finish_says_how_to_go_on(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    outcome: dict[str, bool],
    code: int,
    says: str,
) -> None:
    def run_units(spec, units, *_: object) -> SweepResult:
        given_up = ((units[1], "CUDA error"),) if "given_up" in outcome else ()
        return SweepResult(done=0, given_up=given_up, interrupted="interrupted" in outcome, hardware=())

    monkeypatch.setattr(ray_jobs.driver, "run_units", run_units)
    result = lambdasweep("run", *flags())
    assert result.code == code
    assert result.err.startswith(says)
    assert ("  - metals λ = 0.5 shard 0: CUDA error\n" in result.err) == ("given_up" in outcome)


def test_quarantined_requests_show_in_the_exit_status(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    rows = pa.Table.from_pylist([{"request_id": 0, "reason": "too long"}], schema=schemas.QUARANTINE)
    commit_table(begun.unit("quarantine", "metals", "0.5", 0), rows)
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    result = lambdasweep("run", *flags())
    assert result.code == 3
    assert f"some requests are quarantined: lambdasweep status {begun.root} counts them\n" in result.err
    assert lambdasweep("run", *flags(lambdas="0")).code == 0


# Figures for a paper


def test_figures_for_a_paper_are_written_when_asked_for(begun: RunDir, lambdasweep: Callable[..., Result]) -> None:
    score_all(begun)
    folder = begun.figure("x.svg").parent
    assert isinstance(folder, Path)
    assert lambdasweep("report", begun.root).code == 0
    assert not folder.exists()
    assert lambdasweep("report", begun.root, "--figures").code == 0
    assert {path.suffix for path in folder.iterdir()} == {".svg", ".png", ".pdf"}
    assert "figures/" in begun.index_html.read_text(encoding="utf-8")
    assert lambdasweep("report", begun.root).code == 0  # the page's numbers may be others than those of the figures
    assert list(folder.iterdir()) == []


# Damage


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
        commit_table(run.unit("tokens", "metals", lam, 0), pa.table(columns, schema=schemas.TOKENS))


def test_damaged_tables_are_named_and_scored_again(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    """Every command meets a table that is cut short, and one of 0 bytes; none of them ends in a traceback."""
    score_all(begun)
    assert lambdasweep("report", begun.root).err == ""
    paths = [begun.unit("tokens", "metals", lam, 0) for lam in ("0", "1")]
    os.truncate(paths[0], paths[0].stat().st_size - 20)
    os.truncate(paths[1], 0)
    names = [str(path.relative_to(begun.root)) for path in paths]
    status = lambdasweep("status", begun.root)
    assert (status.code, status.err) == (0, "")
    assert "damaged tables, not counted as done; the command that made them scores them again:" in status.out
    assert "metals: 1/3 units" in status.out
    report = lambdasweep("report", begun.root)
    assert report.code == 0
    assert "warning: damaged tables count as absent; the same sweep scores them again:" in report.err
    export = lambdasweep("export", begun.root, "--out", begun.root.parent / "best")
    assert (export.code, export.err.count("damaged tables, so there is no λ*")) == (2, 1)
    for said in (status.out, report.err, export.err, begun.index_html.read_text(encoding="utf-8")):
        assert all(name in said for name in names), said
    assert lambdasweep("plan", *flags()).out.count("units     2 to do of 3 (3 λ)") == 1
    run = lambdasweep("run", *flags())
    assert f"warning: damaged tables are moved to {begun.root / 'damaged'}" in run.err
    assert all(name in run.err for name in names)
    assert [unit.key for unit in handed[-1]["units"]] == [("metals", lam, 0) for lam in ("0", "1")]
    assert all((begun.root / "damaged" / name).is_file() for name in names)
    assert "damaged" not in lambdasweep("status", begun.root).out


def test_a_damaged_requests_table_is_written_anew(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    score_all(begun)
    path = begun.requests("metals")
    before = path.read_bytes()
    os.truncate(path, 100)
    report = lambdasweep("report", begun.root)
    assert report.code == 1
    assert f"{path} cannot be read (" in report.err
    assert report.err.endswith("): run the same sweep again, which writes it anew\n")
    lambdasweep("run", *flags())
    assert path.read_bytes() == before


def test_a_table_whose_rows_are_spoiled_is_found_when_it_is_read(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    score_all(begun)
    path = begun.unit("tokens", "metals", "1", 0)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    run = lambdasweep("run", *flags())
    assert run.code == 1
    assert "damaged tables were found at the end: run the same command again, which scores them anew" in run.err
    assert not path.exists()
    assert "metals: 2/3 units" in lambdasweep("status", begun.root).out


# Exceptions of libraries


def test_no_exception_is_a_traceback(
    lambdasweep: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pa.ArrowInvalid("no such thing\nat all")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr("calibration.analyse.analyse", fail)
    result = lambdasweep("report", tmp_path)
    assert result.code == 1
    (log,) = tmp_path.glob("lambdasweep-*.log")
    assert result.err == (
        "lambdasweep: ArrowInvalid: no such thing. This was not foreseen; what is committed is kept. "
        f"The full log is {log}: please report it to the project as an issue, with that file\n"
    )
    text = log.read_text(encoding="utf-8")
    assert text.startswith(f"'lambdasweep' 'report' '{tmp_path}'\n")
    assert "in fail\n" in text
    assert text.endswith("pyarrow.lib.ArrowInvalid: no such thing\nat all\n")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_terminal_that_has_no_lambda(begun: RunDir, encoding: str) -> None:
    """Return the output of a new process, because Python settles how it writes to a terminal before the command begins."""
    done = subprocess.run(
        [sys.executable, "-m", "lambdasweep", "status", str(begun.root)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"metals: 0/3 units, 2 documents \xd7 3 ?" in done.stdout
    assert b"left at ? 0, 0.5, 1" in done.stdout


# sweep.toml


@pytest.fixture
def project(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    """Return a directory with a sweep.toml whose relative paths start there."""
    project = tmp_path / "project"
    project.mkdir()
    for role, parent in zip(("base", "aligned"), pair, strict=True):
        (project / role).symlink_to(parent)
    write_task(project / "metals.jsonl", IRON, WATER)
    (project / "sweep.toml").write_text(
        'base = "base"\naligned = "aligned"\nlambdas = "0,1"\nout = "runs/one"\nmax_model_len = 200\nformat = "letters"\n'
        "[engine]\nblock_size = 64\nseed = 3\n"
        '[[task]]\nname = "metals"\nfile = "metals.jsonl"\n'
        '[[task]]\nname = "shown"\nfile = "metals.jsonl"\nformat = "cloze"\nshots = 1\nseed = 5\n'
    )
    return project


def test_relative_paths_of_a_config_start_at_its_directory(
    lambdasweep: Callable[..., Result], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = lambdasweep("run", "--config", "../project/sweep.toml")
    assert (result.code, result.err.count("lambdasweep: ")) == (0, 0)
    run = RunDir(project / "runs" / "one")
    engine, tasks = run.sweep()["engine"], run.plan()["tasks"]
    assert (engine["max_model_len"], engine["block_size"], engine["extra"]) == (200, 64, {"seed": 3})
    assert {name: (task["format"], task["shots"], task["seed"], task["lambdas"]) for name, task in tasks.items()} == {
        "metals": ("letters", 0, 0, ["0", "1"]),
        "shown": ("cloze", 1, 5, ["0", "1"]),
    }
    assert contents(elsewhere) == {}


def test_flags_win_over_a_config(
    lambdasweep: Callable[..., Result], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        "--lambdas",
        "0.5",
        "--max-model-len",
        100,
        "--engine",
        "seed=4",
        "--limit",
        1,
        "--format",
        "cloze",
        "--out",
        "mine",
    ]
    assert lambdasweep("run", "--config", project / "sweep.toml", *given).code == 0
    run = RunDir(tmp_path / "mine")
    engine, tasks = run.sweep()["engine"], run.plan()["tasks"]
    assert (engine["max_model_len"], engine["block_size"], engine["extra"]) == (100, 64, {"seed": 4})
    assert {(task["format"], task["limit"], *task["lambdas"]) for task in tasks.values()} == {("cloze", 1, "0.5")}
    assert not (project / "runs").exists()
    task = f"only={project / 'metals.jsonl'}"
    assert lambdasweep("run", "--config", project / "sweep.toml", "--task", task, "--out", "other").code == 0
    assert list(RunDir(tmp_path / "other").plan()["tasks"]) == ["only"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (None, ["--config {file} cannot be read: No such file or directory"]),
        ("base = ", ["--config {file} is not TOML: Invalid value (at end of document)"]),
        (
            'bass = "x"\nlambda = "0,1"\ntp = "two"\nshots = true\nlambdas = [0, true]\nname = "x"\n',
            [
                "{file}: unknown key 'bass': did you mean base?",
                "{file}: unknown key 'lambda': did you mean lambdas?",
                "{file}: tp is 'two': give a whole number or auto",
                "{file}: shots is True: give a whole number",
                '{file}: lambdas is [0, True]: give a grid such as "0:1.5:0.1" or [0, 0.25, 1]',
                "{file}: unknown key 'name': use accelerator_type, address, aligned, aligned_revision, base, base_revision, "
                "dtype, engine, equivalence, format, generate, lam_map, lambdas, limit, margin, max_model_len, max_tokens, "
                "method, normaliser, out, p_true, parents, pmi, pp, refine, repeats, replicas, rescore, samples, seed, "
                "shots, system_prompt, task, temperature, template, think_end_token, tokenizer, tp, until, verbalised, "
                "verbalised_suffix, vocab",
            ],
        ),
        (
            "engine = 1\ntask = [1]",
            ["{file}: engine is not a table: write [engine]", "{file}: task is not a list of tables: write [[task]]"],
        ),
        (
            '[[task]]\nname = "a"\n[[task]]\n'
            '[[task]]\nname = "b"\nfile = "b.jsonl"\nsplit = "test"\nlimit = "all"\nshot = 5\n',
            [
                "{file}: [[task]] 1 (a): it needs file",
                "{file}: [[task]] 2: it needs name and file",
                "{file}: [[task]] 3 (b): unknown key 'split': use name, file, format, shots, seed, limit, template, "
                "system_prompt, repeats, temperature, max_tokens, until, normaliser, pmi, equivalence, think_end_token, "
                "p_true, verbalised, verbalised_suffix",
                "{file}: [[task]] 3 (b): limit is 'all': give a whole number",
                "{file}: [[task]] 3 (b): unknown key 'shot': did you mean shots?",
            ],
        ),
    ],
)
def test_a_bad_config(
    lambdasweep: Callable[..., Result], tmp_path: Path, text: str | None, problems: list[str]
) -> None:
    file = tmp_path / "sweep.toml"
    if text is not None:
        file.write_text(text)
    result = lambdasweep("run", "--config", file)
    assert result.code == 2
    assert result.err.startswith("lambdasweep: the sweep cannot be set up\n")
    assert result.problems == [problem.format(file=file) for problem in problems]


@pytest.mark.parametrize(
    ("given", "lambdas"),
    [
        ("0.1", ("0.1",)),
        ("[0, 0.1, 1.25]", ("0", "0.1", "1.25")),
        ('["0:0.3:0.1", 1, "-0.5"]', ("-0.5", "0", "0.1", "0.2", "0.3", "1")),
        ("[0.1234567]", None),
    ],
)
def test_a_grid_in_a_file_is_exact(tmp_path: Path, given: str, lambdas: tuple[str, ...] | None) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f"lambdas = {given}\nbase = 'a'\naligned = 'b'\nout = 'o'\ntemperature = 0.5\n")
    if lambdas is None:
        with pytest.raises(InputError, match=r"λ 0.1234567 has more than 6 decimals"):
            load_config({}, ["t=t.jsonl"], [], [], file)
        return
    config = load_config({}, ["t=t.jsonl"], ["g=g.jsonl"], [], file)
    assert config.lambdas == lambdas
    assert type(config.generate[0].temperature) is float
    assert config.generate[0].temperature == 0.5


def test_a_grid_of_several_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        'base = "a"\nout = "o"\n[aligned]\nsft = "s"\ndpo = "d"\n[lambdas]\nsft = [0, 0.5]\ndpo = "0:1:1"\n'
    )
    points = load_config({}, ["t=t.jsonl"], [], [], file).lambdas
    assert points == parse_points("dpo=0,1,sft=0,0.5", ("dpo", "sft"))


def test_a_config_cannot_set_what_flags_cannot(lambdasweep: Callable[..., Result], project: Path) -> None:
    file = project / "sweep.toml"
    file.write_text(file.read_text().replace("[engine]\n", '[engine]\nmodel = "gpt"\nthreads = "all"\n'))
    result = lambdasweep("run", "--config", file)
    assert result.code == 2
    assert "  - --engine cannot be used: model is set by lambdasweep: use --base and --aligned\n" in result.err


def test_a_begun_sweep_keeps_what_was_left_to_lambdasweep(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same run goes on in a job with other cores: the threads of a rank stay, or its numbers might not be the same."""
    before = begun.sweep_json.read_bytes()
    monkeypatch.setattr("serve.settings.available_cores", lambda: list(range(64)))
    assert lambdasweep("run", *flags()).code == 0
    assert begun.sweep_json.read_bytes() == before
    assert lambdasweep("run", *flags(out=begun.root.parent / "new")).code == 0
    assert RunDir(begun.root.parent / "new").sweep()["engine"]["threads"] == 32
    shared = begun.root.parent / "shared"
    assert lambdasweep("run", *flags(out=shared), "--tp", 2, "--replicas", 3).code == 0
    assert RunDir(shared).sweep()["engine"]["threads"] == 64 // (2 * 3)


# Tasks of lm-eval


@pytest.fixture
def yaml_task(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a task of lm-eval over a local file."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    write_task(tmp_path / "rows.json", IRON | {"choices": ["iron", "water"]}, WATER | {"choices": ["sand", "water"]})
    settings = {
        "task": "wet_metals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
    }
    path = tmp_path / "wet.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("name", ["", "mine"])
def test_a_task_of_lm_eval(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], yaml_task: Path, tmp_path: Path, name: str
) -> None:
    task = f"{name}=lm-eval:{yaml_task}".removeprefix("=")
    planned = lambdasweep("plan", *flags(task=task, limit=1))
    assert (planned.code, planned.err) == (0, "")
    assert f"task      {name or 'wet_metals'}: 1 document, 2 requests" in planned.out
    assert lambdasweep("run", *flags(task=task)).code == 0
    (entry,) = RunDir(tmp_path / "run").plan()["tasks"].values()
    assert (entry["file"], entry["format"]) == (f"lm-eval:{yaml_task}", "lm-eval")
    assert entry["template"] == "lm-eval 0.4.13 multiple_choice"
    assert lambdasweep("run", *flags(task=task)).code == 0
    status = lambdasweep("status", tmp_path / "run")
    assert f"{name or 'wet_metals'}: 0/3 units, 2 documents × 3 λ (lm-eval, 0 shots)" in status.out
    yaml_task.write_text(yaml_task.read_text().replace("{{query}}", "{{query}}?"))
    refused = lambdasweep("run", *flags(task=task))
    assert refused.code == 2
    assert any("sha256 was" in problem for problem in refused.problems)


def test_a_task_of_lm_eval_in_a_file(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], yaml_task: Path, tmp_path: Path
) -> None:
    config = tmp_path / "sweep.toml"
    config.write_text(
        '[[task]]\nfile = "lm-eval:wet.yaml"\nlimit = 1\n\n[[task]]\nname = "metals"\nfile = "metals.jsonl"\n'
    )
    planned = lambdasweep("plan", *flags(task=None, config=config))
    assert planned.code == 0, planned.err
    assert "task      wet_metals: 1 document," in planned.out
    assert "task      metals: 2 documents" in planned.out
    config.write_text('[[task]]\nfile = "lm-eval:wet.yaml"\nformat = "cloze"\n')
    (problem,) = lambdasweep("plan", *flags(task=None, config=config)).problems
    assert problem.endswith("[[task]] 1: a task of lm-eval has its own format: remove format")


def test_names_of_lm_eval_that_are_taken(refused: Callable[..., Result], yaml_task: Path, tmp_path: Path) -> None:
    (problem,) = refused(task=[f"lm-eval:{yaml_task}", f"wet_metals={tmp_path / 'metals.jsonl'}"]).problems
    assert problem == "tasks are named twice: wet_metals: give each its own name, as NAME=lm-eval:TASK"


# Chat templates

CHAT = "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"


@pytest.fixture
def chatty(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """Return the aligned checkpoint, with a chat template."""
    shutil.copytree(pair[1], tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(CHAT)
    return tmp_path / "chatty"


def test_a_pair_without_a_chat_template(refused: Callable[..., Result], pair: tuple[Path, Path], chatty: Path) -> None:
    (problem,) = refused(template="chat").problems
    assert problem == (
        f"{pair[1]} has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json: "
        "put one there, or leave --template out"
    )
    assert refused(template="chat", base=chatty, aligned=pair[0]).problems == [problem.replace("aligned", "base", 1)]
    (problem,) = refused(template="yes").problems
    assert problem == "template is 'yes': use none, chat, chat-turns"


def test_a_chat_template_is_part_of_the_task(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    pair: tuple[Path, Path],
    chatty: Path,
    tmp_path: Path,
) -> None:
    line = flags(aligned=chatty, template="chat")
    assert lambdasweep("run", *line).code == 0
    run = RunDir(tmp_path / "run")
    entry = run.plan()["tasks"]["metals"]
    assert entry["template"].startswith("cloze 1")
    assert entry["chat_template_sha256"] == hashlib.sha256(CHAT.encode()).hexdigest()
    tokens = run.requests("metals").read_bytes()
    text = load_tokenizer(pair[0]).decode(pq.read_table(pa.BufferReader(tokens))["token_ids"][1].as_py())
    assert text == "<s><user>Which is a metal?\nAnswer:<assistant>oxygen"
    assert lambdasweep("run", *line).code == 0
    for name, changed in (("template", CHAT + "\n"), ("comment", CHAT + "{# the same text #}")):
        (chatty / "chat_template.jinja").write_text(changed)
        result = lambdasweep("run", *line)
        assert result.code == 2, name
        assert any("task metals: chat_template_sha256 was" in problem for problem in result.problems)
    result = lambdasweep("run", *flags(aligned=chatty))
    assert result.code == 2
    assert any(problem.endswith("is null now") for problem in result.problems)
    assert run.plan()["tasks"]["metals"] == entry


def test_a_chat_template_for_one_task_of_a_file(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], chatty: Path, tmp_path: Path
) -> None:
    config = tmp_path / "sweep.toml"
    rows = '[[task]]\nname = "{0}"\nfile = "metals.jsonl"\ntemplate = "{0}"\n'
    config.write_text(rows.format("none") + rows.format("chat"))
    assert lambdasweep("run", *flags(task=None, config=config, aligned=chatty)).code == 0
    tasks = RunDir(tmp_path / "run").plan()["tasks"]
    assert [tasks[name]["chat_template_sha256"] is None for name in ("none", "chat")] == [True, False]
    config.write_text(rows.format("some"))
    (problem,) = lambdasweep("plan", *flags(task=None, config=config)).problems
    assert problem == "template is 'some': use none, chat, chat-turns"


# The report at the end of a run


def test_a_run_ends_with_its_report(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun.index_html.unlink()
    assert f"report: {begun.index_html}\n" in lambdasweep("run", *flags()).out
    assert begun.index_html.is_file()

    def broken(*_: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr("calibration.report.write.page", broken)
    rows = pa.Table.from_pylist([{"request_id": 0, "reason": "too long"}], schema=schemas.QUARANTINE)
    commit_table(begun.unit("quarantine", "metals", "0.5", 0), rows)
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    result = lambdasweep("run", *flags())
    assert result.code == 3  # this is the sweep's status
    assert f"no report (no such glyph): lambdasweep report {begun.root} tries again\n" in result.err
    assert f"run directory: {begun.root}\n" in result.out


# Refining


class Killed(BaseException):
    """This stands for a signal that ends a process without a word."""


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[str]]]:
    """Replace the cluster by a stub that commits scores, best calibrated near 0.62, and is killed after so many units.

    It returns a function that installs the stub, which returns a list that gets the λs of each round.
    """

    def score(kill_after: int = -1) -> list[list[str]]:
        rounds: list[list[str]] = []

        def run_units(spec, units, tables, replicas, progress, address=None, more=None) -> SweepResult:
            done = 0
            while units:
                rounds.append(sorted({unit.lam for unit in units}, key=Decimal))
                for unit in units:
                    if done == kill_after:
                        raise Killed
                    rows = unit.end_row - unit.first_row
                    logits = np.random.default_rng(unit.shard).normal(size=rows) * (1 + abs(float(unit.lam) - 0.62))
                    columns = {
                        "request_id": range(unit.first_row, unit.end_row),
                        **schemas.place_columns(unit.lam, rows),
                        "logprobs": [[value - 9] for value in logits],
                        "ranks": [[1]] * rows,
                        "top1_ids": [[1]] * rows,
                        "top1_logprobs": [[-1.0]] * rows,
                    }
                    table = pa.table(columns, schema=schemas.TOKENS)
                    commit_table(RunDir(spec.root).unit("tokens", unit.task, unit.lam, unit.shard), table)
                    done += 1
                units = more()
            return SweepResult(done=done, given_up=(), interrupted=False, hardware=())

        monkeypatch.setattr(ray_jobs.driver, "run_units", run_units)
        return rounds

    return score


def test_refining_goes_on_where_it_was_killed_and_stops_when_all_is_there(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    scoring: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The figures take the longest, and what is refined does not depend on them.
    monkeypatch.setattr("calibration.report.page.page_figures", lambda facts: {})
    rows = [{"query": f"Number {n}?", "choices": ["a", "b", "c"], "gold": n % 3} for n in range(60)]
    task = f"numbers={write_task(tmp_path / 'numbers.jsonl', *rows)}"

    def sweep(out: str, refine: int = 6, kill_after: int = -1) -> tuple[int, list[list[str]]]:
        rounds = scoring(kill_after)
        try:
            arguments = flags(task=task, lambdas="0:1:0.25", refine=refine, out=tmp_path / out)
            return lambdasweep("run", *arguments).code, rounds
        except Killed:
            return 137, rounds

    def results(out: str) -> dict[str, bytes | None]:
        return contents(tmp_path / out)

    code, rounds = sweep("whole")
    assert code == 0
    assert [len(lambdas) for lambdas in rounds] == [5, 4, 2]
    whole = results("whole")
    assert RunDir(tmp_path / "whole").plan()["tasks"]["numbers"]["lambdas"] == sorted(
        (lam for lambdas in rounds for lam in lambdas), key=Decimal
    )
    for kill_after in (2, 5, 7, 10):  # it is killed in the grid, between two rounds, and in each of them
        out = f"killed-{kill_after}"
        assert sweep(out, kill_after=kill_after)[0] == 137
        assert sweep(out)[0] == 0
        assert results(out) == whole
    # Asking for as many again, or for fewer, adds nothing; asking for more adds the rest.
    assert sweep("whole") == (0, [])
    assert sweep("whole", refine=3) == (0, [])
    assert results("whole") == whole
    code, rounds = sweep("whole", refine=7)
    assert [len(lambdas) for lambdas in rounds] == [1]


def test_refining_without_choices_says_so(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    result = lambdasweep("run", *flags(refine=2))
    assert result.code == 0
    (call,) = handed
    assert call["more"]() == []
    assert "up to 2 λ more" in lambdasweep("plan", *flags(refine=2)).out


def test_the_margin_of_lambda_star_is_recorded_and_holds_until_another_is_given(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    scoring: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("calibration.report.write.paper_figures", lambda facts: {})
    scoring()
    rows = [{"query": f"Number {n}?", "choices": ["a", "b"], "gold": n % 2} for n in range(12)]
    task = f"numbers={write_task(tmp_path / 'numbers.jsonl', *rows)}"
    arguments = flags(task=task, lambdas="0,0.5,1", out=tmp_path / "run")
    run = RunDir(tmp_path / "run")

    def margins() -> list[float | None]:
        return [json.loads(run.frontier_json.read_text())["margin"], reported(run)[0], read_asked(run).margin]

    assert lambdasweep("run", *arguments).code == 0
    assert margins() == [0.01] * 3
    # Everything is scored, so that this makes the report again.
    assert lambdasweep("run", *arguments, "--margin", 2.5).code == 0
    assert margins() == [0.025] * 3
    assert "at most 2.5 points, or two standard errors, below the best" in run.index_html.read_text()
    assert lambdasweep("report", run.root, "--margin", 0).code == 0
    assert margins() == [0, 0, 0.025]  # what `export` takes home follows the report
    assert lambdasweep("report", run.root).code == 0
    assert margins() == [0.025] * 3
    for command in (["report", run.root], ["run", *arguments]):
        for value in (-1, 101, "nan"):
            result = lambdasweep(*command, "--margin", value)
            assert result.code == 2
            assert f"--margin is {value}: give points of accuracy between 0 and 100" in result.err
    config = tmp_path / "sweep.toml"
    config.write_text("margin = 'wide'\n")
    assert "margin is 'wide': give a number" in lambdasweep("plan", *arguments, "--config", config).err


# Taking a point home


def test_export_writes_a_point(lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    parents = ["--base", pair[0], "--aligned", pair[1]]
    result = lambdasweep("export", *parents, "--lam", "-0.50", "--out", tmp_path / "out", "--max-shard-size", "100KB")
    assert (result.code, result.err) == (0, "")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert re.fullmatch(rf"θ\(-0\.5\): {written / 1e3:.0f} kB in \d+\.\d s in {tmp_path / 'out'}\n", result.out)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    again = lambdasweep("export", *parents, "--lam", "0", "--out", tmp_path / "out")
    assert (again.code, again.problems) == (2, [f"{tmp_path / 'out'} exists: give another --out, or remove it"])
    missing = lambdasweep("export", *parents[:2], "--out", tmp_path / "other")
    assert (missing.code, missing.problems) == (2, ["--aligned is missing", "--lam is missing"])
    assert not (tmp_path / "other").exists()


def test_what_follows_the_dashes_is_for_vllm(
    lambdasweep: Callable[..., Result], pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("serve.http.server.serve", served.append)
    flags = ["--port", "8001", "--", "--lam"]
    result = lambdasweep("serve", "--base", pair[0], "--aligned", pair[1], "--lam", "0.620", "--", *flags)
    assert (result.code, result.err) == (0, "")
    (serving,) = served
    assert (serving.lam, serving.parents, serving.name) == ("0.62", "auto", "aligned-lambda")
    assert serving.flags == tuple(flags)
    assert (serving.base, serving.aligned) == (pair[0], {"": pair[1]})
    assert serving.defaults["max_model_len"] == 512
    assert serving.defaults["dtype"] == "float32"


def test_serve_wants_a_point(lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert lambdasweep("serve", "--", "--port", "8001").problems == [
        "--base is missing",
        "--aligned is missing",
        "--lam is missing",
    ]
    assert lambdasweep("serve", tmp_path / "gone").code == 2
    parents = ["--base", pair[0], "--aligned", pair[1], "--lam", "0.5"]
    (problem,) = lambdasweep("serve", *parents, "--parents", "ram").problems
    assert problem == "--parents ram is unknown: give auto, device, pinned, mmap, reload"
