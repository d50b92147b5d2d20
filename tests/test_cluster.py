"""What the driver sees of a cluster's nodes, on a real Ray cluster of several raylets; no engine is started."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from lambdasweep.errors import InputError
from ray_jobs.cluster import Node, check_room
from serve.settings import EngineSettings

ROOT = Path(__file__).parent.parent
SETTINGS = EngineSettings(device="cpu", dtype="float32", max_model_len=64, tensor_parallel=2, threads=1)

PROGRAM = """
import os, signal, subprocess, sys, time
import psutil
import ray
from ray.cluster_utils import Cluster
from ray_jobs.cluster import end_process, living_nodes, on_node
from tests.test_cluster import SETTINGS

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
one = cluster.add_node(num_cpus=5, resources={"accelerator_type:H100": 1})
two = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

def rooms(accelerator=None):
    nodes = living_nodes(SETTINGS, accelerator)
    return [nodes[node.node_id].room if node.node_id in nodes else None for node in (one, two)]

assert rooms() == [2, 1], rooms()  # 5 and 2 cores, 2 a replica
assert rooms("H100") == [2, 0], rooms("H100")

@ray.remote(num_cpus=2, max_restarts=0)
class Actor:
    def where(self):
        return os.getpid(), ray.get_runtime_context().get_node_id()

actor = Actor.options(scheduling_strategy=on_node(two.node_id)).remote()
pid, node_id = ray.get(actor.where.remote())
assert node_id == two.node_id

command = [os.path.join(os.path.dirname(sys.executable), "ray"), "drain-node", "--address", cluster.address]
command += ["--node-id", two.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
subprocess.run(command + ["--deadline-remaining-seconds", "600"], check=True, capture_output=True)
draining = {node_id: node.draining for node_id, node in living_nodes(SETTINGS, None).items()}
assert draining[two.node_id] and not draining[one.node_id], draining

other = Actor.options(scheduling_strategy=on_node(one.node_id)).remote()
pid, _ = ray.get(other.where.remote())
os.kill(pid, signal.SIGSTOP)
end_process(one.node_id, pid)
deadline = time.monotonic() + 30
while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
    assert time.monotonic() < deadline, "a stopped process was not ended"
    time.sleep(0.1)
end_process(one.node_id, os.getpid())  # no replica: left alone

cluster.remove_node(one, allow_graceful=False)
while rooms()[0] is not None:
    time.sleep(0.2)
ray.shutdown()
cluster.shutdown()
print("all is well")
"""


def test_nodes_as_they_come_and_go() -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **token, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.endswith("all is well\n"), done.stdout + done.stderr


def test_room() -> None:
    nodes = {"a": Node("a", "10.0.0.1", 2, False), "b": Node("b", "10.0.0.2", 1, False)}
    check_room(nodes, SETTINGS, 3, None)
    check_room(nodes, SETTINGS, None, None)
    with pytest.raises(InputError, match="room for 3 replicas of the kind H100"):
        check_room(nodes, SETTINGS, 4, "H100")
    with pytest.raises(InputError, match="room for 0"):
        check_room({}, SETTINGS, None, None)
