"""This module asks the machine what hardware it has, and how much memory."""

import os
import platform
import subprocess
from dataclasses import dataclass
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


_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of a machine that this process may use."""

    count: int
    memory: int  # bytes of the smallest


def gpus() -> Gpus | None:
    """Return the GPUs of this machine; None where there are none, or they are not known.

    CUDA would say it, too, but takes memory of the GPU for each process that asks, for as long as the process lives.
    """
    told = _nvidia_smi() or ""
    count, memory = _visible(len(told.splitlines())), smallest_gpu(told)
    return Gpus(count, memory) if count and memory else None


def gpu_count() -> int | None:
    """Return how many GPUs this process may use; None where that is not known."""
    if not _GPUS.is_dir():
        return None
    return _visible(len(list(_GPUS.iterdir())))


def _visible(there: int) -> int:
    """Return how many of the machine's GPUs the environment leaves to this process."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if seen is None else min(there, len([one for one in seen.split(",") if one.strip()]))


def _nvidia_smi() -> str | None:
    """Return what `smallest_gpu` reads: a line for each GPU that a container shows; None where nobody can be asked."""
    command = ["nvidia-smi", "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def smallest_gpu(said: str) -> int | None:
    """Return the bytes of the smallest GPU; None where one is partitioned (MIG), or its memory is not known.

    Args:
        said: nvidia-smi's line for each GPU: its memory in MiB, a comma, and whether MIG partitions it.
    """
    found = []
    for line in said.splitlines():
        total, _, mode = line.partition(",")
        if not total.strip().isdigit() or mode.strip() == "Enabled":
            return None
        found.append(int(total) << 20)
    return min(found, default=None)


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
        # The page cache counts as used, but the kernel takes it back when memory is asked for.
        available = min(available, total - used + cached)
    return total, available
