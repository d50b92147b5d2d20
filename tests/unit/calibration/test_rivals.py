"""Rivals that need no merging agree with scipy's minimiser and with NumPy: a temperature without labels, and ensembles."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics import log_loss

from calibration.analyse import analyse
from calibration.frontier.beside import TITLES, beside, markdown, notes
from calibration.metrics.rivals import daca_temperature, rival_metrics
from calibration.metrics.temperature import RANGE, match_temperature
from calibration.report.facts import gather
from calibration.report.page import page
from calibration.scores.per_document import ChoiceScores, LeftOut
from calibration.terminal.beside import beside_table
from calibration.uncertainty.resample import draw
from contract.rundir import RunDir
from lambdasweep import open_run
from lambdasweep.takehome.model_card import model_card
from lambdasweep.takehome.point import MeasuredPoint
from tests.support.tables import add_scores, add_task

GRID = ("0", "0.5", "1")
DOCUMENTS = 120


def parents(documents=DOCUMENTS, seed=0):
    """Return log-probabilities [D, 4] of base, and of an aligned that is surer and often says something else, and gold."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (documents, 4))
    base = log_softmax(truth + rng.normal(0, 0.7, truth.shape), axis=1)
    aligned = log_softmax(3 * (truth + rng.normal(0, 0.7, truth.shape)), axis=1)
    gold = (rng.uniform(size=documents)[:, None] > softmax(truth, axis=1).cumsum(axis=1)).sum(axis=1)
    return base, aligned, gold


def scores_of(logits, gold, document=None):
    document = np.arange(len(gold)) if document is None else document
    return ChoiceScores(document, np.full(len(gold), 4), gold, {"sum": logits}, LeftOut(0, 0))


def minimal(base, aligned):
    """Return the T of lowest mean KL(base || softmax(aligned / T)) on the documents where both predict the same."""
    same = base.argmax(axis=1) == aligned.argmax(axis=1)
    assert 0.3 < same.mean() < 0.9

    def loss(log_t):
        return rel_entr(softmax(base[same], axis=1), softmax(aligned[same] / np.exp(log_t), axis=1)).sum(axis=1).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x))


def test_daca_is_the_temperature_of_least_divergence_where_both_agree():
    base, aligned, _ = parents(400)
    found = daca_temperature(base, aligned)
    assert found == pytest.approx(minimal(base, aligned), rel=1e-5)
    assert found > 1.5  # aligned is too sure
    # log-probabilities count up to a constant for each document.
    assert daca_temperature(base + 7, aligned - 3) == pytest.approx(found)
    with_all = match_temperature(aligned, softmax(base, axis=1))
    assert with_all > 1.1 * found  # where predictions differ, base says nothing about aligned


def test_padding_and_impossible_choices_do_not_count():
    base, aligned, _ = parents(400)
    nothing = np.full((400, 1), -np.inf)
    padded = daca_temperature(np.hstack([base, nothing]), np.hstack([aligned, nothing]))
    assert padded == pytest.approx(daca_temperature(base, aligned), rel=1e-7)
    # A choice that base believes in and aligned excludes has an infinite divergence at every T.
    one, other = np.array([[-0.1, -3.0, -3.0]]), np.array([[-0.1, -np.inf, -2.0]])
    assert match_temperature(other, softmax(one, axis=1)) is None
    assert daca_temperature(one, one[:, ::-1]) is None  # the two agree on no document
    assert daca_temperature(np.empty((0, 4)), np.empty((0, 4))) is None
    uniform = np.log(np.full((1, 4), 0.25))
    assert match_temperature(np.array([[0.0, -1, -2, -3]]), np.exp(uniform)) == RANGE[1]
    assert match_temperature(np.array([[0.0, -1, -2, -3]]), np.array([[1.0, 0, 0, 0]])) == RANGE[0]


def test_a_half_is_scaled_by_what_was_found_on_the_other_and_no_label_is_used():
    base, aligned, gold = parents()
    resamples = draw("quiz", DOCUMENTS, 5)
    found = rival_metrics(scores_of(base, gold), scores_of(aligned, gold), resamples)["daca"]
    select, report = ~resamples.in_report, resamples.in_report
    expected = minimal(base[report], aligned[report]), minimal(base[select], aligned[select])
    assert found.temperatures == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    divisor = np.where(select, *expected)[:, None]
    assert found.estimates["nll", "sum", "all"].value == pytest.approx(
        log_loss(gold, softmax(aligned / divisor, axis=1), labels=range(4)), rel=1e-6
    )
    other = rival_metrics(scores_of(base, (gold + 1) % 4), scores_of(aligned, (gold + 1) % 4), resamples)["daca"]
    assert other.temperatures == found.temperatures


