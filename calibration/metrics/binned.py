"""These metrics are functions of weighted sums over documents: means, and everything in bins of equal width.

A sample is its documents with weights, and R samples are one matrix product: `matrix` [K sums, D documents] times weights
[D, R]. The sums of two disjoint sets of documents add up to those of both. The point value and every resample go through
the same formulas; for the point value all weights are 1.

Bin b of B is (b / B, (b + 1) / B]: it is open on the left and closed on the right; 0.0 is in the first and 1.0 in the last.
(torchmetrics puts 1.0 into a bin of its own beyond the last, so that a saturated model's documents at 1.0 and at 0.9999
are judged apart.)
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from calibration.arrays import BINS, Floats, Ints
from calibration.metrics.predictions import Predictions
from calibration.uncertainty.resample import Weights


def bin_of(confidence: Floats, bins: int = BINS) -> Ints:
    """Return the bin of equal width that each probability is in, for an array of any shape."""
    # k / bins is rounded once, as a confidence of k / bins is; np.linspace multiplies, and with 10 bins it misses 0.3.
    return np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")


class Layout:
    """Names sums over D documents: `add` gives a name the next rows, `of` finds the rows of a name in all the sums."""

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._rows: dict[str, slice] = {}
        self._size = 0

    def add(
        self, name: str, value: Floats, row: Ints | None = None, rows: int = 1, document: Ints | None = None
    ) -> None:
        """Add `rows` sums under a name: entry i puts `value[i]` of `document[i]` into sum `row[i]`.

        By default there is an entry for each document, and all entries are in one sum.
        """
        document = np.arange(self._documents) if document is None else document
        row = np.zeros(len(document), np.int64) if row is None else row
        self._entries.append((row + self._size, document, value))
        self._rows[name] = slice(self._size, self._size + rows)
        self._size += rows

    @functools.cached_property
    def matrix(self) -> "SumMatrix":
        """Return the sums as a matrix [K, D]; it is made once, so all sums must be added before."""
        row, document, value = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        return SumMatrix(row, document, value, (self._size, self._documents))

    def of(self, sums: Floats, name: str) -> Floats:
        """Return the rows [rows, R] of a name, taken from all the sums [K, R]."""
        return sums[self._rows[name]]


class SumMatrix:
    """A sparse matrix [K, D] that takes weights [D, R] to sums [K, R]."""

    def __init__(self, row: Ints, document: Ints, value: Floats, shape: tuple[int, int]) -> None:
        self._entries, self._shape = (row, document, value), shape
        self._parts: dict[tuple[type, int | None, int | None], Any] = {}  # the same few are asked for every time

    def sums(self, weights: Weights, documents: slice = slice(None)) -> Floats:
        """Return the sums [K, R] over all documents, or over a slice of them, whose weights are [documents, R]."""
        part = np.float32 if weights.dtype == np.float32 else np.float64, documents.start, documents.stop
        if part not in self._parts:
            self._parts[part] = self._part(part[0], documents)
        sums: Floats = (self._parts[part] @ weights).astype(np.float64)
        return sums

    @functools.cached_property
    def _whole(self) -> Any:
        row, document, value = self._entries
        del self._entries  # the matrix holds them now
        kept = value != 0
        entries = value[kept].astype(np.float64), (row[kept], document[kept])
        # The matrix is stored by column, that is by document: its weights are read once for all the sums that it is in.
        return scipy.sparse.csc_matrix(entries, shape=self._shape)

    def _part(self, dtype: type, documents: slice) -> Any:
        start, stop, _ = documents.indices(self._shape[1])
        stop = max(start, stop)
        ends = self._whole.indptr[start : stop + 1]  # where the entries of each document begin and end
        entries = slice(ends[0], ends[-1])
        value, row = self._whole.data[entries].astype(dtype, copy=False), self._whole.indices[entries]
        return scipy.sparse.csc_matrix((value, row, ends - ends[0]), shape=(self._shape[0], stop - start))


def add_reliability(layout: Layout, made: Predictions, bins: int = BINS, document: Ints | None = None) -> None:
    """Add the sums over predictions that `reliability_metrics` needs; `document` [E] is that of each, else one has one."""
    bin_, gap = bin_of(made.confidence, bins), made.confidence - made.correct
    side = np.where(made.correct, 0, bins) + bin_
    layout.add("bin_count", np.ones(len(bin_)), side, 2 * bins, document)
    layout.add("bin_gap", gap, side, 2 * bins, document)
    layout.add("bin_square", gap * gap, bin_, bins, document)


def reliability_metrics(
    layout: Layout, sums: Floats, bins: int = BINS, target: Floats | None = None
) -> dict[str, Floats]:
    """Return the calibration errors of the predicted choice in bins of equal width, NaN where there is none.

    Let n_b of n documents be in bin b, a_b be their accuracy, and g_b = mean confidence − accuracy. An error that is a sum
    of absolute values is returned as what is summed, (n_b / n) g_b with its sign, in an array [B, R]; others are arrays [R].

    ece_width: Σ_b (n_b / n) |g_b|, in [0, 1]. The source is M. P. Naeini, G. F. Cooper, M. Hauskrecht, AAAI 2015; the edges
        and 15 bins are those of C. Guo et al., "On calibration of modern neural networks", ICML 2017, section 2.
    mce: max_b |g_b| over the bins that are not empty, from the same sources.
    ece_squared: Σ_b (n_b / n) (g_b² − s_b² / n_b), with s_b² the variance of confidence − correctness in the bin. This is
        what is left of the squared error without the noise of the gaps; its expectation is the true one, and it is below
        0 where noise is larger than error. A bin of one document tells nothing of its noise and counts as 0. The sources
        are A. Kumar, P. Liang, T. Ma, "Verified uncertainty calibration", NeurIPS 2019, section 4, and C. A. T. Ferro,
        T. E. Fricker, "A bias-corrected decomposition of the Brier score", Q. J. R. Meteorol. Soc. 138 (2012).
    ece_width_matched: ece_width after right documents are weighted by target / accuracy and wrong ones by
        (1 − target) / (1 − accuracy), so that the accuracy is `target` [R]; it is there only with a `target`. It shows the
        part of a difference in ECE to a model of that accuracy which is not due to the difference in accuracy (the
        confounder shown in Yang et al., "When calibration rankings reverse", arXiv 2606.30814). The weights are
        post-stratification on the outcome: D. Holt, T. M. F. Smith, "Post stratification", J. R. Stat. Soc. A 142 (1979).
    """
    counts, gaps = layout.of(sums, "bin_count"), layout.of(sums, "bin_gap")
    right = counts[:bins]
    count, gap = right + counts[bins:], gaps[:bins] + gaps[bins:]
    n = count.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = np.where(count > 0, np.abs(gap) / count, -1.0).max(axis=0)
        variance = (layout.of(sums, "bin_square") - gap * gap / count) / (count - 1)
        found = {
            "ece_width": gap / n,
            "mce": np.where(n > 0, worst, np.nan),
            "ece_squared": np.where(count > 1, gap * gap / count - variance, 0.0).sum(axis=0) / n,
        }
        if target is not None:
            share = right.sum(axis=0) / n
            up, down = _ratio(target, share), _ratio(1 - target, 1 - share)
            found["ece_width_matched"] = (up * gaps[:bins] + down * gaps[bins:]) / n
    return found


def bins_of(layout: Layout, sums: Floats, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Return right documents, documents and mean confidence of the bins that are not empty, from sums [K, 1]."""
    counts, gaps = layout.of(sums, "bin_count")[:, 0], layout.of(sums, "bin_gap")[:, 0]
    right, count, gap = counts[:bins], counts[:bins] + counts[bins:], gaps[:bins] + gaps[bins:]
    filled = count > 0
    return right[filled], count[filled], ((gap + right)[filled] / count[filled])


