"""The tables of a small run directory become its metrics, and the tables in a terminal."""

import io
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from calibration import analyse
from calibration.analyse import write_metrics
from calibration.metrics.predictions import predictions
from calibration.scores.documents import continuations_of, documents_of
from calibration.scores.per_document import choice_scores, continuation_scores
from calibration.terminal.tables import render
from calibration.uncertainty.resample import draw
from contract import schemas
from contract.commit import commit_json, commit_table, read_identity
from contract.errors import InputError, LambdasweepError
from contract.rundir import RunDir
from tests.support.rows import one_row, rows_of
from tests.support.tables import SWEEP, add_quarantine, add_scores, add_task

NAN, INF = float("nan"), float("inf")


def summarise(run):
    """Return the metrics with few resamples, which is quick; their number changes no value."""
    return analyse.analyse(run, resamples=20).metrics


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    """Return the metrics of a quiz at both parents and between them, with resamples enough for intervals."""
    run = RunDir(tmp_path_factory.mktemp("three") / "run")
    add_quiz(run, ["0", "0.5", "1"])
    return analyse.analyse(run, resamples=300).metrics


def values(table, task="quiz", lam="0", split="all"):
    """Return {(metric, confidence): (value, n)} of one task, λ and split."""
    return {
        (row["metric"], row["confidence"]): (row["value"], row["n"])
        for row in rows_of(table, task=task, lam=lam, split=split)
    }


def text(metrics, width=80, **options):
    file = io.StringIO()  # the stream is no terminal, as for a pipe or a log
    console = Console(width=width, file=file)
    for table in render(metrics, **options):
        console.print(table)
    return file.getvalue()


# From tables to metrics


def test_the_three_confidences_by_hand(run):
    # The sums are −4, −3, −6; per token −2, −3, −1.5; per byte −1, −1.5, −3. Each predicts another choice.
    add_task(run, "quiz", [3], ["0"], gold=[2], sizes=[4, 2, 2])
    add_scores(run, "quiz", "0", {0: [-1.0, -3.0], 1: [-3.0], 2: [-1.0, -2.0, -1.0, -2.0]})
    found = values(summarise(run))

    def softmax(logits):
        return [math.exp(x) / sum(map(math.exp, logits)) for x in logits]

    expected = {"sum": [-4, -3, -6], "tokens": [-2, -3, -1.5], "bytes": [-1, -1.5, -3]}
    for confidence, logits in expected.items():
        p = softmax(logits)
        right = float(confidence == "tokens")
        accuracy = {"sum": "acc", "tokens": "acc_tokens", "bytes": "acc_bytes"}[confidence]
        assert found[accuracy, confidence] == (right, 1)
        assert found["confidence", confidence] == (pytest.approx(max(p)), 1)
        assert found["overconfidence", confidence] == (pytest.approx(max(p) - right), 1)
        assert found["ece_width15", confidence] == (pytest.approx(abs(max(p) - right)), 1)
        assert found["ece_mass15", confidence] == (pytest.approx(abs(max(p) - right)), 1)
        assert found["brier", confidence] == (pytest.approx(p[0] ** 2 + p[1] ** 2 + (p[2] - 1) ** 2), 1)
        assert found["nll", confidence] == (pytest.approx(-math.log(p[2])), 1)
    expected = {"sum": 33 + 3 + 3, "tokens": 33, "bytes": 33}  # at λ = 0 there is no parent to differ from
    assert {name: sum(key[1] == name for key in found) for name in expected} == expected


def test_metrics_equal_a_loop_over_rows(run):
    rng = np.random.default_rng(11)
    counts = rng.integers(1, 7, 200).tolist()
    total = sum(counts)
    gold = [int(rng.integers(count)) for count in counts]
    sizes = rng.integers(1, 30, total).tolist()
    scores = {r: (-rng.exponential(2, rng.integers(1, 9))).astype(np.float32).tolist() for r in range(total)}
    add_task(run, "quiz", counts, ["0"], gold, sizes)
    cut = sum(counts[:70])  # there are two shards, and the second is written first
    add_scores(run, "quiz", "0", {r: scores[r] for r in range(cut, total)}, shard=1)
    add_scores(run, "quiz", "0", {r: scores[r] for r in range(cut)}, shard=0)
    found = values(summarise(run))

    divisors = {
        "sum": lambda r: 1,
        "tokens": lambda r: len(scores[r]),
        "bytes": lambda r: sizes[r],
    }
    for confidence, divisor in divisors.items():
        first, right, brier, nll, sure = 0, [], [], [], []
        for count, answer in zip(counts, gold, strict=True):
            logits = [math.fsum(scores[r]) / divisor(r) for r in range(first, first + count)]
            first += count
            p = [math.exp(x) / math.fsum(math.exp(y) for y in logits) for x in logits]
            right.append(max(range(count), key=lambda c, p=p: p[c]) == answer)
            brier.append(sum((p[c] - (c == answer)) ** 2 for c in range(count)))
            nll.append(-math.log(p[answer]))
            sure.append(max(p))
        accuracy = {"sum": "acc", "tokens": "acc_tokens", "bytes": "acc_bytes"}[confidence]
        width = 0.0
        for b in range(15):
            members = [i for i in range(200) if b / 15 < sure[i] <= (b + 1) / 15]
            width += abs(sum(sure[i] - right[i] for i in members)) / 200
        assert found[accuracy, confidence] == (sum(right) / 200, 200)
        assert found["brier", confidence][0] == pytest.approx(sum(brier) / 200, rel=1e-12)
        assert found["nll", confidence][0] == pytest.approx(sum(nll) / 200, rel=1e-12)
        assert found["confidence", confidence][0] == pytest.approx(sum(sure) / 200, rel=1e-12)
        assert found["overconfidence", confidence][0] == pytest.approx((sum(sure) - sum(right)) / 200, rel=1e-12)
        assert found["ece_width15", confidence][0] == pytest.approx(width, rel=1e-10)
        assert found["ece_mass15", confidence][0] is not None


