"""This module says how an engine is started: in which environment its process is, and with which arguments of vLLM."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.points import by_name
from merge.checkpoint import open_checkpoint
from merge.heads import engine_parent
from merge.line import Line
from serve.multinode import NodePlace, network_environment
from serve.plugin import BACKEND, WORKER_EXTENSION, ParentsConfig
from serve.prefixes import shares_prefixes
from serve.settings import EngineSettings, cores_by_rank


def process_environment(
    settings: EngineSettings, cores: Sequence[int], nodes: int = 1, address: str = ""
) -> dict[str, str]:
    """Return the environment that a process needs before it imports torch or vLLM.

    The engine core runs in the process itself, so that there is no contact to lose, and so that all requests of a unit are
    added before its first step. On the CPU each of this node's ranks gets `settings.threads` of `cores`. Where the engine
    spans several `nodes`, this one is reached at `address`.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The hooks of serve.hooks.continuation_scores are made for the V1 runner, and on the CPU there is no other.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # FlashInfer's sampler is compiled when an engine starts, which takes minutes and fails where there is no nvcc.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        # Ranks log why they end, which the exception does not say. The last lines of standard error are repeated to the
        # user.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.batch_invariant:
        environment["VLLM_BATCH_INVARIANT"] = "1"
    if nodes > 1:
        environment |= network_environment(address)
    if settings.device == "cpu":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = cores_by_rank(cores, settings.ranks // nodes, settings.threads)
        environment["OMP_NUM_THREADS"] = str(settings.threads)
        if settings.extra.get("enforce_eager", True):
            # Models are not compiled here, but vLLM would compile how it counts ranks, which takes longer than the start
            # itself.
            environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment


def llm_arguments(
    base: Path,
    aligned: Path | Mapping[str, Path] | None,
    settings: EngineSettings,
    parents: str,
    ranks_on_node: int | None,
    line: Line,
    node_place: NodePlace | None = None,
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for the `Engine` that would be made with the same arguments as this function."""
    from vllm.config.weight_transfer import WeightTransferConfig

    from serve.plugin import register
    from serve.text_part import text_arguments

    register()  # this process then knows the backend even where the package's entry points are not installed
    paths = by_name(aligned) if aligned is not None else {}
    extra = dict(settings.extra)
    if settings.dtype != "float32" and settings.head_dtype != "auto":
        extra["hf_overrides"] = {"head_dtype": settings.head_dtype} | dict(extra.get("hf_overrides", {}))
    if settings.device == "cuda" and not extra.get("enforce_eager"):
        extra["compilation_config"] = _same_kernels(extra.get("compilation_config"))
    candidates = [*paths.values()] if line.has_aligned_shapes else [base, *paths.values()]
    started, flags = engine_parent([open_checkpoint(str(path), "parent") for path in candidates])
    if flags:
        extra["hf_overrides"] = flags | dict(extra.get("hf_overrides", {}))
    model = candidates[started]
    arguments: dict[str, Any] = {
        "seed": 0,
        "enforce_eager": settings.device == "cpu",
        **extra,
        "model": str(model),
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "distributed_executor_backend": "uni" if settings.ranks == 1 else "mp",
        "block_size": settings.block_size,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_num_seqs": settings.max_num_seqs,
        "worker_extension_cls": WORKER_EXTENSION,
        **text_arguments(model),
    }
    arguments["enable_prefix_caching"] = shares_prefixes(arguments)
    if node_place is not None:
        arguments |= node_place.arguments()
    if paths:
        config = {
            "base": str(base),
            "aligned": {name: str(path) for name, path in paths.items()},
            "line": line.to_json(),
            "tier": parents,
            "ranks": ranks_on_node or settings.ranks,
        }
        arguments |= {
            "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
            "additional_config": ParentsConfig(config),
        }
    return arguments


def _same_kernels(asked: Any) -> dict[str, Any]:
    """Have Inductor choose kernels by rule: by timing, two engines could choose some that differ in the last bits."""
    config = dict(asked or {})
    return config | {
        "inductor_compile_config": {"deterministic": True} | dict(config.get("inductor_compile_config", {}))
    }
