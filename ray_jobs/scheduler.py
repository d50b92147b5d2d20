"""The scheduler decides which unit a replica does next.

Invariants:
1. It is plain Python: no ray, no clock, no input or output, no randomness. The same calls give the same answers.
2. A unit is waiting, in flight at exactly one replica, done, or given up. Done is final.
3. Every unit is counted as done at most once, whoever reports it and however late: its table is committed, and a
   committed file is the record. A unit that is done is never handed out again.
4. A unit leaves the sweep only as done or as given up, and is given up only after charged failures on `max_attempts`
   different replicas, or `max_attempts + 1` charged failures in all.
5. A replica keeps its λ while units wait there that it may do (a λ switch costs time). Otherwise it takes the first λ in
   grid order that no replica is at; if there is none, it joins the λ where most work waits per replica already there.
6. A unit that failed on a replica is not handed to that replica again while there is a living one on which it has not.

Within a λ the unit of the largest cost goes first, so that small ones even out the end.
"""

import bisect
import heapq
import math
from collections.abc import Iterable, Sequence

from contract.units import Unit
from ray_jobs.units import coarse_first

_WAITING, _IN_FLIGHT, _DONE, _GIVEN_UP = range(4)


class _LambdaQueue:
    """The waiting units of one λ, and the number of replicas at that λ."""

    __slots__ = ("cost", "count", "heaps", "position", "replicas")

    def __init__(self, position: int) -> None:
        self.position = position  # the place of λ in the order in which λs are taken
        self.count = 0  # the number of waiting units
        self.cost = 0  # the cost of all waiting units
        self.replicas = 0  # the number of replicas at this λ, idle ones included
        # The heaps hold unit numbers, by the replicas that the units failed on; most units have failed nowhere. A heap may
        # still hold units that were done late: they are skipped when they come up.
        self.heaps: dict[frozenset[str], list[int]] = {}


