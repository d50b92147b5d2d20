"""The command line has one clear message for each bad input, and then writes nothing."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from contract.rundir import RunDir
from tests.support.command_line import (
    IRON,
    WATER,
    Result,
    changed_copy,
    contents,
    write_task,
)


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
        *(
            (
                {"engine": f"{name}=1"},
                f"--engine cannot be used: {name} is set by lambdasweep: use nothing: a cache that outlives a switch of λ "
                "would answer for another model",
            )
            for name in ("kv_transfer_config", "kv_offloading_size", "kv_offloading_backend", "ec_transfer_config")
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
    ("changes", "says"),
    [
        (
            {"format": "generate", "repeats": 0, "temperature": -1, "max_tokens": 0, "shots": -1, "limit": 0},
            [
                "--shots is -1: give 0 or more",
                "--limit is 0: give 1 or more",
                "--repeats is 0: give 1 to 32767",
                "--temperature is -1: give 0, or 0.01 or more",
                "--max-tokens is 0: give 1 or more",
            ],
        ),
        (
            {"repeats": 0, "temperature": -1, "rescore": "0", "samples": 0, "shots": -1},
            [
                "--samples is about samples: give a --generate, or leave it out",
                "--repeats, --temperature, --rescore: no task has answers that the model writes: leave them out, or give "
                "--format generate",
                "--shots is -1: give 0 or more",
            ],
        ),
        (
            {"task": None, "generate": "s=prompts.jsonl", "repeats": 0, "temperature": -1, "samples": 0},
            [
                "--repeats is about tasks that are scored: give a --task, or leave it out",
                "--temperature is -1: give 0, or 0.01 or more",
                "--samples is 0: give 1 to 32767",
            ],
        ),
        (
            {
                "engine": [
                    "foo",
                    "seed=1",
                    "dtype=half",
                    "seed=2",
                    "max_num_seqs=0",
                    "head_dtype=half",
                    "enforce_eagr=1",
                ],
                "tp": 0,
            },
            [
                "--engine cannot be used: 'foo' is not KEY=VALUE",
                "--engine cannot be used: dtype is set by lambdasweep: use --dtype",
                "--engine cannot be used: seed is given twice",
                "--engine max_num_seqs is 0: give a whole number above 0",
                "--engine head_dtype=half: it is float32, or auto for the engine's dtype",
                "--tp is 0: give 1 or more",
                "--engine enforce_eagr: vLLM has no such argument: did you mean enforce_eager?",
            ],
        ),
        (
            {"pp": 3, "max_model_len": 513},
            [
                "--max-model-len 513 is more than the 512 positions of the model",
                "--pp 3 is more than the 2 layers of the model: each stage needs one",
            ],
        ),
    ],
)
def test_flags_that_do_not_fit_are_told_at_once_and_once(
    refused: Callable[..., Result], changes: dict[str, object], says: list[str]
) -> None:
    told = refused(**changes).problems
    assert [problem for problem in told if not problem.startswith("task 'metals' cannot be built")] == says


def test_tables_of_a_settings_file_that_do_not_fit_are_told_at_once(
    refused: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        '[[task]]\nname = "a"\nfile = "a.jsonl"\nshots = -1\nlimit = 0\n'
        '[[generate]]\nname = "s"\nfile = "s.jsonl"\nsamples = 0\ntemperature = -1\n'
    )
    problems = refused(config=file, task=None, limit=5).problems
    unread = "the file cannot be read (No such file or directory): check the path and its permissions"
    assert [problem.rpartition("jsonl: ")[2] for problem in problems] == [
        f"{file}: [[task]] 1 (a): shots is -1: give 0 or more",
        f"{file}: [[generate]] 1 (s): samples is 0: give 1 to 32767",
        f"{file}: [[generate]] 1 (s): temperature is -1: give 0, or 0.01 or more",
        unread,
        unread,
    ]


def test_what_is_wrong_with_settings_and_with_files_is_told_at_once(
    refused: Callable[..., Result], tmp_path: Path
) -> None:
    """Each setting is told of once, for however many tasks it holds."""
    files = [write_task(tmp_path / f"{name}.jsonl", "{") for name in "ab"]
    of_flag, *of_files = refused(task=[f"{file.stem}={file}" for file in files], format="leters").problems
    assert of_flag == "--format is 'leters': use cloze, letters, generate"
    assert ["is not JSON" in problem for problem in of_files] == [True, True]


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


def test_a_misspelt_format_behind_a_file_is_told_with_those_that_there_are(
    refused: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "metals.jsonl"
    sources = [
        f"{file}:leters",
        f"{tmp_path}:foo",
        f"{tmp_path}/*.jsonl:foo",
        f"{tmp_path / 'gone'}:Cloze",
        "hf:a/b:c:d:leters",
    ]
    problems = refused(task=[f"t{place}={source}" for place, source in enumerate(sources)]).problems
    said = [problem for problem in problems if "there is no format" in problem]
    assert len(said) == len(sources)
    for source, problem in zip(sources, said, strict=True):
        path, _, form = source.rpartition(":")
        assert problem.endswith(
            f"there is no format {form!r}: write {path}:FORMAT with one of cloze, letters, generate"
        )


def test_what_may_be_no_format_is_a_file_that_is_not_there(refused: Callable[..., Result], tmp_path: Path) -> None:
    gone = [f"{tmp_path}:x/y.jsonl", f"{tmp_path / 'gone.jsonl'}:second"]
    prompts = f"s={tmp_path / 'metals.jsonl'}:letters"  # samples have no formats
    problems = refused(task=[f"t{place}={one}" for place, one in enumerate(gone)], generate=prompts).problems
    assert [problem.rpartition(": the ")[2] for problem in problems] == [
        "file cannot be read (No such file or directory): check the path and its permissions"
    ] * 3


def test_a_directory_or_a_glob_without_files_says_so(refused: Callable[..., Result], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    directory, glob = refused(task=[f"a={empty}", f"b={empty}/*.jsonl"]).problems
    assert directory.endswith(
        f"{empty}: the directory holds no file *.jsonl: give a file, or a directory or a glob of some"
    )
    assert glob.endswith(f"{empty}/*.jsonl: no file matches it: give a file, or a directory or a glob of some")
    (said,) = refused(task=None, generate=f"s={empty}").problems
    assert said == "the directory holds no file *.jsonl: give a file, or a directory or a glob of some"


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
        (
            '{"query": "x", "choices": ["a", "b"], "gold": 0, "gold": 1}',
            "line 2: cannot be read as JSON (the key 'gold' stands twice in one object: keep one of them)",
        ),
        ("[1]", "line 2: is of type list, not an object: write {…}"),
        ({"query": "x"}, "line 2: has neither choices (with query and gold) nor a continuation (with context)"),
        (IRON | {"choices": []}, "line 2: has 0 choices: give at least 2"),
        (IRON | {"choices": ["iron", " "]}, "line 2: choice 1 is empty: there is nothing to score"),
        (IRON | {"gold": 2}, "line 2: gold is 2: it counts from 0, so give 0 to 1"),
        (IRON | {"gold": -1}, "line 2: gold is -1: it counts from 0, so give 0 to 1"),
        (
            IRON | {"gold": "1"},
            "line 2: gold is '1': give the index of the right choice, counted from 0"
            ", its letter or its text, if that means one choice",
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


@pytest.fixture(params=["permissions", "file system"])
def forbidden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, str]:
    """Return a directory that cannot be written, which is root's, too, and the words that say why."""
    folder = tmp_path / "forbidden"
    folder.mkdir()
    access, statvfs = os.access, os.statvfs
    if request.param == "permissions":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
        return folder, f"cannot be written: the permissions of {folder} forbid it; "
    flags = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda path: flags if Path(path) == folder else statvfs(path))
    return folder, f"cannot be written: the file system of {folder} is read-only; "


