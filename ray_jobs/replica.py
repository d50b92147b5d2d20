"""A replica: the Ray actor that owns one vLLM engine and commits the units it is handed."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdasweep.rundir import commit_json, commit_table
from ray_jobs.sources import Source
from ray_jobs.units import Receipt, Unit
from serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """What every replica of a sweep needs to know."""

    root: Path
    base: Path
    aligned: Path | None
    """None: `base` alone is scored, as it is."""
    settings: EngineSettings
    identity: dict[str, Any]
    """Stored in every table: fingerprints, engine, versions."""
    parents: str = "auto"
    """Where ranks keep the parents: one of `serve.tiers.CHOICES`. Changes no number."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a replica tells once its engine runs."""

    hardware: str
    fallback: str  # why λ is switched through vLLM's own loader; empty where it is not


class Replica:
    """Runs inside a process of its own; not thread-safe.

    The driver makes it an actor with `ray.remote`, calls `start` once and `run` for each unit. When either raises, the
    engine's weights may be half-written: the driver kills the actor and starts another.
    """

    def __init__(self, name: str, spec: SweepSpec, cores: list[int], sources: dict[str, Any]) -> None:
        """`sources` maps tasks to references of their `Source`; `cores` are this replica's (CPU engines)."""
        from serve.engine import process_environment

        os.environ.update(process_environment(spec.settings, cores))  # before anything imports torch
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, cores)  # the engine's threads are born by this one
        self._name = name
        self._spec = spec
        self._references = sources
        self._sources: dict[str, Source] = {}
        self._engine: Any = None
        self._hardware = ""

    def start(self, ranks_on_node: int) -> Started:
        """Start the engine; `ranks_on_node` counts those of all replicas that may share this machine's memory.

        Raises:
            EngineError: with vLLM's reason.
        """
        from serve.engine import Engine, hardware

        spec = self._spec
        self._engine = Engine(spec.base, spec.aligned, spec.settings, spec.parents, ranks_on_node)
        self._hardware = hardware(spec.settings.device)
        return Started(self._hardware, self._engine.fallback)

    def run(self, unit: Unit) -> Receipt:
        """Score a unit and commit its tables; the tokens table is the completion record and is written last.

        Raises:
            EngineError: the switch or the scoring failed.
            InputError: the unit's requests cannot be read.
            OSError: the table could not be written, because the disk is full, say.
        """
        from serve.scoring import score_unit

        source = self._source(unit.task)
        began = time.monotonic()
        switched = self._engine.lam != unit.lam
        self._engine.switch(unit.lam)
        at_lambda = time.monotonic()
        work = source.open(unit)
        scores = score_unit(self._engine, work.requests, unit.lam)
        scored = time.monotonic()

        identity = {
            **self._spec.identity,
            **work.identity,
            "hardware": self._hardware,
            "lam": unit.lam,
            "rows": [unit.first_row, unit.end_row],
            "shard": unit.shard,
        }
        tokens, quarantine = work.tables(scores)
        if quarantine.num_rows:
            commit_table(source.path("quarantine", unit), quarantine, identity)
        commit_table(source.path("tokens", unit), tokens, identity)
        receipt = Receipt(
            *unit.key,
            requests=tokens.num_rows + quarantine.num_rows,
            quarantined=quarantine.num_rows,
            tokens_scheduled=scores.prompt_tokens - scores.cached_tokens,
            tokens_cached=scores.cached_tokens,
            switch_seconds=at_lambda - began if switched else 0.0,
            score_seconds=scored - at_lambda,
            commit_seconds=time.monotonic() - scored,
            replica=self._name,
            host=socket.gethostname(),
            hardware=self._hardware,
            route=self._engine.route,
            weight_digests=self._engine.digests,
        )
        commit_json(source.path("receipts", unit), receipt.to_json())
        return receipt

    def _source(self, task: str) -> Source:
        if task not in self._sources:
            import ray

            self._sources[task] = ray.get(self._references[task])  # a table in it is zero-copy, from the node's store
        return self._sources[task]
