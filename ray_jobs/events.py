"""The driver tells its listeners what happens; this module says what it tells, and lets it have several listeners."""

from collections.abc import Sequence
from typing import Protocol

from ray_jobs.units import Receipt, Unit


class Listener(Protocol):
    """A listener: the driver calls these methods while it runs."""

    def message(self, text: str) -> None: ...

    def tick(self) -> None: ...  # is called every half second or more often

    def grow(self, units: Sequence[Unit]) -> None: ...  # is called when there are further units to do

    def replica_starting(self, replica: str) -> None: ...

    def replica_ready(self, replica: str) -> None: ...

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        """A replica ended by a failure or with its node. `given_up` is the unit it had in hand, if that is given up."""

    def unit_started(self, replica: str, unit: Unit) -> None: ...

    def unit_done(self, receipt: Receipt) -> None: ...


class Listeners:
    """Passes everything that the driver tells it on to several listeners, in their order."""

    def __init__(self, *listeners: Listener) -> None:
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
