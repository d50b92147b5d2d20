"""A model that was asked to says in its answer how sure it is of it: the number is found by a regular expression.

Sources: S. Lin, J. Hilton, O. Evans, "Teaching models to express their uncertainty in words", TMLR 2022; K. Tian et al.,
"Just ask for calibration", EMNLP 2023.
"""

import re
from dataclasses import dataclass

_PER_CENT = re.compile(r"\s*(?:%|per\s?cent)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Said:
    """What an output says of how sure it is."""

    probability: float | None  # None where what was found is no number between 0 and 1, or 0 and 100 per cent
    start: int
    """The place in the output where it is said."""
    end: int


def said_in(output: str, pattern: str) -> Said | None:
    """Return what an output says in the last place where a regular expression matches, or None where it does not.

    The number is what the expression's first group matched, or all of it where it has no group. It is in per cent where a
    sign of per cent follows, or where it is above 1.
    """
    matches = list(re.finditer(pattern, output))
    if not matches:
        return None
    match = matches[-1]
    group = 1 if match.re.groups else 0
    text, end = match[group] or "", match.end(group)
    try:
        value = float(text.strip().rstrip("%"))
    except ValueError:
        return Said(None, match.start(), match.end())
    if text.rstrip().endswith("%") or _PER_CENT.match(output, end) or value > 1:
        value /= 100
    return Said(value if 0 <= value <= 1 else None, match.start(), match.end())


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
