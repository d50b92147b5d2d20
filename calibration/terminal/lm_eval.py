"""This module lays out lm-eval's own metrics as a table for a terminal, with a row for each λ."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from calibration.lm_eval_rows import LEFT_OUT, PREFIX
from contract.points import order
from contract.schemas import point_of

_MISSING = "–"
_SHOWN = 5  # no more metrics fit into 80 columns


def outcome_table(task: str, rows: Sequence[dict[str, Any]], roles: Mapping[str, str]) -> Table:
    """Lay out lm-eval's metrics of one task or group, one row per λ ascending.

    Args:
        task: the name of the task or group.
        rows: the rows of the metrics table that hold lm-eval's metrics of it.
        roles: the mark of each parent, by its point.
    """
    values = {(point_of(row), row["metric"]): (row["value"], row["n"]) for row in rows}
    lambdas = sorted({point_of(row) for row in rows}, key=order)
    metrics = list(dict.fromkeys(row["metric"] for row in rows if row["metric"] != LEFT_OUT))
    table = Table(title=Text(f"{task}, by lm-eval", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    table.padding = (0, 1, 0, 0)
    table.add_column("λ", justify="right", no_wrap=True)
    table.add_column("", min_width=len("aligned"))
    for metric in metrics[:_SHOWN]:
        table.add_column(metric.removeprefix(PREFIX).removesuffix(",none"), justify="right")
    table.add_column("docs", justify="right", no_wrap=True)
    touched = []
    for lam in lambdas:
        cells = [values.get((lam, metric), (None, 0))[0] for metric in metrics[:_SHOWN]]
        texts = [_MISSING if value is None else f"{value:#.5g}" for value in cells]
        left_out, total = values.get((lam, LEFT_OUT), (0, 0))
        table.add_row(lam, roles.get(lam, ""), *texts, str(total - int(left_out)))
        touched += [(int(left_out), total)] if left_out else []
    notes = [f"not shown, in metrics.parquet: {', '.join(metrics[_SHOWN:])}"] if len(metrics) > _SHOWN else []
    if touched:
        most, total = max(touched)
        where = f"{len(touched)} of {len(lambdas)} λs"
        notes.append(f"left out: up to {most} of {total} documents at {where}: some of their requests have no score")
    table.caption = Text("\n".join(notes)) if notes else None
    table.caption_justify = "left"
    return table
