"""The driver's events are counted, with rate and time left, and shown live on the terminal that runs the sweep."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from contract.events import Listener
from contract.points import order
from contract.units import Receipt, Unit, UnitKey
from lambdasweep.monitor.shares import Place, Shares
from lambdasweep.monitor.wording import duration

_BAR_SECONDS = 0.2  # the bar moves at most once in so long, and for the last unit
_LINE_SECONDS = 5.0  # there is at most one log line in so long, and one for the last unit
_SAMPLES, _SAMPLE_SECONDS = 300, 1.0


@dataclass(slots=True)
class ReplicaState:
    """Says what a living replica does, and since when by the tally's clock."""

    doing: str  # starting, scoring or idle
    since: float
    unit: Unit | None = None  # the unit that the replica scores, or that it scored last where it is idle


class Tally(Listener):
    """Counts the driver's events.

    Rates are taken over the last five minutes, or over longer if few units are done in that time. The time left is that of
    the tokens that are still computed, judging by those of units that are done at the same λ or near it.

    Args:
        units: the units that are left to do.
        clock: a function that returns the time in seconds.
    """

    def __init__(self, units: Sequence[Unit] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.done = self.given_up = self.failures = 0
        self.requests = self.quarantined = self.tokens = 0
        self.replicas: dict[str, ReplicaState] = {}
        self._costs: dict[UnitKey, int] = {}
        self._work: dict[Place, int] = {}  # the costs of all units that are left
        self._shares = Shares()
        # A sample has the time, and the requests and tokens done by then.
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)
        self.grow(units)

    @property
    def left(self) -> int:
        """Return the number of units that are neither done nor given up."""
        return len(self._costs)

    def grow(self, units: Sequence[Unit]) -> None:
        for unit in units:
            self._costs[unit.key] = unit.cost
            place = unit.task, unit.lam
            self._work[place] = self._work.get(place, 0) + unit.cost

    def replica_starting(self, replica: str) -> None:
        self.replicas[replica] = ReplicaState("starting", self.clock())

    def replica_ready(self, replica: str) -> None:
        self.replicas[replica] = ReplicaState("idle", self.clock())

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        self.replicas.pop(replica, None)
        self.failures += failed
        if given_up:
            self.given_up += 1
            self._take(given_up.key)

    def unit_started(self, replica: str, unit: Unit) -> None:
        self.replicas[replica] = ReplicaState("scoring", self.clock(), unit)
        if not self._samples:
            self._samples.append((self.clock(), 0, 0))

    def unit_done(self, receipt: Receipt) -> None:
        if replica := self.replicas.get(receipt.replica):
            replica.doing, replica.since = "idle", self.clock()
        self.done += 1
        self._shares.add(receipt.task, receipt.lam, self._take(receipt.key), receipt.tokens_scheduled)
        self.requests += receipt.requests
        self.quarantined += receipt.quarantined
        self.tokens += receipt.tokens_scheduled
        now = self.clock()
        if self._samples and now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self.requests, self.tokens))

    def _take(self, key: UnitKey) -> int:
        """Return the cost of a unit that is left, which it is no more; 0 for others."""
        cost = self._costs.pop(key, 0)
        if cost:
            place = key[:2]
            self._work[place] -= cost
            if not self._work[place]:
                del self._work[place]
        return cost

    def rates(self) -> tuple[float, float, float] | None:
        """Return requests per second, computed tokens per second and the seconds left; None before a unit is done."""
        if not self._samples:
            return None
        then, requests, tokens = self._samples[0]
        seconds = self.clock() - then
        if seconds <= 0 or self.tokens <= tokens:
            return None
        expected = sum(cost * self._shares.of(*place) for place, cost in self._work.items())
        left = expected * seconds / (self.tokens - tokens)
        return (self.requests - requests) / seconds, (self.tokens - tokens) / seconds, left


class SweepProgress(Listener):
    """Shows units done, the λs in work, requests per second and the time left. It is a context manager.

    Args:
        total: the number of units of this command.
        tally: counts the units that are not committed yet; it is told of each event before this is.
        console: the console to write to; the default is standard error, so that output can be piped.
    """

    def __init__(self, total: int, tally: Tally, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self.seconds = {"switch": 0.0, "score": 0.0, "commit": 0.0}
        self._tally = tally
        self._total, self._before = total, total - tally.left
        self._quarantined: set[str] = set()
        self._printed = float("-inf")
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("units"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._bar_task = self._bar.add_task("starting engines", total=total, completed=self._before)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def grow(self, units: Sequence[Unit]) -> None:
        self._total += len(units)
        if self._bar:
            self._bar.update(self._bar_task, total=self._total)

    def unit_started(self, replica: str, unit: Unit) -> None:
        self._show()

    def unit_done(self, receipt: Receipt) -> None:
        self.seconds["switch"] += receipt.switch_seconds
        self.seconds["score"] += receipt.score_seconds
        self.seconds["commit"] += receipt.commit_seconds
        if receipt.quarantined and receipt.task not in self._quarantined:
            self._quarantined.add(receipt.task)  # the requests are mostly the same at every λ, so this is said once
            self.message(f"{receipt.task}: {receipt.quarantined} requests are quarantined at λ = {receipt.lam}")
        self._show()

    def _show(self) -> None:
        """Tell how far the sweep is, but not at every unit: the time left takes a look at all that is left."""
        done, now = self._before + self._tally.done, time.monotonic()
        if now - self._printed < (_BAR_SECONDS if self._bar else _LINE_SECONDS) and done != self._total:
            return
        self._printed, text = now, self._text()
        if self._bar:
            self._bar.update(self._bar_task, completed=done, description=text)
        else:
            self.message(f"{done}/{self._total} units  {text}")

    def _text(self) -> str:
        at = " ".join(sorted({one.unit.engine_lam for one in self._tally.replicas.values() if one.unit}, key=order))
        rates = self._tally.rates()
        return f"λ {at}" + (f"  {rates[0]:.0f} requests/s  {duration(rates[2])} left" if rates else "")


class ScoreProgress(SweepProgress):
    """Shows units and rows done, tokens computed per second and the time left."""

    def _text(self) -> str:
        rates = self._tally.rates()
        return f"{self._tally.requests} rows" + (
            f"  {rates[1]:.0f} tokens/s  {duration(rates[2])} left" if rates else ""
        )
