"""A unit's rows, read and tokenised in the replica that scores them."""

import bisect
from dataclasses import dataclass, field
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
from lambdasweep.tasks.tokens import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from ray_jobs.units import Unit
    from serve.scoring import UnitScores


@dataclass(slots=True)
class ParquetSource:
    """`ray_jobs.sources.Source` over the rows of Parquet files."""

    root: Path
    """The output directory."""
    files: tuple[InputFile, ...]
    columns: Columns
    tokenizer: Path
    max_model_len: int
    _loaded: Tokenizer | None = field(default=None, init=False)
    _reader: Reader | None = field(default=None, init=False)

    def open(self, unit: "Unit") -> "RowsWork":
        """Read and tokenise a unit.

        Raises:
            InputError: its file was changed or is damaged.
        """
        self._loaded = self._loaded or load_tokenizer(self.tokenizer)
        index = bisect.bisect_right(self.files, unit.first_row, key=lambda file: file.first_row) - 1
        file = self.files[index]
        if self._reader is None or self._reader.file != file:
            if self._reader is not None:
                self._reader.close()
            self._reader = Reader(file, [self.columns.id, *self.columns.scored])
        first = unit.first_row - file.first_row
        rows = self._reader.rows(first, unit.end_row - file.first_row)
        repeated = self._repeated(unit)
        built = build(rows, self.columns, repeated, self._loaded, self.max_model_len)
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
