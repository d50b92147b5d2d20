"""Smooth ECE is a calibration error without bins.

The residual confidence − correct is smoothed over confidence by a Gaussian reflected at 0 and 1; smECE_σ is the integral of
its absolute value over [0, 1]. It falls with σ, and smECE is the value at which smECE_σ = σ, so no parameter is left to
choose.

Source: J. Błasiok, P. Nakkiran, "Smooth ECE: principled reliability diagrams via kernel smoothing", ICLR 2024, section 3.
Their package relplot searches σ in steps of 1/1024, reflects once, and cuts the Gaussian at ±0.5; here σ is found to 1e-4,
and the reflection is complete: a Gaussian of any width reflected at both ends multiplies the cosine series of a function
by exp(−(πkσ)² / 2), so smoothing is one discrete cosine transform and back.
"""

import numpy as np
import scipy.fft

from calibration.arrays import Bools, Floats
from calibration.metrics.binned import Layout

# [0, 1] is cut into so many intervals; the residual of a document is shared between the two nearest points. A width below
# two intervals is not resolved, and only a smooth ECE below 0.004 could be so small a width.
_GRID = 512
_STEPS = 9  # (0, 1] is halved so often; then smECE_σ is taken for a straight line between the last two widths


def add_residuals(layout: Layout, confidence: Floats, correct: Bools) -> None:
    """Add the sums of the residuals of D documents on a grid of confidences, under the name `residual`."""
    place = confidence * _GRID
    low = np.minimum(place.astype(np.int64), _GRID - 1)
    above, residual, document = place - low, confidence - correct, np.arange(len(confidence))
    value = np.r_[residual * (1 - above), residual * above]
    layout.add("residual", value, np.r_[low, low + 1], _GRID + 1, np.r_[document, document])


def smooth_residual(sums: Floats, n: Floats, sigma: Floats) -> Floats:
    """Return the smoothed residual [513, R], whose absolute values add up to smECE_σ [R]; it is NaN where n is 0.

    At the σ of the sample it gives the interval of smECE: smECE_σ falls with σ, so where the true smECE_σ at this σ lies in
    an interval that holds σ, the true smECE, which is the σ that equals its own smECE_σ, lies in it, too.

    Args:
        sums: the sums of residuals [513, R].
        n: the total weights [R].
        sigma: the widths [R] or [1].
    """
    return _smoothed(_series(sums, n), sigma)


def smooth_ece(sums: Floats, n: Floats) -> Floats:
    """Return smECE [R], in [0, 1], for sums of residuals [513, R] and total weights n [R]; it is NaN where n is 0."""
    series = _series(sums, n)
    low, high = np.zeros(len(n)), np.ones(len(n))
    # `above` is how far the error at `low` is above that width, `below` how far it is below the width at `high`.
    above, below = _area(series, low), 1 - _area(series, high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        excess = _area(series, middle) - middle
        rises = excess > 0
        low, above = np.where(rises, middle, low), np.where(rises, excess, above)
        high, below = np.where(rises, high, middle), np.where(rises, below, -excess)
    share = np.divide(above, above + below, out=np.zeros_like(above), where=above + below != 0)
    found: Floats = low + (high - low) * share
    return found


def _series(sums: Floats, n: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        # A mass at an end of the grid is its own mirror image, so it counts twice, and the transform counts it once.
        density = sums / n
    density[[0, -1]] *= 2
    series: Floats = scipy.fft.dct(density, type=1, axis=0)
    return series


def _smoothed(series: Floats, sigma: Floats) -> Floats:
    order = np.arange(_GRID + 1)[:, None]
    damping = np.exp(-0.5 * (np.pi * order * sigma) ** 2)
    smooth: Floats = scipy.fft.idct(series * damping, type=1, axis=0)
    # This is the trapezoid rule over [0, 1]; the density on the grid is a mass times _GRID, which the step cancels.
    smooth[[0, -1]] /= 2
    return smooth


def _area(series: Floats, sigma: Floats) -> Floats:
    total: Floats = np.abs(_smoothed(series, sigma)).sum(axis=0)
    return total
