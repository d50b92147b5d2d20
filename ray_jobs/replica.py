"""A replica is the Ray actor that owns one vLLM engine and commits the units it is handed; followers are on other nodes."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.commit import commit_json, commit_table
from contract.errors import EngineError, WrongWeightsError
from contract.units import Receipt, Unit
from merge.checkpoint import Checkpoint, files_of
from merge.file_states import check_unchanged
from merge.line import STRAIGHT, Line
from merge.remote_parent import RemoteParent, open_here
from ray_jobs.placement import Placement
from ray_jobs.work import Source, UnitResult, Work
from serve.last_words import telling_lines
from serve.multinode import NodePlace, free_port
from serve.settings import EngineSettings, available_cores

_LAST_LINES = 20  # lines of standard error that an error message repeats


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """Holds what every replica of a sweep needs to know."""

    root: str
    """The run directory, an absolute path or a URL; replicas write their own tables there."""
    base: RemoteParent
    aligned: Mapping[str, RemoteParent] | None
    """The aligned checkpoints by name; the name of an only one is "". With None, `base` alone is scored, as it is."""
    settings: EngineSettings
    identity: dict[str, Any]
    """What is stored in every table: fingerprints, engine, versions."""
    line: Line = STRAIGHT
    """The line between the parents."""
    parents: str = "auto"
    """The place where ranks keep the parents, one of `serve.switch.tiers.CHOICES`; it changes no number."""
    probes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What engines said of the probe prompt in the run so far, as a digest, by hardware; before it who said it."""
    receipts: tuple[Receipt, ...] = ()
    """Receipts of committed tables, one for each λ and weights that an engine had there, with its hardware and route."""
    accelerator_type: str | None = None
    """Ray's name for the kind of GPU to use; None takes any kind."""

    def open_parents(self) -> tuple[Checkpoint, dict[str, Checkpoint] | None]:
        """Open base and the aligned checkpoints, by name, on this machine.

        Raises:
            PairError: a parent cannot be had on this machine, or is another checkpoint there.
        """
        aligned = {name: open_here(parent) for name, parent in self.aligned.items()} if self.aligned else None
        return open_here(self.base), aligned


@dataclass(frozen=True, slots=True)
class Started:
    """A replica tells this once its engine runs."""

    hardware: str
    hardware_of_ranks: str  # the hardware of each rank in order, where ranks are on different kinds
    fallback: str  # the reason why λ is switched through vLLM's own loader; empty where it is not
    probe_digest: str  # the digest of what the engine said of a fixed prompt
    host: str


