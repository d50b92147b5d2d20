"""A number, how it varies over resamples, and the interval that follows."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from calibration import catalogue
from calibration.arrays import Floats

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of n documents."""

    value: float  # NaN: there is none
    resampled: Floats  # [R] in the resamples, NaN where there is none in one; none at all where no interval is wanted
    n: int
    # Noise pushes some errors upwards, so that resamples do not vary around them as they vary around the truth. These two
    # say, draw by draw, between which bounds the distance of the value from the truth varies [calibration.uncertainty.gaps].
    over: Floats | None = None  # [R] the value lies above the truth by no more than this
    under: Floats | None = None  # [R] the value lies above the truth by no less than this

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference on the same documents and in the same resamples."""
        size = min(len(self.resampled), len(other.resampled))
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is no difference
            value = float(np.subtract(self.value, other.value))
            drawn = self.resampled[:size] - other.resampled[:size]
        if self.over is None or self.under is None or other.over is None or other.under is None:
            return Estimate(value, drawn, self.n)
        size = min(len(self.over), len(other.over))
        over, under = self.over[:size] - other.under[:size], self.under[:size] - other.over[:size]
        return Estimate(value, drawn, self.n, over, under)


@dataclass(frozen=True, slots=True)
class Interval:
    """The 95 % interval of a number."""

    low: float
    high: float
    resamples: int  # the number of resamples that the interval was made of; 0 where it needs none


def interval(estimate: Estimate, metric: str) -> Interval | None:
    """Return the 95 % interval of a metric, or of a difference of it to a parent (`…_vs_…`).

    The catalogue says which of these a metric has:

    percentile: the middle 95 % of the resamples, by order statistics without interpolation. The source is A. C. Davison,
        D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 5.3.
    honest: from value − q.975(`over`) to value − q.025(`under`). Errors that are sums of absolute or squared deviations have
        it: at 0 such a sum is not differentiable, and no ordinary bootstrap of it is consistent there [Z. Fang, A. Santos,
        "Inference on directionally differentiable functions", Rev. Econ. Stud. 86 (2019)]. It holds the value, and it is cut
        at 0 unless the metric is a difference.
    normal: value ± 1.96 standard deviations of the resamples.

    Returns:
        The interval; None where there is no value, fewer than two documents, or no value in more than half of the resamples.
        Resamples without a value, as AUROC has none where all drawn documents are right, are left out.
    """
    if np.isnan(estimate.value) or estimate.n < 2:
        return None
    known = catalogue.find(metric)
    if estimate.over is not None and estimate.under is not None:
        return _honest(estimate, is_difference="_vs_" in metric)
    found = _middle(estimate.resampled, estimate.resampled)
    if found is None or not known or known.interval != "normal":
        return found
    half = float(ndtri((1 + LEVEL) / 2)) * float(np.nanstd(estimate.resampled))
    return Interval(estimate.value - half, estimate.value + half, found.resamples)


def _honest(estimate: Estimate, is_difference: bool) -> Interval | None:
    assert estimate.over is not None
    assert estimate.under is not None
    found = _middle(estimate.under, estimate.over)
    if found is None:
        return None
    # Both ends are on their sides of the value, up to what a finite number of resamples leaves open.
    low = min(estimate.value - found.high, estimate.value)
    high = max(estimate.value - found.low, estimate.value)
    resamples = found.resamples if len(estimate.over) > 1 else 0
    return Interval(low if is_difference else max(low, 0.0), high, resamples)


def _middle(low: Floats, high: Floats) -> Interval | None:
    """Return the 2.5 % quantile of one set of draws and the 97.5 % quantile of another, which may be the same."""
    ends = []
    count = 0
    for drawn, upper in ((low, False), (high, True)):
        if not upper or high is not low:
            count = len(drawn) - int(np.count_nonzero(np.isnan(drawn)))
        if count == 0 or 2 * count < len(drawn):
            return None
        first = max(int((1 - LEVEL) / 2 * (count + 1)) - 1, 0)
        place = count - 1 - first if upper else first
        ends.append(float(np.partition(drawn, place)[place]))  # NaN counts as the largest; one place at a time is fast
    return Interval(ends[0], ends[1], count)
