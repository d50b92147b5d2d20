"""This module computes the metrics table of a run directory from whatever is committed so far."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from calibration.catalogue import ERROR, answers, find
from calibration.frontier.curve import collect_curve, on_other_documents, thinned
from calibration.frontier.frontier import Frontier, Frontiers, frontier
from calibration.frontier.lambda_star import MARGIN
from calibration.lm_eval_rows import outcome_rows
from calibration.macro import Means, macro_along, means_of, with_means
from calibration.measured_rows import measured_rows
from calibration.metrics.cumulative import Walk
from calibration.metrics.reliability_bins import BinRow, bin_table
from calibration.samples_at_lambda import diversity_metrics
from calibration.scores.confidences import ALWAYS_KNOWN, choice_confidence, confidence_of, confidences_in, in_order
from calibration.scores.loader import Shelf
from calibration.scores.per_document import CONFIDENCES
from calibration.scores.pool import pools_of
from calibration.task_at_lambda import TaskMetrics, answer_metrics, pooled_metrics, task_metrics
from calibration.uncertainty.intervals import intervals
from calibration.uncertainty.resample import RESAMPLES, SEED, SPLITS
from contract import schemas
from contract.commit import commit_table
from contract.damage import describe
from contract.errors import InputError, join
from contract.points import order
from contract.records import Asked, EachRecord, Plan, SweepRecord, read_asked, read_sweep
from contract.rundir import RunDir

_Row = tuple[Any, ...]  # a row in the order of schemas.METRICS, with a canonical point in the place of λ


@dataclass(frozen=True, slots=True)
class Analysis:
    """Holds everything that is computed from a run's tables."""

    metrics: pa.Table  # its schema is schemas.METRICS
    bins: pa.Table  # its schema is schemas.BINS
    found: Frontiers  # the frontiers of the choice tasks and of pooled tasks
    pools: Mapping[str, tuple[str, ...]]  # the choice tasks that are pooled, by the name of the pool
    sweep: SweepRecord
    plan: Plan
    walks: Mapping[tuple[str, str, str], Walk]
    """The cumulative differences of choice tasks and pools on all documents, by task, λ and confidence."""
    apart: Mapping[str, tuple[str, ...]]
    """The λs of each task and pool that are compared with none: scores there are of other documents than at most λs, or too
    many outputs lack the confidence."""
    damaged: tuple[str, ...] = ()  # a line for each damaged table, whose documents count as unfinished
    each: EachRecord | None = None  # the command of the user that measured everything, where one did

    @property
    def parents(self) -> Mapping[str, str]:
        """The point of each parent that is on the line."""
        return self.sweep.parents


