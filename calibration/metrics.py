"""Accuracy, calibration and likelihood of per-document scores: pure NumPy, float64, one formula per function.

Shapes: D documents, C choices (documents with fewer choices are padded with −inf, which is probability 0). A metric of
no documents is None: a number is right or absent.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What each of D documents contributes to the metrics."""

    confidence: Floats  # [D] probability of the predicted choice
    correct: Bools  # [D] the predicted choice is the gold one
    brier: Floats  # [D] squared error summed over the choices, in [0, 2]
    nll: Floats  # [D] −log p(gold), nats, in [0, ∞]


def predictions(logits: Floats, gold: Ints) -> Predictions:
    """Turn the scores of the choices into one prediction per document.

    The prediction is the choice with the highest score; of equal ones, the first (as in lm-eval).

    Args:
        logits: float64 [D, C], log-probabilities up to an additive constant per document; −inf is probability 0. No
            NaN, no +inf, and at least one finite score per document.
        gold: int64 [D], the index of the right choice.

    Sources:
        Brier score: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
        78 (1950): the original multi-class form Σ_c (p_c − y_c)², which is in [0, 2]; for two choices it is twice the
        one-sided form that some libraries call Brier.
    """
    rows = np.arange(len(gold))
    if len(rows) == 0:
        return Predictions(np.empty(0), np.empty(0, np.bool_), np.empty(0), np.empty(0))
    predicted = np.argmax(logits, axis=1)  # of the scores: two that differ can round to one probability
    shifted = logits - logits[rows, predicted][:, None]
    odds = np.exp(shifted)
    total = odds.sum(axis=1)
    # A quotient, not exp(log-softmax): equal choices then have exactly 1/C, which can be the edge of a bin.
    probability = odds / total[:, None]
    error = probability.copy()
    error[rows, gold] -= 1.0
    return Predictions(
        confidence=probability[rows, predicted],
        correct=predicted == gold,
        brier=np.square(error).sum(axis=1),
        nll=np.log(total) - shifted[rows, gold],
    )


def mean(values: Floats | Bools) -> float | None:
    """Mean of one number per document: accuracy, mean confidence, Brier score and NLL are all this. [D] → scalar."""
    return float(np.mean(values, dtype=np.float64)) if len(values) else None


def overconfidence(confidence: Floats, correct: Bools) -> float | None:
    """Mean confidence − accuracy, in [−1, 1]; above 0 is overconfident. [D], [D] → scalar."""
    return mean(confidence - correct)


def perplexity(nll: float | None) -> float | None:
    """exp of a mean NLL in nats; infinite where the NLL is, None where it is finite but exp(NLL) exceeds float64."""
    try:
        return None if nll is None else math.exp(nll)
    except OverflowError:
        return None


def ece_width(confidence: Floats, correct: Bools, bins: int = BINS) -> float | None:
    """Expected calibration error over bins of equal width: Σ_b (n_b / D) · |accuracy_b − mean confidence_b|, in [0, 1].

    Bin b is (b / bins, (b + 1) / bins]: open on the left, closed on the right; 0.0 is in the first. Empty bins count
    nothing. [D], [D] → scalar.

    Sources:
        M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
        AAAI 2015; with this side of the edges and 15 bins: C. Guo et al., "On calibration of modern neural networks",
        ICML 2017, section 2.
    """
    # k / bins is rounded once, as a confidence of k / bins is; np.linspace multiplies, and at 10 bins misses 0.3.
    edges = np.arange(1, bins) / bins
    return _ece(confidence - correct, np.searchsorted(edges, confidence, side="left"), bins)


def ece_mass(confidence: Floats, correct: Bools, bins: int = BINS) -> float | None:
    """Expected calibration error over bins of equal mass: the formula of `ece_width`, in [0, 1].

    The documents are sorted by confidence and cut into `bins` runs as np.array_split does: sizes differ by at most 1
    and the larger ones come first; with D < bins each document is a bin of its own. Documents of equal confidence are
    one point of the reliability curve: each of them counts with their common accuracy, so that which of them falls on
    which side of a cut does not matter and the order of the documents changes nothing. [D], [D] → scalar.

    Sources:
        J. Nixon et al., "Measuring calibration in deep learning", CVPR workshops 2019 (the adaptive scheme, here of the
        top choice's confidence); Naeini et al., AAAI 2015, for the sum. The treatment of ties is ours: saturated
        models give 1.0 to many documents, right and wrong ones.
    """
    level, group = np.unique(confidence, return_inverse=True)  # sorted
    size = np.bincount(group, minlength=len(level))
    accuracy = np.bincount(group, weights=correct, minlength=len(level)) / size
    gap = np.repeat(level - accuracy, size)  # [D] in order of confidence
    quotient, remainder = divmod(len(confidence), bins)
    return _ece(gap, np.repeat(np.arange(bins), quotient + (np.arange(bins) < remainder)), bins)


def _ece(gap: Floats, bin_of: Ints, bins: int) -> float | None:
    """Σ_b |Σ_{i in b} gap_i| / D. [D], [D] → scalar."""
    if len(gap) == 0:
        return None
    return float(np.abs(np.bincount(bin_of, weights=gap, minlength=bins)).sum() / len(gap))
