"""The metrics agree with cases computed by hand, with scikit-learn, and with loops that restate each definition."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from calibration.arrays import BINS
from calibration.metrics.binned import (
    Layout,
    SumMatrix,
    add_classes,
    add_reliability,
    bin_of,
    class_metrics,
    reliability_metrics,
)
from calibration.metrics.noise_floor import drawn_gaps, luck, noise_floor
from calibration.metrics.predictions import Predictions, perplexity, predictions
from calibration.metrics.ranked import Ranking
from calibration.uncertainty.resample import ones


def made_of(confidence, correct):
    """Return predictions of which only these are known."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.bool_)
    unknown = np.zeros(len(confidence))
    return Predictions(unknown.astype(int), unknown[:, None], confidence, correct, unknown, unknown)


def errors(found, weights):
    """Return metrics by name; those that come as the summands of an error are summed up."""
    summed = {name: np.abs(value).sum(axis=0) if value.ndim == 2 else value for name, value in found.items()}
    return {name: value[0] if weights.shape[1] == 1 else value for name, value in summed.items()}


def reliability(confidence, correct, bins=BINS, weights=None, target=None):
    layout = Layout(len(confidence))
    add_reliability(layout, made_of(confidence, correct), bins)
    weights = ones(len(confidence)) if weights is None else weights
    target = None if target is None else np.array([target])
    found = reliability_metrics(layout, layout.matrix.sums(weights), bins, target)
    return errors(found, weights)


def ranked(confidence, correct, bins=BINS, weights=None):
    weights = ones(len(confidence)) if weights is None else weights
    found = Ranking(confidence, correct, bins).metrics(weights)
    return errors(found, weights)


def classes(made, sizes, gold, weights=None):
    layout = Layout(len(gold))
    add_classes(layout, made, sizes, gold)
    layout.add("brier", made.brier)
    weights = ones(len(gold)) if weights is None else weights
    sums, n = layout.matrix.sums(weights), weights.sum(axis=0, dtype=np.float64)
    found = class_metrics(layout, sums, n, layout.of(sums, "brier")[0] / n)
    return errors(found, weights)


def ece_width(confidence, correct, bins=BINS):
    return reliability(confidence, correct, bins)["ece_width"]


def ece_mass(confidence, correct, bins=BINS):
    return ranked(confidence, correct, bins)["ece_mass"]


def arrays(confidence, correct):
    return np.array(confidence, np.float64), np.array(correct, np.bool_)


def width_by_loop(confidence, correct, bins=BINS):
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        members = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if members:
            gap = sum(correct[i] for i in members) / len(members) - sum(confidence[i] for i in members) / len(members)
            total += len(members) / len(confidence) * abs(gap)
    return total


def mass_by_loop(confidence, correct, bins=BINS):
    equal = {}
    for c, right in zip(confidence, correct, strict=True):
        equal.setdefault(c, []).append(float(right))
    ordered = [(c, sum(equal[c]) / len(equal[c])) for c in sorted(confidence)]
    total = 0.0
    for members in np.array_split(np.array(ordered), bins):
        if len(members):
            total += len(members) / len(confidence) * abs(members[:, 0].mean() - members[:, 1].mean())
    return total


# These are the edges of the bins and both neighbours of each: few distinct values, so that ties and edges are frequent.
edges = st.sampled_from([k / BINS for k in range(BINS + 1)])
near_edges = st.builds(lambda c, to: float(np.nextafter(c, to)), edges, st.sampled_from([0.0, 1.0]))
confidences = st.one_of(edges, near_edges, st.floats(0, 1), st.sampled_from([0.25, 0.5, 1.0]))
documents = st.lists(st.tuples(confidences, st.booleans()), min_size=1, max_size=60)


@given(documents)
def test_ece_width_equals_a_loop(pairs):
    confidence, correct = zip(*pairs, strict=True)
    assert ece_width(*arrays(confidence, correct)) == pytest.approx(width_by_loop(confidence, correct), abs=1e-12)


@given(documents)
def test_ece_mass_equals_a_loop(pairs):
    confidence, correct = zip(*pairs, strict=True)
    assert ece_mass(*arrays(confidence, correct)) == pytest.approx(mass_by_loop(confidence, correct), abs=1e-12)


@given(documents)
def test_ece_is_at_least_the_overconfidence_and_at_most_1(pairs):
    confidence, correct = arrays(*zip(*pairs, strict=True))
    bias = abs(np.mean(confidence - correct))
    for ece in (ece_width(confidence, correct), ece_mass(confidence, correct)):
        assert bias - 1e-12 <= ece <= 1 + 1e-12


