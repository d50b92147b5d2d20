"""This module starts or reaches the Ray cluster, counts what its nodes have room for, and puts an actor onto one of them."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from contract.errors import InputError, SweepError
from serve.settings import EngineSettings, available_cores


@dataclass(frozen=True, slots=True)
class Node:
    """A living machine of the cluster."""

    node_id: str
    address: str
    stages: int
    """How many pipeline stages the node can hold: 0 where it is of another kind than was asked for. Most replicas are one
    stage."""
    draining: bool  # whether the node has announced its end


def needs(settings: EngineSettings, stages: int) -> dict[str, int]:
    """Return the Ray resources that so many pipeline stages of a replica take, by the resource's name."""
    if settings.device == "cpu":
        return {"CPU": settings.threads * settings.tensor_parallel * stages}
    return {"GPU": settings.tensor_parallel * stages}


def living_nodes(settings: EngineSettings, accelerator_type: str | None) -> dict[str, Node]:
    """Return the nodes that Ray now knows to live, by their id."""
    from ray._private.state import state  # ray.nodes() does not tell which nodes are being drained

    ((name, each),) = needs(settings, 1).items()
    draining = state.get_draining_nodes()
    found = {}
    for entry in ray.nodes():
        if entry["Alive"]:
            resources = entry["Resources"]
            fits = accelerator_type is None or f"accelerator_type:{accelerator_type}" in resources
            stages = int(resources.get(name, 0) // each) if fits else 0
            node_id = entry["NodeID"]
            found[node_id] = Node(node_id, entry["NodeManagerAddress"], stages, node_id in draining)
    return found


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps an actor or a task on one node."""
    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)


def end_process(node_id: str, pid: int) -> None:
    """Send SIGKILL to a replica's process on its own node, because a process that hangs does not answer Ray either."""
    try:
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node(node_id))(_kill)
        ray.get(task.remote(pid), timeout=30)
    except RayError:
        pass  # the node is gone, and its processes with it


def _kill(pid: int) -> None:
    import contextlib

    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        if file.read().startswith("ray::"):  # otherwise another process has got the number since
            os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster(address: str | None, settings: EngineSettings, replicas: int | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine and stop it at the end.

    Raises:
        InputError: the cluster cannot be reached.
        SweepError: Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            resources: dict[str, Any] = {}
            if settings.device == "cpu":
                # If the user asks for more replicas than there are cores for, they share the cores.
                wanted = (replicas or 0) * settings.threads * settings.ranks
                resources["num_cpus"] = max(len(available_cores()), wanted)
            ray.init(address="local", include_dashboard=False, **resources, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises bare Exceptions, for example when a busy machine starts it too slowly
        if address is not None:
            raise InputError(f"no Ray cluster can be reached at {address}: check --address ({error})") from None
        raise SweepError(f"Ray did not start on this machine: try again when it is less busy ({error})") from None
    try:
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray leaves one of its own behind
