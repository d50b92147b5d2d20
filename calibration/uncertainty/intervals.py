"""This module makes the interval of a number from its resamples."""

from collections.abc import Sequence
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
    """Return the 95 % interval of one metric [intervals]."""
    return intervals([(estimate, metric)])[0]


def intervals(several: Sequence[tuple[Estimate, str]]) -> list[Interval | None]:
    """Return the 95 % interval of each of several metrics, or of differences of them to a parent (`…_vs_…`).

    The catalogue says which of these a metric has:

    percentile: the middle 95 % of the resamples, by order statistics without interpolation. The source is A. C. Davison,
        D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 5.3.
    honest: from value − q.975(`over`) to value − q.025(`under`). Errors that are sums of absolute or squared deviations have
        it: at 0 such a sum is not differentiable, and no ordinary bootstrap of it is consistent there [Z. Fang, A. Santos,
        "Inference on directionally differentiable functions", Rev. Econ. Stud. 86 (2019)]. It holds the value, and it is cut
        at 0 unless the metric is a difference.
    normal: value ± 1.96 standard deviations of the resamples.

    Returns:
        The intervals; None where there is no value, fewer than two documents, or no value in more than half of the
        resamples. Resamples without a value, as AUROC has none where all drawn documents are right, are left out.
    """
    found: list[Interval | None] = [None] * len(several)
    places = [i for i, (one, _) in enumerate(several) if not np.isnan(one.value) and one.n >= 2]
    draws: list[Floats] = []
    for i in places:
        draws += _bounds(several[i][0])
    middles = iter(_middles(draws))
    for i in places:
        one, metric = several[i]
        # The low end comes from the first of the draws, and the high one from the last.
        ends = [next(middles) for _ in _bounds(one)]
        low, high = ends[0], ends[-1]
        if low is not None and high is not None:
            found[i] = _around(one, metric, Interval(low.low, high.high, high.resamples))
    return found


def _bounds(estimate: Estimate) -> list[Floats]:
    if estimate.over is None or estimate.under is None:
        return [estimate.resampled]
    return [estimate.under, estimate.over]


def _around(estimate: Estimate, metric: str, middle: Interval) -> Interval:
    """Return the interval of a metric from the middle 95 % of what its draws say."""
    if estimate.over is not None and estimate.under is not None:
        # Both ends are on their sides of the value, up to what a finite number of resamples leaves open.
        low = min(estimate.value - middle.high, estimate.value)
        high = max(estimate.value - middle.low, estimate.value)
        resamples = middle.resamples if len(estimate.over) > 1 else 0
        return Interval(low if "_vs_" in metric else max(low, 0.0), high, resamples)
    known = catalogue.find(metric)
    if not known or known.interval != "normal":
        return middle
    half = float(ndtri((1 + LEVEL) / 2)) * float(np.nanstd(estimate.resampled))
    return Interval(estimate.value - half, estimate.value + half, middle.resamples)


def _middles(several: Sequence[Floats]) -> list[Interval | None]:
    """Return between which values the middle 95 % of each of several sets of draws lie, and how many draws have a value.

    It is None where more than half of the draws have none. Sets of one size are looked at together, which is fast.
    """
    found: list[Interval | None] = [None] * len(several)
    alike: dict[int, list[int]] = {}
    for i, drawn in enumerate(several):
        alike.setdefault(len(drawn), []).append(i)
    for size, members in alike.items():
        matrix = np.stack([several[i] for i in members])
        counts = size - np.count_nonzero(np.isnan(matrix), axis=1)
        for count in map(int, np.unique(counts)):
            if count == 0 or 2 * count < size:
                continue
            rows = np.flatnonzero(counts == count)
            some = matrix if len(rows) == len(matrix) else matrix[rows]
            first = max(int((1 - LEVEL) / 2 * (count + 1)) - 1, 0)
            last = count - 1 - first
            some.partition(sorted({first, last}), axis=1)  # NaN counts as the largest
            for row, low, high in zip(rows.tolist(), some[:, first].tolist(), some[:, last].tolist(), strict=True):
                found[members[row]] = Interval(low, high, count)
    return found
