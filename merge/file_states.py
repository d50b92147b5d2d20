"""If somebody writes to weight files while they are read, θ(λ) is of two models. The states of the files tell of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.errors import PairError


@dataclass(frozen=True, slots=True)
class FileState:
    """What the file system says of a file without reading it: another content has another state."""

    inode: int
    size: int  # bytes
    modified: int  # nanoseconds since 1970


def state_of(file: Path) -> FileState:
    """Return the state of a file, or of what a link leads to.

    Raises:
        OSError: it is not there.
    """
    status = os.stat(file)
    return FileState(status.st_ino, status.st_size, status.st_mtime_ns)


def check_unchanged(files: Mapping[Path, FileState], are_mapped: bool = False) -> None:
    """Hold that the weight files are those that were opened. It reads none, so it is done after each use of them.

    A network file system may tell of a change late: NFS up to a minute, by its `acregmax`.

    Args:
        files: the weight files, with their states before they were opened.
        are_mapped: whether all that is read of the files was mapped when they were opened. What took the place of a mapped
            file is then no matter: the map shows the file that was there.

    Raises:
        PairError: files have changed; the error names them.
    """
    wrong = []
    for file, before in files.items():
        try:
            now = state_of(file)
        except FileNotFoundError:
            if not are_mapped:
                wrong.append(f"{file} is gone")
            continue
        # An inode alone tells nothing: some network file systems give a file another one after a while.
        is_another = now.inode != before.inode
        if (now.size, now.modified) != (before.size, before.modified) and not (is_another and are_mapped):
            how = "was replaced" if is_another else "was written to"
            wrong.append(f"{file} {how}: its size or time of change is another")
    if wrong:
        what_to_do = "give the same command again, and leave the parents' files alone meanwhile"
        raise PairError(f"a parent has changed while it was in use: {what_to_do}", wrong)
