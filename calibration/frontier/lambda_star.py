"""λ* is the best-calibrated of the λs whose accuracy cannot be told from the highest."""

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.frontier.curve import Track


def choose(track: Track) -> int:
    """Return the place of λ* among the λs of a track.

    Among the λs whose accuracy is at most one standard error (of the paired difference) below the highest, λ* has the lowest
    calibration error; among equals it is the most accurate one, then the lowest λ. Callers choose λ* on the `select` track
    and measure it on `report`.

    This is the one-standard-error rule of L. Breiman et al., "Classification and Regression Trees" (1984), section 3.4.3,
    with calibration in the place of simplicity.
    """
    return int(_choose(track.accuracy[:, None], track.error[:, None], _spread(track))[0])


def choose_in_resamples(track: Track) -> Ints:
    """Return the place [R] that `choose` gives in every resample, which shows how well the data pin λ* down."""
    return _choose(track.resampled_accuracy, track.resampled_error, _spread(track))


def _spread(track: Track) -> Floats:
    """Return the standard error [L, L] of the difference in accuracy between every two λs."""
    covariance = np.atleast_2d(np.cov(track.resampled_accuracy))
    variance = np.diag(covariance)
    spread: Floats = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0.0))
    return spread


def _choose(accuracy: Floats, error: Floats, spread: Floats) -> Ints:
    """Return the place [R] of λ* for accuracies [L, R], errors [L, R] and standard errors [L, L] of differences."""
    top = accuracy == accuracy.max(axis=0)
    best = np.argmin(np.where(top, error, np.inf), axis=0)
    close = accuracy.max(axis=0) - accuracy <= spread[:, best] + 1e-12
    lowest = np.where(close, error, np.inf)
    tied = lowest == lowest.min(axis=0)
    place: Ints = np.argmax(np.where(tied, accuracy, -np.inf), axis=0)
    return place
