"""Several listeners to one driver."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_jobs.units import Receipt, Unit

if TYPE_CHECKING:
    from ray_jobs.driver import Progress


class Listeners:
    """Tells each of its listeners what the driver tells it, in their order."""

    def __init__(self, *listeners: "Progress") -> None:
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
