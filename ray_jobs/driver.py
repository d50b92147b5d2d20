"""The driver: a Ray cluster, its replicas, and the loop between them and the scheduler.

The loop is the only place that sees Ray's exceptions. Whatever goes wrong in a replica, the answer is the same: kill it,
start another in its slot, put its unit back. Ray's exception class does not tell whether an actor is gone (a killed node
shows first as `ActorUnavailableError`), and an engine that raised may hold half-written weights.
"""

import errno
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from lambdasweep.errors import InputError, SweepError
from ray_jobs.replica import Replica, SweepSpec
from ray_jobs.scheduler import Scheduler
from ray_jobs.sources import Source
from ray_jobs.units import Receipt, Unit
from ray_jobs.weights import WeightLedger
from serve.settings import available_cores

MAX_BOOT_FAILURES = 2  # in a row, without any replica having started since
_POLL_SECONDS = 0.5


class Progress(Protocol):
    """What the driver tells while it runs."""

    def message(self, text: str) -> None: ...

    def unit_started(self, replica: str, unit: Unit) -> None: ...

    def unit_done(self, receipt: Receipt) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sweep ended."""

    done: int
    given_up: tuple[tuple[Unit, str], ...]  # with the last failure's reason
    interrupted: bool
    hardware: tuple[str, ...]


@dataclass(slots=True)
class _Slot:
    """A place for a replica: its cores, and the actor that has them now."""

    index: int
    cores: list[int]
    generation: int = 0
    actor: Any = None
    name: str = ""
    unit: Unit | None = None
    booting: bool = False


def run_units(
    spec: SweepSpec,
    units: Sequence[Unit],
    sources: Mapping[str, Source],
    replicas: int | None,
    progress: Progress,
    address: str | None = None,
) -> Outcome:
    """Do every unit, or as many as can be done.

    Args:
        spec: shared by all replicas.
        units: what is left to do.
        sources: where the requests of each task come from.
        replicas: engines to run at the same time; None: as many as the cluster has room for.
        progress: told of every step.
        address: a running Ray cluster; None starts one on this machine and stops it at the end.

    Raises:
        InputError: the cluster cannot be reached, or has no room for the replicas; a unit's requests cannot be read.
        SweepError: Ray or the replicas do not start, or the tables cannot be written.
    """
    with _cluster(address, spec, replicas), _stop_signals() as stop:
        driver = _Driver(spec, units, sources, _room(spec, replicas, len(units)), progress)
        try:
            driver.loop(stop)
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
        self, spec: SweepSpec, units: Sequence[Unit], sources: Mapping[str, Source], replicas: int, progress: Progress
    ) -> None:
        self.scheduler = Scheduler(units)
        self.done = 0
        self.hardware: set[str] = set()
        self.reasons: dict[tuple[str, str, int], str] = {}
        self._spec = spec
        self._progress = progress
        self._sources = {task: ray.put(source) for task, source in sources.items()}
        self._pending: dict[Any, _Slot] = {}  # what each slot's actor is working on
        self._idle: list[_Slot] = []
        self._boot_failures = 0
        self._said_fallback = False
        self._weights = WeightLedger()
        self._ranks_on_node = min(replicas, _room_on_a_node(spec)) * spec.settings.tensor_parallel
        per_replica = spec.settings.threads * spec.settings.tensor_parallel
        self._resources = _resources(spec)
        cores = available_cores()
        for index in range(replicas):
            # More replicas than cores (several nodes on one machine, in tests) share them in turn.
            taken = [cores[(index * per_replica + offset) % len(cores)] for offset in range(per_replica)]
            self._boot(_Slot(index, taken))

    def loop(self, stop: threading.Event) -> None:
        while not self.scheduler.finished and not stop.is_set():
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                self._settle(reference, self._pending.pop(reference))
            waiting, self._idle = self._idle, []
            for slot in waiting:
                self._hand_out(slot)

    def shutdown(self) -> None:
        """Kill every replica: a unit in flight is committed as a whole or not at all."""
        for slot in [*self._pending.values(), *self._idle]:
            ray.kill(slot.actor)
        self._pending.clear()
        self._idle.clear()

    def _boot(self, slot: _Slot) -> None:
        slot.generation += 1
        slot.name = f"replica-{slot.index}" + (f".{slot.generation}" if slot.generation > 1 else "")
        actor_class = ray.remote(max_restarts=0, max_task_retries=0, **self._resources)(Replica)
        slot.actor = actor_class.remote(slot.name, self._spec, slot.cores, self._sources)
        slot.booting = True
        self._pending[slot.actor.start.remote(self._ranks_on_node)] = slot

    def _settle(self, reference: Any, slot: _Slot) -> None:
        """Take in what one actor call came to."""
        try:
            result = ray.get(reference)
        except RayError as error:
            self._failed(slot, error)
            return
        if slot.booting:
            slot.booting = False
            self._boot_failures = 0
            self.hardware.add(result.hardware)
            self._progress.message(f"{slot.name} is ready on {result.hardware}")
            if result.fallback and not self._said_fallback:
                self._said_fallback = True  # one reason for all: they run the same model on the same kind of machine
                self._progress.message(f"λ is switched through vLLM's own loader, which is slower: {result.fallback}")
        else:
            assert slot.unit is not None
            if self.scheduler.done(slot.name, slot.unit):
                self.done += 1
            slot.unit = None
            self._progress.unit_done(result)
            if conflict := self._weights.conflict(result):
                raise SweepError(conflict)
        self._idle.append(slot)

    def _hand_out(self, slot: _Slot) -> None:
        unit = self.scheduler.next(slot.name)
        if unit is None:
            self._idle.append(slot)
            return
        slot.unit = unit
        self._progress.unit_started(slot.name, unit)
        self._pending[slot.actor.run.remote(unit)] = slot

    def _failed(self, slot: _Slot, error: RayError) -> None:
        reason = _reason(error)
        ray.kill(slot.actor)
        if slot.booting:
            self._boot_failures += 1
            self._progress.message(f"{slot.name} did not start: {reason}")
            if self._boot_failures >= MAX_BOOT_FAILURES:
                raise SweepError(
                    f"no replica starts ({self._boot_failures} tries in a row). The last one said:\n{reason}"
                )
        else:
            assert slot.unit is not None
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, InputError):  # on another replica it would be the same
                raise cause
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise SweepError(
                    f"tables cannot be written to {self._spec.root}: {cause}. Nothing is half-written; make room and run "
                    "the same command again"
                )
            charge = not (isinstance(error, RayActorError) and getattr(error, "preempted", False))
            self.reasons[slot.unit.key] = reason
            given_up = self.scheduler.lost(slot.name, charge)
            fate = "given up" if given_up else "put back"
            unit = slot.unit
            self._progress.message(
                f"{slot.name} failed at {unit.task} λ = {unit.lam} shard {unit.shard}, which is {fate}: {reason}"
            )
            slot.unit = None
        if not self.scheduler.finished:
            self._boot(slot)


def _resources(spec: SweepSpec) -> dict[str, int]:
    """What one replica asks of Ray."""
    settings = spec.settings
    if settings.device == "cpu":
        return {"num_cpus": settings.threads * settings.tensor_parallel}
    return {"num_gpus": settings.tensor_parallel}


def _room_on_a_node(spec: SweepSpec) -> int:
    """Return how many replicas the largest node has room for."""
    ((name, each),) = _resources(spec).items()
    kind = {"num_cpus": "CPU", "num_gpus": "GPU"}[name]
    return max(1, int(max(node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]) // each))


def _room(spec: SweepSpec, replicas: int | None, units: int) -> int:
    """Return how many replicas to start: what is asked for, at most one a unit, and no more than have room."""
    ((name, each),) = _resources(spec).items()
    have = ray.cluster_resources().get({"num_cpus": "CPU", "num_gpus": "GPU"}[name], 0)
    room = int(have // each)
    if room < (replicas or 1):
        raise InputError(
            f"the Ray cluster has {have:.0f} {name.removeprefix('num_')} and a replica takes {each}: there is room for "
            f"{room} replicas; ask for fewer replicas or ranks, or give it more"
        )
    return min(replicas or room, units)


def _reason(error: RayError) -> str:
    """Return what a person can use of a Ray error: the original exception's message, or the first line of Ray's."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error).strip().partition("\n")[0]


@contextmanager
def _cluster(address: str | None, spec: SweepSpec, replicas: int | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            resources: dict[str, Any] = {}
            if spec.settings.device == "cpu":
                # Replicas that the user asked for beyond the cores share them.
                wanted = (replicas or 0) * spec.settings.threads * spec.settings.tensor_parallel
                resources["num_cpus"] = max(len(available_cores()), wanted)
            ray.init(address="local", include_dashboard=False, **resources, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises bare Exceptions, when a busy machine starts it too slowly, say
        if address is not None:
            raise InputError(f"no Ray cluster can be reached at {address}: check --address ({error})") from None
        raise SweepError(f"Ray did not start on this machine: try again when it is less busy ({error})") from None
    try:
        yield
    finally:
        ray.shutdown()


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