def test_ensembles_are_the_means_of_probabilities_and_of_their_logarithms():
    base, aligned, gold = parents()
    resamples = draw("quiz", DOCUMENTS, 30)
    found = rival_metrics(scores_of(base, gold), scores_of(aligned - 5, gold), resamples)
    p, q = softmax(base, axis=1), softmax(aligned, axis=1)
    geometric = np.sqrt(p * q)
    for name, mixed in (("mean", (p + q) / 2), ("log-mean", geometric / geometric.sum(axis=1, keepdims=True))):
        estimates = found[name].estimates
        right = mixed.argmax(axis=1) == gold
        sure = mixed.max(axis=1)
        bins = np.ceil(sure * 15)
        ece = sum(abs((sure - right)[bins == b].sum()) for b in np.unique(bins)) / DOCUMENTS
        brier = np.square(mixed - np.eye(4)[gold]).sum(axis=1)
        for metric, value in (("acc", right.mean()), ("ece_width15", ece), ("brier", brier.mean())):
            assert estimates[metric, "sum", "all"].value == pytest.approx(value, abs=1e-9), (name, metric)
        assert estimates["nll", "sum", "all"].value == pytest.approx(log_loss(gold, mixed, labels=range(4)), rel=1e-9)
        # A resample has the documents that it has of every λ, so that a rival is compared with λ* in pairs.
        drawn = (resamples.counts[:, 3] * brier).sum() / DOCUMENTS
        assert estimates["brier", "sum", "all"].resampled[3] == pytest.approx(drawn, rel=1e-5)
    assert found["mean"].temperatures == ()


def test_rivals_are_of_the_documents_that_both_parents_have():
    base, aligned, gold = parents()
    base[7, 1:] = -np.inf
    aligned[7], base[7, 0] = [-np.inf, 0, -np.inf, -np.inf], 0
    of_base, of_aligned = np.arange(5, DOCUMENTS), np.arange(DOCUMENTS - 3)
    found = rival_metrics(
        *(scores_of(logits[of], gold[of], of) for logits, of in ((base, of_base), (aligned, of_aligned))),
        draw("quiz", DOCUMENTS, 5),
    )
    both = np.arange(5, DOCUMENTS - 3)
    mean = found["mean"].estimates["brier", "sum", "all"]
    mixed = (softmax(base, axis=1) + softmax(aligned, axis=1))[both] / 2
    assert mean.value == pytest.approx(np.square(mixed - np.eye(4)[gold[both]]).sum(axis=1).mean())
    assert mean.n == len(both)
    # The model gives no choice of document 7 any probability.
    assert found["log-mean"].estimates["brier", "sum", "all"].n == len(both) - 1


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "run")
    for task, seed in (("quiz", 0), ("other", 1)):
        base, aligned, gold = parents(seed=seed)
        add_task(run, task, [4] * DOCUMENTS, GRID, gold=gold.tolist())
        for lam in GRID:
            rows = ((1 - float(lam)) * base + float(lam) * aligned).reshape(-1)
            add_scores(run, task, lam, {r: [float(one)] for r, one in enumerate(rows)})
    return run


@pytest.mark.slow
def test_each_is_a_row_beside_the_answer(run):
    found = analyse(run, resamples=60)
    names = ["temperature", "daca", "mean", "log-mean"]
    for one in (*found.found.tasks, *found.found.pools):
        assert [rival.name for rival in one.rivals] == names
        star = next(point for point in one.points if point.lam == one.chosen.lam)
        for rival in one.rivals:
            assert rival.documents == star.documents
            assert rival.accuracy.low <= rival.accuracy.value <= rival.accuracy.high
            assert rival.nll.low < rival.nll.value < rival.nll.high
            assert rival.gain.nll.value == pytest.approx(star.nll.value - rival.nll.value)
            assert rival.gain.nll.low < rival.gain.nll.value < rival.gain.nll.high
            # Differences are taken in pairs, so that they vary less than they would on other documents.
            width = np.hypot(star.nll.high - star.nll.low, rival.nll.high - rival.nll.low)
            assert rival.gain.nll.high - rival.gain.nll.low < 0.8 * width
    scaled = {
        row["metric"]: row["value"]
        for row in open_run_rows(run, found)
        if (row["task"], row["confidence"], row["split"]) == ("quiz", "sum", "all")
    }
    temperature = next(one for one in found.found.tasks if one.task == "quiz").rivals[0]
    assert temperature.nll.value == scaled["nll_floored_scaled"]
    assert temperature.error.value == scaled["ece_width15_scaled"]
    assert temperature.brier.value == scaled["brier_scaled"]
    assert temperature.accuracy.value == scaled["acc"]
    assert len(temperature.temperatures) == 2
    assert json.loads(json.dumps(found.found.to_json()))["pools"][0]["rivals"][1]["name"] == "daca"


