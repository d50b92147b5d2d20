"""A curve is accuracy, NLL and a calibration error along λ, with their resamples; λ* and the frontier are made of it."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.catalogue import ACCURACY, find
from calibration.metrics.choice_tasks import Estimates
from calibration.metrics.rivals import CONFIDENCE
from calibration.scores.confidences import OF_OUTPUTS, VOTES
from calibration.scores.per_document import CONFIDENCES
from calibration.task_at_lambda import PARENTS, TaskMetrics
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import SPLITS

TEMPERATURE = "temperature"  # the rival that is aligned after temperature scaling
MOST_APART = 0.001  # the share of the documents by which those of two λs may differ where the λs are compared
MOST_LACKING = 0.05  # the share of the outputs of a λ that may lack the confidence which the λs are compared under


@dataclass(frozen=True, slots=True)
class Track:
    """Three metrics at L λs on one split; all λs share their resamples."""

    accuracy: tuple[Estimate, ...]  # [L]
    nll: tuple[Estimate, ...]  # [L] `nll_floored`, so that every one is finite
    error: tuple[Estimate, ...]  # [L] the calibration error, which lies in [0, 1]; lower is better

    def at(self, places: Ints) -> "Track":
        """Return the track of some of its λs."""
        return Track(*(tuple(of[i] for i in places) for of in (self.accuracy, self.nll, self.error)))


@dataclass(frozen=True, slots=True)
class RivalTrack:
    """The metrics of a rival of λ* on all documents that it is there for; its resamples are those of the λs."""

    accuracy: Estimate
    nll: Estimate  # `nll_floored`
    error: Estimate
    brier: Estimate
    temperatures: tuple[float, ...]  # what `select` and `report` are scaled by; none where nothing is fitted


@dataclass(frozen=True, slots=True)
class Curve:
    """The curve of a task, or of pooled tasks, at its L finished λs, ascending."""

    task: str
    metric: str  # the name of the calibration error
    confidence: str
    lambdas: tuple[str, ...]  # the canonical λs
    tracks: Mapping[str, Track]  # by split: all, select and report
    parents: Mapping[str, str] = field(default_factory=PARENTS.copy)  # the point of each parent that is on the line
    scaled: Mapping[str, Estimate] = field(default_factory=dict)
    """`nll` and `error` of aligned after temperature scaling, on all documents, where it has them."""
    rivals: Mapping[str, RivalTrack] = field(default_factory=dict)
    """What can be had of base and aligned without merging them, by name [metrics.rivals], where both are finished."""
    macro: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)
    """`nll` and `brier` [L] as means over the tasks, each with the same weight, of pooled tasks."""
    is_written: bool = False  # whether this is of written answers
    lacking: tuple[str, ...] = ()
    """The λs that are left out because more than `MOST_LACKING` of their outputs lack the confidence, ascending."""
    apart: tuple[str, ...] = ()
    """The λs that are left out because they have scores of other documents than most, ascending."""
    is_mixed: bool = False
    """Whether no documents are those of most λs, so that λs with scores of other documents are compared all the same."""
    gains: Mapping[str, tuple[tuple[Estimate, ...] | None, ...]] = field(default_factory=dict)
    """By parent, for each λ the differences in accuracy, NLL and error to it on what both have; None at the parent."""

    @property
    def places(self) -> dict[str, int]:
        """Return the place among the λs of each parent that the curve has."""
        return {name: self.lambdas.index(lam) for name, lam in self.parents.items() if lam in self.lambdas}


def stacked(*several: Sequence[Estimate]) -> list[tuple[Floats, Floats]]:
    """Return the values [L] and the resamples [L, R] of each of several metrics at the same L λs.

    The metrics share the R resamples: as many as all of them have, without those in which any has no value.
    """
    count = min(len(one.resampled) for estimates in several for one in estimates)
    drawn = [np.stack([one.resampled[:count] for one in estimates]) for estimates in several]
    whole = ~np.isnan(np.stack(drawn)).any(axis=(0, 1))  # a resample may hold no document of a λ that has few
    values = [np.array([one.value for one in estimates]) for estimates in several]
    return [(value, array[:, whole]) for value, array in zip(values, drawn, strict=True)]


def accuracy_of(confidence: str, is_written: bool = False) -> tuple[str, str]:
    """Return the name of the accuracy under a confidence, and the confidence that it is stored under.

    Where outputs may lack the confidence, it is that of all outputs: those that have it differ from λ to λ.
    """
    if not is_written:
        return ACCURACY[confidence], confidence
    return ("acc", confidence) if confidence in (*OF_OUTPUTS, VOTES) else ("mean_at_k", CONFIDENCES[0])


def shown_as(metric: str, confidence: str, is_written: bool = False) -> str:
    """Return the name of what a metric is judged by.

    It is after temperature scaling where the temperature is arbitrary, and after Platt scaling for written answers under
    every confidence: next to no output of many tokens has a probability that is not near 0, so that before scaling the NLL
    grows with the accuracy.
    """
    known = find(metric)
    is_scaled = is_written or confidence != CONFIDENCES[0]
    return f"{metric}_scaled" if is_scaled and known and known.scaled else metric


def thinned(
    measured: TaskMetrics, metric: str, confidence: str, parents: Collection[str], is_written: bool = False
) -> TaskMetrics:
    """Return a λ's metrics with only the estimates that a curve needs; all estimates would take gigabytes."""
    accuracy = accuracy_of(confidence, is_written)
    plain = {accuracy[0], "nll_floored", "brier", metric}
    wanted = plain | {f"{name}_scaled" for name in plain}
    wanted |= {"temperature", "missing"}
    names = _names(metric, confidence, is_written)
    differences = {(f"{name}_vs_{parent}", sure, "all") for name, sure in names for parent in parents}

    def thin(estimates: Estimates) -> Estimates:
        return {
            key: one
            for key, one in estimates.items()
            if (key[0] in wanted and key[1] == confidence) or key[:2] == accuracy or key in differences
        }

    rivals = {name: dataclasses.replace(one, estimates=thin(one.estimates)) for name, one in measured.rivals.items()}
    return dataclasses.replace(measured, estimates=thin(measured.estimates), rivals=rivals)


