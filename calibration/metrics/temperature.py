"""Temperature scaling is the cheap alternative to moving along λ; one half of the documents is scaled by the other's fit."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from calibration.arrays import Floats, Ints

RANGE = (0.01, 100.0)


def fit_temperature(logits: Floats, gold: Ints) -> float | None:
    """Return the T > 0 for which softmax(logits / T) has the lowest NLL, or None without documents that T can change.

    The NLL is convex in 1 / T. Where it has no minimum (if all documents are right, the surer is the better) T is the end of
    RANGE that the NLL falls towards. A document whose gold choice has probability 0 has it at every T and is left out.

    Args:
        logits: float64 [D, C], the log-probabilities up to a constant for each document; −inf is probability 0.
        gold: int64 [D], the place of the right choice.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    scores = logits[np.arange(len(gold)), gold]
    usable = np.isfinite(scores) & (np.isfinite(logits).sum(axis=1) > 1)
    if not usable.any():
        return None
    # z is relative to the gold choice, so that the derivative of the NLL is the mean of Σ_c p_c z_c.
    z = logits[usable] - scores[usable, None]
    exists = np.isfinite(z)
    finite = np.where(exists, z, 0.0)

    def slope(log_inverse: float) -> float:
        scaled = np.where(exists, finite * np.exp(log_inverse), -np.inf)
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(((odds * finite).sum(axis=1) / odds.sum(axis=1)).mean())

    return _temperature(slope)


def match_temperature(logits: Floats, target: Floats) -> float | None:
    """Return the T > 0 for which softmax(logits / T) is nearest to a target, or None without documents that T can change.

    Nearest is the lowest mean over documents of KL(target || softmax(logits / T)). That is convex in 1 / T; where it has no
    minimum, T is the end of RANGE that it falls towards. A document is left out whose target has probability where its
    logits have none, because its KL is infinite at every T.

    Args:
        logits: float64 [D, C], the log-probabilities up to a constant for each document; −inf is probability 0.
        target: float64 [D, C], probabilities that add up to 1 for each document.
    """
    exists = np.isfinite(logits)
    usable = ~((target > 0) & ~exists).any(axis=1) & (exists.sum(axis=1) > 1)
    if not usable.any():
        return None
    exists, target = exists[usable], target[usable]
    z = np.where(exists, logits[usable] - logits[usable].max(axis=1, keepdims=True), 0.0)
    wanted = (target * z).sum(axis=1)

    def slope(log_inverse: float) -> float:
        odds = np.where(exists, np.exp(z * np.exp(log_inverse)), 0.0)
        return float(((odds * z).sum(axis=1) / odds.sum(axis=1) - wanted).mean())

    return _temperature(slope)


def _temperature(slope: Callable[[float], float]) -> float:
    """Return T where the slope of a loss that is convex in 1 / T, as a function of −log T, crosses 0."""
    low, high = -np.log(RANGE[1]), -np.log(RANGE[0])
    if slope(low) >= 0:
        return RANGE[1]
    if slope(high) <= 0:
        return RANGE[0]
    return float(np.exp(-brentq(slope, low, high, xtol=1e-8)))


def cross_fitted(logits: Floats, gold: Ints, report: slice) -> tuple[float | None, float | None]:
    """Return the temperature for the documents of `select` and the one for those of `report`.

    Each is fitted on the other half, so no document is scored with a temperature that it helped to fit.

    Args:
        logits: float64 [D, C], as `fit_temperature` takes them.
        gold: int64 [D], the place of the right choice.
        report: the rows of `report`, which come last.
    """
    select = slice(report.start)
    return fit_temperature(logits[report], gold[report]), fit_temperature(logits[select], gold[select])
