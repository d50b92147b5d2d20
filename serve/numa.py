"""This module binds a rank to the processors beside its GPU, so that the host memory that it fills lies beside the GPU, too.

Linux takes memory from the NUMA node of the processor that first writes to it. A rank that ran on another node would keep
its parents there, and each switch of λ would read them over the link between the nodes.

vLLM's own option, `numa_bind`, starts ranks through the command `numactl`. With it an engine does not start where that
command is missing or where the machine has one node, and an engine of one rank, which has no process of its own, is not
bound. Where a user sets the option, the caller leaves the binding to vLLM.
"""

import contextlib
import os
from pathlib import Path


def bind_to_node(pci_address: str, system: Path = Path("/sys")) -> str:
    """Let this process run only on the processors of the NUMA node that a PCI device belongs to.

    Threads that were bound otherwise before are left as they are. Where the node is not known, or where the process may
    use none of its processors, nothing changes.

    Args:
        pci_address: the device's domain, bus, device and function, as in `0000:17:00.0`.
        system: the place where the kernel says what the machine is made of.

    Returns:
        A line for the log that says what was done, or why nothing was.
    """
    nodes = {}
    for folder in (system / "devices/system/node").glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if processors := read_processors((folder / "cpulist").read_text()):  # a node may be memory alone
                nodes[int(folder.name.removeprefix("node"))] = processors
    if len(nodes) < 2:
        return "this rank is not bound to processors: the machine has one NUMA node"
    file = system / "bus/pci/devices" / pci_address / "numa_node"
    try:
        node = int(file.read_text())
    except (OSError, ValueError) as error:
        return f"this rank is not bound to processors: the NUMA node of its GPU is not known ({error})"
    if node not in nodes:
        return f"this rank is not bound to processors: {file} says {node}, which is no NUMA node with processors"
    before = os.sched_getaffinity(0)
    mine = nodes[node] & before
    if not mine:
        return f"this rank is not bound to processors: it may use none of those of NUMA node {node}, where its GPU is"
    try:
        _bind(before, mine)
    except OSError as error:
        return f"this rank is not bound to processors: the system forbids it ({error})"
    return f"this rank is bound to {len(mine)} processors of NUMA node {node}, where its GPU is"


def read_processors(text: str) -> set[int]:
    """Return the numbers in a list of the kernel's, such as `0-3,8`.

    Raises:
        ValueError: the text is no such list.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _bind(before: set[int], mine: set[int]) -> None:
    """Bind this thread, and all others of the process that were free to run where it was."""
    os.sched_setaffinity(0, mine)
    for entry in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            if os.sched_getaffinity(int(entry.name)) == before:
                os.sched_setaffinity(int(entry.name), mine)
