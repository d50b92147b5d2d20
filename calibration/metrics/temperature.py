"""Temperature scaling: the cheap alternative to moving along the line, fitted on one half of the documents for the other."""

import numpy as np
from scipy.optimize import brentq

from calibration.arrays import Floats, Ints

RANGE = (0.01, 100.0)


def fit_temperature(logits: Floats, gold: Ints) -> float | None:
    """Return the T > 0 for which softmax(logits / T) has the lowest NLL; None without documents that it can change.

    The NLL is convex in 1 / T. Where it has no minimum (all documents right: the surer the better) T is the end of RANGE
    that it falls towards. A document whose gold choice has probability 0 has it at every T and is left out.

    Args:
        logits: float64 [D, C], log-probabilities up to a constant per document; −inf is probability 0.
        gold: int64 [D], the right choice.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    scores = logits[np.arange(len(gold)), gold]
    usable = np.isfinite(scores) & (np.isfinite(logits).sum(axis=1) > 1)
    if not usable.any():
        return None
    # Relative to the gold choice, so that the derivative of the NLL is the mean of Σ_c p_c z_c.
    z = logits[usable] - scores[usable, None]
    exists = np.isfinite(z)
    finite = np.where(exists, z, 0.0)

    def slope(log_inverse: float) -> float:
        scaled = np.where(exists, finite * np.exp(log_inverse), -np.inf)
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(((odds * finite).sum(axis=1) / odds.sum(axis=1)).mean())

    low, high = -np.log(RANGE[1]), -np.log(RANGE[0])
    if slope(low) >= 0:
        return RANGE[1]
    if slope(high) <= 0:
        return RANGE[0]
    return float(np.exp(-brentq(slope, low, high, xtol=1e-8)))


def cross_fitted(logits: Floats, gold: Ints, report: slice) -> tuple[float | None, float | None]:
    """Return the temperatures for the documents of `select` and of `report`: each is fitted on the other half.

    No document is scored with a temperature that it helped to fit. [D, C], [D], the rows of `report`, which come last →
    (for select, for report)
    """
    select = slice(report.start)
    return fit_temperature(logits[report], gold[report]), fit_temperature(logits[select], gold[select])
