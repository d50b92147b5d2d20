"""Platt scaling calibrates a confidence by a line on its logit; one half of the documents is scaled by the other's fit.

A temperature would not do for shares of votes and for the probabilities of whole outputs: their logits are shifted, too.

Source: J. Platt, "Probabilistic outputs for support vector machines", in: Advances in Large Margin Classifiers (1999); with
the objective and the targets of H.-T. Lin, C.-J. Lin, R. C. Weng, Mach. Learn. 68 (2007).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from calibration.arrays import Bools, Floats

_FARTHEST = 30.0  # logits of 1 − 1e-13 and above are all this, and those as far below 0


@dataclass(frozen=True, slots=True)
class Platt:
    """A confidence is expit(slope · x + intercept), with x its logit before."""

    slope: float
    intercept: float

    def scaled(self, logits: Floats) -> Floats:
        """Return the scaled confidences of logits of any shape."""
        found: Floats = expit(self.slope * logits + self.intercept)
        return found


def logits_of(logs: Floats) -> Floats:
    """Return the logits log(p / (1 − p)) of log-probabilities in nats, cut at ±30; of any shape."""
    with np.errstate(divide="ignore"):
        found = logs - np.log(-np.expm1(logs))
    cut: Floats = np.clip(found, -_FARTHEST, _FARTHEST)
    return cut


def fit_platt(logits: Floats, correct: Bools) -> Platt | None:
    """Return the line with the lowest NLL of softened targets, or None without answers.

    The target of a right answer is (r + 1) / (r + 2) and that of a wrong one 1 / (w + 2), for r right and w wrong answers,
    so that a fit exists where all are right, too.

    Args:
        logits: [E] of the confidences.
        correct: [E] whether each answer is right.
    """
    if not len(correct):
        return None
    right = int(correct.sum())
    wrong = len(correct) - right
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(line: Floats) -> tuple[float, Floats]:
        z = line[0] * logits + line[1]
        error = expit(z) - target
        nll = -(target * log_expit(z) + (1 - target) * log_expit(-z))
        return float(nll.mean()), np.array([(error * logits).mean(), error.mean()])

    start = np.array([0.0, np.log((right + 1) / (wrong + 1))])
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    return Platt(float(found.x[0]), float(found.x[1]))


def cross_fitted(logits: Floats, correct: Bools, report: slice) -> tuple[Floats, bool]:
    """Return the scaled confidences [E], each half by the line that was fitted on the other, and whether there are any.

    Args:
        logits: [E].
        correct: [E].
        report: the rows of `report`, which come last.
    """
    select = slice(report.start)
    of_select, of_report = fit_platt(logits[report], correct[report]), fit_platt(logits[select], correct[select])
    found = np.full(len(logits), 0.5)
    missing = False
    for half, line in ((select, of_select), (report, of_report)):
        if line is None:
            missing = missing or len(logits[half]) > 0
        else:
            found[half] = line.scaled(logits[half])
    return found, not missing