def test_no_command_writes_into_a_directory_that_forbids_it(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], forbidden: tuple[Path, str]
) -> None:
    folder, says = forbidden
    out = "--out", folder / "new"
    source = write_task(folder.parent / "rows.jsonl", IRON)
    pair = flags()[:4]
    for command, remedy in (
        (["tasks", "convert", source, *out], "give another --out"),
        (["compare", begun.root, begun.root, *out], "give another --out"),
        (["compare", begun.root, begun.root, "--out", folder / "deep" / "new"], "give another --out"),
        (["export", *pair, "--lam", "0.5", *out], "give another --out"),
        (["report", begun.root, "--lm-eval", folder / "new"], "give another --lm-eval"),
        (["run", *flags(out=folder / "run")], "give another --out"),
    ):
        result = lambdasweep(*command)
        assert (result.code, result.out) == (2, ""), result.err
        assert result.err.endswith(f"{says}{remedy}\n")
        assert result.err.count("\n") == 1
    assert not any(folder.iterdir())


@pytest.mark.parametrize("place", ["", "report"])
def test_no_report_is_computed_where_none_can_be_written(
    begun: RunDir, lambdasweep: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder, access = Path(str(begun.root)) / place, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    before = contents(begun.root)
    result = lambdasweep("report", begun.root)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"lambdasweep: {folder} cannot be written: the permissions of {folder} forbid it; copy the run directory to where "
        "you may write, and report on the copy\n"
    )
    assert contents(begun.root) == before


