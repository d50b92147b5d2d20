"""A table of several runs, with a row for each, as cells, as Markdown and as LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.catalogue import answers
from calibration.comparison.gather import Comparison
from calibration.frontier.frontier import Frontier
from calibration.frontier.types import FrontierPoint, Gain, Value

MISSING = "–"


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """What one run has of a task, or of pooled tasks."""

    run: str
    pair: str  # base → aligned, and the method where it is not linear
    frontier: Frontier
    star: FrontierPoint  # what was measured at λ*
    gain: Gain | None  # the gain of λ* on aligned; None where aligned is λ* or not there


def compared_rows(found: Comparison, title: str) -> list[ComparedRow]:
    """Return a row for each run, in their order."""
    rows = []
    for run in found.runs:
        frontier = run.frontiers[title]
        star = next(point for point in frontier.points if point.lam == frontier.chosen.lam)
        pair = f"{run.base} → {run.aligned}" + ("" if run.method == "linear" else f", {run.method}")
        rows.append(ComparedRow(run.name, pair, frontier, star, star.gains.get("aligned")))
    return rows


def header(found: Comparison, title: str) -> tuple[str, ...]:
    """Return the titles of the columns."""
    word = answers()[found.runs[0].frontiers[title].metric].word
    gains = (f"{name} against aligned" for name in ("accuracy", "NLL", word))
    return ("run", "pair", "documents", "λ*", "λ* between", "accuracy", "NLL", word, *gains)


def cells(row: ComparedRow) -> tuple[str, ...]:
    """Return the cells of a row as text; intervals are in brackets."""
    chosen, star = row.frontier.chosen, row.star
    gains = (row.gain.accuracy, row.gain.nll, row.gain.error) if row.gain else (None, None, None)
    return (
        *(row.run, row.pair, str(star.documents), chosen.lam, f"{chosen.low} to {chosen.high}"),
        *(_text(value, ".3f") for value in (star.accuracy, star.nll, star.error)),
        *(_text(value, "+z.3f") for value in gains),
    )


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [_piped(header), "|" + "---|" * len(header), *map(_piped, rows)]
    return "\n".join(lines) + "\n"


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in LaTeX, for the package booktabs; text that LaTeX would read as commands is escaped."""
    columns = "l" * min(2, len(header)) + "r" * max(0, len(header) - 2)
    body = [f"{' & '.join(map(_escaped, row))} \\\\" for row in rows]
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", f"{' & '.join(map(_escaped, header))} \\\\", "\\midrule"]
    return "\n".join([*lines, *body, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _text(value: Value | None, form: str) -> str:
    if value is None:
        return MISSING
    ends = (value.low, value.high)
    return format(value.value, form) + (
        "" if None in ends else " [{}, {}]".format(*(format(end, form) for end in ends))
    )


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"λ": "$\\lambda$", "→": "$\\to$", "–": "--", "−": "$-$"},
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
