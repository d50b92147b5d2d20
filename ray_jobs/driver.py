"""The driver: the loop between the scheduler and the replicas of a cluster whose nodes come and go.

The loop is the only place that sees Ray's exceptions. Whatever goes wrong in a replica, the answer is the same: kill it,
start another where there is room, put its unit back. Ray's exception class does not tell whether an actor is gone (a killed
node shows first as `ActorUnavailableError`), and an engine that raised may hold half-written weights. A replica that no
longer answers its heartbeat, or takes much longer for a unit than others took, is treated as one that died.
"""

import errno
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from contract.errors import InputError, SweepError
from contract.events import Listener, Listeners
from contract.units import Receipt, Unit
from ray_jobs.cluster import Node, cluster, end_process, living_nodes
from ray_jobs.health import Deadlines
from ray_jobs.placement import Berth, check_room, free_berth, ranks_on_node, take
from ray_jobs.prometheus import Metrics
from ray_jobs.replica import Replica, SweepSpec
from ray_jobs.replica_handle import Slot
from ray_jobs.scheduler import Scheduler
from ray_jobs.splitting import Splitter
from ray_jobs.weight_ledger import WeightLedger
from ray_jobs.work import Source

MAX_BOOT_FAILURES = 2  # on a node in a row; no replica is started there any more
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # between looks at the cluster's nodes
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EREMOTEIO)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sweep ended."""

    done: int
    given_up: tuple[tuple[Unit, str], ...]  # with the last failure's reason
    interrupted: bool
    hardware: tuple[str, ...]


def run_units(
    spec: SweepSpec,
    units: Sequence[Unit],
    sources: Mapping[str, Source],
    replicas: int | None,
    listener: Listener,
    address: str | None = None,
    more: Callable[[], Sequence[Unit]] | None = None,
) -> Outcome:
    """Do every unit, or as many as can be done.

    Args:
        spec: shared by all replicas.
        units: what is left to do.
        sources: where the requests of each task come from.
        replicas: engines to run at the same time; None: as many as the cluster has room for, now and later.
        listener: told of every step.
        address: a running Ray cluster; None starts one on this machine and stops it at the end.
        more: asked whenever all units are done for further ones, which the same engines do; none ends the sweep. It is not
            asked after a unit was given up.

    Raises:
        InputError: the cluster cannot be reached, or has no room for the replicas; a unit's requests cannot be read.
        SweepError: Ray or the replicas do not start, or the tables cannot be written.
    """
    with cluster(address, spec.settings, replicas), _stop_signals() as stop:
        check_room(living_nodes(spec.settings, spec.accelerator_type), spec.settings, replicas, spec.accelerator_type)
        driver = _Driver(spec, units, sources, replicas, Listeners(listener, Metrics(units)))
        try:
            driver.loop(stop, more or tuple)
        finally:
            driver.shutdown()
        return Outcome(
            done=driver.done,
            given_up=tuple((unit, driver.reasons.get(unit.key, "")) for unit in driver.scheduler.given_up),
            interrupted=stop.is_set(),
            hardware=tuple(sorted(driver.hardware)),
        )


class _Driver:
    def __init__(
        self,
        spec: SweepSpec,
        units: Sequence[Unit],
        sources: Mapping[str, Source],
        replicas: int | None,
        listener: Listener,
    ) -> None:
        self.scheduler = Scheduler(units)
        self.done = 0
        self.hardware: set[str] = set()
        self.reasons: dict[tuple[str, str, int], str] = {}
        self._splitter = Splitter(lambda unit: sources[unit.task].documents(unit))
        self._spec = spec
        self._listener = listener
        self._replicas = replicas
        self._sources = {task: ray.put(source) for task, source in sources.items()}
        self._slots: list[Slot] = []
        self._vacant: list[Slot] = []  # whose replica is gone: its number is used again
        self._pending: dict[Any, Slot] = {}  # what each slot's actor is working on
        self._idle: list[Slot] = []
        self._nodes: dict[str, Node] = {}
        self._looked = float("-inf")
        self._boot_failures: Counter[str] = Counter()  # by node
        self._boot_reason = ""  # of the last one that failed
        self._said_fallback = self._said_no_room = False
        self._weights = WeightLedger()
        # A token sampled takes longer than one scored.
        self._deadlines = {task: Deadlines() for task in sources}

    @property
    def _left(self) -> int:
        return self.scheduler.left + self._splitter.open

    def loop(self, stop: threading.Event, more: Callable[[], Sequence[Unit]]) -> None:
        while not stop.is_set() and (self._left or self._goes_on(more)):
            self._listener.tick()
            if time.monotonic() - self._looked >= _LOOK_SECONDS:
                self._look()
            if not self._pending:
                time.sleep(_POLL_SECONDS)
                continue
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                self._settle(reference, self._pending.pop(reference))
            self._check_health()
            waiting, self._idle = self._idle, []
            for slot in waiting:
                self._hand_out(slot)

    def _goes_on(self, more: Callable[[], Sequence[Unit]]) -> bool:
        """Take on further units, if there are any."""
        units = () if self.scheduler.given_up else more()
        if units:
            self.scheduler = Scheduler(units)
            self._listener.grow(units)
            waiting, self._idle = self._idle, []
            for slot in waiting:
                self._hand_out(slot)
        return bool(units)

    def shutdown(self) -> None:
        """Kill every replica: a unit in flight is committed as a whole or not at all."""
        for slot in self._slots:
            slot.end()
        self._slots.clear()
        self._pending.clear()
        self._idle.clear()

    def _look(self) -> None:
        """See which nodes there are, and fill what room they have."""
        self._looked = time.monotonic()
        self._update_nodes()
        settings = self._spec.settings
        staying = [node for node in self._nodes.values() if not node.draining]
        usable = [node for node in staying if self._boot_failures[node.node_id] < MAX_BOOT_FAILURES]
        fit = free_berth(staying, {}, settings) is not None
        if fit and not free_berth(usable, {}, settings) and not self._slots:
            raise SweepError(
                f"no replica starts ({MAX_BOOT_FAILURES} tries in a row on each node). The last one said:\n"
                f"{self._boot_reason}"
            )
        if not fit and not self._slots and not self._said_no_room:
            self._listener.message("no node has room for a replica now: the sweep goes on when one joins")
        self._said_no_room = not fit and not self._slots
        taken: dict[str, set[int]] = {}
        for slot in self._slots:
            take(slot.berth, taken)
        wanted = min(self._replicas or self._left, self._left)
        while len(self._slots) < wanted and (berth := free_berth(usable, taken, settings)):
            take(berth, taken)
            self._boot(berth)

    def _update_nodes(self) -> None:
        before, self._nodes = self._nodes, living_nodes(self._spec.settings, self._spec.accelerator_type)
        for node_id, node in self._nodes.items():
            if node.draining and not (node_id in before and before[node_id].draining):
                self._listener.message(f"node {node.address} announces its end: it gets no new units")

    def _boot(self, berth: Berth) -> None:
        vacant = next((slot for slot in self._vacant if slot.node.node_id == berth[0].node.node_id), None)
        if vacant:
            self._vacant.remove(vacant)
        index = vacant.index if vacant else len(self._slots) + len(self._vacant)
        slot = Slot(index, berth, (vacant.generation if vacant else 0) + 1)
        ranks = [ranks_on_node(seat, self._spec.settings, self._replicas) for seat in berth]
        self._slots.append(slot)
        self._listener.replica_starting(slot.name)
        self._pending |= dict.fromkeys(slot.boot(Replica, self._spec, self._sources, ranks), slot)

    def _settle(self, reference: Any, slot: Slot) -> None:
        """Take in what one actor call came to."""
        try:
            result = ray.get(reference)
        except RayError as error:
            self._failed(slot, error, slot.node_of(reference))
            return
        slot.due = None
        if slot.booting:
            slot.booting = False
            for seat in slot.berth:
                self._boot_failures[seat.node.node_id] = 0
            self._started(slot, result.hardware, result.fallback)
        else:
            unit, slot.unit = slot.unit, None
            assert unit is not None
            if slot.splits:
                self._splitter.passed(slot.name)
            if result is not None:  # nothing comes of a part that was only tried
                self._committed(slot, unit, result)
        self._idle.append(slot)

    def _started(self, slot: Slot, hardware: str, fallback: str) -> None:
        self._listener.replica_ready(slot.name)
        self._listener.message(f"{slot.name} is ready on {hardware}")
        before = {kind for each in self.hardware for kind in each.split(" + ")}
        self.hardware.add(hardware)
        kinds = before | set(hardware.split(" + "))
        if len(before) < 2 <= len(kinds):
            self._listener.message(
                f"warning: replicas run on different kinds of hardware ({', '.join(sorted(kinds))}), whose numbers may "
                "differ in the last bits; each table says which it was"
            )
        if fallback and not self._said_fallback:
            self._said_fallback = True  # one reason for all: they run the same model on the same kind of machine
            self._listener.message(f"λ is switched through vLLM's own loader, which is slower: {fallback}")

    def _committed(self, slot: Slot, unit: Unit, receipt: Receipt) -> None:
        self._deadlines[unit.task].observe(time.monotonic() - slot.began, unit.cost)
        if self.scheduler.done(slot.name, unit):
            self.done += 1
        self._listener.unit_done(receipt)
        if conflict := self._weights.conflict(receipt):
            raise SweepError(conflict)

    def _hand_out(self, slot: Slot) -> None:
        if not self._stays(slot):
            self._listener.replica_lost(slot.name, failed=False, given_up=self._retire(slot, charge=False))
            return
        split = self._splitter.next(slot.name)
        slot.splits = split is not None
        unit, commits = split or (self.scheduler.next(slot.name), True)
        if unit is None:
            self._idle.append(slot)
            return
        slot.unit = unit
        slot.began = time.monotonic()
        slot.due = slot.began + self._deadlines[unit.task].allowed(unit.cost)
        if commits:
            self._listener.unit_started(slot.name, unit)
        self._pending[(slot.actor.run if commits else slot.actor.probe).remote(unit)] = slot

    def _stays(self, slot: Slot) -> bool:
        """Whether no node of a replica is gone or has announced its end."""
        nodes = [self._nodes.get(seat.node.node_id) for seat in slot.berth]
        return all(node is not None and not node.draining for node in nodes)

    def _check_health(self) -> None:
        """Send heartbeats, and give up replicas that answer none or are overdue."""
        now = time.monotonic()
        for slot in list(self._slots):
            try:
                hung = slot.check(now)
            except RayError as error:
                self._failed(slot, error)
                continue
            if hung:
                self._failed(slot, hung)

    def _failed(self, slot: Slot, error: RayError | str, on: Node | None = None) -> None:
        """A replica died, raised, or hangs (with the reason as text); where it spans nodes, this was seen `on` one."""
        where = on or slot.node
        reason = error if isinstance(error, str) else _reason(error)
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, InputError) and not slot.booting:  # on another replica it would be the same
            raise cause
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            raise SweepError(
                f"tables cannot be written to {self._spec.root}: {cause}. Nothing is half-written; make room and run "
                "the same command again"
            )
        self._update_nodes()
        preempted = isinstance(error, RayActorError) and getattr(error, "preempted", False)
        charge = self._stays(slot) and not preempted
        for member in slot.members:
            if isinstance(error, str) and member.pid is not None:
                end_process(member.seat.node.node_id, member.pid)
        if slot.booting:
            self._listener.message(f"{slot.name} did not start on {where.address}: {reason}")
        elif slot.unit is None:
            self._listener.message(f"{slot.name} is lost: {reason}")
        self._listener.replica_lost(slot.name, failed=True, given_up=self._retire(slot, charge, reason))
        if slot.booting and charge:
            self._boot_failures[where.node_id] += 1
            self._boot_reason = reason
        self._looked = float("-inf")  # a replacement at once

    def _retire(self, slot: Slot, charge: bool, reason: str = "") -> Unit | None:
        """Kill a replica, and put its unit back if it has one; return the unit if it is given up instead."""
        slot.end()
        self._slots.remove(slot)
        self._vacant.append(slot)
        self._pending = {reference: other for reference, other in self._pending.items() if other is not slot}
        self._idle = [other for other in self._idle if other is not slot]
        given_up = self.scheduler.lost(slot.name, charge)
        unit, slot.unit = slot.unit, None
        if unit is None:
            return None
        self.reasons[unit.key] = reason
        fate = "put back"
        if slot.splits:
            fate = "given up" if self._splitter.failed(slot.name, charge) else "being split"
        elif given_up:
            fate = "split, to find the requests that do it" if self._splitter.add(unit) else "given up"
        self._listener.message(
            f"{slot.name} failed at {unit.task} λ = {unit.lam} shard {unit.shard} "
            f"(rows {unit.first_row} to {unit.end_row - 1}), which is {fate}: {reason}"
        )
        return unit if fate == "given up" else None


def _reason(error: RayError) -> str:
    """Return what a person can use of a Ray error: the original exception's message, or the first line of Ray's."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error).strip().partition("\n")[0]


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that ends the loop; Ray installs handlers of its own before this."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
