"""A unit's rows, read and tokenised in the replica that scores them."""

import bisect
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lambdasweep.batch.files import Columns, InputFile
from lambdasweep.batch.reader import Reader
from lambdasweep.batch.rows import Built, build, score_table
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.tasks.requests import content_sha256
from lambdasweep.tasks.tokens import load_tokenizer

if TYPE_CHECKING:
    from ray_jobs.units import Unit
    from serve.scoring import UnitScores

# A replica keeps its tokenizer, and the file that it reads.
_tokenizer = functools.lru_cache(maxsize=1)(load_tokenizer)


@functools.lru_cache(maxsize=1)
def _reader(file: InputFile, columns: tuple[str, ...]) -> Reader:
    return Reader(file, list(columns))


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """`ray_jobs.sources.Source` over the rows of Parquet files."""

    root: Path
    """The output directory."""
    files: tuple[InputFile, ...]
    columns: Columns
    tokenizer: Path
    max_model_len: int

    def open(self, unit: "Unit") -> "RowsWork":
        """Read and tokenise a unit.

        Raises:
            InputError: its file was changed or is damaged.
        """
        index = bisect.bisect_right(self.files, unit.first_row, key=lambda file: file.first_row) - 1
        file = self.files[index]
        first = unit.first_row - file.first_row
        rows = _reader(file, (self.columns.id, *self.columns.texts)).rows(first, unit.end_row - file.first_row)
        built = build(rows, self.columns, self._repeated(unit), _tokenizer(self.tokenizer), self.max_model_len)
        return RowsWork(rows, self.columns, built, file.path, first)

    def path(self, kind: str, unit: "Unit") -> Path:
        return ScoreDir(self.root).part({"tokens": "scores"}.get(kind, kind), unit.shard)

    def _repeated(self, unit: "Unit") -> set[int]:
        where = (pc.field("row") >= unit.first_row) & (pc.field("row") < unit.end_row)
        rows = pq.read_table(ScoreDir(self.root).repeated_ids, filters=where)["row"].to_pylist()
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
    def requests(self) -> pa.Table:
        return self.built.requests

    @property
    def identity(self) -> dict[str, Any]:
        return {"requests_sha256": content_sha256(self.built.requests)}

    def tables(self, scores: "UnitScores") -> tuple[pa.Table, pa.Table]:
        return score_table(
            self.rows, self.columns, self.built, scores.tokens, scores.quarantine, self.file, self.first_row
        )
