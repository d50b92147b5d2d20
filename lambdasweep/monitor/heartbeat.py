"""RUN/driver.json says how the running driver does; it is replaced as a whole every few seconds.

It holds what the tables cannot tell: living replicas, failures, rate and time left. It is no result, and no result depends
on it: a driver that cannot write it goes on, and a driver that is gone leaves it stale, which `written` shows.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from contract.commit import commit_json
from contract.rundir import RunDir
from contract.units import Unit
from lambdasweep.monitor.progress import Tally

SECONDS = 3.0
_NEWS = 5


class ReplicaReport(TypedDict):
    """Says what a living replica does."""

    doing: str
    """This is starting, scoring or idle."""
    seconds: float
    """The replica has done so for this long."""
    unit: Sequence[Any] | None
    """The task, λ and shard that the replica scores; None where it scores nothing."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """The content of driver.json."""

    written: float
    """The time when the file was written, in seconds since 1970."""
    began: float
    """The time when the driver began, in seconds since 1970."""
    every: float
    """The seconds between two writings."""
    state: str
    """This is `running` while the driver runs; it ends as `done`, `stopped` (by a signal) or `failed`."""
    error: str
    """The message of a driver that failed."""
    host: str
    pid: int
    left: int
    """The number of this driver's units that are neither done nor given up."""
    done: int
    given_up: int
    failures: int
    """The number of replicas that were lost, at their start or at a unit."""
    requests_per_second: float | None
    """The rate of requests; None before a unit is done."""
    tokens_per_second: float | None
    """The rate of computed tokens, without those from prefix caches; None before a unit is done."""
    seconds_left: float | None
    """The estimate of the time left; None before a unit is done."""
    replicas: dict[str, ReplicaReport]
    """What each living replica does, by its name."""
    news: list[str]
    """The last lines that the driver said."""
    began_as: str = ""
    """Which process of which machine it is (`process_identity`), where that can be told."""

    @staticmethod
    def read(run: RunDir) -> "DriverState | None":
        """Return the state of the run's last driver; None where none was written, or another version wrote it."""
        value = run.driver()
        try:
            return None if value is None else DriverState(**value)
        except TypeError:
            return None


class DriverView:
    """A run's last driver as any process that sees the run directory knows it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.driver: DriverState | None = None
        self._driver_seen = float("-inf")

    @property
    def driver_age(self) -> float:
        """Return the seconds since the driver wrote. Once it was seen writing, only this machine's clock matters."""
        return max(0.0, time.monotonic() - self._driver_seen)

    @property
    def driver_runs(self) -> bool:
        driver = self.driver
        is_fresh = driver is not None and driver.state == "running" and self.driver_age < 10 * driver.every
        return is_fresh and not self.driver_is_gone

    @property
    def driver_is_gone(self) -> bool:
        """Tell whether the driver ran on this machine, and its process has ended without a word, as by SIGKILL."""
        driver = self.driver
        if driver is None or driver.state != "running" or not driver.began_as:
            return False
        machine = driver.began_as.rpartition(" ")[0]
        mine = process_identity(os.getpid())
        return mine.rpartition(" ")[0] == machine and process_identity(driver.pid) != driver.began_as

    def look_at_driver(self) -> None:
        before, self.driver = self.driver, DriverState.read(self.run)
        if self.driver and (before is None or before.written != self.driver.written):
            ago = max(0.0, time.time() - self.driver.written) if before is None else 0.0
            self._driver_seen = time.monotonic() - ago


class Heartbeat(Tally):
    """The tally of a command, which writes driver.json too. It is a context manager around all of the driver's work."""

    def __init__(self, run: RunDir, units: Sequence[Unit]) -> None:
        super().__init__(units)
        self._run = run
        self._news: deque[str] = deque(maxlen=_NEWS)
        self._began = time.time()
        self._written = float("-inf")

    def __enter__(self) -> Self:
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception)  # a signal raises SystemExit
        self.replicas.clear()
        self._write("failed" if failed else "stopped" if self.left else "done", str(error) if failed else "")

    def message(self, text: str) -> None:
        self._news.append(text)

    def tick(self) -> None:
        """Write driver.json if it is time. The driver's loop calls this, so a loop that hangs shows as a silent driver."""
        if self.clock() - self._written >= SECONDS:
            self._write("running")

    def _write(self, state: str, error: str = "") -> None:
        self._written = self.clock()
        with contextlib.suppress(OSError):  # a full disk stops the sweep at its next table, with a better message
            commit_json(self._run.driver_json, asdict(self._state(state, error)))

    def _state(self, state: str, error: str) -> DriverState:
        now = self.clock()
        requests, tokens, seconds_left = self.rates() or (None, None, None)
        return DriverState(
            written=time.time(),
            began=self._began,
            every=SECONDS,
            state=state,
            error=error,
            host=socket.gethostname(),
            pid=os.getpid(),
            left=self.left,
            done=self.done,
            given_up=self.given_up,
            failures=self.failures,
            requests_per_second=requests,
            tokens_per_second=tokens,
            seconds_left=seconds_left,
            replicas={
                name: {
                    "doing": replica.doing,
                    "seconds": round(now - replica.since, 1),
                    "unit": replica.unit.key if replica.unit and replica.doing == "scoring" else None,
                }
                for name, replica in self.replicas.items()
            },
            news=list(self._news),
            began_as=process_identity(os.getpid()),
        )


def process_identity(pid: int) -> str:
    """Return the machine's start, the space of process numbers, and the process's own start; empty where Linux tells none.

    Two processes with one number, of two containers or before and after a restart, differ in it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return f"{boot} {space} ended"
        return f"{boot} {space} {'ended' if fields[0] in 'ZX' else fields[19]}"
    except OSError:
        return ""
