"""Live progress: a status line on a terminal, plain log lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from ray_jobs.units import Receipt, Unit

_LINE_SECONDS = 5.0  # at most one log line per this, and one for the last unit


class SweepProgress:
    """Shows units done, the λs in work, requests per second and the time left. A context manager.

    Args:
        total: units of this command.
        done: of those, committed before.
        work: cost of all units that are left, for the time estimate.
        console: where to write; standard error by default, so that output can be piped.
    """

    def __init__(self, total: int, done: int, work: int, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self.requests = 0
        self.tokens = 0
        self.units = 0
        self.seconds = {"switch": 0.0, "score": 0.0, "commit": 0.0}
        self._total, self._done = total, done
        self._work, self._work_done = work, 0
        self._costs: dict[tuple[str, str, int], int] = {}
        self._at: dict[str, str] = {}
        self._quarantined: set[str] = set()
        self._began: float | None = None
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
            self._bar_task = self._bar.add_task("starting engines", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def message(self, text: str) -> None:
        """Write one line of news."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def unit_started(self, replica: str, unit: "Unit") -> None:
        """A replica begins a unit."""
        self._began = self._began or time.monotonic()
        self._costs[unit.key] = unit.cost
        self._at[replica.partition(".")[0]] = unit.lam
        self._show()

    def unit_done(self, receipt: "Receipt") -> None:
        """A unit is committed."""
        self._done += 1
        self._work_done += self._costs.pop(receipt.key, 0)
        self.requests += receipt.requests
        self.tokens += receipt.tokens_scheduled + receipt.tokens_cached
        self.units += 1
        self.seconds["switch"] += receipt.switch_seconds
        self.seconds["score"] += receipt.score_seconds
        self.seconds["commit"] += receipt.commit_seconds
        if receipt.quarantined and receipt.task not in self._quarantined:
            self._quarantined.add(receipt.task)  # mostly the same requests at every λ: said once
            self.message(f"{receipt.task}: {receipt.quarantined} requests are quarantined at λ = {receipt.lam}")
        self._show()

    def _show(self) -> None:
        text = self._text()
        if self._bar:
            self._bar.update(self._bar_task, completed=self._done, description=text)
        elif (now := time.monotonic()) - self._printed >= _LINE_SECONDS or self._done == self._total:
            self._printed = now
            self.message(f"{self._done}/{self._total} units  {text}")

    def _text(self) -> str:
        at = "λ " + " ".join(sorted(set(self._at.values()), key=float))
        if self._elapsed is None:
            return at
        return f"{at}  {self.requests / self._elapsed:.0f} requests/s  {self._left} left"

    @property
    def _elapsed(self) -> float | None:
        """Seconds of work; None before the first unit is done."""
        return time.monotonic() - self._began if self._began and self._work_done else None

    @property
    def _left(self) -> str:
        return duration((self._work - self._work_done) * (self._elapsed or 0.0) / self._work_done)


class ScoreProgress(SweepProgress):
    """Shows units and rows done, tokens of the prompts per second and the time left."""

    def _text(self) -> str:
        if self._elapsed is None:
            return "0 rows"
        return f"{self.requests} rows  {self.tokens / self._elapsed:.0f} tokens/s  {self._left} left"


def duration(seconds: float) -> str:
    """Write seconds as a person would: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
