"""`lambdasweep tasks convert`: the rows of a data set, wherever they lie, are written as a task file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.commit import commit_bytes
from contract.errors import InputError
from lambdasweep.tasks.convert import ColumnMap, convert
from lambdasweep.tasks.datasets import PREFIX, as_jsonl, read_dataset


def make_file(source: str, out: Path, columns: str | None) -> int:
    """Write a task file and return the number of its rows.

    Raises:
        InputError: `out` exists, the source cannot be read, or its rows cannot be converted.
    """
    if out.exists():
        raise InputError(f"{out} exists: give another --out, or remove it")
    if source.startswith(PREFIX):
        data = read_dataset(f"{source}?{columns}" if columns else source)
    else:
        data = as_jsonl(convert(_rows(Path(source)), ColumnMap.parse(columns) if columns else None))
    commit_bytes(out, data)
    return data.count(b"\n")


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            rows: list[Mapping[str, Any]] = pq.read_table(path).to_pylist()
            return rows
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {(str(error).splitlines() or [''])[0]}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} has lines that are no JSON objects")
    return rows
