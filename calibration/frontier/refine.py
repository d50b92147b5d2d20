"""Where to score next, so that a coarse grid finds the λ* that a dense one would.

λ* is the choice of `lambda_star.choose`, so this is about that and nothing else: which gaps between neighbouring λs hide it,
and whether the documents could tell the λs in such a gap apart.
"""

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.frontier.curve import Curve, Track
from calibration.frontier.lambda_star import choices, choose
from contract.grid import MAX_DECIMALS, canonical

ROUND = 4  # λs between two looks at the tables: engines that would wait have work, and few λs are chosen blindly

# Of λ*'s standard error: a grid that fine adds less than 0.3 % to it (s² + (s / 4)² / 12).
_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to score next."""

    lambdas: tuple[str, ...]  # canonical, ascending; none where more λs would tell nothing
    resolution: float  # no gap narrower than this is split


def suggest(curve: Curve, count: int, taken: Collection[str] = ()) -> Suggestion:
    """Return up to `count` λs between those of a curve, where λ* can still move.

    In every resample λ* lies at a λ of the grid, and the λ* of a denser grid beside it: on the side where the calibration
    error falls, by the slope of the parabola through it and its neighbours. (Where only accuracy kept a neighbour of
    lower error from being chosen, that is the side on which it was lost.) The gap there gets that resample's vote, and the
    sample itself votes for half. The gap with the most votes times its width is split first, at the roundest number of its
    middle half; each of the parts has half of its votes. A gap narrower than a quarter of λ*'s standard error is not split:
    the documents cannot tell the λs in it apart.

    A function of its arguments alone: the same tables give the same λs.

    Args:
        curve: a task, or the average of several.
        count: at most so many.
        taken: λs that are not to be suggested, in or out of the curve.
    """
    grid = [Decimal(lam) for lam in curve.lambdas]
    places = choices(curve.select)
    values = np.array([float(lam) for lam in grid])
    resolution = max(_FRACTION * float(values[places].std()) if len(places) else 0.0, 10.0**-MAX_DECIMALS)
    gaps = [
        (float(votes) * float(high - low), low, high)
        for votes, low, high in zip(_votes(curve.select, values), grid[:-1], grid[1:], strict=True)
    ]
    found: list[Decimal] = []
    while gaps and len(found) < count:
        weight, low, high = gap = max(gaps, key=lambda one: (one[0], -one[1]))
        gaps.remove(gap)
        middle = _roundest(low, high)
        if weight <= 0 or float(high - low) < resolution or middle is None or canonical(middle) in taken:
            continue
        found.append(middle)
        share = weight / (2 * float(high - low))
        gaps += [(share * float(middle - low), low, middle), (share * float(high - middle), middle, high)]
    return Suggestion(tuple(canonical(lam) for lam in sorted(found)), resolution)


def _votes(track: Track, values: Floats) -> Floats:
    """[L − 1] how likely λ* of a denser grid is in each gap."""
    votes = np.zeros(max(len(values) - 1, 0))
    if len(values) < 2:
        return votes
    place = choose(track)
    drawn = choices(track)
    np.add.at(votes, _side(track.error[:, None], values, np.array([place])), 1.0)
    if len(drawn):
        np.add.at(votes, _side(track.resampled_error, values, drawn), 1.0 / len(drawn))
    share: Floats = votes / votes.sum()
    return share


def _side(error: Floats, values: Floats, place: Ints) -> Ints:
    """[L, R] errors and [R] places of λ* → [R] the gap beside it into which the error falls."""
    column = np.arange(error.shape[1])
    width, slope = np.diff(values), np.diff(error, axis=0) / np.diff(values)[:, None]
    left, right = np.maximum(place - 1, 0), np.minimum(place, len(width) - 1)  # gaps; the same one at an end
    rise = slope[left, column] * width[right] + slope[right, column] * width[left]
    gap: Ints = np.where(rise > 0, left, right)
    return gap


def _roundest(low: Decimal, high: Decimal) -> Decimal | None:
    """Return the number of the fewest digits in the middle half of a gap, the nearest to its middle of several."""
    middle, quarter = (low + high) / 2, (high - low) / 4
    for digits in range(MAX_DECIMALS + 1):
        for step in (Decimal(5).scaleb(-digits), Decimal(1).scaleb(-digits)):
            near = round(middle / step) * step
            if abs(near - middle) <= quarter:
                return near
    return None
