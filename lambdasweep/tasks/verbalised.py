"""A model that was asked to says in its answer how sure it is of it: the number is found by a regular expression.

Sources: S. Lin, J. Hilton, O. Evans, "Teaching models to express their uncertainty in words", TMLR 2022; K. Tian et al.,
"Just ask for calibration", EMNLP 2023.
"""

import re
from dataclasses import dataclass

_PER_CENT = re.compile(r"\s*(?:%|per\s?cent)", re.IGNORECASE)
# What makes another number of the one in front of it: 0.9 and 0,9 of 0, 9/10 and 9 out of 10 of 9; and of the one behind it.
_GOES_ON = re.compile(r"\d*(?:[.,]\d+)*(?:[ \t]*(?:/|(?:out[ \t]+)?of\b)[ \t]*\d+(?:[.,]\d+)*)?", re.IGNORECASE)
_BEGINS_BEFORE = re.compile(r"(?:\d[.,/]?|\.)$")


@dataclass(frozen=True, slots=True)
class Said:
    """What an output says of how sure it is."""

    probability: float | None
    """None where what was found is no number between 0 and 1, or 0 and 100 per cent, or where it is a part of a number."""
    start: int
    """The place in the output where it is said."""
    end: int
    """The end of that, with the rest of the number, and with the sign of per cent."""


def said_in(output: str, pattern: str) -> Said | None:
    """Return what an output says in the last place where a regular expression matches, or None where it does not.

    The number is what the expression's first group matched, or all of it where it has no group. It is in per cent where a
    sign of per cent follows, or where it is above 1. Of a part of a number (0 of 0.9, 9 of 9/10
    and of 9 out of 10) nothing is made.
    """
    matches = list(re.finditer(pattern, output))
    if not matches:
        return None
    match = matches[-1]
    group = 1 if match.re.groups else 0
    text = match[group] or ""
    try:
        value = float(text.strip().rstrip("%"))
    except ValueError:
        return Said(None, match.start(), match.end())
    rest = _GOES_ON.match(output, match.end(group))
    end = rest.end() if rest else match.end(group)
    is_part = end > match.end(group) or _BEGINS_BEFORE.search(output, 0, match.start(group)) is not None
    if sign := _PER_CENT.match(output, end):
        end = sign.end()
    if sign or text.rstrip().endswith("%") or value > 1:
        value /= 100
    return Said(value if 0 <= value <= 1 and not is_part else None, match.start(), max(end, match.end()))


def without(output: str, said: Said | None) -> str:
    """Return an output without what it says of how sure it is."""
    return output if said is None else output[: said.start] + output[said.end :]


def pattern_problems(pattern: str | None, suffix: str | None) -> list[str]:
    """Return what is wrong with a regular expression and with the text that asks for what it finds, if anything."""
    problems = []
    if suffix is not None and pattern is None:
        problems.append("there is a verbalised_suffix, and nothing finds what it asks for: give --verbalised, too")
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"verbalised is {pattern!r}, which is no regular expression: {error}")
        else:
            if re.fullmatch(pattern, ""):
                problems.append(
                    f"verbalised is {pattern!r}, which matches nothing at all: give one that wants a number"
                )
    return problems