def open_run_rows(run, found):
    """Return the rows of metrics.parquet at aligned."""
    return [row for row in found.metrics.to_pylist() if str(row["lam"]).startswith("1")]


@pytest.mark.slow
def test_a_rival_in_a_run_is_that_of_its_rows(run):
    """Compute the same by NumPy from the documents that a notebook shows."""
    found = analyse(run, resamples=20)
    opened = open_run(run.root)
    mean = next(one for task in found.found.tasks if task.task == "quiz" for one in task.rivals if one.name == "mean")
    base, aligned, gold = parents()
    p = (softmax(base, axis=1) + softmax(aligned, axis=1)) / 2
    assert mean.accuracy.value == pytest.approx((p.argmax(axis=1) == gold).mean())
    assert mean.nll.value == pytest.approx(log_loss(gold, p, labels=range(4)), rel=1e-5)
    assert len(opened.examples(task="quiz", lam="0")) == mean.documents


@pytest.mark.slow
def test_the_terminal_and_the_page_show_the_rows(run):
    found = analyse(run, resamples=60)
    one = found.found.tasks[0]
    for width, intervals in ((80, False), (100, True)):
        console = Console(width=width, file=io.StringIO())
        console.print(beside_table(one, intervals))
        printed = console.file.getvalue()
        assert max(map(len, printed.splitlines())) <= width
        labels = " ".join(re.split(r"\s{2,}", line.strip())[0] for line in printed.splitlines())
        assert " ".join(TITLES.values()) in labels
        assert "right" not in printed.split()  # a note below all tables says once what the rivals are
    rivals = {rival.name: rival.temperatures for rival in one.rivals}
    named, below = notes([one]), notes([*found.found.tasks, *found.found.pools])
    assert [line.partition(": ")[0] for line in named] == [line.partition(": ")[0] for line in below]
    assert [line.partition(": ")[0] for line in named] == list(TITLES.values())
    assert named[1].endswith("no right answer is used ({:.2f} and {:.2f})".format(*rivals["daca"]))
    every = [t for task in (*found.found.tasks, *found.found.pools) for t in task.rivals[1].temperatures]
    assert below[1].endswith(f"no right answer is used ({min(every):.2f} to {max(every):.2f})")
    rows = beside(one)
    assert [row.label for row in rows[3 if one.chosen.lam == "0.5" else 2 :]] == list(TITLES.values())
    assert rows[0].gain is None
    facts = gather(found, "ece_width15", "sum")
    html = page(facts, found.sweep, found.plan, [], [])
    assert html.count("<th scope=row>ensemble, log-mean</th>") == 3  # these are both tasks and the pool
    assert html.count("no right answer is used") == 1
    assert "<th scope=row>aligned, DACA temperature ({:.2f} and {:.2f})</th>".format(*rivals["daca"]) in html
    row = rows[-1]
    assert f"{row.nll.value:.4f} [{row.nll.low:.4f}, {row.nll.high:.4f}]" in html
    lines = markdown(one)
    assert lines[0] == "|  | accuracy | NLL | ECE | NLL of λ* less its |"
    assert lines[-1].startswith("| ensemble, log-mean | ")
    rows = tuple(row for row in found.metrics.to_pylist() if row["task"] == "quiz")
    measured = MeasuredPoint("run", found.sweep, "λ*", rows, one.answer, tuple(lines))
    parent = SimpleNamespace(source="org/model", revision="abc", path=Path("model"))
    line = SimpleNamespace(lam_map="", method="linear")
    pair = SimpleNamespace(opened={"base": parent, "aligned": parent}, line=line, aligned_rows={})
    card = model_card(pair, {"base": "b", "aligned": "a"}, one.chosen.lam, "aligned", measured)
    assert "\n".join(["", *lines, ""]) in card


@pytest.mark.slow
def test_there_are_none_without_both_parents_or_where_the_temperature_is_arbitrary(run):
    assert [one.rivals for one in analyse(run, resamples=20, confidence="tokens").found.tasks] == [(), ()]
    run.unit("tokens", "quiz", "0", 0).unlink()
    other, quiz = sorted(analyse(run, resamples=20).found.tasks, key=lambda one: one.task)
    assert quiz.rivals == ()
    assert beside_table(quiz) is None
    assert len(other.rivals) == 4
