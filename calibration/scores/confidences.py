"""This module names the confidences, and says which of them a task has."""

from collections.abc import Collection

from calibration.scores.per_document import CONFIDENCES, PMI
from contract.records import Plan, TaskRecord

VOTES = "votes"
P_TRUE = "p_true"
VERBALISED = "verbalised"
OF_OUTPUTS = ("sum", "tokens", "lowest", "first")  # confidences that every output has
ANSWER_CONFIDENCES = (*OF_OUTPUTS, P_TRUE, VERBALISED, VOTES)
EVERY_CONFIDENCE = tuple(dict.fromkeys((*CONFIDENCES, PMI, *ANSWER_CONFIDENCES)))
# These may be asked for where no task has them; others have to be made by a run.
ALWAYS_KNOWN = tuple(dict.fromkeys((*CONFIDENCES, *OF_OUTPUTS, VOTES)))
RESCORED = ("sum", "tokens")  # confidences in an output that may also be of another λ, by its name behind an @
# What a table says that a confidence in a written answer is.
IN_WORDS = {
    "sum": "the probability of the whole output",
    "tokens": "the geometric mean of its tokens' probabilities",
    "lowest": "the lowest probability of its tokens",
    "first": "the probability of the token that the answer begins in",
    P_TRUE: "what the model says of its answer being right",
    VERBALISED: "what the output itself says",
    VOTES: "the share of the outputs that give the voted answer",
}


def confidences_in(record: TaskRecord) -> tuple[str, ...]:
    """Return the confidences that a task has by its record."""
    if not record.is_answered:
        return (*CONFIDENCES, PMI) if record.pmi else CONFIDENCES
    asked = (P_TRUE,) * (record.p_true is not None) + (VERBALISED,) * (record.verbalised is not None)
    under = tuple(at_point(name, point) for point in record.rescored for name in RESCORED)
    votes = (VOTES,) if (record.samples or 1) > 1 else ()
    return (*OF_OUTPUTS, *asked, *under, *votes)


def choice_confidence(plan: Plan, asked: str) -> str:
    """Return the confidence that all choice tasks are shown under: the one asked for where every one has it, else the first.

    One page, one pool and one λ* take one confidence, so that it is the same for all.
    """
    choices = [confidences_in(record) for record in plan.values() if record.scored_as in ("choices", "contexts")]
    return confidence_of(set(CONFIDENCES).union(*choices).intersection(*choices), asked)


def at_point(confidence: str, point: str) -> str:
    """Return the name of a confidence in an output that is of the model at another point than the one that wrote it."""
    return f"{confidence}@{point}"


def in_words(confidence: str) -> str:
    """Return what a confidence in a written answer is."""
    name, _, point = confidence.partition("@")
    return f"{IN_WORDS[name]} under λ = {point}" if point else IN_WORDS[name]


def confidence_of(there: Collection[str], asked: str) -> str:
    """Return the confidence that a task is shown under: the one asked for where it is there, else the first."""
    return asked if asked in there else CONFIDENCES[0]


def in_order(confidence: str) -> tuple[int, str]:
    """Return a key that sorts confidences as tables have them."""
    name, _, point = confidence.partition("@")
    return (len(EVERY_CONFIDENCE) if point else 0) + EVERY_CONFIDENCE.index(name), point
