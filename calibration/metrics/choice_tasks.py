"""This module computes all metrics of a choice task at one λ, each with its value in every resample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration import catalogue
from calibration.arrays import Floats, Ints
from calibration.catalogue import ACCURACY
from calibration.metrics.binned import (
    Layout,
    add_classes,
    add_reliability,
    bins_of,
    bits_per_byte,
    class_metrics,
    means,
    reliability_metrics,
)
from calibration.metrics.cumulative import cumulative
from calibration.metrics.noise_floor import drawn_gaps, luck, noise_floor
from calibration.metrics.predictions import Predictions, predictions
from calibration.metrics.ranked import Ranking
from calibration.metrics.skill import add_references, skill_metrics
from calibration.metrics.smooth_ece import add_residuals, smooth_ece, smooth_residual
from calibration.metrics.temperature import cross_fitted
from calibration.metrics.token_ece import add_tokens, token_metrics
from calibration.scores.per_document import CONFIDENCES, ChoiceScores
from calibration.scores.per_token import TokenScores
from calibration.uncertainty.gaps import of_gaps, of_largest, of_squares
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import SMOOTH_RESAMPLES, SPLITS, Resamples, Weights, ones

Key = tuple[str, str, str]  # metric, confidence, split
Estimates = dict[Key, Estimate]
_Found = dict[tuple[str, str], Floats]  # metric, split: [R], or [B, R] of an error that is a sum of B absolute values


@dataclass(frozen=True, slots=True)
class ParentPredictions:
    """The predictions of a parent, with which those at other λs are compared."""

    document: Ints  # [S] the index of each document in Documents, ascending
    choice: dict[str, Ints]  # [S] the predicted choice of each document, by confidence


def parent_predictions(scores: ChoiceScores) -> ParentPredictions:
    """Return the predictions of a parent, with which other λs are compared."""
    choice = {name: predictions(logits, scores.gold).choice for name, logits in scores.logits.items()}
    return ParentPredictions(scores.document, choice)


def restricted(scores: ChoiceScores, kept: Ints) -> ChoiceScores:
    """Return the scores of the documents at these places [S], in this order."""
    logits = {confidence: rows[kept] for confidence, rows in scores.logits.items()}
    gold_bytes = None if scores.gold_bytes is None else scores.gold_bytes[kept]
    return ChoiceScores(
        scores.document[kept], scores.sizes[kept], scores.gold[kept], logits, scores.left_out, gold_bytes
    )


def choice_estimates(
    scores: ChoiceScores,
    token_scores: TokenScores | None,
    resamples: Resamples,
    parents: Mapping[str, ParentPredictions],
    aligned: Estimates | None,
    confidences: Sequence[str] = CONFIDENCES,
) -> Estimates:
    """Compute every metric of a choice task at one λ.

    Args:
        scores: the scores of the choices at the λ.
        token_scores: the scores of the tokens at the λ. Without them only the metrics of pooled tasks are computed.
        resamples: the resamples of the task's documents.
        parents: the parents that there are, by name, for `agreement_base` and `agreement_aligned`: among the documents that
            have scores at both λs, the share with the same prediction.
        aligned: the estimates at λ = 1, to whose accuracy `ece_width15_matched` is matched; without them that is left out.
        confidences: the confidences under which they are computed.

    Returns:
        The estimates by (metric, confidence, split). `temperature` is what a half's documents were scaled by. It has no
        resamples, because in every resample the temperature is that of the sample.
    """
    distinct, same = _distinct(scores, confidences)
    order, runs = resamples.halves_first(scores.document)
    scores = restricted(scores, order)
    drawn_luck = luck(len(resamples.in_report), scores.document)
    views = [_Sums(scores, token_scores, runs, parents, confidence) for confidence in distinct]
    targets = [_targets(aligned, confidence) for confidence in distinct]
    itself = [
        view.sample({split: np.array([one.value]) for split, one in target.items()})
        for view, target in zip(views, targets, strict=True)
    ]
    drawn: list[list[_Found]] = [[] for _ in views]
    start = 0
    for weights in resamples.chunks(scores.document):  # this is the outer loop, because weights take the most memory
        part = slice(start, start := start + weights.shape[1])
        smooth = min(max(SMOOTH_RESAMPLES - part.start, 0), weights.shape[1])
        for view, target, chunks in zip(views, targets, drawn, strict=True):
            accuracy = {split: estimate.resampled[part] for split, estimate in target.items()}
            chunks.append(view.measure(weights, accuracy, smooth))
    found: Estimates = {}
    for view, own, chunks in zip(views, itself, drawn, strict=True):
        names = catalogue.stored_names(view.confidence)
        for (metric, split), estimate in view.estimates(own, chunks).items():
            found[names.get(metric, metric), view.confidence, split] = estimate
        for split, floor in view.noise_floors(drawn_luck).items():
            count = view.size("ece_floor", split)
            found[names["ece_floor"], view.confidence, split] = Estimate(floor, np.empty(0), count)
        for (metric, split), value in view.walks().items():
            found[names[metric], view.confidence, split] = Estimate(value, np.empty(0), view.size(metric, split))
        for half, temperature in view.temperatures.items():
            count = view.size("temperature", half)
            used = temperature if temperature and count else float("nan")
            found["temperature", view.confidence, half] = Estimate(used, np.empty(0), count)
    for copy, original in same.items():
        found |= _renamed(found, original, copy)
    return found


def _distinct(scores: ChoiceScores, confidences: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the confidences that differ, and which of them each other one equals.

    Where every choice is one token, the log-probability per token is that of the choice.
    """
    distinct: list[str] = []
    same: dict[str, str] = {}
    for confidence in confidences:
        equal = [one for one in distinct if np.array_equal(scores.logits[one], scores.logits[confidence])]
        if equal:
            same[confidence] = equal[0]
        else:
            distinct.append(confidence)
    return distinct, same


