"""A resample's metrics of a choice task at one λ are those of the sample that it is."""

import numpy as np
import pytest

from calibration.metrics.choice_tasks import choice_estimates, parent_predictions
from calibration.scores.per_document import CONFIDENCES, ChoiceScores, LeftOut
from calibration.scores.per_token import TokenScores
from calibration.uncertainty.resample import Resamples, draw

NO_TOKENS = TokenScores(np.empty(0, np.int64), np.empty(0), np.empty(0, np.bool_))


def scores_of(documents, seed=0, decimals=1):
    """Return documents of one to four choices, rounded so that some confidences are equal."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, documents)
    logits = {}
    for confidence in CONFIDENCES:
        rows = np.round(rng.normal(0, 2, (documents, 4)), decimals)
        logits[confidence] = np.where(np.arange(4) < sizes[:, None], rows, -np.inf)
    return ChoiceScores(np.arange(documents), sizes, rng.integers(0, sizes), logits, LeftOut(0, 0))


def copies(scores, count):
    """Return the sample in which document d is there `count[d]` times."""
    document = np.repeat(scores.document, count)
    logits = {confidence: rows[document] for confidence, rows in scores.logits.items()}
    return ChoiceScores(document, scores.sizes[document], scores.gold[document], logits, scores.left_out)


@pytest.mark.parametrize("documents", [5, 90])
def test_a_resample_is_the_sample_of_the_documents_drawn(documents):
    scores, resamples = scores_of(documents), draw("quiz", documents, 7)
    found = choice_estimates(scores, NO_TOKENS, resamples, {}, None)
    metrics = {metric for metric, _, _ in found}
    assert metrics >= {"acc", "ece_mass15", "ece_classwise15", "auroc", "aurc", "acc_at_80", "smece", "brier_within"}
    for r in range(7):
        drawn = copies(scores, resamples.counts[:, r])
        alone = choice_estimates(drawn, NO_TOKENS, Resamples(resamples.in_report, resamples.counts[:, :0]), {}, None)
        for (metric, confidence, split), estimate in found.items():
            if metric.endswith("_scaled") or metric == "temperature":
                continue  # a resample is scaled by the sample's temperature
            if metric in ("smece", "ece_floor15", "nll_skill_prior", "ks", "ks_p"):
                # A resample is smoothed as widely as the sample, its prior is the sample's, and labels are not drawn again.
                continue
            expected = alone[metric, confidence, split].value
            assert estimate.resampled[r] == pytest.approx(expected, abs=5e-5, nan_ok=True), (metric, confidence, split)


def test_the_order_of_the_documents_changes_nothing():
    scores, resamples = scores_of(80), draw("quiz", 80, 5)
    order = np.random.default_rng(1).permutation(80)
    logits = {confidence: rows[order] for confidence, rows in scores.logits.items()}
    shuffled = ChoiceScores(scores.document[order], scores.sizes[order], scores.gold[order], logits, scores.left_out)
    one, other = (choice_estimates(some, NO_TOKENS, resamples, {}, None) for some in (scores, shuffled))
    for key, estimate in one.items():
        assert estimate.value == pytest.approx(other[key].value, abs=1e-9, nan_ok=True), key
        assert estimate.resampled == pytest.approx(other[key].resampled, abs=1e-4, nan_ok=True), key


def test_a_parent_agrees_with_itself_and_is_matched_to_itself():
    scores, resamples = scores_of(40), draw("quiz", 40, 9)
    parent = {"aligned": parent_predictions(scores)}
    first = choice_estimates(scores, NO_TOKENS, resamples, parent, None)
    again = choice_estimates(scores, NO_TOKENS, resamples, parent, first)
    for confidence in CONFIDENCES:
        for split in ("all", "select", "report"):
            assert first["agreement_aligned", confidence, split].value == 1
            own, matched = (again[name, confidence, split] for name in ("ece_width15", "ece_width15_matched"))
            assert matched.value == pytest.approx(own.value, abs=1e-12)
            assert matched.resampled == pytest.approx(own.resampled, abs=1e-6)
    assert ("ece_width15_matched", "sum", "all") not in first


def test_equal_confidences_have_equal_metrics_under_their_own_names(monkeypatch):
    """Where choices are one token each, the metrics of all confidences are computed once."""
    scores, resamples = scores_of(60), draw("quiz", 60, 8)
    scores.logits["tokens"] = scores.logits["sum"].copy()
    parent = {"aligned": parent_predictions(scores)}
    found = choice_estimates(scores, NO_TOKENS, resamples, parent, None)
    monkeypatch.setattr("calibration.metrics.choice_tasks._distinct", lambda scores, names: (list(names), {}))
    expected = choice_estimates(scores, NO_TOKENS, resamples, parent, None)
    assert found.keys() == expected.keys()
    for key, estimate in expected.items():
        assert np.array_equal(found[key].value, estimate.value, equal_nan=True), key
        assert np.array_equal(found[key].resampled, estimate.resampled, equal_nan=True), key