def collect_curve(
    task: str,
    measured_lambdas: Sequence[TaskMetrics],
    metric: str,
    confidence: str,
    parents: Mapping[str, str],
    is_written: bool = False,
) -> Curve | None:
    """Collect the metrics of a choice task, or of one whose answers are written, along λ.

    A λ with documents still to be scored is left out: fewer documents are no fair comparison. So is one with scores of other
    documents than most λs have (`MOST_APART`), because some are in quarantine there: a few hard documents more or less make
    a larger difference than λ does. And so is one where more than `MOST_LACKING` of the outputs lack the confidence: NLL and
    error would be those of outputs that the model itself selects.

    Args:
        task: the task's name.
        measured_lambdas: the task's metrics at each λ, ascending; those that `thinned` keeps are enough.
        metric: the calibration error, one of catalogue.answers().
        confidence: the confidence of all metrics: sum, tokens or bytes. Per token and per byte the temperature is arbitrary,
            so NLL and error are those after temperature scaling; of written answers all are scaled, after Platt.
        parents: the point of each parent that is on the line.
        is_written: whether the answers are written.

    Returns:
        The curve; None where no λ is finished, for a continuation task, and where a half holds fewer than two documents.
    """
    names = _names(metric, confidence, is_written)
    wanted = [(*name, split) for name in names for split in SPLITS]
    whole = [measured for measured in measured_lambdas if not measured.left_out.unfinished]
    alike = _on_most_documents(whole)
    is_mixed = bool(whole) and not alike
    alike = alike or whole
    apart = _others(whole, alike)
    lacking = tuple(measured.lam for measured in alike if _lacks(measured, confidence))
    finished = [
        measured
        for measured in alike
        if measured.lam not in lacking
        and all(key in measured.estimates and measured.estimates[key].n > 1 for key in wanted)
        and not any(np.isnan(measured.estimates[key].value) for key in wanted)
    ]
    if not finished:
        return None
    tracks = {
        split: Track(*(tuple(one.estimates[(*name, split)] for one in finished) for name in names)) for split in SPLITS
    }
    lambdas = tuple(measured.lam for measured in finished)
    scaled = {}
    for one in finished:
        if one.lam == parents.get("aligned") and not is_written:  # what is written is scaled at every λ
            for name, of in (("nll", "nll_floored_scaled"), ("error", f"{metric}_scaled")):
                if (estimate := one.estimates.get((of, confidence, "all"))) and not np.isnan(estimate.value):
                    scaled[name] = estimate
    rivals = {} if is_written else _rivals(finished, metric, confidence, parents)
    gains = {
        parent: tuple(_difference(one, parent, names) for one in finished)
        for parent, lam in parents.items()
        if lam in lambdas
    }
    made = Curve(task, metric, confidence, lambdas, tracks, parents, scaled, rivals)
    return dataclasses.replace(
        made, is_written=is_written, lacking=lacking, apart=apart, is_mixed=is_mixed, gains=gains
    )


