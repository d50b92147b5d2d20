"""This module reads and writes sweep.json and plan.json where a command of the user measures the numbers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import RunMismatchError
from contract.points import order
from contract.records import Asked, EachRecord, SweepRecord, read_each, read_sweep
from contract.rundir import RunDir
from lambdasweep.each.config import EachConfig
from lambdasweep.each.results import Measured
from lambdasweep.record import differences, line_record, parent_records, versions

if TYPE_CHECKING:
    from merge.pair import Pair


def sweep_record(
    pair: "Pair", fingerprints: Mapping[str, str], device: str, arguments: Mapping[str, Any]
) -> SweepRecord:
    """Return the record of the pair and of the server that commands ask.

    Args:
        pair: the parents.
        fingerprints: the parents' fingerprints, by role.
        device: what the server runs on.
        arguments: the server's arguments of vLLM, with defaults.
    """
    engine = {
        "served": True,  # vLLM's server answers here, where a sweep has engines of its own
        "device": device,
        "dtype": arguments.get("dtype", "auto"),
        "tensor_parallel": arguments.get("tensor_parallel_size", 1),
        "pipeline_parallel": arguments.get("pipeline_parallel_size", 1),
        "arguments": dict(arguments),
    }
    return SweepRecord(
        pair=parent_records(pair, fingerprints),
        engine=engine,
        versions=versions(),
        line=line_record(pair),
        schema=schemas.SCHEMA_VERSION,
    )


def check(run: RunDir, sweep: SweepRecord, config: EachConfig) -> EachRecord | None:
    """Hold what is asked for now against what the run directory was started with.

    Returns:
        What the plan says so far; None where there is no plan yet.

    Raises:
        RunMismatchError: naming every difference.
    """
    if not run.exists():
        return None
    planned = read_each(run) if run.plan_json.is_file() else None
    if planned is None and run.plan_json.is_file():
        raise RunMismatchError(f"{run.root} belongs to a sweep of `lambdasweep run`: give another --out")
    problems = differences("", read_sweep(run).to_json(), sweep.to_json())
    if planned is None:
        pass  # an earlier call was killed between writing the two records
    elif planned.command != config.command.words:
        problems.append(f"the command was {' '.join(planned.command)} and is {config.command} now")
    elif planned.files != dict(config.command.files):
        problems += differences("", planned.files, dict(config.command.files))
    if problems:
        raise RunMismatchError(
            f"{run.root} holds something else; give another --out, or what it was started with", problems
        )
    return planned


def write(run: RunDir, sweep: SweepRecord, config: EachConfig, planned: EachRecord | None) -> EachRecord:
    """Record what is asked for, and grow by its λs what `check` found planned; return the record."""
    lambdas = {*config.lambdas, *(planned.lambdas if planned else ())}
    record = EachRecord(config.command.words, config.command.files, tuple(sorted(lambdas, key=order)))
    if not run.exists():
        commit_json(run.sweep_json, sweep.to_json())
    commit_json(run.plan_json, Asked({}, None, record).to_json())
    return record


def metrics_of(run: RunDir) -> set[tuple[str, str]]:
    """Return task and metric, as in the tables, of everything that was measured at any λ."""
    found = set[tuple[str, str]]()
    for _, table in run.measured_tables():  # λs with damaged tables are measured again
        found.update(zip(table.column("task").to_pylist(), table.column("metric").to_pylist(), strict=True))
    return found


def commit(run: RunDir, sweep: SweepRecord, record: EachRecord, lam: str, measured: list[Measured]) -> None:
    """Commit what was measured at a λ, which is then done."""
    rows = [
        (one.task, lam, f"{one.tool}/{one.metric}", one.value, one.standard_error, one.n, one.file) for one in measured
    ]
    table = schemas.table_of(schemas.MEASURED, rows)
    identity = sweep.table_identity() | {"command": list(record.command), "files": dict(record.files)}
    commit_table(run.measured(lam), table, identity)
