"""This makes curves with chosen values."""

import numpy as np

from calibration.frontier.curve import Curve, Track
from calibration.uncertainty.intervals import Estimate

R = 400


def estimates(values, resampled, documents=50):
    return tuple(Estimate(float(one), drawn, documents) for one, drawn in zip(values, resampled, strict=True))


def track(accuracy, error, nll=None, noise=0.0, seed=0, shared=0.0):
    """Return a curve of these values, whose resamples scatter around them by `noise`, and all together by `shared`.

    Without an NLL the error stands for it.
    """
    rng = np.random.default_rng(seed)
    made = []
    for values in (accuracy, error if nll is None else nll, error):
        values = np.array(values, np.float64)
        scatter = noise * rng.normal(size=(len(values), R)) + shared * rng.normal(size=R)
        made.append(estimates(values, values[:, None] + scatter))
    return Track(*made)


def curve(lambdas, accuracy, error, nll=None, task="quiz", **options):
    made = track(accuracy, error, nll, **options)
    return Curve(task, "ece_width15", "sum", tuple(lambdas), dict.fromkeys(("all", "select", "report"), made))
