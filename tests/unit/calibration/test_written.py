"""Metrics of written answers agree with scikit-learn and with their definitions, and a run shows them."""

import io
import itertools
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console
from sklearn.calibration import _sigmoid_calibration
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from calibration.analyse import analyse, write_metrics
from calibration.metrics.platt import Platt, fit_platt, logits_of
from calibration.metrics.written import answer_estimates, counts_of_pass, pass_at
from calibration.report.facts import gather
from calibration.report.write import write_report
from calibration.scores.per_answer import AnswerLoader, AnswerScores
from calibration.terminal.tables import render
from calibration.uncertainty.resample import draw
from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import InputError, LambdasweepError
from contract.location import read_table
from contract.records import read_plan
from contract.rundir import RunDir
from contract.units import rescored_name
from lambdasweep import open_run
from tests.support.tables import add_outputs, add_quarantine, add_written

DOCUMENTS, SAMPLES = 60, 5
GRID = ("0", "0.5", "1")


def outputs(seed: int, documents: int = DOCUMENTS, samples: int = SAMPLES, sure: float = 1.0):
    """Return outputs of documents of unequal difficulty, which are surer where they are right."""
    rng = np.random.default_rng(seed)
    found = {}
    for document in range(documents):
        ease = rng.uniform(0.2, 0.9)
        rows = []
        for _ in range(samples):
            right = bool(rng.uniform() < ease)
            length = int(rng.integers(1, 6))
            scale = (0.3 if right else 0.8) / sure
            logprobs = [float(np.float32(-scale * rng.exponential())) for _ in range(length)]
            answer = "yes" if right else f"no {int(rng.integers(3))}"
            rows.append((answer, right, logprobs, int(rng.integers(length)), length == 5))
        found[document] = rows
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("kept") / "run")
    add_written(run, "sums", DOCUMENTS, GRID, SAMPLES)
    for number, lam in enumerate(GRID):
        add_outputs(run, "sums", lam, outputs(number, sure=1 + number))
    return run


@pytest.fixture
def run(kept: RunDir, tmp_path: Path) -> RunDir:
    """Return a copy, which tests may change."""
    return RunDir(shutil.copytree(kept.root, tmp_path / "run"))


def load(run: RunDir, lam: str = "0") -> AnswerScores:
    return AnswerLoader(run, "sums", read_plan(run)["sums"]).load(lam)


def test_confidences_are_those_of_their_definitions(run: RunDir) -> None:
    scores = load(run)
    for document, some in outputs(0).items():
        for sample, (_, right, logprobs, start, _) in enumerate(some):
            expected = [sum(logprobs), np.mean(logprobs), min(logprobs), logprobs[start]]
            found = [scores.logs[name][document, sample] for name in ("sum", "tokens", "lowest", "first")]
            assert found == pytest.approx(expected, abs=1e-12)
            assert scores.correct[document, sample] == right
        answers = [row[0] for row in some]
        winner = max(answers, key=answers.count)  # the earliest of equally frequent answers wins
        assert scores.votes[document] == answers.count(winner)
        assert scores.voted[document] == some[answers.index(winner)][1]
        assert scores.classes[document] == len(set(answers))
        tokens = [value for row in some for value in row[2]]
        assert scores.length[document] == pytest.approx(len(tokens) / SAMPLES)
        assert scores.entropy[document] == pytest.approx(-2 * np.mean(tokens))
        assert scores.cut[document] == pytest.approx(np.mean([row[4] for row in some]))
    ties = [sorted(map([row[0] for row in some].count, {row[0] for row in some}))[-2:] for some in outputs(0).values()]
    assert any(len(two) == 2 and two[0] == two[1] for two in ties)


@pytest.mark.parametrize("confidence", ["sum", "tokens", "lowest", "first", "votes"])
def test_metrics_are_those_of_scikit_learn(run: RunDir, confidence: str) -> None:
    scores = load(run)
    if confidence == "votes":
        sure, right = scores.votes / SAMPLES, scores.voted
    else:
        sure, right = np.exp(scores.logs[confidence]).ravel(), scores.correct.ravel()
    found = answer_estimates(scores, draw("sums", DOCUMENTS, 20))
    value = {name: one.value for (name, of, split), one in found.items() if (of, split) == (confidence, "all")}
    assert value["acc"] == pytest.approx(right.mean())
    assert value["auroc"] == pytest.approx(roc_auc_score(right, sure))
    assert value["brier"] == pytest.approx(brier_score_loss(right, sure))
    floored = np.clip(sure, 1e-9, 1 - 1e-9)
    assert value["nll_floored"] == pytest.approx(log_loss(right, floored), rel=1e-6)
    assert value["overconfidence"] == pytest.approx(sure.mean() - right.mean())
    edges = np.ceil(sure * 15).clip(1, 15)
    ece = sum(abs((sure - right)[edges == bin_].sum()) for bin_ in range(1, 16)) / len(sure)
    assert value["ece_width15"] == pytest.approx(ece)
    if confidence != "votes":  # no two are equal
        ranked = right[np.argsort(-sure)]
        assert len(np.unique(sure)) == len(sure)
        assert value["acc_at_80"] == pytest.approx(ranked[: round(0.8 * len(sure))].mean())
        assert value["acc_at_50"] == pytest.approx(ranked[: round(0.5 * len(sure))].mean())
        risks = 1 - np.cumsum(ranked) / np.arange(1, len(sure) + 1)
        assert value["aurc"] == pytest.approx(risks.mean())


