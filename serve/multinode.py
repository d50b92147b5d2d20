"""This module puts one engine over several nodes: it says where their processes meet, and runs ranks on the further nodes.

vLLM's multiprocessing executor takes several nodes itself: node 0 has the engine core, and its executor talks to the ranks
of all nodes; the other nodes' executors start their ranks and watch over them. Each node holds whole pipeline stages.
"""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from contract.errors import EngineError

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node's place among those of an engine."""

    nodes: int
    rank: int
    """The number of this node; node 0 has the engine core."""
    address: str
    """The address of node 0."""
    port: int
    """The port where the first rank of node 0 listens for the others while they start, and as long as they live."""

    def arguments(self) -> dict[str, Any]:
        """Return this place as arguments of vLLM."""
        return {
            "nnodes": self.nodes,
            "node_rank": self.rank,
            "master_addr": self.address,
            "master_port": self.port,
        }


def network_environment(address: str) -> dict[str, str]:
    """Return the environment in which vLLM, gloo and NCCL talk over the interface that has this node's `address`.

    Otherwise they take the address of the host's name, or of the default route, which other nodes need not reach.
    """
    environment, name = {"VLLM_HOST_IP": address}, _interface(address)
    if name:
        # Without the = NCCL takes the name for a prefix.
        environment |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    # A variable that the user set is kept.
    return {key: os.environ.get(key, value) for key, value in environment.items()}


def _interface(address: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                packed = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(packed[20:24]) == address:
                return name
    return None


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def follow(arguments: dict[str, Any]) -> None:
    """Run this node's ranks of an engine whose core is on another node. Returns never.

    Args:
        arguments: `serve.start.llm_arguments`, which must differ from the leader's in the node's rank and paths only.

    Raises:
        EngineError: the ranks did not start, or one of them ended.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    try:
        config = EngineArgs(**arguments, disable_log_stats=True).create_engine_config(
            usage_context=UsageContext.LLM_CLASS, headless=True
        )
        executor = MultiprocExecutor(config, monitor_workers=False)
    except Exception as error:
        raise EngineError(f"this node's ranks of the vLLM engine did not start: {error}") from error
    executor.start_worker_monitor(inline=True)
    raise EngineError("a rank of the vLLM engine on this node ended")