class Replica:
    """Owns an engine inside a process of its own; it is not thread-safe.

    The driver makes it an actor with `ray.remote`, calls `start` once and `run` for each unit. When either raises, the
    engine's weights may be half-written: the driver kills the actor and starts another. Only `ping` may be called at the
    same time, from another thread.
    """

    def __init__(self, name: str, spec: SweepSpec, placement: Placement, sources: dict[str, Any]) -> None:
        """`sources` maps each task to the reference of its `Source`; this actor is on the first node of `placement`."""
        self._cores = settle_in(spec.settings, placement, 0)
        self._placement = placement
        self._name = name
        self._spec = spec
        self._references = sources
        self._sources: dict[str, Source] = {}
        self._engine: Any = None

    def ping(self) -> int:
        """Return the process's id, also while the engine computes."""
        return os.getpid()

    def meeting_port(self) -> int:
        """Return a free port of this node, where the ranks of an engine over several nodes meet."""
        return free_port()

    def start(self, ranks_on_node: int, port: int | None) -> Started:
        """Start the engine.

        Args:
            ranks_on_node: how many ranks of all replicas may share this machine's memory.
            port: what `meeting_port` returned, where the engine is on several nodes; None elsewhere.

        Raises:
            EngineError: the engine did not start; the message has vLLM's reason and the last lines that its processes wrote.
            PairError: a parent cannot be had on this machine, is another checkpoint here, or was changed meanwhile.
        """
        from serve.engine import Engine

        spec = self._spec
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, self._cores)  # this binds this thread, and the engine's threads inherit it
        base, aligned = spec.open_parents()
        nodes = NodePlace(len(self._placement), 0, self._placement[0].node.address, port) if port is not None else None
        try:
            self._engine = Engine(
                base.path, _paths(aligned), spec.settings, spec.parents, ranks_on_node, spec.line, nodes
            )
        except WrongWeightsError:
            raise  # the last words of the processes would add nothing
        except EngineError as error:
            raise EngineError(f"{error}{last_words()}") from error
        # Ranks have opened the files after they were held against the sweep's, and look at them at each switch from now on.
        check_unchanged(files_of([base, *(aligned or {}).values()]))
        engine = self._engine
        hardware = engine.hardware, engine.hardware_of_ranks
        return Started(*hardware, engine.fallback, engine.probe_digest, socket.gethostname())

    def probe(self, part: Unit) -> None:
        """Do some rows of a unit and throw the results away.

        Raises:
            EngineError: the switch or the engine failed.
            InputError: the requests cannot be read.
        """
        self._engine.switch(part.engine_lam)
        self._work(part)

    def run(self, unit: Unit) -> Receipt:
        """Do a unit and commit its tables; the one of its source's `kind` is the completion record and is written last.

        Raises:
            EngineError: the switch or the engine failed.
            InputError: the unit's requests cannot be read.
            OSError: a table could not be written, for example because the disk is full.
        """
        began = time.monotonic()
        switched = self._engine.lam != unit.engine_lam
        self._engine.switch(unit.engine_lam)
        at_lambda = time.monotonic()
        work, result = self._work(unit)
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
        if result.quarantine.num_rows:
            commit_table(source.path("quarantine", unit), result.quarantine, identity)
        else:  # an earlier try may have quarantined requests that went well now, and ended before it committed its table
            source.path("quarantine", unit).unlink(missing_ok=True)
        commit_table(source.path(source.kind, unit), result.table, identity)
        receipt = Receipt(
            *unit.key,
            requests=result.requests,
            quarantined=result.quarantine.num_rows,
            tokens_scheduled=result.computed,
            tokens_cached=result.cached,
            switch_seconds=at_lambda - began if switched else 0.0,
            score_seconds=scored - at_lambda,
            commit_seconds=time.monotonic() - scored,
            replica=self._name,
            host=socket.gethostname(),
            hardware=self._engine.hardware,
            route=self._engine.route,
            weight_digests=self._engine.digests,
            tokens_generated=result.generated,
            probe_digest=self._engine.probe_digest,
            at=unit.at,
        )
        commit_json(source.path("receipts", unit), receipt.to_json())
        return receipt

    def _work(self, unit: Unit) -> tuple[Work, UnitResult]:
        work = self._source(unit.task).open(unit)
        return work, work.run(self._engine, unit.lam)

    def _source(self, task: str) -> Source:
        if task not in self._sources:
            import ray

            self._sources[task] = ray.get(self._references[task])  # its table stays uncopied in the node's object store
        return self._sources[task]


class Follower:
    """An actor of a replica on another node than its engine; it runs that node's ranks and does nothing else.

    It runs inside a process of its own, for as long as the replica lives. Only `ping` may be called at the same time.
    """

    def __init__(self, spec: SweepSpec, placement: Placement, number: int) -> None:
        """`number` says which part of `placement` this actor is on."""
        self._cores = settle_in(spec.settings, placement, number)
        self._spec, self._placement, self._number = spec, placement, number

    def ping(self) -> int:
        """Return the process's id."""
        return os.getpid()

    def follow(self, ranks_on_node: int, port: int) -> None:
        """Run this node's ranks until the driver kills the actor.

        Raises:
            EngineError: the ranks did not start, or one of them ended.
            PairError: a parent cannot be had on this machine, or is another checkpoint here.
        """
        from serve.multinode import follow
        from serve.start import llm_arguments

        spec = self._spec
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, self._cores)
        base, aligned = spec.open_parents()
        nodes = NodePlace(len(self._placement), self._number, self._placement[0].node.address, port)
        try:
            follow(
                llm_arguments(base.path, _paths(aligned), spec.settings, spec.parents, ranks_on_node, spec.line, nodes)
            )
        except EngineError as error:
            raise EngineError(f"{error} ({self._placement[self._number].node.address}){last_words()}") from error


def _paths(aligned: Mapping[str, Checkpoint] | None) -> dict[str, Path] | None:
    return {name: one.path for name, one in aligned.items()} if aligned else None


def settle_in(settings: EngineSettings, placement: Placement, number: int) -> list[int]:
    """Set the environment of the actor on part `number` of `placement`, before anything imports torch; return its cores."""
    from serve.start import process_environment

    share = placement[number]
    cores = available_cores()  # the cores of the node that this process runs on
    each = settings.threads * settings.tensor_parallel
    # If there are more replicas than cores (tests have several nodes on one machine), they share the cores in turn.
    mine = [cores[(share.first * each + offset) % len(cores)] for offset in range(share.stages * each)]
    os.environ.update(process_environment(settings, mine, len(placement), share.node.address))
    return mine


def last_words() -> str:
    """Return the last lines that this process and its children wrote to standard error, often the only place of a reason."""
    try:
        log = Path(os.readlink("/proc/self/fd/2"))
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in telling_lines(lines, _LAST_LINES) if line.strip())
