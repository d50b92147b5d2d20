"""This module computes what memory an engine takes besides the parents: its live weights, and what a rank needs of a GPU."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merge.model_sizes import ModelSizes
    from merge.pair import Pair
    from serve.needs import Needs
    from serve.settings import EngineSettings


def live_bytes(pair: "Pair", dtype: str) -> int:
    """Return the bytes of the weights that an engine computes with, over all ranks."""
    from merge.text_part import only_text

    tensors = only_text(pair).shaped.tensors.values()
    return sum(math.prod(info.shape) for info in tensors) * bytes_of_number(dtype)


def needs_of(settings: "EngineSettings", sizes: "ModelSizes") -> "Needs":
    """Return what a rank needs of a GPU besides its weights."""
    from serve.needs import needs

    return needs(
        sizes,
        settings.max_model_len,
        settings.max_num_batched_tokens,
        settings.max_num_seqs,
        bytes_of_number(settings.dtype),
        settings.tensor_parallel,
        settings.pipeline_parallel,
    )


def bytes_of_number(dtype: str) -> int:
    """Return the bytes of a number that an engine computes with."""
    return 4 if dtype == "float32" else 2