def test_ece_width_equals_scikit_learn():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.2, 1, 2000)
    correct = rng.uniform(size=2000) < confidence**2
    accuracy, average = calibration_curve(correct, confidence, n_bins=BINS, strategy="uniform")
    sizes = np.histogram(confidence, BINS, (0, 1))[0]
    expected = (sizes[sizes > 0] / 2000 * np.abs(accuracy - average)).sum()
    assert expected > 0.1
    assert ece_width(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_ece_width_by_hand():
    # Bins (9/15, 10/15]: 0.62, 0.66, one right of two; (13/15, 14/15]: 0.9, right; (14/15, 1]: 0.96, 1.0, both wrong.
    confidence, correct = arrays([0.62, 0.9, 0.66, 0.96, 1.0], [True, True, False, False, False])
    assert ece_width(confidence, correct) == pytest.approx((2 * 0.14 + 0.1 + 2 * 0.98) / 5)


@pytest.mark.parametrize(("k", "bins"), [(k, bins) for bins in (10, BINS) for k in range(1, bins)])
def test_a_confidence_on_an_edge_is_in_the_bin_below(k, bins):
    edge = k / bins
    above, below = float(np.nextafter(edge, 1)), (k - 0.5) / bins
    with_below = ece_width(*arrays([edge, below], [True, False]), bins)
    with_above = ece_width(*arrays([edge, above], [True, False]), bins)
    assert with_below == pytest.approx(abs(1 - edge - below) / 2)  # one bin: the two gaps cancel
    assert with_above == pytest.approx((1 - edge + above) / 2)  # two bins: they add up


def test_0_is_in_the_first_bin_and_1_in_the_last():
    assert ece_width(*arrays([0.0, 0.05], [True, False])) == pytest.approx((1 - 0.05) / 2)
    assert ece_width(*arrays([1.0, 0.95], [False, True])) == pytest.approx((1 - 0.05) / 2)


def test_ece_mass_by_hand():
    # Two bins of five documents: {0.1, 0.2, 0.3} with one right, {0.6, 0.9} with two right.
    confidence, correct = arrays([0.9, 0.1, 0.6, 0.3, 0.2], [True, False, True, True, False])
    assert ece_mass(confidence, correct, bins=2) == pytest.approx((abs(0.6 - 1) + abs(1.5 - 2)) / 5)


def test_documents_of_equal_confidence_share_their_accuracy_across_bins_of_equal_mass():
    # Three right and one wrong document at 0.5 are cut into two bins: 0.25 wherever each is. Cut as they stand, it is
    # 0.25 or 0.5 by their order.
    for correct in ([True, True, True, False], [True, False, True, True]):
        assert ece_mass(*arrays([0.5] * 4, correct), bins=2) == pytest.approx(0.25)
    for correct in ([True, True, False, False], [True, False, True, False]):
        assert ece_mass(*arrays([0.5] * 4, correct), bins=2) == 0


def test_fewer_documents_than_bins_are_a_bin_each_at_equal_mass():
    confidence, correct = arrays([0.4, 0.7, 0.9], [True, False, True])
    assert ece_mass(confidence, correct) == pytest.approx((0.6 + 0.7 + 0.1) / 3)


def test_predictions_by_hand():
    logits = np.log([[0.25, 0.75, 0.0], [0.2, 0.2, 0.4]], where=[[1, 1, 0], [1, 1, 1]], out=np.full((2, 3), -np.inf))
    made = predictions(logits, np.array([0, 2]))
    assert made.confidence == pytest.approx([0.75, 0.5])
    assert made.correct.tolist() == [False, True]
    assert made.brier == pytest.approx([0.75**2 + 0.75**2, 0.25**2 + 0.25**2 + 0.5**2])
    assert made.nll == pytest.approx([math.log(4), math.log(2)])


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-50, 0)),
    st.randoms(use_true_random=False),
)
def test_predictions_equal_scikit_learn(logits, random):
    labels = range(logits.shape[1])
    gold = np.array([random.choice(labels) for _ in logits])
    probability = np.array([[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in logits])
    made = predictions(logits, gold)
    assert np.mean(made.correct) == accuracy_score(gold, logits.argmax(axis=1))
    assert made.confidence == pytest.approx(probability.max(axis=1), rel=1e-12)
    # log_loss clips probabilities at 2e-16, so it is asked for documents above that.
    likely = probability[np.arange(len(gold)), gold] > 1e-12
    if likely.any():
        expected = log_loss(gold[likely], probability[likely], labels=labels)
        assert np.mean(made.nll[likely]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if len(labels) > 2:  # scikit-learn takes the one-sided form for two classes
        expected = brier_score_loss(gold, probability, labels=labels, scale_by_half=False)
        assert np.mean(made.brier) == pytest.approx(expected, rel=1e-12)


def test_brier_of_two_choices_is_twice_the_one_sided_form():
    logits, gold = np.log([[0.3, 0.7], [0.8, 0.2]]), np.array([1, 1])
    assert np.mean(predictions(logits, gold).brier) == pytest.approx(2 * brier_score_loss(gold, [0.7, 0.2]))


def test_of_equal_scores_the_first_choice_is_predicted():
    made = predictions(np.array([[-2.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]), np.array([1, 1]))
    assert made.correct.tolist() == [True, False]


def test_the_highest_score_is_predicted_also_where_the_probabilities_round_to_one():
    assert predictions(np.array([[-1e-20, -1e-30]]), np.array([1])).correct.tolist() == [True]


@pytest.mark.parametrize("choices", range(1, 31))
@pytest.mark.parametrize("score", [0.0, -1.7, -123.4])
def test_equal_choices_have_exactly_the_same_probability(choices, score):
    made = predictions(np.full((1, choices), score), np.array([0]))
    assert made.confidence.tolist() == [1 / choices]  # 1/3 and 1/5 are edges of bins


def test_padding_changes_nothing():
    logits, gold = np.array([[-1.0, -3.0], [-2.0, -0.5]]), np.array([1, 1])
    padding = np.full((2, 3), -np.inf)
    plain, padded = predictions(logits, gold), predictions(np.hstack([logits, padding]), gold)
    for name in ("confidence", "correct", "brier", "nll"):
        assert getattr(padded, name).tolist() == getattr(plain, name).tolist()


def test_extreme_scores_neither_overflow_nor_lose_the_likelihood():
    made = predictions(np.array([[-1e300, -5e4, -5e4 - 800], [-1000.0, -3000.0, -4000.0]]), np.array([2, 0]))
    assert made.nll.tolist() == [800.0, 0.0]  # log p is used, and not the log of a p that became 0
    assert made.confidence.tolist() == [1.0, 1.0]


def test_a_gold_choice_of_probability_0_has_infinite_nll():
    made = predictions(np.array([[-np.inf, -1.0]]), np.array([0]))
    assert (made.nll.tolist(), made.brier.tolist(), made.confidence.tolist()) == ([math.inf], [2.0], [1.0])


def test_a_single_choice_is_right_and_certain():
    made = predictions(np.array([[-7.0]]), np.array([0]))
    assert [made.confidence[0], made.correct[0], made.brier[0], made.nll[0]] == [1.0, True, 0.0, 0.0]


def test_all_right_and_all_wrong():
    certain = np.ones(20)
    for ece in (ece_width, ece_mass):
        assert ece(certain, np.ones(20, np.bool_)) == 0
        assert ece(certain, np.zeros(20, np.bool_)) == pytest.approx(1, abs=1e-15)  # the summands are rounded shares


def test_one_document():
    for ece in (ece_width, ece_mass):
        assert ece(*arrays([0.7], [True])) == pytest.approx(0.3)
        assert ece(*arrays([0.7], [False])) == pytest.approx(0.7)


def test_no_documents_have_no_metrics():
    made = predictions(np.empty((0, 4)), np.empty(0, np.int64))
    assert [len(made.confidence), len(made.correct), len(made.brier), len(made.nll)] == [0, 0, 0, 0]
    for found in (reliability(made.confidence, made.correct), ranked(made.confidence, made.correct)):
        assert all(np.isnan(value) for value in found.values())


def test_perplexity():
    found = perplexity(np.array([math.log(20), math.inf, 800.0]))
    assert found[0] == pytest.approx(20)
    assert found[1] == math.inf
    assert np.isnan(found[2])  # the number is finite, but above the largest float


# Beyond equal-width ECE


@given(documents)
def test_auroc_equals_scikit_learn(pairs):
    confidence, correct = arrays(*zip(*pairs, strict=True))
    found = ranked(confidence, correct)["auroc"]
    if correct.all() or not correct.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)


def selective(confidence, correct):
    """Return the mean error rate over all coverages, and the accuracy at 80 %, of documents in the order given."""
    wrong = np.cumsum(~correct)
    most = math.ceil(0.8 * len(correct) - 1e-9)
    return np.mean(wrong / np.arange(1, len(wrong) + 1)), 1 - wrong[most - 1] / most


@given(st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.booleans()), min_size=1, max_size=6))
def test_aurc_and_selective_accuracy_are_means_over_the_orders_of_ties(pairs):
    orders = [
        order for order in itertools.permutations(pairs) if [c for c, _ in order] == sorted(c for c, _ in pairs)[::-1]
    ]
    expected = np.mean([selective(*arrays(*zip(*order, strict=True))) for order in orders], axis=0)
    found = ranked(*arrays(*zip(*pairs, strict=True)))
    assert [found["aurc"], found["acc_at_80"]] == pytest.approx(list(expected), abs=1e-12)


