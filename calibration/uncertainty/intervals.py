"""A number, how it varies over resamples, and the interval that follows."""

from dataclasses import dataclass

import numpy as np

from calibration import catalogue
from calibration.arrays import Floats

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of n documents."""

    value: float  # NaN: there is none
    resampled: Floats  # [R] in the resamples, NaN where there is none in one; none at all where no interval is wanted
    n: int

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference on the same documents and in the same resamples."""
        size = min(len(self.resampled), len(other.resampled))
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is no difference
            value = float(np.subtract(self.value, other.value))
            return Estimate(value, self.resampled[:size] - other.resampled[:size], self.n)


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle 95 % of a number's resamples."""

    low: float
    high: float
    resamples: int  # the number of resamples that the interval was made of


def interval(estimate: Estimate, metric: str) -> Interval | None:
    """Return the 95 % bootstrap interval of a metric, or of a difference of it to a parent (`…_vs_…`).

    It is the percentile interval, from order statistics without interpolation. Errors that are sums of absolute or squared
    deviations (`basic` and `signed` in the catalogue) have the basic interval, 2 · value − percentiles, instead: noise
    biases such a sum upwards, each resample adds that bias once more, and percentiles would be off by twice the bias. The
    basic interval takes the bias away, so it may lie below the value itself; it is cut at 0 unless the metric is a
    difference or `signed`. (In simulations with 300 documents and a true ECE of 0.04 the basic interval held the true value
    93 times of 100, the percentile interval never. For a perfectly calibrated model, whose ECE of 0 is the end of the
    range, the basic interval held it half of the time.)

    Returns:
        The interval; None where there is no value, fewer than two documents, or no value in more than half of the resamples.
        Resamples without a value, as AUROC has none where all drawn documents are right, are left out.

    Source: A. C. Davison, D. V. Hinkley, "Bootstrap Methods and their Application" (1997), sections 5.2 and 5.3.
    """
    drawn = np.sort(estimate.resampled)  # NaN last
    count = int(np.count_nonzero(~np.isnan(drawn)))
    if np.isnan(estimate.value) or estimate.n < 2 or count == 0 or 2 * count < len(drawn):
        return None
    tail = (1 - LEVEL) / 2
    first = max(int(tail * (count + 1)) - 1, 0)
    low, high = float(drawn[first]), float(drawn[count - 1 - first])
    known = catalogue.find(metric)
    kind = known.interval if known else "percentile"
    if kind in ("basic", "signed"):
        low, high = 2 * estimate.value - high, 2 * estimate.value - low
        if kind == "basic" and "_vs_" not in metric:
            low, high = max(low, 0.0), max(high, 0.0)
    if np.isnan(low) or np.isnan(high):
        return None
    return Interval(low, high, count)
