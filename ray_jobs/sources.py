"""Where a unit's requests come from and what becomes of its scores: the part of a unit that is not the engine's."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from lambdasweep.rundir import RunDir
from ray_jobs.units import Unit

if TYPE_CHECKING:
    from serve.scoring import UnitScores


class Work(Protocol):
    """One unit's requests, in a replica."""

    @property
    def requests(self) -> pa.Table:
        """Rows of `schemas.REQUESTS`, whole documents."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the unit's tables carry about the requests."""

    def tables(self, scores: "UnitScores") -> tuple[pa.Table, pa.Table]:
        """Return what is committed: scores, and what is quarantined."""


class Source(Protocol):
    """A task's requests. Goes to every replica once, through Ray's object store."""

    def open(self, unit: Unit) -> Work:
        """Raises InputError where the requests cannot be read."""

    def path(self, kind: str, unit: Unit) -> Path:
        """Path of one unit's file; `kind` is tokens, quarantine or receipts."""


@dataclass(frozen=True, slots=True)
class TableSource:
    """A sweep's task: its requests table, held whole."""

    root: Path
    task: str
    table: pa.Table
    requests_sha256: str

    def open(self, unit: Unit) -> "TableWork":
        rows = self.table.slice(unit.first_row, unit.end_row - unit.first_row)
        return TableWork(rows, {"requests_sha256": self.requests_sha256, "task": self.task})

    def path(self, kind: str, unit: Unit) -> Path:
        return RunDir(self.root).unit(kind, *unit.key)


@dataclass(frozen=True, slots=True)
class TableWork:
    """Some rows of a `TableSource`."""

    requests: pa.Table
    identity: dict[str, Any]

    def tables(self, scores: "UnitScores") -> tuple[pa.Table, pa.Table]:
        return scores.tokens, scores.quarantine
