"""A prediction is what one document contributes to the metrics; it is computed in NumPy's float64.

In the shapes, D is the number of documents and C that of choices. Documents with fewer choices are padded with −inf, which
is probability 0.
"""

from dataclasses import dataclass

import numpy as np

from calibration.arrays import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions of D documents."""

    choice: Ints  # [D] the predicted choice of each document
    probability: Floats  # [D, C] the probability of each choice
    confidence: Floats  # [D] the probability of the predicted choice
    correct: Bools  # [D] whether the predicted choice is the gold one
    brier: Floats  # [D] the squared error summed over the choices, in [0, 2]
    nll: Floats  # [D] −log p(gold) in nats, in [0, ∞]


def predictions(logits: Floats, gold: Ints) -> Predictions:
    """Turn the scores of the choices into one prediction per document.

    The prediction is the choice with the highest score; of equal ones it is the first, as in lm-eval.

    Args:
        logits: float64 [D, C], the log-probabilities up to an additive constant for each document; −inf is probability 0.
            There is no NaN and no +inf, and each document has at least one finite score.
        gold: int64 [D], the place of the right choice.

    The Brier score is that of G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather
    Review 78 (1950), in the original multi-class form Σ_c (p_c − y_c)², which is in [0, 2]; for two choices it is twice the
    one-sided form that some libraries call Brier.
    """
    rows = np.arange(len(gold))
    if len(rows) == 0:
        empty = np.empty(0)
        return Predictions(np.empty(0, np.int64), np.empty(logits.shape), empty, np.empty(0, np.bool_), empty, empty)
    predicted = np.argmax(logits, axis=1)  # scores are compared, because two that differ can round to one probability
    shifted = logits - logits[rows, predicted][:, None]
    odds = np.exp(shifted)
    total = odds.sum(axis=1)
    # With a quotient instead of exp(log-softmax) equal choices have exactly 1/C, which can be the edge of a bin.
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
    """Return exp(NLL) of mean NLLs in nats, of any shape; it is NaN where the NLL is finite and exp(NLL) is not."""
    with np.errstate(over="ignore"):
        found = np.exp(nll)
    return np.where(np.isinf(found) & np.isfinite(nll), np.nan, found)
