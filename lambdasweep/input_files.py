"""This module finds the files that a user's path means: a file, all files of a kind below a directory, or what a glob
matches.
"""

import glob
import itertools
from collections.abc import Iterable
from pathlib import Path


def local_files(path: Path, suffix: str) -> list[str]:
    """Return the files that a path means, by name; none where there are none.

    Below a directory, and where a glob matches them, files and folders that begin with `.` or `_` are left out: other
    programs keep unfinished files and metadata there.

    Args:
        path: a file, a directory or a glob.
        suffix: of the files that are taken from a directory.
    """
    if path.exists() and not path.is_dir():
        return [str(path)]
    if path.is_dir():
        root, found = path, list(path.rglob(f"*{suffix}"))
    else:
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        root, found = Path(*fixed), [Path(one) for one in glob.glob(str(path), recursive=True)]
        if is_hidden(path.relative_to(root).parts):  # it is asked for by name
            return sorted(map(str, found))
    return sorted(str(file) for file in found if not is_hidden(file.relative_to(root).parts))


def why_none(path: Path, suffix: str) -> str | None:
    """Return why a path means no files, where it is a directory or a glob."""
    if path.is_dir():
        return f"the directory holds no file *{suffix}: give a file, or a directory or a glob of some"
    if glob.has_magic(str(path)):
        return "no file matches it: give a file, or a directory or a glob of some"
    return None


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a file, by its path below a directory, is left out of it."""
    return any(part[:1] in (".", "_") and "=" not in part for part in parts)
