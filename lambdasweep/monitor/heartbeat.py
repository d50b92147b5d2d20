"""RUN/driver.json: how the running driver does, for whoever sees RUN; replaced as a whole every few seconds.

It holds what the tables cannot tell: living replicas, failures, rate and time left. It is no result and nothing hangs on it:
a driver that cannot write it goes on, and one that is gone leaves it stale, which `written` shows.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, TypedDict

from contract.rundir import RunDir, commit_json
from contract.units import Unit
from lambdasweep.monitor.progress import Tally

SECONDS = 3.0
_NEWS = 5


class ReplicaReport(TypedDict):
    """What a living replica does."""

    doing: str
    """starting, scoring or idle"""
    seconds: float
    """since when"""
    unit: Sequence[Any] | None
    """task, λ and shard of what it scores"""


@dataclass(frozen=True, slots=True)
class DriverState:
    """What driver.json holds."""

    written: float
    """seconds since 1970"""
    began: float
    """seconds since 1970"""
    every: float
    """seconds between two writings"""
    state: str
    """running; done, stopped (by a signal) or failed: how the driver ended"""
    error: str
    """of a driver that failed"""
    host: str
    pid: int
    left: int
    """units of this driver that are neither done nor given up"""
    done: int
    given_up: int
    failures: int
    """replicas lost, at their start or at a unit"""
    requests_per_second: float | None
    """None before a unit is done, as the next two"""
    tokens_per_second: float | None
    """computed, without those from prefix caches"""
    seconds_left: float | None
    replicas: dict[str, ReplicaReport]
    """the living ones"""
    news: list[str]
    """the last lines that the driver said"""

    @staticmethod
    def read(run: RunDir) -> "DriverState | None":
        """Return the state of the run's last driver; None where none was written, or by another version."""
        value = run.driver()
        try:
            return None if value is None else DriverState(**value)
        except TypeError:
            return None


class DriverView:
    """A run's last driver as others see it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.driver: DriverState | None = None
        self._driver_seen = float("-inf")

    @property
    def driver_age(self) -> float:
        """Seconds since the driver wrote. Once it was seen writing, no clock but this machine's matters."""
        return max(0.0, time.monotonic() - self._driver_seen)

    @property
    def driver_runs(self) -> bool:
        driver = self.driver
        return driver is not None and driver.state == "running" and self.driver_age < 10 * driver.every

    def look_at_driver(self) -> None:
        before, self.driver = self.driver, DriverState.read(self.run)
        if self.driver and (before is None or before.written != self.driver.written):
            ago = max(0.0, time.time() - self.driver.written) if before is None else 0.0
            self._driver_seen = time.monotonic() - ago


class Heartbeat(Tally):
    """The tally of a command, which writes driver.json too. A context manager, around all of the driver's work."""

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
        """Called by the driver's loop, so that a loop that hangs shows as a driver that was not seen."""
        if self.clock() - self._written >= SECONDS:
            self._write("running")

    def _write(self, state: str, error: str = "") -> None:
        self._written = self.clock()
        with contextlib.suppress(OSError):  # a full disk stops the sweep at its tables, with a better message
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
        )
