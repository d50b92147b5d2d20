"""This module tells whole tables from damaged ones, by their ends where that is enough, else when they are read.

A table that says itself that it is of another unit than its path counts as damaged, too: somebody moved or copied it.
"""

import os
from pathlib import Path

import pyarrow as pa

from contract.commit import identity_of
from contract.location import Location, read_schema, read_table
from contract.units import UnitKey, rescored_name

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


def read_or_problem(path: Location, unit: UnitKey | None = None) -> tuple[pa.Table | None, str]:
    """Return a table, or None and what is wrong with its file.

    Args:
        path: of the table.
        unit: the unit that the path is of; None where it is of none.

    Raises:
        OSError: the file is not there or may not be read, or the disk or the store failed.
    """
    try:
        table = read_table(path)
    except (OSError, pa.ArrowException) as error:
        return None, _unreadable(error)
    problem = _of_another(table.schema, unit) if unit else ""
    return (None, problem) if problem else (table, "")


def footer_problem(path: Location, unit: UnitKey) -> str:
    """Return what is wrong with a unit's table as far as its footer tells, or ""; no row is read. It raises as
    `read_or_problem`."""
    try:
        return _of_another(read_schema(path), unit)
    except (OSError, pa.ArrowException) as error:
        return _unreadable(error)


def _unreadable(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        raise error
    return f"cannot be read ({(str(error).splitlines() or [''])[0]})"


def _of_another(schema: pa.Schema, unit: UnitKey) -> str:
    """Say of which unit a table says that it is, if that is another one; a table that does not say is taken."""
    wanted = dict(zip(("task", "lam", "shard"), unit, strict=True))
    try:
        said = identity_of(schema)
        if "under" in said:
            said["task"] = rescored_name(said["task"], said["under"])
        if all(said.get(name, wanted[name]) == wanted[name] for name in wanted):
            return ""
    except (ValueError, TypeError, KeyError, AttributeError):  # footers have no checksum
        return "has a damaged footer, which does not say what the table is of"
    said = wanted | said
    return f"is another table, moved or copied there: that of task {said['task']}, λ = {said['lam']}, shard {said['shard']}"
