"""Cumulative differences, consistency bars, skill, bits per byte and E-AURC each agree with a second implementation."""

import csv
import io
import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import log_loss

from calibration.analyse import analyse
from calibration.metrics.binned import Layout
from calibration.metrics.cumulative import POINTS, cumulative, exceeded, walk_of
from calibration.metrics.ranked import Ranking
from calibration.metrics.reliability_bins import consistency
from calibration.metrics.skill import add_references, skill_metrics
from calibration.report.facts import gather
from calibration.report.figures import page_figures
from calibration.uncertainty.resample import ones
from contract.rundir import RunDir
from tests.support.tables import add_scores, add_task


def answers(documents, off=0.0, seed=0, decimals=9):
    """Return confidences, and answers that are right more seldom than these say, by `off`."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.uniform(0.3, 1, documents), decimals)
    return confidence, rng.uniform(size=documents) < confidence - off


def test_the_statistic_is_the_largest_sum_in_any_order_of_ties():
    for decimals, off, seed in ((9, 0.1, 0), (1, 0.1, 0), (1, 0.0, 1), (1, 0.0, 2), (1, 0.0, 3)):
        confidence, correct = answers(200, off, seed, decimals)
        pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True))
        total, largest = 0.0, 0.0
        for place, (sure, right) in enumerate(pairs):
            total += sure - right
            if place + 1 == len(pairs) or pairs[place + 1][0] != sure:
                largest = max(largest, abs(total))
        found = cumulative(confidence, correct)
        assert found.statistic == pytest.approx(largest / 200)
        order = np.random.default_rng(1).permutation(200)
        assert cumulative(confidence[order], correct[order]).statistic == pytest.approx(found.statistic)
        assert found.gap[-1] == pytest.approx(np.mean(confidence - correct))
        assert found.share[-1] == 1


def test_without_ties_it_is_the_distance_of_scipy_for_weighted_samples():
    """Return the distance of two distributions of confidence: one weighs documents by confidence, one by correctness."""
    confidence, correct = answers(300, 0.1)
    order = np.argsort(confidence)
    by_confidence = np.cumsum(confidence[order])
    by_correct = np.cumsum(correct[order])
    assert cumulative(confidence, correct).statistic == pytest.approx(np.abs(by_confidence - by_correct).max() / 300)


@pytest.mark.slow
def test_the_p_value_is_that_of_a_random_walk():
    rng = np.random.default_rng(0)
    heights = np.abs(rng.choice([-1.0, 1.0], (4000, 4000)).cumsum(axis=1)).max(axis=1) / math.sqrt(4000)
    for height in (0.6, 1.0, 1.5, 2.2414):
        assert exceeded(height) == pytest.approx((heights > height).mean(), abs=0.025)
    assert exceeded(2.2414) == pytest.approx(0.05, abs=1e-4)  # this is 2 P(|N| > 2.2414), by the reflection principle
    assert exceeded(2.2414) == pytest.approx(2 * scipy.stats.norm.sf(2.2414) * 2, abs=1e-4)
    assert (exceeded(0.0), exceeded(50.0)) == (1, pytest.approx(0, abs=1e-9))


def test_a_calibrated_model_is_seldom_called_wrong_and_an_overconfident_one_often():
    calibrated = [cumulative(*answers(400, seed=seed)).p_value for seed in range(300)]
    assert 0.01 < np.mean(np.array(calibrated) < 0.05) < 0.09
    off = [cumulative(*answers(400, 0.1, seed=seed)).p_value for seed in range(50)]
    assert np.mean(np.array(off) < 0.05) > 0.9


def test_the_worst_calibrated_models_have_no_p_value_that_rises_again():
    heights = [exceeded(height) for height in (0.99, 1, 2, 5, 10, 100, 1e3, 1e6)]
    assert heights == sorted(heights, reverse=True)
    assert 0 < exceeded(10) < 1e-22
    assert exceeded(1e6) == 0


def test_where_next_to_no_error_is_expected_there_is_no_p_value():
    correct = np.ones(500, bool)
    correct[0] = False
    found = cumulative(np.linspace(1 - 2e-4, 1 - 1e-5, 500), correct)
    assert found.statistic > 0
    assert math.isnan(found.p_value)
    assert walk_of(np.linspace(1 - 2e-4, 1 - 1e-5, 500), correct).band is None


def test_certain_answers_and_none():
    certain = np.ones(5)
    assert cumulative(certain, np.ones(5, bool)).p_value == 1
    assert cumulative(certain, np.array([True] * 4 + [False])).p_value == 0
    nothing = cumulative(np.empty(0), np.empty(0, bool))
    assert math.isnan(nothing.statistic)
    assert math.isnan(nothing.p_value)
    assert walk_of(np.empty(0), np.empty(0, bool)) is None


def test_a_drawn_curve_keeps_its_ends_and_its_largest_gap():
    confidence, correct = answers(5000, 0.05)
    whole, walk = cumulative(confidence, correct), walk_of(confidence, correct)
    assert len(walk.points) <= POINTS + 2
    assert walk.points[0] == (0, 0)
    assert walk.points[-1] == (1, pytest.approx(whole.gap[-1]))
    assert max(abs(gap) for _, gap in walk.points) == pytest.approx(whole.statistic)
    shares = [share for share, _ in walk.points]
    assert max(np.diff(shares)) < 1.5 / POINTS
    assert walk.band == pytest.approx(2.2414 * math.sqrt((confidence * (1 - confidence)).sum()) / 5000, rel=1e-3)


@pytest.mark.parametrize("n", [1, 3, 17, 150])
@pytest.mark.parametrize("confidence", [0.0, 0.31, 0.8, 1.0])
def test_consistency_bars_are_the_quantiles_of_the_binomial(n, confidence):
    expected = scipy.stats.binom.ppf([0.025, 0.975], n, confidence) / n
    assert consistency(n, confidence) == pytest.approx(tuple(np.maximum(expected, 0)))


def test_consistency_bars_hold_the_draws_of_a_calibrated_bin():
    rng = np.random.default_rng(3)
    sure = rng.uniform(0.6, 2 / 3, 80)
    share = (rng.uniform(size=(20_000, 80)) < sure).mean(axis=1)
    low, high = consistency(80, sure.mean())
    assert 0.95 <= ((share >= low) & (share <= high)).mean() < 0.98


def test_skill_is_the_share_of_the_references_loss_that_is_gone():
    rng = np.random.default_rng(5)
    sizes = rng.choice([2, 4], 300)
    gold = np.where(rng.uniform(size=300) < 0.6, 0, rng.integers(0, sizes))
    nll = rng.exponential(0.7, 300)
    layout = Layout(300)
    add_references(layout, sizes, gold)
    found = skill_metrics(layout, layout.matrix.sums(ones(300)), np.array([nll.sum()]))
    priors = {size: np.bincount(gold[sizes == size], minlength=4) / (sizes == size).sum() for size in (2, 4)}
    table = np.array([priors[size] for size in sizes])
    uniform = (np.arange(4) < sizes[:, None]) / sizes[:, None]
    for name, reference in (("uniform", uniform), ("prior", table)):
        loss = log_loss(gold, reference, labels=range(4))
        assert found[f"nll_skill_{name}"][0] == pytest.approx(1 - nll.mean() / loss, rel=1e-6)
    assert found["nll_skill_prior"][0] < found["nll_skill_uniform"][0]
    # A model that knows only how many choices there are has no skill, however the documents are mixed.
    blind = np.log(sizes)
    even = np.arange(300) // 2 % sizes  # each place is right equally often
    add_references(mixed := Layout(300), sizes, even)
    of_blind = skill_metrics(mixed, mixed.matrix.sums(ones(300)), np.array([blind.sum()]))
    assert of_blind["nll_skill_uniform"][0] == pytest.approx(0, abs=1e-9)
    assert of_blind["nll_skill_prior"][0] <= 1e-9
    certain = Layout(3)
    add_references(certain, np.array([2, 2, 2]), np.zeros(3, int))
    sums = certain.matrix.sums(ones(3))
    assert math.isnan(skill_metrics(certain, sums, np.array([1.0]))["nll_skill_prior"][0])


def test_eaurc_is_the_excess_over_all_wrong_ones_last():
    def area(right):
        return np.mean(np.cumsum(~right) / np.arange(1, len(right) + 1))

    for off in (0.0, 0.3):
        confidence, correct = answers(150, off)
        found = Ranking(confidence, correct).metrics(ones(150))
        ordered = correct[np.argsort(-confidence)]
        assert found["eaurc"][0] == pytest.approx(area(ordered) - area(np.sort(ordered)[::-1]))
        risk = 1 - correct.mean()  # the sum comes near Geifman's integral
        assert found["aurc"][0] - found["eaurc"][0] == pytest.approx(risk + (1 - risk) * np.log(1 - risk), abs=6e-3)
    assert Ranking(np.array([0.9, 0.8, 0.3]), np.array([True, True, False])).metrics(ones(3))["eaurc"][0] == 0


@pytest.fixture
def run(tmp_path):
    """Write a choice task whose right choices have 3 and 5 bytes, and a continuation task."""
    run = RunDir(tmp_path / "run")
    add_task(run, "quiz", [2] * 40, ["0", "1"], gold=[d % 2 for d in range(40)], sizes=[3, 5] * 40)
    add_task(run, "words", [1] * 4, ["0"], sizes=[2, 4, 6, 9])
    for lam in ("0", "1"):
        add_scores(run, "quiz", lam, {r: [-0.5 - 0.01 * r - float(lam) * (r % 2)] for r in range(80)})
    add_scores(run, "words", "0", {d: [-1.0 - d] for d in range(4)})
    return run


def test_they_are_in_a_runs_table_and_report(run):
    found = analyse(run, resamples=50)
    rows = {
        (row["task"], str(row["point"]), row["metric"]): row
        for row in found.metrics.to_pylist()
        if (row["confidence"], row["split"]) == ("sum", "all")
    }
    bits = sum(0.5 + 0.01 * r for d in range(40) for r in [2 * d + d % 2]) / math.log(2) / (20 * 3 + 20 * 5)
    assert rows["quiz", "0", "bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-6)
    row = rows["words", "0", "bits_per_byte"]
    assert row["value"] == pytest.approx((1 + 2 + 3 + 4) / math.log(2) / 21)
    assert row["ci_low"] < row["value"] <= row["ci_high"]
    assert rows["quiz", "0", "ks"]["ci_low"] is None
    facts = gather(found, "ece_width15", "sum")
    walk = facts.walks["quiz", "0"]
    assert rows["quiz", "0", "ks"]["value"] == pytest.approx(walk.statistic)
    assert rows["quiz", "0", "ks_p"]["value"] is walk.band is None  # 40 documents leave too few answers open
    skill = rows["quiz", "1", "nll_skill_uniform"]
    assert skill["value"] == pytest.approx(1 - rows["quiz", "1", "nll"]["value"] / math.log(2))
    assert ("quiz", "1", "nll_skill_prior_vs_base") in rows
    assert ("quiz", "1", "ks_vs_base") not in rows
    spec = page_figures(facts)["reliability"]
    assert f',0,0,,"λ = 0, KS {walk.statistic:.3f}"\n' in spec["task-cumulative"]["data"]["values"]
    for row in csv.DictReader(io.StringIO(spec["task-reliability-documents"]["data"]["values"])):
        ends = consistency(int(row["n"]), float(row["mean_confidence"]))
        assert [float(row["calibrated_low"]), float(row["calibrated_high"])] == pytest.approx(ends, abs=1e-3)
