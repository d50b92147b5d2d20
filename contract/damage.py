"""This module tells damaged tables from whole ones, and puts them aside so that their units are scored again.

Nothing of ours leaves a damaged file behind: it comes from a copy that was broken off, a full disk of another program, or a
store that lost a part. It counts as absent, is named wherever somebody looks, and is never read around in silence.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from contract.location import Location, ObjectPath, read_table

if TYPE_CHECKING:
    from contract.rundir import RunDir

_MAGIC = b"PAR1"
_SHOWN = 20
_KINDS = ("tokens", "generations", "graded", "rescored", "quarantine", "scores")


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


def put_aside(run: "RunDir") -> list[str]:
    """Move the damaged tables that are known of a run to RUN/damaged; return a line for each. Call it under `lock`.

    Where the damaged table is one of quarantined requests, the unit's scores go with it: the unit is done again as a whole.
    """
    for kind in _KINDS:
        run.all_committed(kind)
    run.all_measured()
    lines = describe(run)
    for path in list(run.damaged):
        parts = _below(run, path)
        kinds = _KINDS if parts[0] == "quarantine" else (parts[0],)
        for kind in kinds:
            _move(run, (kind, *parts[1:]))
        del run.damaged[path]
    return lines


def describe(run: "RunDir") -> list[str]:
    """Return a line for each damaged table that is known of a run, the first 20 of them."""
    return listed({"/".join(_below(run, path)): problem for path, problem in run.damaged.items()})


def listed(problems: Mapping[str, str]) -> list[str]:
    lines = [f"{name} {problems[name]}" for name in sorted(problems)]
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])


def _below(run: "RunDir", path: Location) -> tuple[str, ...]:
    if isinstance(path, ObjectPath) and isinstance(run.root, ObjectPath):
        return tuple(path.key.removeprefix(run.root.key + "/").split("/"))
    assert isinstance(path, Path)
    assert isinstance(run.root, Path)
    return path.relative_to(run.root).parts


def _move(run: "RunDir", parts: tuple[str, ...]) -> None:
    from contract.rundir import commit_bytes

    source, target = run.root, run.root / "damaged"
    for part in parts:
        source, target = source / part, target / part
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            source.replace(target)
    elif source.is_file():
        commit_bytes(target, source.read_bytes())
        source.unlink()
