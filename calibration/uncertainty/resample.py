"""The documents of a task are split in two halves and drawn again and again; nothing else in calibration is random.

Every λ of a task meets the same splits and the same resamples, so that two λs are compared on the same documents; this is
the paired bootstrap. `all` is both halves together: λ* is chosen and measured on it. What is said to be better than both
parents is chosen on `select` and tested on `report`.

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
SMOOTH_RESAMPLES = 500  # smooth ECE takes the first 500 of the same resamples, because each costs two transforms
SPLITS = ("all", "select", "report")

# So many weights at a time are 16 MB of float32; with 14,000 documents the rows are still long enough for vector
# instructions.
_CHUNK = 1 << 22
# These are the fewest and the most resamples at a time: with fewer, the sums would not take most of the time; with more, the
# sums of few documents would grow too large.
_AT_ONCE = (50, 500)

Weights = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resamples:
    """Holds R resamples of the D documents of a task."""

    in_report: Bools  # [D] whether each document is in `report`; otherwise it is in `select`
    counts: NDArray[np.uint8]  # [D, R] how often each resample holds each document

    def halves_first(self, documents: Ints) -> tuple[Ints, dict[str, slice]]:
        """Put the documents [N] of `select` before those of `report`.

        Returns:
            The places [N] of the documents in `documents`, in the new order, and the slice of that order that each split is.
        """
        in_report = self.in_report[documents]
        middle = int(np.count_nonzero(~in_report))
        runs = {"all": slice(None), "select": slice(middle), "report": slice(middle, None)}
        return np.argsort(in_report, kind="stable"), runs

    def chunks(self, documents: Ints, rows: int = 0) -> Iterator[NDArray[np.float32]]:
        """Yield the weights [N, …] of these documents, some consecutive resamples at a time.

        Args:
            documents: the documents [N].
            rows: what each resample weighs, where that is more than N, as several outputs of each document are.
        """
        size = min(max(_AT_ONCE[0], _CHUNK // max(len(documents), rows, 1)), _AT_ONCE[1])
        for start in range(0, self.counts.shape[1], size):
            yield self.counts[documents, start : start + size].astype(np.float32)


def draw(task: str, documents: int, resamples: int = RESAMPLES, seed: int = SEED) -> Resamples:
    """Split the documents of a task into halves at random, and resample each half by itself.

    A resample draws as many documents as a half has, with replacement: the weights are multinomial within each half, and
    a resample of `all` is one of each half. With an odd number of documents `select` has one more.

    Args:
        task: the task's name; each task has a random stream of its own, whichever other tasks there are.
        documents: the number D of documents. The result depends on nothing else of the documents.
        resamples: the number R of resamples.
        seed: the seed, at least 0.
    """
    rng = np.random.default_rng([seed, *task.encode()])
    in_report = np.zeros(documents, np.bool_)
    in_report[rng.permutation(documents)[(documents + 1) // 2 :]] = True
    counts = np.zeros((resamples, documents), np.uint8)  # about one count in 256! would be 256, which does not fit
    for half in (np.flatnonzero(~in_report), np.flatnonzero(in_report)):
        for row in counts if len(half) else ():
            row[half] = np.bincount(rng.integers(len(half), size=len(half)), minlength=len(half))
    return Resamples(in_report, np.ascontiguousarray(counts.T))


def ones(documents: int) -> Floats:
    """Return the weights [D, 1] of the sample itself, which holds every document once."""
    return np.ones((documents, 1))
