"""This module says why a request or a prompt is refused, so that a plan can count them. It needs no torch."""

from collections.abc import Sequence


def refuse_request(token_ids: Sequence[int], start: int, max_model_len: int, vocab_size: int) -> str | None:
    """Return why a request cannot be scored, or None.

    Args:
        token_ids: context and continuation.
        start: index of the first continuation token.
        max_model_len: tokens that the engine takes.
        vocab_size: of the model.
    """
    length = len(token_ids)
    if start >= length:
        return "empty continuation"
    if start < 1:
        return "empty context: the first token has nothing to be predicted from"
    if length > max_model_len:
        return f"{length} tokens are more than the {max_model_len} the engine takes"
    if not all(0 <= token < vocab_size for token in token_ids):
        return f"a token id outside the vocabulary of {vocab_size}"
    return None


def refuse_prompt(token_ids: Sequence[int], max_tokens: int, max_model_len: int, vocab_size: int) -> str | None:
    """Return why a prompt cannot be sampled, or None; `max_tokens` are those of a sample."""
    length = len(token_ids)
    if not length:
        return "empty prompt: the first token has nothing to be predicted from"
    if length + max_tokens > max_model_len:
        return f"{length} tokens and {max_tokens} to be sampled are more than the {max_model_len} the engine takes"
    if not all(0 <= token < vocab_size for token in token_ids):
        return f"a token id outside the vocabulary of {vocab_size}"
    return None
