"""What each document contributes to the metrics: pure NumPy, float64.

Shapes: D documents, C choices (documents with fewer choices are padded with −inf, which is probability 0).
"""

from dataclasses import dataclass

import numpy as np

from calibration.arrays import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class Predictions:
    """What each of D documents contributes to the metrics."""

    choice: Ints  # [D] the predicted one
    probability: Floats  # [D, C]
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
        empty = np.empty(0)
        return Predictions(np.empty(0, np.int64), np.empty(logits.shape), empty, np.empty(0, np.bool_), empty, empty)
    predicted = np.argmax(logits, axis=1)  # of the scores: two that differ can round to one probability
    shifted = logits - logits[rows, predicted][:, None]
    odds = np.exp(shifted)
    total = odds.sum(axis=1)
    # A quotient, not exp(log-softmax): equal choices then have exactly 1/C, which can be the edge of a bin.
    probability = odds / total[:, None]
    error = probability.copy()
    error[rows, gold] -= 1.0
    return Predictions(
        choice=predicted,
        probability=probability,
        confidence=probability[rows, predicted],
        correct=predicted == gold,
        brier=np.square(error).sum(axis=1),
        nll=np.log(total) - shifted[rows, gold],
    )


def perplexity(nll: Floats) -> Floats:
    """exp of mean NLLs in nats, any shape; infinite where the NLL is, NaN where it is finite but exp(NLL) is not."""
    with np.errstate(over="ignore"):
        found = np.exp(nll)
    return np.where(np.isinf(found) & np.isfinite(nll), np.nan, found)
