"""`lambdasweep run`: prepare, record, run what is left, compute the metrics."""

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdasweep import record
from lambdasweep.config import SweepConfig
from lambdasweep.errors import EXIT_INTERRUPTED, EXIT_QUARANTINE, InputError, SweepError
from lambdasweep.prepare import Prepared, prepare
from lambdasweep.progress import SweepProgress
from lambdasweep.rundir import RunDir
from lambdasweep.tasks.outcomes import write_outcomes

if TYPE_CHECKING:
    from ray_jobs.units import Unit

# Parquet with zstd on real tables: about 11 bytes a continuation token and 12 a request, plus headers and the receipt.
_BYTES_PER_TOKEN, _BYTES_PER_REQUEST, _BYTES_PER_UNIT = 20, 24, 16 << 10
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How `run_sweep` ended."""

    run: RunDir
    exit_code: int
    units: int  # done by this call
    requests: int
    seconds: dict[str, float]  # of all replicas: switch, score, commit


def run_sweep(config: SweepConfig, say: Callable[[str], None]) -> SweepResult:
    """Run a sweep, or go on with it; returns when every unit is committed or the user stops it.

    Args:
        config: what is asked for.
        say: told one line of news at a time.

    Raises:
        InputError: bad input; nothing is written.
        SweepError: units were given up, or nothing could be run.
    """
    record.check_target(config.out)
    run = RunDir(config.out)
    prepared = prepare(config, run.sweep()["engine"] if run.exists() else None)
    fingerprints = fingerprint_pair(prepared)
    sweep = record.sweep_record(prepared, fingerprints)
    record.check(run, sweep, {name: record.task_record(task) for name, task in prepared.tasks.items()})
    check_disk(config.out, disk_bytes(prepared, len(config.lambdas)))
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    with run.lock():
        run.sweep_temporaries()
        record.write(run, sweep, prepared)
        return _run_left(run, prepared, sweep, say)


def fingerprint_pair(prepared: Prepared) -> dict[str, str]:
    """Read both parents once: content hashes, and a refusal of NaN and infinity in either."""
    from lambdasweep.prepare import join
    from merge.pair import fingerprint

    fingerprints, failures = {}, []
    for role, parent in (("base", prepared.pair.base), ("aligned", prepared.pair.aligned)):
        try:
            fingerprints[role] = fingerprint(parent, role)
        except InputError as error:
            failures.append(error)
    if failures:
        raise join(failures)
    return fingerprints


def units_left(run: RunDir, prepared: Prepared) -> "tuple[list[Unit], int]":
    """Return the units of this command that are not committed, and how many there are with those that are."""
    from ray_jobs.units import TaskPlan, units_for

    lambdas = prepared.config.lambdas
    plan = {name: TaskPlan(task.shards, lambdas, task.costs) for name, task in prepared.tasks.items()}
    return units_for(plan, run.committed), sum(len(task.shards) for task in prepared.tasks.values()) * len(lambdas)


def _run_left(run: RunDir, prepared: Prepared, sweep: dict[str, Any], say: Callable[[str], None]) -> SweepResult:
    left, total = units_left(run, prepared)
    interrupted = False
    progress = SweepProgress(total, total - len(left), sum(unit.cost for unit in left))
    if left:
        from ray_jobs.driver import run_units
        from ray_jobs.replica import SweepSpec
        from ray_jobs.sources import TableSource

        if len(left) < total:
            say(f"{total - len(left)} of {total} units are committed already; {len(left)} are left")
        spec = SweepSpec(
            root=run.root.resolve(),
            base=prepared.pair.base.path,
            aligned=prepared.pair.aligned.path,
            settings=prepared.settings,
            identity=record.table_identity(sweep),
            parents=prepared.config.parents,
        )
        sources = {
            name: TableSource(spec.root, name, task.built.table, task.built.requests_sha256)
            for name, task in prepared.tasks.items()
        }
        with progress:
            outcome = run_units(spec, left, sources, prepared.config.replicas, progress, prepared.config.address)
        if outcome.given_up:
            raise SweepError(
                f"{len(outcome.given_up)} units failed on every try; all others are committed. Run the same command again "
                "to try them again. They are\n"
                + "\n".join(f"  - {u.task} λ = {u.lam} shard {u.shard}: {why}" for u, why in outcome.given_up)
            )
        interrupted = outcome.interrupted
    if not interrupted:
        for harness, built in prepared.harnesses:
            write_outcomes(run, harness, built, record.table_identity(sweep))
    quarantined = any(
        run.committed(name, lam, "quarantine") for name in prepared.tasks for lam in prepared.config.lambdas
    )
    exit_code = EXIT_INTERRUPTED if interrupted else EXIT_QUARANTINE if quarantined else 0
    return SweepResult(run, exit_code, progress.units, progress.requests, progress.seconds)


def disk_bytes(prepared: Prepared, lambdas: int) -> int:
    """Return about how many bytes the tables of `lambdas` points take."""
    total = 0
    for task in prepared.tasks.values():
        table = task.built.table
        starts = table.column("continuation_start").to_numpy()
        lengths = sum(task.costs) - int(starts.sum())
        total += lengths * _BYTES_PER_TOKEN + table.num_rows * _BYTES_PER_REQUEST + len(task.shards) * _BYTES_PER_UNIT
    return total * lambdas


def check_disk(out: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        InputError: too little space, or `out` cannot be written to.
    """
    there = out
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed + _SPARE_BYTES:
        raise InputError(
            f"no disk space: the tables take about {needed / 1e6:.0f} MB and {out} has {free / 1e6:.0f} MB free; "
            "make room or give another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "")
        raise InputError(f"{out} cannot be made ({error.strerror} {reason}): give another --out") from None