def test_platt_scaling_is_that_of_scikit_learn_and_cross_fitted(run: RunDir) -> None:
    scores = load(run)
    resamples = draw("sums", DOCUMENTS, 2)
    in_report = np.repeat(resamples.in_report, SAMPLES)
    logits, right = logits_of(scores.logs["tokens"].ravel()), scores.correct.ravel()
    sure = np.exp(scores.logs["tokens"].ravel())
    assert logits == pytest.approx(np.log(sure / (1 - sure)), rel=1e-6)
    scaled = np.zeros(len(sure))
    for half in (in_report, ~in_report):
        slope, intercept = _sigmoid_calibration(logits[~half], right[~half])
        line = fit_platt(logits[~half], right[~half])
        assert line is not None
        assert (line.slope, line.intercept) == pytest.approx((-slope, -intercept), abs=2e-4)
        scaled[half] = 1 / (1 + np.exp(slope * logits[half] + intercept))
    found = answer_estimates(scores, resamples)
    assert found["brier_scaled", "tokens", "all"].value == pytest.approx(brier_score_loss(right, scaled), abs=1e-5)
    assert found["nll_scaled", "tokens", "all"].value == pytest.approx(log_loss(right, scaled), abs=1e-5)
    unlike = found["ece_width15", "sum", "all"].value, found["ece_width15_scaled", "sum", "all"].value
    assert unlike[1] < unlike[0]
    # There is a line where all are right, too.
    always = fit_platt(np.array([1.0, 2.0, 3.0]), np.ones(3, np.bool_))
    assert isinstance(always, Platt)
    assert always.scaled(np.array([2.0]))[0] == pytest.approx(4 / 5, abs=1e-4)
    assert fit_platt(np.empty(0), np.empty(0, np.bool_)) is None


def test_pass_at_is_the_mean_over_all_choices_of_outputs() -> None:
    rng = np.random.default_rng(3)
    correct = rng.uniform(size=(7, 6)) < np.linspace(0, 1, 7)[:, None]
    for k in range(1, 7):
        chosen = list(itertools.combinations(range(6), k))
        expected = [np.mean([row[list(some)].any() for some in chosen]) for row in correct]
        assert pass_at(correct, k) == pytest.approx(expected)
    assert [counts_of_pass(k) for k in (1, 2, 3, 5, 8, 9)] == [[], [], [2], [2, 4], [2, 4], [2, 4, 8]]


def test_documents_are_resampled_with_all_their_outputs(tmp_path: Path) -> None:
    """Outputs of a document that are all the same tell no more than one of them: the intervals stay as wide."""
    found = []
    for samples in (1, 4):
        run = RunDir(tmp_path / str(samples))
        add_written(run, "sums", 40, ("0",), samples)
        add_outputs(run, "sums", "0", {d: some * samples for d, some in outputs(5, 40, 1).items()})
        scores = AnswerLoader(run, "sums", read_plan(run)["sums"]).load("0")
        found.append(answer_estimates(scores, draw("sums", 40, 50)))
    one, four = found
    for key in one:
        if key[0].startswith(("ece_mass", "acc_at", "aurc", "eaurc")) or "scaled" in key[0]:
            continue  # these count copies, or fit softened targets
        assert four[key].value == pytest.approx(one[key].value, nan_ok=True), key
        assert four[key].resampled == pytest.approx(one[key].resampled, nan_ok=True), key
        assert four[key].n == one[key].n
    assert ("vote_at_k", "sum", "all") not in one
    assert not any(of == "votes" for _, of, _ in one)
    votes = four["ece_width15", "votes", "all"]
    assert votes.value == pytest.approx(1 - one["acc", "sum", "all"].value)  # all agree always


