"""These metrics take documents in order of confidence: ECE in bins of equal mass, AUROC, AURC, accuracy at a coverage.

They are exact for weighted documents: a weight w stands for w copies of a document, so a weighted metric equals the plain
one of the copied sample. The documents are sorted once, whatever the number R of weightings. Documents of equal confidence
are tied: nothing depends on the order in which they are given.
"""

import math
from typing import Any

import numpy as np
import scipy.sparse

from calibration.arrays import BINS, Bools, Floats, Ints
from calibration.metrics.binned import SumMatrix
from calibration.uncertainty.resample import Weights

COVERAGE = 80  # the per cent of the documents, the most confident ones, whose accuracy is taken

# A position is looked for among blocks of levels, whose sums are kept, and then inside one. Where there are more levels, the
# blocks are larger, so that neither search takes much longer than the other; these bounds and the root were measured.
_SMALLEST, _LARGEST = 8, 24
_LANES = 8  # a power of two
_TINY = np.finfo(np.float64).tiny


class Ranking:
    """Sorts D documents by confidence, once for all weightings."""

    def __init__(
        self, confidence: Floats, correct: Bools, bins: int = BINS, coverages: tuple[int, ...] = (COVERAGE,)
    ) -> None:
        """`coverages` are the per cents of the documents, the most confident ones, whose accuracy is taken."""
        self._bins, self._coverages = bins, coverages
        self._levels(confidence, correct)
        self._segments(confidence, correct)

    def metrics(self, weights: Weights) -> dict[str, Floats]:
        """Return the metrics [R] by name for weights [D, R], NaN where a metric does not exist.

        ece_mass: Σ_b |sum of (confidence − correct) in bin b| / n over bins of equal mass, in [0, 1], returned as what is
            summed, with its sign, in an array [B, R]. The n copies are
            cut as np.array_split does: the sizes of bins differ by at most 1 and the larger ones come first; if there are
            fewer copies than bins, each copy is a bin of its own. Tied copies all count with their common accuracy, so
            that it does not matter which of them fall on which side of a cut. The source is J. Nixon et al., "Measuring
            calibration in deep learning", CVPR workshops 2019 (the adaptive scheme, of the top choice); the treatment of
            ties is ours, because saturated models give 1.0 to many documents, right and wrong ones.
        acc_at_80: the accuracy of the ⌈0.8 n⌉ most confident copies, where the last tie counts in part; likewise others.
            The source is R. El-Yaniv, Y. Wiener, "On the foundations of noise-free selective classification", JMLR 11
            (2010).
        auroc: the probability that a right document is more confident than a wrong one, where ties count half; it does
            not exist where all are right or all are wrong. It is computed from the sum of mid-ranks, by H. B. Mann,
            D. R. Whitney, Ann. Math. Stat. 18 (1947).
        aurc: the mean over k = 1 … n of the error rate of the k most confident copies, in [0, 1]; a tie counts with the
            expectation over its orders. The source is Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-reduced uncertainty
            estimation for deep neural classifiers", ICLR 2019. The sum is over documents instead of over k: a wrong one
            of rank j contributes H(n) − H(j − 1), with H the harmonic numbers, by H. Zhou et al., "A novel
            characterization of the population area under the risk coverage curve", arXiv 2410.15361.
        eaurc: aurc less that of the best order with as many wrong documents, in which all wrong ones come last. It is 0 for
            that order, whatever the accuracy. It is E-AURC of the same paper of Geifman et al., with the exact sum in the
            place of its integral.
        """
        return self._cut(weights) | self._swept(weights)

    # These two methods go through the levels of confidence, ascending, for metrics that need sums up to a few positions.

    def _levels(self, confidence: Floats, correct: Bools) -> None:
        level, level_of, size = np.unique(confidence, return_inverse=True, return_counts=True)
        self._block = min(max(math.isqrt(len(level) // 4), _SMALLEST), _LARGEST)
        self._blocks = max(1, -(-len(level) // self._block))
        padded = self._blocks * self._block
        document, gap, one = np.arange(len(confidence)), confidence - correct, np.ones(len(confidence))
        block = level_of // self._block
        row = np.concatenate([block, self._blocks + block, 2 * self._blocks + block])
        value = np.concatenate([one, gap, confidence])
        self._block_sums = SumMatrix(row, np.tile(document, 3), value, (3 * self._blocks, len(document)))
        # Tied documents count as one: their weights are summed, and the sums are put below the documents' weights.
        tied = np.flatnonzero(size > 1)
        place = np.full(len(level), -1)
        place[tied] = np.arange(len(tied))
        among = np.flatnonzero(size[level_of] > 1)
        row = place[level_of[among]]
        self._tied_counts = SumMatrix(row, among, one[among], (len(tied), len(document)))
        self._tied_gaps = SumMatrix(row, among, gap[among], (len(tied), len(document)))
        source, single = np.full(len(level), -1), np.flatnonzero(size[level_of] == 1)
        source[level_of[single]] = single
        source[tied] = len(document) + np.arange(len(tied))
        self._source = _padded(source, padded, len(document) + len(tied))  # the last row of weights holds zeros
        self._level = _padded(level, padded, 0.0)
        level_gap = np.zeros(len(level))
        level_gap[level_of[single]] = gap[single]
        self._level_gap = _padded(level_gap, padded, 0.0)
        self._has_ties = len(tied) > 0

    def _cut(self, weights: Weights) -> dict[str, Floats]:
        """Return the metrics that are made of sums over the least confident q copies, for a few q."""
        resamples = weights.shape[1]
        sums = self._block_sums.sums(weights).reshape(3, self._blocks, resamples).cumsum(axis=1)
        before, gap_before, sure_before = np.concatenate([np.zeros((3, 1, resamples)), sums], axis=1)
        n = before[-1]
        quotient, remainder = np.divmod(n, self._bins)
        cuts = np.arange(1, self._bins)[:, None]
        uncovered = [n * (100 - coverage) // 100 for coverage in self._coverages]
        positions = np.vstack([cuts * quotient + np.minimum(cuts, remainder), *uncovered])

        column = np.arange(resamples)
        block = np.count_nonzero(before[1:, None] <= positions, axis=0)  # has shape [cuts, R]
        block = np.minimum(block, self._blocks - 1)
        few = len(cuts)
        gaps, sure = self._inside(weights, block, positions - before[block, column], few)
        gap_at, sure_at = gap_before[block, column] + gaps, sure_before[block[few:], column] + sure
        bounds = np.vstack([np.zeros((1, resamples)), gap_at[:few], gap_before[-1:]])
        # correct = confidence − gap
        right = (sure_before[-1] - sure_at) - (gap_before[-1] - gap_at[few:])
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {"ece_mass": np.diff(bounds, axis=0) / n}
            for coverage, sure, position in zip(self._coverages, right, positions[few:], strict=True):
                found[f"acc_at_{coverage}"] = sure / (n - position)
        return found

    def _inside(self, weights: Weights, block: Ints, left: Floats, few: int) -> tuple[Floats, Floats]:
        """Return the gaps [cuts, R] of the first copies of blocks, and for all but the first few cuts the confidences.

        Args:
            weights: the weights [D, R].
            block: the block [cuts, R] of each cut.
            left: how many copies [cuts, R] of it are before the cut; it is changed here.
            few: how many cuts need no sum of confidences.
        """
        resamples = weights.shape[1]
        column, none = np.arange(resamples), np.zeros((1, resamples), weights.dtype)
        tied_gap = None
        if self._has_ties:
            tied_gap = np.vstack([np.zeros(weights.shape), self._tied_gaps.sums(weights), np.zeros((1, resamples))])
        tied = self._tied_counts.sums(weights).astype(weights.dtype) if self._has_ties else none[:0]
        rows = np.vstack([weights, tied, none])
        # Terms go in turn into several sums, which are added up in pairs: less is lost to rounding than in one sum.
        gaps, sure = np.zeros((_LANES, *block.shape)), np.zeros((_LANES, len(block) - few, resamples))
        inside, part, term = (np.empty(block.shape) for _ in range(3))
        level = block * self._block
        for step in range(self._block):
            place = self._source.take(level)
            place *= resamples
            place += column
            inside[...] = rows.take(place)
            np.maximum(left, 0.0, out=part)
            np.minimum(part, inside, out=part)  # a level that straddles the position counts in part
            if few < len(part):
                sure[step % _LANES] += part[few:] * self._level.take(level[few:])
            np.multiply(inside, self._level_gap.take(level), out=term)
            if tied_gap is not None:
                term += tied_gap.take(place)
            left -= inside
            np.maximum(inside, _TINY, out=inside)  # of no copies none is a part: 0, and not 0 / 0
            part /= inside
            term *= part
            gaps[step % _LANES] += term
            level += 1
        return _added(gaps), _added(sure)

    # These two methods go through right and wrong documents, descending, for metrics that need every document's rank.

    def _segments(self, confidence: Floats, correct: Bools) -> None:
        level, group, size = np.unique(-confidence, return_inverse=True, return_counts=True)
        right = np.bincount(group, weights=correct, minlength=len(level))
        # Neighbouring levels whose documents are all right, or all wrong, are joined: the order among them says nothing.
        kind = np.where(right == size, 0, np.where(right == 0, 1, 2))
        begins = np.concatenate([[True], (kind[1:] != kind[:-1]) | (kind[1:] == 2)])[: len(kind)]
        kinds, segment = kind[begins], (np.cumsum(begins) - 1)[group]
        shape = (len(kinds), len(group))
        # The matrix is stored by row, so that each sum is written once. A document is in one segment.
        ends = np.concatenate([[0], np.cumsum(np.bincount(segment, minlength=len(kinds)))])
        entries = np.ones(len(group)), np.argsort(segment, kind="stable"), ends
        self._float64 = scipy.sparse.csr_matrix(entries, shape=shape)
        self._float32 = self._float64.astype(np.float32)
        self._wrong, self._mixed = np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 2)
        among = np.flatnonzero((kinds[segment] == 2) & ~correct)
        row = np.searchsorted(self._mixed, segment[among])
        self._mixed_wrong = SumMatrix(row, among, np.ones(len(among)), (len(self._mixed), len(group)))

    def _swept(self, weights: Weights) -> dict[str, Floats]:
        """Return the metrics that are made of sums, over the wrong documents, of a function of their ranks."""
        matrix: Any = self._float32 if weights.dtype == np.float32 else self._float64
        weight = matrix @ weights  # [segments, R]: these are whole numbers below 2²⁴, so float32 is exact
        wrong, mixed = weight[self._wrong], weight[self._mixed]
        ends = np.cumsum(weight, axis=0, out=weight)
        n = ends[-1].astype(np.float64) if len(ends) else np.zeros(weights.shape[1])
        most = int(n.max(initial=0))
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, most + 1))])
        area = np.arange(most + 1) * harmonic  # Σ_{j ≤ m} H(j − 1) = m H(m) − m
        end = ends[self._wrong]
        total = wrong.sum(axis=0, dtype=np.float64)
        ranks = (wrong * (end - wrong / 2)).sum(axis=0, dtype=np.float64)
        logs = (area[end.astype(np.intp)] - area[(end - wrong).astype(np.intp)]).sum(axis=0)
        if len(mixed):
            count, end = self._mixed_wrong.sums(weights), ends[self._mixed]
            share = np.divide(count, mixed, out=np.zeros_like(count), where=mixed > 0)
            total += count.sum(axis=0)
            ranks += (count * (end - mixed / 2)).sum(axis=0)
            logs += (share * (area[end.astype(np.intp)] - area[(end - mixed).astype(np.intp)])).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = (ranks - total * total / 2) / (total * (n - total))
            aurc = (total * (harmonic[n.astype(np.intp)] + 1) - logs) / n
            right = (n - np.round(total)).astype(np.intp)  # whole but for rounding: ties count in part
            best = (total - right * (harmonic[n.astype(np.intp)] - harmonic[right])) / n
        ranked = {"auroc": np.where((total > 0) & (total < n), auroc, np.nan), "aurc": aurc}
        return ranked | {"eaurc": np.maximum(aurc - best, 0.0)}


def _padded(values: Any, size: int, filling: float) -> Any:
    """Return values, filled up to a size."""
    padded = np.full(size, filling, values.dtype)
    padded[: len(values)] = values
    return padded


def _added(sums: Floats) -> Floats:
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    added: Floats = sums[0]
    return added
