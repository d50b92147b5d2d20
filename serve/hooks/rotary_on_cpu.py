"""vLLM's rotary embedding on the CPU is mended for queries of three dimensions.

vLLM 0.32's CPU kernel `rotary_embedding` takes the last stride but one of queries and keys for the distance between tokens.
For [tokens, heads × size] this is true. For [tokens, heads, size] it is the distance between heads, so that every token but
the first is rotated at the place of another one: DeepSeek-V2 and -V3 were 3.7 nats and LFM2-MoE 1.1 nats from
transformers. Here the kernel is given two dimensions.
"""

from functools import wraps
from typing import Any

import torch


def mend_rotary_embedding() -> None:
    """Have vLLM's CPU kernel see queries and keys of two dimensions in this process; elsewhere than on a CPU do nothing."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm import _custom_ops

    kernel = _custom_ops.rotary_embedding
    if getattr(kernel, "takes_heads", False):
        return

    @wraps(kernel)
    def rotary_embedding(
        positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None, *rest: Any, **named: Any
    ) -> None:
        flat = [None if x is None else x.reshape(positions.numel(), -1) for x in (query, key)]
        kernel(positions, *flat, *rest, **named)
        for x, turned in zip((query, key), flat, strict=True):
            # The kernel works in place. Where the flat tensor is a copy, its values must be copied back.
            if x is not None and turned is not None and x.data_ptr() != turned.data_ptr():
                x.copy_(turned.view_as(x))

    rotary_embedding.takes_heads = True  # type: ignore[attr-defined]
    _custom_ops.rotary_embedding = rotary_embedding
