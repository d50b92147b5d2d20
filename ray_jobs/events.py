"""Who listens to the driver: what it tells, and several listeners at once."""

from collections.abc import Sequence
from typing import Protocol

from ray_jobs.units import Receipt, Unit


class Progress(Protocol):
    """What the driver tells while it runs."""

    def message(self, text: str) -> None: ...

    def tick(self) -> None: ...  # every half second, and more often

    def grow(self, units: Sequence[Unit]) -> None: ...  # there are more to do

    def replica_starting(self, replica: str) -> None: ...

    def replica_ready(self, replica: str) -> None: ...

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        """It ended: by a failure, or with its node. `given_up` is what it had in hand, if that is given up."""

    def unit_started(self, replica: str, unit: Unit) -> None: ...

    def unit_done(self, receipt: Receipt) -> None: ...


class Listeners:
    """Tells each of its listeners what the driver tells it, in their order."""

    def __init__(self, *listeners: Progress) -> None:
        self._listeners = listeners

    def message(self, text: str) -> None:
        for listener in self._listeners:
            listener.message(text)

    def tick(self) -> None:
        for listener in self._listeners:
            listener.tick()

    def grow(self, units: Sequence[Unit]) -> None:
        for listener in self._listeners:
            listener.grow(units)

    def replica_starting(self, replica: str) -> None:
        for listener in self._listeners:
            listener.replica_starting(replica)

    def replica_ready(self, replica: str) -> None:
        for listener in self._listeners:
            listener.replica_ready(replica)

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        for listener in self._listeners:
            listener.replica_lost(replica, failed, given_up)

    def unit_started(self, replica: str, unit: Unit) -> None:
        for listener in self._listeners:
            listener.unit_started(replica, unit)

    def unit_done(self, receipt: Receipt) -> None:
        for listener in self._listeners:
            listener.unit_done(receipt)
