"""Several runs side by side are compared or refused, and page and tables say what the runs' frontiers say."""

import html as markup
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from calibration.analyse import analyse
from calibration.comparison.gather import gather_runs
from calibration.comparison.table import as_latex, as_markdown, cells, compared_rows, header
from calibration.report.comparison_figures import comparison_figures
from calibration.report.comparison_page import comparison_page
from calibration.terminal.comparison import comparison_table
from contract.commit import commit_json
from contract.errors import InputError
from contract.rundir import RunDir
from lambdasweep import entry
from tests.support.reports import add_quiz, vega_lite
from tests.support.tables import add_scores

GRID = ("0", "0.5", "1")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return two runs that have `arc` and `quiz` in common, on different grids, and a task of their own each."""
    root = tmp_path_factory.mktemp("kept")
    for name, grid, own, sure in (("sft", ("0", "1"), "words", 2.0), ("dpo", GRID, "letters", 4.0)):
        run = RunDir(root / name)
        for seed, task in enumerate(("quiz", "arc", own)):
            add_quiz(run, task, grid=grid, seed=seed, sure=sure)
    return [str(root / "sft"), str(root / "dpo")]


@pytest.fixture(scope="module")
def found(kept):
    """Return these runs, compared. No test changes either."""
    return gather_runs(kept, resamples=60)


@pytest.fixture
def places(kept, tmp_path):
    """Return copies of these runs, for tests that change them."""
    return [str(shutil.copytree(place, tmp_path / Path(place).name)) for place in kept]


def small_runs(root, *tasks):
    """Write two runs of the same few documents, at both parents."""
    for name in ("sft", "dpo"):
        for seed, task in enumerate(tasks):
            add_quiz(RunDir(root / name), task, documents=8, grid=("0", "1"), seed=seed)
    return [str(root / "sft"), str(root / "dpo")]


@pytest.mark.slow
def test_runs_are_compared_on_the_tasks_that_both_have(kept, found):
    assert [run.name for run in found.runs] == ["sft", "dpo"]
    assert sorted(found.tasks) == ["arc", "quiz"]
    assert found.titles[0] == "all tasks"
    assert sorted(found.titles[1:]) == ["arc", "quiz"]
    assert "Not in all runs, hence not compared: letters, words." in found.notices or (
        "Not in all runs, hence not compared: words, letters." in found.notices
    )
    for place, run in zip(kept, found.runs, strict=True):
        for task in ("arc", "quiz"):  # a run's numbers of a task do not depend on the run beside it
            assert analyse(RunDir(place), resamples=60, tasks=[task]).found.tasks == (run.frontiers[task],)
        # The pool is of the common tasks, and not of the run's own.
        assert run.frontiers["all tasks"].points[0].documents == 80


@pytest.mark.slow
def test_each_record_of_a_run_is_read_once(tmp_path, monkeypatch):
    places, reads = small_runs(tmp_path, "quiz", "arc"), Counter()
    read = RunDir._json
    monkeypatch.setattr(
        RunDir, "_json", lambda self, path, keys: (reads.update([str(path)]), read(self, path, keys))[1]
    )
    gather_runs(places, resamples=10)
    assert reads == {f"{place}/{name}": 1 for place in places for name in ("sweep.json", "plan.json")}


def test_rows_and_tables_say_what_the_frontiers_say(found):
    for title in found.titles:
        for run, row in zip(found.runs, compared_rows(found, title), strict=True):
            frontier = run.frontiers[title]
            star = next(point for point in frontier.points if point.lam == frontier.chosen.lam)
            shown = cells(row)
            assert shown[:4] == (run.name, "here → here", str(star.documents), frontier.chosen.lam)
            assert shown[4] == f"{frontier.chosen.low} to {frontier.chosen.high}"
            assert shown[6] == f"{star.nll.value:.3f} [{star.nll.low:.3f}, {star.nll.high:.3f}]"
            gain = star.gains["aligned"].nll
            assert shown[9] == f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            assert gain.value == pytest.approx(
                star.nll.value - next(point.nll.value for point in frontier.points if point.lam == "1")
            )
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(found, found.titles[0]))
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    line = next(line for line in printed.splitlines() if line.split()[:1] == ["dpo"])
    assert line.split()[1] == found.runs[1].frontiers["all tasks"].chosen.lam
    assert line.split()[-1] == "80"


def test_tables_are_escaped():
    names, rows = ("run", "λ*"), [("a_b & c|d", "0.5 \\ {x}")]
    assert as_markdown(names, rows) == "| run | λ* |\n|---|---|\n| a_b & c\\|d | 0.5 \\ {x} |\n"
    assert as_latex(names, rows).splitlines()[2:5] == [
        "run & $\\lambda$* \\\\",
        "\\midrule",
        "a\\_b \\& c|d & 0.5 \\textbackslash{} \\{x\\} \\\\",
    ]


def rows_of(chart):
    head, *lines = chart["data"]["values"].splitlines()
    return [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]


def test_figures_have_every_run_on_the_same_axes(found):
    figures = comparison_figures(found)
    assert {section: len(charts) for section, charts in figures.items()} == {
        "along": 3,
        "star": 1,
        "gains": 3,
        "frontiers": 1,
    }
    rows = rows_of(figures["along"]["along-nll"])
    assert len(rows) == 3 * (2 + 3)  # the titles, by the λs of both
    (row,) = (row for row in rows if (row["task"], row["label"], row["lambda"]) == ("arc", "dpo", "0.5"))
    point = found.runs[1].frontiers["arc"].points[1]
    assert [float(row[name]) for name in ("value", "low", "high")] == pytest.approx(
        [point.nll.value, point.nll.low, point.nll.high], rel=1e-5
    )
    star = next(
        row for row in rows_of(figures["star"]["lambda-star"]) if (row["task"], row["label"]) == ("quiz", "sft")
    )
    chosen = found.runs[0].frontiers["quiz"].chosen
    assert [float(star[name]) for name in ("value", "low", "high")] == [
        float(chosen.lam),
        float(chosen.low),
        float(chosen.high),
    ]
    marked = [row for row in rows_of(figures["frontiers"]["frontiers"]) if row["chosen"] == "1"]
    assert len(marked) == 6
    assert figures["gains"]["gain-error"]["params"] == figures["star"]["lambda-star"]["params"]
    for charts in figures.values():
        for chart in charts.values():
            vega_lite().validate(chart)


@pytest.mark.slow
def test_the_same_tables_give_the_same_page(places, found, tmp_path):
    html = comparison_page(found)
    assert comparison_page(gather_runs(places, resamples=60)) == html  # places are copies
    assert str(tmp_path.parent) not in html
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    assert set(data["specs"]) == set(re.findall(r'class="figure" id="([^"]+)"', html))
    for run in found.runs:
        assert markup.escape(run.frontiers["all tasks"].answer) in html
    names, rows = header(found, "arc"), [cells(row) for row in compared_rows(found, "arc")]
    assert markup.escape(as_latex(names, rows)) in html


def test_everything_that_is_wrong_is_told_at_once(places, tmp_path):
    run = RunDir(places[1])
    plan = run.plan()
    plan["tasks"] = {"words": plan["tasks"]["letters"]}
    with pytest.raises(InputError, match="cannot be compared") as caught:
        gather_runs([places[0], places[0], str(tmp_path / "nowhere"), str(tmp_path)])
    assert f"{places[0]} is given twice" in caught.value.problems
    assert sum(str(tmp_path / "nowhere") in one for one in caught.value.problems) == 1
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="give two or more"):
        gather_runs(places[:1])
    commit_json(run.plan_json, {"tasks": {"letters": run.plan()["tasks"]["letters"]}})
    with pytest.raises(InputError, match="no task with choices in common") as caught:
        gather_runs(places)
    assert f"{places[1]} has letters" in caught.value.problems


@pytest.mark.slow
def test_a_task_of_one_name_and_other_documents_is_not_compared(places):
    run = RunDir(places[1])
    plan = run.plan()
    plan["tasks"]["arc"]["sha256"] = "another file"
    plan["tasks"]["arc"]["shots"] = 5
    commit_json(run.plan_json, plan | {"margin": 0.05})
    found = gather_runs(places, resamples=40)
    assert found.titles == ("quiz",)
    assert "arc is not the same in all runs, hence not compared: sha256, shots differ." in found.notices
    assert "The runs were asked for different margins of λ*; here it is 1 point in all of them." in found.notices
    assert found.margin == 0.01


@pytest.mark.slow
def test_a_pool_has_the_same_tasks_in_all_runs(tmp_path):
    places = small_runs(tmp_path, "quiz", "arc", "more")
    assert gather_runs(places, resamples=40).titles[0] == "all tasks"
    run = RunDir(places[1])
    for lam in ("0", "1"):
        run.unit("tokens", "arc", lam, 0).unlink()
        add_scores(run, "arc", lam, {r: [-1.0 - r % 2] for r in range(4)})  # this is two documents of eight
    found = gather_runs(places, resamples=40)
    assert sorted(found.titles) == ["more", "quiz"]  # the pools have three and two tasks
    assert "Not finished in all runs, hence not compared: arc." in found.notices


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_the_page(tmp_path, monkeypatch, capsys):
    places = small_runs(tmp_path, "quiz", "arc")
    monkeypatch.setattr(
        "calibration.comparison.gather.analyse", lambda run, **given: analyse(run, **given | {"resamples": 40})
    )
    out = tmp_path / "pages" / "compare.html"
    monkeypatch.setattr("sys.argv", ["lambdasweep", "compare", *places, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out.splitlines()[-1]) == (0, f"comparison: {out}")
    assert re.search(r"^ ?dpo +\S+ +\S+–", printed.out, re.M)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    monkeypatch.setattr("sys.argv", ["lambdasweep", "compare", places[0], str(tmp_path / "nowhere"), "--margin", "-3"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 2
    assert not np.any([path.name == "compare.html" for path in tmp_path.iterdir()])