def test_scores_are_summed_in_float64(run):
    add_task(run, "quiz", [2], ["0"])
    add_scores(run, "quiz", "0", {0: [-(2.0**24)], 1: [-(2.0**24), -1.0]})  # float32 would lose the −1
    assert values(summarise(run))["confidence", "sum"][0] == pytest.approx(1 / (1 + math.exp(-1)))


def test_equal_choices_tie_also_after_others_of_great_or_infinite_score(run):
    add_task(run, "quiz", [2, 2], ["0"], gold=[0, 0])
    add_scores(run, "quiz", "0", {0: [-1e6, -0.1], 1: [-INF, -1.0], 2: [-0.1, -0.3], 3: [-0.1, -0.3]})
    found = values(summarise(run))
    assert found["acc", "sum"] == (1.0, 2)  # the first of equals is predicted
    assert found["confidence", "sum"] == (0.75, 2)


def test_minus_infinity_is_probability_0(run):
    add_task(run, "quiz", [2, 3], ["0"], gold=[0, 1])
    add_scores(run, "quiz", "0", {0: [-1.0, -INF], 1: [-9.0], 2: [-1.0], 3: [-1.0], 4: [-INF]})
    found = values(summarise(run))
    assert found["nll", "sum"] == (INF, 2)
    assert found["brier", "sum"] == (pytest.approx((2.0 + 0.5) / 2), 2)
    assert found["acc", "sum"] == (0.0, 2)
    assert found["confidence", "bytes"] == (0.75, 2)


def test_documents_that_are_not_complete_are_left_out_and_counted(run):
    add_task(run, "quiz", [2, 3, 2, 2, 2], ["0"])
    # doc0 is complete, doc1 is quarantined in part, doc2 is not scored, doc3 has no probability at all, and doc4 is
    # scored in part.
    add_scores(run, "quiz", "0", {0: [-1.0], 1: [-1.0], 2: [-1.0], 4: [-1.0]}, shard=0)
    add_scores(run, "quiz", "0", {7: [-INF], 8: [-INF], 10: [-1.0]}, shard=2)
    add_quarantine(run, "quiz", "0", [3])
    found = values(summarise(run))
    assert found["acc", "sum"] == (1.0, 1)
    assert found["brier", "tokens"] == (0.5, 1)
    assert found["docs_quarantined", "sum"] == (1.0, 5)
    assert found["docs_unfinished", "sum"] == (2.0, 5)
    assert found["docs_undefined", "sum"] == (1.0, 5)


def test_a_document_with_a_single_choice_counts_as_right_among_others(run):
    add_task(run, "quiz", [1, 2], ["0"], gold=[0, 1])
    add_scores(run, "quiz", "0", {0: [-5.0], 1: [-1.0], 2: [-1.0]})
    found = values(summarise(run))
    assert found["acc", "sum"] == (0.5, 2)
    assert found["brier", "sum"] == (0.25, 2)
    assert found["nll", "sum"] == (pytest.approx(math.log(2) / 2), 2)


def test_a_point_with_nothing_committed_has_no_rows(run):
    add_task(run, "quiz", [2], ["0", "0.5", "1"])
    add_scores(run, "quiz", "0.5", {0: [-1.0], 1: [-2.0]})
    assert set(summarise(run)["lam"].to_pylist()) == {Decimal("0.5")}


def test_a_point_off_the_plan_has_no_rows(run):
    add_task(run, "quiz", [2], ["0"])
    add_scores(run, "quiz", "0.5", {0: [-1.0], 1: [-2.0]})
    table = summarise(run)
    assert table.num_rows == 0
    assert table.schema.equals(schemas.METRICS)


@pytest.mark.parametrize("documents", [[2, 2], []])
def test_no_complete_document_means_no_value(run, documents):
    add_task(run, "quiz", documents, ["0"])
    add_scores(run, "quiz", "0", {})
    found = values(summarise(run))
    for confidence in ("sum", "tokens", "bytes"):
        for metric in ("ece_width15", "ece_mass15", "brier", "nll", "confidence", "overconfidence"):
            assert found[metric, confidence] == (None, 0)
    assert found["acc_tokens", "tokens"] == (None, 0)
    assert found["docs_unfinished", "sum"] == (len(documents), len(documents))


def test_a_point_where_all_is_quarantined_says_so(run):
    add_task(run, "quiz", [2, 2], ["0"])
    add_quarantine(run, "quiz", "0", [0, 2])
    found = values(summarise(run))
    assert found["acc", "sum"] == (None, 0)
    assert found["docs_quarantined", "sum"] == (2.0, 2)


# Continuation tasks


def test_a_continuation_task_has_accuracy_likelihood_and_perplexity_only(run):
    add_task(run, "words", [1] * 5, ["0"], continuations=[[5, 6], [7], [5, 7], [8], [9]])
    # The rows are in no order, and document 4 is not there.
    scores = {3: [-4.0], 0: [-1.0, -2.0], 1: [-0.5], 2: [-0.5, -0.25]}
    ranks = {0: [1, 1], 1: [2], 2: [1, None], 3: [1]}
    add_scores(run, "words", "0", scores, ranks=ranks)
    nll = (3.0 + 0.5 + 0.75 + 4.0) / 4
    assert values(summarise(run), "words") == {
        ("acc", "sum"): (pytest.approx(2 / 3), 3),
        ("nll", "sum"): (nll, 4),
        ("perplexity", "sum"): (pytest.approx(math.exp(nll)), 4),
        ("bits_per_byte", "sum"): (pytest.approx(nll / math.log(2)), 4),  # each token is one byte
        ("token_ece_width15", "sum"): (
            pytest.approx(0.2),
            4,
        ),  # five tokens are known, all at probability 1, and one of them is missed
        ("docs_quarantined", "sum"): (0.0, 5),
        ("docs_unfinished", "sum"): (1.0, 5),
        ("docs_undefined", "sum"): (0.0, 5),
    }


