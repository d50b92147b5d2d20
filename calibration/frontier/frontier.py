"""This module finds the frontier of accuracy against calibration error along λ, and where on it λ* is.

λ* is chosen on the documents of `select`; everything else is measured on the documents of `report`, which had no say in it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.arrays import Bools, Floats
from calibration.frontier.curve import Curve, Track, macro_average
from calibration.frontier.lambda_star import choose, choose_in_resamples
from calibration.frontier.sentence import sentence
from calibration.frontier.types import Chosen, FrontierPoint, Gain, Value
from calibration.task_at_lambda import PARENTS
from calibration.uncertainty.intervals import Estimate, Interval, interval
from calibration.uncertainty.multiple_tests import indistinguishable, step_down
from contract.points import is_named
from contract.rundir import RunDir, commit_json

REFERENCE = (0.0, 1.0)  # the accuracy and the error that nothing is worse than


@dataclass(frozen=True, slots=True)
class Frontier:
    """The frontier of a task, or of the macro average of all tasks."""

    task: str
    metric: str
    confidence: str
    resamples: int
    points: tuple[FrontierPoint, ...]  # the points at all λs, ascending
    hypervolume: Value  # the share of possible results that the frontier dominates: its area to REFERENCE, in [0, 1]
    chosen: Chosen
    answer: str


@dataclass(frozen=True, slots=True)
class Frontiers:
    """The frontiers of all choice tasks of a run."""

    tasks: tuple[Frontier, ...]
    macro: Frontier | None  # None where there are fewer than two tasks, or no λ that all of them have

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes; a number that does not exist is None."""
        reference = {"accuracy": REFERENCE[0], "error": REFERENCE[1]}
        plain: dict[str, Any] = _plain({**dataclasses.asdict(self), "reference": reference})
        for one in (*plain["tasks"], *filter(None, [plain["macro"]])):
            for place in (*one["points"], one["chosen"]):
                _name(place)
        return plain


def _name(place: dict[str, Any]) -> None:
    """Change an entry of several coordinates in place: `point` names it, `lam` is None, and λ* has `like` and no ends."""
    like = place.pop("like", None)
    if is_named(place["lam"]):
        place |= {"lam": None, "point": place["lam"]}
        if like is not None:
            place["like"] = like
            for key in ("low", "high", "like_low", "like_high"):
                del place[key]


def frontiers(curves: Sequence[Curve]) -> Frontiers:
    """Return the frontier of each task, and of the average of all tasks where there are several."""
    average = macro_average(curves) if len(curves) > 1 else None
    return Frontiers(tuple(frontier(one) for one in curves), frontier(average) if average else None)


def write_frontiers(run: RunDir, found: Frontiers, diversity: Mapping[str, Any] | None = None) -> None:
    """Commit RUN/report/frontier.json.

    `diversity` is what `samples_at_lambda.by_lambda` returns for the generate tasks; it is written if there are any.

    Raises:
        OSError: the disk is full or not writable.
    """
    commit_json(run.frontier_json, found.to_json() | ({"diversity": diversity} if diversity else {}))


def frontier(curve: Curve) -> Frontier:
    """Return the frontier of a curve, with λ* and with intervals and tests of both.

    The hypervolume is that of E. Zitzler, L. Thiele, "Multiobjective evolutionary algorithms: a comparative case study and
    the strength Pareto approach", IEEE Trans. Evol. Comput. 3 (1999).
    """
    track = curve.report
    place = choose(curve.select)
    parents = {name: curve.lambdas.index(lam) for name, lam in curve.parents.items() if lam in curve.lambdas}
    on_frontier = ~_dominated(track.accuracy[:, None], track.error[:, None])[:, 0]
    membership = 1 - _dominated(track.resampled_accuracy, track.resampled_error).mean(axis=1)
    p_accuracy, p_error = _better_than_all(track, parents, max(len(PARENTS), len(curve.parents)))
    points = tuple(
        FrontierPoint(
            lam=lam,
            documents=curve.documents[i],
            accuracy=_value(track.accuracy[i], track.resampled_accuracy[i], "acc"),
            error=_value(track.error[i], track.resampled_error[i], curve.metric),
            on_frontier=bool(on_frontier[i]),
            membership=float(membership[i]),
            gains={name: _gain(track, i, parent, curve.metric) for name, parent in parents.items() if parent != i},
            p_accuracy=p_accuracy.get(i),
            p_error=p_error.get(i),
        )
        for i, lam in enumerate(curve.lambdas)
    )
    volume = _hypervolume(track.accuracy[:, None], track.error[:, None])[0]
    volumes = _hypervolume(track.resampled_accuracy, track.resampled_error)
    chosen = _chosen_point(curve, place) if is_named(curve.lambdas[place]) else _chosen(curve, place)
    compared = {name: points[parent] for name, parent in parents.items()}
    return Frontier(
        task=curve.task,
        metric=curve.metric,
        confidence=curve.confidence,
        resamples=track.resampled_accuracy.shape[1],
        points=points,
        hypervolume=_value(volume, volumes, "hypervolume"),
        chosen=chosen,
        answer=sentence(points[place], chosen, compared, len(points) - 1, curve.metric),
    )


