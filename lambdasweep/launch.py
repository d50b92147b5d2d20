"""This module starts the engines that do what is left, for a sweep and for a batch alike."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.damage import put_aside
from contract.errors import InputError, SweepError, join
from contract.events import Listener, Listeners
from contract.location import Location
from contract.rundir import RunDir
from contract.units import Receipt, Unit
from lambdasweep.held_signals import end_if_asked, held_signals
from lambdasweep.monitor.heartbeat import Heartbeat
from lambdasweep.monitor.phase import phase
from lambdasweep.monitor.progress import SweepProgress
from lambdasweep.monitor.wording import counted, size
from lambdasweep.prepare import Prepared

if TYPE_CHECKING:
    from merge.remote_parent import RemoteParent
    from ray_jobs.work import Source

_SPARE_BYTES = 64 << 20
_READ_SECONDS = 2.0  # for receipts


def fingerprint_pair(prepared: Prepared) -> dict[str, str]:
    """Return content hashes of all parents, and refuse NaN and infinity in any; reads weights that are not known yet."""
    from merge.fingerprints import remembered_fingerprint

    fingerprints, failures = {}, []
    with phase("checking weights"):
        for role, parent in prepared.pair.opened.items():
            try:
                fingerprints[role] = remembered_fingerprint(parent, role)
            except InputError as error:
                failures.append(error)
    if failures:
        raise join(failures)
    return fingerprints


@dataclass(frozen=True, slots=True)
class Launch:
    """Holds what engines are started for."""

    out: RunDir
    prepared: Prepared
    parents: (
        "tuple[RemoteParent, dict[str, RemoteParent] | None]"  # base, and the aligned ones by name; None: base alone
    )
    identity: Mapping[str, Any]  # what every table carries about where it came from
    sources: "Mapping[str, Source]"  # the source of each task's requests
    total: int  # the number of units, with those that are committed already
    called: Callable[[Unit], str]  # returns what a unit is called in messages
    more: Callable[[], Sequence[Unit]] | None = None  # is called for further units when all are done
    listeners: Sequence[Listener] = ()  # are told what the driver does, besides those that `units` is given

    def units(
        self, left: Sequence[Unit], tally: Heartbeat, progress: SweepProgress, say: Callable[[str], None]
    ) -> bool:
        """Do the units that are left; return whether that was interrupted.

        Args:
            left: the units that are left, at least one.
            tally: counts the units, and writes how the driver does.
            progress: shows how far they are.
            say: is called with one line of news at a time.

        Raises:
            InputError, SweepError: as `ray_jobs.driver.run_units`.
            SweepError: units were given up.
        """
        config, (base, aligned) = self.prepared.config, self.parents
        if config.address is None:
            # Ray reads this when it is imported: a cluster of this machine alone listens on loopback only.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        with held_signals():
            from ray_jobs.driver import run_units
            from ray_jobs.replica import SweepSpec
        end_if_asked()

        if len(left) < self.total:
            say(f"{self.total - len(left)} of {self.total} units are committed already; {len(left)} are left")
        probes, receipts = known_so_far(self.out)
        spec = SweepSpec(
            root=str(self.out.root.resolve()),
            base=base,
            aligned=aligned,
            settings=self.prepared.settings,
            identity=dict(self.identity),
            line=self.prepared.pair.line,
            parents=config.parents,
            probes=probes,
            receipts=receipts,
            accelerator_type=config.accelerator_type,
        )
        with progress, tally:
            told = Listeners(tally, progress, *self.listeners)
            result = run_units(spec, left, self.sources, config.replicas, told, config.address, self.more)
        if result.given_up:
            raise SweepError(
                f"{counted(len(result.given_up), 'unit')} failed on every try; all others are committed. Run the same "
                "command again to try them again. They are\n"
                + "\n".join(f"  - {self.called(unit)}: {why}" for unit, why in result.given_up)
            )
        return result.interrupted


def known_so_far(out: RunDir) -> tuple[dict[str, tuple[str, str]], tuple[Receipt, ...]]:
    """Return what receipts of committed tables tell of the engines of a run so far.

    Of receipts as many are read as a moment allows.

    Returns:
        What engines said of the probe prompt, by hardware: who, and a digest of what. And a receipt for each λ and weights
        that an engine had there, with its hardware and route.
    """
    until, probes, weights = time.monotonic() + _READ_SECONDS, dict[str, tuple[str, str]](), dict[Any, Receipt]()
    for one in out.receipts():
        weights.setdefault((one.engine_lam, one.hardware, one.route, one.weight_digests), one)
        if one.probe_digest:  # older receipts have none
            probes.setdefault(one.hardware, (f"{one.replica} on {one.host}", one.probe_digest))
        if time.monotonic() >= until:
            break
    return probes, tuple(weights.values())


def say_put_aside(run: RunDir, say: Callable[[str], None]) -> None:
    """Put the damaged tables of a run aside, so that their units are done again, and say which they are."""
    if lines := put_aside(run):
        say(f"warning: damaged tables are moved to {run.root / 'damaged'}, and their units are scored again:")
        for line in lines:
            say(f"  - {line}")


def check_disk(out: Location, needed: int) -> None:
    """Refuse to start what the disk cannot hold; an object store has room.

    Raises:
        InputError: there is too little space.
    """
    if not isinstance(out, Path):
        return
    there = out.absolute()
    while not there.exists():
        there = there.parent
    free, whole = shutil.disk_usage(there).free, needed + _SPARE_BYTES
    if free < whole:
        raise InputError(
            f"no disk space: {size(whole)} are needed ({size(needed)} for the tables, {size(_SPARE_BYTES)} for the report "
            f"and in reserve), and {there} has {size(free)} free; make room or give another --out"
        )
