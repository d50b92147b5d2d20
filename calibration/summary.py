"""A run directory → its metrics table, from whatever is committed so far."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calibration import metrics
from calibration.confidence import (
    CONFIDENCES,
    CONTINUATION_COLUMNS,
    REQUEST_COLUMNS,
    ChoiceScores,
    ContinuationScores,
    LeftOut,
    choice_scores,
    continuation_scores,
    continuations_of,
    documents_of,
)
from lambdasweep import schemas
from lambdasweep.errors import LambdasweepError
from lambdasweep.rundir import RunDir, commit_table

ACCURACY = {"sum": "acc", "tokens": "acc_tokens", "bytes": "acc_bytes"}

_Row = tuple[str, str, float | None, int]  # metric, confidence, value, n


def summarise(run: RunDir) -> pa.Table:
    """Compute every metric of every task at every λ of the plan that has anything committed.

    Per choice task, λ and confidence (sum, tokens, bytes): `acc`, `acc_tokens` or `acc_bytes`; `ece_width15`;
    `ece_mass15`; `brier`; `nll` (−log p(gold), p renormalised over the choices); `confidence` (mean of the predicted
    choice's); `overconfidence`. The formulas are in `calibration.metrics`.

    Per continuation task and λ, under confidence sum: `acc` (every token of the continuation is the most likely one, as
    lm-eval's LAMBADA; of the documents where the engine's answer decides it), `nll` (mean over documents of the whole
    continuation's), `perplexity` (exp of that). It has no choices, hence no calibration.

    Per task and λ, under confidence sum, with n = all documents of the task: `docs_quarantined`, `docs_unfinished`,
    `docs_undefined`: how many are in none of the above, and why (`calibration.confidence.LeftOut`).

    Returns:
        schemas.METRICS, split "all", no intervals; ordered by task as in the plan, λ ascending, metric, and confidence
        as in CONFIDENCES. A value is null where n is 0 (or a perplexity exceeds float64); `nll` and `perplexity` are
        infinite where something right has probability 0. A λ with nothing committed has no rows.

    Raises:
        InputError: the directory holds no run.
        LambdasweepError: a table is missing or damaged; names the run, the task and λ.
    """
    rows: list[dict[str, Any]] = []
    for task, entry in run.plan()["tasks"].items():
        rows.extend(_task_rows(run, task, entry["lambdas"]))
    return pa.Table.from_pylist(rows, schema=schemas.METRICS)


def write_metrics(run: RunDir) -> pa.Table:
    """Commit RUN/metrics.parquet and return it. Equal tables of equal sweeps give equal bytes, wherever they lie.

    Raises:
        InputError, LambdasweepError: as `summarise`.
        OSError: the disk is full or not writable; an earlier metrics.parquet is left as it was.
    """
    table = summarise(run)
    sweep = run.sweep()
    identity = {
        "schema": schemas.SCHEMA_VERSION,
        "base": sweep["pair"]["base"]["fingerprint"],
        "aligned": sweep["pair"]["aligned"]["fingerprint"],
        "engine": sweep["engine"],
        "versions": sweep["versions"],
    }
    commit_table(run.metrics, table, identity)
    return table


def _task_rows(run: RunDir, task: str, lambdas: list[str]) -> Iterator[dict[str, Any]]:
    lambdas = sorted((lam for lam in lambdas if _anything_committed(run, task, lam)), key=Decimal)
    if not lambdas:
        return
    where = f"{run.root}: task {task!r}"
    path = run.requests(task)
    if not path.is_file():
        raise LambdasweepError(f"{where}: {path} is missing: restore it, or run the same sweep again to write it")
    documents = documents_of(pq.read_table(path, columns=list(REQUEST_COLUMNS)), where)
    continuations = None
    if documents.is_continuation:
        continuations = continuations_of(pq.read_table(path, columns=list(CONTINUATION_COLUMNS)))
    for lam in lambdas:
        tables = run.tokens(task, lam), run.quarantine(task, lam), lam, f"{where} at λ = {lam}"
        scores: ChoiceScores | ContinuationScores
        if continuations is None:
            scores = choice_scores(documents, *tables)
            found = _choice_rows(scores)
        else:
            scores = continuation_scores(documents, continuations, *tables)
            found = _continuation_rows(scores)
        found += _left_out_rows(scores.left_out, len(documents.sizes))
        for metric, confidence, value, n in sorted(found, key=lambda row: (row[0], CONFIDENCES.index(row[1]))):
            yield {
                "task": task,
                "lam": Decimal(lam),
                "metric": metric,
                "confidence": confidence,
                "split": "all",
                "value": value,
                "n": n,
            }


def _anything_committed(run: RunDir, task: str, lam: str) -> bool:
    return bool(run.committed(task, lam) or run.committed(task, lam, "quarantine"))


def _choice_rows(scores: ChoiceScores) -> list[_Row]:
    rows: list[_Row] = []
    n = len(scores.gold)
    for confidence in CONFIDENCES:
        made = metrics.predictions(scores.logits[confidence], scores.gold)
        values = {
            ACCURACY[confidence]: metrics.mean(made.correct),
            f"ece_width{metrics.BINS}": metrics.ece_width(made.confidence, made.correct),
            f"ece_mass{metrics.BINS}": metrics.ece_mass(made.confidence, made.correct),
            "brier": metrics.mean(made.brier),
            "nll": metrics.mean(made.nll),
            "confidence": metrics.mean(made.confidence),
            "overconfidence": metrics.overconfidence(made.confidence, made.correct),
        }
        rows += [(metric, confidence, value, n) for metric, value in values.items()]
    return rows


def _continuation_rows(scores: ContinuationScores) -> list[_Row]:
    n = len(scores.document)
    nll = metrics.mean(0.0 - scores.logprob)  # not −x, which makes −0.0 of 0
    return [
        ("acc", "sum", metrics.mean(scores.greedy[scores.decided]), int(scores.decided.sum())),
        ("nll", "sum", nll, n),
        ("perplexity", "sum", metrics.perplexity(nll), n),
    ]


def _left_out_rows(left_out: LeftOut, documents: int) -> list[_Row]:
    return [
        ("docs_quarantined", "sum", float(left_out.quarantined), documents),
        ("docs_unfinished", "sum", float(left_out.unfinished), documents),
        ("docs_undefined", "sum", float(left_out.undefined), documents),
    ]
