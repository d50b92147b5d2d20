"""The driver sees a cluster's nodes as they are, on a real Ray cluster of several raylets. No engine is started."""

import os
import signal
import sys
import uuid

from ray_jobs.cluster import cluster
from serve.settings import EngineSettings
from tests.support.paths import ROOT
from tests.support.waiting import run

PROGRAM = """
import os, signal, subprocess, sys, time
import psutil
import ray
from ray.cluster_utils import Cluster
from ray_jobs.cluster import end_process, living_nodes, on_node
from serve.settings import EngineSettings
from tests.support.waiting import patiently, until

SETTINGS = EngineSettings(device="cpu", dtype="float32", max_model_len=64, tensor_parallel=2, threads=1)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
one = patiently(lambda: cluster.add_node(num_cpus=5, resources={"accelerator_type:H100": 1}))
two = patiently(lambda: cluster.add_node(num_cpus=2))
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
until(lambda: rooms()[0] is None)
ray.shutdown()
cluster.shutdown()
print("all is well")
"""


def test_nodes_as_they_come_and_go() -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = run([sys.executable, "-c", PROGRAM], env={**os.environ, **token, "PYTHONPATH": str(ROOT)})
    assert done.stdout.endswith("all is well\n"), done.stdout + done.stderr


def test_a_cluster_leaves_no_signal_handler_behind() -> None:
    settings = EngineSettings(device="cpu", dtype="float32", max_model_len=64, threads=1)
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    with cluster(None, settings, 1):  # Ray's handlers are gone at once, so that the driver's own end it in order
        assert [signal.getsignal(number) for number in numbers] == before
    assert [signal.getsignal(number) for number in numbers] == before
