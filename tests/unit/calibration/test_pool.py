"""Pooled tasks have the numbers of all documents, with the means over tasks beside them."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, log_loss

from calibration.analyse import analyse
from calibration.report.facts import gather
from calibration.report.figures import page_figures
from calibration.report.notices import notices
from calibration.report.numbers import numbers
from calibration.scores.loader import Shelf
from calibration.scores.pool import pools_of
from calibration.terminal.tables import render
from contract.commit import commit_json
from contract.records import TaskRecord
from contract.rundir import RunDir
from lambdasweep import open_run
from tests.support.rows import one_row, rows_of
from tests.support.tables import add_quarantine, add_scores, add_task

GRID = ("0", "0.5", "1")


def add_random(run, task, choices, seed, scored=GRID, longest=1):
    """Write a task; where the longest choices are of one token, all confidences are the same."""
    rng = np.random.default_rng(seed)
    gold = [int(rng.integers(size)) for size in choices]
    add_task(run, task, choices, GRID, gold=gold)
    for lam in scored:
        scores = -np.abs(rng.normal(-3, 1 + float(lam), sum(choices)))
        add_scores(run, task, lam, {r: [float(one)] * (1 + r % longest) for r, one in enumerate(scores)})


def add_both(run, **options):
    add_random(run, "a", [4] * 31, 1, **options)
    add_random(run, "b", [2, 3] * 10, 2, **options)
    return run


@pytest.fixture
def run(tmp_path):
    """Return a run with two tasks, to which a test may add others."""
    return add_both(RunDir(tmp_path / "run"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return a run with the same tasks, which no test changes."""
    return add_both(RunDir(tmp_path_factory.mktemp("kept") / "run"), longest=2)


@pytest.fixture(scope="module")
def kept_analysis(kept):
    return analyse(kept, resamples=60)


def test_pooled_numbers_are_those_of_all_documents(kept, kept_analysis):
    found = kept_analysis
    opened = open_run(kept.root)
    for lam in GRID:
        rows = [row for task in ("a", "b") for row in opened.examples(task=task, lam=lam).to_pylist()]
        confidence, correct = (np.array([row[key] for row in rows]) for key in ("confidence", "correct"))
        bins = np.ceil(confidence * 15)
        ece = sum(abs((confidence - correct)[bins == b].sum()) for b in np.unique(bins)) / len(rows)
        expected = {
            "acc": accuracy_score([row["gold"] for row in rows], [row["prediction"] for row in rows]),
            "nll": np.mean([row["nll"] for row in rows]),
            "brier": np.mean([row["brier"] for row in rows]),
            "ece_width15": ece,
            "nll_macro": np.mean([np.mean([row["nll"] for row in rows if row["task"] == task]) for task in ("a", "b")]),
            "brier_macro": np.mean([np.mean([r["brier"] for r in rows if r["task"] == task]) for task in ("a", "b")]),
        }
        for metric, value in expected.items():
            row = one_row(found.metrics, task="all tasks", lam=lam, metric=metric, split="all")
            assert row["value"] == pytest.approx(value, abs=1e-9), metric
            assert row["n"] == 51
            assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert expected["nll"] != pytest.approx(expected["nll_macro"], abs=1e-3)
    difference = one_row(found.metrics, task="all tasks", lam="0", metric="nll_macro_vs_aligned", split="all")
    ends = [one_row(found.metrics, task="all tasks", lam=lam, metric="nll_macro", split="all")["value"] for lam in "01"]
    assert difference["value"] == pytest.approx(ends[0] - ends[1])


def test_opposite_errors_of_tasks_cancel_in_the_pooled_ece(tmp_path):
    run = RunDir(tmp_path / "run")
    for task, right in (("timid", 20), ("bold", 12)):  # at a confidence of 0.8, 16 of 20 documents would be right
        add_task(run, task, [2] * 20, ["0"], gold=[0] * right + [1] * (20 - right))
        add_scores(run, task, "0", {r: [float(np.log(0.2 if r % 2 else 0.8))] for r in range(40)})
    found = analyse(run, resamples=50)
    (pool,) = found.found.pools
    assert [one.points[0].error.value for one in found.found.tasks] == pytest.approx([0.2, 0.2])
    assert pool.points[0].error.value == pytest.approx(0, abs=1e-7)
    assert "opposite errors of tasks cancel" in pool.answer


