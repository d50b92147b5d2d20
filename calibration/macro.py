"""Means over tasks, each with the same weight, stand beside the numbers of pooled documents.

NLL and the Brier score are means over documents, so a mean of them over tasks is as free of bias as they are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.catalogue import MACRO
from calibration.frontier.curve import shown_as
from calibration.task_at_lambda import TaskMetrics
from calibration.uncertainty.intervals import Estimate


@dataclass(frozen=True, slots=True)
class Part:
    """What one task gives to a mean over tasks: its value on all of its n documents."""

    value: float
    resampled: NDArray[np.float32]  # [R]; one for each task and λ is in memory at a time
    n: int


Means = dict[tuple[str, str], Part]  # by the name of the mean, and λ


def means_of(measured_lambdas: Iterable[TaskMetrics], confidence: str) -> Means:
    """Return what a task gives to the means over tasks, at its finished λs."""
    found = {}
    for measured in measured_lambdas:
        for macro, metric in MACRO.items():
            estimate = measured.estimates.get((shown_as(metric, confidence), confidence, "all"))
            if estimate is not None and not measured.left_out.unfinished:
                drawn = estimate.resampled.astype(np.float32)
                found[macro, measured.lam] = Part(estimate.value, drawn, estimate.n)
    return found


def mean_at(lam: str, macro: str, several: Sequence[Means]) -> Estimate | None:
    """Return the mean over tasks at a λ, or None where a task has none; the r-th resample is the mean of the r-th ones."""
    there = [means[macro, lam] for means in several if (macro, lam) in means]
    if not there or len(there) < len(several):
        return None
    drawn = np.asarray(np.stack([one.resampled for one in there]).mean(axis=0), np.float64)
    return Estimate(float(np.mean([one.value for one in there])), drawn, sum(one.n for one in there))


def with_means(
    measured_lambdas: Iterable[TaskMetrics], several: Sequence[Means], confidence: str, parents: Mapping[str, str]
) -> Iterator[TaskMetrics]:
    """Add the means over tasks, and their differences to the parents, to the metrics of pooled tasks."""
    for measured in measured_lambdas:
        for macro in MACRO:
            own = mean_at(measured.lam, macro, several)
            if own is None:
                continue
            measured.estimates[macro, confidence, "all"] = own
            for name, parent in parents.items():
                theirs = mean_at(parent, macro, several) if parent != measured.lam else None
                if theirs is not None:
                    measured.estimates[f"{macro}_vs_{name}", confidence, "all"] = own.minus(theirs)
        yield measured


def macro_along(lambdas: Sequence[str], several: Sequence[Means]) -> dict[str, tuple[Estimate, ...]]:
    """Return `nll` and `brier` as means over tasks at each of these λs; none without tasks."""
    found = {}
    for macro in MACRO if several else ():
        along = [mean_at(lam, macro, several) for lam in lambdas]
        if all(along):
            found[macro.removesuffix("_macro")] = tuple(one for one in along if one is not None)
    return found