def test_continuations_come_in_the_order_of_the_documents(run):
    add_task(run, "words", [1] * 5, ["0"])
    scores = {3: [-4.0], 0: [-1.0], 1: [-2.0], 2: [-3.0]}
    add_scores(run, "words", "0", scores, ranks={3: [2], 0: [1], 1: [1]})
    requests = pq.read_table(run.requests("words"))
    made = continuation_scores(
        documents_of(requests, "here"),
        continuations_of(requests),
        run.tokens("words", "0"),
        run.quarantine("words", "0"),
        "0",
        "here",
    )
    assert made.document.tolist() == [0, 1, 2, 3]
    assert made.logprob.tolist() == [-1, -2, -3, -4]
    assert made.greedy.tolist() == [True, True, False, False]
    assert made.decided.tolist() == [True, True, False, True]


def test_a_continuation_is_greedy_only_if_every_token_is(run):
    add_task(run, "words", [1, 1], ["0"], continuations=[[5, 6, 7], [5, 6]])
    add_scores(run, "words", "0", {0: [-1.0] * 3, 1: [-1.0] * 2}, ranks={0: [1, 2, 1], 1: [1, 1]})
    assert values(summarise(run), "words")["acc", "sum"] == (0.5, 2)


@pytest.mark.parametrize(
    ("ranks", "top1", "accuracy"),
    [
        ([None, None], [5, 6], (1.0, 1)),
        ([1, None], [None, 6], (1.0, 1)),
        ([1, None], [5, 7], (0.0, 1)),  # a missing rank does not hide a miss
        ([None, 2], [None, 8], (0.0, 1)),  # one miss decides, whatever the other token is
        ([None, None], [None, 9], (0.0, 1)),
        ([1, None], [5, None], (None, 0)),
        ([2, 1], [5, 6], (0.0, 1)),  # the rank counts where there is one
    ],
)
def test_the_top_token_decides_where_the_rank_is_missing(run, ranks, top1, accuracy):
    add_task(run, "words", [1, 1], ["0"], continuations=[[4], [5, 6]])
    add_scores(run, "words", "0", {1: [-1.0, -1.0]}, ranks={1: ranks}, top1={1: top1})
    assert values(summarise(run), "words")["acc", "sum"] == accuracy


def test_a_continuation_without_ranks_has_no_accuracy(run):
    add_task(run, "words", [1], ["0"])
    add_scores(run, "words", "0", {0: [-1.0]})
    found = values(summarise(run), "words")
    assert (found["acc", "sum"], found["nll", "sum"]) == ((None, 0), (1.0, 1))


@pytest.mark.parametrize(("logprob", "nll", "perplexity"), [(-INF, INF, INF), (-800.0, 800.0, None)])
def test_perplexity_is_infinite_or_absent_where_it_must(run, logprob, nll, perplexity):
    add_task(run, "words", [1], ["0"])
    add_scores(run, "words", "0", {0: [logprob]})
    found = values(summarise(run), "words")
    assert (found["nll", "sum"], found["perplexity", "sum"]) == ((nll, 1), (perplexity, 1))


def test_a_continuation_task_with_nothing_complete_has_no_value(run):
    add_task(run, "words", [1], ["0"])
    add_quarantine(run, "words", "0", [0])
    found = values(summarise(run), "words")
    assert [found[metric, "sum"] for metric in ("acc", "nll", "perplexity")] == [(None, 0)] * 3
    assert found["docs_quarantined", "sum"] == (1.0, 1)


# Uncertainty, splits and parents


