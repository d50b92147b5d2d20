"""This module computes the metrics of a task, or of pooled tasks, at each λ.

Each core works on one λ at a time, and memory holds the tokens of only those λs.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from calibration.arrays import Ints
from calibration.catalogue import find
from calibration.metrics import choice_tasks, continuation_tasks
from calibration.metrics.choice_tasks import Estimates, choice_estimates, matched_to_itself, parent_predictions
from calibration.metrics.continuation_tasks import continuation_estimates
from calibration.metrics.cumulative import Walk, walk_of
from calibration.metrics.predictions import predictions
from calibration.metrics.reliability_bins import BinRow, answer_bins, bin_rows
from calibration.metrics.rivals import CONFIDENCE, RivalMetrics, rival_metrics
from calibration.metrics.written import answer_estimates
from calibration.scores.loader import Loader, Shelf, TaskScores
from calibration.scores.per_answer import AnswerLoader, AnswerScores
from calibration.scores.per_document import CONFIDENCES, ChoiceScores, ContinuationScores, LeftOut
from calibration.scores.pool import PooledLoader, pooled_resamples
from calibration.uncertainty.resample import Resamples, draw
from contract import points
from contract.records import Plan, TaskRecord
from contract.rundir import RunDir

# The parents of a run whose line ends at its one aligned checkpoint; `records.SweepRecord.parents` has those of any run.
PARENTS = points.parents([points.ONLY])

# Bytes that are taken while a λ is worked on: by the resamples, of 14,000 documents, and by each token of written answers.
_OF_RESAMPLES, _OF_TOKEN = 300 << 20, 100
_MOST = 4 << 30  # for all λs that are worked on at the same time, unless one takes more


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The metrics of a task at one λ, or at one point of several coordinates."""

    lam: str  # the canonical point
    estimates: Estimates  # every metric, and as `<metric>_vs_<parent>` its difference to that of a parent
    left_out: LeftOut
    documents: int  # the number of all documents of the task
    bins: list[BinRow]
    scored: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """[S] the indices of the documents that the estimates are of, ascending."""
    walks: Mapping[str, Walk] = field(default_factory=dict)  # the cumulative differences of a choice task by confidence
    rivals: Mapping[str, RivalMetrics] = field(default_factory=dict)  # at aligned, where base is there, too


def task_metrics(
    run: RunDir,
    task: str,
    lambdas: Sequence[str],
    parents: Mapping[str, str],
    resamples: int,
    seed: int,
    shelf: Shelf | None = None,
) -> Iterator[TaskMetrics]:
    """Yield every λ that has anything committed: the parents first, then the others, ascending.

    A difference to a parent is taken on the documents that have scores at both λs.

    Args:
        run: the run.
        task: of its plan.
        lambdas: of the task.
        parents: λs of those that are on the line.
        resamples, seed: as in `analyse.analyse`.
        shelf: keeps the scores for `pooled_metrics`.

    Raises:
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    there = begun(run, task, lambdas)
    if there:
        loader = Loader(run, task, shelf)
        drawn = draw(task, len(loader.documents.sizes), resamples, seed)
        yield from _along(_AlongLambda(loader, drawn, there, parents, loader.confidences), there)


def pooled_metrics(
    run: RunDir,
    tasks: Sequence[str],
    plan: Plan,
    parents: Mapping[str, str],
    resamples: int,
    seed: int,
    confidence: str = CONFIDENCES[0],
    shelf: Shelf | None = None,
) -> Iterator[TaskMetrics]:
    """Yield the metrics of pooled tasks at every λ at which all of them have anything committed, as `task_metrics` does.

    Each task keeps its own splits and resamples, so a resample has as many documents of each task as the sample.

    Args:
        run: the run.
        tasks: the choice tasks that are pooled.
        plan: the tasks of the run's plan.
        parents, resamples, seed: as in `task_metrics`.
        confidence: the only confidence under which they are computed.
        shelf: where `task_metrics` kept the scores of these tasks; without it their tables are read.
    """
    everywhere = set.intersection(*(set(begun(run, task, plan[task].lambdas)) for task in tasks))
    there = sorted(everywhere, key=points.order)
    if there:
        loaders = {task: Loader(run, task, shelf) for task in tasks}
        drawn = [draw(task, len(loader.documents.sizes), resamples, seed) for task, loader in loaders.items()]
        along = _AlongLambda(PooledLoader(loaders), pooled_resamples(drawn), there, parents, (confidence,))
        yield from _along(along, there)


def answer_metrics(
    run: RunDir, task: str, record: TaskRecord, parents: Mapping[str, str], resamples: int, seed: int
) -> Iterator[TaskMetrics]:
    """Yield every λ of a task whose answers are written that has anything committed: the parents first, then the others.

    A difference to a parent is taken on the documents that have outputs at both λs, and where outputs may lack a confidence
    on those that have it at both. The arguments are those of `task_metrics`, and `record` is the task's in the plan.

    Raises:
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    kinds = ("generations", "quarantine")
    there = [lam for lam in record.lambdas if any(run.committed(task, lam, kind) for kind in kinds)]
    if not there:
        return
    loader = AnswerLoader(run, task, record)
    drawn = draw(task, loader.count, resamples, seed)
    yield from _along(_AnswersAlongLambda(loader, drawn, there, parents, sum(record.costs)), there)


