"""This module makes rows of the metrics table from lm-eval's own metrics of a run.

lm-eval computed the metrics at the end of the run. They are only read here, so nobody needs lm-eval to look at them.
"""

from typing import Any

from contract.rundir import RunDir
from contract.schemas import point_of
from contract.whole_tables import read_or_problem

PREFIX = "lm_eval/"
LEFT_OUT = f"{PREFIX}docs_left_out"


def outcome_rows(run: RunDir) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    """Return rows of METRICS as `schemas.table_of` takes them, by task or group and canonical point.

    The metrics have the names `lm_eval/<metric>,<filter>`. `lm_eval/docs_left_out` counts the documents that are in none of
    these metrics, with n = all documents.
    """
    found: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for path in run.all_outcomes():
        table, problem = read_or_problem(path)
        if table is None:
            run.damaged[path] = problem
            continue
        for row in table.to_pylist():
            task, lam = row["task"], point_of(row)
            values = (f"{PREFIX}{row['metric']}", "sum", "all", row["value"], None, None, row["n"], None)
            found.setdefault(task, {}).setdefault(lam, []).append((task, lam, *values))
    return found