def analyse(
    run: RunDir,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    error: str = ERROR,
    confidence: str = CONFIDENCES[0],
    margin: float | None = None,
    tasks: Collection[str] | None = None,
    asked: Asked | None = None,
    sweep: SweepRecord | None = None,
) -> Analysis:
    """Compute every metric of every task at every λ of the plan that has anything committed.

    Each task has, for every λ and split, the metrics of `catalogue.METRICS` for what the task is scored as. Those of a
    choice task are stored for every confidence (sum, tokens, bytes), unless they are the same for all, and then under sum.
    Where the catalogue says so, a metric is also taken after temperature scaling, where each half of the documents is
    scaled by the temperature fitted on the other half [temperature].

    Each of these metrics that the catalogue compares also has its difference to a parent, as `<metric>_vs_base` and
    `<metric>_vs_aligned`: it is the value less that of λ = 0 or of λ = 1, on the documents that both have scores for, and
    under a confidence that outputs may lack on the outputs that have it at both. Where λ = 1 is not the aligned parent
    [records.SweepRecord.parents], nothing is compared with it. Over several aligned checkpoints their names stand in the
    place of `aligned`, and nothing is matched.

    All choice tasks together, and those of a group of lm-eval, are pooled [calibration.scores.pool]: a pool has a name as a
    task has, and the metrics of catalogue.METRICS for pools, under `confidence` only.

    Every task has `docs_quarantined`, `docs_unfinished` and `docs_undefined` for every λ, under confidence sum and split
    all, with n = all documents of the task: they count the documents that are in none of the metrics above, by the reason
    (`LeftOut` of `calibration.scores.per_document`).

    Every task and group of lm-eval has lm-eval's own metrics for every λ, under confidence sum and split all, without
    intervals, as `lm_eval/<metric>,<filter>` [calibration.lm_eval_rows]. A run of `lambdasweep each` has what the evaluators
    measured, with the interval of their standard errors [calibration.measured_rows].

    Args:
        run: the run.
        resamples: the number of resamples that the 95 % intervals are made of [calibration.uncertainty.intervals]; smooth
            ECE takes at most 500 of them.
        seed: the seed of the splits and of the resamples [calibration.uncertainty.resample.draw]. The table depends on the
            run's tables and on these arguments alone.
        error: the calibration error that the frontiers hold accuracy against, one of catalogue.answers().
        confidence: the confidence of that error and accuracy; a task that has no such confidence takes sum.
        margin: the accuracy that λ* may give up, as a share of documents [lambda_star.choose]; without it, the run's.
        tasks: the tasks that are looked at; without it, all of the plan.
        asked: the run's plan.json, if it was read already.
        sweep: the run's sweep.json, if it was read already.

    Returns:
        The metrics, ordered by task as in the plan, λ ascending, metric, confidence [confidences.in_order], and split (all,
        select, report), pools last; the bins of reliability diagrams [reliability_bins], ordered by task and λ likewise; and
        the frontiers with λ*. A value is null where n is 0 or the metric does not exist
        (AUROC where all are right, a perplexity beyond float64); `nll` and `perplexity` are infinite where something right
        has probability 0. A λ with nothing committed has no rows.

    Raises:
        InputError: the directory holds no run, or there is no such error, or no task may have such a confidence.
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    rows: list[_Row] = []
    binned: list[tuple[str, str, list[BinRow]]] = []
    frontiers: list[Frontier] = []
    means: dict[str, Means] = {}  # by choice task
    walks: dict[tuple[str, str, str], Walk] = {}
    apart: dict[str, tuple[str, ...]] = {}
    asked = asked or read_asked(run)  # it is read first, because this tells a place that holds no run
    plan = asked.plan
    there = sorted({name for entry in plan.values() for name in confidences_in(entry)}, key=in_order)
    problems = []
    if error not in answers():
        problems.append(f"calibration error {error!r} does not exist: give one of {', '.join(answers())}")
    if confidence not in (*ALWAYS_KNOWN, *there):
        problems.append(f"confidence {confidence!r} does not exist: give one of {', '.join(there) or ALWAYS_KNOWN[0]}")
    if problems:
        raise join([InputError(problem) for problem in problems], f"{run.root} cannot be analysed")
    if tasks is not None:
        plan = {task: entry for task, entry in plan.items() if task in tasks}
    outcomes = outcome_rows(run) | measured_rows(run)  # a run has one of the two
    sweep = sweep or read_sweep(run)
    parents = sweep.parents
    if margin is None:
        margin = MARGIN if asked.margin is None else asked.margin

    asked_confidence = confidence
    confidence = choice_confidence(plan, confidence)

    def add(name: str, measured_lambdas: Iterable[TaskMetrics], scored_as: str) -> None:
        is_written = scored_as == "answers"
        used = confidence_of(confidences_in(plan[name]), asked_confidence) if is_written else confidence
        found: dict[str, list[_Row]] = outcomes.pop(name, {})
        kept: list[TaskMetrics] = []
        for measured in measured_lambdas:
            found.setdefault(measured.lam, []).extend(_rows(name, measured, scored_as))
            kept.append(thinned(measured, error, used, parents, is_written))
        for lam in sorted(found, key=order):
            rows.extend(sorted(found[lam], key=_order))
        kept.sort(key=lambda measured: order(measured.lam))
        binned.extend((name, measured.lam, measured.bins) for measured in kept)
        walks.update({(name, one.lam, sure): walk for one in kept for sure, walk in one.walks.items()})
        along = collect_curve(name, kept, error, used, parents, is_written)
        apart[name] = (*along.apart, *along.lacking) if along else on_other_documents(kept)
        if along:
            several = [means[task] for task in pools.get(name, ())]
            frontiers.append(frontier(dataclasses.replace(along, macro=macro_along(along.lambdas, several)), margin))
            means.setdefault(name, means_of(kept, used))

    pools: dict[str, tuple[str, ...]] = {}
    shelf = Shelf()  # the tables of a choice task are read once, for the task and for its pools
    for task, entry in plan.items():
        # A task whose documents are neither choices nor one continuation has lm-eval's metrics only.
        if entry.is_sampled:
            add(task, diversity_metrics(run, task, entry, parents, resamples, seed), entry.scored_as)
        elif entry.is_answered:
            add(task, answer_metrics(run, task, entry, parents, resamples, seed), entry.scored_as)
        elif entry.scored_as == "other":
            add(task, (), entry.scored_as)
        else:
            add(task, task_metrics(run, task, entry.lambdas, parents, resamples, seed, shelf), entry.scored_as)
    with_choices = [one.task for one in frontiers]
    # Written answers are judged by other confidences than choices, so that they are in no pool.
    pools |= pools_of(plan, [task for task in with_choices if not plan[task].is_answered])
    for name, members in pools.items():
        along = pooled_metrics(run, members, plan, parents, resamples, seed, confidence, shelf)
        add(name, with_means(along, [means[task] for task in members], confidence, parents), "pool")
    for group in outcomes.values():
        for lam in sorted(group, key=order):
            rows += sorted(group[lam], key=_order)
    metrics = schemas.table_of(schemas.METRICS, rows)
    # Choices come before written answers, so that the run's λ* is that of choices where there are any.
    of_tasks = sorted(frontiers[: len(with_choices)], key=lambda one: plan[one.task].is_answered)
    of_pools = frontiers[len(with_choices) :]
    found = Frontiers(tuple(of_tasks), margin, tuple(of_pools), asked_confidence)
    damaged = tuple(describe(run))
    return Analysis(metrics, bin_table(binned), found, pools, sweep, plan, walks, apart, damaged, asked.each)


def write_metrics(run: RunDir, analysis: Analysis | None = None) -> pa.Table:
    """Commit RUN/metrics.parquet and return it. Equal tables of equal sweeps give equal bytes, wherever they lie.

    Args:
        run: the run.
        analysis: the run's analysis, if it is there already.

    Raises:
        InputError: the directory holds no run.
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
        OSError: the disk is full or not writable; an earlier metrics.parquet is left as it was.
    """
    analysis = analysis or analyse(run)
    commit_table(run.metrics_parquet, analysis.metrics, _identity(analysis.sweep))
    return analysis.metrics


def write_bins(run: RunDir, analysis: Analysis) -> None:
    """Commit RUN/report/bins.parquet.

    Raises:
        InputError: the directory holds no run.
        OSError: the disk is full or not writable; an earlier bins.parquet is left as it was.
    """
    commit_table(run.bins_parquet, analysis.bins, _identity(analysis.sweep))


def _identity(sweep: SweepRecord) -> dict[str, Any]:
    return sweep.table_identity() | {"schema": schemas.SCHEMA_VERSION}


def _rows(task: str, measured: TaskMetrics, scored_as: str) -> Iterator[_Row]:
    left_out = measured.left_out
    counts = {
        ("docs_quarantined", "sum", "all"): left_out.quarantined,
        ("docs_unfinished", "sum", "all"): left_out.unfinished,
        ("docs_undefined", "sum", "all"): left_out.undefined,
    }
    lam = measured.lam
    for key, count in counts.items():
        yield (task, lam, *key, float(count), None, None, measured.documents, None)
    shown = [key for key in measured.estimates if key not in counts and _is_meaningful(key[0], scored_as)]
    estimates = [measured.estimates[key] for key in shown]
    ranges = intervals([(estimate, key[0]) for key, estimate in zip(shown, estimates, strict=True)])
    for key, estimate, found in zip(shown, estimates, ranges, strict=True):
        value = None if math.isnan(estimate.value) else estimate.value
        ends = (found.low, found.high) if found else (None, None)
        yield (task, lam, *key, value, *ends, estimate.n, (found.resamples or None) if found else None)


def _is_meaningful(metric: str, scored_as: str) -> bool:
    """Tell whether a metric means something: probabilities that follow different contexts have no meaningful sum."""
    return scored_as != "contexts" or (known := find(metric)) is None or known.of_contexts


def _order(row: _Row) -> tuple[str, tuple[int, str], int]:
    _, _, metric, confidence, split, *_ = row
    return metric, in_order(confidence), SPLITS.index(split)
