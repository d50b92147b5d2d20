"""`lambdasweep tasks convert`: the rows of a data set, wherever they lie, are written as a task file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.commit import commit_bytes
from contract.errors import InputError
from contract.writable import check_file
from lambdasweep.tasks.convert import ColumnMap, convert
from lambdasweep.tasks.datasets import PREFIX, as_jsonl, read_dataset
from lambdasweep.tasks.documents import by_rows, json_lines, read_object


def make_file(source: str, out: Path, columns: str | None) -> int:
    """Write a task file and return the number of its rows.

    Raises:
        InputError: `out` exists, the source cannot be read, or its rows cannot be converted.
    """
    if out.exists():
        raise InputError(f"{out} exists: give another --out, or remove it")
    check_file(out)
    if source.startswith(PREFIX):
        data = read_dataset(f"{source}?{columns}" if columns else source)
    else:
        data = as_jsonl(convert(_rows(Path(source)), ColumnMap.parse(columns) if columns else None))
    commit_bytes(out, data)
    return data.count(b"\n")


def _rows(path: Path) -> list[Mapping[str, Any]]:
    problems: list[str] = []
    try:
        if path.suffix == ".parquet":
            rows: list[Mapping[str, Any]] = pq.read_table(path).to_pylist()
            return rows
        read = [read_object(line, raw, problems) for line, raw in json_lines(path.read_bytes())]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {(str(error).splitlines() or [''])[0]}") from None
    if problems:
        raise InputError(f"{path} cannot be converted", by_rows(problems))
    return [row for row in read if row is not None]
