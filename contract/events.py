"""The driver tells its listeners what happens; this module says what it tells, and lets it have several listeners."""

from collections.abc import Sequence

from contract.units import Receipt, Unit


class Listener:
    """Listens to the driver. Each method does nothing until a class overrides it."""

    def message(self, text: str) -> None:
        """There is one line of news."""

    def tick(self) -> None:
        """Half a second has passed, or less."""

    def grow(self, units: Sequence[Unit]) -> None:
        """There are further units to do."""

    def replica_starting(self, replica: str) -> None:
        """An engine is being started."""

    def replica_ready(self, replica: str) -> None:
        """The replica can score."""

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        """A replica ended by a failure or with its node. `given_up` is the unit it had in hand, if that is given up."""

    def unit_started(self, replica: str, unit: Unit) -> None:
        """A replica begins a unit."""

    def unit_done(self, receipt: Receipt) -> None:
        """A unit is committed."""


class Listeners(Listener):
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