def _renamed(found: Estimates, original: str, copy: str) -> Estimates:
    """Return the estimates of a confidence under the names that they have under another one."""
    stored, names = catalogue.stored_names(original), catalogue.stored_names(copy)
    renamed = {stored[key]: name for key, name in names.items()}
    once = {one.name for one in catalogue.metrics_of("choices", original) if one.once}
    return {
        (renamed.get(metric, metric), copy, split): estimate
        for (metric, confidence, split), estimate in found.items()
        if confidence == original and metric not in once
    }


def matched_to_itself(estimates: Estimates) -> Estimates:
    """Return the estimates of λ = 1 with its own ECE as the matched ECE, to which that of other λs is compared."""
    names = catalogue.stored_names(CONFIDENCES[0])
    plain, matched = names["ece_width"], names["ece_width_matched"]
    return estimates | {(matched, *key[1:]): estimate for key, estimate in estimates.items() if key[0] == plain}


def _targets(aligned: Estimates | None, confidence: str) -> dict[str, Estimate]:
    return {split: aligned[ACCURACY[confidence], confidence, split] for split in SPLITS} if aligned else {}


class _Sums:
    """The scores at a λ under one confidence, laid out as sums over the documents."""

    def __init__(
        self,
        scores: ChoiceScores,
        token_scores: TokenScores | None,
        runs: dict[str, slice],
        parents: Mapping[str, ParentPredictions],
        confidence: str,
    ) -> None:
        self.confidence = confidence
        self._runs = runs
        self._whole = token_scores is not None
        measured = catalogue.metrics_of("choices", confidence)
        self._mean_of = {one.computed_as: one.mean_of for one in measured if one.mean_of}
        count, logits = len(scores.document), scores.logits[confidence]
        made = predictions(logits, scores.gold)
        self._made = made
        self._sizes: dict[str, Ints] = {}  # per metric the documents it is of, where that is not all
        self._plain, self._scaled, self._smooth = Layout(count), Layout(count), Layout(count)
        add_reliability(self._plain, made)
        self._add_means(self._plain, made)
        add_references(self._plain, scores.sizes, scores.gold)
        self._parents = list(parents)
        self._has_bytes = False
        self._has_tokens = confidence == CONFIDENCES[0] and token_scores is not None
        if token_scores is not None:
            self._add_more(scores, token_scores, made, parents)
        select, report = cross_fitted(logits, scores.gold, runs["report"])
        self.temperatures = {"select": select, "report": report}
        divisor = np.ones((count, 1))
        for half, temperature in self.temperatures.items():
            divisor[runs[half]] = temperature or 1.0
        scaled = predictions(logits / divisor, scores.gold)
        add_reliability(self._scaled, scaled)
        self._add_means(self._scaled, scaled)
        self._every = np.arange(count)
        self._sample_sums: dict[str, Floats] = {}
        self._widths: dict[str, Floats] = {}  # the σ of smooth ECE by split

    def _add_more(
        self,
        scores: ChoiceScores,
        token_scores: TokenScores,
        made: Predictions,
        parents: Mapping[str, ParentPredictions],
    ) -> None:
        """Add what only the metrics of single tasks need."""
        add_classes(self._plain, made, scores.sizes, scores.gold)
        for name, parent in parents.items():
            _, here, there = np.intersect1d(scores.document, parent.document, return_indices=True)
            agree = (made.choice[here] == parent.choice[self.confidence][there]).astype(np.float64)
            self._plain.add(f"agreement_{name}", agree, document=here)
            self._plain.add(f"shared_{name}", np.ones(len(here)), document=here)
            self._sizes[f"agreement_{name}"] = here
        if self._has_tokens:
            self._plain.add("option_mass", np.exp(scores.logits[self.confidence]).sum(axis=1))
            if scores.gold_bytes is not None:
                nll = -scores.logits[self.confidence][np.arange(len(scores.gold)), scores.gold]
                self._plain.add("gold_nll", np.where(np.isinf(nll), 0.0, nll))
                self._plain.add("gold_nll_infinite", np.isinf(nll).astype(np.float64))
                self._plain.add("gold_bytes", scores.gold_bytes.astype(np.float64))
                self._has_bytes = True
            scored = token_scores.of(scores.document)
            add_tokens(self._plain, scored)
            self._sizes["token_ece_width"] = np.unique(scored.document)
        add_residuals(self._smooth, made.confidence, made.correct)
        self._rankings = {s: Ranking(made.confidence[run], made.correct[run]) for s, run in self._runs.items()}

    def size(self, metric: str, split: str) -> int:
        """Return how many documents of a split a metric is computed from."""
        every = self._every[self._runs[split]]
        return int(np.isin(every, self._sizes[metric]).sum()) if metric in self._sizes else len(every)

    def sample(self, accuracy: Mapping[str, Floats]) -> _Found:
        """Compute every metric of the sample itself; `measure` may be called then."""
        weights = ones(len(self._every))
        if self._whole:
            residual = self._sums(self._smooth, weights)
            for split in self._runs:
                n = np.array([float(len(self._every[self._runs[split]]))])
                self._widths[split] = smooth_ece(residual[split], n)
        self._sample_sums = self._sums(self._plain, weights)
        return self.measure(weights, accuracy, 1)

    def measure(self, weights: Weights, accuracy: Mapping[str, Floats], smooth: int) -> _Found:
        """Compute every metric on every split.

        Args:
            weights: the weights [S, R] of the documents in the resamples.
            accuracy: the accuracy [R] that `ece_width_matched` is matched to, by split; without it that metric is left out.
            smooth: the number of resamples, the first of the R, for which smooth ECE is computed.
        """
        found: _Found = {}
        plain, scaled = self._sums(self._plain, weights), self._sums(self._scaled, weights)
        residual = self._sums(self._smooth, weights[:, :smooth]) if self._whole and smooth else {}
        for split, run in self._runs.items():
            sums = plain[split]
            n = self._plain.of(sums, "bin_count").sum(axis=0)
            metrics = self._summed(sums, n, accuracy.get(split), split)
            metrics |= {f"{name}_scaled": value for name, value in self._summed_scaled(split, scaled[split], n).items()}
            if self._whole:
                metrics |= self._rankings[split].metrics(weights[run])
            if split in residual:
                metrics["smece"] = smooth_residual(residual[split], n[:smooth], self._widths[split])
            found |= {(metric, split): value for metric, value in metrics.items()}
        return found

    def estimates(self, itself: _Found, chunks: Sequence[_Found]) -> dict[tuple[str, str], Estimate]:
        """Put the metrics of the sample and those of the resamples together, by metric and split."""
        found = {}
        for (metric, split), value in itself.items():
            if metric.endswith("_tangent"):
                continue
            parts = [chunk[metric, split] for chunk in chunks if (metric, split) in chunk]
            drawn = np.concatenate(parts, axis=-1) if parts else value[..., :0]
            n = self.size(metric, split)
            tangent = f"{metric}_tangent", split
            if value.ndim == 2:
                exact = float(self._widths[split][0]) if metric == "smece" else None
                found[metric, split] = of_gaps(value[:, 0], drawn, n, exact)
            elif metric.removesuffix("_scaled") == "mce":
                bins = bins_of(self._plain, self._sample_sums[split])
                found[metric, split] = of_largest(float(value[0]), drawn, *bins, n)
            elif tangent in itself:
                below = np.concatenate([chunk[tangent] for chunk in chunks]) if chunks else np.empty(0)
                found[metric, split] = of_squares(float(value[0]), drawn, below, n)
            else:
                found[metric, split] = Estimate(float(value[0]), drawn, n)
        return found

    def noise_floors(self, drawn: NDArray[np.float32]) -> dict[str, float]:
        """Return by split the ECE that noise alone gives; `drawn` is what `luck` returns for the documents."""
        halves = {h: self._runs[h] for h in ("select", "report")}
        gaps = {h: drawn_gaps(self._made.confidence[run], drawn[run]) for h, run in halves.items()}
        gaps["all"] = gaps["select"] + gaps["report"]
        return {split: noise_floor(gaps[split], self.size("ece_floor", split)) for split in self._runs}

    def walks(self) -> dict[tuple[str, str], float]:
        """Return by metric and split the largest cumulative difference and its p-value."""
        found: dict[tuple[str, str], float] = {}
        for split, run in self._runs.items():
            walk = cumulative(self._made.confidence[run], self._made.correct[run])
            found |= {("ks", split): walk.statistic, ("ks_p", split): walk.p_value}
        return found

    def _sums(self, layout: Layout, weights: Weights) -> dict[str, Floats]:
        halves = {
            half: layout.matrix.sums(weights[self._runs[half]], self._runs[half]) for half in ("select", "report")
        }
        return halves | {"all": halves["select"] + halves["report"]}

    def _summed(self, sums: Floats, n: Floats, accuracy: Floats | None, split: str) -> dict[str, Floats]:
        layout = self._plain
        found = self._means(layout, sums, n)
        found |= reliability_metrics(layout, sums, target=accuracy)
        found |= skill_metrics(layout, sums, layout.of(sums, "nll_floored")[0])
        if not self._whole:
            return found
        found |= class_metrics(layout, sums, n, found["brier"], self._sample_sums[split])
        for name in self._parents:
            found |= means(layout, sums, [f"agreement_{name}"], layout.of(sums, f"shared_{name}")[0])
        if self._has_tokens:
            found |= means(layout, sums, ["option_mass"], n) | token_metrics(layout, sums)
        if self._has_bytes:
            found["bits_per_byte"] = bits_per_byte(layout, sums, "gold_")
        return found

    def _summed_scaled(self, split: str, sums: Floats, n: Floats) -> dict[str, Floats]:
        """Return the temperature-scaled metrics; they are NaN where a document of the split has no temperature."""
        found = self._means(self._scaled, sums, n) | reliability_metrics(self._scaled, sums)
        halves = [half for half in self.temperatures if split in ("all", half) and len(self._every[self._runs[half]])]
        missing = any(self.temperatures[half] is None for half in halves)
        names = [one.computed_as for one in catalogue.metrics_of("choices", self.confidence) if one.scaled]
        return {name: np.full_like(found[name], np.nan) if missing else found[name] for name in names if name in found}

    def _add_means(self, layout: Layout, made: Predictions) -> None:
        for name, mean_of in self._mean_of.items():
            value = mean_of(made)
            impossible = np.isinf(value)
            layout.add(name, np.where(impossible, 0.0, value))  # ∞ times weight 0 would be NaN
            layout.add(f"{name}_infinite", impossible.astype(np.float64))

    def _means(self, layout: Layout, sums: Floats, n: Floats) -> dict[str, Floats]:
        found = means(layout, sums, list(self._mean_of), n)
        for name in found:
            found[name] = np.where(layout.of(sums, f"{name}_infinite")[0] > 0, np.inf, found[name])
        return found | {"overconfidence": found["confidence"] - found["correct"]}
