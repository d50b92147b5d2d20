"""What the machine is and has: the kind of its processor, and its memory."""

import os
import platform
from pathlib import Path


def hardware(device: str) -> str:
    """Return the kind of hardware that numbers come from: the GPU's name, or the CPU's model name."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def host_memory() -> tuple[int, int]:
    """Return this machine's memory, in bytes: (total, available), or the container's where that is less."""
    total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cached = int(
            next(
                line for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines() if line.startswith("file ")
            ).split()[1]
        )
    except (OSError, StopIteration, ValueError):
        return total, available
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        available = min(available, total - used + cached)  # the page cache counts as used, but gives way
    return total, available
