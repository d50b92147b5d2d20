"""This runs the scheduler alone, at 1,000 replicas and a million units: how near is it to the bound, what does a unit cost?

    python benchmarks/scheduler.py [--quick] [--seed N]

Replicas are simulated (see simulate.py); the scheduler's own time is real. There are four questions:
1. Without failures, with a tenth of the replicas joining late: makespan over a bound that no schedule beats.
2. With replicas lost, units failing and late receipts: is any unit lost or done twice?
3. What does taking coarse λs first buy? It shows after which part of the sweep a coarse frontier is there (both ends of the
   grid, no gap above 10 points, complete over all tasks), beside taking λs in ascending order. It buys much where
   replicas are fewer than λs, and nothing where they are more: then all λs are under way from the start.
4. What does it cost that nobody knows how long written answers get? Costs are the most that units can take, and at most λs
   units take a twentieth of it. It shows by how many of its longest units the sweep ends after the bound, beside a
   scheduler that knows what units will take.
"""

import argparse
import dataclasses
import json
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from simulate import Cluster, Outcome, coarse_frontier_at, simulate

from contract.units import Unit
from ray_jobs.scheduler import Scheduler
from ray_jobs.units import TaskPlan, units_for

GRID = [f"{point / 100:.2f}".rstrip("0").rstrip(".") for point in range(101)]  # 0:1:0.01
COARSE_STEP = 10  # so many grid points
TASKS = 5
SHORT = 20  # units of most λs take one part in so many of their cost, where outputs ramble at the others


class Timed(Scheduler):
    """Adds up the real time spent in the four calls that a unit costs."""

    seconds = 0.0

    def next(self, replica: str) -> Unit | None:
        begun = time.perf_counter()
        unit = super().next(replica)
        self.seconds += time.perf_counter() - begun
        return unit

    def done(self, replica: str, unit: Unit) -> bool:
        begun = time.perf_counter()
        counted = super().done(replica, unit)
        self.seconds += time.perf_counter() - begun
        return counted

    def failed(self, replica: str, unit: Unit, charge: bool = True) -> bool:
        begun = time.perf_counter()
        given_up = super().failed(replica, unit, charge)
        self.seconds += time.perf_counter() - begun
        return given_up

    def lost(self, replica: str, charge: bool = True) -> bool:
        begun = time.perf_counter()
        given_up = super().lost(replica, charge)
        self.seconds += time.perf_counter() - begun
        return given_up


def make_units(shards: int, seed: int) -> list[Unit]:
    """Return `shards` shards at every λ of the grid, over tasks whose shards cost 5 to 30 s."""
    source = random.Random(seed)
    tasks = {}
    for task in range(TASKS):
        mean = source.uniform(5, 20)
        count = shards // TASKS + (task < shards % TASKS)
        costs = [max(1, round(mean * source.uniform(0.7, 1.3))) for _ in range(count)]
        tasks[f"task-{task}"] = TaskPlan([(64 * row, 64 * row + 64) for row in range(count)], GRID, costs)
    return units_for(tasks, lambda task, lam: ())


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def timed_run(units: list[Unit], cluster: Cluster) -> tuple[Outcome, float, float, float]:
    """Return the outcome, the scheduler's µs a unit (its construction included), that of construction, and its MiB."""
    before, begun = resident_mib(), time.perf_counter()
    scheduler = Timed(units)
    construction, mib = time.perf_counter() - begun, resident_mib() - before
    outcome = simulate(units, scheduler, cluster)
    return outcome, (construction + scheduler.seconds) / len(units) * 1e6, construction / len(units) * 1e6, mib


def frontier_parts(replicas: int, shards: int, seed: int) -> tuple[float, float]:
    """Return the parts of the makespan at which the coarse frontier is there: coarse λs first, and ascending."""
    units = make_units(shards, seed)
    parts = []
    for order in (None, GRID):
        outcome = simulate(units, Scheduler(units, order=order), Cluster([0.0] * replicas, seed=seed))
        parts.append(coarse_frontier_at(outcome.finished_at, GRID, COARSE_STEP) / outcome.makespan)
    return parts[0], parts[1]


def held_up(replicas: int, shards: int, seed: int, rambling: Sequence[str]) -> tuple[float, float]:
    """Return by how many longest units a sweep ends after its bound: with costs that are the most, and with true ones."""
    units = make_units(shards, seed)
    parts = {lam: 1.0 if lam in rambling else 1 / SHORT for lam in GRID}
    known = [dataclasses.replace(unit, cost=round(SHORT * unit.cost * parts[unit.lam])) for unit in units]
    units_late = []
    for some, of_cost in ((units, parts), (known, dict.fromkeys(GRID, 1 / SHORT))):
        outcome = simulate(some, Scheduler(some), Cluster([0.0] * replicas, parts=of_cost, seed=seed))
        units_late.append((outcome.makespan - outcome.bound) / outcome.longest)
    return units_late[0], units_late[1]