class _AnswersAlongLambda:
    def __init__(
        self, loader: AnswerLoader, resamples: Resamples, there: Sequence[str], parents: Mapping[str, str], most: int
    ) -> None:
        """`most` is the most tokens that the task can have at a λ."""
        self._loader, self._resamples = loader, resamples
        self.parents = {name: lam for name, lam in parents.items() if lam in there}
        self._of_parents = {name: self._loaded(lam) for name, lam in self.parents.items()}
        written = [scores.length.sum() * scores.samples for scores, _ in self._of_parents.values()]
        # Outputs are longer at some λs than at the parents.
        self.tokens = int(min(2 * max(written, default=most), most))

    def parent(self, name: str) -> TaskMetrics:
        """Return the metrics of a parent, compared with those of the other parents."""
        return self._compared(self.parents[name], *self._of_parents[name])

    def at(self, lam: str) -> TaskMetrics:
        """Return the metrics at a λ, compared with those of the parents."""
        return self._compared(lam, *self._loaded(lam))

    def _loaded(self, lam: str) -> tuple[AnswerScores, Estimates]:
        scores = self._loader.load(lam)
        return scores, answer_estimates(scores, self._resamples)

    def _compared(self, lam: str, scores: AnswerScores, estimates: Estimates) -> TaskMetrics:
        found = dict(estimates)
        for name, parent in self.parents.items():
            if parent != lam:
                found |= _answer_differences(scores, estimates, self._of_parents[name], name, self._resamples)
        bins = answer_bins(scores, self._resamples.in_report)
        return TaskMetrics(lam, found, scores.left_out, self._loader.count, bins, scores.document)


def _answer_differences(
    scores: AnswerScores, mine: Estimates, parent: tuple[AnswerScores, Estimates], name: str, drawn: Resamples
) -> Estimates:
    other, theirs = parent
    if not np.array_equal(scores.document, other.document):
        _, here, there = np.intersect1d(scores.document, other.document, return_indices=True)
        scores, other = scores.restricted(here), other.restricted(there)
        mine, theirs = answer_estimates(scores, drawn), answer_estimates(other, drawn)
    mine, theirs = _on_the_same_outputs(scores, mine, other, theirs, drawn)
    return {
        (f"{key[0]}_vs_{name}", *key[1:]): estimate.minus(theirs[key])
        for key, estimate in mine.items()
        if key in theirs and _is_compared(key[0])
    }


def _on_the_same_outputs(
    one: AnswerScores, mine: Estimates, other: AnswerScores, theirs: Estimates, drawn: Resamples
) -> tuple[Estimates, Estimates]:
    """Return the estimates of two λs with those of every confidence taken on the outputs that have it at both.

    Which outputs lack a confidence depends on λ: at base few outputs may say how sure they are, and those be the right ones.
    The share of the outputs without it (`missing`) is that of all outputs, as before.

    Args:
        one, other: the scores of the same documents at both λs; outputs are the same where their numbers are.
        mine, theirs: their estimates.
        drawn: the resamples.
    """
    both = [name for name in one.logs if name in other.logs]
    gaps = {name: (np.isnan(one.logs[name]), np.isnan(other.logs[name])) for name in both}
    differ = {name: here | there for name, (here, there) in gaps.items() if not np.array_equal(here, there)}
    if not differ:
        return mine, theirs
    found = []
    for scores, estimates in ((one, mine), (other, theirs)):
        logs = {name: np.where(lacks, np.nan, scores.logs[name]) for name, lacks in differ.items()}
        of_both = answer_estimates(replace(scores, logs=logs), drawn)
        kept = {key: value for key, value in of_both.items() if key[1] in differ and key[0] != "missing"}
        found.append({**estimates, **kept})
    return found[0], found[1]


def begun(run: RunDir, task: str, lambdas: Sequence[str]) -> list[str]:
    """Return those of these λs at which anything of a task is committed."""
    return [lam for lam in lambdas if run.committed(task, lam) or run.committed(task, lam, "quarantine")]


