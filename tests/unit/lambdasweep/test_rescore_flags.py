"""`--rescore` on the command line: what it is refused for, what it hands out and when, and what `plan` and `status` say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from contract import schemas
from contract.commit import commit_table, read_identity
from contract.location import read_table
from contract.records import TaskRecord, read_plan
from contract.rundir import RunDir
from contract.units import Unit
from lambdasweep.derived import delete_derived
from tests.support.command_line import Result, write_task
from tests.support.tables import add_outputs

pytestmark = pytest.mark.usefixtures("few_resamples")

GRID = ["0", "0.5", "1"]
ROWS = [{"prompt": f"The number after {n} is", "answers": [str(n + 1)]} for n in range(4)]


def written(tmp_path: Path) -> str:
    return f"next={write_task(tmp_path / 'next.jsonl', *ROWS)}:generate"


def test_it_needs_answers_that_are_written_and_points_of_the_line(
    refused: Callable[..., Result], tmp_path: Path
) -> None:
    assert refused(rescore="0").problems == [
        "--rescore: no task has answers that the model writes: leave it out, or give --format generate"
    ]
    (problem,) = refused(task=written(tmp_path), rescore="0,x").problems
    assert "'x'" in problem


@pytest.mark.slow
def test_units_are_handed_out_once_their_outputs_are_committed(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]], tmp_path: Path
) -> None:
    asked = flags(task=written(tmp_path), lambdas="0,0.5,1", rescore="0,0.25", max_tokens=4)
    plan = lambdasweep("plan", *asked)
    assert plan.code == 0, plan.err
    assert "units     3 to do of 3 (3 λ), then 6 that score again what was written" in plan.out
    assert lambdasweep("run", *asked).code == 0
    (call,) = handed
    run = RunDir(tmp_path / "run")
    assert [(unit.task, unit.lam, unit.at) for unit in call["units"]] == [
        ("next", lam, "") for lam in ("0", "0.5", "1")
    ]
    assert call["more"]() == []  # nothing is written yet
    commit_table(run.unit("generations", "next", "0.5", 0), schemas.GENERATIONS.empty_table())
    wanted = [Unit(f"next@{under}", "0.5", 0, 0, 4, call["units"][0].cost, at=under) for under in ("0", "0.25")]
    assert call["more"]() == wanted
    commit_table(run.unit("rescored", "next@0", "0.5", 0), schemas.RESCORED.empty_table())
    assert call["more"]() == wanted[1:]
    assert json.loads(run.plan_json.read_text())["tasks"]["next"]["rescored"] == dict.fromkeys(("0", "0.25"), GRID)
    status = lambdasweep("status", tmp_path / "run")
    assert "  scored again under λ = 0: 1/3 units" in status.out.split("\n")
    assert "2 units done, 7 left" in status.out
    # It may be asked for later, and grows as λs do; without it nothing is scored again.
    handed.clear()
    plain = flags(task=written(tmp_path), lambdas="0,0.5,1", max_tokens=4)
    assert lambdasweep("run", *plain).code == 0
    assert handed[0]["more"]() == []
    assert lambdasweep("run", *plain, "--rescore", "1").code == 0
    assert json.loads(run.plan_json.read_text())["tasks"]["next"]["rescored"] == dict.fromkeys(("0", "0.25", "1"), GRID)


def test_what_is_quarantined_there_is_told(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    asked = flags(task=written(tmp_path), lambdas="0", rescore="0.25", max_tokens=4)
    assert lambdasweep("run", *asked).code == 0
    run = RunDir(tmp_path / "run")
    bad = pa.table({"request_id": [2], "reason": ["the engine returned NaN or infinity"]}, schema=schemas.QUARANTINE)
    commit_table(run.unit("quarantine", "next@0.25", "0", 0), bad)
    assert lambdasweep("run", *asked).code == 3
    assert "  quarantined: 1 × the engine returned NaN or infinity" in lambdasweep("status", run.root).out.split("\n")
    assert (
        lambdasweep("run", *flags(task=written(tmp_path), lambdas="0", max_tokens=4)).code == 0
    )  # it is not asked for


def test_status_counts_what_was_asked_for(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    """λs that came later without --rescore are not to be scored again."""
    for settings in ({"lambdas": "0,0.5", "rescore": "0,-0.5"}, {"lambdas": "0,0.5,1"}):
        assert lambdasweep("run", *flags(task=written(tmp_path), max_tokens=4, **settings)).code == 0
    run = RunDir(tmp_path / "run")
    assert list(read_plan(run)["next"].rescored.items()) == [("-0.5", ("0", "0.5")), ("0", ("0", "0.5"))]
    for lam in GRID:
        commit_table(run.unit("generations", "next", lam, 0), schemas.GENERATIONS.empty_table())
    for name in ("next@0", "next@-0.5"):
        for lam in GRID[:2]:
            commit_table(run.unit("rescored", name, lam, 0), schemas.RESCORED.empty_table())
    lines = lambdasweep("status", run.root).out.split("\n")
    assert "  scored again under λ = 0: 2/2 units" in lines
    assert "7 units done, 0 left" in lines


def test_refinement_says_once_why_it_ends(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is asked for more after each phase of a run, and rescoring is such a phase."""
    assert lambdasweep("run", *flags(refine=2)).code == 0
    for _ in range(2):
        assert handed[-1]["more"]() == []
    assert "".join(capsys.readouterr()).count("nothing to refine") == 1


