"""Which share of its cost a unit really computes: costs are the most that it can take, and what it takes changes with λ.

An output may end at its tenth token at one λ and never at another, and what prompts begin with alike is computed once.
"""

from contract.points import order

Place = tuple[str, str]  # what the units of a task are called, and their canonical point


class Shares:
    """Learns from units that are done; at λs where none is, those of the nearest λ of the task count."""

    def __init__(self) -> None:
        self._sums: dict[Place, tuple[int, int]] = {}  # costs, and the tokens that were computed
        self._cost = self._computed = 0
        self._places: dict[Place, Place | None] = {}  # where units count that are like those of a place

    def __bool__(self) -> bool:
        """Tell whether anything is known."""
        return self._cost > 0

    def add(self, task: str, lam: str, cost: int, computed: int) -> None:
        """Take in units of a task at a λ that are done."""
        if cost <= 0:
            return
        before = self._sums.get((task, lam))
        if before is None:
            self._places.clear()
        costs, tokens = before or (0, 0)
        self._sums[task, lam] = costs + cost, tokens + computed
        self._cost += cost
        self._computed += computed

    def of(self, task: str, lam: str, otherwise: float | None = None) -> float:
        """Return the share of a unit of a task at a λ, or of the nearest λ where one is done.

        Where no unit of the task is done, it is `otherwise`; without that it is the share of all units that are done.
        """
        place = task, lam
        if place not in self._places:
            self._places[place] = self._nearest(place)
        known = self._places[place]
        if known is not None:
            cost, computed = self._sums[known]
            return computed / cost
        return otherwise if otherwise is not None else self._computed / self._cost if self._cost else 1.0

    def _nearest(self, place: Place) -> Place | None:
        """Return the nearest of some places of the same task; of two that are as near the one of the larger share."""
        task, here = place[0], order(place[1])
        near = [
            (sum(abs(one - other) for one, other in zip(here, order(lam), strict=True)), lam)
            for name, lam in self._sums
            if name == task
        ]
        if not near:
            return None
        least = min(distance for distance, _ in near)
        lams = [lam for distance, lam in near if distance == least]
        return task, max(lams, key=lambda lam: self._sums[task, lam][1] / self._sums[task, lam][0])
