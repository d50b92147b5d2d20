"""The driver's events change the Prometheus metrics. `test_job.py` sees that these appear on Ray's endpoint."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.util.metrics import Counter, Gauge, Metric

from contract.units import Unit
from ray_jobs.prometheus import SERIES, PrometheusMetrics
from tests.support.receipts import receipt


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[tuple[str, ...], float]]:
    """Return what a metric has come to, by the value of its label."""
    values: dict[str, dict[tuple[str, ...], float]] = {}

    def record(self: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        tags = tags or {}
        self._validate_tags(tags)
        assert set(tags) == set(self.info["tag_keys"])
        mine, key = values.setdefault(self.info["name"], {}), tuple(tags.values())
        mine[key] = value + (mine.get(key, 0) if isinstance(self, Counter) else 0)

    monkeypatch.setattr(Metric, "_record", record)
    return lambda name: values.get(f"lambdasweep_{name}", {})


def test_events_are_counted(recorded: Callable[[str], Any]) -> None:
    units = [Unit("arc", lam, shard, 0, 1, 1) for lam in ("0", "0.5") for shard in (0, 1)]
    metrics = PrometheusMetrics(units)
    assert recorded("units_left") == {("0",): 2, ("0.5",): 2}
    assert recorded("units_waiting") == {(): 4}
    for name in ("replica-0", "replica-1"):
        metrics.replica_starting(name)
    metrics.replica_ready("replica-0")
    assert recorded("replicas") == {("starting",): 1, ("idle",): 1, ("scoring",): 0}
    metrics.unit_started("replica-0", units[0])
    assert (recorded("replicas")["scoring",], recorded("units_waiting")) == (1, {(): 3})
    metrics.unit_done(receipt(units[0], quarantined=3))
    assert recorded("units_done") == {("0",): 1}
    assert recorded("units_left") == {("0",): 1, ("0.5",): 2}
    assert recorded("requests_quarantined") == {("arc",): 3}
    assert recorded("tokens_scheduled") == {("replica-0",): 750}
    assert recorded("tokens_cached") == {("replica-0",): 250}
    assert recorded("score_seconds") == {("replica-0",): 34.0}

    # A replica is lost with its unit, which is put back; its successor counts under the same name and loses it for good.
    metrics.unit_started("replica-0", units[2])
    metrics.replica_lost("replica-0", True, None)
    metrics.replica_starting("replica-0.2")
    metrics.unit_started("replica-0.2", units[2])
    assert recorded("units_left") == {("0",): 1, ("0.5",): 2}
    metrics.replica_lost("replica-0.2", True, units[2])
    assert recorded("failures") == {("replica-0",): 2}
    assert recorded("units_given_up") == {("arc",): 1}
    assert recorded("units_left") == {("0",): 1, ("0.5",): 1}
    assert recorded("units_waiting") == {(): 2}
    assert recorded("replicas") == {("starting",): 1, ("idle",): 0, ("scoring",): 0}


def test_no_metric_has_two_labels_and_ray_takes_each() -> None:
    for one in SERIES:
        assert len(one.labels) <= 1
        assert one.help.isascii()
        assert one.kind in (Counter, Gauge)
        one.kind(one.name, one.help, one.labels)
