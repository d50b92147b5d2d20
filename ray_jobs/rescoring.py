"""Units that score again what was written: their requests are committed outputs of the same shard at another λ."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import InputError
from contract.location import Location
from contract.rundir import RunDir
from contract.units import Unit
from contract.whole_tables import read_or_problem
from ray_jobs.work import UnitResult, parted, with_refused

if TYPE_CHECKING:
    from serve.engine import Engine


@dataclass(frozen=True, slots=True)
class RescoreSource:
    """The outputs of one task, scored under one λ: a unit's `lam` is where they were written, its engine is elsewhere."""

    root: str
    """The run directory, an absolute path or a URL."""
    task: str
    """The task that the outputs are of."""
    under: str
    """The canonical point that they are scored at."""
    table: pa.Table
    """The task's prompts."""
    requests_sha256: str

    @property
    def kind(self) -> str:
        return "rescored"

    def open(self, unit: Unit) -> "RescoreWork":
        key = self.task, unit.lam, unit.shard
        path = RunDir(self.root).unit("generations", *key)
        outputs, problem = read_or_problem(path, key) if path.is_file() else (None, "is missing")
        if outputs is None:
            raise InputError(f"{path} {problem}: run the same command again, which writes it anew")
        prompts, refused = parted(self.table, unit)
        kept = outputs.filter(pc.is_in(outputs["request_id"], prompts["request_id"].combine_chunks()))
        is_there = np.isin(refused["request_id"].to_numpy(), outputs["request_id"].to_numpy())
        identity = {"requests_sha256": self.requests_sha256, "task": self.task, "under": self.under}
        return RescoreWork(prompts, kept, refused.filter(is_there), identity, self.under)

    def documents(self, unit: Unit) -> range:
        return range(unit.first_row, unit.end_row)  # each prompt is a document

    def path(self, kind: str, unit: Unit) -> Location:
        return RunDir(self.root).unit(kind, *unit.key)


@dataclass(frozen=True, slots=True)
class RescoreWork:
    """Scores some outputs of a `RescoreSource`."""

    prompts: pa.Table
    outputs: pa.Table
    refused: pa.Table
    """The unit's offenders, as `schemas.QUARANTINE`."""
    identity: dict[str, Any]
    under: str

    def run(self, engine: "Engine", lam: str) -> UnitResult:
        from serve.rescoring import rescore_unit

        scores = rescore_unit(engine, self.prompts, self.outputs, lam, self.under)
        return UnitResult(
            scores.tokens,
            with_refused(scores.quarantine, self.refused),
            requests=len(pc.unique(self.outputs["request_id"])) + self.refused.num_rows,
            computed=scores.prompt_tokens - scores.cached_tokens,
            cached=scores.cached_tokens,
        )
