"""Resamples, intervals, tests of many differences, and temperature scaling."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from calibration.metrics.binned import Layout, add_reliability, bin_of, reliability_metrics
from calibration.metrics.predictions import Predictions, predictions
from calibration.metrics.temperature import RANGE, cross_fitted, fit_temperature
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
    assert found.counts.var() == pytest.approx(1 - 1 / 200, abs=0.01)  # 200 draws of 200 documents
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
    drawn = np.random.default_rng(0).permutation(np.arange(1.0, 2000.0))  # 1 … 1999: the 50th and the 1950th
    found = interval(estimate(1000.0, drawn), "acc")
    assert (found.low, found.high, found.resamples) == (50, 1950, 1999)


def test_what_noise_inflates_gets_the_basic_interval():
    drawn = np.linspace(0.1, 0.2, 1999)
    low, high = drawn[49], drawn[1949]
    for metric in ("ece_width15", "ece_mass15", "mce15", "smece", "brier_reliability", "ece_width15_scaled"):
        found = interval(estimate(0.12, drawn), metric)
        assert (found.low, found.high) == (pytest.approx(0.24 - high), pytest.approx(0.24 - low))
        assert interval(estimate(0.01, drawn), metric).low == 0  # it cannot be below
    assert interval(estimate(0.01, drawn), "ece_width15_vs_base").low == pytest.approx(0.02 - high)
    assert interval(estimate(0.01, drawn), "ece_debiased15").low < 0
    assert interval(estimate(0.12, drawn), "brier").low == low


def test_the_interval_of_a_small_ece_holds_the_truth():
    def accuracy(confidence):
        return confidence**1.2

    def ece(confidence, correct, weights):
        layout = Layout(len(confidence))
        unknown = np.zeros(len(confidence))
        add_reliability(layout, Predictions(unknown.astype(int), unknown, confidence, correct, unknown, unknown))
        return reliability_metrics(layout, layout.matrix.sums(weights))["ece_width"]

    rng = np.random.default_rng(6)
    population = rng.beta(3, 1.2, 400_000)
    gaps = np.bincount(bin_of(population), weights=population - accuracy(population))
    truth = np.abs(gaps).sum() / len(population)
    held = percentile_held = 0
    for trial in range(60):
        confidence = rng.beta(3, 1.2, 300)
        correct = rng.uniform(size=300) < accuracy(confidence)
        (weights,) = draw(str(trial), 300, 300).chunks(np.arange(300))
        drawn = ece(confidence, correct, weights)
        found = interval(estimate(ece(confidence, correct, ones(300))[0], drawn), "ece_width15")
        held += found.low <= truth <= found.high
        percentile_held += np.quantile(drawn, 0.025) <= truth <= np.quantile(drawn, 0.975)
    assert held >= 50
    assert percentile_held <= 10  # why it is not the percentile interval


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


def test_the_best_of_many_null_effects_is_seldom_significant():
    rng = np.random.default_rng(1)
    false = alone = 0
    for _ in range(300):
        common = rng.normal(size=(80, 1)) * 0.5
        data = rng.normal(size=(80, 20)) + common  # 20 effects of 0 on the same 80 documents
        counts = rng.multinomial(80, np.full(80, 1 / 80), 200)
        gain, resampled = data.mean(axis=0), (counts @ data / 80).T
        false += (step_down(gain, resampled) <= 0.05).any()
        alone += any(step_down(gain[i : i + 1], resampled[i : i + 1])[0] <= 0.05 for i in range(20))
    assert 0.02 < false / 300 < 0.1  # 5 %, give or take the sampling error
    assert alone / 300 > 0.3  # what not adjusting would do


def test_a_large_effect_is_found_among_small_ones_and_helps_the_next():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(3, 4000))
    noise /= noise.std(axis=1, keepdims=True)
    noise[2] = noise[1]  # two effects that are one: only one is tested
    gain = np.array([8.0, 2.1, -5.0])
    p = step_down(gain, gain[:, None] + noise)
    assert p[0] == 1 / 4001
    assert p[2] > 0.99
    assert p[1] == pytest.approx(np.mean(noise[1] >= 2.1), abs=1e-3)  # the first is out of the way
    assert p[1] < 0.7 * np.mean(noise.max(axis=0) >= 2.1)


def test_what_does_not_vary_is_judged_by_its_sign():
    resampled = np.array([[0.0] * 99, [0.1] * 99, [-0.1] * 99])
    assert list(step_down(resampled[:, 0], resampled)) == [1.0, 0.01, 1.0]
    assert list(indistinguishable(resampled[:, 0], resampled)) == [True, False, False]


def test_bands_hold_all_differences_at_once():
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(40, 5000))
    critical = np.quantile(np.abs(drawn).max(axis=0), 0.95)
    assert critical > 3  # 1.96 for one
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