def test_aurc_by_hand():
    found = ranked(*arrays([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, True, False]))
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert found["acc_at_80"] == pytest.approx(3 / 4)


weighted = st.lists(st.tuples(confidences, st.booleans(), st.integers(0, 5)), min_size=1, max_size=60)


@given(weighted)
def test_a_weight_is_a_number_of_copies(rows):
    confidence, correct, copies = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.stack([copies, np.ones_like(copies)], axis=1)
    for measure in (reliability, ranked):
        expected = measure(np.repeat(confidence, copies).astype(float), np.repeat(correct, copies).astype(bool))
        plain = measure(confidence, correct)
        for precision, tolerance in ((np.float64, 1e-12), (np.float32, 2e-5)):
            found = measure(confidence, correct, weights=weights.astype(precision))
            for name, value in found.items():
                assert list(value) == pytest.approx([expected[name], plain[name]], abs=tolerance, nan_ok=True), name


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_the_documents_changes_nothing(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for measure in (reliability, ranked):
        one, other = (measure(*arrays(*zip(*some, strict=True))) for some in (pairs, shuffled))
        assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


def test_a_large_sample_goes_through_many_blocks():
    rng = np.random.default_rng(8)
    confidence = np.round(rng.beta(4, 1, 3000), 4)
    correct = rng.uniform(size=3000) < confidence
    found = ranked(confidence, correct)
    order = np.argsort(-confidence + 1e-9 * rng.uniform(size=3000))
    assert found["ece_mass"] == pytest.approx(mass_by_loop(confidence, correct), abs=1e-12)
    assert found["auroc"] == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)
    assert [found["aurc"], found["acc_at_80"]] == pytest.approx(selective(confidence, correct[order]), abs=2e-3)


