"""This module says before the work, in words, that a place cannot be written, so that nothing is computed in vain."""

import os
from pathlib import Path

from contract.errors import InputError
from contract.location import Location, ObjectPath


def check_writable(place: Location, remedy: str = "give another --out") -> None:
    """Refuse a directory that cannot be made or written; make nothing. An object store is asked for the bucket only.

    Args:
        place: the directory.
        remedy: what to do about it.

    Raises:
        InputError: a file is in the way, the permissions forbid it, or it is read-only, or the store cannot be used.
    """
    if isinstance(place, ObjectPath):
        place.check()
        return
    there = place.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{place} cannot be made: {there} is a file; {remedy}")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise InputError(f"{place} cannot be written: the file system of {there} is read-only; {remedy}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written: the permissions of {there} forbid it; {remedy}")


def check_file(path: Location, remedy: str = "give another --out") -> None:
    """Refuse a file that cannot be written, as `check_writable` does a directory, or that is a directory."""
    if isinstance(path, Path) and path.is_dir():
        raise InputError(f"{path} is a directory: give the name of a file")
    check_writable(path.parent, remedy)
