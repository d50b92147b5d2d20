"""These types say what is known of the λs of a frontier: values, gains on the parents, tests, and which λs are like λ*."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "not shown", "no"]


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval (`intervals.interval`); the ends are None where there is no interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of a λ on a parent, on the same documents.

    At λ* the intervals of accuracy and NLL are wider by `Frontier.optimism`, on the less favourable side.
    """

    accuracy: Value  # the difference in accuracy; above 0 is better
    nll: Value  # the difference in NLL, in nats; below 0 is better
    error: Value  # the difference in the calibration error; below 0 is better
    dominates: bool  # whether λ is worse than the parent in neither accuracy nor error, and better in one
    dominated: bool  # whether λ is better than the parent in neither accuracy nor error, and worse in one


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """Holds what is measured on all documents at a λ, or at a point of several coordinates."""

    lam: str
    documents: int
    accuracy: Value
    nll: Value  # with probabilities of at least catalogue.FLOOR
    error: Value
    on_frontier: bool  # whether no other λ is at least as good in accuracy and error and better in one
    membership: float  # the share of the resamples in which this λ is on the frontier
    gains: dict[str, Gain]  # the gain on each other parent that there is, by the parent's name
    p_accuracy: float | None
    """The p-value of being more accurate than all parents, adjusted for all λs (`multiple_tests.step_down`)."""
    p_error: float | None
    """The p-value of being better calibrated than all parents, adjusted for all λs (`multiple_tests.step_down`)."""


@dataclass(frozen=True, slots=True)
class Rival:
    """Holds what can be had of base and aligned without merging them, measured on the documents of λ*."""

    name: str
    documents: int
    accuracy: Value
    nll: Value  # with probabilities of at least catalogue.FLOOR
    error: Value
    brier: Value
    temperatures: tuple[float, ...]
    """What the halves `select` and `report` are scaled by, each fitted on the other half; none where nothing is fitted."""
    gain: Gain | None  # the gain of λ* on it, on the same documents; None where λ* has other documents


@dataclass(frozen=True, slots=True)
class Chosen:
    """Holds λ*, which `lambda_star.choose` chooses on all documents, and the λs that are like it."""

    lam: str
    low: str
    high: str
    """In the middle 95 % of the resamples λ* lies between `low` and `high`."""
    like_low: str
    like_high: str
    """The λs between these two show no difference to λ* in NLL and accuracy (`multiple_tests.indistinguishable`)."""
    like: tuple[str, ...] = ()
    """All points that show no difference to λ*, over several aligned checkpoints, where points have no neighbours."""


@dataclass(frozen=True, slots=True)
class ParentTest:
    """A one-sided test of a λ against one parent, on documents that had no say in choosing the λ."""

    parent: str
    metric: Literal["accuracy", "nll", "error"]
    difference: Value
    p: float  # the p-value of "the λ is better"
    p_worse: float  # the p-value of "the λ is worse"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The tests of what the rule of λ* chooses on one half of the documents, made on the other half."""

    lam: str
    documents: int  # of the half that the tests are made on
    tests: tuple[ParentTest, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """Says whether a λ that is no parent is more accurate than all parents and far better calibrated than aligned."""

    verdict: Verdict
    text: str  # the verdict with its evidence
    evidence: HeldOut
    p_half: dict[str, float]  # the p-value of an error below half of that of each aligned parent, by its name
