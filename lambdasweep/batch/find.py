"""This module finds the Parquet files that a path, a glob, a directory or a URL means, and the columns that folders stand
for.
"""

import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from contract.errors import InputError
from contract.location import Location, ObjectPath, locate
from lambdasweep.input_files import is_hidden, local_files, why_none

Partition = tuple[tuple[str, str], ...]  # the name and the value of each


def lies_in(out: Location, request: str) -> bool:
    """Whether `out` lies in a folder of requests."""
    if "://" not in request:
        return (
            isinstance(out, Path) and Path(request).is_dir() and out.resolve().is_relative_to(Path(request).resolve())
        )
    return isinstance(out, ObjectPath) and f"{out}/".startswith(request.rstrip("/") + "/")


def find(requests: Sequence[str], problems: list[str]) -> list[tuple[str, Partition]]:
    """Return each file with the columns that its folders name; problems get what is wrong."""
    found: list[tuple[str, Partition]] = []
    for request in requests:
        try:
            location = locate(request)
            paths = _objects(location) if isinstance(location, ObjectPath) else local_files(location, ".parquet")
        except InputError as error:
            problems.append(error.title)
            continue
        except OSError as error:
            problems.append(error.strerror or str(error))
            continue
        if not paths:
            why = why_none(Path(request), ".parquet") if isinstance(location, Path) else None
            problems.append(f"{request}: {why or 'no such Parquet file'}")
        found += [(path, _partition(request, path)) for path in sorted(paths)]
    seen: set[str] = set()
    for path, _ in found:
        if (resolved := os.path.realpath(path)) in seen:
            problems.append(f"{path} is given twice")
        seen.add(resolved)
    return found


def _partition(request: str, path: str) -> Partition:
    """Return what the folders between a request and one of its files say, as Hive names them."""
    given = set(request.split("/"))
    folders = [part for part in path.split("/")[:-1] if part not in given]
    return tuple((name, unquote(value)) for name, equals, value in (part.partition("=") for part in folders) if equals)


def _objects(path: ObjectPath) -> list[str]:
    path.check()
    parts = path.key.split("/")
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    if len(fixed) == len(parts):
        pattern = "*.parquet"  # matched from the right
        if path.is_file():
            return [str(path)]
    elif "**" in parts:
        raise InputError(f"{path}: ** is not supported in a URL: give the folder, for all *.parquet below it")
    else:
        pattern = "/" + path.key
    below = ObjectPath(path.scheme, "/".join(fixed)).walk()
    found = [file for file in below if PurePosixPath("/" + file.key).match(pattern)]
    if pattern == "*.parquet":
        found = [file for file in found if not is_hidden(file.key.split("/")[len(parts) :])]
    return [str(file) for file in found]
