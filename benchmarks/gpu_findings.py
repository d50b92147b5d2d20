"""The steps of benchmarks/gpu.py share this: it writes findings down, and has the settings of engines.

Every finding is a line of WORK/results.jsonl as soon as it is there, so that a run that is cut off loses nothing. A step
that fails says so in such a line; the others go on.
"""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers import ROOT

from serve.settings import EngineSettings, available_cores, installed_device

CUDA = installed_device() == "cuda"
BASE, ALIGNED = ROOT / "lambdasweep/demo/base", ROOT / "lambdasweep/demo/aligned"
WORK = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()  # the name of the step that this process runs


def tell(what: str, **values: Any) -> None:
    """Write one finding down."""
    line = json.dumps({"what": what, **values})
    print(line, flush=True)
    with open(WORK / "results.jsonl", "a") as file:
        file.write(line + "\n")


@contextlib.contextmanager
def finding(what: str) -> Iterator[dict[str, Any]]:
    """Tell what the block found, with its seconds; or that it failed, and go on."""
    began = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        yield found
    except Exception as error:
        traceback.print_exc()
        tell(what, verdict="failed", error=f"{type(error).__name__}: {error}"[:400])
    else:
        tell(what, seconds=round(time.perf_counter() - began, 2), **found)


def settings(**changes: Any) -> EngineSettings:
    """Return settings of an engine that shares its GPU, or its CPU, with others."""
    values: dict[str, Any] = {
        "device": installed_device(),
        "dtype": "bfloat16" if CUDA else "float32",
        "max_model_len": 256,
        "threads": 0 if CUDA else 1,
        "block_size": None if CUDA else 32,
        "kv_cache_bytes": 256 << 20 if CUDA else 64 << 20,
        "max_num_batched_tokens": 8192 if CUDA else 2048,
        "max_num_seqs": 1024 if CUDA else 256,
        # vLLM wants to find this share of the GPU free when it starts.
        "extra": {"gpu_memory_utilization": 0.3, "enforce_eager": True} if CUDA else {},
    }
    return EngineSettings(**(values | changes))


def alone(shape: str, **extra: Any) -> EngineSettings:
    """Return settings of an engine that has the machine to itself."""
    threads = 0 if CUDA else len(available_cores())
    length, cache = (2048, 8 << 30) if shape == "8b" else (1024, 256 << 20)
    eager = {"enforce_eager": True} if CUDA else {}
    return settings(max_model_len=length, kv_cache_bytes=cache, threads=threads, extra=eager | extra)
