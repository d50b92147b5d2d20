"""These simulated sweeps go wrong now and then. A process of its own imports little for them."""

import random

from benchmarks.simulate import Cluster, Outcome, simulate
from contract.units import Unit
from ray_jobs.scheduler import Scheduler
from ray_jobs.units import TaskPlan, units_for

GRID = tuple(f"{point / 20:.2f}".rstrip("0").rstrip(".") for point in range(31))  # 0:1.5:0.05


def make_units(lambdas: int, shards: int, seed: int = 0) -> list[Unit]:
    source = random.Random(seed)
    costs = [source.randint(5, 15) for _ in range(shards)]
    plan = TaskPlan([(row, row + 1) for row in range(shards)], GRID[:lambdas], costs)
    return units_for({"task": plan}, lambda task, lam: ())


def rough(seed: int) -> tuple[list[Unit], Cluster]:
    """Simulate a small sweep in which everything goes wrong now and then."""
    source = random.Random(seed)
    units = make_units(source.randint(1, 12), source.randint(1, 30), seed)
    replicas = source.randint(1, 12)
    poison = frozenset(unit.key for unit in source.sample(units, min(len(units), source.randint(0, 3))))
    return units, Cluster(
        starts=[source.choice([0.0, 0.0, source.uniform(0, 200)]) for _ in range(replicas)],
        mean_life=source.choice([30.0, 100.0, 1000.0]),
        down_seconds=source.choice([0.0, 20.0, 100.0]),
        failure_rate=source.choice([0.0, 0.01, 0.1]),
        poison=poison,
        charge_rate=source.choice([0.1, 0.5, 1.0]),
        late_rate=source.choice([0.0, 0.5, 1.0]),
        seed=seed,
    )


def answers(seed: int) -> list[tuple[str, str | Unit | None]]:
    """Return every answer of a scheduler that lives through a rough sweep."""
    units, cluster = rough(seed)
    log: list[tuple[str, str | Unit | None]] = []

    class Logged(Scheduler):
        def next(self, replica: str) -> Unit | None:
            unit = super().next(replica)
            log.append((replica, unit))
            return unit

    scheduler = Logged(units)
    outcome: Outcome = simulate(units, scheduler, cluster)
    return [*log, *(("given up", unit) for unit in scheduler.given_up), ("makespan", str(outcome.makespan))]
