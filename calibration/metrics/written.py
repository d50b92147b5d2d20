"""This module computes all metrics of a task whose answers are written, at one λ.

Documents are what is resampled: all outputs of a document are in a resample as often as the document. K outputs of a
document are K events for the confidences of an output, and its voted answer is one event for the share of votes.
"""

from dataclasses import dataclass

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from calibration.catalogue import FLOOR
from calibration.metrics.binned import Layout, add_reliability, means, reliability_metrics
from calibration.metrics.choice_tasks import Estimates
from calibration.metrics.platt import cross_fitted, logits_of
from calibration.metrics.predictions import Predictions
from calibration.metrics.ranked import Ranking
from calibration.scores.confidences import OF_OUTPUTS, VOTES
from calibration.scores.per_answer import AnswerScores
from calibration.uncertainty.gaps import of_gaps
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import Resamples, Weights, ones

COVERAGES = (80, 50)
_NAMES = {"ece_width": "ece_width15", "ece_mass": "ece_mass15", "correct": "acc"}
_SCALED = ("ece_width", "brier", "nll", "nll_floored", "confidence", "overconfidence")


def pass_at(correct: Bools, k: int) -> Floats:
    """Return the unbiased estimate [S] of the probability that one of k outputs is right, from n ≥ k outputs [S, n].

    1 − C(n − c, k) / C(n, k) with c right outputs: M. Chen et al., "Evaluating large language models trained on code", arXiv
    2107.03374, section 2.1.
    """
    n, right = correct.shape[1], correct.sum(axis=1)
    factors = np.arange(k)[:, None]
    # C(n − c, k) / C(n, k) is the product of (n − c − i) / (n − i), which is 0 where fewer than k are wrong.
    found: Floats = 1.0 - np.prod(np.maximum(n - right - factors, 0) / (n - factors), axis=0)
    return found


def counts_of_pass(samples: int) -> list[int]:
    """Return the numbers below `samples` for which `pass_at` is taken besides: powers of 2 from 2 on."""
    return [2**power for power in range(1, samples.bit_length()) if 2**power < samples]


def per_document(scores: AnswerScores) -> dict[str, Floats]:
    """Return, by name, each metric that is the mean over documents of a number and does not depend on a confidence, [S].

    mean_at_k: the share of the outputs that are right; vote_at_k: whether the voted answer is right; pass_at_k: whether any
    output is right; pass_at_<j>: `pass_at` for a smaller number; single_cluster: whether all outputs say the same;
    distinct_answers: the number of different answers; length, cut, token_entropy, thinking: those of `AnswerScores`.
    """
    found = {
        "mean_at_k": scores.correct.mean(axis=1),
        "vote_at_k": scores.voted.astype(np.float64),
        "pass_at_k": scores.correct.any(axis=1).astype(np.float64),
        "single_cluster": (scores.classes == 1).astype(np.float64),
        "distinct_answers": scores.classes.astype(np.float64),
        "length": scores.length,
        "cut": scores.cut,
        "token_entropy": scores.entropy,
    }
    for count in counts_of_pass(scores.samples):
        found[f"pass_at_{count}"] = pass_at(scores.correct, count)
    if scores.thinking is not None:
        found["thinking"] = scores.thinking
    if scores.samples == 1:
        for name in ("vote_at_k", "pass_at_k", "single_cluster", "distinct_answers"):
            del found[name]
    return found


@dataclass(frozen=True, slots=True)
class Events:
    """E answers with a confidence; those of a document follow each other."""

    log: Floats  # [E] log of the confidence: that of a long output is below what a probability can be
    correct: Bools  # [E]
    owner: Ints  # [E] the place of the document of each, ascending

    @property
    def confidence(self) -> Floats:
        """Return the confidence [E] of each, a probability."""
        found: Floats = np.exp(self.log)
        return found

    @property
    def are_single(self) -> bool:
        """Tell whether no document has several."""
        return bool((np.diff(self.owner) > 0).all())

    def within(self, run: slice) -> slice:
        """Return which answers are those of a run of documents."""
        first, end = np.searchsorted(
            self.owner, [run.start or 0, np.iinfo(np.int64).max if run.stop is None else run.stop]
        )
        return slice(int(first), int(end))

    def predictions(self) -> Predictions:
        """Return the answers as predictions of two outcomes, right and wrong.

        The Brier score is (confidence − correct)², in [0, 1], and the NLL −log of the probability of what is the case:
        proper scores of a binary event [G. W. Brier 1950; I. J. Good, J. R. Stat. Soc. B 14 (1952)].
        """
        sure, right = self.confidence, self.correct
        with np.errstate(divide="ignore"):
            nll = np.where(right, 0.0 - self.log, 0.0 - np.log(-np.expm1(self.log)))
        both = np.stack([sure, 1 - sure], axis=1)
        return Predictions(np.zeros(len(sure), np.int64), both, sure, right, np.square(sure - right), nll)


def events_of(scores: AnswerScores, confidence: str) -> Events:
    """Return the answers of some documents with their confidences; outputs that have one, or voted answers."""
    owner = np.arange(len(scores.document))
    if confidence == VOTES:
        return Events(np.log(scores.votes / scores.samples), scores.voted, owner)
    log = scores.logs[confidence].ravel()
    has = ~np.isnan(log)
    return Events(log[has], scores.correct.ravel()[has], np.repeat(owner, scores.samples)[has])


def logits_for_scaling(scores: AnswerScores, confidence: str) -> Floats:
    """Return the logits of `events_of` that Platt scaling takes; of v votes among k those of (v + ½) / (k + 1)."""
    if confidence == VOTES:
        found: Floats = np.log((scores.votes + 0.5) / (scores.samples - scores.votes + 0.5))
        return found
    return logits_of(events_of(scores, confidence).log)


