"""Tokens are calibrated if the most likely next token is the actual one as often as its probability says."""

import numpy as np

from calibration.arrays import BINS, Floats
from calibration.metrics.binned import Layout, bin_of
from calibration.scores.per_token import TokenScores


def add_tokens(layout: Layout, scores: TokenScores) -> None:
    """Add the sums that `token_metrics` needs; a resample draws documents, with all their tokens."""
    bins = bin_of(scores.confidence)
    layout.add("token_count", np.ones(len(bins)), bins, BINS, scores.document)
    layout.add("token_gap", scores.confidence - scores.correct, bins, BINS, scores.document)
    seen = np.unique(scores.document)
    layout.add("token_documents", np.ones(len(seen)), document=seen)


def token_metrics(layout: Layout, sums: Floats) -> dict[str, Floats]:
    """Return token_ece_width [B, R], the ece_width of `binned.reliability_metrics` for tokens instead of documents."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"token_ece_width": layout.of(sums, "token_gap") / layout.of(sums, "token_count").sum(axis=0)}
