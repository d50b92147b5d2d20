"""What is said of one λ of a frontier: its values, what it gains on the parents, and of λ* which λs are like it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval (`intervals.interval`); null ends: there is none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """What a λ gains on a parent."""

    accuracy: Value  # difference; above 0 is better
    error: Value  # difference; below 0 is better
    dominates: bool  # not worse in either and better in one
    dominated: bool  # the other way round
    dominates_share: float  # of the resamples


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A λ on `report`, or a point of several coordinates."""

    lam: str
    documents: int
    accuracy: Value
    error: Value
    on_frontier: bool  # no λ is at least as good in both and better in one
    membership: float  # share of the resamples in which it is on the frontier
    gains: dict[str, Gain]  # by parent, `base` and `aligned`, those there are
    p_accuracy: (
        float | None
    )  # that it is more accurate than both parents, adjusted for all λs (`multiple_tests.step_down`)
    p_error: float | None  # that it is better calibrated than both


@dataclass(frozen=True, slots=True)
class Chosen:
    """λ*, by `lambda_star.choose` on `select`."""

    lam: str
    low: str  # λ* of the middle 95 % of the resamples
    high: str
    like_low: str  # the run of neighbouring λs that `report` cannot tell from it (`multiple_tests.indistinguishable`)
    like_high: str
    like: tuple[str, ...] = ()  # over several aligned checkpoints, where points have no neighbours: all those like it
