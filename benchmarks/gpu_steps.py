"""This runs one step of benchmarks/gpu.py in a process of its own: `python gpu_steps.py STEP WORK SHAPE`."""

import sys
from collections.abc import Callable

from gpu_big import big, pinned, plain
from gpu_bits import bits
from gpu_commands import serve, sweep
from gpu_live import live, walk

STEPS: dict[str, Callable[..., None]] = {
    "bits": bits,
    "live": live,
    "walk": walk,
    "big": big,
    "pinned": pinned,
    "plain": plain,
    "sweep": sweep,
    "serve": serve,
}

if __name__ == "__main__":
    STEPS[sys.argv[1]](*sys.argv[3:])
