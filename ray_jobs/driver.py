"""The driver is the loop between the scheduler and the replicas of a cluster whose nodes come and go.

The loop is the only place that sees Ray's exceptions. Whatever goes wrong in a replica, the answer is the same: kill it,
start another where there is room, put its unit back. Ray's exception class does not tell whether an actor is gone (a killed
node shows first as `ActorUnavailableError`), and an engine that raised may hold half-written weights. A replica that no
longer answers its heartbeat, or takes much longer for a unit than others took, is treated as one that died.
"""

import errno
import math
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

from contract.errors import InputError, SweepError, WrongWeightsError
from contract.events import Listener, Listeners
from contract.units import Receipt, Unit
from ray_jobs.cluster import Node, cluster, end_process, living_nodes
from ray_jobs.health import Deadlines
from ray_jobs.patience import Patience
from ray_jobs.placement import Placement, check_room, find_placement, occupy, ranks_on_node
from ray_jobs.prometheus import PrometheusMetrics
from ray_jobs.replica import Replica, Started, SweepSpec
from ray_jobs.replica_handle import ReplicaHandle
from ray_jobs.scheduler import Scheduler
from ray_jobs.splitting import Splitter
from ray_jobs.weight_ledger import ProbeLedger, WeightLedger
from ray_jobs.work import Source
from serve.last_words import lacks_memory

MAX_BOOT_FAILURES = 2  # a node where so many replicas in a row did not start gets no more of them
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # the time between two looks at the cluster's nodes
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EREMOTEIO)


