"""This module finds the frontier of accuracy against calibration error along λ, and where on it λ* is.

λ* is chosen and measured on all documents. It is chosen by NLL and accuracy, so the intervals of its gains in both allow for
how much that flatters them [lambda_star.optimism; docs/metrics.md has the simulations]. What is said to be better than the
parents is tested on documents that had no say in the choice [held_out].
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from calibration.frontier.curve import Curve, Track, stacked
from calibration.frontier.held_out import claim_of, held_out, measured
from calibration.frontier.lambda_star import MARGIN, choose, choose_in_resamples, optimism
from calibration.frontier.sentence import sentence
from calibration.frontier.types import Chosen, Claim, FrontierPoint, Gain, HeldOut, Rival, Value
from calibration.scores.per_document import CONFIDENCES
from calibration.task_at_lambda import PARENTS
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.multiple_tests import indistinguishable, step_down
from contract.commit import commit_json
from contract.location import read_json
from contract.points import is_named
from contract.rundir import RunDir

NO_FLATTERY = (0.0, 0.0)  # that of a λ that was not chosen
REFERENCE = (0.0, 1.0)  # the accuracy and the error that nothing is worse than


@dataclass(frozen=True, slots=True)
class Frontier:
    """The frontier of a task, or of pooled tasks."""

    task: str
    metric: str
    confidence: str
    parents: dict[str, str]  # the point of each parent that is there, by its name
    resamples: int
    points: tuple[FrontierPoint, ...]  # the points at all λs, ascending
    hypervolume: float  # the share of possible results that the frontier dominates: its area to REFERENCE, in [0, 1]
    chosen: Chosen
    scaled: dict[str, Value]  # `nll` and `error` of aligned after temperature scaling, where it has them
    rivals: tuple[Rival, ...]  # what can be had of base and aligned without merging them, where both are finished
    optimism: dict[str, float]
    """By how much choosing λ* flatters its `accuracy` and `nll`: the intervals of its gains are so much wider."""
    apart: tuple[str, ...]  # the λs that are compared with none, because they have scores of other documents
    is_mixed: bool  # whether λs with scores of different documents are compared all the same
    lacking: tuple[str, ...]  # those that are compared with none, because too many of their outputs lack the confidence
    macro: dict[str, Value]  # `nll` and `brier` at λ* as means over the tasks, for pooled tasks
    held_out: HeldOut
    claim: Claim | None  # None where a parent is missing, or no λ lies between them
    answer: str

    @property
    def is_pooled(self) -> bool:
        """Tell whether this is of pooled tasks."""
        return bool(self.macro)


@dataclass(frozen=True, slots=True)
class Frontiers:
    """The frontiers of all choice tasks of a run."""

    tasks: tuple[Frontier, ...]
    margin: float  # the accuracy that λ* may give up, as a share of documents
    pools: tuple[Frontier, ...] = ()  # those of pooled tasks; the first is of all tasks
    confidence: str = CONFIDENCES[0]  # the one that was asked for; a task that has no such confidence has the first

    @property
    def first(self) -> Frontier | None:
        """Return the frontier whose λ* is the run's: that of all tasks pooled, or of the only task."""
        return next(iter((*self.pools, *self.tasks)), None)

    @property
    def stars(self) -> dict[str, str]:
        """Return λ* by the name of the task or pool."""
        return {one.task: one.chosen.lam for one in (*self.tasks, *self.pools)}

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes; a number that does not exist is None."""
        reference = {"accuracy": REFERENCE[0], "error": REFERENCE[1]}
        plain: dict[str, Any] = _plain({**dataclasses.asdict(self), "reference": reference})
        for one in (*plain["tasks"], *plain["pools"]):
            for place in (*one["points"], one["chosen"]):
                _name(place)
        return plain


def reported(run: RunDir) -> tuple[float | None, str]:
    """Return the margin and the confidence of the run's report, so that what follows it has the same λ*.

    Without a report the margin is None, and the confidence is the default.
    """
    try:
        value = read_json(run.frontier_json)
    except FileNotFoundError:
        value = {}
    margin = value.get("margin")
    return None if margin is None else float(margin), value.get("confidence", CONFIDENCES[0])


def _name(place: dict[str, Any]) -> None:
    """Change an entry of several coordinates in place: `point` names it, `lam` is None, and λ* has `like` and no ends."""
    like = place.pop("like", None)
    if is_named(place["lam"]):
        place |= {"lam": None, "point": place["lam"]}
        if like is not None:
            place["like"] = like
            for key in ("low", "high", "like_low", "like_high"):
                del place[key]


def write_frontiers(run: RunDir, found: Frontiers, diversity: Mapping[str, Any] | None = None) -> None:
    """Commit RUN/report/frontier.json.

    `diversity` is what `samples_at_lambda.by_lambda` returns for the generate tasks; it is written if there are any.

    Raises:
        OSError: the disk is full or not writable.
    """
    commit_json(run.frontier_json, found.to_json() | ({"diversity": diversity} if diversity else {}))


def frontier(curve: Curve, margin: float = MARGIN) -> Frontier:
    """Return the frontier of a curve, with λ* and with intervals and tests of both.

    The hypervolume is that of E. Zitzler, L. Thiele, "Multiobjective evolutionary algorithms: a comparative case study and
    the strength Pareto approach", IEEE Trans. Evol. Comput. 3 (1999).

    Args:
        curve: the curve of a task, or of pooled tasks.
        margin: the accuracy that λ* may give up, as a share of documents [lambda_star.choose].
    """
    track, parents = curve.tracks["all"], curve.places
    place, again = choose(track, margin), choose_in_resamples(track, margin)
    flattery = optimism(track, again)
    (accuracy, drawn_accuracy), (error, drawn_error) = stacked(track.accuracy, track.error)
    on_frontier = ~_dominated(accuracy[:, None], error[:, None])[:, 0]
    membership = 1 - _dominated(drawn_accuracy, drawn_error).mean(axis=1)
    p_accuracy, p_error = _better_than_all(track, parents, max(len(PARENTS), len(curve.parents)))
    points = tuple(
        FrontierPoint(
            lam=lam,
            documents=track.accuracy[i].n,
            accuracy=measured(track.accuracy[i], "acc"),
            nll=measured(track.nll[i], "nll"),
            error=measured(track.error[i], curve.metric),
            on_frontier=bool(on_frontier[i]),
            membership=float(membership[i]),
            gains={
                name: _gain(_differences(curve, i, name), curve.metric, flattery if i == place else NO_FLATTERY)
                for name, parent in parents.items()
                if parent != i
            },
            p_accuracy=p_accuracy.get(i),
            p_error=p_error.get(i),
        )
        for i, lam in enumerate(curve.lambdas)
    )
    chosen = _chosen_point(curve, place) if is_named(curve.lambdas[place]) else _chosen(curve, place, again)
    compared = {name: points[parent] for name, parent in parents.items()}
    names = {"nll": "nll", "error": curve.metric, "brier": "brier"}
    scaled = {name: measured(estimate, names[name]) for name, estimate in curve.scaled.items()}
    macro = {name: measured(estimates[place], names[name]) for name, estimates in curve.macro.items()}
    return Frontier(
        task=curve.task,
        metric=curve.metric,
        confidence=curve.confidence,
        parents={name: curve.lambdas[parent] for name, parent in parents.items()},
        resamples=drawn_accuracy.shape[1],
        points=points,
        hypervolume=float(_hypervolume(accuracy[:, None], error[:, None])[0]),
        chosen=chosen,
        scaled=scaled,
        rivals=_rivals(curve, place, flattery),
        optimism={"accuracy": flattery[0], "nll": flattery[1]},
        apart=curve.apart,
        is_mixed=curve.is_mixed,
        lacking=curve.lacking,
        macro=macro,
        held_out=held_out(curve, margin),
        claim=claim_of(curve, margin),
        answer=sentence(
            points[place],
            chosen,
            compared,
            len(points) - 1,
            curve.metric,
            scaled,
            macro,
            curve.is_written,
            curve.lacking,
            curve.apart,
            curve.is_mixed,
        ),
    )


def _chosen(curve: Curve, place: int, again: Ints) -> Chosen:
    drawn = np.sort(again)
    tail = int(0.025 * (len(drawn) + 1))
    like = _like(curve.tracks["all"], place)
    low = high = place
    while low > 0 and like[low - 1]:
        low -= 1
    while high < len(like) - 1 and like[high + 1]:
        high += 1
    ends = [max(tail - 1, 0), min(len(drawn) - tail, len(drawn) - 1)] if len(drawn) else []
    first, last = (curve.lambdas[drawn[end]] for end in ends) if ends else (curve.lambdas[place],) * 2
    return Chosen(curve.lambdas[place], first, last, curve.lambdas[low], curve.lambdas[high])


def _chosen_point(curve: Curve, place: int) -> Chosen:
    like = _like(curve.tracks["all"], place)
    like[place] = False
    lam = curve.lambdas[place]
    return Chosen(
        lam, lam, lam, lam, lam, tuple(one for one, is_like in zip(curve.lambdas, like, strict=True) if is_like)
    )


def _like(track: Track, place: int) -> Bools:
    """Return [L] which λs show no difference to the one at `place`, in NLL and accuracy."""
    pairs = stacked(track.accuracy, track.nll)
    like = np.ones(len(track.accuracy), np.bool_)
    others = np.delete(np.arange(len(like)), place)
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
    for of, sign in ((track.accuracy, 1), (track.error, -1)):
        ((value, drawn),) = stacked(of)
        gain = np.concatenate([sign * (value[others] - value[parent]) for parent in parents.values()])
        resampled = np.concatenate([sign * (drawn[others] - drawn[parent]) for parent in parents.values()])
        p = step_down(gain, resampled).reshape(len(parents), len(others)).max(axis=0, initial=0.0)
        found.append({int(i): float(one) for i, one in zip(others, p, strict=True)})
    return found[0], found[1]


def _rivals(curve: Curve, place: int, flattery: tuple[float, float]) -> tuple[Rival, ...]:
    own = _at(curve.tracks["all"], place)
    return tuple(
        Rival(
            name=name,
            documents=one.accuracy.n,
            accuracy=measured(one.accuracy, "acc"),
            nll=measured(one.nll, "nll"),
            error=measured(one.error, curve.metric),
            brier=measured(one.brier, "brier"),
            temperatures=one.temperatures,
            # On other documents it would be no difference on the same ones.
            gain=_gain(_minus(own, (one.accuracy, one.nll, one.error)), curve.metric, flattery)
            if one.accuracy.n == own[0].n
            else None,
        )
        for name, one in curve.rivals.items()
    )


def _at(track: Track, place: int) -> tuple[Estimate, ...]:
    return track.accuracy[place], track.nll[place], track.error[place]


def _differences(curve: Curve, place: int, parent: str) -> tuple[Estimate, ...]:
    """Return the differences in accuracy, NLL and error to a parent, on what both have."""
    track = curve.tracks["all"]
    paired = curve.gains[parent][place] if parent in curve.gains else None
    return paired or _minus(_at(track, place), _at(track, curve.places[parent]))


def _minus(own: tuple[Estimate, ...], other: tuple[Estimate, ...]) -> tuple[Estimate, ...]:
    return tuple(one.minus(theirs) for one, theirs in zip(own, other, strict=True))


def _gain(differences: tuple[Estimate, ...], metric: str, flattery: tuple[float, float]) -> Gain:
    """Return the gain on another λ, or on a rival.

    Args:
        differences: those in accuracy, NLL and error.
        metric: the name of the calibration error.
        flattery: by how much accuracy and NLL look better than they are [lambda_star.optimism]; the ends of their intervals
            that are the less favourable ones lie so much farther out.
    """
    accuracy, nll, error = differences
    differs = accuracy.value != 0 or error.value != 0
    return Gain(
        accuracy=_wider(measured(accuracy, "acc_vs_parent"), below=flattery[0]),
        nll=_wider(measured(nll, "nll_vs_parent"), above=flattery[1]),
        error=measured(error, f"{metric}_vs_parent"),
        dominates=bool(accuracy.value >= 0 and error.value <= 0 and differs),
        dominated=bool(accuracy.value <= 0 and error.value >= 0 and differs),
    )


def _wider(value: Value, below: float = 0.0, above: float = 0.0) -> Value:
    return dataclasses.replace(
        value,
        low=None if value.low is None else value.low - below,
        high=None if value.high is None else value.high + above,
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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
