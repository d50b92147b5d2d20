"""This module finds how long a text such a model reads to its end, because nothing is said of what is cut."""

from collections.abc import Sequence
from typing import Any

_UNKNOWN = 1 << 24  # a tokenizer that knows no bound says a number far above this
# These count positions from behind that of the padding token.
_FROM_PADDING = {
    "camembert",
    "data2vec-text",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}


def text_window(tokenizer: Any, config: Any, told: int | None = None) -> int:
    """Return the most tokens that a model takes, those that its tokenizer adds included.

    Args:
        tokenizer: the model's, of the transformers library.
        config: the model's.
        told: what somebody else says of the model.
    """
    bounds = [] if told is None else [told]
    if tokenizer.model_max_length < _UNKNOWN:
        bounds.append(int(tokenizer.model_max_length))
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        before = config.pad_token_id + 1 if getattr(config, "model_type", "") in _FROM_PADDING else 0
        bounds.append(int(positions) - before)
    return min(bounds, default=_UNKNOWN)


def fitting(tokenizer: Any, window: int, *texts: Sequence[str]) -> list[bool]:
    """Tell of each text, or of each pair of texts at the same places, whether it has no more tokens than the window."""
    return [len(ids) <= window for ids in tokenizer(*map(list, texts)).input_ids]