def test_a_file_or_a_directory_in_the_way(begun: RunDir, lambdasweep: Callable[..., Result], tmp_path: Path) -> None:
    file = write_task(tmp_path / "rows.jsonl", IRON)
    for command in (["tasks", "convert", file], ["compare", begun.root, begun.root]):
        result = lambdasweep(*command, "--out", file / "deep" / "new")
        assert result.code == 2
        assert result.err == f"lambdasweep: {file / 'deep'} cannot be made: {file} is a file; give another --out\n"
    result = lambdasweep("compare", begun.root, begun.root, "--out", tmp_path)
    assert (result.code, result.err) == (2, f"lambdasweep: {tmp_path} is a directory: give the name of a file\n")


def test_a_disk_that_is_full_is_told_with_the_file(
    begun: RunDir, lambdasweep: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = lambdasweep("report", begun.root)
    assert result.code == 1
    assert result.err.endswith(f"lambdasweep: {begun.metrics_parquet} cannot be written: No space left on device\n")
    assert not [*Path(str(begun.root)).glob(".*.tmp")]


def test_export_says_everything_that_is_wrong(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    result = lambdasweep(
        "export", *flags()[:4], "--lam", "1", "--out", tmp_path, "--like", "x", "--max-shard-size", "5"
    )
    assert result.code == 2
    assert result.problems == [
        "--like x is no parent: give base or aligned",
        "--max-shard-size 5 is 5 bytes: write the unit, as in 5GB",
        f"{tmp_path} exists: give another --out, or remove it",
    ]


@pytest.mark.parametrize("command", ["status", "report", "compare", "export", "watch"])
def test_what_is_no_run_has_one_reason(lambdasweep: Callable[..., Result], tmp_path: Path, command: str) -> None:
    """Commands read the records of a run in different orders."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    parents = {"base": {}, "aligned": {}}
    (tmp_path / "half" / "sweep.json").write_text(json.dumps({"pair": parents, "engine": {}, "versions": {}}))
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "score.json").write_text("{}")
    for name, says in (
        ("empty", "not a run directory: it has no sweep.json"),
        ("half", "not a run directory: it has no plan.json"),
        ("batch", "of `lambdasweep score`, and not a run directory: give one of `lambdasweep run`"),
    ):
        place = tmp_path / name
        line = {
            "compare": ["compare", place, tmp_path / "none"],
            "export": ["export", place, "--out", tmp_path / "new"],
            "watch": ["status", "--watch", place],
        }.get(command, [command, place])
        if name == "batch" and command in ("status", "watch"):
            continue  # there `status` knows batches
        result = lambdasweep(*line)
        assert result.code == 2
        assert f"{place} is {says}" in result.problems


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


# Exceptions of libraries


def test_no_exception_is_a_traceback(
    begun: RunDir, lambdasweep: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pa.ArrowInvalid("no such thing\nat all")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr("calibration.analyse.analyse", fail)
    result = lambdasweep("report", begun.root)
    assert result.code == 1
    (log,) = tmp_path.glob("lambdasweep-*.log")
    assert result.err == (
        "lambdasweep: ArrowInvalid: no such thing. This was not foreseen; what is committed is kept. "
        f"The full log is {log}: please report it to the project as an issue, with that file\n"
    )
    text = log.read_text(encoding="utf-8")
    assert text.startswith(f"'lambdasweep' 'report' '{begun.root}'\n")
    assert "in fail\n" in text
    assert text.endswith("pyarrow.lib.ArrowInvalid: no such thing\nat all\n")


@pytest.mark.slow
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
