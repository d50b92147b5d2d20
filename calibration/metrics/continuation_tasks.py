"""This module computes the metrics of a continuation task at one λ on every split, each with its value in every resample."""

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.catalogue import metrics_of
from calibration.metrics.binned import Layout, bits_per_byte, means
from calibration.metrics.choice_tasks import Estimates
from calibration.metrics.predictions import perplexity
from calibration.metrics.token_ece import add_tokens, token_metrics
from calibration.scores.per_document import ContinuationScores
from calibration.scores.per_token import TokenScores
from calibration.uncertainty.gaps import of_gaps
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import SPLITS, Resamples, ones


def restricted(scores: ContinuationScores, kept: Ints) -> ContinuationScores:
    """Return the scores of the documents at these places [S], in this order."""
    return ContinuationScores(
        *(scores.document[kept], scores.logprob[kept], scores.greedy[kept], scores.decided[kept], scores.left_out),
        scores.byte_counts[kept],
    )


def continuation_estimates(scores: ContinuationScores, token_scores: TokenScores, resamples: Resamples) -> Estimates:
    """Compute every metric of a continuation task at one λ; such a task has no choices, hence no confidence in one.

    acc: the share of documents whose continuation is the greedy one, among those where the engine's answer decides that;
    nll: the mean over documents of the whole continuation's NLL, in nats;
    perplexity: exp(nll);
    bits_per_byte: the NLL of all continuations in bits, divided by their UTF-8 bytes;
    token_ece_width15: the ECE of the tokens.
    """
    order, runs = resamples.halves_first(scores.document)
    scores = restricted(scores, order)
    layout = Layout(len(order))
    impossible = np.isinf(scores.logprob)
    layout.add("documents", np.ones(len(scores.document)))
    layout.add("decided", scores.decided.astype(np.float64))
    layout.add("acc", (scores.greedy & scores.decided).astype(np.float64))
    layout.add("nll", np.where(impossible, 0.0, 0.0 - scores.logprob))  # −x would turn 0 into −0.0
    layout.add("nll_infinite", impossible.astype(np.float64))
    layout.add("bytes", scores.byte_counts.astype(np.float64))
    add_tokens(layout, token_scores.of(scores.document))
    matrix = layout.matrix
    found: Estimates = {}
    for split in SPLITS:
        part = runs[split]
        sums = matrix.sums(ones(len(order))[part], part)
        drawn = np.hstack([matrix.sums(weights[part], part) for weights in resamples.chunks(scores.document)])
        itself, resampled = _metrics(layout, sums), _metrics(layout, drawn)
        sizes = {"acc": "decided", "token_ece_width": "token_documents"}
        for metric in metrics_of("continuation"):
            key = metric.computed_as
            n = int(layout.of(sums, sizes.get(key, "documents"))[0, 0])
            value = itself[key]
            if value.ndim == 2:
                found[metric.name, "sum", split] = of_gaps(value[:, 0], resampled[key], n)
            else:
                found[metric.name, "sum", split] = Estimate(float(value[0]), resampled[key], n)
    return found


def _metrics(layout: Layout, sums: Floats) -> dict[str, Floats]:
    found = means(layout, sums, ["acc"], layout.of(sums, "decided")[0])
    found |= means(layout, sums, ["nll"], layout.of(sums, "documents")[0])
    found["nll"] = np.where(layout.of(sums, "nll_infinite")[0] > 0, np.inf, found["nll"])
    found["perplexity"] = perplexity(found["nll"])
    found["bits_per_byte"] = bits_per_byte(layout, sums)
    return found | token_metrics(layout, sums)
