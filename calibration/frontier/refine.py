"""This module says which λs to score next, so that a coarse grid finds the λ* that a dense one would.

λ* is what `lambda_star.choose` chooses. Only two questions matter for it: which gaps between neighbouring λs may hide λ*,
and whether the documents could tell the λs in such a gap apart.
"""

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.frontier.curve import Curve, Track, stacked
from calibration.frontier.lambda_star import MARGIN, choose, choose_in_resamples
from contract.grid import MAX_DECIMALS, canonical

# So many λs are scored between two looks at the tables: engines have work meanwhile, and few λs are chosen blindly.
ROUND = 4

# No gap narrower than this fraction of λ*'s standard error is split: a grid that fine adds less than 0.3 % to the standard
# error (s² + (s / 4)² / 12).
_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The λs to score next."""

    lambdas: tuple[str, ...]  # the canonical λs, ascending; none where more λs would tell nothing
    resolution: float  # the width of the narrowest gap that is still split


def suggest(curve: Curve, count: int, taken: Collection[str] = (), margin: float = MARGIN) -> Suggestion:
    """Return up to `count` λs between those of a curve, where λ* can still move.

    In every resample λ* lies at a λ of the grid, and the λ* of a denser grid lies beside it, on the side where the
    NLL falls, by the slope of the parabola through λ* and its neighbours. (If only accuracy kept a neighbour of lower NLL
    from being chosen, this is the side of that neighbour.) The gap on that side gets the resample's vote, and
    the sample itself has as many votes as all resamples. The gap with the most votes times its width is split first, at the
    roundest number of its middle half; each of the parts has half of the votes. A gap narrower than a quarter of λ*'s
    standard error is not split: the documents cannot tell the λs in it apart.

    The result depends on the arguments alone: the same tables give the same λs.

    Args:
        curve: the curve of a task, or of pooled tasks.
        count: the most λs to return.
        taken: λs that must not be suggested, whether the curve has them or not.
        margin: as `lambda_star.choose` takes it.
    """
    grid = [Decimal(lam) for lam in curve.lambdas]
    track = curve.tracks["all"]
    places = choose_in_resamples(track, margin)
    values = np.array([float(lam) for lam in grid])
    resolution = max(_FRACTION * float(values[places].std()) if len(places) else 0.0, 10.0**-MAX_DECIMALS)
    gaps = [
        (float(votes) * float(high - low), low, high)
        for votes, low, high in zip(_votes(track, values, margin), grid[:-1], grid[1:], strict=True)
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


def _votes(track: Track, values: Floats, margin: float) -> Floats:
    """Return [L − 1] how likely it is that each gap holds the λ* of a denser grid."""
    votes = np.zeros(max(len(values) - 1, 0))
    if len(values) < 2:
        return votes
    place = choose(track, margin)
    drawn = choose_in_resamples(track, margin)
    _, (nll, resampled) = stacked(track.accuracy, track.nll)
    np.add.at(votes, _side(nll[:, None], values, np.array([place])), 1.0)
    if len(drawn):
        np.add.at(votes, _side(resampled, values, drawn), 1.0 / len(drawn))
    share: Floats = votes / votes.sum()
    return share


def _side(nll: Floats, values: Floats, place: Ints) -> Ints:
    """Return the gap [R] beside λ* into which the NLL falls, from NLLs [L, R] and places [R] of λ*."""
    column = np.arange(nll.shape[1])
    width, slope = np.diff(values), np.diff(nll, axis=0) / np.diff(values)[:, None]
    left, right = np.maximum(place - 1, 0), np.minimum(place, len(width) - 1)  # both are the same gap at an end
    rise = slope[left, column] * width[right] + slope[right, column] * width[left]
    gap: Ints = np.where(rise > 0, left, right)
    return gap


def _roundest(low: Decimal, high: Decimal) -> Decimal | None:
    """Return the number with the fewest digits in the middle half of a gap; of several, the nearest to the middle."""
    middle, quarter = (low + high) / 2, (high - low) / 4
    for digits in range(MAX_DECIMALS + 1):
        for step in (Decimal(5).scaleb(-digits), Decimal(1).scaleb(-digits)):
            near = round(middle / step) * step
            if abs(near - middle) <= quarter:
                return near
    return None
