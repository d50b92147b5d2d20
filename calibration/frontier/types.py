"""These types say what is known of one λ of a frontier: its values, its gains on the parents, and which λs are like λ*."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval (`intervals.interval`); the ends are None where there is no interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of a λ on a parent."""

    accuracy: Value  # the difference in accuracy; above 0 is better
    error: Value  # the difference in error; below 0 is better
    dominates: bool  # whether λ is worse than the parent in neither metric and better in one
    dominated: bool  # whether λ is better than the parent in neither metric and worse in one
    dominates_share: float  # the share of the resamples in which λ dominates the parent


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """Holds what is measured on `report` at a λ, or at a point of several coordinates."""

    lam: str
    documents: int
    accuracy: Value
    error: Value
    on_frontier: bool  # whether no other λ is at least as good in both metrics and better in one
    membership: float  # the share of the resamples in which this λ is on the frontier
    gains: dict[str, Gain]  # the gain on each other parent that there is, by the parent's name
    p_accuracy: float | None
    """The p-value of being more accurate than all parents, adjusted for all λs (`multiple_tests.step_down`)."""
    p_error: float | None
    """The p-value of being better calibrated than all parents, adjusted for all λs (`multiple_tests.step_down`)."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Holds λ*, which `lambda_star.choose` chooses on `select`, and the λs that are like it."""

    lam: str
    low: str
    high: str
    """In the middle 95 % of the resamples λ* lies between `low` and `high`."""
    like_low: str
    like_high: str
    """`report` cannot tell λ* from the λs between `like_low` and `like_high` (`multiple_tests.indistinguishable`)."""
    like: tuple[str, ...] = ()
    """All points that `report` cannot tell from λ*, over several aligned checkpoints, where points have no neighbours."""
