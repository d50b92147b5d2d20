"""Where a unit's requests come from and what becomes of its scores: the part of a unit that is not the engine's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from lambdasweep import schemas
from lambdasweep.location import Location
from lambdasweep.rundir import RunDir
from ray_jobs.units import Unit

if TYPE_CHECKING:
    from serve.scoring import UnitScores


class Work(Protocol):
    """One unit's requests, in a replica."""

    @property
    def requests(self) -> pa.Table:
        """Rows of `schemas.REQUESTS`, whole documents; without the unit's offenders."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the unit's tables carry about the requests."""

    def tables(self, scores: "UnitScores") -> tuple[pa.Table, pa.Table]:
        """Return what is committed: scores, and what is quarantined, offenders included."""


class Source(Protocol):
    """A task's requests. Goes to every replica once, through Ray's object store."""

    def open(self, unit: Unit) -> Work:
        """Raises InputError where the requests cannot be read. `unit` may be a part of one."""

    def documents(self, unit: Unit) -> Sequence[int]:
        """Return the first row of each document of a unit; the driver asks, so nothing large is read."""

    def path(self, kind: str, unit: Unit) -> Location:
        """Path of one unit's file; `kind` is tokens, quarantine or receipts."""


@dataclass(frozen=True, slots=True)
class TableSource:
    """A sweep's task: its requests table, held whole."""

    root: str
    """Of the run directory: an absolute path or a URL."""
    task: str
    table: pa.Table
    requests_sha256: str

    def open(self, unit: Unit) -> "TableWork":
        rows = self._rows(unit)
        at = [row - unit.first_row for row, _ in unit.offenders]
        refused = {
            "request_id": rows.column("request_id").take(pa.array(at, pa.int64())),
            "reason": [reason for _, reason in unit.offenders],
        }
        return TableWork(
            rows.filter(~np.isin(np.arange(rows.num_rows), at)) if at else rows,
            pa.table(refused, schema=schemas.QUARANTINE),
            {"requests_sha256": self.requests_sha256, "task": self.task},
        )

    def documents(self, unit: Unit) -> list[int]:
        names = self._rows(unit).column("doc_id").to_pylist()
        return [unit.first_row + at for at, name in enumerate(names) if at == 0 or names[at - 1] != name]

    def path(self, kind: str, unit: Unit) -> Location:
        return RunDir(self.root).unit(kind, *unit.key)

    def _rows(self, unit: Unit) -> pa.Table:
        return self.table.slice(unit.first_row, unit.end_row - unit.first_row)


@dataclass(frozen=True, slots=True)
class TableWork:
    """Some rows of a `TableSource`."""

    requests: pa.Table
    refused: pa.Table
    """`schemas.QUARANTINE` of the offenders."""
    identity: dict[str, Any]

    def tables(self, scores: "UnitScores") -> tuple[pa.Table, pa.Table]:
        if not self.refused.num_rows:
            return scores.tokens, scores.quarantine
        both = pa.concat_tables([scores.quarantine, self.refused])
        return scores.tokens, both.combine_chunks().sort_by("request_id")