def test_the_largest_gap_of_a_bin():
    confidence, correct = [0.62, 0.66, 0.9, 0.96, 1.0], [True, False, True, False, False]
    assert reliability(confidence, correct)["mce"] == pytest.approx(0.98)


def test_confidence_1_is_in_the_last_bin():
    # torchmetrics gives 1.0 a bin of its own: (0.05 + 0) / 2 here, instead of |mean of 0.95 and 1 − 1 / 2| = 0.475.
    found = reliability([0.95, 1.0], [True, False])
    assert found["ece_width"] == pytest.approx(0.475)
    assert found["mce"] == pytest.approx(0.475)


def test_squared_ece_is_right_on_average_whatever_the_noise():
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.3, 1, 200)
    for off in (0.0, 0.1):
        chance = np.maximum(confidence - off, 0)
        bins = bin_of(confidence)
        # Given which documents there are, a bin's gap is that of its confidences to their true chances.
        truth = sum((confidence - chance)[bins == b].mean() ** 2 * np.mean(bins == b) for b in np.unique(bins))
        found = [reliability(confidence, rng.uniform(size=200) < chance) for _ in range(300)]
        debiased = np.array([one["ece_squared"] for one in found])
        assert debiased.mean() == pytest.approx(truth, abs=4 * debiased.std() / 300**0.5)
        plain = np.mean([one["ece_width"] for one in found]) ** 2
        assert plain > truth + 0.002  # the plain estimate is too large, which is why there is another one


def test_a_bin_of_one_document_does_not_count_in_squared_ece():
    assert reliability([0.9], [False])["ece_squared"] == 0
    # Two documents of gaps −0.1 and 0.9: the squared mean 0.16 less half of the variance 0.5.
    assert reliability([0.9, 0.9, 0.5], [True, False, True])["ece_squared"] == pytest.approx((0.16 - 0.25) * 2 / 3)