def _names(metric: str, confidence: str, is_written: bool) -> tuple[tuple[str, str], ...]:
    """Return accuracy, NLL and error as they are judged: the name of each, and the confidence that it is stored under."""
    judged = ((shown_as(name, confidence, is_written), confidence) for name in ("nll_floored", metric))
    return (accuracy_of(confidence, is_written), *judged)


def on_other_documents(measured_lambdas: Sequence[TaskMetrics]) -> tuple[str, ...]:
    """Return the finished λs that have scores of other documents than most λs; none where these are not most λs."""
    whole = [measured for measured in measured_lambdas if not measured.left_out.unfinished]
    return _others(whole, _on_most_documents(whole) or whole)


def _others(whole: Sequence[TaskMetrics], alike: Sequence[TaskMetrics]) -> tuple[str, ...]:
    return tuple(measured.lam for measured in whole if not any(measured is one for one in alike))


def _on_most_documents(whole: Sequence[TaskMetrics]) -> list[TaskMetrics]:
    """Return the λs that have scores of the same documents, but for `MOST_APART`; none where these are not most λs."""
    alike: dict[bytes, list[TaskMetrics]] = {}
    for measured in whole:
        alike.setdefault(measured.scored.tobytes(), []).append(measured)
    most = max(alike.values(), key=lambda some: (len(some), len(some[0].scored)), default=[])
    found = [
        measured
        for measured in whole
        if len(np.setxor1d(measured.scored, most[0].scored)) <= MOST_APART * len(most[0].scored)
    ]
    return found if 2 * len(found) > len(whole) else []


def _difference(measured: TaskMetrics, parent: str, names: Sequence[tuple[str, str]]) -> tuple[Estimate, ...] | None:
    """Return the differences of these metrics to a parent, taken on what both have; None where one is missing."""
    there = [measured.estimates.get((f"{name}_vs_{parent}", confidence, "all")) for name, confidence in names]
    found = tuple(one for one in there if one is not None)
    return found if len(found) == len(names) else None


def _lacks(measured: TaskMetrics, confidence: str) -> bool:
    """Tell whether too many outputs at a λ lack a confidence."""
    missing = measured.estimates.get(("missing", confidence, "all"))
    return missing is not None and missing.value > MOST_LACKING


def _rivals(
    finished: Sequence[TaskMetrics], metric: str, confidence: str, parents: Mapping[str, str]
) -> dict[str, RivalTrack]:
    by_lam = {one.lam: one for one in finished}
    aligned = by_lam.get(parents.get("aligned", ""))
    if confidence != CONFIDENCE or aligned is None or parents["base"] not in by_lam:
        return {}
    temperatures = [aligned.estimates.get(("temperature", confidence, half)) for half in ("select", "report")]
    fitted = tuple(one.value for one in temperatures if one and not np.isnan(one.value))
    found = (
        {TEMPERATURE: _rival(aligned.estimates, "_scaled", metric, fitted)} if len(fitted) == len(temperatures) else {}
    )
    for name, rival in aligned.rivals.items():
        found[name] = _rival(rival.estimates, "", metric, rival.temperatures)
    return {name: one for name, one in found.items() if one is not None}


def _rival(estimates: Estimates, suffix: str, metric: str, temperatures: tuple[float, ...]) -> RivalTrack | None:
    names = (ACCURACY[CONFIDENCE], *(f"{name}{suffix}" for name in ("nll_floored", metric, "brier")))
    there = [estimates.get((name, CONFIDENCE, "all")) for name in names]
    accuracy, nll, error, brier = (one if one and one.n > 1 and not np.isnan(one.value) else None for one in there)
    if accuracy is None or nll is None or error is None or brier is None:
        return None
    return RivalTrack(accuracy, nll, error, brier, temperatures)