def cpu_model() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} × {names[0].partition(':')[2].strip()}" if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 replicas and 20,200 units")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    replicas, shards = (100, 200) if options.quick else (1000, 9901)
    seed = options.seed

    units = make_units(shards, seed)
    seconds_each = sum(unit.cost for unit in units) / replicas
    joining = [seconds_each * 0.1 * number / (replicas // 10) for number in range(replicas // 10)]
    calm = Cluster([0.0] * (replicas - len(joining)) + joining, seed=seed)
    rough = Cluster(
        calm.starts, mean_life=seconds_each / 2, failure_rate=0.001, charge_rate=0.3, late_rate=0.3, seed=seed
    )
    print(f"hardware  {cpu_model()}, one core used; {platform.platform()}")
    print(f"versions  Python {sys.version.split()[0]}")
    print(
        f"settings  {replicas:,} replicas ({len(joining)} of them join during the first tenth), {len(units):,} units at "
        f"{len(GRID)} λs of {TASKS} tasks,\n"
        f"          log-normal durations (σ {calm.sigma}), λ switch {calm.switch_seconds} s, seed {seed};\n"
        f"          with failures: a replica lives {rough.mean_life:,.0f} s in the mean, {rough.failure_rate:.1%} of "
        f"units fail, {rough.charge_rate:.0%} are charged,\n"
        f"          {rough.late_rate:.0%} of lost replicas' units were committed\n"
    )

    titles = ("", "makespan s", "/ bound", "switches", "losses", "failures", "done", "given up", "lost", "duplicated")
    print(("{:<14}" + "{:>11}" * 9 + "{:>9}{:>9}").format(*titles, "µs/unit", "of setup"))
    rows = []
    for name, cluster in (("no failures", calm), ("with failures", rough)):
        outcome, each, setup, mib = timed_run(units, cluster)
        rows.append((outcome, each, mib))
        over = f"{outcome.makespan / outcome.bound:.4f}" if cluster is calm else "-"
        numbers = (outcome.switches, outcome.losses, outcome.failures, outcome.done, outcome.given_up)
        print(
            f"{name:<14}{outcome.makespan:>11,.0f}{over:>11}"
            + "".join(f"{number:>11,}" for number in (*numbers, outcome.lost, outcome.duplicated))
            + f"{each:>9.2f}{setup:>9.2f}",
            flush=True,
        )
    (calm_outcome, calm_us, mib), (rough_outcome, rough_us, _) = rows
    print(f"\nthe scheduler's memory: {mib:,.0f} MiB besides the units ({mib * 2**20 / len(units):.0f} bytes a unit)\n")

    print("part of the sweep after which the coarse frontier is there")
    print(f"{'replicas':<14}{'units':>11}{'coarse first':>14}{'ascending':>11}")
    frontier = {}
    for count, of_shards in ((8, 50), (64, 50)) if options.quick else ((8, 100), (64, 100), (1000, 1000)):
        coarse, ascending = frontier_parts(count, of_shards, seed)
        frontier[str(count)] = {"coarse_first": round(coarse, 4), "ascending": round(ascending, 4)}
        print(f"{count:<14,}{of_shards * len(GRID):>11,}{coarse:>14.1%}{ascending:>11.1%}", flush=True)

    print("\nlongest units between the bound and the end, where outputs ramble at some λs and nobody knows it")
    print(f"{'replicas':<14}{'units':>11}{'rambling at':>18}{'as it is':>10}{'all known':>11}")
    late = {}
    for count, of_shards in ((8, 50), (64, 50)) if options.quick else ((8, 100), (64, 100), (1000, 1000)):
        for text, rambling in (("0.91 to 1", GRID[91:]), ("0.37", GRID[37:38])):
            ours, known = held_up(count, of_shards, seed, rambling)
            late[f"{count}, {text}"] = {"as_it_is": round(ours, 2), "all_known": round(known, 2)}
            print(f"{count:<14,}{of_shards * len(GRID):>11,}{text:>18}{ours:>10.2f}{known:>11.2f}", flush=True)

    print()
    print(
        json.dumps(
            {
                "makespan_over_bound": round(calm_outcome.makespan / calm_outcome.bound, 5),
                "us_per_unit": round(max(calm_us, rough_us), 3),
                "lost": calm_outcome.lost + rough_outcome.lost,
                "duplicated": calm_outcome.duplicated + rough_outcome.duplicated,
                "replicas": replicas,
                "units": len(units),
                "losses": rough_outcome.losses,
                "given_up": rough_outcome.given_up,
                "bytes_per_unit": round(mib * 2**20 / len(units)),
                "coarse_frontier_at": frontier,
                "longest_units_after_bound": late,
            }
        )
    )


if __name__ == "__main__":
    main()