@dataclass(frozen=True, slots=True)
class DriverResult:
    """Says how a sweep ended."""

    done: int
    given_up: tuple[tuple[Unit, str], ...]  # each unit that was given up, with the reason of its last failure
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
) -> DriverResult:
    """Do every unit, or as many as can be done.

    Args:
        spec: what every replica of the sweep needs to know.
        units: the units that are left to do.
        sources: the source of each task's requests, by the task's name.
        replicas: how many engines run at the same time; None runs as many as the cluster has room for, now and later.
        listener: a listener that is told of every step.
        address: the address of a running Ray cluster; None starts one on this machine and stops it at the end.
        more: a function that is called whenever all units are done; the same engines do the further units that it returns,
            and the sweep ends when it returns none. It is not called after a unit was given up.

    Raises:
        InputError: the cluster cannot be reached or has no room for the replicas, or a unit's requests cannot be read.
        SweepError: Ray or the replicas do not start, or the tables cannot be written.
    """
    listener.message("starting Ray" if address is None else f"connecting to the Ray cluster at {address}")
    # A signal while Ray starts waits until Ray can be ended in order: its processes, and then this one.
    with _stop_signals() as stop, cluster(address, spec.settings, replicas, listener.message, stop):
        if stop.is_set():
            return DriverResult(0, (), interrupted=True, hardware=())
        check_room(living_nodes(spec.settings, spec.accelerator_type), spec.settings, replicas, spec.accelerator_type)
        listener.message("starting engines")
        driver = _Driver(spec, units, sources, replicas, Listeners(listener, PrometheusMetrics(units)))
        try:
            driver.loop(stop, more or tuple)
        finally:
            driver.shutdown()
        return DriverResult(
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
        self._listeners = listener
        self._replicas = replicas
        self._sources = {task: ray.put(source) for task, source in sources.items()}
        self._handles: list[ReplicaHandle] = []
        self._ended: list[ReplicaHandle] = []  # the replicas that are gone: their numbers are used again
        self._pending: dict[Any, ReplicaHandle] = {}  # the replica that each unanswered actor call went to
        self._idle: list[ReplicaHandle] = []
        self._nodes: dict[str, Node] = {}
        self._looked = float("-inf")
        self._boot_failures: Counter[str] = Counter()  # how many replicas in a row did not start, by node
        self._patience = Patience()
        self._boot_reason = ""  # the reason why the last replica that did not start failed
        self._said_fallback = self._said_no_room = False
        self._weights, self._probes = WeightLedger(), ProbeLedger(spec.probes)
        for receipt in spec.receipts:
            self._check_weights(receipt)
        # Each task has its own deadlines, because sampling a token takes longer than scoring one.
        self._deadlines = {task: Deadlines() for task in sources}

    @property
    def _left(self) -> int:
        return self.scheduler.left + self._splitter.open

    def loop(self, stop: threading.Event, more: Callable[[], Sequence[Unit]]) -> None:
        while not stop.is_set() and (self._left or self._goes_on(more)):
            self._listeners.tick()
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
            for handle in waiting:
                self._hand_out(handle)

    def _goes_on(self, more: Callable[[], Sequence[Unit]]) -> bool:
        """Ask for further units, and tell whether there are any."""
        units = () if self.scheduler.given_up else more()
        if units:
            self.scheduler = Scheduler(units)
            self._listeners.grow(units)
            waiting, self._idle = self._idle, []
            for handle in waiting:
                self._hand_out(handle)
        return bool(units)

    def shutdown(self) -> None:
        """Kill every replica: a unit in flight is committed as a whole or not at all."""
        for handle in self._handles:
            handle.end()
        self._handles.clear()
        self._pending.clear()
        self._idle.clear()

    def _look(self) -> None:
        """See which nodes there are, and start replicas where they have room."""
        self._looked = time.monotonic()
        self._update_nodes()
        settings = self._spec.settings
        staying = [node for node in self._nodes.values() if not node.draining]
        usable = [node for node in staying if self._boot_failures[node.node_id] < MAX_BOOT_FAILURES]
        fit = find_placement(staying, {}, settings) is not None
        if fit and not find_placement(usable, {}, settings) and not self._handles:
            raise SweepError(
                f"no replica starts ({MAX_BOOT_FAILURES} tries in a row on each node). The last one said:\n"
                f"{self._boot_reason}"
            )
        if not fit and not self._handles and not self._said_no_room:
            self._listeners.message("no node has room for a replica now: the sweep goes on when one joins")
        self._said_no_room = not fit and not self._handles
        occupied: dict[str, set[int]] = {}
        for handle in self._handles:
            occupy(handle.placement, occupied)
        wanted = min(self._replicas or self._left, self._left)
        ready = [node for node in usable if not self._patience.waits(node.node_id, self._looked)]
        while len(self._handles) < wanted and (placement := find_placement(ready, occupied, settings)):
            occupy(placement, occupied)
            self._boot(placement)

    def _update_nodes(self) -> None:
        before, self._nodes = self._nodes, living_nodes(self._spec.settings, self._spec.accelerator_type)
        for node_id, node in self._nodes.items():
            if node.draining and not (node_id in before and before[node_id].draining):
                self._listeners.message(f"node {node.address} announces its end: it gets no new units")

    def _boot(self, placement: Placement) -> None:
        ended = next((handle for handle in self._ended if handle.node.node_id == placement[0].node.node_id), None)
        if ended:
            self._ended.remove(ended)
        index = ended.index if ended else len(self._handles) + len(self._ended)
        handle = ReplicaHandle(index, placement, (ended.generation if ended else 0) + 1)
        ranks = [ranks_on_node(share, self._spec.settings, self._replicas) for share in placement]
        handle.began = time.monotonic()
        self._handles.append(handle)
        self._listeners.replica_starting(handle.name)
        self._pending |= dict.fromkeys(handle.boot(Replica, self._spec, self._sources, ranks), handle)

    def _settle(self, reference: Any, handle: ReplicaHandle) -> None:
        """Take in the result or the error of one actor call."""
        try:
            result = ray.get(reference)
        except RayError as error:
            self._failed(handle, error, handle.node_of(reference))
            return
        handle.due = None
        if handle.booting:
            handle.booting = False
            for share in handle.placement:
                self._boot_failures[share.node.node_id] = 0
                self._patience.started(share.node.node_id)
            self._started(handle, result)
        else:
            unit, handle.unit = handle.unit, None
            assert unit is not None
            if handle.splits:
                self._splitter.passed(handle.name)
            if result is not None:  # a part of a unit that was only tried has no receipt
                self._committed(handle, unit, result)
        self._idle.append(handle)

    def _started(self, handle: ReplicaHandle, started: Started) -> None:
        hardware, fallback = started.hardware, started.fallback
        is_eager = bool(self._spec.settings.extra.get("enforce_eager", self._spec.settings.device == "cpu"))
        told = started.hardware_of_ranks, started.probe_digest
        if conflict := self._probes.conflict(handle.name, started.host, *told, is_eager):
            raise SweepError(conflict)
        self._listeners.replica_ready(handle.name)
        self._listeners.message(f"{handle.name} is ready on {hardware}")
        before = {kind for each in self.hardware for kind in each.split(" + ")}
        self.hardware.add(hardware)
        kinds = before | set(hardware.split(" + "))
        if len(before) < 2 <= len(kinds):
            self._listeners.message(
                f"warning: replicas run on different kinds of hardware ({', '.join(sorted(kinds))}), whose numbers may "
                "differ in the last bits; each table says which it was"
            )
        if fallback and not self._said_fallback:
            self._said_fallback = True  # all replicas have the same reason: they run one model on one kind of machine
            self._listeners.message(f"λ is switched through vLLM's own loader, which is slower: {fallback}")

    def _committed(self, handle: ReplicaHandle, unit: Unit, receipt: Receipt) -> None:
        self._deadlines[unit.task].observe(time.monotonic() - handle.began, unit, receipt)
        if self.scheduler.done(handle.name, unit):
            self.done += 1
        self._listeners.unit_done(receipt)
        self._check_weights(receipt)

    def _check_weights(self, receipt: Receipt) -> None:
        if conflict := self._weights.conflict(receipt):
            raise SweepError(conflict)

    def _hand_out(self, handle: ReplicaHandle) -> None:
        if not self._stays(handle):
            self._listeners.replica_lost(handle.name, failed=False, given_up=self._retire(handle, charge=False))
            return
        split = self._splitter.next(handle.name)
        handle.splits = split is not None
        unit, commits = split or (self.scheduler.next(handle.name), True)
        if unit is None:
            self._idle.append(handle)
            return
        handle.unit = unit
        handle.began = time.monotonic()
        handle.due = handle.began + self._deadlines[unit.task].allowed(unit.cost)
        if commits:
            self._listeners.unit_started(handle.name, unit)
        self._pending[(handle.actor.run if commits else handle.actor.probe).remote(unit)] = handle

    def _stays(self, handle: ReplicaHandle) -> bool:
        """Tell whether all nodes of a replica are there and none has announced its end."""
        nodes = [self._nodes.get(share.node.node_id) for share in handle.placement]
        return all(node is not None and not node.draining for node in nodes)

    def _check_health(self) -> None:
        """Send heartbeats, and give up the replicas that do not answer them or are overdue."""
        now = time.monotonic()
        for handle in list(self._handles):
            try:
                hung = handle.check(now)
            except RayError as error:
                self._failed(handle, error)
                continue
            if hung:
                self._failed(handle, hung)

    def _failed(self, handle: ReplicaHandle, error: RayError | str, on: Node | None = None) -> None:
        """Replace a replica that died or raised (`error` is Ray's) or that hangs (`error` is the reason in words).

        `on` is the node where this was seen, if the replica is on several.
        """
        where = on or handle.node
        reason = error if isinstance(error, str) else _reason(error)
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, InputError) and not handle.booting:  # another replica would fail in the same way
            raise cause
        if isinstance(cause, WrongWeightsError):
            raise SweepError(str(cause))
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            raise SweepError(
                f"tables cannot be written to {self._spec.root}: {cause}. Nothing is half-written; make room and run "
                "the same command again"
            )
        self._update_nodes()
        preempted = isinstance(error, RayActorError) and getattr(error, "preempted", False)
        charge = self._stays(handle) and not preempted
        for member in handle.members:
            if isinstance(error, str) and member.pid is not None:
                end_process(member.share.node.node_id, member.pid)
        waits = None
        if handle.booting and charge:
            waits = self._patience.wait(where.node_id, reason, handle.began, time.monotonic())
        if waits is not None:
            self._listeners.message(
                f"{handle.name} did not start on {where.address}, where the memory of a replica that ended is not free yet: "
                f"another one is started in {math.ceil(waits)} s"
            )
        elif handle.booting:
            self._listeners.message(f"{handle.name} did not start on {where.address}: {reason}")
        elif handle.unit is None:
            self._listeners.message(f"{handle.name} is lost: {reason}")
        given_up = self._retire(handle, charge, reason)
        self._listeners.replica_lost(handle.name, failed=waits is None, given_up=given_up)
        if handle.booting and charge and waits is None:
            self._boot_failures[where.node_id] += 1
            self._boot_reason = reason
        self._looked = float("-inf")  # so the next round looks for room for a replacement at once

    def _retire(self, handle: ReplicaHandle, charge: bool, reason: str = "") -> Unit | None:
        """Kill a replica and put back the unit it has, if any; return the unit if it is given up instead."""
        handle.end()
        if not (handle.booting and lacks_memory(reason)):  # a replica that found no memory leaves none
            for share in handle.placement:
                self._patience.ended(share.node.node_id, time.monotonic())
        self._handles.remove(handle)
        self._ended.append(handle)
        self._pending = {reference: other for reference, other in self._pending.items() if other is not handle}
        self._idle = [other for other in self._idle if other is not handle]
        given_up = self.scheduler.lost(handle.name, charge)
        unit, handle.unit = handle.unit, None
        if unit is None:
            return None
        self.reasons[unit.key] = reason
        fate = "put back"
        if handle.splits:
            fate = "given up" if self._splitter.failed(handle.name, charge) else "being split"
        elif given_up:
            fate = "split, to find the requests that do it" if self._splitter.add(unit) else "given up"
        self._listeners.message(
            f"{handle.name} failed at {unit.task} λ = {unit.lam} shard {unit.shard} "
            f"(rows {unit.first_row} to {unit.end_row - 1}), which is {fate}: {reason}"
        )
        return unit if fate == "given up" else None


def _reason(error: RayError) -> str:
    """Return the part of a Ray error that helps a person: the original exception's message, or the first line of Ray's."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error).strip().partition("\n")[0]


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that ends the loop."""
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
