"""This module tells whole tables from damaged ones, by their ends where that is enough, else when they are read."""

import os
from pathlib import Path

import pyarrow as pa

from contract.location import Location, read_table

_MAGIC = b"PAR1"


def problem_of(path: Path) -> str | None:
    """Return what is wrong with a Parquet file as far as its size and its ends tell, or None; no row is read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return "is empty"
        head = file.read(4)
        file.seek(max(size - 8, 0))
        end = file.read()
    is_whole = head == end[4:] == _MAGIC and int.from_bytes(end[:4], "little") + 12 <= size
    return None if is_whole else f"is cut short or overwritten ({size} bytes)"


def read_or_problem(path: Location) -> tuple[pa.Table | None, str]:
    """Return a table, or None and what is wrong with its file.

    Raises:
        OSError: the file is not there or may not be read, or the disk or the store failed.
    """
    try:
        return read_table(path), ""
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        return None, f"cannot be read ({(str(error).splitlines() or [''])[0]})"
