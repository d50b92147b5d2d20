"""Scripts that run vLLM alone share its engine: one without anything of lambdasweep, with the settings that ours has."""

from collections.abc import Mapping
from typing import Any


def plain_engine(model: str, settings: Mapping[str, Any]) -> Any:
    """Return a `vllm.LLM` that takes token ids; `settings` are those of `serve.settings.EngineSettings` as JSON."""
    from vllm import LLM

    return LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype=settings["dtype"],
        max_model_len=settings["max_model_len"],
        block_size=settings["block_size"],
        kv_cache_memory_bytes=settings["kv_cache_bytes"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        max_num_seqs=settings["max_num_seqs"],
        enforce_eager=settings["device"] == "cpu",
        seed=0,
    )
