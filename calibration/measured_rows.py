"""This module makes rows of the metrics table from what commands of the user measured at each λ (`lambdasweep each`).

Each row carries the evaluator's own number. It has an interval where the evaluator gave a standard error: the number ± 1.96
standard errors, the 95 % interval of a normal distribution. It is not cut at the ends of what the metric can be.
"""

from typing import Any

from contract.rundir import RunDir

Z95 = 1.96
# The first part of a metric's name says whose it is.
TOOLS = {"lm_eval/": "lm-eval", "inspect/": "Inspect", "command/": "the command"}


def measured_rows(run: RunDir) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    """Return rows of METRICS as `schemas.table_of` takes them, by task and canonical point.

    The metrics have the names `lm_eval/<metric>,<filter>`, `inspect/<scorer>/<metric>` and `command/<metric>`.
    """
    found: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for lam, table in run.measured_tables():
        for row in table.to_pylist():
            value, error = row["value"], row["standard_error"]
            half = None if value is None or error is None else Z95 * error
            ends = (None, None) if half is None else (value - half, value + half)
            values = (row["metric"], "sum", "all", value, *ends, row["n"], None)
            found.setdefault(row["task"], {}).setdefault(lam, []).append((row["task"], lam, *values))
    return found


def tool_of(metric: str) -> str | None:
    """Return whose metric it is by its name, as its prefix in `TOOLS`; None where it is one of ours."""
    return next((prefix for prefix in TOOLS if metric.startswith(prefix)), None)
