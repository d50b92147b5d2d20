"""The documents of a task, split in two halves and drawn again and again: the one source of randomness here.

Every λ of a task meets the same splits and the same resamples, so that two λs are compared on the same documents: the
paired bootstrap. λ* is chosen on `select` and measured on `report`; `all` is both.

Sources: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 6; paired over test items: P. Koehn,
"Statistical significance tests for machine translation evaluation", EMNLP 2004.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.arrays import Bools, Floats, Ints

SEED = 0
RESAMPLES = 2000
SMOOTH_RESAMPLES = 200  # the first of the same resamples; for what costs a search in each of them
SPLITS = ("all", "select", "report")

_CHUNK = 1 << 22  # weights at a time, 16 MB of float32: of 14,000 documents in rows long enough for vector instructions
_AT_ONCE = (
    50,
    500,
)  # resamples: with fewer, it is not sums that take the time; with more, sums of few documents do not fit

Weights = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resamples:
    """R resamples of the D documents of a task."""

    in_report: Bools  # [D] the document is in `report`, else in `select`
    counts: NDArray[np.uint8]  # [D, R] how often a resample holds the document

    def halves_first(self, documents: Ints) -> tuple[Ints, dict[str, slice]]:
        """Put the documents [N] of `select` before those of `report`.

        Returns:
            Their places [N] in `documents`, and where each split is in these: a run of the rows of the weights.
        """
        in_report = self.in_report[documents]
        middle = int(np.count_nonzero(~in_report))
        runs = {"all": slice(None), "select": slice(middle), "report": slice(middle, None)}
        return np.argsort(in_report, kind="stable"), runs

    def chunks(self, documents: Ints) -> Iterator[NDArray[np.float32]]:
        """Yield the weights [N, …] of some documents, a run of resamples at a time."""
        size = min(max(_AT_ONCE[0], _CHUNK // max(len(documents), 1)), _AT_ONCE[1])
        for start in range(0, self.counts.shape[1], size):
            yield self.counts[documents, start : start + size].astype(np.float32)


def draw(task: str, documents: int, resamples: int = RESAMPLES, seed: int = SEED) -> Resamples:
    """Split the documents of a task into halves at random, and resample each half by itself.

    A resample draws as many documents as a half has, with replacement: the weights are multinomial within each half, and
    a resample of `all` is one of each half. With an odd number of documents `select` has one more.

    Args:
        task: its name; each task has a random stream of its own, whichever tasks there are besides.
        documents: D. The result depends on nothing else of the documents.
        resamples: R.
        seed: at least 0.
    """
    rng = np.random.default_rng([seed, *task.encode()])
    in_report = np.zeros(documents, np.bool_)
    in_report[rng.permutation(documents)[(documents + 1) // 2 :]] = True
    counts = np.zeros((resamples, documents), np.uint8)  # a document drawn 256 times: once in 256! draws
    for half in (np.flatnonzero(~in_report), np.flatnonzero(in_report)):
        for row in counts if len(half) else ():
            row[half] = np.bincount(rng.integers(len(half), size=len(half)), minlength=len(half))
    return Resamples(in_report, np.ascontiguousarray(counts.T))


def ones(documents: int) -> Floats:
    """Return the weights [D, 1] of the sample itself: every document once."""
    return np.ones((documents, 1))
