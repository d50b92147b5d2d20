"""The λ grid holds exact decimals, never binary floats.

A λ is known everywhere by its canonical name: no exponent, no `+`, no trailing zeros, `-0` is `0`, at most six decimals
(`decimal128(12, 6)` in the tables). `1.0` and `1` are the same point.
"""

import functools
import re
from decimal import Decimal

from contract.errors import GridError

MAX_DECIMALS = 6
MAX_POINTS = 100_000
MAX_ABS = Decimal(10) ** 6

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


@functools.lru_cache(maxsize=4096, typed=True)  # tables name the same λs over and over
def canonical(lam: str | int | Decimal) -> str:
    """Return the canonical name of a λ.

    Raises:
        GridError: λ is not a plain decimal number, has more than six decimals, or |λ| ≥ 10⁶.
    """
    text = f"{lam:f}" if isinstance(lam, Decimal) else str(lam).strip()
    if not _NUMBER.fullmatch(text):
        raise GridError(f"λ {text!r} is not a decimal number: write it like 0.35")
    value = Decimal(text)
    if abs(value) >= MAX_ABS:
        raise GridError(f"λ {text} is out of range: |λ| must be below {MAX_ABS}")
    if value != round(value, MAX_DECIMALS):
        raise GridError(f"λ {text} has more than {MAX_DECIMALS} decimals: round it")
    name = f"{value:f}"
    if "." in name:
        name = name.rstrip("0").rstrip(".")
    return "0" if name in ("-0", "") else name


def parse_grid(text: str) -> tuple[str, ...]:
    """Parse `0:1.5:0.05`, `0,0.25,1`, or ranges and points joined by commas.

    A range is `start:stop:step` and includes `stop` when a step lands on it.

    Returns:
        Canonical λs in ascending order.

    Raises:
        GridError: the grid is malformed, empty, or names a point twice; the error lists every such part.
    """
    problems: list[str] = []
    seen: dict[str, str] = {}
    for part in text.split(","):
        part = part.strip()
        try:
            names = _expand(part)
        except GridError as error:
            problems.append(str(error))
            continue
        for name in names:
            if name in seen:
                where = "twice" if seen[name] == part else f"by {seen[name]!r} and by {part!r}"
                problems.append(f"λ {name} is named {where}: name each point once")
            seen.setdefault(name, part)
    if not seen and not problems:
        problems.append("the grid is empty")
    if len(seen) > MAX_POINTS:
        problems.append(f"{len(seen)} points: at most {MAX_POINTS} are taken")
    if problems:
        raise GridError(f"the grid {text!r} cannot be used; write it like 0:1.5:0.1 or 0,0.25,1", problems)
    return tuple(sorted(seen, key=Decimal))


def stops_short(part: str) -> str | None:
    """Return the last λ of a range that ends before its stop, because no step lands there; None of anything else."""
    if part.count(":") != 2:
        return None
    last, stop = _expand(part.strip())[-1], canonical(part.split(":")[1])
    return None if last == stop else last


def _expand(part: str) -> list[str]:
    if not part:
        raise GridError("an empty part between two commas: remove it")
    if ":" not in part:
        return [canonical(part)]
    fields = part.split(":")
    if len(fields) != 3:
        raise GridError(f"{part!r} is not start:stop:step")
    start, stop, step = (Decimal(canonical(field)) for field in fields)
    if step == 0:
        raise GridError(f"{part!r} has step 0: give a step above 0")
    if step < 0 or stop < start:
        raise GridError(f"{part!r} runs downwards: give start ≤ stop and a step above 0")
    count = int((stop - start) / step) + 1
    if count > MAX_POINTS:
        raise GridError(f"{part!r} has {count} points: at most {MAX_POINTS} are taken")
    return [canonical(start + index * step) for index in range(count)]
