"""Accuracy and calibration error along λ, with their resamples: what the frontier is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.arrays import Floats
from calibration.catalogue import ACCURACY
from calibration.task_at_lambda import PARENTS, Point


@dataclass(frozen=True, slots=True)
class Track:
    """Two metrics at L λs on one split, in R resamples shared by all of them."""

    accuracy: Floats  # [L]
    error: Floats  # [L]
    resampled_accuracy: Floats  # [L, R]
    resampled_error: Floats  # [L, R]


@dataclass(frozen=True, slots=True)
class Curve:
    """A task at its L finished λs, ascending."""

    task: str
    metric: str  # the calibration error: in [0, 1], lower is better
    confidence: str
    lambdas: tuple[str, ...]  # canonical
    documents: tuple[int, ...]  # [L] in `report`
    select: Track
    report: Track
    parents: Mapping[str, str] = field(default_factory=PARENTS.copy)  # λs of those that are on the line


def thinned(point: Point, metric: str, confidence: str) -> Point:
    """Return a point with only the estimates that `curve` wants of it; all of them at all λs are gigabytes."""
    wanted = {ACCURACY[confidence], metric}
    kept = {key: one for key, one in point.estimates.items() if key[0] in wanted and key[1] == confidence}
    return dataclasses.replace(point, estimates=kept)


def curve(task: str, points: Sequence[Point], metric: str, confidence: str, parents: Mapping[str, str]) -> Curve | None:
    """Collect two metrics of a choice task along λ.

    A λ with documents still to be scored is left out: fewer documents are no fair comparison.

    Args:
        task: its name.
        points: λ ascending; only `metric` and the accuracy are needed of their estimates.
        metric: one of catalogue.answers().
        confidence: sum, tokens or bytes.
        parents: λs of those that are on the line.

    Returns:
        None where no λ is finished, for a continuation task, and where a half holds fewer than two documents.
    """
    names = ACCURACY[confidence], metric
    keys = {half: [(name, confidence, half) for name in names] for half in ("select", "report")}
    wanted = [key for half in keys.values() for key in half]
    finished = [
        point
        for point in points
        if not point.left_out.unfinished
        and all(key in point.estimates and point.estimates[key].n > 1 for key in wanted)
    ]
    if not finished:
        return None
    tracks = {}
    for half, pair in keys.items():
        values = [np.array([point.estimates[key].value for point in finished]) for key in pair]
        count = min(len(point.estimates[key].resampled) for point in finished for key in pair)  # smooth ECE has fewer
        resampled = [np.stack([point.estimates[key].resampled[:count] for point in finished]) for key in pair]
        whole = ~np.isnan(resampled).any(axis=(0, 1))  # a λ with few documents can be without any in a resample
        tracks[half] = Track(*values, *(array[:, whole] for array in resampled))
    documents = tuple(point.estimates[keys["report"][0]].n for point in finished)
    lambdas = tuple(point.lam for point in finished)
    return Curve(task, metric, confidence, lambdas, documents, tracks["select"], tracks["report"], parents)


def macro_average(curves: Sequence[Curve]) -> Curve | None:
    """Average tasks, each with the same weight, at the λs that all of them have; None where they share none.

    Their resamples are drawn independently, so the r-th of the average is the average of the r-th ones.
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