@pytest.mark.slow
def test_a_run_shows_them(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    add_quarantine(run, "sums", "0.5", [])
    analysis = analyse(run, resamples=60, confidence="votes")
    rows = {
        (row["metric"], row["confidence"], str(row["point"])): row
        for row in analysis.metrics.to_pylist()
        if row["split"] == "all"
    }
    scores = load(run, "0.5")
    assert rows["mean_at_k", "sum", "0.5"]["value"] == pytest.approx(scores.correct.mean())
    assert rows["vote_at_k", "sum", "0.5"]["value"] == pytest.approx(scores.voted.mean())
    assert rows["pass_at_k", "sum", "0.5"]["value"] == pytest.approx(scores.correct.any(axis=1).mean())
    assert rows["pass_at_2", "sum", "0.5"]["value"] == pytest.approx(pass_at(scores.correct, 2).mean())
    assert rows["single_cluster", "sum", "0.5"]["value"] == pytest.approx((scores.classes == 1).mean())
    difference = rows["mean_at_k_vs_base", "sum", "0.5"]
    assert difference["value"] == pytest.approx(scores.correct.mean() - load(run, "0").correct.mean())
    assert difference["ci_low"] < difference["value"] < difference["ci_high"]
    assert rows["auroc_vs_aligned", "votes", "0.5"]["ci_low"] is not None
    (frontier,) = analysis.found.tasks
    assert (frontier.confidence, frontier.points[1].accuracy.value) == ("votes", pytest.approx(scores.voted.mean()))
    # λ* goes by scaled confidences at every λ, and so there is no cheap alternative.
    assert frontier.points[1].nll.value == pytest.approx(rows["nll_floored_scaled", "votes", "0.5"]["value"])
    assert "scaling" not in frontier.answer
    (of_sum,) = analyse(run, resamples=20, confidence="sum").found.tasks
    assert of_sum.points[1].nll.value == pytest.approx(rows["nll_floored_scaled", "sum", "0.5"]["value"])
    assert not analysis.pools
    binned = [row for row in analysis.bins.to_pylist() if row["events"] == "answers" and row["split"] == "all"]
    assert sum(row["n"] for row in binned if row["confidence"] == "votes") == 3 * DOCUMENTS
    assert sum(row["n"] for row in binned if row["confidence"] == "sum") == 3 * DOCUMENTS * SAMPLES
    write_metrics(run, analysis)
    text = io.StringIO()
    for table in render(analysis.metrics, "votes", intervals=True):
        Console(file=text, width=110).print(table)
    assert "mean@k" in text.getvalue()
    assert "votes" in text.getvalue()
    assert f"{scores.correct.mean():.4f}" in text.getvalue()
    write_report(run, analysis, confidence="votes", figures=False)
    page = run.index_html.read_text()
    assert "Written answers" in page
    assert "written-frontier" in page
    assert json.loads(run.frontier_json.read_text())["confidence"] == "votes"
    found = open_run(run.root).graded("sums", "0.5")
    assert found["correct"].to_pylist() == scores.correct.ravel().tolist()
    assert {"text", "logprobs", "answer", "metrics"} <= set(found.column_names)
    assert len(open_run(run.root).graded()) == 3 * DOCUMENTS * SAMPLES


@pytest.mark.slow
def test_the_confidence_that_is_asked_for_is_taken_where_outputs_have_it(tmp_path: Path) -> None:
    run, chosen = RunDir(tmp_path), {}
    add_written(run, "sums", 8, ("0",), 2)
    add_outputs(run, "sums", "0", outputs(0, 8, 2))
    for confidence in ("sum", "tokens", "lowest", "first", "votes", "bytes"):
        (frontier,) = analyse(run, resamples=30, confidence=confidence).found.tasks
        chosen[confidence] = frontier.confidence
        assert frontier.points[0].documents == 8
    assert chosen == {name: "sum" if name == "bytes" else name for name in chosen}
    with pytest.raises(
        InputError, match=r"^confidence 'guess' does not exist: give one of sum, tokens, lowest, first, votes$"
    ):
        analyse(run, resamples=30, confidence="guess")


@pytest.mark.slow
def test_what_is_not_there_is_counted(run: RunDir) -> None:
    kept = {document: some for document, some in outputs(1).items() if document not in (3, 4, 9)}
    add_outputs(run, "sums", "0.5", kept)
    add_quarantine(run, "sums", "0.5", [4, 9])
    add_outputs(run, "sums", "1", outputs(2), graded=False)
    run.unit("graded", "sums", "1", 0).unlink()
    metrics = analyse(run, resamples=30).metrics.to_pylist()
    value = {(row["metric"], row["point"]): row["value"] for row in metrics if row["split"] == "all"}
    names = ("docs_quarantined", "docs_unfinished")
    assert [value[name, "0.5"] for name in names] == [2, 1]
    assert [value[name, "1"] for name in names] == [0, DOCUMENTS]
    assert value["mean_at_k", "1"] is None
    # Differences are taken on the documents that both have.
    base = load(run, "0").restricted(np.array(sorted(kept)))
    expected = load(run, "0.5").correct.mean() - base.correct.mean()
    assert value["mean_at_k_vs_base", "0.5"] == pytest.approx(expected)


@pytest.mark.slow
def test_tables_that_do_not_fit_are_refused(run: RunDir) -> None:
    few = {document: some[:-1] if document == 7 else some for document, some in outputs(1).items()}
    add_outputs(run, "sums", "0.5", few)
    with pytest.raises(LambdasweepError, match=r"at λ = 0\.5: its generations do not fit"):
        analyse(run, resamples=2)
    add_outputs(run, "sums", "0.5", {0: [("yes", True, [-0.1, 0.3], 0, False)] * SAMPLES})
    with pytest.raises(LambdasweepError, match="a token no log-probability"):
        analyse(run, resamples=2)


@pytest.mark.slow
def test_lambdas_are_computed_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two λs that are no parents are worked on at the same time, and the numbers are those of one core."""
    run, between = RunDir(tmp_path), ("0.25", "0.5")
    add_written(run, "sums", 8, ("0", *between, "1"), 2)
    for number, lam in enumerate(("0", *between, "1")):
        add_outputs(run, "sums", lam, outputs(number, 8, 2))
    monkeypatch.setattr("calibration.task_at_lambda.cores", lambda: 1)
    expected = analyse(run, resamples=20).metrics
    together, load = threading.Barrier(2, timeout=1500), AnswerLoader.load

    def waits(self: AnswerLoader, lam: str) -> AnswerScores:
        if lam in between:
            together.wait()
        return load(self, lam)

    monkeypatch.setattr(AnswerLoader, "load", waits)
    monkeypatch.setattr("calibration.task_at_lambda.cores", lambda: 2)
    assert analyse(run, resamples=20).metrics.equals(expected)


def test_confidences_are_those_of_the_answer_behind_the_thoughts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rows = {d: [("yes", d % 2 == 0, [-4.0, -2.0, -0.5, -0.25], 3, False)] for d in range(8)}
    for task, thinking in (("thinks", 2), ("whole", None), ("only", 9)):
        add_written(run, task, 8, ("0",), 1)
        add_outputs(run, task, "0", rows, thinking=thinking)
    plan = read_plan(run)
    found = {task: AnswerLoader(run, task, plan[task]).load("0") for task in plan}
    logs = {task: {name: float(values[0, 0]) for name, values in one.logs.items()} for task, one in found.items()}
    assert logs["thinks"] == {"sum": -0.75, "tokens": -0.375, "lowest": -0.5, "first": -0.25}
    assert logs["whole"] == {"sum": -6.75, "tokens": -1.6875, "lowest": -4.0, "first": -0.25}
    assert logs["only"] == {"sum": -0.25, "tokens": -0.25, "lowest": -0.25, "first": -0.25}
    rows_of = analyse(run, resamples=20).metrics.to_pylist()
    thought = {(row["task"], row["split"]): row["value"] for row in rows_of if row["metric"] == "thinking"}
    assert {task for task, _ in thought} == {"thinks", "only"}
    assert thought["thinks", "all"] == 2.0
    lengths = {row["task"]: row["value"] for row in rows_of if (row["metric"], row["split"]) == ("length", "all")}
    assert lengths == dict.fromkeys(("thinks", "whole", "only"), 4.0)


def test_what_comes_behind_the_end_of_an_answer_changes_nothing(tmp_path: Path) -> None:
    """An output that goes on behind its answer counts as one that the engine ended there."""
    run = RunDir(tmp_path)
    own, more = [-4.0, -2.0, -0.5, -0.25], [-8.0, -3.0]
    kinds = {"ended": (own, False, None), "goes_on": (own + more, True, 3), "limited": (own, True, None)}
    for task, (logprobs, is_limited, ends) in kinds.items():
        add_written(run, task, 8, ("0",), 1)
        rows = {d: [("yes", d % 2 == 0, logprobs, 3, is_limited)] for d in range(8)}
        add_outputs(run, task, "0", rows, thinking=2, ends=ends)
    plan = read_plan(run)
    found = {task: AnswerLoader(run, task, plan[task]).load("0") for task in kinds}
    ended, goes_on = found["ended"], found["goes_on"]
    assert {name: float(values[0, 0]) for name, values in goes_on.logs.items()} == {
        "sum": -0.75,
        "tokens": -0.375,
        "lowest": -0.5,
        "first": -0.25,
    }
    for name, values in ended.logs.items():
        np.testing.assert_array_equal(goes_on.logs[name], values)
    np.testing.assert_array_equal(goes_on.entropy, np.full(8, -2 * np.mean(own)))
    np.testing.assert_array_equal(goes_on.length, np.full(8, 4.0))
    assert [float(one.cut[0]) for one in (ended, goes_on, found["limited"])] == [0.0, 0.0, 1.0]
    add_written(run, "damaged", 8, ("0",), 1)
    rows = {d: [("yes", True, own, 3, False)] for d in range(8)}
    add_outputs(run, "damaged", "0", rows, thinking=2, ends=len(own))
    with pytest.raises(LambdasweepError, match="an output has no tokens"):
        AnswerLoader(run, "damaged", read_plan(run)["damaged"]).load("0")


def ask(run: RunDir) -> None:
    """Record that the task's outputs are asked about, so that they may have the confidence p_true."""
    plan = run.plan()
    plan["tasks"]["sums"]["p_true"] = "Is it right? A: yes. B: no."
    commit_json(run.plan_json, plan)


@pytest.mark.slow
def test_p_true_is_one_confidence_more(run: RunDir) -> None:
    """Outputs of which the model said nothing are left out of it, and counted."""
    ask(run)
    rng = np.random.default_rng(8)
    for number, lam in enumerate(GRID):
        rows = outputs(number)
        right = np.array([row[1] for some in rows.values() for row in some])
        said = np.log(rng.uniform(0.05, 0.6, (len(right), 2)) + 0.3 * np.stack([right, ~right], axis=1))
        if lam == "0.5":
            said[[0, 1, 2, 3, 4, 17]] = -np.inf  # all outputs of a document, and one of another
        add_outputs(run, "sums", lam, rows, said=said.tolist())
    scores = load(run, "0.5")
    said = np.stack([run.generations("sums", "0.5")[name].to_numpy() for name in ("true_logprob", "false_logprob")])
    has = np.isfinite(said[0])
    sure, right = np.exp(said[0])[has] / np.exp(said).sum(axis=0)[has], scores.correct.ravel()[has]
    resamples = draw("sums", DOCUMENTS, 20)
    found = answer_estimates(scores, resamples)
    one = {name: value for (name, of, split), value in found.items() if (of, split) == ("p_true", "all")}
    assert one["brier"].value == pytest.approx(brier_score_loss(right, sure))
    assert one["auroc"].value == pytest.approx(roc_auc_score(right, sure))
    assert one["acc"].value == pytest.approx(right.mean())
    assert one["missing"].value == pytest.approx(6 / len(has))
    assert (one["brier"].n, one["missing"].n) == (DOCUMENTS - 1, DOCUMENTS)
    assert ("missing", "tokens", "all") not in found
    halves = [split for split in ("select", "report") if found["brier", "p_true", split].n < len(found)]
    for split in halves:
        is_in = resamples.in_report if split == "report" else ~resamples.in_report
        kept = np.repeat(is_in, SAMPLES)[has]
        assert found["brier", "p_true", split].value == pytest.approx(brier_score_loss(right[kept], sure[kept]))
        assert found["auroc", "p_true", split].value == pytest.approx(roc_auc_score(right[kept], sure[kept]))
    # A resample of documents is one of their outputs: the sum over the outputs of each, by how often it was drawn.
    counts = np.repeat(resamples.counts[:, 3], SAMPLES)[has]
    assert found["brier", "p_true", "all"].resampled[3] == pytest.approx(
        brier_score_loss(right, sure, sample_weight=counts), rel=1e-5
    )
    for split, is_in in (("all", None), ("report", resamples.in_report)):
        kept = np.ones(len(sure), np.bool_) if is_in is None else np.repeat(is_in, SAMPLES)[has]
        assert found["auroc", "p_true", split].resampled[3] == pytest.approx(
            roc_auc_score(right[kept], sure[kept], sample_weight=counts[kept])
        )
    analysis = analyse(run, resamples=30, confidence="p_true")
    (frontier,) = analysis.found.tasks
    assert frontier.confidence == "p_true"
    text = io.StringIO()
    for table in render(analysis.metrics, "p_true"):
        Console(file=text, width=110).print(table)
    assert "what the model says of its answer being right (p_true)" in text.getvalue()
    assert "without this confidence: 2.0 % of the outputs at λ 0.5" in text.getvalue()
    write_report(run, analysis, confidence="p_true", figures=False)
    assert "Outputs without this confidence" in run.index_html.read_text()
    add_written(run, "plain", DOCUMENTS, ("0",), SAMPLES)
    add_outputs(run, "plain", "0", outputs(1))
    for table in (open_run(run.root).graded(), open_run(run.root).generations()):
        assert table["true_logprob"].null_count == DOCUMENTS * SAMPLES  # those of the task that was not asked
        assert len(table) == 4 * DOCUMENTS * SAMPLES


@pytest.mark.slow
def test_differences_are_taken_on_the_outputs_that_have_the_confidence_at_both(run: RunDir) -> None:
    """Base says of few outputs how sure it is, and of other ones than aligned: most of those that are right."""
    ask(run)
    rng = np.random.default_rng(11)
    right, sure, has = {}, {}, {}
    for number, lam in enumerate(GRID):
        rows = outputs(number)
        right[lam] = np.array([row[1] for some in rows.values() for row in some])
        said = np.log(rng.uniform(0.05, 0.6, (len(right[lam]), 2)) + 0.3 * np.stack([right[lam], ~right[lam]], axis=1))
        sure[lam] = np.exp(said[:, 0]) / np.exp(said).sum(axis=1)
        has[lam] = rng.uniform(size=len(said)) < (np.where(right[lam], 0.7, 0.1) if lam == "0" else 0.9)
        said[~has[lam]] = -np.inf
        add_outputs(run, "sums", lam, rows, said=said.tolist())
    kept = dict(list(outputs(2).items())[3:])  # and at λ = 1 three documents are not there
    table = run.generations("sums", "1")
    add_outputs(run, "sums", "1", kept, said=np.stack([table[f.name] for f in schemas.P_TRUE], axis=1)[15:].tolist())
    has["1"][:15] = False
    rows_of = analyse(run, resamples=30).metrics.to_pylist()
    row = {(r["metric"], r["confidence"], r["point"]): r for r in rows_of if r["split"] == "all"}
    for lam, parent, name in (("0.5", "0", "base"), ("1", "0", "base"), ("0", "1", "aligned"), ("0.5", "1", "aligned")):
        both = has[lam] & has[parent]
        assert both.any()
        assert (has[lam] != both).any()
        for metric, score in (("brier", brier_score_loss), ("auroc", roc_auc_score)):
            expected = score(right[lam][both], sure[lam][both]) - score(right[parent][both], sure[parent][both])
            assert row[f"{metric}_vs_{name}", "p_true", lam]["value"] == pytest.approx(expected), metric
        share = right[lam][both].mean() - right[parent][both].mean()
        assert row[f"acc_vs_{name}", "p_true", lam]["value"] == pytest.approx(share)
        documents = both.reshape(DOCUMENTS, SAMPLES).any(axis=1).sum()
        assert row[f"brier_vs_{name}", "p_true", lam]["n"] == documents
        # How many lack it is counted among all outputs of the documents that both have.
        there = np.repeat(np.arange(DOCUMENTS) >= (3 if "1" in (lam, parent) else 0), SAMPLES)
        lacks = has[parent][there].mean() - has[lam][there].mean()
        assert row[f"missing_vs_{name}", "p_true", lam]["value"] == pytest.approx(lacks)
    # A confidence that no output has at both has no difference, and that is no error.
    whole = np.log(np.full((DOCUMENTS * SAMPLES, 2), 0.5))
    for lam, number, at in (("0", 0, slice(0, None, 2)), ("1", 2, slice(1, None, 2))):
        said = whole.copy()
        said[at] = -np.inf
        add_outputs(run, "sums", lam, outputs(number), said=said.tolist())
    none = [r for r in analyse(run, resamples=30).metrics.to_pylist() if r["metric"] == "brier_vs_base"]
    none = [r for r in none if (r["confidence"], r["point"], r["split"]) == ("p_true", "1", "all")]
    assert [(r["value"], r["n"]) for r in none] == [(None, 0)]


@pytest.mark.slow
def test_lambda_star_is_chosen_among_lambdas_whose_outputs_have_the_confidence(run: RunDir) -> None:
    """Base says of a few outputs how sure it is, nearly all of which are right, and 0.5 lacks 3 %, which are right ones."""
    ask(run)
    right = {}
    for number, lam in enumerate(GRID):
        rows = outputs(number)
        right[lam] = np.array([row[1] for some in rows.values() for row in some])
        said = np.log(np.where(right[lam][:, None], [0.7, 0.3], [0.4, 0.6]) / 2)
        if lam == "0":
            few = [*np.flatnonzero(right[lam])[::3], *np.flatnonzero(~right[lam])[::15]]
            said[np.setdiff1d(np.arange(len(said)), few)] = -np.inf
        if lam == "0.5":
            said[np.flatnonzero(right[lam])[:9]] = -np.inf
        add_outputs(run, "sums", lam, rows, said=said.tolist())
    analysis = analyse(run, resamples=30, confidence="p_true")
    (found,) = analysis.found.tasks
    assert [(one.lam, one.documents) for one in found.points] == [("0.5", DOCUMENTS), ("1", DOCUMENTS)]
    assert [one.accuracy.value for one in found.points] == pytest.approx([right["0.5"].mean(), right["1"].mean()])
    assert found.answer.endswith(" Not compared: λ = 0, where more than 5 % of the outputs lack this confidence."), (
        found.answer
    )
    # Gains are taken on the outputs that have it at both, and the answer shows no two errors that differ by something else.
    of_all = [row for row in analysis.metrics.to_pylist() if (row["split"], row["confidence"]) == ("all", "p_true")]
    rows = {(row["metric"], row["point"]): row for row in of_all}
    (gain,) = found.points[0].gains.values()
    for value, metric in ((gain.nll, "nll_floored_scaled"), (gain.error, "ece_width15_scaled")):
        assert value.value == rows[f"{metric}_vs_aligned", "0.5"]["value"]
    apart = found.points[0].error.value - found.points[1].error.value
    assert gain.error.value != pytest.approx(apart, abs=1e-6)
    if found.chosen.lam == "0.5" and "Against aligned: NLL" in found.answer:
        assert " → " not in found.answer.partition("Against aligned")[2].partition(".")[0]
    (plain,) = analyse(run, resamples=30).found.tasks
    assert [one.lam for one in plain.points] == list(GRID)
    assert "Not compared" not in plain.answer


def test_a_confidence_that_no_task_has_is_refused(run: RunDir) -> None:
    there = r"confidence 'p_true' does not exist: give one of sum, tokens, lowest, first, votes$"
    with pytest.raises(InputError, match=f"^{there}"):
        analyse(run, resamples=2, confidence="p_true")
    with pytest.raises(InputError, match=rf"calibration error 'ace' does not exist: give one of ece_.*\n  - {there}"):
        analyse(run, resamples=2, error="ace", confidence="p_true")


def add_rescored(run: RunDir, lam: str, under: str, scores: dict[int, list[list[float]]]) -> None:
    """Commit what another λ makes of outputs: by document, of each output the log-probabilities of its tokens."""
    rows = [(document, sample, one) for document, some in scores.items() for sample, one in enumerate(some)]
    columns = {
        "request_id": [row[0] for row in rows],
        "sample": [row[1] for row in rows],
        **schemas.place_columns(lam, len(rows)),
        "under": [under] * len(rows),
        "logprobs": [row[2] for row in rows],
        "ranks": [[1] * len(row[2]) for row in rows],
        "top1_ids": [[5] * len(row[2]) for row in rows],
        "top1_logprobs": [[-0.1] * len(row[2]) for row in rows],
    }
    table = pa.table(columns, schema=schemas.RESCORED)
    commit_table(run.unit("rescored", rescored_name("sums", under), lam, 0), table)


@pytest.mark.slow
def test_what_another_lambda_makes_of_outputs_is_a_confidence(run: RunDir) -> None:
    plan = run.plan()
    plan["tasks"]["sums"]["rescored"] = dict.fromkeys(("0", "0.3"), GRID)
    commit_json(run.plan_json, plan)
    rng = np.random.default_rng(4)
    again = {
        document: [(-rng.exponential(size=len(one[2])) - 0.01).tolist() for one in some]
        for document, some in outputs(1).items()
        if document not in (2, 50)  # quarantined
    }
    add_rescored(run, "0.5", "0", again)
    scores = load(run, "0.5")
    sums = [
        sum(one) if document in again else np.nan
        for document in range(DOCUMENTS)
        for one in again.get(document, [[]] * 5)
    ]
    assert scores.logs["sum@0"].ravel() == pytest.approx(sums, nan_ok=True)
    lengths = [len(one[2]) for some in outputs(1).values() for one in some]
    assert scores.logs["tokens@0"].ravel() == pytest.approx(np.array(sums) / lengths, nan_ok=True)
    assert "sum@0.3" not in scores.logs  # nothing of it is committed
    assert "sum@0" not in load(run, "0").logs
    right, has = scores.correct.ravel(), ~np.isnan(sums)
    found = answer_estimates(scores, draw("sums", DOCUMENTS, 20))
    expected = brier_score_loss(right[has], np.exp(np.array(sums) / lengths)[has])
    assert found["brier", "tokens@0", "all"].value == pytest.approx(expected)
    assert found["brier", "tokens@0", "all"].n == DOCUMENTS - 2
    assert found["missing", "sum@0", "all"].value == pytest.approx(2 / DOCUMENTS)
    for lam, number in (("0", 0), ("1", 2)):
        rows = {d: [[value - 0.1 for value in one[2]] for one in some] for d, some in outputs(number).items()}
        add_rescored(run, lam, "0", rows)
    analysis = analyse(run, resamples=30, confidence="tokens@0")
    (frontier,) = analysis.found.tasks
    assert (frontier.confidence, len(frontier.points)) == ("tokens@0", len(GRID))
    names = [
        row["confidence"] for row in analysis.metrics.to_pylist() if row["metric"] == "brier" and row["split"] == "all"
    ]
    assert names[:7] == ["sum", "tokens", "lowest", "first", "votes", "sum@0", "tokens@0"]
    text = io.StringIO()
    for table in render(analysis.metrics, "tokens@0"):
        Console(file=text, width=120).print(table)
    shown = " ".join(text.getvalue().split())
    assert "confidence: the geometric mean of its tokens' probabilities under λ = 0 (tokens@0)" in shown
    assert "without this confidence: 3.3 % of the outputs at λ 0.5" in text.getvalue()
    write_metrics(run, analysis)
    write_report(run, analysis, confidence="tokens@0", figures=False)
    assert open_run(run.root).rescored("sums", "0.5", "0")["request_id"].unique().to_pylist() == list(again)
    for under in ("0.3", "0.7"):
        with pytest.raises(InputError, match=r"give one of sum, tokens, lowest, first, votes, .*tokens@0"):
            analyse(run, resamples=2, confidence=f"sum@{under}7")
    damaged = dict(again) | {0: [one[:-1] or [-1.0, -1.0] for one in again[0]]}
    add_rescored(run, "0.5", "0", damaged)
    with pytest.raises(LambdasweepError, match=r"at λ = 0\.5: what λ = 0 makes of its outputs does not fit them"):
        load(run, "0.5")


@pytest.mark.slow
def test_a_page_has_no_numbers_of_another_confidence(run: RunDir) -> None:
    """Outputs were scored again at one λ of three; at the others the page shows what is no confidence's."""
    plan = run.plan()
    plan["tasks"]["sums"]["rescored"] = {"0": ["0.5"]}
    commit_json(run.plan_json, plan)
    again = {d: [[value - 0.1 for value in one[2]] for one in some] for d, some in outputs(1).items()}
    add_rescored(run, "0.5", "0", again)
    analysis = analyse(run, resamples=30, confidence="sum@0")
    stored = {
        (row["metric"], row["point"], row["confidence"]): row["value"]
        for row in analysis.metrics.to_pylist()
        if row["split"] == "all"
    }
    (facts,) = gather(analysis, "ece_width15", "sum@0").tasks
    assert stored["ece_width15", "1", "sum"] is not None
    for lam in ("0", "1"):
        for metric in ("ece_width15", "ece_width15_scaled", "brier", "auroc", "ece_width15_vs_base"):
            assert facts.cell(lam, metric).value is None, metric
        for metric in ("mean_at_k", "pass_at_2", "length", "distinct_answers", "docs_unfinished"):
            assert facts.cell(lam, metric).value == stored[metric, lam, "sum"] is not None, metric
    assert facts.cell("1", "mean_at_k_vs_base").value == stored["mean_at_k_vs_base", "1", "sum"] is not None
    for metric in ("ece_width15", "brier_scaled", "auroc"):
        assert facts.cell("0.5", metric).value == stored[metric, "0.5", "sum@0"] != stored[metric, "0.5", "sum"]


def test_what_was_made_of_outputs_that_are_gone_counts_for_nothing(run: RunDir) -> None:
    """A damaged table of outputs is absent, and its documents are unfinished until they are written again."""
    plan = run.plan()
    plan["tasks"]["sums"] |= {"rescored": {"0": ["0.5"]}, "shards": [[0, 40], [40, DOCUMENTS]], "costs": [1, 1]}
    commit_json(run.plan_json, plan)
    rows, again = outputs(1), {d: [[v - 0.1 for v in one[2]] for one in some] for d, some in outputs(1).items()}
    for kind, name in (("generations", "sums"), ("rescored", "sums@0")):
        if kind == "rescored":
            add_rescored(run, "0.5", "0", again)
        whole = read_table(run.unit(kind, name, "0.5", 0))
        of_first = pc.less(whole["request_id"], 40)
        commit_table(run.unit(kind, name, "0.5", 0), whole.filter(of_first))
        commit_table(run.unit(kind, name, "0.5", 1), whole.filter(pc.invert(of_first)))
    scores = load(run, "0.5")
    assert len(scores.document) == DOCUMENTS
    run.unit("generations", "sums", "0.5", 1).write_bytes(b"PAR1")
    there = load(run, "0.5")
    assert there.document.tolist() == list(range(40))
    assert there.left_out.unfinished == DOCUMENTS - 40
    for name in ("sum", "sum@0"):
        np.testing.assert_array_equal(there.logs[name], scores.logs[name][:40])
    assert there.correct.tolist() == [[one[1] for one in rows[document]] for document in range(40)]


def test_thoughts_and_what_is_behind_an_answer_do_not_count_under_another_lambda(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    add_written(run, "sums", 4, ("0",), 1)
    plan = run.plan()
    plan["tasks"]["sums"]["rescored"] = {"1": ["0"]}
    commit_json(run.plan_json, plan)
    add_outputs(run, "sums", "0", {d: [("a", True, [-0.5] * 5, 3, False)] for d in range(4)}, thinking=2, ends=3)
    add_rescored(run, "0", "1", {d: [[-7.0, -7.0, -0.25, -0.125, -9.0]] for d in (0, 1, 3)})
    logs = load(run, "0").logs
    assert logs["sum@1"].ravel() == pytest.approx([-0.375, -0.375, np.nan, -0.375], nan_ok=True)
    assert logs["tokens@1"].ravel() == pytest.approx([-0.1875, -0.1875, np.nan, -0.1875], nan_ok=True)
