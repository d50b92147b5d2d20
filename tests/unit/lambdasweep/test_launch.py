"""A sweep and a batch share one launch, which tells the driver what to do and names units that are given up."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from contract.commit import commit_bytes, commit_json
from contract.errors import SweepError
from contract.rundir import RunDir
from contract.units import Receipt, Unit
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.launch import Launch, known_so_far
from lambdasweep.monitor.heartbeat import DriverState, Heartbeat
from lambdasweep.monitor.progress import SweepProgress
from merge.line import Line

UNITS = [Unit("quiz", "0.5", shard, 4 * shard, 4 * shard + 4, 10) for shard in range(2)]


def launched(
    out: RunDir, monkeypatch: pytest.MonkeyPatch, given_up: Sequence[tuple[Unit, str]] = (), stopped: bool = False
) -> tuple[bool, dict[str, Any], list[str]]:
    """Launch with a driver that does nothing; return whether it was interrupted, what it was given, and what was said."""
    given: dict[str, Any] = {}

    def run_units(spec: Any, units: Any, sources: Any, replicas: Any, listener: Any, address: Any, more: Any) -> Any:
        given.update(spec=spec, units=units, sources=sources, replicas=replicas, address=address, more=more)
        listener.unit_started("replica-0", units[0])
        return SimpleNamespace(given_up=tuple(given_up), interrupted=stopped)

    monkeypatch.setattr("ray_jobs.driver.run_units", run_units)
    config = SimpleNamespace(address=None, parents="auto", accelerator_type="H100", replicas=3)
    prepared = SimpleNamespace(config=config, pair=SimpleNamespace(line=Line()), settings="settings")
    launch = Launch(
        out, prepared, ("base", None), {"schema": 1}, {"quiz": "source"}, 5, lambda unit: f"rows {unit.shard}"
    )
    tally, said = Heartbeat(out, UNITS), list[str]()
    progress = SweepProgress(5, tally, Console(quiet=True))
    return launch.units(UNITS, tally, progress, said.append), given, said


def test_the_driver_is_given_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = RunDir(tmp_path / "run")
    interrupted, given, said = launched(out, monkeypatch, stopped=True)
    assert interrupted
    assert said == ["3 of 5 units are committed already; 2 are left"]
    spec = given.pop("spec")
    assert given == {"units": UNITS, "sources": {"quiz": "source"}, "replicas": 3, "address": None, "more": None}
    assert (spec.root, spec.base, spec.aligned) == (str(tmp_path / "run"), "base", None)
    assert (spec.identity, spec.parents, spec.accelerator_type) == ({"schema": 1}, "auto", "H100")
    state = DriverState.read(out)
    assert state is not None
    assert (state.state, state.left) == ("stopped", 2)


def test_the_driver_is_told_what_engines_said_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = RunDir(tmp_path / "run")
    said = [("H100", "11"), ("H200", ""), ("H200", "22"), ("A100", "33")]
    for shard, (hardware, digest) in enumerate(said):
        times = 1, 0, 9, 0, 0.0, 1.0, 0.0, "replica-0", "a", hardware, "reload", ("0f",), 0, digest
        receipt = Receipt("quiz", "0.5", shard, *times)
        commit_json(out.unit("receipts", *receipt.key), receipt.to_json())
        if hardware != "A100":  # its table was deleted
            commit_bytes(out.unit("tokens" if shard else "generations", *receipt.key), b"a table")
    spec = launched(out, monkeypatch)[1]["spec"]
    assert spec.probes == {"H100": ("replica-0 on a", "11"), "H200": ("replica-0 on a", "22")}
    batch = ScoreDir(tmp_path / "scores")
    commit_json(batch.part("receipts", 3), receipt.to_json())
    assert known_so_far(batch) == ({}, ())
    commit_bytes(batch.part("scores", 3), b"a table")
    assert known_so_far(batch) == ({"A100": ("replica-0 on a", "33")}, (receipt,))


def test_the_driver_is_told_what_weights_engines_had_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One receipt tells it for each λ that an engine was at, wherever its outputs were written."""
    out = RunDir(tmp_path / "run")
    said = [("t", "0", "", "0f"), ("t", "0.5", "", "1f"), ("t@0", "0.5", "0", "0f"), ("t@0", "1", "0", "2f")]
    for task, lam, at, digest in said:
        times = 1, 0, 9, 0, 0.0, 1.0, 0.0, "replica-0", "a", "H100", "reload", (digest,), 0, "", at
        receipt = Receipt(task, lam, 0, *times)
        commit_json(out.unit("receipts", *receipt.key), receipt.to_json())
        commit_bytes(out.unit("rescored" if at else "generations", *receipt.key), b"a table")
    known = launched(out, monkeypatch)[1]["spec"].receipts
    assert sorted((one.engine_lam, *one.weight_digests) for one in known) == [("0", "0f"), ("0", "2f"), ("0.5", "1f")]


def test_units_that_are_given_up_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError) as caught:
        launched(RunDir(tmp_path / "run"), monkeypatch, [(UNITS[1], "no memory")])
    assert str(caught.value).splitlines() == [
        "1 unit failed on every try; all others are committed. Run the same command again to try them again. They are",
        "  - rows 1: no memory",
    ]
