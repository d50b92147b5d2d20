"""One vLLM engine that holds θ(λ) and moves along the line in place."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdasweep.errors import EngineError
from serve.plugin import BACKEND, CONFIG_KEY
from serve.settings import EngineSettings

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput


@dataclass(frozen=True, slots=True)
class Prompt:
    """One call of the engine: token ids and what to return about them."""

    token_ids: list[int]
    params: "SamplingParams"


def process_environment(settings: EngineSettings, cores: Sequence[int]) -> dict[str, str]:
    """Return the environment that a process needs before it imports torch or vLLM.

    The engine core runs in the process itself: nothing to lose contact with, and all requests of a unit are added before
    its first step. On the CPU each rank gets `settings.threads` of `cores`.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # A request of exactly max_model_len tokens needs an engine one longer, for the token nobody generates.
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.batch_invariant:
        environment["VLLM_BATCH_INVARIANT"] = "1"
    if settings.device == "cpu":
        threads = settings.threads
        ranks = [cores[rank * threads : (rank + 1) * threads] for rank in range(settings.tensor_parallel)]
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, rank)) for rank in ranks)
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


class Engine:
    """A vLLM engine over a pair. Not thread-safe. After any `EngineError` the process must end.

    Args:
        base: directory of the base checkpoint; also gives the architecture.
        aligned: directory of the aligned checkpoint.
        settings: see `EngineSettings`.
    """

    def __init__(self, base: Path, aligned: Path, settings: EngineSettings) -> None:
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from serve.plugin import register

        register()  # also without the package's entry points, in this process
        self.settings = settings
        self.lam: str | None = None
        arguments: dict[str, Any] = {
            "seed": 0,
            "enforce_eager": settings.device == "cpu",
            **settings.extra,
        }
        try:
            self._llm = LLM(
                model=str(base),
                skip_tokenizer_init=True,
                load_format="safetensors",
                dtype=settings.dtype,
                max_model_len=settings.max_model_len + 1,
                tensor_parallel_size=settings.tensor_parallel,
                distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
                block_size=settings.block_size,
                kv_cache_memory_bytes=settings.kv_cache_bytes,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_num_seqs=settings.max_num_seqs,
                enable_prefix_caching=True,
                weight_transfer_config=WeightTransferConfig(backend=BACKEND),
                additional_config={CONFIG_KEY: {"base": str(base), "aligned": str(aligned)}},
                **arguments,
            )
            self._llm.init_weight_transfer_engine({"init_info": {}})
        except Exception as error:
            raise EngineError(f"the vLLM engine did not start: {error}") from error
        self.vocab_size: int = self._llm.llm_engine.model_config.get_vocab_size()

    def switch(self, lam: str) -> None:
        """Move to θ(λ). Raises EngineError when that fails: the weights are then half-written."""
        if lam == self.lam:
            return
        self.lam = None
        try:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"lam": lam}})
            self._llm.finish_weight_update()
        except Exception as error:
            raise EngineError(f"the switch to λ = {lam} failed: {error}") from error
        self.lam = lam

    def clear_prefix_cache(self) -> None:
        """Forget every cached prefix, so that what follows depends on nothing before it."""
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache: requests are still running")

    def generate(self, prompts: Sequence[Prompt]) -> "list[RequestOutput]":
        """Add all prompts in order, run them, and return their outputs in the same order."""
        if not prompts:
            return []
        try:
            return self._llm.generate(  # type: ignore[no-any-return]
                [{"prompt_token_ids": prompt.token_ids} for prompt in prompts],
                [prompt.params for prompt in prompts],
                use_tqdm=False,
            )
        except Exception as error:
            raise EngineError(f"the vLLM engine failed: {error}") from error


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