def confidences_of(scores: AnswerScores) -> tuple[str, ...]:
    """Return the confidences that there are: one output has no votes."""
    return (*scores.logs, VOTES) if scores.samples > 1 else tuple(scores.logs)


def answer_estimates(scores: AnswerScores, resamples: Resamples) -> Estimates:
    """Compute every metric of a task whose answers are written, at one λ.

    Returns:
        The estimates by (metric, confidence, split). Those of `per_document` stand under the confidence sum, and `missing`,
        the share of the outputs without a confidence, under each that an output may lack.
    """
    order, runs = resamples.halves_first(scores.document)
    scores = scores.restricted(order)
    views = [_Sums(scores, confidence, runs) for confidence in confidences_of(scores)]
    plain = Layout(len(order))
    plain.add("documents", np.ones(len(order)))
    numbers = {(name, "sum"): values for name, values in per_document(scores).items()}
    for confidence, log in scores.logs.items():
        if confidence not in OF_OUTPUTS:
            numbers["missing", confidence] = np.isnan(log).mean(axis=1)
    for number, values in enumerate(numbers.values()):
        plain.add(str(number), values)

    def documents(weights: Weights) -> dict[tuple[str, str, str], Floats]:
        found: dict[tuple[str, str, str], Floats] = {}
        for split, run in runs.items():
            sums = plain.matrix.sums(weights[run], run)
            values = means(plain, sums, [str(number) for number in range(len(numbers))], sums[0]).values()
            found |= {(*key, split): value for key, value in zip(numbers, values, strict=True)}
        return found

    whole = ones(len(order))
    chunks = list(resamples.chunks(scores.document, scores.correct.size))
    found: Estimates = {}
    itself, drawn = documents(whole), [documents(weights) for weights in chunks]
    for key, value in itself.items():
        n = len(order[runs[key[2]]])
        found[key] = Estimate(float(value[0]), np.concatenate([one[key] for one in drawn] or [value[:0]]), n)
    for view in views:
        own, parts = view.measure(whole), [view.measure(weights) for weights in chunks]
        for (name, split), value in own.items():
            n = view.documents[split]
            several = np.concatenate([one[name, split] for one in parts] or [value[..., :0]], axis=-1)
            stored = f"{_NAMES.get(name.removesuffix('_scaled'), name.removesuffix('_scaled'))}"
            stored += "_scaled" if name.endswith("_scaled") else ""
            key = stored, view.confidence, split
            found[key] = of_gaps(value[:, 0], several, n) if value.ndim == 2 else Estimate(float(value[0]), several, n)
    return found


class _Sums:
    """The answers of some documents under one confidence, laid out as sums over the documents."""

    def __init__(self, scores: AnswerScores, confidence: str, runs: dict[str, slice]) -> None:
        self.confidence, self._runs = confidence, runs
        self._events = events = events_of(scores, confidence)
        self._plain = _layout(events, len(scores.document))
        report = slice(events.within(runs["report"]).start, None)
        scaled, self._has_scaled = cross_fitted(logits_for_scaling(scores, confidence), events.correct, report)
        with np.errstate(divide="ignore"):
            of_scaled = Events(np.log(scaled), events.correct, events.owner)
        self._scaled = _layout(of_scaled, len(scores.document))
        self._rankings, self._owner = {}, {}
        for split, run in runs.items():
            own = events.within(run)
            self._owner[split] = events.owner[own]
            self._rankings[split] = Ranking(events.confidence[own], events.correct[own], coverages=COVERAGES)
        # How many documents of each split have such a confidence.
        self.documents = {split: len(np.unique(owner)) for split, owner in self._owner.items()}

    def measure(self, weights: Weights) -> dict[tuple[str, str], Floats]:
        """Return every metric on every split: [R], or [B, R] of an error that is a sum of B absolute values."""
        found: dict[tuple[str, str], Floats] = {}
        for split, run in self._runs.items():
            metrics = _summed(self._plain, weights[run], run)
            scaled = _summed(self._scaled, weights[run], run)
            for name in _SCALED:
                metrics[f"{name}_scaled"] = scaled[name] if self._has_scaled else np.full_like(scaled[name], np.nan)
            metrics |= self._rankings[split].metrics(weights[self._owner[split]])
            found |= {(name, split): value for name, value in metrics.items() if name not in ("mce", "ece_squared")}
        return found


def _layout(events: Events, documents: int) -> Layout:
    layout, made, owner = Layout(documents), events.predictions(), events.owner
    add_reliability(layout, made, document=owner)
    layout.add("events", np.ones(len(owner)), document=owner)
    layout.add("correct", made.correct.astype(np.float64), document=owner)
    layout.add("confidence", made.confidence, document=owner)
    layout.add("brier", made.brier, document=owner)
    impossible = np.isinf(made.nll)
    layout.add("nll", np.where(impossible, 0.0, made.nll), document=owner)  # ∞ times weight 0 would be NaN
    layout.add("nll_infinite", impossible.astype(np.float64), document=owner)
    layout.add("nll_floored", np.minimum(made.nll, -np.log(FLOOR)), document=owner)
    return layout


def _summed(layout: Layout, weights: Weights, run: slice) -> dict[str, Floats]:
    sums = layout.matrix.sums(weights, run)
    n = layout.of(sums, "events")[0]
    found = means(layout, sums, ["correct", "confidence", "brier", "nll", "nll_floored"], n)
    found["nll"] = np.where(layout.of(sums, "nll_infinite")[0] > 0, np.inf, found["nll"])
    found["overconfidence"] = found["confidence"] - found["correct"]
    return found | reliability_metrics(layout, sums)
