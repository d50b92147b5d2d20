"""This module lays out the diversity of a generate task as a table for a terminal, with a row for each λ."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from calibration.catalogue import COUNTED, columns
from contract.points import order
from contract.schemas import point_of

_MISSING = "–"
_REASONS = {"docs_quarantined": "quarantined", "docs_unfinished": "not sampled yet"}


def diversity_table(task: str, rows: Sequence[dict[str, Any]], intervals: bool, roles: Mapping[str, str]) -> Table:
    """Lay out one generate task, one row per λ ascending; no row is marked best, because more diverse is not better.

    Args:
        task: the task's name.
        rows: the rows of the metrics table for this task and split all.
        intervals: whether the intervals of distinct-2 and self-BLEU are shown too.
        roles: the mark of each parent, by its point.
    """
    cells = {(point_of(row), row["metric"]): row for row in rows}
    lambdas = sorted({lam for lam, _ in cells}, key=order)
    table = Table(title=Text(task, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.pad_edge = False
    table.add_column("λ", justify="right", no_wrap=True)
    table.add_column("", min_width=len("aligned,"))
    columns_shown = columns("samples")
    for _, column in columns_shown:
        table.add_column(column.header, justify="right", no_wrap=True)
        if intervals and column.ends:
            table.add_column("95 %", no_wrap=True)
    table.add_column("prompts", justify="right", no_wrap=True)
    for lam in lambdas:
        is_partial = bool(cells[lam, "docs_unfinished"]["value"])
        marks = [roles.get(lam, ""), "partial" if is_partial else ""]
        shown: list[Text | str] = []
        for metric, column in columns_shown:
            row = cells[lam, metric.name]
            shown.append(_MISSING if row["value"] is None else f"{row['value']:{column.form}}")
            if intervals and column.ends:
                has = row["ci_low"] is not None
                pair = (f"{row[end]:{column.ends}}".removeprefix("0") for end in ("ci_low", "ci_high")) if has else ()
                shown.append(Text("–".join(pair), style="dim"))
        table.add_row(lam, ", ".join(filter(None, marks)), *shown, str(cells[lam, COUNTED["samples"]]["n"]))
    table.caption = Text("\n".join(_notes(cells, lambdas, intervals)))
    table.caption_justify = "left"
    return table


def _notes(cells: Mapping[tuple[str, str], dict[str, Any]], lambdas: Sequence[str], intervals: bool) -> list[str]:
    notes = [
        "means over prompts, each over its samples; dist-n: different n-grams of words over all;",
        "self-BLEU: of one sample against another, 0 to 1; answers: different ones, normalised",
    ]
    if intervals:
        notes.append("95 %: bootstrap over prompts")
    for reason, words in _REASONS.items():
        touched = [(int(cells[lam, reason]["value"]), cells[lam, reason]["n"]) for lam in lambdas]
        most, total = max(touched)
        if most:
            where = f"{sum(1 for count, _ in touched if count)} of {len(lambdas)} λs"
            notes.append(f"left out: up to {most} of {total} prompts at {where}: {words}")
    return notes
