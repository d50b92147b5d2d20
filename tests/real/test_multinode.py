"""A replica is over two nodes: real Ray has two raylets on this machine, and real vLLM has a pipeline stage on each.

The reference has both stages in one node. Neither the nodes nor the kills may change a byte.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from contract.commit import read_identity
from contract.rundir import RunDir
from tests.support.checkpoints import write_checkpoint
from tests.support.sweep_process import Sweep, alive, committed, tables
from tests.support.waiting import patiently, until
from tests.support.waiting import run as run_command
from tests.support.warm_python import descendants, warm_python


def words(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def main(out: Path, arguments: list[str]) -> None:
    """Run a sweep on a cluster and kill what runs it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [patiently(lambda: cluster.add_node(num_cpus=1)) for _ in range(2)]

    def family(name: str) -> list[psutil.Process]:
        """Return the actor processes of a class, each followed by its ranks."""
        found = []
        for node in nodes:
            for process in descendants(node.all_processes["raylet"][0].process.pid):
                if words(process).startswith(f"ray::{name}"):
                    ranks = [one for one in descendants(process.pid) if "resource_tracker" not in words(one)]
                    found += [process, *ranks]
        return found

    def lose(what: str, kill: Callable[[], None], ready: str) -> None:
        before = tables(out)
        sweep.until(lambda: tables(out) >= before + 2)
        old = family("Replica") + family("Follower")
        assert len(old) >= 4, old
        began = time.monotonic()
        kill()
        until(lambda: not alive(old), 30)
        print(f"{what}: all of it gone after {time.monotonic() - began:.1f} s", flush=True)
        sweep.until(lambda: f"{ready} is ready" in sweep.text())
        print(f"{what}: replaced after {time.monotonic() - began:.1f} s", flush=True)

    sweep = Sweep(out, [*arguments, "--address", cluster.address])
    try:
        lose("a rank of the follower", lambda: family("Follower")[-1].kill(), "replica-0.2")
        lose("the follower", lambda: family("Follower")[0].kill(), "replica-0.3")
        assert sweep.wait() == 0, sweep.text()
        assert "given up" not in sweep.text()
    finally:
        print(sweep.text(), flush=True)
        cluster.shutdown()
    print("all is well")


def test_a_replica_over_nodes_and_their_deaths_change_no_byte(tmp_path: Path) -> None:
    for seed, role in enumerate(("base", "aligned")):
        write_checkpoint(tmp_path / role, seed=seed)
    rows = [
        {"query": f"Which is {n}? " + "so " * (n % 40), "choices": [f"one {n}", f"two {n}"], "gold": n % 2}
        for n in range(200)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "--base",
        tmp_path / "base",
        "--aligned",
        tmp_path / "aligned",
        "--task",
        f"rows={tmp_path}/rows.jsonl",
    ]
    arguments += ["--max-model-len", 256, "--engine", "kv_cache_memory_bytes=67108864", "--engine", "threads=1"]
    given = [*map(str, arguments), "--pp", "2", "--lambdas", "0:1:0.05"]
    whole = Sweep(tmp_path / "whole", [*given, "--replicas", "1"])
    assert whole.wait() == 0, whole.text()

    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    command = [warm_python(), "-m", "tests.real.test_multinode", str(tmp_path / "apart"), *given]
    done = run_command(command, env={**os.environ, **token})
    print(done.stdout)
    assert done.stdout.endswith("all is well\n"), done.stderr
    assert committed(tmp_path / "apart") == committed(tmp_path / "whole")
    run = RunDir(tmp_path / "apart")
    assert read_identity(run.unit("tokens", "rows", "0.35", 0))["engine"]["pipeline_parallel"] == 2
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "apart").rglob("receipts/**/*.json")]
    assert {len(receipt["weight_digests"]) for receipt in receipts} == {2}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
