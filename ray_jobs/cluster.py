"""This module starts or reaches the Ray cluster, counts what its nodes have room for, and puts an actor onto one of them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from contract.errors import InputError, SweepError
from ray_jobs.reach import check_address
from serve.settings import EngineSettings, available_cores

_WAITS = (5.0, 20.0, 60.0)  # seconds between tries to start Ray


@dataclass(frozen=True, slots=True)
class Node:
    """A living machine of the cluster."""

    node_id: str
    address: str
    stages: int
    """How many pipeline stages the node can hold: 0 where it is of another kind than was asked for. Most replicas are one
    stage."""
    draining: bool  # whether the node has announced its end


def resources_of(settings: EngineSettings, stages: int) -> dict[str, int]:
    """Return the Ray resources that so many pipeline stages of a replica take, by the resource's name."""
    if settings.device == "cpu":
        return {"CPU": settings.threads * settings.tensor_parallel * stages}
    return {"GPU": settings.tensor_parallel * stages}


def living_nodes(settings: EngineSettings, accelerator_type: str | None) -> dict[str, Node]:
    """Return the nodes that Ray now knows to live, by their id."""
    from ray._private.state import state  # ray.nodes() does not tell which nodes are being drained

    ((name, each),) = resources_of(settings, 1).items()
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
def cluster(
    address: str | None,
    settings: EngineSettings,
    replicas: int | None,
    say: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine and stop it at the end.

    Ray gives its own processes 30 s to start, which a loaded machine may not do: then it is tried again, after longer and
    longer waits.

    Args:
        address: of a running cluster; None starts one.
        settings, replicas: of the engines that it is to hold.
        say: is told of each try that failed.
        stop: ends the waits when it is set.

    Raises:
        InputError: the cluster cannot be reached.
        SweepError: Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "address": address or "local"}
    if address is None:
        arguments["include_dashboard"] = False
        if settings.device == "cpu":
            # If the user asks for more replicas than there are cores for, they share the cores.
            wanted = (replicas or 0) * settings.threads * settings.ranks
            arguments["num_cpus"] = max(len(available_cores()), wanted)
    else:
        check_address(address)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _init(arguments, () if address else _WAITS, say, stop or threading.Event())
        _restore(before)
        yield
    finally:
        ray.shutdown()
        _restore(before)


def _init(arguments: dict[str, Any], waits: Sequence[float], say: Callable[[str], None], stop: threading.Event) -> None:
    for wait in (*waits, None):
        try:
            ray.init(**arguments)
            return
        except Exception as error:  # Ray raises bare Exceptions, for example when a busy machine starts it too slowly
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if arguments["address"] != "local":
                where = arguments["address"]
                raise InputError(f"no Ray cluster can be reached at {where}: check --address ({words})") from None
            if wait is None:
                raise SweepError(
                    f"Ray did not start on this machine in {len(waits) + 1} tries: try again when it is less busy ({words})"
                ) from None
            ray.shutdown()
            say(f"Ray did not start, perhaps because this machine is busy ({words}); it is tried again in {wait:.0f} s")
            if stop.wait(wait):
                return


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    """Put back what signals do: Ray leaves a handler of its own behind."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
