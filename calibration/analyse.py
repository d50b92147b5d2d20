"""This module computes the metrics table of a run directory from whatever is committed so far."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from calibration.frontier.curve import ERRORS, Curve, collect_curve, thinned
from calibration.lm_eval_rows import outcome_rows
from calibration.metrics.reliability_bins import bin_table
from calibration.samples_at_lambda import diversity_metrics
from calibration.scores.per_document import CONFIDENCES
from calibration.task_at_lambda import PARENTS, TaskMetrics, parents_on_line, task_metrics
from calibration.uncertainty.intervals import interval
from calibration.uncertainty.resample import RESAMPLES, SEED, SPLITS
from contract import schemas
from contract.errors import InputError
from contract.points import order
from contract.rundir import RunDir, commit_table

_Row = tuple[Any, ...]  # a row in the order of schemas.METRICS, with a canonical point in the place of λ


@dataclass(frozen=True, slots=True)
class Analysis:
    """Holds everything that is computed from a run's tables."""

    metrics: pa.Table  # its schema is schemas.METRICS
    bins: pa.Table  # its schema is schemas.BINS
    curves: tuple[Curve, ...]  # the curves of the choice tasks, which `frontier.frontiers` takes
    parents: Mapping[str, str] = field(default_factory=PARENTS.copy)  # the point of each parent that is on the line


