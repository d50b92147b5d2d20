"""The real reader takes examples/sweep.toml, and every key that the reader knows stands in it."""

import dataclasses
import re
import tomllib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from contract.errors import InputError
from contract.grid import parse_grid
from contract.points import by_name
from lambdasweep import cli, config
from lambdasweep.config import SweepConfig, load_config
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.prompts import GenerateSpec, read_prompts
from tests.support.forked import fork, joined, run_script
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
SWEEP = EXAMPLES / "sweep.toml"
TABLES = ("task", "generate")
NOBODYS = "1979-05-27"  # a date, which is a value of no setting


def read(file: Path) -> SweepConfig:
    """Read a file as `lambdasweep run --config` does where no other flag is given."""
    return load_config({}, [], [], [], file)


def with_every_line(text: str) -> str:
    """Return the file with the settings in it that it shows behind a #."""
    return re.sub(r"(?m)^#(?=\[|[a-z_]+ = )", "", text)


def candidates() -> set[str]:
    """Return every name that a key of a file could have: flags of `run`, and fields of what a file is read into."""
    command = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
    names = {str(parameter.name) for parameter in command.params}
    for kind in (SweepConfig, TaskSpec, LmEvalSpec, GenerateSpec):
        names |= {field.name for field in dataclasses.fields(kind)}
    return names


def is_known(key: str, table: str, tmp_path: Path) -> bool:
    """Ask the reader about a key of the file itself (`table` is empty) or of one of its [[tables]]."""
    file = tmp_path / "probe.toml"
    file.write_text(f"[[{table}]]\n{key} = {NOBODYS}\n" if table else f"{key} = {NOBODYS}\n")
    with pytest.raises(InputError) as refused:
        read(file)
    return not any(f"unknown key {key!r}" in problem for problem in refused.value.problems)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return tomllib.loads(with_every_line(SWEEP.read_text(encoding="utf-8")))


def test_the_example_is_a_sweep_of_the_demo() -> None:
    sweep = read(SWEEP)
    assert (Path(sweep.base) / "config.json").is_file()
    (aligned,) = by_name(sweep.aligned).values()
    assert (Path(aligned) / "config.json").is_file()
    assert sweep.lambdas == parse_grid("0:1.5:0.25")
    assert [spec.name for spec in (*sweep.tasks, *sweep.generate)] == ["letters", "cloze", "animals"]
    for spec in sweep.tasks:
        assert isinstance(spec, TaskSpec)
        assert read_documents(spec).documents
    for prompts in sweep.generate:
        assert len(read_prompts(prompts).documents) == prompts.limit


def test_settings_without_a_comment_sign_are_the_defaults(tmp_path: Path) -> None:
    """The file gives the defaults of all tasks and engines, so that the example misleads nobody."""
    text = SWEEP.read_text(encoding="utf-8").partition("\n[[task]]")[0]
    file = tmp_path / "sweep.toml"
    tables = '[[task]]\nname = "t"\nfile = "t.jsonl"\n[[generate]]\nname = "g"\nfile = "g.jsonl"\n'
    file.write_text(f"{text}\n{tables}")
    said = read(file)
    needed = [line for line in text.splitlines() if re.match(r"(base|aligned|lambdas|out) = ", line)]
    file.write_text("\n".join([*needed, tables]))
    silent = read(file)
    engine = {"max_num_batched_tokens": 2048, "max_num_seqs": 256}
    assert said == dataclasses.replace(silent, engine=engine)


def test_the_reader_takes_the_example_with_every_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(with_every_line(SWEEP.read_text(encoding="utf-8")))
    sweep = read(file)
    changed = {
        field.name
        for field in dataclasses.fields(SweepConfig)
        if getattr(sweep, field.name) in (None, (), "", {}) and field.name not in ("lam_map", "warnings", "problems")
    }
    assert changed == set()
    assert [type(spec) for spec in sweep.tasks] == [TaskSpec, TaskSpec, LmEvalSpec, TaskSpec]


@pytest.mark.parametrize("table", ["", *TABLES])
def test_every_key_that_the_reader_knows_is_in_the_example(table: str, whole: dict[str, Any], tmp_path: Path) -> None:
    known = {key for key in candidates() if is_known(key, table, tmp_path)}
    if not table:
        known -= {"name", "file"}  # the reader lets them pass outside of a table, where they say nothing
    shown = {key for row in whole[table] for key in row} if table else set(whole)
    assert shown == known


def test_every_argument_of_vllm_that_is_checked_is_in_the_example(whole: dict[str, Any]) -> None:
    assert set(whole["engine"]) == config._ENGINE_NUMBERS


def test_the_probe_tells_keys_apart(tmp_path: Path) -> None:
    assert is_known("lambdas", "", tmp_path)
    assert is_known("seed", "task", tmp_path)
    assert not is_known("seed", "generate", tmp_path)
    assert not is_known("lambda", "", tmp_path)
    assert not is_known("config", "", tmp_path)


def test_every_setting_has_a_comment() -> None:
    """A setting of the file itself stands under a comment, alone or with its neighbours."""
    before = SWEEP.read_text(encoding="utf-8").partition("\n[[task]]")[0]
    for block in before.split("\n\n"):
        lines = block.splitlines()
        if any(re.match(r"#?[a-z_]+ = ", line) for line in lines):
            assert lines[0].startswith("# "), block


@pytest.mark.parametrize("name", ["with_duckdb", "with_pandas", "with_polars"])
def test_an_example_without_a_run_says_how_it_is_called(name: str, tmp_path: Path) -> None:
    if find_spec(library := name.removeprefix("with_")) is None:
        pytest.skip(f"{library} is not installed: pip install '.[dev]'")
    log = tmp_path / "log"
    assert joined(fork(partial(run_script, EXAMPLES / f"{name}.py"), log), log) == 1
    said = log.read_text(encoding="utf-8")
    assert f"python examples/{name}.py runs/demo" in said
    assert "Traceback" not in said
