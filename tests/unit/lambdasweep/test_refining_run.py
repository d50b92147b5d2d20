"""`--refine` goes on where it stopped, and λ* keeps its margin."""

import json
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import ray_jobs.driver
from calibration.frontier.frontier import reported
from contract import schemas
from contract.commit import commit_table
from contract.records import read_asked
from contract.rundir import RunDir
from ray_jobs.driver import DriverResult
from tests.support.command_line import (
    Result,
    contents,
    write_task,
)
from tests.support.reports import analyse_once

pytestmark = pytest.mark.usefixtures("few_resamples")


class Killed(BaseException):
    """This stands for a signal that ends a process without a word."""


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[str]]]:
    """Replace the cluster by a stub that commits scores, best calibrated near 0.62, and is killed after so many units.

    It returns a function that installs the stub, which returns a list that gets the λs of each round.
    """

    def score(kill_after: int = -1) -> list[list[str]]:
        rounds: list[list[str]] = []

        def run_units(spec, units, tables, replicas, progress, address=None, more=None) -> DriverResult:
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
            return DriverResult(done=done, given_up=(), interrupted=False, hardware=())

        monkeypatch.setattr(ray_jobs.driver, "run_units", run_units)
        return rounds

    return score


@pytest.mark.slow
def test_refining_goes_on_where_it_was_killed_and_stops_when_all_is_there(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    scoring: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Figures and analyses take the longest: what is refined does not depend on those, and these depend on the tables alone.
    monkeypatch.setattr("calibration.report.page.page_figures", lambda facts: {})
    monkeypatch.setattr("calibration.analyse.analyse", partial(analyse_once, resamples=100))
    rows = [{"query": f"Number {n}?", "choices": ["a", "b", "c"], "gold": n % 3} for n in range(60)]
    task = f"numbers={write_task(tmp_path / 'numbers.jsonl', *rows)}"

    def sweep(out: str, refine: int = 5, kill_after: int = -1) -> tuple[int, list[list[str]]]:
        rounds = scoring(kill_after)
        try:
            arguments = flags(task=task, lambdas="0:1:0.5", refine=refine, out=tmp_path / out)
            return lambdasweep("run", *arguments).code, rounds
        except Killed:
            return 137, rounds

    def results(out: str) -> dict[str, bytes | None]:
        return contents(tmp_path / out)

    code, rounds = sweep("whole")
    assert code == 0
    assert [len(lambdas) for lambdas in rounds] == [3, 4, 1]
    whole = results("whole")
    assert RunDir(tmp_path / "whole").plan()["tasks"]["numbers"]["lambdas"] == sorted(
        (lam for lambdas in rounds for lam in lambdas), key=Decimal
    )
    for kill_after in (1, 3, 5, 7):  # it is killed in the grid, between two rounds, and in each of them
        out = f"killed-{kill_after}"
        assert sweep(out, kill_after=kill_after)[0] == 137
        assert sweep(out)[0] == 0
        assert results(out) == whole
    # Asking for as many again, or for fewer, adds nothing; asking for more adds the rest.
    assert sweep("whole") == (0, [])
    assert sweep("whole", refine=3) == (0, [])
    assert results("whole") == whole
    code, rounds = sweep("whole", refine=6)
    assert [len(lambdas) for lambdas in rounds] == [1]


def test_refining_without_choices_says_so(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    result = lambdasweep("run", *flags(refine=2))
    assert result.code == 0
    (call,) = handed
    assert call["more"]() == []
    assert "up to 2 λ more" in lambdasweep("plan", *flags(refine=2)).out


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_numbers_of_a_new_sweep_are_those_of_its_report(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], scoring: Any, tmp_path: Path
) -> None:
    """A sweep knows its records without reading them, in which tasks stand in another order than they were given in."""
    scoring()
    rows = [{"query": f"Number {n}?", "choices": ["a", "b"], "gold": n % 2} for n in range(6)]
    tasks = [f"{name}={write_task(tmp_path / f'{name}.jsonl', *rows)}" for name in ("words", "numbers")]
    run = RunDir(tmp_path / "run")
    assert lambdasweep("run", *flags(task=tasks, lambdas="0,1", margin=2)).code == 0
    places = (run.metrics_parquet, run.bins_parquet, run.frontier_json, run.metrics_csv)
    of_sweep = [place.read_bytes() for place in places]
    assert lambdasweep("report", run.root).code == 0
    assert [place.read_bytes() for place in places] == of_sweep