def _ratio(target: Floats, share: Floats) -> Floats:
    """Return the weight of documents with this share that makes their share the target; 0 where both are 0."""
    return np.where(share > 0, target / share, np.where(target == 0, 0.0, np.nan))


def add_classes(layout: Layout, made: Predictions, sizes: Ints, gold: Ints, bins: int = BINS) -> None:
    """Add the sums over all choices that `class_metrics` needs; `sizes` [D] says how many choices each document has."""
    document, choice = np.nonzero(np.arange(made.probability.shape[1]) < sizes[:, None])
    probability = made.probability[document, choice]
    is_gold = gold[document] == choice
    row, rows = choice * bins + bin_of(probability, bins), made.probability.shape[1] * bins
    layout.add("class_count", np.ones(len(row)), row, rows, document)
    layout.add("class_gap", probability - is_gold, row, rows, document)
    layout.add("class_gold", np.ones(int(is_gold.sum())), row[is_gold], rows, document[is_gold])


def class_metrics(
    layout: Layout, sums: Floats, n: Floats, brier: Floats, sample: Floats | None = None, bins: int = BINS
) -> dict[str, Floats]:
    """Return the metrics [R] that take each of the C choices as a binary event; class c is the choice at place c.

    A document with fewer choices belongs to the classes it has. Let n_cb documents be in bin b of class c, p_cb be their
    mean probability, y_cb the share of them whose gold choice is c, and y_c that share over all n_c documents of the class.

    ece_classwise: the mean over c of Σ_b (n_cb / n_c) |p_cb − y_cb|, in [0, 1], returned as what is summed, with its sign,
        in an array [C · B, R]. The source is J. Nixon et al., "Measuring calibration in deep learning", CVPR workshops 2019
        (static calibration error); the name is that of M. Kull et al., NeurIPS 2019.
    brier_reliability: Σ_c Σ_b (n_cb / n) (p_cb − y_cb)²;
    brier_resolution: Σ_c Σ_b (n_cb / n) (y_cb − y_c)²;
    brier_uncertainty: Σ_c (n_c / n) y_c (1 − y_c). The source of all three is A. H. Murphy, "A new vector partition of the
        probability score", J. Appl. Meteorol. 12 (1973), in the form that sums the partitions of the classes.
    brier_within: Brier score − (reliability − resolution + uncertainty). Murphy's identity is exact where all
        probabilities of a bin are equal; in bins of some width, this remainder makes it exact. It is the within-bin
        variance of p less twice the within-bin covariance of p and y (D. B. Stephenson, C. A. S. Coelho, I. T. Jolliffe,
        "Two extra components in the Brier score decomposition", Weather Forecast. 23 (2008)).
    brier_reliability_tangent, brier_resolution_tangent: their tangents at the sample (`gaps.of_squares`).

    Args:
        layout: the names of the sums.
        sums: the sums [K, R].
        n: the number of documents [R].
        brier: the Brier score [R].
        sample: the sums [K, 1] of the sample, at which the tangents are taken; without them there are none.
    """
    count, gap, gold = _by_class(layout, sums, bins)
    size, positive = count.sum(axis=1), gold.sum(axis=1)  # both have shape [C, R]
    with np.errstate(divide="ignore", invalid="ignore"):
        reliability = np.where(count > 0, gap * gap / count, 0.0).sum(axis=(0, 1)) / n
        base = np.where(size > 0, positive * positive / size, 0.0).sum(axis=0)
        resolution = (np.where(count > 0, gold * gold / count, 0.0).sum(axis=(0, 1)) - base) / n
        uncertainty = (positive.sum(axis=0) - base) / n
        classes = (size > 0).sum(axis=0)
        share = np.where(size > 0, size * classes, np.nan)[:, None]
        classwise = np.where(n > 0, np.nan_to_num(gap / share), np.nan)
        found = {
            "ece_classwise": classwise.reshape(-1, sums.shape[1]),
            "brier_reliability": reliability,
            "brier_resolution": resolution,
            "brier_uncertainty": uncertainty,
            "brier_within": brier - (reliability - resolution + uncertainty),
        }
        if sample is None:
            return found
        own_count, own_gap, own_gold = _by_class(layout, sample, bins)
        off = np.where(own_count > 0, own_gap / own_count, 0.0)
        apart = own_gold / own_count - (own_gold.sum(axis=1) / own_count.sum(axis=1))[:, None]
        apart = np.where(own_count > 0, apart, 0.0)
        mean = np.where(size > 0, positive / size, 0.0)[:, None]
        beyond = 2 * apart * (gold - mean * count) - apart * apart * count
        return found | {
            "brier_reliability_tangent": (2 * off * gap - off * off * count).sum(axis=(0, 1)) / n,
            "brier_resolution_tangent": beyond.sum(axis=(0, 1)) / n,
        }


