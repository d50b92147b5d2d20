"""This kills at random during a sweep on a Ray cluster of several nodes: is any unit lost or done twice, does a byte change?

    python benchmarks/chaos.py [--quick] [--kills N] [--seed N]

The sweep is of the demo pair with real vLLM engines on the CPU, tensor parallel 2, and `lambdasweep run --address` drives
it. One undisturbed sweep is the reference. A second one goes through seeded kills: of a replica's process, of one of its
tensor-parallel ranks, of a whole node (another joins later), and of the driver (the same command is given again). Nodes
are raylets on this machine; Ray's token authentication is on.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
KINDS = ("replica", "rank", "node", "driver")
EXIT_DONE = (0, 3)  # status 3: one document is in quarantine


def write_inputs(root: Path, documents: int) -> list[str]:
    """Write a task; return the arguments of the sweep, which is of the demo pair."""
    from lambdasweep.demo import ALIGNED, BASE

    rows = [
        {"query": f"Which is {n}? " + "so " * (n % 40), "choices": [f"one {n}", f"two {n}"], "gold": n % 2}
        for n in range(documents)
    ]
    rows[7]["query"] = "far too long " * 300
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--base", BASE, "--aligned", ALIGNED, "--task", f"rows={root / 'rows.jsonl'}"]
    arguments += ["--max-model-len", 256, "--engine", "kv_cache_memory_bytes=67108864", "--engine", "threads=1"]
    return [*map(str, arguments), "--tp", "2"]


class Chaos:
    """This has a cluster and the driver's process, and kills parts of them."""

    def __init__(self, arguments: list[str], out: Path, nodes: int, seed: int) -> None:
        from ray._private.internal_api import get_state_from_address
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.state = get_state_from_address(self.cluster.address)
        self.nodes = [self.add_node() for _ in range(nodes)]
        self.out, self.log = out, out.with_suffix(".log")
        self.command = [
            sys.executable,
            "-m",
            "lambdasweep",
            "run",
            "--address",
            self.cluster.address,
            "--out",
            str(out),
        ]
        self.command += arguments
        self.random = random.Random(seed)
        self.killed_nodes = self.restarts = 0
        self.driver = self.start()

    def add_node(self) -> Any:
        """Start a node. Ray gives it 30 s, which a busy machine may exceed: then another is started."""
        for _ in range(3):
            with contextlib.suppress(Exception):  # Ray raises a bare Exception
                return self.cluster.add_node(num_cpus=2)
        return self.cluster.add_node(num_cpus=2)

    def start(self) -> "subprocess.Popen[bytes]":
        with open(self.log, "ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def tables(self) -> int:
        return len(list(self.out.glob("tokens/*/*/shard-*.parquet")))

    def kill(self, kind: str) -> bool:
        """Kill one thing; False where there is none of that kind now."""
        if kind == "driver":
            self.driver.kill()
            self.driver.wait()
            self.driver = self.start()
            return True
        if kind == "node":
            if len(self.nodes) < 2:
                return False
            node = self.nodes.pop(self.random.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.killed_nodes += 1
            return True
        replicas = sorted(self.replicas(), key=lambda process: process.pid)
        victims = replicas if kind == "replica" else [rank for one in replicas for rank in ranks(one)]
        if not victims:
            return False
        self.random.choice(victims).kill()
        return True

    def replicas(self) -> list[psutil.Process]:
        found = []
        for actor in self.state.actor_table(None, None, "ALIVE").values():
            with contextlib.suppress(psutil.Error):
                if actor["ActorClassName"] == "Replica":
                    found.append(psutil.Process(actor["Pid"]))
        return found

    def run(self, kills: int, kinds: tuple[str, ...], units: int, log: Callable[[str], None]) -> Counter[str]:
        """Kill until that many kills are done, a few tables apart, and let the sweep end; return the kills by kind."""
        done: Counter[str] = Counter()
        plan = [kinds[number % len(kinds)] for number in range(kills)]
        self.random.shuffle(plan)
        apart = max(1, units // (2 * kills + 2))
        following = 1
        while plan:
            self.check()
            if self.driver.poll() in EXIT_DONE:
                raise SystemExit(f"the sweep was over before {len(plan)} of the kills: give it more units")
            if self.tables() >= following:
                time.sleep(self.random.uniform(0, 0.5))
                kind = plan[-1]
                if self.kill(kind):
                    plan.pop()
                    done[kind] += 1
                    log(f"{self.tables()}/{units} tables: killed a {kind}")
                    following = self.tables() + apart
                    if len(self.nodes) < 2:
                        self.nodes.append(self.add_node())  # the new node joins while the sweep runs
            time.sleep(0.05)
        while self.driver.poll() not in EXIT_DONE:
            self.check()
            time.sleep(0.2)
        return done

    def check(self) -> None:
        status = self.driver.poll()
        if status is None or status in EXIT_DONE:
            return
        if self.killed_nodes > self.restarts:  # the driver may have been connected through the raylet that was killed
            self.restarts += 1
            self.driver = self.start()
        else:
            raise SystemExit(f"the sweep ended with status {status}:\n{self.log.read_text()[-4000:]}")

    def close(self) -> None:
        if self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self.cluster.shutdown()


def ranks(replica: psutil.Process) -> list[psutil.Process]:
    """Return the tensor-parallel ranks of a replica."""
    try:
        return [child for child in replica.children() if "resource_tracker" not in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def results(out: Path) -> dict[str, bytes]:
    """Return every file of the results by its path."""
    kinds = ("requests", "tokens", "quarantine", "metrics.parquet")
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.relative_to(out).parts[0] in kinds]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def measure(
    root: Path, lambdas: str, documents: int, kills: int, seed: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """Run both sweeps; return what the last line of the benchmark says."""
    import pyarrow.parquet as pq

    from contract.records import read_plan
    from contract.rundir import RunDir

    arguments = [*write_inputs(root, documents), "--lambdas", lambdas]
    begun = time.monotonic()
    calm = Chaos([*arguments], root / "calm", 1, seed)
    try:
        calm.run(0, KINDS, 0, log)
    finally:
        calm.close()
    reference = results(root / "calm")
    units = sum(name.startswith("tokens/") for name in reference)
    log(f"the undisturbed sweep: {units} units in {time.monotonic() - begun:.0f} s")
    begun = time.monotonic()
    chaos = Chaos(arguments, root / "chaos", 2, seed)
    try:
        done = chaos.run(kills, KINDS, units, log)
    finally:
        chaos.close()
    disturbed = results(root / "chaos")
    requests: Counter[tuple[str, int]] = Counter()
    run = RunDir(root / "chaos")
    plan = read_plan(run)["rows"]
    for lam in plan.lambdas:
        for table in (run.tokens("rows", lam), run.quarantine("rows", lam)):
            requests.update((lam, number) for number in table.column("request_id").to_pylist())
    rows = pq.read_metadata(run.requests("rows")).num_rows * len(plan.lambdas)
    return {
        "kills": sum(done.values()),
        "lost": rows - len(requests),
        "duplicated": sum(count - 1 for count in requests.values()),
        "bytes_identical": reference == disturbed,
        "by_kind": dict(sorted(done.items())),
        "units": units,
        "seconds": round(time.monotonic() - begun),
        "given_up_or_split": (root / "chaos.log").read_text().count(" split, "),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 kills")
    parser.add_argument("--kills", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills = options.kills or (4 if options.quick else 20)
    # This comes before Ray is imported, because its processes and the driver's talk with a token.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    print(f"hardware  {len(os.sched_getaffinity(0))} cores; {platform.platform()}; Python {sys.version.split()[0]}")
    print(f"settings  {kills} kills, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        lambdas, documents = ("0:1:0.1", 200) if options.quick else ("0:2:0.05", 400)
        found = measure(
            Path(folder), lambdas, documents, kills, options.seed, lambda text: print(f"  {text}", flush=True)
        )
    print(json.dumps(found))
    if found["lost"] or found["duplicated"] or not found["bytes_identical"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
