"""Resamples, intervals, tests of many differences, and temperature scaling."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from calibration.metrics.binned import Layout, add_reliability, reliability_metrics
from calibration.metrics.predictions import Predictions, predictions
from calibration.metrics.temperature import RANGE, cross_fitted, fit_temperature
from calibration.uncertainty.gaps import of_gaps, of_largest, of_squares
from calibration.uncertainty.intervals import Estimate, interval
from calibration.uncertainty.multiple_tests import indistinguishable, step_down
from calibration.uncertainty.resample import draw, ones

# Resamples


@pytest.mark.parametrize("documents", [0, 1, 2, 7, 500])
def test_each_half_is_resampled_to_its_own_size(documents):
    found = draw("quiz", documents, 30)
    assert found.in_report.sum() == documents // 2
    for half in (found.in_report, ~found.in_report):
        assert (found.counts[half].sum(axis=0) == half.sum()).all()


def test_weights_are_multinomial():
    found = draw("quiz", 400, 500)
    assert found.counts.var() == pytest.approx(1 - 1 / 200, abs=0.01)  # these are 200 draws of 200 documents
    assert found.counts.mean(axis=1) == pytest.approx(np.ones(400), abs=5 * 500**-0.5)


def test_resamples_depend_on_task_seed_and_number_of_documents_only():
    one = draw("quiz", 100, 20)
    for other in (draw("quiz", 100, 20), draw("quiz", 100, 20, seed=0)):
        assert np.array_equal(one.counts, other.counts)
        assert np.array_equal(one.in_report, other.in_report)
    assert np.array_equal(draw("quiz", 100, 5).in_report, one.in_report)
    for other in (draw("arc", 100, 20), draw("quiz", 100, 20, seed=1)):
        assert not np.array_equal(one.counts, other.counts)
        assert not np.array_equal(one.in_report, other.in_report)


def test_halves_come_first_and_weights_in_runs():
    found = draw("quiz", 50, 230)
    documents = np.arange(3, 50, 2)
    order, runs = found.halves_first(documents)
    assert sorted(order) == list(range(len(documents)))
    assert not found.in_report[documents[order[runs["select"]]]].any()
    assert found.in_report[documents[order[runs["report"]]]].all()
    assert np.array_equal(np.hstack(list(found.chunks(documents[order]))), found.counts[documents[order]])
    many = draw("quiz", 32_000, 230)
    runs_ = list(many.chunks(np.arange(32_000)))
    assert len(runs_) == 2
    assert np.array_equal(np.hstack(runs_), many.counts)


# Intervals


def estimate(value, resampled, n=10):
    return Estimate(value, np.array(resampled, np.float64), n)


def test_the_percentile_interval_is_of_order_statistics():
    # The values are 1 … 1999, and these are the 50th and the 1950th.
    drawn = np.random.default_rng(0).permutation(np.arange(1.0, 2000.0))
    found = interval(estimate(1000.0, drawn), "acc")
    assert (found.low, found.high, found.resamples) == (50, 1950, 1999)


def test_an_honest_interval_is_made_of_how_far_the_value_can_be_off():
    over, under = np.linspace(-0.01, 0.2, 1999), np.linspace(-0.1, 0.01, 1999)
    known = Estimate(0.12, np.linspace(0.1, 0.2, 1999), 10, over, under)
    found = interval(known, "ece_width15")
    assert (found.low, found.high) == (0, pytest.approx(0.12 - under[49]))  # it cannot be below 0
    assert interval(known, "ece_width15_vs_base").low == pytest.approx(0.12 - over[1949])
    # The value is always in it.
    above = Estimate(0.12, known.resampled, 10, -over - 0.02, -over - 0.03)
    assert interval(above, "ece_width15").low <= 0.12
    below = Estimate(0.12, known.resampled, 10, over + 0.03, over + 0.02)
    assert interval(below, "ece_width15").high == 0.12
    # A difference may be as far above the value as below it.
    other = Estimate(0.02, known.resampled, 10, over / 2, under / 2)
    difference = known.minus(other)
    assert difference.over.tolist() == (over - under / 2).tolist()
    assert difference.under.tolist() == (under - over / 2).tolist()


def test_squared_ece_has_a_normal_interval():
    drawn = np.random.default_rng(0).normal(0.3, 0.02, 1999)  # the mean of the resamples is not the value
    found = interval(estimate(0.01, drawn), "ece_squared15")
    assert (found.low, found.high) == (
        pytest.approx(0.01 - 1.96 * drawn.std(), abs=1e-4),
        pytest.approx(0.01 + 1.96 * drawn.std(), abs=1e-4),
    )


def test_gaps_are_bounded_by_hand():
    # These are resamples of three gaps: 0.2 is far from 0, −0.01 is not, and an empty bin is 0.
    gaps = np.array([0.2, -0.01, 0.0])
    drawn = np.array([[0.21, 0.19, 0.22, 0.18], [0.01, -0.03, -0.02, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = of_gaps(gaps, drawn, 100)
    assert found.value == pytest.approx(0.21)
    assert found.resampled == pytest.approx(np.abs(drawn).sum(axis=0))
    assert found.under == pytest.approx([0.01 - 0.02, -0.01 + 0.02, 0.02 + 0.01, -0.02 - 0.01])
    assert found.over == pytest.approx([0.01 + 0.02, -0.01 + 0.02, 0.02 + 0.01, -0.02 + 0.01])
    # √(ln n) standard errors tell: of a billion documents even 0.2 would have to be larger, had it varied as much.
    vague = of_gaps(gaps, np.array([[0.3, 0.1, 0.3, 0.1], *drawn[1:]]), 100)
    assert vague.over == pytest.approx([0.1 + 0.02, 0.1 + 0.02, 0.1 + 0.01, 0.1 + 0.01])
    assert of_gaps(np.array([1 / 3 + 1e-16] * 3), np.ones((3, 2)), 9).value == 1.0


def test_squares_are_bounded_by_their_tangent():
    found = of_squares(0.04, np.array([0.05, 0.09]), np.array([0.02, 0.06]), 10)
    assert found.over == pytest.approx([0.01, 0.05])
    assert found.under == pytest.approx([-0.02, 0.02])


def test_the_largest_gap_has_exact_bounds_for_all_bins_at_once():
    right, count, confidence = np.array([0.0, 30.0, 1.0]), np.array([1.0, 40.0, 1.0]), np.array([0.3, 0.9, 0.95])
    found = interval(of_largest(0.3, np.empty(0), right, count, confidence, 42), "mce15")
    ends = [tested.proportion_ci(1 - 0.05 / 3) for tested in map(binomtest, (0, 30, 1), (1, 40, 1))]
    least = max(max(low - sure, sure - high, 0) for (low, high), sure in zip(ends, confidence, strict=True))
    most = max(max(high - sure, sure - low) for (low, high), sure in zip(ends, confidence, strict=True))
    assert (found.low, found.high) == (pytest.approx(least), pytest.approx(most))
    assert 0 < found.low < 0.3 < found.high
    assert interval(of_largest(math.nan, np.empty(0), right[:0], count[:0], confidence[:0], 0), "mce15") is None


def shares_held(calibrated, documents, trials=60):
    """Count how often the honest interval of ECE and the basic one, 2 · value − percentiles, hold truth and value."""
    rng = np.random.default_rng(documents)
    held = before = 0
    for trial in range(trials):
        confidence = rng.uniform(0.3, 1, documents)
        correct = rng.uniform(size=documents) < (confidence if calibrated else confidence - 0.2)
        unknown = np.zeros(documents)
        layout = Layout(documents)
        add_reliability(layout, Predictions(unknown.astype(int), unknown, confidence, correct, unknown, unknown))
        (weights,) = draw(str(trial), documents, 300).chunks(np.arange(documents))
        gaps, drawn = (
            reliability_metrics(layout, layout.matrix.sums(some))["ece_width"] for some in (ones(documents), weights)
        )
        made = of_gaps(gaps[:, 0], drawn, documents)
        found = interval(made, "ece_width15")
        truth = 0.0 if calibrated else 0.2
        assert found.low <= made.value <= found.high
        held += found.low <= truth <= found.high
        before += (
            2 * made.value - np.quantile(made.resampled, 0.975)
            <= truth
            <= 2 * made.value - np.quantile(made.resampled, 0.025)
        )
    return held / trials, before / trials


@pytest.mark.slow
@pytest.mark.parametrize("documents", [100, 400])
def test_the_interval_of_ece_holds_the_truth_where_it_is_0_and_where_it_is_not(documents):
    held, before = shares_held(True, documents)
    assert held >= 0.93
    assert before < 0.8  # this is why the basic interval is not used
    assert shares_held(False, documents)[0] >= 0.9


def test_no_interval_without_evidence():
    assert interval(estimate(math.nan, [1.0] * 10), "acc") is None
    assert interval(estimate(0.5, [0.5] * 10, n=1), "acc") is None
    assert interval(estimate(0.5, []), "temperature") is None
    assert interval(estimate(0.5, [0.5, 0.6, math.nan, math.nan, math.nan]), "auroc") is None
    assert interval(estimate(0.5, [0.5, 0.6, math.nan]), "auroc").resamples == 2


def test_infinite_values_have_infinite_ends():
    found = interval(estimate(math.inf, [1.0] * 30 + [math.inf] * 70), "nll")
    assert (found.low, found.high) == (1.0, math.inf)
    difference = estimate(math.inf, [1.0, math.inf]).minus(estimate(math.inf, [1.0, math.inf]))
    assert math.isnan(difference.value)
    assert interval(difference, "nll_vs_base") is None


# Many differences


@pytest.mark.slow
def test_the_best_of_many_null_effects_is_seldom_significant():
    rng = np.random.default_rng(1)
    false = alone = 0
    for _ in range(300):
        common = rng.normal(size=(80, 1)) * 0.5
        data = rng.normal(size=(80, 20)) + common  # there are 20 effects of 0 on the same 80 documents
        counts = rng.multinomial(80, np.full(80, 1 / 80), 200)
        gain, resampled = data.mean(axis=0), (counts @ data / 80).T
        false += (step_down(gain, resampled) <= 0.05).any()
        alone += any(step_down(gain[i : i + 1], resampled[i : i + 1])[0] <= 0.05 for i in range(20))
    assert 0.02 < false / 300 < 0.1  # it is 5 % up to the sampling error
    assert alone / 300 > 0.3  # without adjustment this happens


def test_a_large_effect_is_found_among_small_ones_and_helps_the_next():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(3, 4000))
    noise /= noise.std(axis=1, keepdims=True)
    noise[2] = noise[1]  # the two effects are the same one, so only one is tested
    gain = np.array([8.0, 2.1, -5.0])
    p = step_down(gain, gain[:, None] + noise)
    assert p[0] == 1 / 4001
    assert p[2] > 0.99
    # The first hypothesis is rejected and does not count any more.
    assert p[1] == pytest.approx(np.mean(noise[1] >= 2.1), abs=1e-3)
    assert p[1] < 0.7 * np.mean(noise.max(axis=0) >= 2.1)


@pytest.mark.parametrize("right", range(8, 41, 4))
@pytest.mark.parametrize(("up", "down"), [(1, 0), (2, 0), (3, 0), (3, 1)])
def test_ties_count_whatever_rounding_makes_of_shares(right, up, down):
    """Resamples whose difference is exactly that of the sample are as far off: it is counted in whole documents here."""
    documents = 50
    base = np.arange(documents) < right
    other = base.copy()
    other[documents - up :], other[:down] = True, False
    counts = np.random.default_rng(right).multinomial(documents, np.full(documents, 1 / documents), 2000)
    difference, drawn = up - down, counts @ (other.astype(int) - base)
    exact = (1 + (drawn - difference >= difference).sum()) / 2001
    one, two = (counts @ answers / documents for answers in (other, base))
    assert step_down(np.array([other.mean() - base.mean()]), (one - two)[None])[0] == exact


def test_what_does_not_vary_is_judged_by_its_sign():
    resampled = np.array([[0.0] * 99, [0.1] * 99, [-0.1] * 99])
    assert list(step_down(resampled[:, 0], resampled)) == [1.0, 0.01, 1.0]
    assert list(indistinguishable(resampled[:, 0], resampled)) == [True, False, False]


def test_bands_hold_all_differences_at_once():
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(40, 5000))
    critical = np.quantile(np.abs(drawn).max(axis=0), 0.95)
    assert critical > 3  # one effect would need 1.96
    difference = np.full(40, critical - 0.1)
    difference[::2] = -(critical + 0.1)
    within = indistinguishable(difference, difference[:, None] + drawn)
    assert within.tolist() == [False, True] * 20


# Temperature


def sample(temperature, documents=4000, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (documents, 4))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gold = (rng.uniform(size=documents)[:, None] > probability.cumsum(axis=1)).sum(axis=1)
    return logits * temperature, gold


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    logits, gold = sample(temperature)
    found = fit_temperature(logits, gold)
    assert found == pytest.approx(temperature, rel=0.1)
    best = minimize_scalar(lambda t: predictions(logits / t, gold).nll.mean(), bounds=(0.1, 10), method="bounded")
    assert found == pytest.approx(best.x, rel=1e-3)


def test_without_a_minimum_the_temperature_is_an_end_of_the_range():
    assert fit_temperature(np.array([[-1.0, -2.0]]), np.array([0])) == RANGE[0]
    assert fit_temperature(np.array([[-1.0, -2.0]]), np.array([1])) == RANGE[1]


def test_documents_that_no_temperature_changes_do_not_count():
    logits, gold = np.array([[-1.0, -np.inf], [-np.inf, -1.0], [-1.0, -np.inf]]), np.array([0, 0, 1])
    assert fit_temperature(logits, gold) is None
    assert fit_temperature(np.empty((0, 3)), np.empty(0, np.int64)) is None
    more = sample(2.0, 500)
    padded = np.hstack([more[0], np.full((500, 1), -np.inf)])
    both = np.vstack([padded, np.array([[-1.0, -np.inf, -np.inf, -np.inf, -np.inf]])])
    assert fit_temperature(both, np.append(more[1], 0)) == pytest.approx(fit_temperature(*more), rel=1e-6)


def test_a_half_is_scaled_by_what_was_fitted_on_the_other():
    hot, cold = sample(3.0, seed=1), sample(0.5, seed=2)
    logits, gold = np.vstack([hot[0], cold[0]]), np.concatenate([hot[1], cold[1]])
    for_select, for_report = cross_fitted(logits, gold, slice(4000, None))
    assert for_select == fit_temperature(*cold)
    assert for_report == fit_temperature(*hot)