def _by_class(layout: Layout, sums: Floats, bins: int) -> tuple[Floats, Floats, Floats]:
    """Return the documents, the gaps and the gold choices of every class and bin, each [C, B, R]."""
    shape = (-1, bins, sums.shape[1])
    count, gap, gold = (layout.of(sums, name).reshape(shape) for name in ("class_count", "class_gap", "class_gold"))
    return count, gap, gold


def means(layout: Layout, sums: Floats, names: Sequence[str], n: Floats) -> dict[str, Floats]:
    """Return each named sum divided by n [R]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: layout.of(sums, name)[0] / n for name in names}


def bits_per_byte(layout: Layout, sums: Floats, prefix: str = "") -> Floats:
    """Return the bits per byte [R] of texts from the sums `nll` (nats), `nll_infinite` (texts) and `bytes`, after a prefix.

    It is infinite where a text has probability 0. Texts count by their length; tokenizers have no say in it, so models with
    different ones can be compared. The source is L. Gao et al., "The Pile", arXiv 2101.00027, section 3.1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = layout.of(sums, f"{prefix}nll")[0] / layout.of(sums, f"{prefix}bytes")[0] / np.log(2)
    return np.where(layout.of(sums, f"{prefix}nll_infinite")[0] > 0, np.inf, bits)
