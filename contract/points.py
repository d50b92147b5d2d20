"""A point says where θ is between base and the aligned checkpoints. No other module takes the names of points apart.

Over one aligned checkpoint a point is its canonical λ, `0.35`. Over several it has one λ, its coordinate, for each of them,
sorted by name: `dpo=0.5,sft=0.25`. Where there is only one aligned checkpoint, its name is "".
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import TypeVar
from urllib.parse import quote, unquote

from contract.errors import GridError
from contract.grid import MAX_POINTS, canonical, parse_grid

ONLY = ""

_BASE, _ALIGNED = "base", "aligned"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_STARTS = re.compile(r"(?:^|,)\s*([\w-]+)=")

T = TypeVar("T")


@lru_cache(maxsize=1024)
def _pairs(point: str) -> tuple[tuple[str, str], ...]:
    parts = (part.rpartition("=") for part in point.split(","))
    return tuple((name, lam) for name, _, lam in parts)


def coordinates(point: str) -> dict[str, str]:
    """Return the canonical λs of a point by the aligned checkpoints' names, sorted by name."""
    return dict(_pairs(point))


def is_named(point: str) -> bool:
    """Tell whether a point has named coordinates, as points over several aligned checkpoints have."""
    return "=" in point


def order(point: str) -> tuple[Decimal, ...]:
    """Return the key that sorts the points of a sweep by their first coordinate, then by the next."""
    return tuple(Decimal(lam) for _, lam in _pairs(point))


def named(lams: Mapping[str, str]) -> str:
    """Return the point that has these canonical λs, given by the aligned checkpoints' names."""
    return ",".join(f"{name}={lam}" if name else lam for name, lam in sorted(lams.items()))


def parents(names: Iterable[str]) -> dict[str, str]:
    """Return the point of each parent by what it is called: `base`, and `aligned` or each aligned checkpoint's name."""
    names = sorted(names)
    found = {_BASE: named(dict.fromkeys(names, "0"))}
    return found | {name or _ALIGNED: named(dict.fromkeys(names, "0") | {name: "1"}) for name in names}


def is_parent(point: str) -> bool:
    """Tell whether a point is a parent: every coordinate is 0, or one of them is 1 and all others are 0."""
    return point in parents(coordinates(point)).values()


def in_path(point: str) -> str:
    """Return a point percent-encoded, so that it can be a part of a path."""
    return quote(point, safe="")


def from_path(part: str) -> str:
    """Return the point that `in_path` wrote as this part of a path."""
    return unquote(part)


def role(name: str) -> str:
    """Return what an aligned checkpoint is called in records and messages: `aligned`, or `aligned.NAME`."""
    return f"{_ALIGNED}.{name}" if name else _ALIGNED


def names_of(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of those roles that are aligned checkpoints."""
    return tuple(sorted(one.removeprefix(_ALIGNED).removeprefix(".") for one in roles if one.startswith(_ALIGNED)))


def parent_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return all names that a user may call a parent by."""
    return (_BASE, _ALIGNED, *filter(None, sorted(names)))


def by_name(aligned: T | Mapping[str, T]) -> dict[str, T]:
    """Return aligned checkpoints sorted by name; a value that is no mapping is the only one and gets the name ""."""
    return dict(sorted(aligned.items())) if isinstance(aligned, Mapping) else {ONLY: aligned}


def split_named(text: str) -> list[tuple[str, str]]:
    """Take `sft=0,0.5,dpo=1` apart: each `name=` starts a new value. A text that starts with no name gives an empty list."""
    starts = list(_STARTS.finditer(text))
    if not starts or starts[0].start():
        return []
    ends = [*(match.start() for match in starts[1:]), len(text)]
    return [(match[1], text[match.end() : end].strip()) for match, end in zip(starts, ends, strict=True)]


def name_problems(names: Iterable[str]) -> list[str]:
    """Return one line for each thing that is wrong with the names of several aligned checkpoints."""
    names = list(names)
    problems = [
        f"{name!r} is no name: use a–z, 0–9, - and _" for name in dict.fromkeys(names) if not _NAME.fullmatch(name)
    ]
    problems += [f"{name!r} is what another parent is called" for name in names if name in (_BASE, _ALIGNED)]
    problems += [f"{name!r} is named twice" for name in sorted({name for name in names if names.count(name) > 1})]
    return problems


def parse_point(text: str, names: Collection[str] = (ONLY,)) -> str:
    """Return the canonical name of a point over the aligned checkpoints of these names.

    Raises:
        GridError: a coordinate is malformed, unknown, missing or named twice; the error lists every such coordinate.
    """
    if set(names) == {ONLY}:
        return canonical(text)
    found = _parse(text, names, lambda lam: (canonical(lam),), "the point", "0.5")
    return named({name: lams[0] for name, lams in found.items()})


def parse_points(text: str, names: Collection[str] = (ONLY,)) -> tuple[str, ...]:
    """Return the points of a grid, in order; over several aligned checkpoints it is the product of their grids.

    In `sft=0,0.5,1,dpo=0:1:0.5` each coordinate's values are written as `grid.parse_grid` takes them.

    Raises:
        GridError: a coordinate is malformed, unknown, missing or named twice; the error lists every such coordinate.
    """
    if set(names) == {ONLY}:
        return parse_grid(text)
    found = _parse(text, names, parse_grid, "the grid", "0:1:0.25")
    count = math.prod(map(len, found.values()))
    if count > MAX_POINTS:
        raise GridError(f"the grid {text!r} has {count} points: at most {MAX_POINTS} are taken")
    return tuple(named(dict(zip(found, lams, strict=True))) for lams in itertools.product(*found.values()))


def _parse(
    text: str, names: Collection[str], parse: Callable[[str], tuple[str, ...]], what: str, example: str
) -> dict[str, tuple[str, ...]]:
    names = sorted(names)
    form = ",".join(f"{name}={example}" for name in names)
    given = split_named(text)
    problems = [] if given else [f"it names no coordinate: there are {', '.join(names)}"]
    found: dict[str, tuple[str, ...]] = {}
    for name, value in given:
        if name not in names:
            problems.append(f"{name!r} is no aligned checkpoint: there are {', '.join(names)}")
        elif name in found:
            problems.append(f"{name!r} is named twice")
        else:
            found[name] = ()
            try:
                found[name] = parse(value)
            except GridError as error:
                problems += [f"{name}: {problem}" for problem in error.problems or (error.title,)]
    if given:
        problems += [f"{name!r} is missing" for name in names if name not in found]
    if problems:
        raise GridError(f"{what} {text!r} cannot be used; write it like {form}", problems)
    return {name: found[name] for name in names}
