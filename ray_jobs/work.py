"""Kinds of tasks differ in where a unit's requests come from, what is done with them, and where the results are kept."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from contract import schemas
from contract.location import Location
from contract.rundir import RunDir
from contract.units import Unit
from serve.settings import Sampling

if TYPE_CHECKING:
    from serve.engine import Engine
    from serve.sampling import Question
    from serve.scoring import UnitScores


@dataclass(frozen=True, slots=True)
class UnitResult:
    """Holds the results of a unit."""

    table: pa.Table
    """The completion record, which holds scores or samples."""
    quarantine: pa.Table
    """The requests that could not be done, including the unit's offenders."""
    requests: int
    """The number of requests, including those in quarantine."""
    computed: int
    """The number of tokens that the engine computed, in prompts and samples."""
    cached: int
    """The number of tokens that came from the engine's prefix cache."""
    generated: int = 0
    """The number of tokens that were sampled."""


class Work(Protocol):
    """Holds one unit's requests in a replica, and does them there."""

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the unit's tables say about the requests that they were computed from."""

    def run(self, engine: "Engine", lam: str) -> UnitResult:
        """Do the unit, its offenders left out, on an engine that is where the unit wants it; `lam` is the unit's λ.

        Raises:
            EngineError: the engine failed; nothing of the unit may be used.
        """


class Source(Protocol):
    """A task's requests. Every replica gets it once, through Ray's object store."""

    @property
    def kind(self) -> str:
        """Return the kind of table that is a unit's completion record: tokens, generations or rescored."""

    def open(self, unit: Unit) -> Work:
        """Return the work of a unit, or of a part of one.

        Raises:
            InputError: the requests cannot be read.
        """

    def documents(self, unit: Unit) -> Sequence[int]:
        """Return the first row of each document of a unit. The driver calls this, so it reads nothing large."""

    def path(self, kind: str, unit: Unit) -> Location:
        """Return the path of one file of a unit; `kind` is `self.kind`, quarantine or receipts."""


@dataclass(frozen=True, slots=True)
class TableSource:
    """The source of a sweep's task; it holds the whole requests table."""

    root: str
    """The run directory, an absolute path or a URL."""
    task: str
    table: pa.Table
    requests_sha256: str

    @property
    def kind(self) -> str:
        return "tokens"

    def open(self, unit: Unit) -> "TableWork":
        return TableWork(*parted(self.table, unit), {"requests_sha256": self.requests_sha256, "task": self.task})

    def documents(self, unit: Unit) -> list[int]:
        names = _rows(self.table, unit).column("doc_id").to_pylist()
        return [unit.first_row + at for at, name in enumerate(names) if at == 0 or names[at - 1] != name]

    def path(self, kind: str, unit: Unit) -> Location:
        return RunDir(self.root).unit(kind, *unit.key)


@dataclass(frozen=True, slots=True)
class TableWork:
    """Scores some rows of a `TableSource`."""

    requests: pa.Table
    refused: pa.Table
    """The unit's offenders, as `schemas.QUARANTINE`."""
    identity: dict[str, Any]

    def run(self, engine: "Engine", lam: str) -> UnitResult:
        from serve.scoring import score_unit

        scores = score_unit(engine, self.requests, lam)
        return scored(scores.tokens, with_refused(scores.quarantine, self.refused), scores)


def scored(table: pa.Table, quarantine: pa.Table, scores: "UnitScores") -> UnitResult:
    """Return the results of a scored unit; `table` and `quarantine` are the tables to commit."""
    requests = table.num_rows + quarantine.num_rows
    return UnitResult(table, quarantine, requests, scores.prompt_tokens - scores.cached_tokens, scores.cached_tokens)


@dataclass(frozen=True, slots=True)
class GenerateSource:
    """The source of a sweep's generate task; it holds all prompts, and the tokenizer that turns samples into text."""

    root: str
    """The run directory, an absolute path or a URL."""
    task: str
    table: pa.Table
    requests_sha256: str
    sampling: Sampling
    tokenizer: Any
    """A fast tokenizer of the transformers library."""
    question: "Question | None" = None
    """Asks the model whether an answer is right."""

    @property
    def kind(self) -> str:
        return "generations"

    def open(self, unit: Unit) -> "GenerateWork":
        sampling = dataclasses.asdict(self.sampling)
        if self.sampling.think_end_token is None:
            del sampling["think_end_token"]  # the tables of tasks without one are those of before there were any
        identity = {"requests_sha256": self.requests_sha256, "task": self.task, "sampling": sampling}
        if self.question is not None:
            identity["p_true"] = self.question.identity
        return GenerateWork(*parted(self.table, unit), identity, self.sampling, self.tokenizer, self.question)

    def documents(self, unit: Unit) -> range:
        return range(unit.first_row, unit.end_row)  # each prompt is a document

    def path(self, kind: str, unit: Unit) -> Location:
        return RunDir(self.root).unit(kind, *unit.key)


@dataclass(frozen=True, slots=True)
class GenerateWork:
    """Samples from some rows of a `GenerateSource`."""

    prompts: pa.Table
    refused: pa.Table
    """The unit's offenders, as `schemas.QUARANTINE`."""
    identity: dict[str, Any]
    sampling: Sampling
    tokenizer: Any
    question: "Question | None" = None

    def run(self, engine: "Engine", lam: str) -> UnitResult:
        from serve.sampling import sample_unit

        found = sample_unit(engine, self.prompts, lam, self.sampling, self._text, self.tokenizer, self.question)
        return UnitResult(
            found.generations,
            with_refused(found.quarantine, self.refused),
            requests=self.prompts.num_rows + self.refused.num_rows,
            computed=found.prompt_tokens - found.cached_tokens + found.new_tokens,
            cached=found.cached_tokens,
            generated=found.new_tokens,
        )

    def _text(self, token_ids: Sequence[int]) -> str:
        if self.sampling.until is not None:  # as lm-eval's models decode what they answer
            return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(token_ids), **settings))


def _rows(table: pa.Table, unit: Unit) -> pa.Table:
    return table.slice(unit.first_row, unit.end_row - unit.first_row)


def parted(table: pa.Table, unit: Unit) -> tuple[pa.Table, pa.Table]:
    """Return a unit's rows without its offenders, and the offenders as `schemas.QUARANTINE`."""
    rows = _rows(table, unit)
    at = [row - unit.first_row for row, _ in unit.offenders]
    refused = {
        "request_id": rows.column("request_id").take(pa.array(at, pa.int64())),
        "reason": [reason for _, reason in unit.offenders],
    }
    kept = rows.filter(~np.isin(np.arange(rows.num_rows), at)) if at else rows
    return kept, pa.table(refused, schema=schemas.QUARANTINE)


def with_refused(quarantine: pa.Table, refused: pa.Table) -> pa.Table:
    """Return the quarantined requests of a unit together with its offenders, in order."""
    if not refused.num_rows:
        return quarantine
    return pa.concat_tables([quarantine, refused]).combine_chunks().sort_by("request_id")
