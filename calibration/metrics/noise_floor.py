"""The noise floor of ECE is what ECE a model would show that is right exactly as often as it says, on as many documents.

Its right and wrong answers are drawn from its own confidence. The mean ECE over such draws is above 0, because the gaps of
bins are noisy; an ECE near it is no sign of miscalibration. It is about 0.08 for 150 documents of four choices.

Source: J. Bröcker, L. A. Smith, "Increasing the reliability of reliability diagrams", Weather Forecast. 22 (2007).
"""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from calibration.arrays import BINS, Floats, Ints
from calibration.metrics.binned import bin_of

DRAWS = 200
_SEED = 2007


def luck(documents: int, document: Ints) -> NDArray[np.float32]:
    """Return the random numbers [D, DRAWS] in [0, 1) of these documents [D] of a task, which are the same at every λ."""
    return np.random.default_rng(_SEED).random((documents, DRAWS), np.float32)[document]


def drawn_gaps(confidence: Floats, drawn: NDArray[np.float32], bins: int = BINS) -> Floats:
    """Return the sums of confidence − correctness [B, DRAWS] in bins of equal width, of answers drawn from confidence.

    Args:
        confidence: float64 [D], the probability of the predicted choice.
        drawn: what `luck` returns for these documents; an answer is right where it is below the confidence.
        bins: the number B of bins.
    """
    rows, count = bin_of(confidence, bins), len(confidence)
    member = scipy.sparse.csr_matrix((np.ones(count, np.float32), (rows, np.arange(count))), shape=(bins, count))
    right = (drawn < confidence.astype(np.float32)[:, None]).astype(np.float32)
    expected = np.bincount(rows, confidence, bins)
    return np.asarray(expected[:, None] - (member @ right).astype(np.float64))


def noise_floor(gaps: Floats, documents: int) -> float:
    """Return the mean ECE of the draws, in [0, 1], from gaps [B, DRAWS] of so many documents; NaN without any."""
    return float(np.abs(gaps).sum(axis=0).mean() / documents) if documents else float("nan")