def _chosen(curve: Curve, place: int) -> Chosen:
    drawn = np.sort(choose_in_resamples(curve.select))
    tail = int(0.025 * (len(drawn) + 1))
    like = _like(curve.report, place)
    low = high = place
    while low > 0 and like[low - 1]:
        low -= 1
    while high < len(like) - 1 and like[high + 1]:
        high += 1
    ends = [max(tail - 1, 0), min(len(drawn) - tail, len(drawn) - 1)] if len(drawn) else []
    first, last = (curve.lambdas[drawn[end]] for end in ends) if ends else (curve.lambdas[place],) * 2
    return Chosen(curve.lambdas[place], first, last, curve.lambdas[low], curve.lambdas[high])


def _chosen_point(curve: Curve, place: int) -> Chosen:
    like = _like(curve.report, place)
    like[place] = False
    lam = curve.lambdas[place]
    return Chosen(
        lam, lam, lam, lam, lam, tuple(one for one, is_like in zip(curve.lambdas, like, strict=True) if is_like)
    )


def _like(track: Track, place: int) -> Bools:
    """Return [L] which λs `report` cannot tell from the one at `place`."""
    like = np.ones(len(track.accuracy), np.bool_)
    others = np.delete(np.arange(len(like)), place)
    pairs = [(track.accuracy, track.resampled_accuracy), (track.error, track.resampled_error)]
    difference = np.concatenate([value[others] - value[place] for value, _ in pairs])
    resampled = np.concatenate([drawn[others] - drawn[place] for _, drawn in pairs])
    within = indistinguishable(difference, resampled).reshape(2, len(others))
    like[others] = within.all(axis=0)
    return like


def _better_than_all(track: Track, parents: Mapping[str, int], count: int) -> tuple[dict[int, float], dict[int, float]]:
    """Return two dicts by the place of λ, for accuracy and error: the p-value of being better than all `count` parents.

    It is the largest of the p-values of the gains on each parent. Both dicts are empty where a parent is missing.
    """
    if len(parents) < count:
        return {}, {}
    others = np.array([i for i in range(len(track.accuracy)) if i not in parents.values()], np.intp)
    found = []
    for value, drawn, sign in (
        (track.accuracy, track.resampled_accuracy, 1),
        (track.error, track.resampled_error, -1),
    ):
        gain = np.concatenate([sign * (value[others] - value[parent]) for parent in parents.values()])
        resampled = np.concatenate([sign * (drawn[others] - drawn[parent]) for parent in parents.values()])
        p = step_down(gain, resampled).reshape(len(parents), len(others)).max(axis=0, initial=0.0)
        found.append({int(i): float(one) for i, one in zip(others, p, strict=True)})
    return found[0], found[1]


def _gain(track: Track, i: int, parent: int, metric: str) -> Gain:
    accuracy, error = track.accuracy[i] - track.accuracy[parent], track.error[i] - track.error[parent]
    drawn_accuracy = track.resampled_accuracy[i] - track.resampled_accuracy[parent]
    drawn_error = track.resampled_error[i] - track.resampled_error[parent]
    share = (drawn_accuracy >= 0) & (drawn_error <= 0) & ((drawn_accuracy > 0) | (drawn_error < 0))
    differs = accuracy != 0 or error != 0
    return Gain(
        accuracy=_value(accuracy, drawn_accuracy, "acc_vs_parent"),
        error=_value(error, drawn_error, f"{metric}_vs_parent"),
        dominates=bool(accuracy >= 0 and error <= 0 and differs),
        dominated=bool(accuracy <= 0 and error >= 0 and differs),
        dominates_share=float(share.mean()) if len(share) else math.nan,
    )


def _dominated(accuracy: Floats, error: Floats) -> Bools:
    """Return [L, R] whether another λ is at least as good in both metrics [L, R] and better in one."""
    found = np.zeros(accuracy.shape, np.bool_)
    for one, other in zip(accuracy, error, strict=True):
        found |= (one >= accuracy) & (other <= error) & ((one > accuracy) | (other < error))
    return found


def _hypervolume(accuracy: Floats, error: Floats) -> Floats:
    """Return the hypervolume [R] of accuracies [L, R] and errors [L, R]."""
    order = np.argsort(-accuracy, axis=0, kind="stable")
    steps = -np.diff(np.take_along_axis(accuracy, order, 0), axis=0, append=REFERENCE[0])
    lowest = np.minimum.accumulate(np.take_along_axis(error, order, 0), axis=0)
    area: Floats = (steps * (REFERENCE[1] - lowest)).sum(axis=0)
    return area


def _value(value: float, resampled: Floats, metric: str) -> Value:
    found: Interval | None = interval(Estimate(float(value), resampled, 2), metric)  # a curve has at least 2 documents
    return Value(float(value), found.low if found else None, found.high if found else None)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
