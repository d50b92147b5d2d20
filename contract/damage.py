"""This module names the damaged tables of a run, and puts them aside so that their units are scored again.

Nothing of ours leaves a damaged file behind: it comes from a copy that was broken off, a full disk of another program, or a
store that lost a part. It counts as absent, is named wherever somebody looks, and is never read around in silence.
"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from contract.commit import commit_bytes
from contract.location import Location, ObjectPath
from contract.rundir import RunDir
from contract.whole_tables import footer_problem

_SHOWN = 20
_OF_UNITS = ("tokens", "generations", "graded", "rescored", "quarantine")
_KINDS = (*_OF_UNITS, "scores")


def look_at_footers(run: RunDir, seconds: float = 5.0) -> None:
    """Note the tables of a run that say themselves that they are of another task, λ or shard than their path.

    Each is a read, so that nothing is looked at in an object store, and not all of a very large run: about as many as can be
    looked at in `seconds`. Such a table is found when it is read, too.
    """
    if isinstance(run.root, ObjectPath):
        return
    until = time.monotonic() + seconds
    for kind in _OF_UNITS:
        units = ((task, lam, shard) for (task, lam), shards in run.all_committed(kind).items() for shard in shards)
        for unit in units:
            if time.monotonic() > until:
                return
            path = run.unit(kind, *unit)
            with contextlib.suppress(FileNotFoundError):  # somebody has just put it aside
                if problem := footer_problem(path, unit):
                    run.damaged[path] = problem


def put_aside(run: RunDir) -> list[str]:
    """Move the damaged tables that are known of a run to RUN/damaged; return a line for each. Call it under `lock`.

    Where the damaged table is one of quarantined requests, the unit's scores go with it: the unit is done again as a whole.
    """
    for kind in _KINDS:
        run.all_committed(kind)
    run.all_measured()
    lines = describe(run)
    for path in list(run.damaged):
        parts = _below(run, path)
        kinds = _KINDS if parts[0] == "quarantine" else (parts[0],)
        for kind in kinds:
            _move(run, (kind, *parts[1:]))
        del run.damaged[path]
    return lines


def describe(run: RunDir) -> list[str]:
    """Return a line for each damaged table that is known of a run, the first 20 of them."""
    return listed({"/".join(_below(run, path)): problem for path, problem in run.damaged.items()})


def listed(problems: Mapping[str, str]) -> list[str]:
    lines = [f"{name} {problems[name]}" for name in sorted(problems)]
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])


def _below(run: RunDir, path: Location) -> tuple[str, ...]:
    if isinstance(path, ObjectPath) and isinstance(run.root, ObjectPath):
        return tuple(path.key.removeprefix(run.root.key + "/").split("/"))
    assert isinstance(path, Path)
    assert isinstance(run.root, Path)
    return path.relative_to(run.root).parts


def _move(run: RunDir, parts: tuple[str, ...]) -> None:
    source, target = run.root, run.root / "damaged"
    for part in parts:
        source, target = source / part, target / part
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            source.replace(target)
    elif source.is_file():
        commit_bytes(target, source.read_bytes())
        source.unlink()
