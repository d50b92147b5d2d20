"""λ* has the lowest NLL of the λs whose accuracy is not worth telling from the highest.

NLL is a proper score: it is a mean over documents, so it has little noise and no bias, and it judges the whole distribution.
A calibration error has neither virtue. Its lowest value along λ is often a lucky one [docs/metrics.md has the simulations].
"""

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.frontier.curve import Track, stacked

MARGIN = 0.01  # the accuracy that one gives up for better calibration, as a share of documents


def choose(track: Track, margin: float = MARGIN) -> int:
    """Return the place of λ* among the λs of a track.

    Among the λs whose accuracy is at most max(margin, 2 standard errors of the paired difference) below the highest, λ* has
    the lowest NLL; among equals it is the most accurate one, then the lowest λ. The parents are candidates like all others.

    Args:
        track: accuracy and NLL along λ.
        margin: a share of documents, at least 0.
    """
    (accuracy, drawn), (nll, _) = stacked(track.accuracy, track.nll)
    return int(_choose(accuracy[:, None], nll[:, None], _spread(drawn), margin)[0])


def choose_in_resamples(track: Track, margin: float = MARGIN) -> Ints:
    """Return the place [R] that `choose` gives in every resample, which shows how well the data pin λ* down."""
    (_, accuracy), (_, nll) = stacked(track.accuracy, track.nll)
    return _choose(accuracy, nll, _spread(accuracy), margin)


def optimism(track: Track, chosen: Ints) -> tuple[float, float]:
    """Return by how much accuracy and NLL look better at λ* because λ* was chosen by them, both at least 0.

    It is the mean, over resamples, of how much better the λ chosen in a resample is there than on all documents: B. Efron,
    "Estimating the error rate of a prediction rule", JASA 78 (1983). It is most of it, and not all: what chance has given
    to λs in the sample, every resample has, too.

    Args:
        track: accuracy and NLL along λ.
        chosen: the place [R] of λ* in every resample [choose_in_resamples].

    Returns:
        A share of documents, and nats.
    """
    if not len(chosen):
        return 0.0, 0.0
    each = np.arange(len(chosen))
    # Each λ is held against its own mean over the resamples: how far that is from its value is chance.
    (_, accuracy), (_, nll) = stacked(track.accuracy, track.nll)
    better = np.mean(accuracy[chosen, each] - accuracy.mean(axis=1)[chosen])
    lower = np.mean(nll.mean(axis=1)[chosen] - nll[chosen, each])
    return max(float(better), 0.0), max(float(lower), 0.0)


def _spread(accuracy: Floats) -> Floats:
    """Return the standard error [L, L] of the difference in accuracy between every two λs, from resamples [L, R]."""
    if accuracy.shape[1] < 2:
        return np.zeros((len(accuracy), len(accuracy)))
    covariance = np.atleast_2d(np.cov(accuracy))
    variance = np.diag(covariance)
    spread: Floats = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0.0))
    return spread


def _choose(accuracy: Floats, nll: Floats, spread: Floats, margin: float) -> Ints:
    """Return the place [R] of λ* for accuracies [L, R], NLLs [L, R] and standard errors [L, L] of differences."""
    top = accuracy == accuracy.max(axis=0)
    best = np.argmin(np.where(top, nll, np.inf), axis=0)
    close = accuracy.max(axis=0) - accuracy <= np.maximum(2 * spread[:, best], margin) + 1e-12
    lowest = np.where(close, nll, np.inf)
    tied = lowest == lowest.min(axis=0)
    place: Ints = np.argmax(np.where(tied, accuracy, -np.inf), axis=0)
    return place
