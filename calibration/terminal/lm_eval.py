"""This module lays out what lm-eval, or another evaluator, says of a task as a table for a terminal, a row for each λ."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from calibration.lm_eval_rows import LEFT_OUT, PREFIX
from calibration.measured_rows import TOOLS
from contract.points import order
from contract.schemas import point_of

_MISSING = "–"
_SHOWN = 5  # no more metrics fit into 80 columns
_SHOWN_WITH_INTERVALS = 3  # no more into 100
_ONE_LINE = 17  # letters of a name that stands in one line


def outcome_table(
    task: str, rows: Sequence[dict[str, Any]], roles: Mapping[str, str], tool: str = PREFIX, intervals: bool = False
) -> Table:
    """Lay out an evaluator's metrics of one task or group, one row per λ ascending.

    Args:
        task: the name of the task or group.
        rows: the rows of the metrics table that hold the evaluator's metrics of it.
        roles: the mark of each parent, by its point.
        tool: whose metrics they are: the beginning of their names, one of `measured_rows.TOOLS`.
        intervals: whether intervals are shown, of those metrics that have any.
    """
    cells = {(point_of(row), row["metric"]): row for row in rows}
    lambdas = sorted({point_of(row) for row in rows}, key=order)
    metrics = list(dict.fromkeys(row["metric"] for row in rows if row["metric"] != LEFT_OUT))
    with_ends = {row["metric"] for row in rows if row["ci_low"] is not None} if intervals else set()
    shown = metrics[: _SHOWN_WITH_INTERVALS if with_ends else _SHOWN]
    table = Table(title=Text(f"{task}, by {TOOLS[tool]}", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    table.padding = (0, 1, 0, 0)
    table.add_column("λ", justify="right", no_wrap=True)
    table.add_column("", min_width=len("aligned"))
    for metric in shown:
        # A long name stands in several lines: cut short, those of several reducers would look the same.
        name = metric.removeprefix(tool).removesuffix(",none")
        header = name if len(name) <= _ONE_LINE else name.replace("/", "/\n")
        table.add_column(Text(header, overflow="fold"), justify="right")
        if metric in with_ends:
            table.add_column("95 %", no_wrap=True)
    table.add_column("docs", justify="right", no_wrap=True)
    touched = []
    for lam in lambdas:
        texts = []
        for metric in shown:
            row = cells.get((lam, metric))
            texts.append(_MISSING if row is None or row["value"] is None else f"{row['value']:#.5g}")
            if metric in with_ends:
                has = row is not None and row["ci_low"] is not None
                texts.append(f"{row['ci_low']:.3f} to {row['ci_high']:.3f}" if row is not None and has else "")
        absent = cells.get((lam, LEFT_OUT))
        if absent is not None:
            left_out, total = int(absent["value"]), absent["n"]
            touched += [(left_out, total)] if left_out else []
            documents = str(total - left_out)
        else:
            documents = str(max(cells[key]["n"] for key in cells if key[0] == lam) or _MISSING)
        table.add_row(lam, roles.get(lam, ""), *texts, documents)
    hidden = metrics[len(shown) :]
    notes = [f"not shown, in metrics.parquet: {', '.join(hidden)}"] if hidden else []
    if with_ends & set(shown):
        notes.append(f"95 %: ± 1.96 standard errors, by {TOOLS[tool]}")
    if touched:
        most, total = max(touched)
        where = f"{len(touched)} of {len(lambdas)} λs"
        notes.append(f"left out: up to {most} of {total} documents at {where}: some of their requests have no score")
    table.caption = Text("\n".join(notes)) if notes else None
    table.caption_justify = "left"
    return table
