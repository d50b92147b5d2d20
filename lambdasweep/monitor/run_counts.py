"""RunCounts counts what a run has: it counts units by file names, and reads each receipt once.

It can be refreshed again and again: even with a million units, a refresh only lists the folders of tables that are begun and
not complete, and opens receipts that it has not read. The first reading of a large run's receipts takes several refreshes.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contract.records import Asked, Begun, EachRecord, Plan, read_asked, read_sweep
from contract.rundir import RunDir
from contract.units import Receipt, UnitKey
from lambdasweep.monitor.heartbeat import DriverView


@dataclass(slots=True)
class TaskCount:
    """One task of the plan and its committed units."""

    shards: int
    lambdas: tuple[str, ...]
    done: Counter[str] = field(default_factory=Counter)  # the number of committed units, by λ

    @property
    def total(self) -> int:
        return self.shards * len(self.lambdas)


@dataclass(slots=True)
class Spent:
    """The sums over all receipts that were read."""

    receipts: int = 0
    seconds: float = 0.0  # the time that replicas spent on units, which engine starts are no part of
    requests: int = 0
    tokens_scheduled: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)  # the number of requests over all λs, by task

    def add(self, receipt: Receipt) -> None:
        """Count a receipt."""
        self.receipts += 1
        self.seconds += receipt.switch_seconds + receipt.score_seconds + receipt.commit_seconds
        self.requests += receipt.requests
        self.tokens_scheduled += receipt.tokens_scheduled
        self.tokens_cached += receipt.tokens_cached
        self.tokens_generated += receipt.tokens_generated
        self.quarantined[receipt.task] += receipt.quarantined


class RunCounts(DriverView):
    """Counts the units and receipts that a run has.

    Args:
        run: the run's directory.
        seconds: receipts are read for at most about so long.
        told: a function that is given each receipt that is read.
        begun: the run's records, if they were read already.

    Raises:
        InputError: `run` holds no sweep.
    """

    def __init__(
        self,
        run: RunDir,
        seconds: float = 0.0,
        told: Callable[[Receipt], None] | None = None,
        begun: Begun | None = None,
    ) -> None:
        super().__init__(run)
        self._told = told
        self.sweep = (begun and begun.sweep) or read_sweep(run)
        self.plan: Plan = {}
        self.each: EachRecord | None = None  # the command of the user that measures everything; None in a sweep
        self.tasks: dict[str, TaskCount] = {}
        self.spent = Spent()
        self.spent_on: dict[str, Spent] = {}  # the same by what completes a unit: tokens, generations or rescored
        self._seen: dict[tuple[str, str], set[int]] = {}  # the shards seen at each task and λ that is not complete
        self._unread: deque[UnitKey] = deque()
        self._kinds: dict[str, str] = {}  # what completes a unit, by what the unit's task is called
        self.refresh(seconds, begun.asked if begun else None)

    @property
    def total(self) -> int:
        return sum(task.total for task in self.tasks.values())

    @property
    def done(self) -> int:
        return sum(task.done.total() for task in self.tasks.values())

    @property
    def unit_of_cost(self) -> str:
        return "core" if self.sweep.engine["device"] == "cpu" else "GPU"

    @property
    def cost(self) -> float:
        """Return the GPU-hours, or core-hours on a CPU, that the receipts tell: seconds × ranks, on a CPU × threads."""
        engine = self.sweep.engine
        ranks = engine["tensor_parallel"] * engine.get("pipeline_parallel", 1)
        each = ranks * (engine["threads"] if engine["device"] == "cpu" else 1)
        return self.spent.seconds * float(each) / 3600

    @property
    def in_work(self) -> list[Sequence[Any]]:
        """Return the task, λ and shard of every unit that a replica scores now."""
        replicas = self.driver.replicas.values() if self.driver and self.driver_runs else ()
        return [replica["unit"] for replica in replicas if replica["unit"]]

    def refresh(self, seconds: float, asked: Asked | None = None) -> None:
        """Count again, and read new receipts for at most about so many seconds.

        Args:
            seconds: how long.
            asked: the run's plan.json, if it was read just now; it is read again at each refresh, because it grows.

        Raises:
            InputError: the plan is gone.
        """
        asked = asked or read_asked(self.run)
        self.plan, self.each = asked.plan, asked.each
        parts = [(len(entry.shards), *part) for task, entry in self.plan.items() for part in entry.parts(task)]
        for shards, name, kind, lambdas in parts:
            self._kinds[name] = kind
            task = self.tasks.setdefault(name, TaskCount(shards, ()))
            task.lambdas = lambdas
            for lam in self.run.begun(name, [lam for lam in task.lambdas if task.done[lam] < task.shards], kind):
                there, seen = self.run.committed(name, lam, kind), self._seen.setdefault((name, lam), set())
                self._unread.extend((name, lam, shard) for shard in sorted(there - seen))
                seen |= there
                task.done[lam] = len(there)
                if len(there) >= task.shards:
                    del self._seen[name, lam]
        self.look_at_driver()
        self.read_receipts(seconds)

    def read_receipts(self, seconds: float) -> None:
        """Read receipts of units that were counted, for at most about so many seconds."""
        until = time.monotonic() + seconds
        for _ in range(len(self._unread)):
            if time.monotonic() >= until:
                return
            unit = self._unread.popleft()
            receipt = self.run.receipt(*unit)
            if receipt is None:
                self._unread.append(unit)  # a receipt is written after its table, or never if the replica was killed
                continue
            self.spent.add(receipt)
            if self._told is not None:
                self._told(receipt)
            self.spent_on.setdefault(self._kinds[receipt.task], Spent()).add(receipt)