def _along(along_lambda: "_AlongLambda | _AnswersAlongLambda", there: Sequence[str]) -> Iterator[TaskMetrics]:
    yield from map(along_lambda.parent, along_lambda.parents)
    # Threads are enough, because nearly all of the work is sums in compiled code. Each λ is computed by itself, so their
    # number changes no result.
    each = _OF_RESAMPLES + _OF_TOKEN * along_lambda.tokens
    pool = ThreadPoolExecutor(max(1, min(cores(), _MOST // each)))
    try:
        others = set(there) - set(along_lambda.parents.values())
        yield from pool.map(along_lambda.at, sorted(others, key=points.order))
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Return on how many λs to work at the same time, as far as memory goes."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, 8)


class _AlongLambda:
    tokens = 0  # those that are scored are few, and are counted with the resamples

    def __init__(
        self,
        loader: Loader | PooledLoader,
        resamples: Resamples,
        there: Sequence[str],
        parents: Mapping[str, str],
        confidences: Sequence[str],
    ) -> None:
        self._loader, self._resamples, self._confidences = loader, resamples, confidences
        self._documents = len(loader.documents.sizes)
        self.parents = {name: lam for name, lam in parents.items() if lam in there}
        self._parents = {name: loader.load(lam) for name, lam in self.parents.items()}
        self._parent_predictions = {
            name: parent_predictions(one.scores)
            for name, one in self._parents.items()
            if isinstance(one.scores, ChoiceScores)
        }
        self._parent_estimates: dict[str, Estimates] = {}
        # The aligned parent comes first, if there is only one: the accuracy of all other λs is matched to its accuracy.
        for name in sorted(self.parents, key=lambda name: name != "aligned"):
            self._parent_estimates[name] = self._estimates(self._parents[name])

    def parent(self, name: str) -> TaskMetrics:
        """Return the metrics of a parent, compared with those of the other parents; aligned comes with its rivals."""
        found = self._compared(self._parents[name], self._parent_estimates[name])
        return replace(found, rivals=self._rivals()) if name == "aligned" else found

    def at(self, lam: str) -> TaskMetrics:
        """Return the metrics at a λ, compared with those of the parents."""
        at_lambda = self._loader.load(lam)
        return self._compared(at_lambda, self._estimates(at_lambda))

    def _rivals(self) -> dict[str, RivalMetrics]:
        base, aligned = (one.scores if (one := self._parents.get(name)) else None for name in ("base", "aligned"))
        if not (isinstance(base, ChoiceScores) and isinstance(aligned, ChoiceScores)):
            return {}
        return rival_metrics(base, aligned, self._resamples) if CONFIDENCE in self._confidences else {}

    def _estimates(self, at_lambda: TaskScores) -> Estimates:
        if isinstance(at_lambda.scores, ContinuationScores):
            assert at_lambda.token_scores is not None
            return continuation_estimates(at_lambda.scores, at_lambda.token_scores, self._resamples)
        aligned = self._parent_estimates.get("aligned")
        found = choice_estimates(
            at_lambda.scores,
            at_lambda.token_scores,
            self._resamples,
            self._parent_predictions,
            aligned,
            self._confidences,
        )
        is_aligned = "aligned" in self._parents and at_lambda.lam == self._parents["aligned"].lam
        return matched_to_itself(found) if is_aligned else found

    def _compared(self, at_lambda: TaskScores, estimates: Estimates) -> TaskMetrics:
        found = dict(estimates)
        for name, parent in self._parents.items():
            if parent.lam != at_lambda.lam:
                found |= self._differences(at_lambda, estimates, name)
        bins = bin_rows(at_lambda, self._resamples.in_report)
        scores = at_lambda.scores
        return TaskMetrics(
            at_lambda.lam, found, scores.left_out, self._documents, bins, scores.document, _walks(at_lambda)
        )

    def _differences(self, at_lambda: TaskScores, mine: Estimates, name: str) -> Estimates:
        parent, theirs = self._parents[name], self._parent_estimates[name]
        one, other = at_lambda.scores.document, parent.scores.document
        if not np.array_equal(one, other):
            _, here, there = np.intersect1d(one, other, return_indices=True)
            mine, theirs = (self._estimates(_restricted(*some)) for some in ((at_lambda, here), (parent, there)))
        return {
            (f"{key[0]}_vs_{name}", *key[1:]): estimate.minus(theirs[key])
            for key, estimate in mine.items()
            if key in theirs and _is_compared(key[0])
        }


def _walks(at_lambda: TaskScores) -> dict[str, Walk]:
    if not isinstance(at_lambda.scores, ChoiceScores):
        return {}
    made = {name: predictions(logits, at_lambda.scores.gold) for name, logits in at_lambda.scores.logits.items()}
    walks = {name: walk_of(one.confidence, one.correct) for name, one in made.items()}
    return {name: walk for name, walk in walks.items() if walk is not None}


def _is_compared(name: str) -> bool:
    metric = find(name)
    return metric is None or metric.compared


def _restricted(at_lambda: TaskScores, kept: Ints) -> TaskScores:
    scores: ChoiceScores | ContinuationScores
    if isinstance(at_lambda.scores, ContinuationScores):
        scores = continuation_tasks.restricted(at_lambda.scores, kept)
    else:
        scores = choice_tasks.restricted(at_lambda.scores, kept)
    return TaskScores(at_lambda.lam, scores, at_lambda.token_scores)
