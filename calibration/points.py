"""The λs of a task, one after the other: never the tokens of two of them in memory, parents apart."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from calibration import choice, continuation
from calibration.choice import Estimates, Parent, as_parent, choice_estimates
from calibration.confidence import (
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
from calibration.continuation import continuation_estimates
from calibration.metrics import Ints
from calibration.resample import Resamples, draw
from calibration.tokens import TokenScores, token_scores
from lambdasweep.errors import LambdasweepError
from lambdasweep.rundir import RunDir

PARENTS = {"base": "0", "aligned": "1"}

_UNCOMPARED = ("agreement_", "temperature")


@dataclass(frozen=True, slots=True)
class Point:
    """A task at one λ."""

    lam: str  # canonical
    estimates: Estimates  # every metric; and, as `<metric>_vs_<parent>`, less that of a parent
    left_out: LeftOut
    documents: int  # of the task


@dataclass(frozen=True, slots=True)
class _Scored:
    scores: ChoiceScores | ContinuationScores
    tokens: TokenScores
    estimates: Estimates

    @property
    def documents(self) -> Ints:
        return self.scores.document


def points(run: RunDir, task: str, lambdas: list[str], resamples: int, seed: int) -> Iterator[Point]:
    """Yield every λ that has anything committed: the parents first, then ascending.

    A difference to a parent is taken on the documents that both have scores for.

    Raises:
        LambdasweepError: a table is missing or damaged; names the run, the task and λ.
    """
    there = [lam for lam in lambdas if run.committed(task, lam) or run.committed(task, lam, "quarantine")]
    if not there:
        return
    series = _Series(run, task, resamples, seed)
    parents = [lam for lam in PARENTS.values() if lam in there]
    for lam in reversed(parents):  # aligned first: the accuracy of all others is matched to its
        yield series.point(lam)
    # Threads, because nearly all of it is sums in compiled code; each λ by itself, so their number changes nothing.
    pool = ThreadPoolExecutor(_cores())
    try:
        yield from pool.map(series.point, sorted(set(there) - set(parents), key=Decimal))
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Series:
    def __init__(self, run: RunDir, task: str, resamples: int, seed: int) -> None:
        self._run, self._task = run, task
        self._where = f"{run.root}: task {task!r}"
        path = run.requests(task)
        if not path.is_file():
            raise LambdasweepError(
                f"{self._where}: {path} is missing: restore it, or run the same sweep again to write it"
            )
        self._documents = documents_of(pq.read_table(path, columns=list(REQUEST_COLUMNS)), self._where)
        self._continuations = continuations_of(pq.read_table(path, columns=list(CONTINUATION_COLUMNS)))
        self._resamples: Resamples = draw(task, len(self._documents.sizes), resamples, seed)
        self._parents: dict[str, _Scored] = {}
        self._choices: dict[str, Parent] = {}

    def point(self, lam: str) -> Point:
        """Score a λ and compare it with the parents that came before it."""
        tables = self._run.tokens(self._task, lam), self._run.quarantine(self._task, lam)
        where = f"{self._where} at λ = {lam}"
        scores: ChoiceScores | ContinuationScores
        if self._documents.is_continuation:
            scores = continuation_scores(self._documents, self._continuations, *tables, lam, where)
        else:
            scores = choice_scores(self._documents, *tables, lam, where)
        tokens = token_scores(self._documents, self._continuations, tables[0], where)
        del tables
        for name, parent_lam in PARENTS.items():
            if lam == parent_lam and isinstance(scores, ChoiceScores):
                self._choices[name] = as_parent(scores)
        scored = _Scored(scores, tokens, self._estimates(scores, tokens))
        found = dict(scored.estimates)
        for name, parent in self._parents.items():
            found |= self._differences(scored, parent, name)
        for name, parent_lam in PARENTS.items():
            if lam == parent_lam:
                self._parents[name] = scored
        return Point(lam, found, scores.left_out, len(self._documents.sizes))

    def _estimates(self, scores: ChoiceScores | ContinuationScores, tokens: TokenScores) -> Estimates:
        if isinstance(scores, ContinuationScores):
            return continuation_estimates(scores, tokens, self._resamples)
        aligned = self._parents.get("aligned")
        target = aligned.estimates if aligned else None
        return choice_estimates(scores, tokens, self._resamples, self._choices, target)

    def _differences(self, scored: _Scored, parent: _Scored, name: str) -> Estimates:
        mine, theirs = scored.estimates, parent.estimates
        if not np.array_equal(scored.documents, parent.documents):
            _, here, there = np.intersect1d(scored.documents, parent.documents, return_indices=True)
            mine = self._estimates(_restricted(scored.scores, here), scored.tokens)
            theirs = self._estimates(_restricted(parent.scores, there), parent.tokens)
        return {
            (f"{metric}_vs_{name}", confidence, split): estimate.minus(other)
            for (metric, confidence, split), estimate in mine.items()
            if not metric.startswith(_UNCOMPARED) and (other := theirs.get((metric, confidence, split)))
        }


def _restricted(scores: Any, kept: Ints) -> Any:
    of = continuation if isinstance(scores, ContinuationScores) else choice
    return of.restricted(scores, kept)
