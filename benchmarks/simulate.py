"""This simulates a cluster for the scheduler: replicas of uneven speed switch λ, die, come back and join late.

It plays the driver's part by the scheduler's rules and keeps books of its own, so that a unit that the scheduler loses
or does twice shows up whatever the scheduler says of itself. Times are simulated seconds.
"""

import bisect
import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence

from contract.units import Unit, UnitKey
from ray_jobs.scheduler import Scheduler

LATE_BY = 30.0  # after so many seconds comes the receipt of a replica that was thought to be lost


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """This says what the replicas are like. A unit lasts cost × its λ's part of it × a log-normal factor of mean 1."""

    starts: Sequence[float]  # when each replica joins
    sigma: float = 0.3  # the standard deviation of the factor's logarithm
    switch_seconds: float = 2.0
    mean_life: float = math.inf  # the mean of the seconds until a replica is lost
    down_seconds: float = 60.0  # the seconds until a lost replica is back
    failure_rate: float = 0.0  # chance that a unit fails, its replica living on
    poison: frozenset[UnitKey] = frozenset()  # units that always fail
    charge_rate: float = 1.0  # chance that a failure or a loss is charged to the unit
    late_rate: float = 0.0  # chance that the unit of a lost replica turns out to be committed
    # The part of their cost that units of a λ take: 1 where nothing stands. Schedulers do not know it.
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    makespan: float
    bound: float  # seconds that no schedule beats; it means nothing where replicas are lost or units fail
    longest: float  # the seconds of the longest unit
    switches: int
    losses: int  # how often replicas were lost
    failures: int  # how often units failed on living replicas
    done: int
    given_up: int
    lost: int  # units neither done nor given up
    duplicated: int  # units counted twice, handed out at two places at once, or handed out again when done
    finished_at: dict[str, float]  # when the last unit of each λ was done


def simulate(units: Sequence[Unit], scheduler: Scheduler, cluster: Cluster) -> Outcome:
    """Run a sweep to its end, or until nothing can happen any more."""
    return _Run(units, scheduler, cluster).outcome()


def lower_bound(starts: Iterable[float], work: float, longest: float, lambdas: int, switch_seconds: float) -> float:
    """Return a makespan that no schedule can beat, in seconds.

    With the k replicas that join first, whose time until T adds up to k·T − Σ starts, the work must fit and so must the
    least switches: one to each λ, and one by each replica. The bound is that of the best k, or the longest unit.
    """
    ordered = sorted(starts)
    shares = (
        (work + switch_seconds * max(lambdas, count) + begun) / count
        for count, begun in enumerate(itertools.accumulate(ordered), start=1)
    )
    return max(min(shares), ordered[0] + switch_seconds + longest)


def coarse_frontier_at(finished_at: dict[str, float], grid: Sequence[str], step: int) -> float:
    """Return when a coarse frontier was there: both ends of the ascending grid complete, no gap above `step` points."""
    place = {lam: index for index, lam in enumerate(grid)}
    complete: list[int] = []
    for lam in sorted(finished_at, key=lambda lam: finished_at[lam]):
        bisect.insort(complete, place[lam])
        gaps = (high - low for low, high in itertools.pairwise(complete))
        if complete[0] == 0 and complete[-1] == len(grid) - 1 and max(gaps, default=0) <= step:
            return finished_at[lam]
    return math.inf


