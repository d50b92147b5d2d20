"""This module learns which share of its cost a unit really computes: a cost is the most that a unit can take, and the share
changes with λ.

An output may end at its tenth token at one λ and never at another, and what prompts begin with alike is computed once.
"""

from collections.abc import Mapping
from typing import Any

from contract.points import order

Place = tuple[str, str]  # what the units of a task are called, and their canonical point


class Shares:
    """Learns from units that are done; at λs where none is, those of the nearest λ of the task count."""

    def __init__(self) -> None:
        # By task and λ: costs, and the tokens that were computed.
        self._sums: dict[str, dict[str, tuple[int, int]]] = {}
        self._cost = self._computed = 0
        self._nearest: dict[str, dict[str, str]] = {}  # by task, for λs asked for: the nearest λ where a unit is done

    def __bool__(self) -> bool:
        """Tell whether anything is known."""
        return self._cost > 0

    def add(self, task: str, lam: str, cost: int, computed: int) -> None:
        """Take in units of a task at a λ that are done."""
        if cost <= 0:
            return
        of_task = self._sums.setdefault(task, {})
        if lam not in of_task:
            self._nearest.pop(task, None)
        costs, tokens = of_task.get(lam, (0, 0))
        of_task[lam] = costs + cost, tokens + computed
        self._cost += cost
        self._computed += computed

    def of(self, task: str, lam: str, otherwise: float | None = None) -> float:
        """Return the share of a unit of a task at a λ, or of the nearest λ where one is done.

        Where no unit of the task is done, it is `otherwise`; without that it is the share of all units that are done.
        """
        of_task = self._sums.get(task)
        if of_task:
            nearest = self._nearest.setdefault(task, {})
            if lam not in nearest:
                nearest[lam] = _nearest(lam, of_task)
            cost, computed = of_task[nearest[lam]]
            return computed / cost
        return otherwise if otherwise is not None else self._computed / self._cost if self._cost else 1.0


def _nearest(lam: str, sums: Mapping[str, tuple[int, int]]) -> str:
    """Return the nearest of some λs; of two that are as near the one of the larger share."""
    here = order(lam)

    def distance(other: str) -> tuple[Any, float]:
        cost, computed = sums[other]
        return sum(abs(one - two) for one, two in zip(here, order(other), strict=True)), -computed / cost

    return min(sums, key=distance)
