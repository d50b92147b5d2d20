"""What one can have of base and aligned without merging them: their outputs are combined instead of their weights.

Each rival is made of the scores of both parents, so it costs no further pass over the documents. Serving it costs something:
an ensemble runs both models for every token, while θ(λ) is one model.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from calibration.arrays import Floats
from calibration.metrics.choice_tasks import Estimates, choice_estimates, restricted
from calibration.metrics.temperature import match_temperature
from calibration.scores.per_document import CONFIDENCES, ChoiceScores
from calibration.uncertainty.resample import Resamples

# Probabilities per token and per byte have an arbitrary temperature, so there is nothing in them to match or to mix.
CONFIDENCE = CONFIDENCES[0]


@dataclass(frozen=True, slots=True)
class RivalMetrics:
    """The metrics of a rival, on the documents that both parents have scores for."""

    estimates: Estimates  # those of pooled tasks, under CONFIDENCE
    temperatures: tuple[float, ...] = ()  # what `select` and `report` are scaled by; none where nothing is fitted


def rival_metrics(base: ChoiceScores, aligned: ChoiceScores, resamples: Resamples) -> dict[str, RivalMetrics]:
    """Compute the metrics of the rivals that are made of both parents.

    daca: aligned with the temperature that `daca_temperature` finds. No label is used. It is cross-fitted all the same, as
        temperature scaling is: each half of the documents is scaled by what was found on the other half.
    mean: the mean of both parents' probabilities.
    log-mean: their geometric mean, renormalised over the choices. It is to outputs what the linear path is to weights.

    Args:
        base: the scores of base.
        aligned: the scores of aligned.
        resamples: the resamples of the task's documents.

    Returns:
        The metrics by the rival's name. A document is left out in which no choice is possible for a rival; `daca` is left
        out where a half of the documents finds no temperature.
    """
    _, here, there = np.intersect1d(base.document, aligned.document, return_indices=True)
    base, aligned = restricted(base, here), restricted(aligned, there)
    one, other = _log_probability(base.logits[CONFIDENCE]), _log_probability(aligned.logits[CONFIDENCE])
    found = {}
    in_report = resamples.in_report[aligned.document]
    fitted = {
        half: daca_temperature(one[half_of], other[half_of]) for half, half_of in enumerate((in_report, ~in_report))
    }
    for_select, for_report = fitted[0], fitted[1]
    if for_select is not None and for_report is not None:
        divisor = np.where(in_report, for_report, for_select)[:, None]
        found["daca"] = RivalMetrics(_estimates(aligned, other / divisor, resamples), (for_select, for_report))
    for name, logits in (("mean", np.logaddexp(one, other)), ("log-mean", (one + other) / 2)):
        found[name] = RivalMetrics(_estimates(aligned, logits, resamples))
    return found


def daca_temperature(base: Floats, aligned: Floats) -> float | None:
    """Return the temperature of aligned by disagreement-aware confidence alignment (DACA), which takes no labels.

    It is the T for which softmax(aligned / T) is nearest, by KL(base || ·), to base's probabilities, on the documents for
    which both predict the same choice. Where they differ, base's confidence says nothing of how often aligned is right.

    Args:
        base: float64 [D, C], log-probabilities up to a constant for each document; −inf is probability 0.
        aligned: float64 [D, C], the same of aligned.

    Returns:
        The temperature [temperature.match_temperature]; None where both agree on no document.

    Source: B. Luo, S. Wang, Y. Li, H. Wei, "Your pre-trained LLM is secretly an unsupervised confidence calibrator", NeurIPS
    2025 (arXiv 2505.16690). They descend the gradient of the cross-entropy, whose minimum is the same.
    """
    if len(base) == 0:
        return None
    agreed = np.argmax(base, axis=1) == np.argmax(aligned, axis=1)
    return match_temperature(aligned[agreed], np.exp(_log_probability(base[agreed])))


def _log_probability(logits: Floats) -> Floats:
    if len(logits) == 0:
        return logits
    found: Floats = logits - logsumexp(logits, axis=1, keepdims=True)
    return found


def _estimates(scores: ChoiceScores, logits: Floats, resamples: Resamples) -> Estimates:
    possible = np.isfinite(logits).any(axis=1)
    made = ChoiceScores(scores.document, scores.sizes, scores.gold, {CONFIDENCE: logits}, scores.left_out)
    return choice_estimates(restricted(made, np.flatnonzero(possible)), None, resamples, {}, None, (CONFIDENCE,))
