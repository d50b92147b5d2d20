"""This plugin makes vLLM's processes know the weight-transfer backend `interpolation`.

vLLM finds it by the entry point `vllm.general_plugins`. On a CPU it mends vLLM's rotary embedding, too.
"""

import ctypes
import multiprocessing
import os
import signal
from typing import Any

BACKEND = "interpolation"
CONFIG_KEY = "lambdasweep"  # under vLLM's additional_config
WORKER_EXTENSION = "serve.switch.backend.WorkerExtension"
RESIDENT = "resident"
END_WITH_PARENT = "LAMBDASWEEP_END_WITH_PARENT"  # in the environment of a server: its engine ends with it


class ParentsConfig:
    """vLLM carries this to its workers as `additional_config`; under CONFIG_KEY it says where the parents are.

    vLLM keys its cache of compiled code by a hash of this. Nothing in it changes what is compiled, so the hash is the same
    for every pair, tier and number of ranks. With a plain dict, vLLM would compile anew for each of them.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = {CONFIG_KEY: values}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """vLLM adds settings of its own for some architectures."""
        self._values[key] = value

    def compute_hash(self) -> str:
        return BACKEND + "".join(f" {key}={value}" for key, value in self._values.items() if key != CONFIG_KEY)


def register() -> None:
    """Register the backend with vLLM's factory. vLLM calls this in every process, and may call it again."""
    _die_with_parent()
    from serve.hooks.rotary_on_cpu import mend_rotary_embedding

    mend_rotary_embedding()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:  # register_engine refuses a second call
        WeightTransferEngineFactory.register_engine(BACKEND, "serve.switch.backend", "InterpolationEngine")


def _die_with_parent() -> None:
    """Have the kernel end a rank's process, or a server's engine, with the process that owns it, whatever it is doing then.

    vLLM's ranks notice by themselves, in a thread, but not while they are stuck; then they would keep memory and cores.
    """
    is_rank = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0" or os.environ.get(END_WITH_PARENT) == "1"
    if multiprocessing.parent_process() and is_rank:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
