"""A unit that failed on different replicas is split, to find the requests that kill an engine and to leave them out.

As the scheduler, this is plain Python: no ray, no clock, no input or output. A unit is halved, first between documents and
then between the requests of one document; halves that pass are cleared, halves that fail are halved again. A request is an
offender only when it failed alone on `MAX_KILLS` replicas, because a replica may die by chance. In the end the unit is run
once more without its offenders: its tables depend on the unit and on its offenders, and on nothing else.
"""

import dataclasses
from collections.abc import Callable, Sequence

from contract.units import Unit, UnitKey

REASON = "the engine failed on this request alone, on two replicas"
MAX_KILLS = 2  # a request that failed alone so often is an offender
MAX_OFFENDERS = 8  # a unit with more offenders, or with more than half of its rows, shows a fault of engine or model


@dataclasses.dataclass(slots=True)
class _Case:
    """One unit that is being split."""

    unit: Unit
    starts: Sequence[int]  # the first row of each document
    waiting: list[tuple[int, int]]  # the ranges of rows that are suspect; the last range is tried next
    offenders: list[int] = dataclasses.field(default_factory=list)
    kills: int = 0  # how often the single request that is tried next has failed alone


class Splitter:
    """Hands out parts of units that were given up; at most one part of a unit is in flight at a time."""

    def __init__(self, starts: Callable[[Unit], Sequence[int]]) -> None:
        """`starts(unit)` gives the first row of each document of a unit."""
        self._starts = starts
        self._cases: dict[UnitKey, _Case] = {}
        self._holds: dict[str, _Case] = {}
        self._hopeless = False  # whether a unit had too many offenders: splitting another would cost as many engines

    @property
    def open(self) -> int:
        """Return the number of units that are being split."""
        return len(self._cases)

    def add(self, unit: Unit) -> bool:
        """Begin to split a unit; return False, without splitting it, if an earlier unit had too many offenders."""
        if self._hopeless:
            return False
        case = _Case(unit, self._starts(unit), [])
        case.waiting = _halves(case, unit.first_row, unit.end_row) or [(unit.first_row, unit.end_row)]
        self._cases[unit.key] = case
        return True

    def next(self, replica: str) -> tuple[Unit, bool] | None:
        """Hand out a part of a unit to try, with False, or a unit without its offenders to commit, with True.

        Returns:
            None where there is nothing to do.
        """
        held = {case.unit.key for case in self._holds.values()}
        case = next((case for key, case in self._cases.items() if key not in held), None)
        if case is None:
            return None
        self._holds[replica] = case
        if case.waiting:
            first, end = case.waiting[-1]
            return dataclasses.replace(case.unit, first_row=first, end_row=end), False
        return dataclasses.replace(case.unit, offenders=tuple((row, REASON) for row in sorted(case.offenders))), True

    def passed(self, replica: str) -> None:
        """Take in that the replica did well what it was handed."""
        case = self._holds.pop(replica)
        if case.waiting:
            case.waiting.pop()
            case.kills = 0
        else:
            del self._cases[case.unit.key]

    def failed(self, replica: str, charge: bool = True) -> bool:
        """Take in that the replica failed at what it was handed; `charge` tells whether requests may be at fault.

        Returns:
            Whether the unit is given up for good.
        """
        case = self._holds.pop(replica)
        if not charge:
            return False
        if not case.waiting:
            del self._cases[case.unit.key]
            return True
        first, end = case.waiting[-1]
        if halves := _halves(case, first, end):
            case.waiting[-1:] = halves
            return False
        case.kills += 1
        if case.kills < MAX_KILLS:
            return False
        case.kills = 0
        case.waiting.pop()
        case.offenders.append(first)
        if len(case.offenders) > max(1, min(MAX_OFFENDERS, (case.unit.end_row - case.unit.first_row) // 2)):
            self._hopeless = True
            del self._cases[case.unit.key]
            return True
        return False


def _halves(case: _Case, first: int, end: int) -> list[tuple[int, int]]:
    """Return the two halves of a range of rows, the lower one last, or an empty list if the range is one request."""
    inner = [start for start in case.starts if first < start < end]
    if not inner:
        if end - first < 2:
            return []
        inner = list(range(first + 1, end))
    middle = inner[len(inner) // 2]
    return [(middle, end), (first, middle)]
