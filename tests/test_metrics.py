"""The metrics against hand-computed cases, scikit-learn, and loops that restate each definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from calibration.binned import Layout, add_reliability, reliability_metrics
from calibration.metrics import BINS, Predictions, perplexity, predictions
from calibration.ranked import Ranking
from calibration.resample import ones


def made_of(confidence, correct):
    """Predictions of which only these are known."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.bool_)
    unknown = np.zeros(len(confidence))
    return Predictions(unknown.astype(int), unknown[:, None], confidence, correct, unknown, unknown)


def reliability(confidence, correct, bins=BINS, weights=None, target=None):
    layout = Layout(len(confidence))
    add_reliability(layout, made_of(confidence, correct), bins)
    weights = ones(len(confidence)) if weights is None else weights
    target = None if target is None else np.array([target])
    found = reliability_metrics(layout, layout.matrix.sums(weights), bins, target)
    return {name: value[0] for name, value in found.items()}


def ranked(confidence, correct, bins=BINS, weights=None):
    weights = ones(len(confidence)) if weights is None else weights
    return {name: value[0] for name, value in Ranking(confidence, correct, bins).metrics(weights).items()}


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


# Edges of the bins, both neighbours of each, and few distinct values, so that ties and edges come up all the time.
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


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_the_documents_changes_no_ece(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for ece in (ece_width, ece_mass):
        one, other = (ece(*arrays(*zip(*some, strict=True))) for some in (pairs, shuffled))
        assert one == pytest.approx(other, abs=1e-12)


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
    # Three right and one wrong at 0.5, cut into two bins: 0.25 whichever document is where; cut as they stand, 0.25 or
    # 0.5 by their order.
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
    assert made.nll.tolist() == [800.0, 0.0]  # log p, not the log of a p that became 0
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
        assert ece(certain, np.zeros(20, np.bool_)) == 1


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
    assert np.isnan(found[2])  # finite, but above the largest float