@pytest.mark.slow
def test_a_resample_has_as_many_documents_of_each_task_as_the_sample(kept):
    """The pooled mean therefore varies as the weighted mean of the tasks' own means does."""
    found = analyse(kept, resamples=300)
    values = {
        task: one_row(found.metrics, task=task, lam="0", metric="brier", split="all", confidence="sum")
        for task in ("a", "b")
    }
    pool = one_row(found.metrics, task="all tasks", lam="0", metric="brier", split="all")
    half = {task: (row["ci_high"] - row["ci_low"]) / 2 for task, row in values.items()}
    expected = np.hypot(31 / 51 * half["a"], 20 / 51 * half["b"])
    assert (pool["ci_high"] - pool["ci_low"]) / 2 == pytest.approx(expected, rel=0.15)


def test_pools_follow_the_groups_of_lm_eval():
    def tasks(**groups):
        return {name: TaskRecord(groups=tuple(of.split())) for name, of in groups.items()}

    plan = tasks(law="mmlu humanities", logic="mmlu humanities", physics="mmlu stem", arc="")
    assert pools_of(plan, list(plan)) == {
        "all tasks": ("law", "logic", "physics", "arc"),
        "mmlu": ("law", "logic", "physics"),
        "humanities": ("law", "logic"),
    }
    # Where a group has all tasks, it is the pool of all, and it comes first.
    assert list(pools_of(plan, ["law", "logic", "physics"])) == ["mmlu", "humanities"]
    assert pools_of(plan, ["law"]) == {}
    assert pools_of(plan, []) == {}


@pytest.mark.slow
def test_a_group_has_rows_of_its_own_in_every_table(run):
    add_random(run, "c", [4] * 12, 3)
    plan = run.plan()
    for task in ("a", "b"):
        plan["tasks"][task]["groups"] = ["mmlu"]
    commit_json(run.plan_json, plan)
    found = analyse(run, resamples=60)
    assert list(found.pools) == ["all tasks", "mmlu"]
    assert list(dict.fromkeys(found.metrics["task"].to_pylist())) == ["a", "b", "c", "all tasks", "mmlu"]
    assert [one.task for one in found.found.pools] == ["all tasks", "mmlu"]
    assert one_row(found.metrics, task="mmlu", lam="1", metric="acc", split="all")["n"] == 51
    console = Console(width=100, file=io.StringIO())
    for table in render(found.metrics, intervals=True):
        console.print(table)
    printed = console.file.getvalue()
    of_pool = printed.partition("all tasks")[2]
    assert len([line for line in of_pool.splitlines() if line.split()[:1] == ["0.5"] and line.split()[-1] == "63"]) == 1
    assert of_pool.count("Brier  docs") == 2
    assert max(map(len, printed.splitlines())) <= 100
    assert (
        "documents of all tasks pooled: opposite errors of tasks cancel in the ECE; macro: mean over tasks" in printed
    )
    facts = gather(found, "ece_width15", "sum")
    assert [name for name, _ in facts.frontiers] == ["all tasks", "mmlu", "a", "b", "c"]
    assert [table.task for table in numbers(facts)] == ["all tasks", "mmlu", "a", "b", "c"]
    assert "NLL, mean over tasks" in numbers(facts)[0].header
    assert "NLL, mean over tasks" not in numbers(facts)[2].header
    assert {"frontier-pooled", "frontier-task"} == set(page_figures(facts)["frontier"])


@pytest.mark.slow
def test_a_pool_has_the_points_that_all_its_tasks_have_finished(run):
    add_random(run, "c", [2] * 10, 4, scored=("0", "1"))
    add_scores(run, "c", "0.5", {0: [-1.0], 1: [-2.0]})  # this is one document of ten
    found = analyse(run, resamples=40)
    (pool,) = found.found.pools
    assert [point.lam for point in pool.points] == ["0", "1"]
    assert one_row(found.metrics, task="all tasks", lam="0.5", metric="docs_unfinished")["value"] == 9
    run.unit("tokens", "c", "0.5", 0).unlink()
    table = analyse(run, resamples=40).metrics
    assert rows_of(table, task="a", lam="0.5")
    assert not rows_of(table, task="all tasks", lam="0.5")


@pytest.mark.slow
def test_documents_that_could_not_be_scored_are_in_no_pool(run):
    add_task(run, "c", [2] * 6, GRID)
    for lam in GRID:
        add_scores(run, "c", lam, {r: [-1.0 - r % 2] for r in range(10)})
        add_quarantine(run, "c", lam, [10, 11], shard=1)
    found = analyse(run, resamples=40)
    assert one_row(found.metrics, task="all tasks", lam="0", metric="docs_quarantined")["value"] == 1
    assert one_row(found.metrics, task="all tasks", lam="0", metric="acc", split="all")["n"] == 56


