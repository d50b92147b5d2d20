"""What the driver sees of a cluster's nodes, on a real Ray cluster of several raylets; no engine is started."""

import os
import sys
import uuid

import pytest

from contract.errors import InputError
from ray_jobs.cluster import Node
from ray_jobs.placement import Seat, check_room, count_berths, free_berth, ranks_on_node, take
from serve.settings import EngineSettings
from tests.support.paths import ROOT
from tests.support.waiting import run

SETTINGS = EngineSettings(device="cpu", dtype="float32", max_model_len=64, tensor_parallel=2, threads=1)

PROGRAM = """
import os, signal, subprocess, sys, time
import psutil
import ray
from ray.cluster_utils import Cluster
from ray_jobs.cluster import end_process, living_nodes, on_node
from tests.real.test_cluster import SETTINGS
from tests.support.waiting import until

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
one = cluster.add_node(num_cpus=5, resources={"accelerator_type:H100": 1})
two = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

def rooms(accelerator=None):
    nodes = living_nodes(SETTINGS, accelerator)
    return [nodes[node.node_id].stages if node.node_id in nodes else None for node in (one, two)]

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
until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 30)
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
    done = run([sys.executable, "-c", PROGRAM], env={**os.environ, **token, "PYTHONPATH": str(ROOT)})
    assert done.stdout.endswith("all is well\n"), done.stdout + done.stderr


def test_room() -> None:
    nodes = {"a": Node("a", "10.0.0.1", 2, False), "b": Node("b", "10.0.0.2", 1, False)}
    check_room(nodes, SETTINGS, 3, None)
    check_room(nodes, SETTINGS, None, None)
    with pytest.raises(InputError, match="room for 3 replicas of the kind H100"):
        check_room(nodes, SETTINGS, 4, "H100")
    with pytest.raises(InputError, match="room for 0"):
        check_room({}, SETTINGS, None, None)


def node(name: str, stages: int) -> Node:
    return Node(name, f"10.0.0.{name}", stages, False)


def pipeline(stages: int, device: str = "cuda", tensor_parallel: int = 8) -> EngineSettings:
    return EngineSettings(device, "bfloat16", 64, tensor_parallel, stages, threads=int(device == "cpu"))


def seats(nodes: list[Node], settings: EngineSettings) -> list[list[tuple[str, int, int]]]:
    """Fill the nodes; return node, first stage and stages of each replica's seats."""
    taken: dict[str, set[int]] = {}
    found = []
    while berth := free_berth(nodes, taken, settings):
        take(berth, taken)
        found.append([(seat.node.node_id, seat.first, seat.stages) for seat in berth])
    assert count_berths(nodes, settings) == len(found)
    return found


@pytest.mark.parametrize(
    ("rooms", "depth", "found"),
    [
        ([2, 1], 1, [[("0", 0, 1)], [("0", 1, 1)], [("1", 0, 1)]]),
        ([1, 3], 1, [[("1", 0, 1)], [("1", 1, 1)], [("0", 0, 1)], [("1", 2, 1)]]),  # the emptiest first
        ([1, 1], 2, [[("0", 0, 1), ("1", 0, 1)]]),
        ([1, 1, 1], 2, [[("0", 0, 1), ("1", 0, 1)]]),
        ([5, 1, 1], 2, [[("0", 0, 2)], [("0", 2, 2)], [("1", 0, 1), ("2", 0, 1)]]),  # what fits into a node stays in it
        ([2, 3, 1, 1], 4, [[("1", 0, 2), ("0", 0, 2)]]),  # fewest nodes
        ([2, 1, 1, 1], 4, [[("0", 0, 1), ("1", 0, 1), ("2", 0, 1), ("3", 0, 1)]]),
        ([2, 2, 1], 3, [[("0", 0, 1), ("1", 0, 1), ("2", 0, 1)]]),
        ([2, 2], 3, []),  # each node takes equally many
        ([0, 1], 2, []),
    ],
)
def test_where_replicas_go(rooms: list[int], depth: int, found: list[list[tuple[str, int, int]]]) -> None:
    assert seats([node(str(name), stages) for name, stages in enumerate(rooms)], pipeline(depth)) == found


def test_a_replica_that_ends_leaves_its_stages() -> None:
    nodes = [node("0", 1), node("1", 1), node("2", 2)]
    taken = {"2": {1}, "0": {0}}
    assert free_berth(nodes, taken, pipeline(2)) is None
    assert free_berth(nodes, {"2": {0}}, pipeline(1)) == (Seat(nodes[0], 0, 1),)
    assert free_berth(nodes, {"0": {0}, "1": {0}, "2": {0}}, pipeline(1)) == (Seat(nodes[2], 1, 1),)


def test_on_the_cpu_each_node_takes_one_rank() -> None:
    nodes = [node("0", 2), node("1", 2)]
    assert count_berths(nodes, pipeline(4)) == 1
    assert count_berths(nodes, pipeline(4, "cpu", 1)) == 0
    assert count_berths([node(str(name), 1) for name in range(4)], pipeline(4, "cpu", 1)) == 1
    assert count_berths([node(str(name), 1) for name in range(2)], pipeline(2, "cpu", 2)) == 0
    assert count_berths([node("0", 2)], pipeline(2, "cpu", 2)) == 1


def test_who_shares_a_node() -> None:
    assert ranks_on_node(Seat(node("0", 5), 0, 2), pipeline(2), None) == 32
    assert ranks_on_node(Seat(node("0", 5), 0, 2), pipeline(2), 1) == 16
    assert ranks_on_node(Seat(node("0", 1), 0, 1), pipeline(2), None) == 8


def test_what_is_missing_for_a_replica_over_nodes() -> None:
    nodes = {name: node(name, 1) for name in ("0", "1", "2")}
    check_room(nodes, pipeline(2), None, None)
    with pytest.raises(
        InputError, match="a replica takes 32 GPU of one node, or its equal part of each of 2 or 4 nodes"
    ):
        check_room(nodes, pipeline(4), None, None)