def test_the_noise_floor_is_the_mean_ece_of_a_model_that_is_right_as_often_as_it_says():
    confidence = np.r_[np.full(150, 0.7), np.full(50, 0.95)]
    drawn = luck(300, np.arange(100, 300))
    found = noise_floor(drawn_gaps(confidence, drawn), 200)
    # The mean absolute deviation of a binomial distribution, bin by bin.
    expected = sum(
        np.abs(np.arange(n + 1) - n * p) @ scipy.stats.binom.pmf(np.arange(n + 1), n, p)
        for n, p in ((150, 0.7), (50, 0.95))
    )
    assert found == pytest.approx(expected / 200, rel=0.1)
    every = luck(10_000, np.arange(10_000))
    many = np.mean([noise_floor(drawn_gaps(confidence, part), 200) for part in np.split(every, 50)])
    assert many == pytest.approx(expected / 200, rel=0.02)
    assert np.isnan(noise_floor(drawn_gaps(np.empty(0), luck(3, np.empty(0, np.int64))), 0))


def test_matched_ece_has_the_accuracy_it_is_asked_for():
    confidence, correct = [0.9] * 4, [True, True, False, False]
    assert reliability(confidence, correct, target=0.75)["ece_width_matched"] == pytest.approx(0.9 - 0.75)
    assert reliability(confidence, correct, target=0.5)["ece_width_matched"] == pytest.approx(0.4)
    assert np.isnan(reliability([0.9], [True], target=0.5)["ece_width_matched"])  # there are no wrong ones to weight up
    assert reliability([0.9], [True], target=1.0)["ece_width_matched"] == pytest.approx(0.1)


@given(st.randoms(use_true_random=False), st.integers(1, 40), st.integers(1, 5))
def test_the_parts_of_the_brier_score_add_up(random, count, choices):
    rng = np.random.default_rng(random.randrange(2**32))
    sizes = rng.integers(1, choices + 1, count)
    logits = np.where(np.arange(choices) < sizes[:, None], rng.normal(0, 2, (count, choices)), -np.inf)
    gold = rng.integers(0, sizes)
    made = predictions(logits, gold)
    found = classes(made, sizes, gold)
    parts = found["brier_reliability"] - found["brier_resolution"] + found["brier_uncertainty"] + found["brier_within"]
    assert parts == pytest.approx(made.brier.mean(), abs=1e-12)
    within, total, ece = 0.0, 0.0, []
    for c in range(choices):
        mine = sizes > c
        p, y = made.probability[mine, c], (gold == c)[mine].astype(float)
        for b in np.unique(bin_of(p)):
            inside = bin_of(p) == b
            spread, label = p[inside] - p[inside].mean(), y[inside] - y[inside].mean()
            within += (spread @ spread - 2 * spread @ label) / count
            total += inside.sum() * (p[inside].mean() - y[inside].mean()) ** 2 / count
        if mine.any():
            ece.append(width_by_loop(p, y))
    assert found["brier_within"] == pytest.approx(within, abs=1e-12)
    assert found["brier_reliability"] == pytest.approx(total, abs=1e-12)
    assert found["ece_classwise"] == pytest.approx(np.mean(ece), abs=1e-12)


def test_murphys_identity_is_exact_where_a_bin_holds_one_probability():
    logits, gold = np.log([[0.7, 0.3]] * 10), np.array([0] * 6 + [1] * 4)
    found = classes(predictions(logits, gold), np.full(10, 2), gold)
    assert found["brier_within"] == pytest.approx(0, abs=1e-12)
    assert found["brier_reliability"] == pytest.approx(2 * 0.1**2)
    assert found["brier_resolution"] == pytest.approx(0, abs=1e-12)
    assert found["brier_uncertainty"] == pytest.approx(2 * 0.6 * 0.4)


# Sums over documents


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("documents", [slice(None), slice(4), slice(4, None), slice(5, 3), slice(7, None)])
def test_sums_are_those_of_a_dense_matrix(dtype, documents):
    rng = np.random.default_rng(2)
    row, document, value = rng.integers(3, size=30), rng.integers(7, size=30), rng.integers(-8, 9, 30) / 4
    dense = np.zeros((3, 7))
    np.add.at(dense, (row, document), value)
    matrix, weights = SumMatrix(row, document, value, (3, 7)), rng.integers(5, size=(7, 4)).astype(dtype)
    for _ in range(2):  # the second time it is known already
        assert (
            matrix.sums(weights[documents], documents).tolist() == (dense[:, documents] @ weights[documents]).tolist()
        )
