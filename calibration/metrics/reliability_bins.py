"""A reliability diagram shows how often predictions of a confidence are right, in bins of equal width.

One table serves all diagrams and histograms; it is made in the same pass over a λ as the metrics.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import bdtr, ndtri

from calibration.arrays import BINS, Bools, Floats
from calibration.metrics.binned import bin_of
from calibration.metrics.predictions import predictions
from calibration.metrics.written import confidences_of, events_of
from calibration.scores.loader import TaskScores
from calibration.scores.per_answer import AnswerScores
from calibration.scores.per_document import ChoiceScores
from calibration.uncertainty.intervals import LEVEL
from calibration.uncertainty.resample import SPLITS
from contract import schemas

BinRow = tuple[Any, ...]  # a row in the order of schemas.BINS, without task and λ


def bin_rows(at_lambda: TaskScores, in_report: Bools) -> list[BinRow]:
    """Bin the documents of a choice task and the tokens of any task at one λ; empty bins have no row.

    The tokens are those of documents that are scored, as in `token_ece_width15`. Bin b is (b / 15, (b + 1) / 15].

    Args:
        at_lambda: the task's scores at one λ.
        in_report: for all D documents of the task, whether they are in split `report` (`resample.Resamples`).
    """
    rows: list[BinRow] = []
    scores, tokens = at_lambda.scores, at_lambda.token_scores
    if isinstance(scores, ChoiceScores):
        sides = _sides(in_report[scores.document])
        for confidence, logits in scores.logits.items():
            made = predictions(logits, scores.gold)
            for split, of in sides.items():
                rows += _binned("documents", confidence, split, made.confidence[of], made.correct[of], True)
    if tokens is None:
        return rows
    scored = np.isin(tokens.document, scores.document)
    for split, of in _sides(in_report[tokens.document]).items():
        kept = scored & of
        # The tokens of a document depend on each other: an interval that takes them for independent would be too narrow.
        rows += _binned("tokens", "sum", split, tokens.confidence[kept], tokens.correct[kept], False)
    return rows


def answer_bins(scores: AnswerScores, in_report: Bools) -> list[BinRow]:
    """Bin the outputs, and the voted answers, of a task whose answers are written, at one λ; empty bins have no row.

    Args:
        scores: the task's scores at one λ.
        in_report: as `bin_rows` takes it.
    """
    rows: list[BinRow] = []
    sides = _sides(in_report[scores.document])
    for confidence in confidences_of(scores):
        events = events_of(scores, confidence)
        for split, of in sides.items():
            kept = of[events.owner]
            # Outputs of one document depend on each other, as tokens do.
            rows += _binned(
                "answers", confidence, split, events.confidence[kept], events.correct[kept], events.are_single
            )
    return rows


def bin_table(rows: Iterable[tuple[str, str, list[BinRow]]]) -> pa.Table:
    """Return schemas.BINS of entries (task, λ, rows), in the order given."""
    whole = [(task, lam, *row) for task, lam, bins in rows for row in bins]
    return schemas.table_of(schemas.BINS, whole)


def _sides(in_report: Bools) -> dict[str, Bools]:
    return dict(zip(SPLITS, (np.ones_like(in_report), ~in_report, in_report), strict=True))


def _binned(
    events: str, confidence: str, split: str, sure: Floats, correct: Bools, are_independent: bool
) -> Iterator[BinRow]:
    place = bin_of(sure)
    count = np.bincount(place, minlength=BINS)
    total = np.bincount(place, weights=sure, minlength=BINS)
    right = np.bincount(place[correct], minlength=BINS)
    for b in np.flatnonzero(count):
        n, accuracy = int(count[b]), float(right[b] / count[b])
        ends = _wilson(accuracy, n) if are_independent else (None, None)
        yield (events, confidence, split, int(b), b / BINS, (b + 1) / BINS, n, float(total[b] / n), accuracy, *ends)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n events, by E. B. Wilson, J. Am. Stat. Assoc. 22 (1927)."""
    z = float(ndtri((1 + LEVEL) / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def consistency(n: int, confidence: float) -> tuple[float, float]:
    """Return between which accuracies the middle 95 % of draws lie, if each of n answers is right as often as its bin says.

    The answers of a bin have confidences of their own, around their mean `confidence`. As many of them are right, but their
    number varies a little less than the binomial one that is taken here [W. Hoeffding, Ann. Math. Stat. 27 (1956)], so the
    bar errs on the long side. Source of consistency bars: J. Bröcker, L. A. Smith, "Increasing the reliability of
    reliability diagrams", Weather Forecast. 22 (2007), who draw the confidences again, too.
    """
    below = bdtr(np.arange(n + 1), n, min(max(confidence, 0.0), 1.0))
    low, high = np.searchsorted(below, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low / n), float(min(high, n) / n)
