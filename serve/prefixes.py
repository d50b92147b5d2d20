"""This module decides whether an engine computes a context once where several prompts begin with it."""

from collections.abc import Mapping
from typing import Any

# These arguments of vllm.LLM say which model it is.
_ABOUT = ("model", "skip_tokenizer_init", "dtype", "max_model_len", "hf_overrides", "config_format")


def shares_prefixes(arguments: Mapping[str, Any]) -> bool:
    """Return whether a model's prefixes may be cached.

    They may where every layer is attention. For a state space or a convolution, vLLM would keep a state for each block,
    which fails on the CPU, and which has been tried nowhere else.

    Args:
        arguments: those of `vllm.LLM`.
    """
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(**{name: arguments[name] for name in _ABOUT if name in arguments}).create_model_config()
    return bool(config.attn_type == "decoder")
