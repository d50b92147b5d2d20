"""Units are the work of a sweep; this module knows which of them are left, and the order in which λs are taken."""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from contract.points import is_parent, order

UnitKey = tuple[str, str, int]  # the task, the canonical λ and the shard, which name a unit, its table and its receipt


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """One shard of one task at one λ: the unit of work."""

    task: str
    lam: str  # the canonical point
    shard: int
    first_row: int  # the first row in the task's request table
    end_row: int  # the row after the last one
    cost: int  # an estimate of the work, in tokens or requests, which is used for balancing only
    offenders: tuple[tuple[int, str], ...] = ()  # the rows that go straight into quarantine, and the reason of each

    @property
    def key(self) -> UnitKey:
        return self.task, self.lam, self.shard


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """A replica returns a receipt once a unit's table is committed; receipts are no part of the results."""

    task: str
    lam: str
    shard: int
    requests: int  # the unit's requests, including those that were quarantined
    quarantined: int
    tokens_scheduled: int  # the tokens that the engine computed
    tokens_cached: int  # the tokens that came from the engine's prefix cache
    switch_seconds: float  # 0 where the replica was at this λ already
    score_seconds: float
    commit_seconds: float
    replica: str
    host: str
    hardware: str
    route: str  # how λ was switched: by reload, or resident, with the tier of the parents
    weight_digests: tuple[str, ...]  # the digest of each rank's live weights
    tokens_generated: int = 0  # the tokens that were sampled, which are computed ones too

    @property
    def key(self) -> UnitKey:
        return self.task, self.lam, self.shard

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as a dict that `json.dumps` takes."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Receipt":
        return Receipt(**(value | {"weight_digests": tuple(value["weight_digests"])}))


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
