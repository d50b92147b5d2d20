"""A curve is accuracy and calibration error along λ, with their resamples; the frontier is made of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.arrays import Floats
from calibration.catalogue import ACCURACY
from calibration.task_at_lambda import PARENTS, TaskMetrics


@dataclass(frozen=True, slots=True)
class Track:
    """Two metrics at L λs on one split, and in R resamples that all λs share."""

    accuracy: Floats  # shape [L]
    error: Floats  # shape [L]
    resampled_accuracy: Floats  # shape [L, R]
    resampled_error: Floats  # shape [L, R]


@dataclass(frozen=True, slots=True)
class Curve:
    """The curve of a task at its L finished λs, ascending."""

    task: str
    metric: str  # the name of the calibration error, which lies in [0, 1]; lower is better
    confidence: str
    lambdas: tuple[str, ...]  # the canonical λs
    documents: tuple[int, ...]  # the number of documents in `report` at each of the L λs
    select: Track
    report: Track
    parents: Mapping[str, str] = field(default_factory=PARENTS.copy)  # the point of each parent that is on the line


def thinned(measured: TaskMetrics, metric: str, confidence: str) -> TaskMetrics:
    """Return a λ's metrics with only the estimates that `collect_curve` needs; all estimates would take gigabytes."""
    wanted = {ACCURACY[confidence], metric}
    kept = {key: one for key, one in measured.estimates.items() if key[0] in wanted and key[1] == confidence}
    return dataclasses.replace(measured, estimates=kept)


def collect_curve(
    task: str, measured_lambdas: Sequence[TaskMetrics], metric: str, confidence: str, parents: Mapping[str, str]
) -> Curve | None:
    """Collect two metrics of a choice task along λ.

    A λ with documents still to be scored is left out: fewer documents are no fair comparison.

    Args:
        task: the task's name.
        measured_lambdas: the task's metrics at each λ, ascending; of their estimates only those of `metric` and of the
            accuracy are needed.
        metric: the calibration error, one of catalogue.answers().
        confidence: the confidence of both metrics: sum, tokens or bytes.
        parents: the point of each parent that is on the line.

    Returns:
        The curve; None where no λ is finished, for a continuation task, and where a half holds fewer than two documents.
    """
    names = ACCURACY[confidence], metric
    keys = {half: [(name, confidence, half) for name in names] for half in ("select", "report")}
    wanted = [key for half in keys.values() for key in half]
    finished = [
        measured
        for measured in measured_lambdas
        if not measured.left_out.unfinished
        and all(key in measured.estimates and measured.estimates[key].n > 1 for key in wanted)
    ]
    if not finished:
        return None
    tracks = {}
    for half, pair in keys.items():
        values = [np.array([measured.estimates[key].value for measured in finished]) for key in pair]
        # Smooth ECE has fewer resamples than the other metrics.
        count = min(len(measured.estimates[key].resampled) for measured in finished for key in pair)
        resampled = [np.stack([measured.estimates[key].resampled[:count] for measured in finished]) for key in pair]
        whole = ~np.isnan(resampled).any(axis=(0, 1))  # a resample may hold no document of a λ that has few
        tracks[half] = Track(*values, *(array[:, whole] for array in resampled))
    documents = tuple(measured.estimates[keys["report"][0]].n for measured in finished)
    lambdas = tuple(measured.lam for measured in finished)
    return Curve(task, metric, confidence, lambdas, documents, tracks["select"], tracks["report"], parents)


def macro_average(curves: Sequence[Curve]) -> Curve | None:
    """Average tasks with equal weights at the λs that all of them have; return None where they share none.

    The tasks' resamples are drawn independently, so the r-th resample of the average is the average of the r-th ones.
    """
    shared = set.intersection(*(set(one.lambdas) for one in curves)) if curves else set()
    if not shared:
        return None
    first = curves[0]
    lambdas = tuple(lam for lam in first.lambdas if lam in shared)
    rows = [np.array([one.lambdas.index(lam) for lam in lambdas]) for one in curves]
    documents = [sum(one.documents[row[i]] for one, row in zip(curves, rows, strict=True)) for i in range(len(lambdas))]
    tracks = {}
    for half in ("select", "report"):
        parts = [getattr(one, half) for one in curves]
        count = min(part.resampled_accuracy.shape[1] for part in parts)
        tracks[half] = Track(
            np.mean([part.accuracy[row] for part, row in zip(parts, rows, strict=True)], axis=0),
            np.mean([part.error[row] for part, row in zip(parts, rows, strict=True)], axis=0),
            np.mean([part.resampled_accuracy[row, :count] for part, row in zip(parts, rows, strict=True)], axis=0),
            np.mean([part.resampled_error[row, :count] for part, row in zip(parts, rows, strict=True)], axis=0),
        )
    tracks_of = tracks["select"], tracks["report"]
    return Curve("macro average", first.metric, first.confidence, lambdas, tuple(documents), *tracks_of, first.parents)
