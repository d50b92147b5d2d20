"""A unit's rows are read and tokenised in the replica that scores them."""

import bisect
import dataclasses
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.location import Location, ObjectPath, locate, read_table
from contract.units import Unit
from lambdasweep.batch.files import Columns, InputFile
from lambdasweep.batch.reader import Reader
from lambdasweep.batch.rows import Built, build, score_table
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.tasks.requests import content_sha256
from lambdasweep.tasks.tokens import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from merge.remote_parent import RemoteParent
    from ray_jobs.work import UnitResult
    from serve.engine import Engine


# A replica keeps its tokenizer, and the file that it reads.
@functools.lru_cache(maxsize=1)
def _tokenizer(parent: "RemoteParent") -> Tokenizer:
    from merge.remote_parent import open_here

    return load_tokenizer(open_here(parent).path)


@functools.lru_cache(maxsize=1)
def _reader(file: InputFile, columns: tuple[str, ...]) -> Reader:
    return Reader(file, list(columns))


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """`ray_jobs.work.Source` over the rows of Parquet files."""

    root: str
    """The output directory: an absolute path or a URL."""
    directory: str
    """Where relative paths of files start."""
    files: tuple[InputFile, ...]
    columns: Columns
    tokenizer: "RemoteParent"
    """Whose tokenizer it is."""
    max_model_len: int

    @property
    def kind(self) -> str:
        return "tokens"

    def open(self, unit: Unit) -> "RowsWork":
        """Read and tokenise a unit.

        Raises:
            InputError: its file was changed or is damaged.
        """
        index = bisect.bisect_right(self.files, unit.first_row, key=lambda file: file.first_row) - 1
        file = self.files[index]
        first = unit.first_row - file.first_row
        location = locate(file.path)
        path = location if isinstance(location, ObjectPath) else os.path.join(self.directory, location)
        there = dataclasses.replace(file, path=str(path))
        rows = _reader(there, (self.columns.id, *self.columns.texts)).rows(first, unit.end_row - file.first_row)
        refused = dict.fromkeys(self._repeated(unit), "repeated id")
        refused |= {row - unit.first_row: reason for row, reason in unit.offenders}
        built = build(rows, self.columns, refused, _tokenizer(self.tokenizer), self.max_model_len)
        return RowsWork(rows, self.columns, built, file.path, first)

    def documents(self, unit: Unit) -> range:
        """Each row counts as one: the driver reads none."""
        return range(unit.first_row, unit.end_row)

    def path(self, kind: str, unit: Unit) -> Location:
        return ScoreDir(self.root).part({"tokens": "scores"}.get(kind, kind), unit.shard)

    def _repeated(self, unit: Unit) -> set[int]:
        where = (pc.field("row") >= unit.first_row) & (pc.field("row") < unit.end_row)
        rows = read_table(ScoreDir(self.root).repeated_ids, filters=where)["row"].to_pylist()
        return {row - unit.first_row for row in rows}


@dataclass(frozen=True, slots=True)
class RowsWork:
    """One unit's rows."""

    rows: pa.Table
    columns: Columns
    built: Built
    file: str
    first_row: int  # of the file

    @property
    def identity(self) -> dict[str, Any]:
        return {"requests_sha256": content_sha256(self.built.requests)}

    def run(self, engine: "Engine", lam: str) -> "UnitResult":
        from ray_jobs.work import scored
        from serve.scoring import score_unit

        scores = score_unit(engine, self.built.requests, lam)
        tables = score_table(
            self.rows, self.columns, self.built, scores.tokens, scores.quarantine, self.file, self.first_row
        )
        return scored(*tables, scores)
