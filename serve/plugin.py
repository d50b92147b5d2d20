"""Entry point `vllm.general_plugins`: makes vLLM's processes know the `interpolation` weight-transfer backend."""

import ctypes
import multiprocessing
import os
import signal

BACKEND = "interpolation"
CONFIG_KEY = "lambdasweep"  # under vLLM's additional_config
WORKER_EXTENSION = "serve.switch.backend.WorkerExtension"
RESIDENT = "resident"


def register() -> None:
    """Register the backend with vLLM's factory. vLLM calls this in every process, and may call it again."""
    _die_with_parent()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:  # register_engine refuses a second call
        WeightTransferEngineFactory.register_engine(BACKEND, "serve.switch.backend", "InterpolationEngine")


def _die_with_parent() -> None:
    """Have the kernel end a rank's process with the process that owns the engine, whatever the rank is doing then.

    vLLM's ranks notice by themselves, in a thread, but not while they are stuck; they would keep memory and cores.
    """
    if multiprocessing.parent_process() and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
