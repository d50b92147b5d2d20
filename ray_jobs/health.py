"""When a replica counts as hung. Times are seconds of any one clock, which the caller reads."""

PING_SECONDS = 5.0  # between heartbeats
SILENCE_SECONDS = 180.0  # a heartbeat that is not answered for so long
START_SECONDS = (
    3600.0  # an engine that is not up by then: the weights of a large pair over a slow network take their time
)

_UNKNOWN_SECONDS = 3600.0  # for a unit, while none has been seen
_LEAST_SECONDS = 300.0
_FACTOR = 20.0


class Deadlines:
    """How long a unit may take, by what units took so far."""

    def __init__(self) -> None:
        self._seconds = self._cost = 0.0

    def observe(self, seconds: float, cost: int) -> None:
        """Take in a unit that is done."""
        self._seconds += seconds
        self._cost += cost

    def allowed(self, cost: int) -> float:
        """Return the seconds after which a unit of this cost counts as hung."""
        if not self._cost:
            return _UNKNOWN_SECONDS
        return max(_LEAST_SECONDS, _FACTOR * cost * self._seconds / self._cost)
