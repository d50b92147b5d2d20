"""Units are the work of a sweep; this module knows which of them are left, and the order in which λs are taken."""

import heapq
import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from contract.points import is_parent, order
from contract.units import Unit


class TaskPlan(NamedTuple):
    """Holds one task's part of the plan."""

    shards: Sequence[Sequence[int]]  # [first_row, end_row] of each shard
    lambdas: Sequence[str]  # the canonical λs
    costs: Sequence[int]  # the cost of each shard


def units_for(tasks: Mapping[str, TaskPlan], committed: Callable[[str, str], Container[int]]) -> list[Unit]:
    """Return the units of the plan that are not committed, sorted by task, λ and shard.

    `committed(task, λ)` gives the numbers of the shards whose table is there (`RunDir.committed`); it is called once for
    each task and λ.

    Raises:
        ValueError: a task has more or fewer costs than shards.
    """
    left = []
    for task in sorted(tasks):
        shards, lambdas, costs = tasks[task]
        for lam in sorted(lambdas, key=order):
            there = committed(task, lam)
            for shard, ((first_row, end_row), cost) in enumerate(zip(shards, costs, strict=True)):
                if shard not in there:
                    left.append(Unit(task, lam, shard, first_row, end_row, cost))
    return left


def coarse_first(lambdas: Iterable[str]) -> list[str]:
    """Return λs in such an order that every beginning of the list covers the whole grid about evenly.

    The parents come first, then the ends of the grid, then again and again the middle of the widest stretch
    (counted in grid points, the lowest one where several are equally wide): a coarse frontier is visible early.
    """
    grid = sorted(set(lambdas), key=lambda lam: (order(lam), lam))
    if not grid:
        return []
    taken = dict.fromkeys([*(place for place, lam in enumerate(grid) if is_parent(lam)), 0, len(grid) - 1])
    fixed = sorted(taken)
    stretches = [(low - high, low, high) for low, high in itertools.pairwise(fixed)]
    heapq.heapify(stretches)
    sequence = list(taken)
    while stretches:
        _, low, high = heapq.heappop(stretches)
        if high - low > 1:
            middle = (low + high) // 2
            sequence.append(middle)
            heapq.heappush(stretches, (low - middle, low, middle))
            heapq.heappush(stretches, (middle - high, middle, high))
    return [grid[index] for index in sequence]
