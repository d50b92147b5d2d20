"""One launch for a sweep and for a batch: what the driver is given, and what is said of units that are given up."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from contract.errors import SweepError
from contract.rundir import RunDir
from contract.units import Unit
from lambdasweep.launch import Launch
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


def test_units_that_are_given_up_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError) as caught:
        launched(RunDir(tmp_path / "run"), monkeypatch, [(UNITS[1], "no memory")])
    assert str(caught.value).splitlines() == [
        "1 unit failed on every try; all others are committed. Run the same command again to try them again. They are",
        "  - rows 1: no memory",
    ]
