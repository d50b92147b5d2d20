"""A listener of the driver overrides what it needs, all listeners are told the same, and one of them counts."""

import inspect
import io
from pathlib import Path

from rich.console import Console

from contract.events import Listener, Listeners
from contract.rundir import RunDir
from contract.units import Receipt, Unit
from lambdasweep.monitor.heartbeat import Heartbeat
from lambdasweep.monitor.progress import SweepProgress

UNIT = Unit("quiz", "0.5", 0, 0, 4, 10)
RECEIPT = Receipt("quiz", "0.5", 0, 4, 1, 30, 0, 0.5, 2.0, 0.1, "replica-0", "here", "CPU", "reload", ("a",))
EVENTS = {
    "message": ("news",),
    "tick": (),
    "grow": ([UNIT],),
    "replica_starting": ("replica-0",),
    "replica_ready": ("replica-0",),
    "replica_lost": ("replica-0", True, None),
    "unit_started": ("replica-0", UNIT),
    "unit_done": (RECEIPT,),
}


def test_every_event_reaches_every_listener_in_order() -> None:
    assert {name for name, _ in inspect.getmembers(Listener, inspect.isfunction)} == EVENTS.keys()
    told: list[tuple[str, str, tuple[object, ...]]] = []

    def listener(called: str) -> Listener:
        methods = {
            name: lambda self, *values, name=name, called=called: told.append((called, name, values)) for name in EVENTS
        }
        return type("Told", (Listener,), methods)()

    everyone = Listeners(Listener(), listener("first"), listener("second"))
    for name, values in EVENTS.items():
        getattr(everyone, name)(*values)
    assert told == [(called, name, values) for name, values in EVENTS.items() for called in ("first", "second")]


def test_progress_shows_what_the_one_tally_counts(tmp_path: Path) -> None:
    tally = Heartbeat(RunDir(tmp_path / "run"), [UNIT])
    sink = io.StringIO()
    progress = SweepProgress(3, tally, Console(file=sink, width=120))
    everyone = Listeners(tally, progress)
    more = Unit("quiz", "1", 0, 0, 4, 10)
    with progress, tally:
        everyone.replica_starting("replica-0")
        everyone.replica_ready("replica-0")
        everyone.grow([more])
        everyone.unit_started("replica-0", UNIT)
        everyone.unit_done(RECEIPT)
        everyone.replica_lost("replica-0", True, more)
    assert (tally.done, tally.left, tally.given_up, tally.requests, tally.quarantined) == (1, 0, 1, 4, 1)
    assert progress.seconds == {"switch": 0.5, "score": 2.0, "commit": 0.1}
    assert sink.getvalue().splitlines() == [
        "2/4 units  λ 0.5",
        "quiz: 1 requests are quarantined at λ = 0.5",
    ]
