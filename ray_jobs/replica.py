"""A replica: the Ray actor that owns one vLLM engine and commits the units it is handed; and followers on other nodes."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import EngineError
from contract.rundir import commit_json, commit_table
from contract.units import Receipt, Unit
from merge.line import STRAIGHT, Line
from merge.remote_parent import Parent, open_here
from ray_jobs.placement import Berth
from ray_jobs.work import Done, Source, Work
from serve.multinode import Span, free_port
from serve.settings import EngineSettings, available_cores

_LAST_LINES = 20  # of standard error


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """What every replica of a sweep needs to know."""

    root: str
    """Of the run directory: an absolute path or a URL; replicas write their own tables there."""
    base: Parent
    aligned: Mapping[str, Parent] | None
    """By name; the only one's is "". None: `base` alone is scored, as it is."""
    settings: EngineSettings
    identity: dict[str, Any]
    """Stored in every table: fingerprints, engine, versions."""
    line: Line = STRAIGHT
    """Between the parents."""
    parents: str = "auto"
    """Where ranks keep the parents: one of `serve.switch.tiers.CHOICES`. Changes no number."""
    accelerator_type: str | None = None
    """Ray's name for the kind of GPU to use; None: any."""

    def open_parents(self) -> tuple[Path, dict[str, Path] | None]:
        """Return the directories of base and of the aligned checkpoints by name, on this machine.

        Raises:
            PairError: a parent is not to be had here, or is another one.
        """
        aligned = {name: open_here(parent) for name, parent in self.aligned.items()} if self.aligned else None
        return open_here(self.base), aligned


@dataclass(frozen=True, slots=True)
class Started:
    """What a replica tells once its engine runs."""

    hardware: str
    fallback: str  # why λ is switched through vLLM's own loader; empty where it is not


class Replica:
    """Runs inside a process of its own; not thread-safe.

    The driver makes it an actor with `ray.remote`, calls `start` once and `run` for each unit. When either raises, the
    engine's weights may be half-written: the driver kills the actor and starts another. Only `ping` may be called at the
    same time, from another thread.
    """

    def __init__(self, name: str, spec: SweepSpec, berth: Berth, sources: dict[str, Any]) -> None:
        """`sources` maps tasks to references of their `Source`; the actor is on the first seat of `berth`."""
        self._cores = settle_in(spec.settings, berth, 0)
        self._berth = berth
        self._name = name
        self._spec = spec
        self._references = sources
        self._sources: dict[str, Source] = {}
        self._engine: Any = None

    def ping(self) -> int:
        """Answer with the process's id, also while the engine computes."""
        return os.getpid()

    def meeting_port(self) -> int:
        """Return a free port of this node, where the ranks of an engine over several nodes meet."""
        return free_port()

    def start(self, ranks_on_node: int, port: int | None) -> Started:
        """Start the engine.

        Args:
            ranks_on_node: those of all replicas that may share this machine's memory.
            port: `meeting_port`, where the engine spans nodes.

        Raises:
            EngineError: with vLLM's reason, and the last lines that its processes wrote.
            PairError: a parent is not to be had on this machine, or is another one here.
        """
        from serve.engine import Engine

        spec = self._spec
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, self._cores)  # this thread's; the engine's are born by it
        base, aligned = spec.open_parents()
        span = Span(len(self._berth), 0, self._berth[0].node.address, port) if port is not None else None
        try:
            self._engine = Engine(base, aligned, spec.settings, spec.parents, ranks_on_node, spec.line, span)
        except EngineError as error:
            raise EngineError(f"{error}{last_words()}") from error
        return Started(self._engine.hardware, self._engine.fallback)

    def probe(self, part: Unit) -> None:
        """Do some rows of a unit and throw away what comes of it.

        Raises:
            EngineError: the switch or the engine failed.
            InputError: the requests cannot be read.
        """
        self._engine.switch(part.lam)
        self._work(part)

    def run(self, unit: Unit) -> Receipt:
        """Do a unit and commit its tables; that of its source's `kind` is the completion record and is written last.

        Raises:
            EngineError: the switch or the engine failed.
            InputError: the unit's requests cannot be read.
            OSError: the table could not be written, because the disk is full, say.
        """
        began = time.monotonic()
        switched = self._engine.lam != unit.lam
        self._engine.switch(unit.lam)
        at_lambda = time.monotonic()
        work, done = self._work(unit)
        scored = time.monotonic()

        identity = {
            **self._spec.identity,
            **work.identity,
            "hardware": self._engine.hardware,
            "lam": unit.lam,
            "rows": [unit.first_row, unit.end_row],
            "shard": unit.shard,
        }
        source = self._source(unit.task)
        if done.quarantine.num_rows:
            commit_table(source.path("quarantine", unit), done.quarantine, identity)
        else:  # an earlier try may have left out what went well now, and ended before its table was committed
            source.path("quarantine", unit).unlink(missing_ok=True)
        commit_table(source.path(source.kind, unit), done.table, identity)
        receipt = Receipt(
            *unit.key,
            requests=done.requests,
            quarantined=done.quarantine.num_rows,
            tokens_scheduled=done.computed,
            tokens_cached=done.cached,
            switch_seconds=at_lambda - began if switched else 0.0,
            score_seconds=scored - at_lambda,
            commit_seconds=time.monotonic() - scored,
            replica=self._name,
            host=socket.gethostname(),
            hardware=self._engine.hardware,
            route=self._engine.route,
            weight_digests=self._engine.digests,
            tokens_generated=done.generated,
        )
        commit_json(source.path("receipts", unit), receipt.to_json())
        return receipt

    def _work(self, unit: Unit) -> tuple[Work, Done]:
        work = self._source(unit.task).open(unit)
        return work, work.run(self._engine, unit.lam)

    def _source(self, task: str) -> Source:
        if task not in self._sources:
            import ray

            self._sources[task] = ray.get(self._references[task])  # a table in it is zero-copy, from the node's store
        return self._sources[task]


