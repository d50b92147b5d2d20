"""Prometheus finds the metrics of a sweep on Ray's own metrics endpoint.

Ray puts `ray_` in front of their names and `_total` behind those of counters. The driver's events feed the metrics, so
replicas do nothing for them. Each metric has at most one label of ours, so that the number of series grows with the sum of
λs, tasks and replicas and not with their product: 101 λs, 57 tasks and 64 replicas make at most
2 × 101 + 2 × 57 + 8 × 64 + 4 = 832 series, not 368,000. Units are counted by λ, because a sweep works through λs; work and
failures are counted by replica, under its name without the restart number (`replica-3.2` counts as `replica-3`), so that
restarts add no series.
"""

import time
from collections import Counter as Counts
from collections.abc import Sequence
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge

from contract.events import Listener
from contract.units import Receipt, Unit

_TELL_SECONDS = 0.5


class Series(NamedTuple):
    """Describes one metric."""

    name: str
    """The name without Ray's additions."""
    kind: type[Counter] | type[Gauge]
    help: str
    """The meaning, in ASCII, because Ray takes nothing else."""
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Return the name that the metric has in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind is Counter else "")


SERIES = (
    Series("lambdasweep_units_done", Counter, "Units committed", ("lam",)),
    Series("lambdasweep_units_left", Gauge, "Units neither committed nor given up", ("lam",)),
    Series("lambdasweep_units_waiting", Gauge, "Units left that no replica has in hand"),
    Series("lambdasweep_units_given_up", Counter, "Units that failed on every try", ("task",)),
    Series("lambdasweep_requests", Counter, "Requests of committed units", ("replica",)),
    Series("lambdasweep_requests_quarantined", Counter, "Requests that could not be scored", ("task",)),
    Series("lambdasweep_tokens_scheduled", Counter, "Tokens computed by engines", ("replica",)),
    Series("lambdasweep_tokens_generated", Counter, "Tokens sampled, which are computed too", ("replica",)),
    Series("lambdasweep_tokens_cached", Counter, "Tokens taken from prefix caches", ("replica",)),
    Series("lambdasweep_switch_seconds", Counter, "Time replicas spent switching lambda", ("replica",)),
    Series("lambdasweep_score_seconds", Counter, "Time replicas spent scoring", ("replica",)),
    Series("lambdasweep_commit_seconds", Counter, "Time replicas spent writing tables", ("replica",)),
    Series("lambdasweep_replicas", Gauge, "Living replicas", ("doing",)),
    Series("lambdasweep_failures", Counter, "Replicas lost, at their start or at a unit", ("replica",)),
)


class PrometheusMetrics(Listener):
    """Listens to the driver and keeps the metrics. It can be made only once Ray is initialised."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._series = {one.name: one.kind(one.name, one.help, one.labels) for one in SERIES}
        self._left: Counts[str] = Counts()
        self._replicas: dict[str, str] = {}
        self._told = float("-inf")
        self.grow(units)

    def tick(self) -> None:
        """Set all gauges again, because Ray drops gauges that were not set for a while."""
        if (now := time.monotonic()) - self._told >= _TELL_SECONDS:
            self._told = now
            self._set_all()

    def grow(self, units: Sequence[Unit]) -> None:
        self._left.update(unit.lam for unit in units)
        self._set_all()

    def replica_starting(self, replica: str) -> None:
        self._now(replica, "starting")

    def replica_ready(self, replica: str) -> None:
        self._now(replica, "idle")

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        self._count("lambdasweep_failures", int(failed), replica=_without_restarts(replica))
        if given_up:
            self._count("lambdasweep_units_given_up", 1, task=given_up.task)
            self._left[given_up.lam] -= 1
            self._set_left(given_up.lam)
        self._replicas.pop(replica, None)
        self._set_totals()

    def unit_started(self, replica: str, unit: Unit) -> None:
        self._now(replica, "scoring")

    def unit_done(self, receipt: Receipt) -> None:
        self._count("lambdasweep_units_done", 1, lam=receipt.lam)
        self._left[receipt.lam] -= 1
        self._set_left(receipt.lam)
        self._count("lambdasweep_requests_quarantined", receipt.quarantined, task=receipt.task)
        for name in (
            "requests",
            "tokens_scheduled",
            "tokens_generated",
            "tokens_cached",
            "switch_seconds",
            "score_seconds",
            "commit_seconds",
        ):
            self._count(f"lambdasweep_{name}", getattr(receipt, name), replica=_without_restarts(receipt.replica))
        if receipt.replica in self._replicas:
            self._now(receipt.replica, "idle")

    def _now(self, replica: str, doing: str) -> None:
        self._replicas[replica] = doing
        self._set_totals()

    def _count(self, name: str, value: float, **labels: str) -> None:
        if value > 0:  # Ray refuses to add 0 or less to a counter
            self._series[name].inc(value, labels)

    def _set_all(self) -> None:
        for lam in self._left:
            self._set_left(lam)
        self._set_totals()

    def _set_left(self, lam: str) -> None:
        self._series["lambdasweep_units_left"].set(self._left[lam], {"lam": lam})

    def _set_totals(self) -> None:
        doing = Counts(self._replicas.values())
        for state in ("starting", "idle", "scoring"):
            self._series["lambdasweep_replicas"].set(doing[state], {"doing": state})
        self._series["lambdasweep_units_waiting"].set(self._left.total() - doing["scoring"])


def _without_restarts(replica: str) -> str:
    return replica.partition(".")[0]
