"""A replica: the Ray actor that owns one vLLM engine and commits the units it is handed."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lambdasweep.rundir import RunDir, commit_json, commit_table
from merge.line import STRAIGHT, Line
from ray_jobs.units import Receipt, Unit
from serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """What every replica of a sweep needs to know."""

    root: Path
    base: Path
    aligned: Path
    settings: EngineSettings
    identity: dict[str, Any]
    """Stored in every table: fingerprints, engine, versions."""
    requests_sha256: dict[str, str]
    """Content hash of each task's requests table."""
    line: Line = STRAIGHT
    """Between the parents."""
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

    def __init__(self, name: str, spec: SweepSpec, cores: list[int], tables: dict[str, Any]) -> None:
        """`tables` maps tasks to references of their requests tables; `cores` are this replica's (CPU engines)."""
        from serve.engine import process_environment

        os.environ.update(process_environment(spec.settings, cores))  # before anything imports torch
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, cores)  # the engine's threads are born by this one
        self._name = name
        self._spec = spec
        self._run_dir = RunDir(spec.root)
        self._references = tables
        self._tables: dict[str, pa.Table] = {}
        self._engine: Any = None
        self._hardware = ""

    def start(self, ranks_on_node: int) -> Started:
        """Start the engine; `ranks_on_node` counts those of all replicas that may share this machine's memory.

        Raises:
            EngineError: with vLLM's reason.
        """
        from serve.engine import Engine, hardware

        spec = self._spec
        self._engine = Engine(spec.base, spec.aligned, spec.settings, spec.parents, ranks_on_node, spec.line)
        self._hardware = hardware(spec.settings.device)
        return Started(self._hardware, self._engine.fallback)

    def run(self, unit: Unit) -> Receipt:
        """Score a unit and commit its tables; the tokens table is the completion record and is written last.

        Raises:
            EngineError: the switch or the scoring failed.
            OSError: the table could not be written, because the disk is full, say.
        """
        from serve.scoring import score_unit

        began = time.monotonic()
        switched = self._engine.lam != unit.lam
        self._engine.switch(unit.lam)
        at_lambda = time.monotonic()
        requests = self._table(unit.task).slice(unit.first_row, unit.end_row - unit.first_row)
        scores = score_unit(self._engine, requests, unit.lam)
        scored = time.monotonic()

        identity = {
            **self._spec.identity,
            "hardware": self._hardware,
            "lam": unit.lam,
            "requests_sha256": self._spec.requests_sha256[unit.task],
            "rows": [unit.first_row, unit.end_row],
            "shard": unit.shard,
            "task": unit.task,
        }
        path = self._run_dir.unit
        if scores.quarantine.num_rows:
            commit_table(path("quarantine", *unit.key), scores.quarantine, identity)
        commit_table(path("tokens", *unit.key), scores.tokens, identity)
        receipt = Receipt(
            *unit.key,
            requests=requests.num_rows,
            quarantined=scores.quarantine.num_rows,
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
        commit_json(path("receipts", *unit.key), receipt.to_json())
        return receipt

    def _table(self, task: str) -> pa.Table:
        if task not in self._tables:
            import ray

            self._tables[task] = ray.get(self._references[task])  # zero-copy from the node's object store
        return self._tables[task]