def analyse(
    run: RunDir, resamples: int = RESAMPLES, seed: int = SEED, error: str = ERRORS[0], confidence: str = CONFIDENCES[0]
) -> Analysis:
    """Compute every metric of every task at every λ of the plan that has anything committed.

    A choice task has these metrics for every λ, split and confidence (sum, tokens, bytes). The names in brackets say where
    the formulas and their sources are, in `calibration.metrics` unless the name is longer:

    - `acc`, `acc_tokens` or `acc_bytes` is the accuracy; `confidence` is the mean confidence in the predicted choice;
      `overconfidence` is `confidence` less the accuracy; `nll` is −log p(gold) in nats, where p is renormalised over the
      choices; `brier` [predictions] has the parts `brier_reliability`, `brier_resolution`, `brier_uncertainty` and
      `brier_within` [binned.class_metrics];
    - the calibration errors are `ece_width15`, `ece_debiased15`, `mce15` [binned.reliability_metrics], `ece_classwise15`
      [binned.class_metrics], `ece_mass15` [ranked.Ranking.metrics] and `smece` [smooth_ece.smooth_ece];
    - `auroc`, `aurc` and `acc_at_80` judge the order of the confidences [ranked.Ranking.metrics];
    - `confidence_scaled`, `overconfidence_scaled`, `brier_scaled`, `nll_scaled` and `ece_width15_scaled` are taken after
      temperature scaling, where each half of the documents is scaled by the temperature fitted on the other half;
      `temperature`, on the splits select and report, is what their documents are scaled by [temperature];
    - `ece_width15_matched` is matched to the accuracy of λ = 1 [binned.reliability_metrics];
    - `agreement_base` and `agreement_aligned` are the share of documents with the parent's prediction.

    Two metrics are stored under confidence sum only, because they are the same for all confidences: `option_mass`, the
    probability of all listed choices together before it is renormalised, and `token_ece_width15` [token_ece].

    A continuation task has `acc`, `nll`, `perplexity` and `token_ece_width15` for every λ and split, under confidence sum
    [continuation_tasks].

    A generate task has `distinct_1`, `distinct_2`, `distinct_3`, `self_bleu` and `distinct_answers` for every λ and split,
    as means over prompts [diversity]. They are stored under confidence sum too, though they have no confidence.

    Each of these metrics, except agreement and temperature, also has its difference to a parent, as `<metric>_vs_base` and
    `<metric>_vs_aligned`: it is the value less that of λ = 0 or of λ = 1, on the documents that both have scores for. Where
    λ = 1 is not the aligned parent [calibration.task_at_lambda.parents_on_line], nothing is compared with it. Over several
    aligned checkpoints their names stand in the place of `aligned`, and nothing is matched.

    Every task has `docs_quarantined`, `docs_unfinished` and `docs_undefined` for every λ, under confidence sum and split
    all, with n = all documents of the task: they count the documents that are in none of the metrics above, by the reason
    (`LeftOut` of `calibration.scores.per_document`).

    Every task and group of lm-eval has lm-eval's own metrics for every λ, under confidence sum and split all, without
    intervals, as `lm_eval/<metric>,<filter>` [calibration.lm_eval_rows].

    Args:
        run: the run.
        resamples: the number of resamples that the 95 % intervals are made of [calibration.uncertainty.intervals]; smooth
            ECE takes at most 200 of them.
        seed: the seed of the splits and of the resamples [calibration.uncertainty.resample.draw]. The table depends on the
            run's tables and on these arguments alone.
        error: the calibration error that the curves hold accuracy against, one of curve.ERRORS.
        confidence: the confidence of that error and accuracy, one of CONFIDENCES.

    Returns:
        The metrics, ordered by task as in the plan, λ ascending, metric, confidence as in CONFIDENCES, and split (all,
        select, report); the bins of reliability diagrams [reliability_bins], ordered by task and λ in the same way; and the
        curves from which `frontier.frontiers` makes its answer. A value is null where n is 0 or the metric does not exist
        (AUROC where all are right, a perplexity beyond float64); `nll` and `perplexity` are infinite where something right
        has probability 0. A λ with nothing committed has no rows.

    Raises:
        InputError: the directory holds no run, or there is no such error or confidence.
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    if error not in ERRORS or confidence not in CONFIDENCES:
        known = f"an error of {', '.join(ERRORS)} and a confidence of {', '.join(CONFIDENCES)}"
        raise InputError(f"accuracy cannot be held against {error!r} of confidence {confidence!r}: give {known}")
    rows: list[_Row] = []
    binned = []
    curves = []
    tasks = run.plan()["tasks"]  # the plan is read first, because this tells a place that holds no run
    outcomes = outcome_rows(run)
    parents = parents_on_line(run.sweep())
    for task, entry in tasks.items():
        found: dict[str, list[_Row]] = outcomes.pop(task, {})
        kept: list[TaskMetrics] = []
        # A task whose documents are neither choices nor one continuation has lm-eval's metrics only.
        scored_as = entry.get("scored_as", "choices")
        measured_lambdas: Iterator[TaskMetrics] = iter(())
        if scored_as == "samples":
            measured_lambdas = diversity_metrics(run, task, entry, resamples, seed)
        elif scored_as != "other":
            measured_lambdas = task_metrics(run, task, entry["lambdas"], resamples, seed)
        for measured in measured_lambdas:
            found.setdefault(measured.lam, []).extend(_rows(task, measured, scored_as))
            kept.append(thinned(measured, error, confidence))
        for lam in sorted(found, key=order):
            rows += sorted(found[lam], key=_order)
        kept.sort(key=lambda measured: order(measured.lam))
        binned += [(task, measured.lam, measured.bins) for measured in kept]
        if along := collect_curve(task, kept, error, confidence, parents):
            curves.append(along)
    for group in outcomes.values():
        for lam in sorted(group, key=order):
            rows += sorted(group[lam], key=_order)
    metrics = schemas.table_of(schemas.METRICS, rows, list(parents.values()))
    return Analysis(metrics, bin_table(binned, list(parents.values())), tuple(curves), parents)


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
    table = (analysis or analyse(run)).metrics
    commit_table(run.metrics_parquet, table, _identity(run))
    return table


def write_bins(run: RunDir, analysis: Analysis) -> None:
    """Commit RUN/report/bins.parquet.

    Raises:
        InputError: the directory holds no run.
        OSError: the disk is full or not writable; an earlier bins.parquet is left as it was.
    """
    commit_table(run.bins_parquet, analysis.bins, _identity(run))


def _identity(run: RunDir) -> dict[str, Any]:
    sweep = run.sweep()
    return {
        "schema": schemas.SCHEMA_VERSION,
        **{role: parent["fingerprint"] for role, parent in sweep["pair"].items()},
        "line": sweep.get("line"),
        "engine": sweep["engine"],
        "versions": sweep["versions"],
    }


def _rows(task: str, measured: TaskMetrics, scored_as: str) -> Iterator[_Row]:
    left_out = measured.left_out
    counts = {
        ("docs_quarantined", "sum", "all"): left_out.quarantined,
        ("docs_unfinished", "sum", "all"): left_out.unfinished,
        ("docs_undefined", "sum", "all"): left_out.undefined,
    }
    lam = measured.lam
    for key in [*measured.estimates, *counts]:
        if scored_as == "contexts" and key[0].startswith("option_mass"):
            continue  # probabilities that follow different contexts have no meaningful sum
        if key in counts:
            yield (task, lam, *key, float(counts[key]), None, None, measured.documents, None)
            continue
        estimate = measured.estimates[key]
        value = None if math.isnan(estimate.value) else estimate.value
        found = interval(estimate, key[0])
        ends = (found.low, found.high) if found else (None, None)
        yield (task, lam, *key, value, *ends, estimate.n, found.resamples if found else None)


def _order(row: _Row) -> tuple[str, int, int]:
    _, _, metric, confidence, split, *_ = row
    return metric, CONFIDENCES.index(confidence), SPLITS.index(split)