class Follower:
    """The part of a replica on another node than its engine: an actor that runs that node's ranks and no more.

    It runs inside a process of its own, for as long as the replica lives. Only `ping` may be called at the same time.
    """

    def __init__(self, spec: SweepSpec, berth: Berth, number: int) -> None:
        """`number` is that of this actor's seat."""
        self._cores = settle_in(spec.settings, berth, number)
        self._spec, self._berth, self._number = spec, berth, number

    def ping(self) -> int:
        """Answer with the process's id."""
        return os.getpid()

    def follow(self, ranks_on_node: int, port: int) -> None:
        """Run this node's ranks until the driver kills the actor.

        Raises:
            EngineError: they did not start, or one of them ended.
            PairError: a parent is not to be had on this machine, or is another one here.
        """
        from serve.engine import llm_arguments
        from serve.multinode import Span, follow

        spec = self._spec
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, self._cores)
        base, aligned = spec.open_parents()
        span = Span(len(self._berth), self._number, self._berth[0].node.address, port)
        try:
            follow(llm_arguments(base, aligned, spec.settings, spec.parents, ranks_on_node, spec.line, span))
        except EngineError as error:
            raise EngineError(f"{error} ({self._berth[self._number].node.address}){last_words()}") from error


def settle_in(settings: EngineSettings, berth: Berth, number: int) -> list[int]:
    """Set the environment of the actor on seat `number`, before anything imports torch; return its cores."""
    from serve.engine import process_environment

    seat = berth[number]
    cores = available_cores()  # of the node that this process runs on
    each = settings.threads * settings.tensor_parallel
    # More replicas than cores (several nodes on one machine, in tests) share them in turn.
    mine = [cores[(seat.first * each + offset) % len(cores)] for offset in range(seat.stages * each)]
    os.environ.update(process_environment(settings, mine, len(berth), seat.node.address))
    return mine


def last_words() -> str:
    """Return the end of what this process and its children wrote to standard error: vLLM's reason is often only there."""
    try:
        log = Path(os.readlink("/proc/self/fd/2"))
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.is_file() else []
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines if line.strip())