class _Run:
    def __init__(self, units: Sequence[Unit], scheduler: Scheduler, cluster: Cluster) -> None:
        self.units, self.scheduler, self.cluster = units, scheduler, cluster
        self.random = random.Random(cluster.seed)
        self.events: list[tuple[float, int, str, str, Unit | None]] = []
        self.tickets = itertools.count()
        self.now = 0.0
        self.up: dict[str, int] = {}  # the ticket of the end of its life, for each living replica
        self.busy: dict[str, tuple[Unit, int]] = {}  # each replica's unit, and the ticket of that unit's end
        self.idle: dict[str, None] = {}  # replicas that were told None
        self.lam: dict[str, str] = {}
        self.holder: dict[UnitKey, str] = {}
        self.counted: set[UnitKey] = set()
        self.remaining: dict[str, int] = {}
        for unit in units:
            self.remaining[unit.lam] = self.remaining.get(unit.lam, 0) + 1
        self.finished_at: dict[str, float] = {}
        self.work = self.longest = 0.0
        self.switches = self.losses = self.failures = self.duplicated = 0

    def outcome(self) -> Outcome:
        cluster = self.cluster
        for number, start in enumerate(cluster.starts):
            self.post(start, "join", f"replica-{number}")
        # Without the limit a scheduler that loses a unit would be asked for ever.
        for _ in range(50 * (len(self.units) + len(cluster.starts)) + 100_000):
            if not self.events or self.scheduler.finished:
                break
            self.now, ticket, kind, replica, unit = heapq.heappop(self.events)
            getattr(self, f"on_{kind}")(replica, unit, ticket)
        given_up = {unit.key for unit in self.scheduler.given_up}
        return Outcome(
            makespan=self.now,
            bound=lower_bound(cluster.starts, self.work, self.longest, len(self.remaining), cluster.switch_seconds),
            longest=self.longest,
            switches=self.switches,
            losses=self.losses,
            failures=self.failures,
            done=len(self.counted),
            given_up=len(given_up),
            lost=sum(unit.key not in self.counted and unit.key not in given_up for unit in self.units),
            duplicated=self.duplicated + len(given_up & self.counted),
            finished_at=self.finished_at,
        )

    def post(self, time: float, kind: str, replica: str, unit: Unit | None = None) -> int:
        ticket = next(self.tickets)
        heapq.heappush(self.events, (time, ticket, kind, replica, unit))
        return ticket

    def chance(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def on_join(self, replica: str, _unit: None, _ticket: int) -> None:
        self.up[replica] = -1
        if self.cluster.mean_life < math.inf:
            life = self.random.expovariate(1 / self.cluster.mean_life)
            self.up[replica] = self.post(self.now + life, "loss", replica)
        self.ask(replica)

    def ask(self, replica: str) -> None:
        unit = self.scheduler.next(replica)
        if unit is None:
            self.idle[replica] = None
            return
        if unit.key in self.counted or unit.key in self.holder:
            self.duplicated += 1
        self.holder[unit.key] = replica
        sigma = self.cluster.sigma
        cost = unit.cost * self.cluster.parts.get(unit.lam, 1.0)
        seconds = cost * self.random.lognormvariate(-sigma * sigma / 2, sigma)
        self.work += seconds
        self.longest = max(self.longest, seconds)
        if self.lam.get(replica) != unit.lam:
            self.lam[replica] = unit.lam
            self.switches += 1
            seconds += self.cluster.switch_seconds
        fails = unit.key in self.cluster.poison or self.chance(self.cluster.failure_rate)
        ticket = self.post(self.now + seconds, "failure" if fails else "end", replica, unit)
        self.busy[replica] = unit, ticket

    def on_end(self, replica: str, unit: Unit, ticket: int) -> None:
        if self.busy.get(replica) != (unit, ticket):
            return  # the replica was lost meanwhile
        del self.busy[replica]
        self.holder.pop(unit.key)
        self.count(replica, unit)
        self.ask(replica)

    def on_failure(self, replica: str, unit: Unit, ticket: int) -> None:
        if self.busy.get(replica) != (unit, ticket):
            return
        del self.busy[replica]
        self.holder.pop(unit.key)
        self.failures += 1
        self.scheduler.failed(replica, unit, self.chance(self.cluster.charge_rate))
        self.ask(replica)
        self.wake()

    def on_loss(self, replica: str, _unit: None, ticket: int) -> None:
        if self.up.get(replica) != ticket:
            return
        self.losses += 1
        del self.up[replica]
        self.idle.pop(replica, None)
        self.lam.pop(replica, None)
        if replica in self.busy:
            unit, _ = self.busy.pop(replica)
            self.holder.pop(unit.key)
            if unit.key not in self.cluster.poison and self.chance(self.cluster.late_rate):
                self.post(self.now + LATE_BY, "late", replica, unit)
        self.scheduler.lost(replica, self.chance(self.cluster.charge_rate))
        # Some replicas come back under their own name, and some as a replica that was never seen before.
        name = replica if self.chance(0.5) else f"{replica}'"
        self.post(self.now + self.cluster.down_seconds, "join", name)
        self.wake()

    def on_late(self, replica: str, unit: Unit, _ticket: int) -> None:
        self.count(replica, unit)

    def wake(self) -> None:
        idle, self.idle = self.idle, {}
        for replica in idle:
            self.ask(replica)

    def count(self, replica: str, unit: Unit) -> None:
        if not self.scheduler.done(replica, unit):
            return
        if unit.key in self.counted:
            self.duplicated += 1
            return
        self.counted.add(unit.key)
        self.remaining[unit.lam] -= 1
        if not self.remaining[unit.lam]:
            self.finished_at[unit.lam] = self.now
