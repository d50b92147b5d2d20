"""Errors that are sums of absolute or squared gaps have intervals that are honest where gaps are 0, too.

Let g be the gaps of bins, μ their true values, and z = g − μ. For each gap s·z ≤ |g| − |μ| ≤ |z|, with s the sign of μ. The
upper bound is s·z itself where a gap is so large that its sign is known. Resamples stand in for z, so that an error of Σ|g|
lies above the truth by something between Σ s·z and Σ_S s·z + Σ_{∉S} |z|, where S are the gaps whose sign is known. These are
the gaps above √(ln n) standard errors: this grows, so that a gap of 0 is less and less often taken for another one, and more
slowly than √n, so that any other gap is found at last.

Source of the idea: Z. Fang, A. Santos, "Inference on directionally differentiable functions", Rev. Econ. Stud. 86 (2019),
section 3, where the bootstrap is consistent if it estimates the directional derivative.
"""

import numpy as np
from scipy.special import betaincinv

from calibration.arrays import Floats
from calibration.uncertainty.intervals import LEVEL, Estimate


def of_gaps(gaps: Floats, drawn: Floats, n: int, value: float | None = None) -> Estimate:
    """Return the error Σ_b |g_b| with what its honest interval is made of.

    Args:
        gaps: the gaps [B], as shares: the mean gap of a bin times the share of the documents in it.
        drawn: the same in R resamples [B, R].
        n: the number of documents.
        value: the error, where it is known more exactly than as the sum.
    """
    moved, sign = drawn - gaps[:, None], np.sign(gaps)
    under = np.einsum("b,br->r", sign, moved)  # no product of BLAS, whose sums depend on its threads
    exists = ~np.isnan(under)
    there = moved if exists.all() else moved[:, exists]
    if there.shape[1]:
        # Around the gaps, and hence nearly around the mean: little is lost in this difference.
        variance = np.einsum("br,br->b", there, there) / there.shape[1] - there.mean(axis=1) ** 2
        spread = np.sqrt(np.maximum(variance, 0.0))
    else:
        spread = np.zeros(len(gaps))
    known = np.abs(gaps) > np.sqrt(np.log(max(n, 1))) * spread
    unsure = moved[~known]
    over = np.einsum("b,br->r", sign * known, moved) + np.abs(unsure, out=unsure).sum(axis=0)
    error = min(float(np.abs(gaps).sum()), 1.0) if value is None else value  # shares can add up to 1 + 2e-16
    return Estimate(error, np.abs(drawn).sum(axis=0), n, over, under)


def of_squares(value: float, drawn: Floats, tangent: Floats, n: int) -> Estimate:
    """Return an error that is a weighted sum of squared gaps, with what its honest interval is made of.

    With w the weights and g, z as above, Σ w g² lies above Σ w μ² by Σ w (2 μ z + z²), which is at least Σ w 2 μ z.

    Args:
        value: the error.
        drawn: the error in R resamples [R].
        tangent: Σ w* (2 g g* − g²) in the same resamples [R], the error's tangent at the sample, which is below it.
        n: the number of documents.
    """
    return Estimate(value, drawn, n, drawn - value, tangent - value)


def of_largest(value: float, drawn: Floats, right: Floats, count: Floats, confidence: Floats, n: int) -> Estimate:
    """Return the largest gap of a bin, with bounds that need no resamples: bins of one document do not vary in these.

    The accuracy of each bin has its exact interval, at a level that holds for all bins at once (Bonferroni). The largest
    gap is at least the largest that any bin must have, and at most the largest that any may have.

    Args:
        value: the largest gap.
        drawn: the same in R resamples [R].
        right: the right documents of each bin that is not empty [B].
        count: the documents of these bins [B].
        confidence: their mean confidence [B].
        n: the number of documents.

    Source: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934); it holds, too, where the documents of a bin are right with
    unequal probabilities: W. Hoeffding, Ann. Math. Stat. 27 (1956).
    """
    if len(count) == 0:
        return Estimate(value, drawn, n)
    tail = (1 - LEVEL) / 2 / len(count)
    low = np.where(right > 0, betaincinv(right, count - right + 1, tail), 0.0)
    high = np.where(right < count, betaincinv(right + 1, count - right, 1 - tail), 1.0)
    least = np.maximum(np.maximum(low - confidence, confidence - high), 0.0).max()
    most = np.maximum(high - confidence, confidence - low).max()
    return Estimate(value, drawn, n, np.array([value - least]), np.array([value - most]))
