"""This module reads flags that name several aligned checkpoints (`--aligned sft=DIR,dpo=DIR`), and knows what does not go
with them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.points import ONLY, name_problems, split_named


def parse_aligned(value: str | Mapping[str, str]) -> dict[str, str]:
    """Return aligned checkpoints by name, sorted; the only one's is "".

    Text is one checkpoint where something of that name exists. Else each `NAME=` in it, at its beginning or after a comma,
    starts another one; a path with such a thing in it can be given in a file, as a table.

    Raises:
        InputError: with everything that is wrong.
    """
    if isinstance(value, str):
        given = split_named(value)
        if not given or Path(value).expanduser().exists():
            return {ONLY: value}
    else:
        given = list(value.items())
    problems = name_problems(name for name, _ in given)
    problems += [f"{name!r} has no checkpoint" for name, source in given if not source]
    if len(given) < 2:
        problems.append("give two checkpoints or more with names, or one without")
    if problems:
        raise InputError("--aligned cannot be used; write it like sft=DIR,dpo=DIR", problems)
    return dict(sorted(given))


def parse_revisions(value: str | Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return revisions by the names of aligned checkpoints.

    Raises:
        InputError: with everything that is wrong.
    """
    names = list(names)
    if names == [ONLY] and isinstance(value, str):
        return {ONLY: value}
    given = split_named(value) if isinstance(value, str) else list(value.items())
    problems = [f"{name!r} is no aligned checkpoint" for name, _ in given if name not in names]
    if problems or not given:
        raise InputError("--aligned-revision cannot be used; write it like sft=REVISION", problems)
    return dict(given)


def relative_to(value: Any, here: Path) -> Any:
    """Return what a file says of checkpoints, with paths that start at its directory; a hub id is no path, unless there is
    a directory of that name."""
    if isinstance(value, Mapping):
        return {name: relative_to(one, here) for name, one in value.items()}
    if (here / value).is_dir():
        return str(here / value)
    if (here / value).exists():
        return value
    return {name: relative_to(one, here) for name, one in split_named(value)} or value
