"""Curves with chosen errors."""

import numpy as np

from calibration.frontier.curve import Curve, Track

R = 400


def track(accuracy, error, noise=0.0, seed=0, shared=0.0):
    """Values, and resamples that scatter around them by `noise`, and all together by `shared`."""
    rng = np.random.default_rng(seed)
    accuracy, error = np.array(accuracy, np.float64), np.array(error, np.float64)
    scatter = [noise * rng.normal(size=(len(accuracy), R)) + shared * rng.normal(size=R) for _ in range(2)]
    return Track(accuracy, error, accuracy[:, None] + scatter[0], error[:, None] + scatter[1])


def curve(lambdas, accuracy, error, task="quiz", **options):
    made = track(accuracy, error, **options)
    return Curve(task, "ece_width15", "sum", tuple(lambdas), (50,) * len(lambdas), made, made)