def test_outputs_that_cannot_be_read_are_written_again(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A table that is damaged in its middle looks whole until it is read."""
    asked = flags(task=written(tmp_path), lambdas="0,0.5", max_tokens=4)
    assert lambdasweep("run", *asked).code == 0
    run = RunDir(tmp_path / "run")
    outputs = {document: [("4", True, [-0.5, -0.25], 0, False)] for document in range(4)}
    for lam in ("0", "0.5"):
        add_outputs(run, "next", lam, outputs)
    path = run.unit("generations", "next", "0.5", 0)
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(200) + data[204:])
    handed.clear()
    found = lambdasweep("run", *asked, "--rescore", "0")
    assert [(unit.task, unit.lam) for unit in handed[0]["units"]] == [("next@0", "0")]
    assert (found.code, found.err.count("damaged tables were found at the end")) == (1, 1), found.err
    assert not path.is_file()
    assert (run.root / "damaged" / "generations" / "task=next" / "lambda=0.5" / "shard-00000.parquet").is_file()
    handed.clear()
    lambdasweep("run", *asked, "--rescore", "0")
    assert [(unit.task, unit.lam) for unit in handed[0]["units"]] == [("next", "0.5")]


def test_what_was_made_of_outputs_goes_before_they_are_written_again(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Another machine may write other tokens, as many as before, which nobody could tell from the tables."""
    asked = flags(task=written(tmp_path), lambdas="0,0.5", rescore="0", max_tokens=4)
    assert lambdasweep("run", *asked).code == 0
    run = RunDir(tmp_path / "run")
    places = [("generations", "next"), ("graded", "next"), ("rescored", "next@0"), ("quarantine", "next@0")]
    for lam in ("0", "0.5"):
        for kind, name in places:
            schema = schemas.QUARANTINE if kind == "quarantine" else schemas.GENERATIONS
            commit_table(run.unit(kind, name, lam, 0), schema.empty_table())
    run.unit("generations", "next", "0.5", 0).unlink()
    plain = flags(task=written(tmp_path), lambdas="0,0.5", max_tokens=4)  # it need not ask for what goes
    assert lambdasweep("run", *plain).code in (0, 3)
    assert [(unit.task, unit.lam) for unit in handed[-1]["units"]] == [("next", "0.5")]
    for kind, name in places:
        assert [lam for lam in ("0", "0.5") if run.unit(kind, name, lam, 0).is_file()] == ["0"], kind


def test_metrics_of_lm_eval_go_with_the_outputs_that_they_are_of(tmp_path: Path) -> None:
    run, prepared = RunDir(tmp_path), SimpleNamespace(prompts={"sums": None})
    prepared.harnesses = [
        (SimpleNamespace(name=name), [SimpleNamespace(parts={name: None})]) for name in ("sums", "arc")
    ]
    rows = [("sums", lam, "exact_match,none", 0.5, 4) for lam in ("0", "0.5", "1")]
    for name in ("sums", "arc"):
        table = schemas.table_of(schemas.OUTCOMES, [(name, *row[1:]) for row in rows])
        commit_table(run.outcomes(name), table, {"task": name})
    before = run.outcomes("arc").read_bytes()
    left = [Unit("sums", "0.5", 0, 0, 4, 1), Unit("sums", "2", 0, 0, 4, 1)]
    delete_derived(run, left, prepared, {"sums": TaskRecord(scored_as="answers")})  # type: ignore[arg-type]
    assert [schemas.point_of(row) for row in read_table(run.outcomes("sums")).to_pylist()] == ["0", "1"]
    assert read_identity(run.outcomes("sums")) == {"task": "sums"}
    assert run.outcomes("arc").read_bytes() == before


def test_a_settings_file_has_it_as_a_grid(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    file = tmp_path / "sweep.toml"
    grids = {"0": ["0"], "[0, 0.25]": ["0", "0.25"], '"0:0.5:0.25"': ["0", "0.25", "0.5"]}
    for number, (text, expected) in enumerate(grids.items()):
        file.write_text(f"rescore = {text}")
        out = tmp_path / str(number)
        assert lambdasweep("run", *flags(task=written(tmp_path), config=file, out=out, max_tokens=4)).code == 0
        assert list(read_plan(RunDir(out))["next"].rescored) == expected
