"""What the actors of replicas have in common: the cores and the environment of their process, and its last words."""

import os
from pathlib import Path

from ray_jobs.placement import Berth
from serve.settings import EngineSettings, available_cores

_LAST_LINES = 20


def settle_in(settings: EngineSettings, berth: Berth, number: int) -> list[int]:
    """Set the environment of the actor on seat `number`, before anything imports torch; return its cores."""
    from serve.engine import process_environment

    seat = berth[number]
    cores = available_cores()  # of the node that this process runs on
    each = settings.threads * settings.tensor_parallel
    # More replicas than cores (several nodes on one machine, in tests) share them in turn.
    mine = [cores[(seat.first * each + offset) % len(cores)] for offset in range(seat.stages * each)]
    os.environ.update(process_environment(settings, mine, len(berth), seat.node.address))
    return mine


def last_words() -> str:
    """Return the end of what this process and its children wrote to standard error: vLLM's reason is often only there."""
    try:
        log = Path(os.readlink("/proc/self/fd/2"))
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.is_file() else []
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines if line.strip())
