"""What the machine is and has: the kind of its processor, and its memory."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import numpy as np
import numpy.typing as npt
from contract.errors import EngineError
from contract.points import by_name, middle
from merge.line import STRAIGHT, Line
from serve.hooks.continuation_scores import EXTRA, limit_prefix_reads
from serve.hooks.seeded_draws import NUMBER, Draw, Drawn, Draws
from serve.multinode import Span, network_environment
from serve.plugin import BACKEND, CONFIG_KEY, RESIDENT, WORKER_EXTENSION
from serve.settings import EngineSettings, cores_by_rank
from serve.switch.tiers import RELOAD, Room, host_memory



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
