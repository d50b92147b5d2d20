"""The λs of a task: the tokens of those only that are being worked on are in memory, one for each core."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Ints
from calibration.catalogue import find
from calibration.metrics import choice_tasks, continuation_tasks
from calibration.metrics.choice_tasks import Estimates, as_parent, choice_estimates, matched_to_itself
from calibration.metrics.continuation_tasks import continuation_estimates
from calibration.metrics.reliability_bins import BinRow, bin_rows
from calibration.scores.loader import Loaded, Loader
from calibration.scores.per_document import ChoiceScores, ContinuationScores, LeftOut
from calibration.uncertainty.resample import Resamples, draw
from contract import points
from contract.rundir import RunDir

PARENTS = points.parents([points.ONLY])  # of a run whose line ends at aligned: see `records.SweepRecord.parents`


@dataclass(frozen=True, slots=True)
class Point:
    """A task at one λ, or at one point of several coordinates."""

    lam: str  # canonical
    estimates: Estimates  # every metric; and, as `<metric>_vs_<parent>`, less that of a parent
    left_out: LeftOut
    documents: int  # of the task
    bins: list[BinRow]


def task_points(
    run: RunDir, task: str, lambdas: Sequence[str], parents: Mapping[str, str], resamples: int, seed: int
) -> Iterator[Point]:
    """Yield every λ that has anything committed: the parents first, then ascending.

    A difference to a parent is taken on the documents that both have scores for.

    Args:
        run: the run.
        task: of its plan.
        lambdas: of the task.
        parents: λs of those that are on the line.
        resamples, seed: as in `analyse.analyse`.

    Raises:
        LambdasweepError: a table is missing or damaged; names the run, the task and λ.
    """
    there = [lam for lam in lambdas if run.committed(task, lam) or run.committed(task, lam, "quarantine")]
    if not there:
        return
    parents = {name: lam for name, lam in parents.items() if lam in there}
    series = _Series(run, task, parents, resamples, seed)
    yield from map(series.parent, parents)
    # Threads, because nearly all of it is sums in compiled code; each λ by itself, so their number changes nothing.
    pool = ThreadPoolExecutor(cores())
    try:
        yield from pool.map(series.point, sorted(set(there) - set(parents.values()), key=points.order))
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Return how many λs to work on at the same time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)  # a λ of 14,000 documents takes 300 MB while it is worked on


class _Series:
    def __init__(self, run: RunDir, task: str, parents: dict[str, str], resamples: int, seed: int) -> None:
        self._loader = Loader(run, task)
        self._documents = len(self._loader.documents.sizes)
        self._resamples: Resamples = draw(task, self._documents, resamples, seed)
        self._parents = {name: self._loader.load(lam) for name, lam in parents.items()}
        self._answers = {
            name: as_parent(one.scores) for name, one in self._parents.items() if isinstance(one.scores, ChoiceScores)
        }
        self._parent_estimates: dict[str, Estimates] = {}
        # Aligned first, where that is one: the accuracy of all others is matched to its.
        for name in sorted(parents, key=lambda name: name != "aligned"):
            self._parent_estimates[name] = self._estimates(self._parents[name])

    def parent(self, name: str) -> Point:
        """Return a parent, compared with the other."""
        return self._compared(self._parents[name], self._parent_estimates[name])

    def point(self, lam: str) -> Point:
        """Score a λ and compare it with the parents."""
        loaded = self._loader.load(lam)
        return self._compared(loaded, self._estimates(loaded))

    def _estimates(self, loaded: Loaded) -> Estimates:
        if isinstance(loaded.scores, ContinuationScores):
            return continuation_estimates(loaded.scores, loaded.tokens, self._resamples)
        aligned = self._parent_estimates.get("aligned")
        found = choice_estimates(loaded.scores, loaded.tokens, self._resamples, self._answers, aligned)
        is_aligned = "aligned" in self._parents and loaded.lam == self._parents["aligned"].lam
        return matched_to_itself(found) if is_aligned else found

    def _compared(self, loaded: Loaded, estimates: Estimates) -> Point:
        found = dict(estimates)
        for name, parent in self._parents.items():
            if parent.lam != loaded.lam:
                found |= self._differences(loaded, estimates, name)
        bins = bin_rows(loaded, self._resamples.in_report)
        return Point(loaded.lam, found, loaded.scores.left_out, self._documents, bins)

    def _differences(self, loaded: Loaded, mine: Estimates, name: str) -> Estimates:
        parent, theirs = self._parents[name], self._parent_estimates[name]
        one, other = loaded.scores.document, parent.scores.document
        if not np.array_equal(one, other):
            _, here, there = np.intersect1d(one, other, return_indices=True)
            mine, theirs = (self._estimates(_restricted(*some)) for some in ((loaded, here), (parent, there)))
        return {
            (f"{key[0]}_vs_{name}", *key[1:]): estimate.minus(theirs[key])
            for key, estimate in mine.items()
            if key in theirs and _is_compared(key[0])
        }


def _is_compared(name: str) -> bool:
    metric = find(name)
    return metric is None or metric.compared


def _restricted(loaded: Loaded, kept: Ints) -> Loaded:
    scores: ChoiceScores | ContinuationScores
    if isinstance(loaded.scores, ContinuationScores):
        scores = continuation_tasks.restricted(loaded.scores, kept)
    else:
        scores = choice_tasks.restricted(loaded.scores, kept)
    return Loaded(loaded.lam, scores, loaded.tokens)