def add_quiz(run, lambdas, documents=60, seed=5, sharpness=1.0):
    """Write a choice task of documents with four choices of two tokens, whose answers get surer with λ."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 4, documents).tolist()
    add_task(run, "quiz", [4] * documents, lambdas, gold, continuations=[[5, 6]] * 4 * documents)
    truth = rng.normal(0, 1, (documents, 4)) + 1.5 * (np.arange(4) == np.array(gold)[:, None])
    for lam in lambdas:
        z = (truth + rng.normal(0, 0.5, truth.shape)) * (1 + 2 * float(lam)) * sharpness
        half = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) - 0.5).ravel() / 2
        rows = {r: [float(x), float(x)] for r, x in enumerate(half)}
        add_scores(run, "quiz", lam, rows, ranks={r: [1, 2] for r in rows})


def test_every_value_has_an_interval_and_the_number_of_its_resamples(of_three):
    for row in rows_of(of_three, lam=Decimal("0.5")):
        unvarying = row["metric"] in (
            "temperature",
            "ece_floor15",
            "ks",
            "ks_p",
            "docs_quarantined",
            "docs_unfinished",
            "docs_undefined",
        )
        if row["metric"] != "ks_p":  # the metric is absent where few errors are expected
            assert row["value"] is not None, row
        assert (row["ci_low"] is None) == (row["ci_high"] is None) == unvarying, row
        # The interval of accuracy is exact.
        assert (row["resamples"] is None) == (unvarying or row["metric"] == "mce15"), row
        if not unvarying:
            assert row["ci_low"] <= row["ci_high"]
            assert row["resamples"] in (300, None)
            assert row["n"] == {"all": 60, "select": 30, "report": 30}[row["split"]]
    acc = one_row(of_three, lam=Decimal("0.5"), metric="acc", split="all")
    error = 1.96 * math.sqrt(acc["value"] * (1 - acc["value"]) / 60)
    assert acc["ci_high"] - acc["ci_low"] == pytest.approx(2 * error, rel=0.2)


def test_halves_make_up_the_whole(run):
    add_quiz(run, ["0", "1"])
    table = summarise(run)
    for metric in ("acc", "nll", "brier", "confidence", "option_mass", "overconfidence_scaled"):
        values_ = [
            one_row(table, lam=1, metric=metric, confidence="sum", split=split)["value"]
            for split in ("all", "select", "report")
        ]
        assert values_[0] == pytest.approx((values_[1] + values_[2]) / 2, abs=1e-12)
        assert values_[1] != values_[2]


def test_a_split_is_of_the_documents_that_were_drawn_for_it(run):
    add_quiz(run, ["0"])
    requests = pq.read_table(run.requests("quiz"))
    tables = run.tokens("quiz", "0"), run.quarantine("quiz", "0")
    scores = choice_scores(documents_of(requests, "here"), *tables, "0", "here")
    made = predictions(scores.logits["bytes"], scores.gold)
    in_report = draw("quiz", 60, 20).in_report
    found = summarise(run)
    for split, mine in (("report", in_report), ("select", ~in_report)):
        where = {"confidence": "bytes", "split": split}
        assert one_row(found, metric="nll", **where)["value"] == pytest.approx(made.nll[mine].mean(), rel=1e-12)
        auroc = roc_auc_score(made.correct[mine], made.confidence[mine])
        assert one_row(found, metric="auroc", **where)["value"] == pytest.approx(auroc, rel=1e-12)


def test_differences_are_paired(of_three):
    table = of_three
    middle = Decimal("0.5")
    for metric, parent in (("nll", "base"), ("ece_mass15", "aligned"), ("auroc", "base"), ("smece", "base")):
        for split in ("all", "select", "report"):
            where = {"confidence": "sum", "split": split}
            here = one_row(table, lam=middle, metric=metric, **where)
            there = one_row(table, lam=int(parent == "aligned"), metric=metric, **where)
            difference = one_row(table, lam=middle, metric=f"{metric}_vs_{parent}", **where)
            assert difference["value"] == pytest.approx(here["value"] - there["value"], abs=1e-12)
    where = {"confidence": "sum", "split": "all"}
    apart = [one_row(table, lam=lam, metric="nll", **where) for lam in (middle, 0)]
    paired = one_row(table, lam=middle, metric="nll_vs_base", **where)
    unpaired = math.hypot(*(row["ci_high"] - row["ci_low"] for row in apart))
    assert paired["ci_high"] - paired["ci_low"] < 0.9 * unpaired
    assert not rows_of(table, lam=0, metric="acc_vs_base")
    assert not rows_of(table, metric="agreement_base_vs_aligned")


@pytest.mark.slow
def test_a_difference_is_of_the_documents_that_both_have(run):
    add_quiz(run, ["0", "0.5"])
    for lam in ("0.5", "0"):
        path = run.unit("tokens", "quiz", lam, 0)
        commit_table(path, pq.read_table(path).slice(0, 160))  # accuracy: 40 of 60 documents
        if lam == "0.5":
            found = values(summarise(run), lam="0.5")
    cut = values(summarise(run), lam="0")
    for metric in ("acc", "nll", "ece_width15"):
        value, n = found[f"{metric}_vs_base", "sum"]
        assert n == 40
        assert value == pytest.approx(found[metric, "sum"][0] - cut[metric, "sum"][0], abs=1e-12)
    assert found["agreement_base", "sum"][1] == 40
    assert found["docs_unfinished", "sum"][0] == 20


def test_agreement_option_mass_and_tokens_by_hand(run):
    add_task(run, "quiz", [2, 2], ["0", "1"], gold=[0, 1], continuations=[[5], [6], [7], [8, 9]])
    add_scores(run, "quiz", "0", {0: [math.log(0.5)], 1: [math.log(0.25)], 2: [math.log(0.1)], 3: [math.log(0.2), 0.0]})
    # At λ = 1 the first document is answered otherwise. The first of the right choices' tokens 5, 8, 9 is the most likely
    # one.
    scores = {0: [math.log(0.1)], 1: [math.log(0.3)], 2: [math.log(0.09)], 3: [math.log(0.2), math.log(0.5)]}
    add_scores(run, "quiz", "1", scores, top1={0: [5], 1: [5], 2: [0], 3: [4, 4]})
    table = summarise(run)
    found = values(table, lam="1")
    assert found["agreement_base", "sum"] == (0.5, 2)
    assert found["agreement_aligned", "bytes"] == (1.0, 2)
    assert values(table)["option_mass", "sum"] == (pytest.approx((0.75 + 0.3) / 2), 2)
    # All top-1 probabilities are 1 in these tables.
    assert found["token_ece_width15", "sum"] == (pytest.approx(2 / 3), 2)
    assert values(table)["token_ece_width15", "sum"] == (None, 0)  # the engine tells nothing about it


def test_scaling_is_fitted_on_the_other_half(run):
    add_quiz(run, ["0"], documents=400, sharpness=2.0)
    table = summarise(run)
    for split in ("select", "report"):
        assert one_row(table, metric="temperature", confidence="sum", split=split)["value"] > 1.2
    where = {"confidence": "sum", "split": "all"}
    for metric in ("nll", "ece_width15"):
        assert (
            one_row(table, metric=f"{metric}_scaled", **where)["value"]
            < one_row(table, metric=metric, **where)["value"]
        )
    assert not rows_of(table, metric="temperature", split="all")


def test_matched_to_its_own_accuracy_nothing_changes(run):
    add_quiz(run, ["0", "1"])
    table = summarise(run)
    where = {"confidence": "tokens", "split": "report"}
    own, matched = (one_row(table, lam=1, metric=f"ece_width15{tail}", **where) for tail in ("", "_matched"))
    difference = one_row(table, lam=0, metric="ece_width15_matched_vs_aligned", **where)
    other = one_row(table, lam=0, metric="ece_width15_matched", **where)
    assert matched["value"] == pytest.approx(own["value"], abs=1e-12)
    assert difference["value"] == pytest.approx(other["value"] - own["value"], abs=1e-12)
    assert difference["ci_low"] < difference["ci_high"]


def test_without_parents_nothing_is_compared(run):
    add_quiz(run, ["0.25", "0.5"])
    table = summarise(run)
    assert not [row for row in table.to_pylist() if "_vs_" in row["metric"] or "agreement" in row["metric"]]
    assert not rows_of(table, metric="ece_width15_matched")
    assert values(table, lam="0.25")["acc", "sum"][1] == 60


@pytest.mark.parametrize("documents", [[3], [2, 2], [1, 2, 3], [1, 2], [1]])
@pytest.mark.parametrize("right", [True, False])
def test_degenerate_tasks_have_numbers_or_nulls(run, documents, right):
    gold = [0 if right else count - 1 for count in documents]
    add_task(run, "quiz", documents, ["0", "0.5", "1"], gold)
    for lam in ("0", "0.5"):
        add_scores(run, "quiz", lam, {r: [-1.0 - (r > 0 and r % 2)] for r in range(sum(documents))})
    analysis = analyse.analyse(run, resamples=20)
    for row in analysis.metrics.to_pylist():
        numbers = [row[name] for name in ("value", "ci_low", "ci_high") if row[name] is not None]
        assert not any(math.isnan(number) for number in numbers), row
        assert row["ci_low"] is None or row["n"] > 1
        if row["n"] == 0 and "docs" not in row["metric"]:
            assert row["value"] is None
    json.dumps(analysis.found.to_json(), allow_nan=False)


@pytest.mark.slow
def test_the_number_of_cores_changes_nothing(run, monkeypatch):
    add_quiz(run, ["0", "0.4", "0.6", "1"])
    monkeypatch.setattr("calibration.task_at_lambda.cores", lambda: 1)
    alone = analyse.analyse(run, resamples=50)
    monkeypatch.setattr("calibration.task_at_lambda.cores", lambda: 4)
    together = analyse.analyse(run, resamples=50)
    assert alone.metrics.equals(together.metrics)
    assert alone.found == together.found
    assert not analyse.analyse(run, resamples=50, seed=1).metrics.equals(alone.metrics)


def test_a_frontier_is_of_the_finished_points_of_the_choice_tasks(run):
    add_quiz(run, ["0", "0.5", "1"])
    add_task(run, "words", [1] * 5, ["0"])
    add_scores(run, "words", "0", {r: [-1.0] for r in range(5)})
    path = run.unit("tokens", "quiz", "0.5", 0)
    commit_table(path, pq.read_table(path).slice(0, 160))  # the other documents are still to be scored
    analysis = analyse.analyse(run, resamples=50)
    (found,) = analysis.found.tasks
    assert (found.task, [point.lam for point in found.points]) == ("quiz", ["0", "1"])
    assert {point.documents for point in found.points} == {60}
    for point in found.points:
        for metric, value in (("ece_width15", point.error), ("acc", point.accuracy), ("nll", point.nll)):
            row = one_row(
                analysis.metrics, task="quiz", lam=int(point.lam), metric=metric, confidence="sum", split="all"
            )
            assert (value.value, value.low, value.high) == (row["value"], row["ci_low"], row["ci_high"])
    assert found.chosen.lam == "0"  # its gains are wider by what the choice flatters
    gain, flattery = found.points[0].gains["aligned"], found.optimism
    for metric, value, below, above in (
        ("ece_width15", gain.error, 0, 0),
        ("acc", gain.accuracy, flattery["accuracy"], 0),
        ("nll", gain.nll, 0, flattery["nll"]),
    ):
        row = one_row(analysis.metrics, lam=0, metric=f"{metric}_vs_aligned", confidence="sum", split="all")
        assert (value.value, value.low, value.high) == (row["value"], row["ci_low"] - below, row["ci_high"] + above)
    scaled = one_row(analysis.metrics, lam=1, metric="nll_scaled", confidence="sum", split="all")
    assert found.scaled["nll"].value == pytest.approx(scaled["value"])
    assert found.held_out.documents == 30
    assert found.answer.startswith("λ = ")


def test_accuracy_can_be_held_against_another_error(run):
    add_quiz(run, ["0", "1"])
    analysis = analyse.analyse(run, resamples=300, error="smece", confidence="bytes")
    (found,) = analysis.found.tasks
    point = found.points[1]
    # The temperature of this confidence is arbitrary, so its NLL is that after temperature scaling.
    for metric, value in (("acc_bytes", point.accuracy), ("nll_floored_scaled", point.nll), ("smece", point.error)):
        row = one_row(analysis.metrics, lam=1, metric=metric, confidence="bytes", split="all")
        assert (value.value, value.low) == (row["value"], row["ci_low"])
    assert "smooth ECE" in found.answer
    with pytest.raises(InputError, match="ece_width15"):
        analyse.analyse(run, error="nll")


# The table as a whole


def test_rows_are_ordered(run):
    lambdas = ["1", "0.5", "-1", "10", "2"]
    add_task(run, "a", [2, 2], lambdas)
    add_task(run, "words", [1], lambdas)
    for lam in lambdas:
        add_scores(run, "a", lam, {0: [-1.0], 1: [-2.0], 2: [-1.0], 3: [-2.0]})
        add_scores(run, "words", lam, {0: [-1.0]})
    table = summarise(run)
    assert table.schema.equals(schemas.METRICS)
    rows = table.to_pylist()
    assert list(dict.fromkeys((row["task"], str(row["lam"].normalize())) for row in rows)) == [
        (task, lam) for task in ("a", "words") for lam in ("-1", "0.5", "1", "2", "1E+1")
    ]
    first = [
        (row["metric"], row["confidence"], row["split"]) for row in rows if row["lam"] == -1 and row["task"] == "a"
    ]
    assert first == sorted(
        first, key=lambda row: (row[0], "sum tokens bytes".index(row[1]), "all select".find(row[2]) % 99)
    )
    assert len(first) == len(set(first))
    every = [(confidence, split) for confidence in ("sum", "tokens", "bytes") for split in ("all", "select", "report")]
    for metric in ("brier", "confidence", "ece_mass15", "ece_width15", "nll", "overconfidence", "nll_vs_aligned"):
        assert [row[1:] for row in first if row[0] == metric] == every
    for metric, confidence in {"acc": "sum", "acc_tokens": "tokens", "acc_bytes": "bytes"}.items():
        assert [row[1:] for row in first if row[0] == metric] == [(confidence, split) for _, split in every[:3]]
    for metric in ("docs_quarantined", "docs_undefined", "docs_unfinished"):
        assert [row[1:] for row in first if row[0] == metric] == [("sum", "all")]


def test_tasks_come_in_the_order_of_the_plan(run):
    for task in ("a", "b"):
        add_task(run, task, [2], ["0"])
        add_scores(run, task, "0", {0: [-1.0], 1: [-2.0]})
    tasks = run.plan()["tasks"]
    run.plan_json.write_text(json.dumps({"tasks": {"b": tasks["b"], "a": tasks["a"]}}))
    assert list(dict.fromkeys(summarise(run)["task"].to_pylist())) == ["b", "a"]


def test_metrics_are_committed_with_what_they_were_computed_from_and_the_same_bytes(run):
    add_task(run, "quiz", [2], ["0"])
    add_scores(run, "quiz", "0", {0: [-1.0], 1: [-2.0]})
    table = write_metrics(run)
    first = run.metrics_parquet.read_bytes()
    assert pq.read_table(run.metrics_parquet).equals(table)
    assert table.equals(summarise(run))
    assert read_identity(run.metrics_parquet) == {
        "schema": schemas.SCHEMA_VERSION,
        "base": "b0",
        "aligned": "a1",
        "line": SWEEP["line"],
        "engine": {"dtype": "float32"},
        "versions": {"vllm": "0.32.0"},
    }
    commit_json(run.sweep_json, json.loads(json.dumps(SWEEP).replace("/here", "/there")))
    write_metrics(run)
    assert run.metrics_parquet.read_bytes() == first


def test_a_directory_without_a_run_is_refused(run):
    with pytest.raises(InputError, match="does not exist"):
        summarise(run)


# Damage


@pytest.mark.parametrize("damage", [NAN, INF, None, 0.01, 6993.0])
@pytest.mark.parametrize("documents", [[2], [1, 1]])
def test_a_score_that_is_no_log_probability_is_refused(run, damage, documents):
    add_task(run, "quiz", documents, ["0", "0.5"])
    add_scores(run, "quiz", "0", {0: [-1.0], 1: [-1.0]}, ranks={0: [1], 1: [1]})
    add_scores(run, "quiz", "0.5", {0: [-1.0], 1: [-1.0, damage, -1.0]}, ranks={0: [1], 1: [1, 1, 1]})
    with pytest.raises(LambdasweepError, match="NaN") as caught:
        summarise(run)
    for name in (str(run.root), "'quiz'", "λ = 0.5:", "request 1 "):
        assert name in str(caught.value)


def test_damaged_scores_are_refused(run):
    add_task(run, "quiz", [2], ["0"])
    good = {0: [-1.0], 1: [-2.0]}
    damages = {
        "scored twice": lambda: add_scores(run, "quiz", "0", good, shard=1),
        "request 2 is not in the request table": lambda: add_scores(run, "quiz", "0", {2: [-1.0]}, shard=1),
        "request -1 is not in the request table": lambda: add_scores(run, "quiz", "0", {-1: [-1.0]}, shard=1),
        "request 0 is scored on no tokens": lambda: add_scores(run, "quiz", "0", {0: [], 1: [-1.0]}),
        "belongs to another λ": lambda: add_scores(run, "quiz", "0", good, inside="0.5"),
        "request 9 is not in the request table": lambda: add_quarantine(run, "quiz", "0", [9]),
    }
    for message, damage in damages.items():
        add_scores(run, "quiz", "0", good)
        run.unit("tokens", "quiz", "0", 1).unlink(missing_ok=True)
        summarise(run)
        damage()
        with pytest.raises(LambdasweepError, match=message) as caught:
            summarise(run)
        assert "λ = 0:" in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "columns", "message"),
    [
        ([-1.0, -1.0], {"ranks": {0: [1]}}, "differ in length"),
        ([-1.0, -1.0], {"top1": {0: [1]}}, "differ in length"),
        ([-1.0], {}, "more or fewer tokens than its continuation"),
    ],
)
def test_continuation_rows_of_another_length_are_refused(run, scores, columns, message):
    add_task(run, "words", [1], ["0"], continuations=[[5, 6]])
    add_scores(run, "words", "0", {0: scores}, **columns)
    with pytest.raises(LambdasweepError, match=message):
        summarise(run)


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("request_id", [0, 1, 3, 2], "row number"),
        ("doc_id", ["a", "b", "a", "b"], "not next to each other"),
        ("continuation_bytes", [1, 1, 0, 1], "request 2 has a continuation of no bytes"),
        ("is_gold", [True, False, False, False], "document 'b' has 0 gold choices"),
        ("is_gold", [True, False, True, True], "document 'b' has 2 gold choices"),
    ],
)
def test_a_damaged_request_table_is_refused(run, column, content, message):
    add_task(run, "quiz", [2, 2], ["0"])
    add_scores(run, "quiz", "0", {0: [-1.0]})
    table = pq.read_table(run.requests("quiz")).set_column(1, "doc_id", pa.array(["a", "a", "b", "b"]))
    place = table.schema.get_field_index(column)
    commit_table(run.requests("quiz"), table.set_column(place, column, pa.array(content)))
    with pytest.raises(LambdasweepError, match=message) as caught:
        summarise(run)
    assert str(run.root) in str(caught.value)


def test_a_missing_request_table_is_named(run):
    add_task(run, "quiz", [2], ["0"])
    add_scores(run, "quiz", "0", {0: [-1.0]})
    run.requests("quiz").unlink()
    with pytest.raises(LambdasweepError, match=r"task=quiz\.parquet is missing"):
        summarise(run)


# In the terminal


def metric_rows(task, lam, n=100, left_out=(0, 0, 0), confidence="sum", **metrics):
    reasons = dict(zip(("docs_quarantined", "docs_unfinished", "docs_undefined"), left_out, strict=True))
    rows = [(metric, confidence, value, n) for metric, value in metrics.items()]
    rows += [(metric, "sum", float(value), n + sum(left_out)) for metric, value in reasons.items()]
    return [
        {
            "task": task,
            **schemas.place(lam),
            "metric": metric,
            "confidence": name,
            "split": "all",
            "value": value,
            "n": n,
        }
        for metric, name, value, n in rows
    ]


def choice_rows(task, lam, acc, ece=0.1, brier=0.5, nll=1.0, over=0.05, accuracy="acc", **options):
    measured = {accuracy: acc, "ece_width15": ece, "brier": brier, "nll": nll, "overconfidence": over}
    return metric_rows(task, lam, **measured, **options)


def as_table(*rows):
    return pa.Table.from_pylist([row for some in rows for row in some], schema=schemas.METRICS)


def line_of(printed, lam):
    """Return the words of a row. A note under the table may begin with a λ, too, but has nothing behind it."""
    (line,) = [line for line in printed.splitlines() if line.split()[:1] == [lam] and line.split()[1:]]
    return line.split()


def test_a_task_prints_in_plain_text():
    metrics = as_table(
        choice_rows("quiz", "1", 0.61, 0.21, 0.8, 1.9, 0.2),
        choice_rows("quiz", "0", 0.5, 0.05, 0.7, 1.25, -0.03),
        choice_rows("quiz", "0.5", 0.62, 0.04, 0.6, 1.5, 0.03),
    )
    assert [line.rstrip() for line in text(metrics, stars={"quiz": "0.5", "other": "1"}).splitlines()] == [
        "quiz",
        "",
        "   λ            accuracy      ECE    Brier      NLL  conf−acc  docs",
        " ──────────────────────────────────────────────────────────────────",
        "   0  base        0.5000   0.0500   0.7000  1.2500*  -0.0300*   100",
        " 0.5  λ*         0.6200*  0.0400*  0.6000*   1.5000  +0.0300*   100",
        "   1  aligned     0.6100   0.2100   0.8000   1.9000   +0.2000   100",
        "",
        "*: best of its column, by whatever little; λ*: lowest NLL among λs",
        "of nearly the best accuracy, as the answer below says",
        "confidence: softmax over the choices of the summed log-probabilities",
        "(sum)",
        "ECE: 15 bins of equal width; Brier: in [0, 2]; NLL: nats",
    ]


def test_one_point_of_a_table_is_marked_and_it_is_the_answers():
    metrics = as_table(
        choice_rows("quiz", "0", 0.6, nll=1.3),
        choice_rows("quiz", "1", 0.6, nll=1.2),
        choice_rows("quiz", "2", 0.7, nll=1.4),
    )
    printed = text(metrics, stars={"quiz": "1"})
    assert line_of(printed, "1")[1:3] == ["aligned,", "λ*"]
    assert line_of(printed, "0")[1:3] == ["base", "0.6000"]
    assert line_of(printed, "2")[1:2] == ["0.7000*"]
    assert "λ*" not in text(metrics)


def test_a_partial_point_competes_for_nothing():
    metrics = as_table(
        choice_rows("quiz", "0", 0.6, 0.2, 0.6, 1.1, 0.2),
        choice_rows("quiz", "0.5", 1.0, 0.0, 0.0, 0.0, 0.0, n=3, left_out=(0, 97, 0)),
    )
    printed = text(metrics)
    assert line_of(printed, "0") == [
        "0",
        "base",
        "0.6000*",
        "0.2000*",
        "0.6000*",
        "1.1000*",
        "+0.2000*",
        "100",
    ]
    assert line_of(printed, "0.5") == ["0.5", "partial", "1.0000", "0.0000", "0.0000", "0.0000", "+0.0000", "3"]
    assert "left out: 97 of 100 documents at λ 0.5: not scored yet" in printed
    assert "not compared with the others" in " ".join(printed.split())


def test_missing_values_print_as_a_dash_and_infinite_ones_as_inf():
    metrics = as_table(
        choice_rows("quiz", "0", None, None, None, None, None, n=0), choice_rows("quiz", "1", 0.5, nll=INF)
    )
    printed = text(metrics)
    assert line_of(printed, "0") == ["0", "base", "–", "–", "–", "–", "–", "0"]
    assert line_of(printed, "1")[5] == "inf*"
    assert line_of(printed, "1")[1] == "aligned"
    assert "best of its column" in text(as_table(choice_rows("quiz", "0", None, n=0)))


def test_what_rounds_to_zero_has_no_minus(run):
    assert line_of(text(as_table(choice_rows("quiz", "0", 0.5, over=-1e-17))), "0")[-2] == "+0.0000*"
    add_task(run, "words", [1], ["0"])
    add_scores(run, "words", "0", {0: [0.0]})
    assert math.copysign(1, values(summarise(run), "words")["nll", "sum"][0]) == 1


def test_a_lambda_that_is_compared_with_none_is_best_of_nothing():
    metrics = as_table(choice_rows("quiz", "0", 0.5), choice_rows("quiz", "0.5", 0.9), choice_rows("quiz", "1", 0.6))
    assert "0.9000*" in text(metrics)
    marked = text(metrics, left_out={"quiz": ("0.5",)})
    assert "0.6000*" in marked
    assert "0.9000*" not in marked
    assert "apart" in line_of(marked, "0.5")


def test_left_out_documents_are_counted_by_reason():
    metrics = as_table(
        choice_rows("quiz", "0", 0.5, left_out=(2, 0, 0), n=98),
        choice_rows("quiz", "0.5", 0.5, left_out=(1, 0, 3), n=96),
        *[choice_rows("full", lam, 0.5, left_out=(lam == "1", 0, 0), n=100 - (lam == "1")) for lam in "012"],
        *[choice_rows("many", lam, 0.5, left_out=(int(lam), 0, 0), n=100 - int(lam)) for lam in "01234"],
        choice_rows("whole", "0", 0.5),
    )
    quiz, full, many, whole = (
        text(metrics.filter(pa.compute.equal(metrics["task"], t))) for t in metrics["task"].unique()
    )
    assert "left out: 1–2 of 100 documents at λ 0, 0.5: quarantined" in quiz
    assert "left out: 3 of 100 documents at λ 0.5: every choice has probability 0" in " ".join(quiz.split())
    assert line_of(quiz, "0")[-1] == "98"
    assert "left out: 1 of 100 documents at λ 1: quarantined" in full
    assert "left out: 1–4 of 100 documents at 4 of 5 λs: quarantined" in many
    assert "left out" not in whole


def test_another_confidence_can_be_shown():
    metrics = as_table(
        choice_rows("quiz", "0", 0.5),
        choice_rows("quiz", "0", 0.75, nll=2, accuracy="acc_bytes", confidence="bytes"),
        metric_rows(
            *("quiz", "0"),
            **{"ece_width15_scaled": 0.2, "brier_scaled": 0.6, "nll_scaled": 3, "overconfidence_scaled": 0.05},
            confidence="bytes",
        ),
    )
    assert line_of(text(metrics), "0")[2] == "0.5000*"
    assert "summed log-probabilities (sum)" in " ".join(text(metrics).split())
    printed = text(metrics, confidence="bytes")
    assert line_of(printed, "0")[2] == "0.7500*"
    # The value after temperature scaling.
    assert line_of(printed, "0")[3:7] == ["0.2000*", "0.6000*", "3.0000*", "+0.0500*"]
    assert "log-probabilities per byte (bytes)" in " ".join(printed.split())
    with pytest.raises(InputError, match="sum, tokens, bytes"):
        render(metrics, confidence="letters")


@pytest.mark.parametrize("confidence", ["sum", "tokens"])
def test_a_continuation_task_prints_what_it_has(confidence):
    metrics = as_table(
        metric_rows("words", "0", acc=0.5, nll=2.0, perplexity=7.38905609893065, bits_per_byte=0.75),
        metric_rows("words", "0.5", acc=0.7, nll=1.0, perplexity=2.718281828459045, bits_per_byte=0.375),
    )
    printed = text(metrics, confidence=confidence)
    assert printed.splitlines()[2].split() == ["λ", "accuracy", "NLL", "perplexity", "bits/byte", "docs"]
    assert line_of(printed, "0") == ["0", "base", "0.5000", "2.0000", "7.3891", "0.7500", "100"]
    assert line_of(printed, "0.5") == ["0.5", "0.7000*", "1.0000*", "2.7183*", "0.3750*", "100"]
    assert "softmax" not in printed
    assert "ranks" not in printed


def test_documents_without_ranks_are_mentioned(run):
    add_task(run, "words", [1, 1, 1], ["0"])
    add_scores(run, "words", "0", {r: [-1.0] for r in range(3)}, ranks={0: [1]})
    printed = text(summarise(run))
    assert "accuracy: documents with known token ranks, at least 1 at λ 0" in " ".join(printed.split())


def test_wide_numbers_and_names_fit_80_columns_whole():
    lams = ["-12.123456", "0", "0.333333", "1", "100000"]
    rows = [
        choice_rows("[bold]mmlu[/bold]", lam, 0.61234 + 1e-3 * (lam == "1"), nll=12.3456, n=14042, left_out=(0, 1, 0))
        for lam in lams
    ]
    rows[3] = choice_rows("[bold]mmlu[/bold]", "1", 0.7, nll=1.5, n=14043)
    printed = text(as_table(*rows), stars={"[bold]mmlu[/bold]": "1"})
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    assert printed.startswith("[bold]mmlu[/bold]")  # names are not taken for markup
    for word in (*lams, "base,", "partial", "aligned,", "λ*", "12.3456", "+0.0500", "14042"):
        assert word in printed.split()


def test_intervals_fit_100_columns_whole():
    rows = choice_rows("quiz", "-12.123456", 0.61234, 0.1, nll=12.3456, n=14042, left_out=(0, 1, 0))
    rows += choice_rows("quiz", "1", 1.0, nll=1.5, n=14043)
    rows += choice_rows("quiz", "2", 0.5, n=1)
    ends = {"acc": (0.60051, 0.62), "ece_width15": (0.0, 0.1), "brier": (0.1, 0.2)}
    for row in rows:
        if row["lam"] < 2 and row["metric"] in ends:
            row["ci_low"], row["ci_high"] = (0.9995, 1.0) if row["value"] == 1.0 else ends[row["metric"]]
    printed = text(as_table(rows), width=100, intervals=True)
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed
    assert line_of(printed, "-12.123456")[2:6] == ["0.6123", ".601–.620", "0.1000", ".000–.100"]
    assert line_of(printed, "1")[2:6] == ["1.0000*", "1.000–1.000", "0.1000*", ".000–.100"]
    assert line_of(printed, "2")[1:3] == ["0.5000", "0.1000*"]  # one document has no interval
    assert "95 %" not in text(as_table(rows))


def test_one_table_per_task_of_all_documents():
    rows = [*choice_rows("b", "0", 0.5), *choice_rows("a", "0", 0.5)]
    held_out = [{**row, "task": task, "split": "report", "value": 0.9} for row in rows for task in ("a", "c")]
    tables = render(as_table(rows, held_out))
    assert [str(table.title) for table in tables] == ["b", "a"]
    assert "0.9" not in text(as_table(rows, held_out))


@pytest.mark.slow
def test_the_table_of_a_whole_run(run):
    add_task(run, "quiz", [2, 2], ["0", "1"], gold=[0, 1])
    add_scores(run, "quiz", "0", {0: [-1.0], 1: [-2.0], 2: [-1.0], 3: [-2.0]})
    add_scores(run, "quiz", "1", {0: [-1.0], 1: [-2.0], 2: [-3.0], 3: [-2.0]})
    sure = 1 / (1 + math.exp(-1))
    printed = text(write_metrics(run))
    assert line_of(printed, "0")[1:4] == ["base", "0.5000", f"{sure - 0.5:.4f}*"]
    assert line_of(printed, "1")[1:4] == ["aligned", "1.0000*", f"{1 - sure:.4f}"]
