"""A run directory → its metrics table, from whatever is committed so far."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from calibration.catalogue import ERROR, answers, find
from calibration.frontier.curve import Curve, curve, thinned
from calibration.lm_eval_rows import outcome_rows
from calibration.metrics.reliability_bins import bin_table
from calibration.samples_at_lambda import diversity_points
from calibration.scores.per_document import CONFIDENCES
from calibration.task_at_lambda import Point, task_points
from calibration.uncertainty.intervals import interval
from calibration.uncertainty.resample import RESAMPLES, SEED, SPLITS
from contract import schemas
from contract.errors import InputError
from contract.points import order
from contract.records import Plan, SweepRecord, read_plan, read_sweep
from contract.rundir import RunDir, commit_table

_Row = tuple[Any, ...]  # in the order of schemas.METRICS, with a canonical point in the place of λ


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a run's tables say."""

    metrics: pa.Table  # schemas.METRICS
    bins: pa.Table  # schemas.BINS
    curves: tuple[Curve, ...]  # of the choice tasks: for `frontier.frontiers`
    sweep: SweepRecord
    plan: Plan

    @property
    def parents(self) -> Mapping[str, str]:
        """The λs of the parents that are on the line."""
        return self.sweep.parents


def analyse(
    run: RunDir, resamples: int = RESAMPLES, seed: int = SEED, error: str = ERROR, confidence: str = CONFIDENCES[0]
) -> Analysis:
    """Compute every metric of every task at every λ of the plan that has anything committed.

    Per task, λ and split, the metrics of `catalogue.METRICS` for what the task is scored as; those of choice tasks for
    each confidence (sum, tokens, bytes), unless they are the same for all, which is then stored under sum. Some
    also after temperature scaling, where the catalogue says so: each half of the documents by the temperature fitted on
    the other [temperature].

    Any of these that the catalogue compares also as `<metric>_vs_base` and `<metric>_vs_aligned`: less that of λ = 0,
    λ = 1, on the documents that both have scores for. Over several aligned checkpoints their names stand in the place of
    `aligned`, and nothing is matched. Where λ = 1 is not the aligned parent [records.SweepRecord.parents], nothing is named
    after that.

    Per task and λ, under confidence sum and split all, with n = all documents of the task: `docs_quarantined`,
    `docs_unfinished`, `docs_undefined`: how many are in none of the above, and why (`LeftOut` of
    `calibration.scores.per_document`).

    Per task and group of lm-eval and λ, under confidence sum and split all, without intervals: its own metrics, as
    `lm_eval/<metric>,<filter>` [outcomes].

    Args:
        run: the run.
        resamples: of the documents, for the 95 % intervals [intervals.interval]; smooth ECE takes at most 200 of them.
        seed: of the splits [resample.draw] and of the resamples. The table is a function of the run's tables and these.
        error, confidence: what the curves hold accuracy against, one of catalogue.answers() and of CONFIDENCES.

    Returns:
        The metrics, ordered by task as in the plan, λ ascending, metric, confidence as in CONFIDENCES, and split (all,
        select, report); the bins of reliability diagrams, by task and λ likewise [bins]; and the curves that
        `frontier.frontiers` makes its answer of. A value is null where n is 0 or the metric does not exist (AUROC where
        all are right, a perplexity beyond float64); `nll` and `perplexity` are infinite where something right has
        probability 0. A λ with nothing committed has no rows.

    Raises:
        InputError: the directory holds no run; there is no such error or confidence.
        LambdasweepError: a table is missing or damaged; names the run, the task and λ.
    """
    if error not in answers() or confidence not in CONFIDENCES:
        known = f"an error of {', '.join(answers())} and a confidence of {', '.join(CONFIDENCES)}"
        raise InputError(f"accuracy cannot be held against {error!r} of confidence {confidence!r}: give {known}")
    rows: list[_Row] = []
    binned = []
    curves = []
    plan = read_plan(run)  # first: it tells a place that holds no run
    outcomes = outcome_rows(run)
    sweep = read_sweep(run)
    parents = sweep.parents
    for task, entry in plan.items():
        found: dict[str, list[_Row]] = outcomes.pop(task, {})
        kept: list[Point] = []
        # What is neither choices nor one continuation has lm-eval's metrics only.
        scored_as = entry.scored_as
        found_points: Iterator[Point] = iter(())
        if entry.is_sampled:
            found_points = diversity_points(run, task, entry, parents, resamples, seed)
        elif scored_as != "other":
            found_points = task_points(run, task, entry.lambdas, parents, resamples, seed)
        for point in found_points:
            found.setdefault(point.lam, []).extend(_rows(task, point, scored_as))
            kept.append(thinned(point, error, confidence))
        for lam in sorted(found, key=order):
            rows += sorted(found[lam], key=_order)
        kept.sort(key=lambda point: order(point.lam))
        binned += [(task, point.lam, point.bins) for point in kept]
        if along := curve(task, kept, error, confidence, parents):
            curves.append(along)
    for group in outcomes.values():
        for lam in sorted(group, key=order):
            rows += sorted(group[lam], key=_order)
    metrics = schemas.table_of(schemas.METRICS, rows, list(parents.values()))
    return Analysis(metrics, bin_table(binned, list(parents.values())), tuple(curves), sweep, plan)


def write_metrics(run: RunDir, analysis: Analysis | None = None) -> pa.Table:
    """Commit RUN/metrics.parquet and return it. Equal tables of equal sweeps give equal bytes, wherever they lie.

    Args:
        run: the run.
        analysis: of it, where there is one already.

    Raises:
        InputError, LambdasweepError: as `analyse`.
        OSError: the disk is full or not writable; an earlier metrics.parquet is left as it was.
    """
    analysis = analysis or analyse(run)
    commit_table(run.metrics, analysis.metrics, _identity(analysis.sweep))
    return analysis.metrics


def write_bins(run: RunDir, analysis: Analysis) -> None:
    """Commit RUN/report/bins.parquet; raises as `write_metrics`."""
    commit_table(run.bins, analysis.bins, _identity(analysis.sweep))


def _identity(sweep: SweepRecord) -> dict[str, Any]:
    return sweep.table_identity() | {"schema": schemas.SCHEMA_VERSION}


def _rows(task: str, point: Point, scored_as: str) -> Iterator[_Row]:
    left_out = point.left_out
    counts = {
        ("docs_quarantined", "sum", "all"): left_out.quarantined,
        ("docs_unfinished", "sum", "all"): left_out.unfinished,
        ("docs_undefined", "sum", "all"): left_out.undefined,
    }
    lam = point.lam
    for key in [*point.estimates, *counts]:
        if key in counts:
            yield (task, lam, *key, float(counts[key]), None, None, point.documents, None)
            continue
        metric = find(key[0])
        if scored_as == "contexts" and metric and not metric.of_contexts:
            continue  # probabilities after several contexts, which add up to nothing
        estimate = point.estimates[key]
        value = None if math.isnan(estimate.value) else estimate.value
        found = interval(estimate, key[0])
        ends = (found.low, found.high) if found else (None, None)
        yield (task, lam, *key, value, *ends, estimate.n, found.resamples if found else None)


def _order(row: _Row) -> tuple[str, int, int]:
    _, _, metric, confidence, split, *_ = row
    return metric, CONFIDENCES.index(confidence), SPLITS.index(split)
