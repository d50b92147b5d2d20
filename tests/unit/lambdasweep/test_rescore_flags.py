"""`--rescore` on the command line: what it is refused for, what it hands out and when, and what `plan` and `status` say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from contract import schemas
from contract.rundir import RunDir, commit_table
from contract.units import Unit
from tests.support.command_line import Result, write_task

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
    assert json.loads(run.plan_json.read_text())["tasks"]["next"]["rescored"] == ["0", "0.25"]
    status = lambdasweep("status", tmp_path / "run")
    assert "  scored again under λ = 0: 1/3 units" in status.out.split("\n")
    assert "2 units done, 7 left" in status.out
    # It may be asked for later, and grows as λs do; without it nothing is scored again.
    handed.clear()
    plain = flags(task=written(tmp_path), lambdas="0,0.5,1", max_tokens=4)
    assert lambdasweep("run", *plain).code == 0
    assert handed[0]["more"]() == []
    assert lambdasweep("run", *plain, "--rescore", "1").code == 0
    assert json.loads(run.plan_json.read_text())["tasks"]["next"]["rescored"] == ["0", "0.25", "1"]


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


def test_a_settings_file_has_it_as_a_grid(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    file = tmp_path / "sweep.toml"
    grids = {"0": ["0"], "[0, 0.25]": ["0", "0.25"], '"0:0.5:0.25"': ["0", "0.25", "0.5"]}
    for number, (text, expected) in enumerate(grids.items()):
        file.write_text(f"rescore = {text}")
        out = tmp_path / str(number)
        assert lambdasweep("run", *flags(task=written(tmp_path), config=file, out=out, max_tokens=4)).code == 0
        assert RunDir(out).plan()["tasks"]["next"]["rescored"] == expected
