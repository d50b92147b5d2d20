"""This module computes only the two metrics that λ* is chosen by, for a sweep that asks again and again while it runs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from calibration.arrays import Floats
from calibration.catalogue import ACCURACY, ERROR
from calibration.frontier.curve import Curve, collect_curve, macro_average
from calibration.metrics.binned import Layout, add_reliability, means, reliability_metrics
from calibration.metrics.choice_tasks import restricted
from calibration.metrics.predictions import predictions
from calibration.scores.loader import Loader
from calibration.scores.per_document import CONFIDENCES, ChoiceScores
from calibration.task_at_lambda import TaskMetrics, cores
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import RESAMPLES, SEED, Resamples, Weights, draw, ones
from contract.points import order
from contract.records import Plan, SweepRecord, read_plan, read_sweep
from contract.rundir import RunDir

_CONFIDENCE = CONFIDENCES[0]
_HALVES = ("select", "report")


def answer_curve(
    run: RunDir,
    tasks: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = SEED,
    sweep: SweepRecord | None = None,
    plan: Plan | None = None,
) -> Curve | None:
    """Return the curve that the first answer of a report is made of, from a pass over the tables for two metrics only.

    Over several choice tasks it is their average, because a model is put to use at one λ. The numbers are the same as those
    of `analyse.analyse`.

    Args:
        run: the run.
        tasks: names of tasks of its plan; those without choices are passed over.
        resamples: the number of resamples, as `analyse.analyse` takes it.
        seed: the seed of splits and resamples, as `analyse.analyse` takes it.
        sweep: the run's sweep.json, if it was read already.
        plan: the tasks of the run's plan.json, if it was read already.

    Returns:
        The curve; None without a choice task, or without a λ that all choice tasks have finished.

    Raises:
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    plan = plan if plan is not None else read_plan(run)
    parents, curves = (sweep or read_sweep(run)).parents, []
    for task in tasks:
        if plan[task].scored_as != "other":
            found = _measured_lambdas(run, task, plan[task].lambdas, resamples, seed)
            if along := collect_curve(task, found, ERROR, _CONFIDENCE, parents):
                curves.append(along)
    return macro_average(curves) if len(curves) > 1 else curves[0] if curves else None


def _measured_lambdas(run: RunDir, task: str, lambdas: Sequence[str], resamples: int, seed: int) -> list[TaskMetrics]:
    there = [lam for lam in lambdas if run.committed(task, lam) or run.committed(task, lam, "quarantine")]
    loader = Loader(run, task)
    if loader.documents.is_continuation:
        return []
    drawn = draw(task, len(loader.documents.sizes), resamples, seed)
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(lambda lam: _measured_at(loader, drawn, lam), sorted(there, key=order)))


def _measured_at(loader: Loader, resamples: Resamples, lam: str) -> TaskMetrics:
    scores = loader.load(lam).scores
    assert isinstance(scores, ChoiceScores)
    places, halves = resamples.halves_first(scores.document)
    scores = restricted(scores, places)
    layout = Layout(len(places))
    made = predictions(scores.logits[_CONFIDENCE], scores.gold)
    add_reliability(layout, made)
    layout.add("correct", made.correct.astype(np.float64))
    itself = _measure(layout, ones(len(places)), halves)
    drawn = [_measure(layout, weights, halves) for weights in resamples.chunks(scores.document)]
    estimates = {}
    for key, value in itself.items():
        resampled = np.concatenate([chunk[key] for chunk in drawn])
        estimates[key] = Estimate(float(value[0]), resampled, len(places[halves[key[2]]]))
    return TaskMetrics(lam, estimates, scores.left_out, len(loader.documents.sizes), [])


def _measure(layout: Layout, weights: Weights, halves: dict[str, slice]) -> dict[tuple[str, str, str], Floats]:
    found = {}
    for half in _HALVES:
        sums = layout.matrix.sums(weights[halves[half]], halves[half])
        n = layout.of(sums, "bin_count").sum(axis=0)
        found[ACCURACY[_CONFIDENCE], _CONFIDENCE, half] = means(layout, sums, ["correct"], n)["correct"]
        found[ERROR, _CONFIDENCE, half] = reliability_metrics(layout, sums)["ece_width"]
    return found
