"""Before tables are made again, this module deletes what was made of the old ones: grades, lm-eval's metrics, other λs'
scores.

An output that is sampled again may have other tokens, on other hardware for example. What was made of the earlier one may
fit it by its length, and would stand beside it unnoticed. So it is deleted while the output is not there, at the start of
the command that samples it again; a kill in between changes nothing about that.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from contract import schemas
from contract.commit import commit_table, identity_of
from contract.records import Plan
from contract.rundir import RunDir
from contract.units import Unit
from contract.whole_tables import read_or_problem

if TYPE_CHECKING:
    from lambdasweep.prepare import Prepared


def delete_derived(run: RunDir, left: Sequence[Unit], prepared: "Prepared", plan: Plan) -> None:
    """Delete what was made of the tables of some units that are not committed. Call it under `RunDir.lock`.

    Args:
        run: the run.
        left: the units of tasks that are to be scored or sampled.
        prepared: the sweep.
        plan: of the run, with everything that was ever asked for.
    """
    there = {kind: run.all_committed(kind) for kind in ("graded", "rescored")}
    for unit in left:
        if unit.task not in prepared.prompts:
            continue
        if (unit.task, unit.lam) in there["graded"]:
            run.unit("graded", unit.task, unit.lam, 0).unlink(missing_ok=True)
        for name, kind, _ in plan[unit.task].parts(unit.task):
            if kind == "rescored" and unit.shard in there[kind].get((name, unit.lam), ()):
                for one in ("quarantine", "receipts", kind):
                    run.unit(one, name, unit.lam, unit.shard).unlink(missing_ok=True)
    for harness, built in prepared.harnesses:
        parts = {name for task in built for name in task.parts}
        _delete_outcomes(run, harness.name, {unit.lam for unit in left if unit.task in parts})


def _delete_outcomes(run: RunDir, name: str, lambdas: Iterable[str]) -> None:
    """Delete the rows at some λs of lm-eval's own metrics of a task or group."""
    path = run.outcomes(name)
    table = read_or_problem(path)[0] if path.is_file() else None
    if table is None:
        return
    anew = set(lambdas)
    kept = [schemas.point_of(row) not in anew for row in table.to_pylist()]
    if not all(kept):
        commit_table(path, table.filter(pa.array(kept)), identity_of(table.schema))