@pytest.mark.slow
def test_tokens_and_bytes_are_shown_after_temperature_scaling(kept):
    found = analyse(kept, resamples=60, confidence="tokens")
    (table, *_) = render(found.metrics, confidence="tokens", intervals=True)
    assert [column.header for column in table.columns if column.header][:7] == [
        "λ",
        "accuracy",
        "95 %",
        "ECE T",
        "95 %",
        "Brier T",
        "NLL T",
    ]
    row = one_row(found.metrics, task="a", lam="0", metric="ece_width15_scaled", split="all", confidence="tokens")
    assert str(next(iter(table.columns[4].cells))).rstrip("* ") == f"{row['value']:.4f}"
    assert "T: after temperature scaling" in str(table.caption)
    facts = gather(found, "ece_width15", "tokens")
    curves = page_figures(facts)["curves"]
    assert "task-ece_width15_scaled" in curves
    assert not {"task-ece_width15", "task-smece", "task-nll", "task-brier"} & set(curves)
    assert any("The temperature of the confidence `tokens` is arbitrary" in text for text in notices(facts))
    point = found.found.tasks[0].points[0]
    assert point.error.value == row["value"]


@pytest.mark.slow
def test_what_is_impossible_is_counted_and_nll_has_a_floor(run):
    add_task(run, "c", [2] * 8, GRID)
    for lam in GRID:
        scores = {r: [-1.0 - r % 2] for r in range(16)}
        if lam == "1":
            scores |= {0: [-np.inf], 2: [-np.inf]}
        add_scores(run, "c", lam, scores)
    found = analyse(run, resamples=40)
    wanted = {"task": "c", "lam": "1", "split": "all", "confidence": "sum"}
    assert one_row(found.metrics, metric="nll", **wanted)["value"] == np.inf
    assert one_row(found.metrics, metric="gold_impossible", **wanted)["value"] == 2 / 8
    floored = one_row(found.metrics, metric="nll_floored", **wanted)["value"]
    p = 1 / (1 + np.exp(-1))
    probabilities = np.array([[1e-9, 1]] * 2 + [[p, 1 - p]] * 6)
    assert floored == pytest.approx(
        log_loss([0] * 8, probabilities / probabilities.sum(axis=1, keepdims=True), labels=[0, 1]), abs=1e-6
    )
    tables = {str(table.title): str(table.caption) for table in render(found.metrics)}
    assert "NLL is infinite at λ 1: 2 right choices have probability 0; with probabilities of at " in tables["c"]
    assert f"least 1e-09 it is {floored:.4f}" in tables["c"]
    assert "NLL is infinite" not in tables["a"]
    # λ* is chosen all the same, and the answer has no ∞.
    assert all(np.isfinite(point.nll.value) for point in found.found.tasks[2].points)


def test_the_curve_of_ece_has_the_noise_beside_it(kept_analysis):
    found = kept_analysis
    facts = gather(found, "ece_width15", "sum")
    text = json.dumps(page_figures(facts)["curves"]["task-ece_width15"])
    assert "noise alone" in text
    assert "noise alone" not in json.dumps(page_figures(facts)["curves"]["task-brier"])
    floor = one_row(found.metrics, task="a", lam="0", metric="ece_floor15", split="all", confidence="sum")
    assert floor["ci_low"] is None
    assert 0.05 < floor["value"] < 0.4
    assert "noise alone gives an ECE of" in str(render(found.metrics)[0].caption)


@pytest.mark.slow
def test_tables_of_a_task_are_read_once_for_it_and_its_pools(kept, kept_analysis, monkeypatch):
    reads = []
    tokens = RunDir.tokens
    monkeypatch.setattr(RunDir, "tokens", lambda self, task, lam: reads.append((task, lam)) or tokens(self, task, lam))
    assert analyse(kept, resamples=60).metrics.equals(kept_analysis.metrics)
    assert sorted(reads) == [(task, lam) for task in "ab" for lam in GRID]
    # Scores that have no room are read again, with the same numbers.
    monkeypatch.setattr("calibration.analyse.Shelf", lambda: Shelf(1000))
    assert analyse(kept, resamples=60).metrics.equals(kept_analysis.metrics)
    assert len(reads) > 2 * 6
