"""This runs work in forks of a process that has imported vLLM once, which takes longer than a tiny engine takes to start."""

import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A small engine imports these while it starts.
_LATE = (
    "transformers",
    "serve.switch.backend",
    "vllm.compilation.decorators",
    "vllm.entrypoints.llm",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


def import_vllm() -> None:
    """Import what engines need. The environment of an engine must be set before."""
    for module in _LATE:
        importlib.import_module(module)
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    # vLLM asks an architecture's class in a process of its own, which imports vLLM anew. A fork is such a process.
    registry._run_in_subprocess = lambda ask: ask()
    if (
        current_platform.is_cpu()
    ):  # each engine would do this again: it looks through every module for kernels to replace
        current_platform.register_triton_kernel_overrides()
        type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)


def keep_what_is_there() -> None:
    """Leave the objects that are there out of every fork's garbage collections, of which engines make several."""
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None


def import_model(architecture: str) -> None:
    """Import an architecture's code of vLLM and of transformers, which every fork would otherwise import anew."""
    import transformers
    from vllm.model_executor.models.registry import ModelRegistry

    with contextlib.suppress(ImportError):  # that of a wrapper may need what its language model does not
        getattr(transformers, architecture, None)
        if module := getattr(ModelRegistry.models.get(architecture), "module_name", None):
            importlib.import_module(module)


def forked(log: Path, work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a fork of this process, through JSON; what it prints goes to `log`.

    Raises:
        RuntimeError: with the message of the exception that it raised, or how the process ended.
    """
    said = log.with_suffix(".json")
    said.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setsid()
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            for place in (1, 2):
                os.dup2(stream, place)
            try:
                found = {"found": work()}
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            said.write_text(json.dumps(found))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if not said.exists():
        raise RuntimeError(f"the process ended with status {os.waitstatus_to_exitcode(status)}: see {log}")
    answer = json.loads(said.read_text())
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["found"]