class Scheduler:
    """Hands the units of a sweep to replicas.

    The driver calls `next` for every replica that has nothing to do, and reports each unit with exactly one of `done`,
    `failed` or `lost`. A replica joins by asking for the first time and must leave by `lost`. After `failed` and `lost`
    the driver asks again for all replicas that were told None, as a unit may have been put back.
    """

    def __init__(self, units: Iterable[Unit], max_attempts: int = 2, order: Sequence[str] | None = None) -> None:
        """`order` names the λs in the order in which they are taken; without it that is `units.coarse_first`.

        Raises:
            ValueError: two units have the same key, a unit's λ is not in `order`, or `max_attempts` is below 1.
        """
        # Inside the scheduler a unit is known by its number. Numbers follow the order of handing out within a λ.
        self._units = sorted(units, key=lambda unit: -unit.cost)
        self._number = {unit.key: number for number, unit in enumerate(self._units)}
        if len(self._number) < len(self._units):
            raise ValueError("two units have the same task, λ and shard: give each unit once")
        if max_attempts < 1:
            raise ValueError(f"max_attempts is {max_attempts}: give 1 or more")
        lambdas = {unit.engine_lam for unit in self._units}
        ranked = coarse_first(lambdas) if order is None else order
        if missing := lambdas.difference(ranked):
            raise ValueError(f"order does not name the λs {', '.join(sorted(missing))}: name every λ of the units")
        self._max_attempts = max_attempts
        self._queues = {lam: _LambdaQueue(position) for position, lam in enumerate(ranked)}
        self._open: list[_LambdaQueue] = []  # the λs with waiting units, in the order in which λs are taken
        self._state = bytearray(len(self._units))  # the state of each unit: 0 is _WAITING
        self._left = len(self._units)
        self._given_up: dict[int, Unit] = {}
        self._at: dict[str, str | None] = {}  # the λ of every living replica
        self._holds: dict[str, int] = {}  # the unit that each replica was handed and has not reported
        self._failed_on: dict[int, frozenset[str]] = {}
        self._charges: dict[int, list[str]] = {}
        for number in range(len(self._units)):
            self._wait(number)

    @property
    def left(self) -> int:
        """Return the number of units that are neither done nor given up."""
        return self._left

    @property
    def in_flight(self) -> int:
        """Return the number of replicas that were handed a unit and have not reported it."""
        return len(self._holds)

    @property
    def finished(self) -> bool:
        return self._left == 0

    @property
    def given_up(self) -> list[Unit]:
        """Return the units that failed too often, in the order in which they were given up."""
        return list(self._given_up.values())

    def current(self, replica: str) -> str | None:
        """Return the λ that the replica is at; None before its first unit and after it was lost."""
        return self._at.get(replica)

    def next(self, replica: str) -> Unit | None:
        """Hand out a unit, or None if there is none for this replica now (the class says when to ask again).

        Raises:
            ValueError: the replica has not reported the unit it was handed before.
        """
        if replica in self._holds:
            raise ValueError(f"{replica} has a unit in flight: report it done, failed or lost before asking for more")
        own = self._at.setdefault(replica, None)
        heap = None if own is None else self._heap(self._queues[own], replica)
        if heap is None:
            heap = self._elsewhere(replica)
        if heap is None:
            return None
        number = heapq.heappop(heap)
        unit = self._units[number]
        if unit.engine_lam != own:
            if own is not None:
                self._queues[own].replicas -= 1
            self._queues[unit.engine_lam].replicas += 1
            self._at[replica] = unit.engine_lam
        self._unwait(number)
        self._state[number] = _IN_FLIGHT
        self._holds[replica] = number
        return unit

    def done(self, replica: str, unit: Unit) -> bool:
        """Count a unit whose table is committed; late reports of replicas that were thought lost are welcome.

        Returns:
            Whether the unit counts now for the first time.
        """
        number = self._number[unit.key]
        if self._holds.get(replica) == number:
            del self._holds[replica]
        state = self._state[number]
        if state == _DONE:
            return False
        if state == _WAITING:
            self._unwait(number)  # it stays in its heap, to be skipped
        if state == _GIVEN_UP:
            del self._given_up[number]
        else:
            self._left -= 1
        self._state[number] = _DONE
        return True

    def failed(self, replica: str, unit: Unit, charge: bool = True) -> bool:
        """Put back a unit that the replica could not do while it lives on; a replica that does not hold it is ignored.

        `charge` tells whether the failure may be the unit's fault and counts towards giving it up.

        Returns:
            Whether the unit is given up.
        """
        number = self._number[unit.key]
        if self._holds.get(replica) != number:
            return False
        del self._holds[replica]
        return self._put_back(number, replica, charge)

    def lost(self, replica: str, charge: bool = True) -> bool:
        """Forget a replica that died or was retired, and put back its unit in flight, if any.

        Returns:
            Whether that unit is given up.
        """
        own = self._at.pop(replica, None)
        if own is not None:
            self._queues[own].replicas -= 1
        number = self._holds.pop(replica, None)
        return number is not None and self._put_back(number, replica, charge)

    def _put_back(self, number: int, replica: str, charge: bool) -> bool:
        if self._state[number] == _DONE:  # a late report of the replica that had it before can have made it done
            return False
        if charge:
            charges = self._charges.setdefault(number, [])
            charges.append(replica)
            if len(set(charges)) >= self._max_attempts or len(charges) > self._max_attempts:
                self._state[number] = _GIVEN_UP
                self._given_up[number] = self._units[number]
                self._left -= 1
                return True
        if charge or replica in self._at:  # a replica that is gone through no fault of the unit proves nothing
            self._failed_on[number] = self._failed_on.get(number, frozenset()) | {replica}
        self._state[number] = _WAITING
        self._wait(number)
        return False

    def _wait(self, number: int) -> None:
        unit = self._units[number]
        queue = self._queues[unit.engine_lam]
        if not queue.count:
            bisect.insort(self._open, queue, key=lambda other: other.position)
            queue.heaps.clear()  # they hold nothing but units that are done
        queue.count += 1
        queue.cost += unit.cost
        heapq.heappush(queue.heaps.setdefault(self._failed_on.get(number, frozenset()), []), number)

    def _unwait(self, number: int) -> None:
        unit = self._units[number]
        queue = self._queues[unit.engine_lam]
        queue.count -= 1
        queue.cost -= unit.cost
        if not queue.count:
            self._open.remove(queue)

    def _heap(self, queue: _LambdaQueue, replica: str) -> list[int] | None:
        """Return the heap whose first unit is the replica's next one at this λ."""
        best = None
        for failed_on, heap in queue.heaps.items():
            while heap and self._state[heap[0]] != _WAITING:
                heapq.heappop(heap)
            tried = replica in failed_on and not self._at.keys() <= failed_on
            if heap and not tried and (best is None or heap[0] < best[0]):
                best = heap
        return best

    def _elsewhere(self, replica: str) -> list[int] | None:
        best, most = None, -1.0
        for queue in self._open:
            # A λ that no replica is at comes before all others.
            load = queue.cost / queue.replicas if queue.replicas else math.inf
            if load > most and (heap := self._heap(queue, replica)):
                best, most = heap, load
                if load == math.inf:
                    break
        return best
