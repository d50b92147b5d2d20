"""A run directory → its metrics table, from whatever is committed so far."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from calibration.frontier.curve import ERRORS, Curve, curve, thinned
from calibration.lm_eval_rows import outcome_rows
from calibration.metrics.reliability_bins import bin_table
from calibration.samples_at_lambda import diversity_points
from calibration.scores.per_document import CONFIDENCES
from calibration.task_at_lambda import PARENTS, Point, parents_of, task_points
from calibration.uncertainty.intervals import interval
from calibration.uncertainty.resample import RESAMPLES, SEED, SPLITS
from contract import schemas
from contract.errors import InputError
from contract.points import order
from contract.rundir import RunDir, commit_table

_Row = tuple[Any, ...]  # in the order of schemas.METRICS, with a canonical point in the place of λ


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a run's tables say."""

    metrics: pa.Table  # schemas.METRICS
    bins: pa.Table  # schemas.BINS
    curves: tuple[Curve, ...]  # of the choice tasks: for `frontier.frontiers`
    parents: Mapping[str, str] = field(default_factory=PARENTS.copy)  # λs of those that are on the line


def analyse(
    run: RunDir, resamples: int = RESAMPLES, seed: int = SEED, error: str = ERRORS[0], confidence: str = CONFIDENCES[0]
) -> Analysis:
    """Compute every metric of every task at every λ of the plan that has anything committed.

    Per choice task, λ, split and confidence (sum, tokens, bytes); the formulas and their sources are where the names in
    brackets say:

    - `acc`, `acc_tokens` or `acc_bytes`; `confidence` (mean of the predicted choice's); `overconfidence` (that less the
      accuracy); `nll` (−log p(gold), p renormalised over the choices, nats); `brier` [predictions] and its parts
      `brier_reliability`, `brier_resolution`, `brier_uncertainty`, `brier_within` [binned.class_metrics];
    - `ece_width15`, `ece_debiased15`, `mce15` [binned.reliability_metrics], `ece_classwise15` [binned.class_metrics],
      `ece_mass15` [ranked.Ranking.metrics], `smece` [smooth_ece.smooth_ece];
    - `auroc`, `aurc`, `acc_at_80` [ranked.Ranking.metrics];
    - `confidence_scaled`, `overconfidence_scaled`, `brier_scaled`, `nll_scaled`, `ece_width15_scaled`: after temperature
      scaling, each half of the documents by the temperature fitted on the other; `temperature` (splits select and
      report: the one that these documents are scaled by) [temperature];
    - `ece_width15_matched`: matched to the accuracy of λ = 1 [binned.reliability_metrics];
    - `agreement_base`, `agreement_aligned`: share of documents with the parent's prediction.

    Under confidence sum only, because it is the same for all: `option_mass` (probability of all listed choices together,
    before renormalising), `token_ece_width15` [tokens].

    Per continuation task, λ and split, under confidence sum: `acc`, `nll`, `perplexity`, `token_ece_width15`
    [continuation].

    Per generate task, λ and split, under confidence sum (there is none): `distinct_1`, `distinct_2`, `distinct_3`,
    `self_bleu`, `distinct_answers`: means over prompts [diversity].
    Over several aligned checkpoints their names stand in the place of `aligned`, and nothing is matched.

    Any of these but agreement and temperature also as `<metric>_vs_base` and `<metric>_vs_aligned`: less that of λ = 0,
    λ = 1, on the documents that both have scores for. Where λ = 1 is not the aligned parent
    [task_at_lambda.parents_of], nothing is named after that.

    Per task and λ, under confidence sum and split all, with n = all documents of the task: `docs_quarantined`,
    `docs_unfinished`, `docs_undefined`: how many are in none of the above, and why (`LeftOut` of
    `calibration.scores.per_document`).

    Per task and group of lm-eval and λ, under confidence sum and split all, without intervals: its own metrics, as
    `lm_eval/<metric>,<filter>` [outcomes].

    Args:
        run: the run.
        resamples: of the documents, for the 95 % intervals [intervals.interval]; smooth ECE takes at most 200 of them.
        seed: of the splits [resample.draw] and of the resamples. The table is a function of the run's tables and these.
        error, confidence: what the curves hold accuracy against, one of curve.ERRORS and of CONFIDENCES.

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
    if error not in ERRORS or confidence not in CONFIDENCES:
        known = f"an error of {', '.join(ERRORS)} and a confidence of {', '.join(CONFIDENCES)}"
        raise InputError(f"accuracy cannot be held against {error!r} of confidence {confidence!r}: give {known}")
    rows: list[_Row] = []
    binned = []
    curves = []
    tasks = run.plan()["tasks"]  # first: it tells a place that holds no run
    outcomes = outcome_rows(run)
    parents = parents_of(run.sweep())
    for task, entry in tasks.items():
        found: dict[str, list[_Row]] = outcomes.pop(task, {})
        kept: list[Point] = []
        # What is neither choices nor one continuation has lm-eval's metrics only.
        scored_as = entry.get("scored_as", "choices")
        found_points: Iterator[Point] = iter(())
        if scored_as == "samples":
            found_points = diversity_points(run, task, entry, resamples, seed)
        elif scored_as != "other":
            found_points = task_points(run, task, entry["lambdas"], resamples, seed)
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
    return Analysis(metrics, bin_table(binned, list(parents.values())), tuple(curves), parents)


def write_metrics(run: RunDir, analysis: Analysis | None = None) -> pa.Table:
    """Commit RUN/metrics.parquet and return it. Equal tables of equal sweeps give equal bytes, wherever they lie.

    Args:
        run: the run.
        analysis: of it, where there is one already.

    Raises:
        InputError, LambdasweepError: as `analyse`.
        OSError: the disk is full or not writable; an earlier metrics.parquet is left as it was.
    """
    table = (analysis or analyse(run)).metrics
    commit_table(run.metrics, table, _identity(run))
    return table


def write_bins(run: RunDir, analysis: Analysis) -> None:
    """Commit RUN/report/bins.parquet; raises as `write_metrics`."""
    commit_table(run.bins, analysis.bins, _identity(run))


def _identity(run: RunDir) -> dict[str, Any]:
    sweep = run.sweep()
    return {
        "schema": schemas.SCHEMA_VERSION,
        **{role: parent["fingerprint"] for role, parent in sweep["pair"].items()},
        "line": sweep.get("line"),
        "engine": sweep["engine"],
        "versions": sweep["versions"],
    }


def _rows(task: str, point: Point, scored_as: str) -> Iterator[_Row]:
    left_out = point.left_out
    counts = {
        ("docs_quarantined", "sum", "all"): left_out.quarantined,
        ("docs_unfinished", "sum", "all"): left_out.unfinished,
        ("docs_undefined", "sum", "all"): left_out.undefined,
    }
    lam = point.lam
    for key in [*point.estimates, *counts]:
        if scored_as == "contexts" and key[0].startswith("option_mass"):
            continue  # probabilities after several contexts, which add up to nothing
        if key in counts:
            yield (task, lam, *key, float(counts[key]), None, None, point.documents, None)
            continue
        estimate = point.estimates[key]
        value = None if math.isnan(estimate.value) else estimate.value
        found = interval(estimate, key[0])
        ends = (found.low, found.high) if found else (None, None)
        yield (task, lam, *key, value, *ends, estimate.n, found.resamples if found else None)


def _order(row: _Row) -> tuple[str, int, int]:
    _, _, metric, confidence, split, *_ = row
    return metric, CONFIDENCES.index(confidence), SPLITS.index(split)
