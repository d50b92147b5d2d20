"""Cumulative differences are a calibration error without bins: no width is to be chosen, and it has a test of its own.

In order of confidence, the differences confidence − correctness are summed up. Where a model is calibrated, the sum wanders
around 0 as a random walk does; where it is not, it drifts.

Sources: C. Gupta et al., "Calibration of neural networks using splines", ICLR 2021, who take the largest sum as the error
(the statistic of Kolmogorov and Smirnov); I. Arrieta-Ibarra et al., "Metrics of calibration for probabilistic predictions",
JMLR 23 (2022), who give its distribution for a calibrated model.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from calibration.arrays import Bools, Floats

POINTS = 32  # a curve is drawn through so many points
LEAST_VARIANCE = 25.0


@dataclass(frozen=True, slots=True)
class Cumulative:
    """The cumulative differences of D documents at their K distinct confidences, ascending."""

    share: Floats  # [K] the share of the documents up to here
    gap: Floats  # [K] the sum of confidence − correctness up to here, divided by D
    variance: float  # of the number of right answers, if the model is calibrated: the sum of p · (1 − p)
    sigma: float  # the standard deviation of the last gap, if the model is calibrated

    @property
    def statistic(self) -> float:
        """Return the largest absolute gap, in [0, 1]; NaN without documents."""
        return float(np.abs(self.gap).max()) if len(self.gap) else float("nan")

    @property
    def p_value(self) -> float:
        """Return how often a calibrated model has as large a statistic.

        It is NaN where `variance` is below LEAST_VARIANCE: where next to no error is expected, a walk of few large steps is
        no Brownian motion, and one wrong answer would count for too much.
        """
        if not len(self.gap):
            return float("nan")
        if self.sigma == 0:  # no answer is open, so a calibrated model has no gap at all
            return 1.0 if self.statistic < 1e-12 else 0.0
        return exceeded(self.statistic / self.sigma) if self.variance >= LEAST_VARIANCE else float("nan")


def cumulative(confidence: Floats, correct: Bools) -> Cumulative:
    """Return the cumulative differences of D documents.

    Documents of equal confidence are added at once, so that their order does not matter. The largest gap of a walk that is
    looked at less often is smaller, which makes the p-value err on the safe side.

    Args:
        confidence: float64 [D], the probability of the predicted choice.
        correct: bool [D], whether it is the right one.
    """
    level, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    count = max(len(confidence), 1)
    gap = np.bincount(group, confidence - correct, len(level)).cumsum() / count
    variance = float((confidence * (1 - confidence)).sum())
    return Cumulative(size.cumsum() / count, gap, variance, float(np.sqrt(variance)) / count)


def exceeded(height: float) -> float:
    """Return the probability that a Brownian motion on [0, 1] leaves [−height, height].

    Two series are equal, of W. Feller, "An Introduction to Probability Theory and Its Applications" II (1971), section X.5:
    1 − (4/π) Σ_k (−1)^k / (2k + 1) · exp(−(2k + 1)² π² / (8 height²)), which converges fast for small heights, and
    4 Σ_k (−1)^k Φ(−(2k + 1) height), which does for large ones.
    """
    if height <= 0:
        return 1.0
    odd, sign = 2 * np.arange(100) + 1, (-1.0) ** np.arange(100)
    if height >= 1:
        return float(np.clip(4 * (sign * ndtr(-odd * height)).sum(), 0.0, 1.0))
    inside = 4 / np.pi * (sign / odd * np.exp(-(odd**2) * np.pi**2 / (8 * height**2))).sum()
    return float(np.clip(1 - inside, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Walk:
    """A curve of cumulative differences as a figure draws it."""

    points: tuple[tuple[float, float], ...]  # (share of the documents, gap), at most POINTS + 2
    statistic: float
    p_value: float
    band: float | None  # 95 % of the curves of a calibrated model stay within ±band; None where there is no p-value


def walk_of(confidence: Floats, correct: Bools) -> Walk | None:
    """Return the curve of D documents, as `cumulative` takes them, thinned out; None without any."""
    found = cumulative(confidence, correct)
    if not len(found.gap):
        return None
    even = np.searchsorted(found.share, np.linspace(0, 1, POINTS)[1:] - 1e-12)
    kept = np.unique([*even, int(np.abs(found.gap).argmax()), len(found.gap) - 1])
    points = ((0.0, 0.0), *((float(found.share[k]), float(found.gap[k])) for k in kept))
    band = _band() * found.sigma if found.variance >= LEAST_VARIANCE else None
    return Walk(points, found.statistic, found.p_value, band)


@functools.cache
def _band(level: float = 0.95) -> float:
    """Return the height within which a Brownian motion on [0, 1] stays with this probability."""
    return float(brentq(lambda height: exceeded(height) - (1 - level), 0.5, 10, xtol=1e-9))
