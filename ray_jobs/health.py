"""This module decides when a replica counts as hung. Times are seconds of any one clock, which the caller reads."""

from contract.units import Receipt, Unit

PING_SECONDS = 5.0  # the time between two heartbeats
SILENCE_SECONDS = 180.0  # a replica hangs if it does not answer a heartbeat for so long
# A replica hangs if its engine is not up by then: the weights of a large pair over a slow network take their time.
START_SECONDS = 3600.0

_UNKNOWN_SECONDS = 3600.0  # the time that a unit may take before any unit of its task is done
_LEAST_SECONDS = 300.0
_FACTOR = 20.0


class Deadlines:
    """Says how long a unit may take, judging by how long units took so far.

    The cost of a unit that is sampled is the most that it can come to, and so is that of a unit whose outputs are scored
    again. At another λ its outputs may be many times as long, up to the limit. So it counts with the tokens that were
    computed for it, and a λ at which outputs never end has the time that they take.
    """

    def __init__(self) -> None:
        self._seconds = self._cost = 0.0

    def observe(self, seconds: float, unit: Unit, receipt: Receipt) -> None:
        """Take in that a unit was done in so many seconds."""
        self._seconds += seconds
        is_of_outputs = bool(receipt.tokens_generated or unit.at)
        self._cost += min(unit.cost, receipt.tokens_scheduled) if is_of_outputs else unit.cost

    def allowed(self, cost: int) -> float:
        """Return the seconds after which a unit of this cost counts as hung."""
        if not self._cost:
            return _UNKNOWN_SECONDS
        return max(_LEAST_SECONDS, _FACTOR * cost * self._seconds / self._cost)
