"""A request is one sequence of tokens: those that are conditioned on, then those that are scored.

The tokens are those of lm-evaluation-harness 0.4.13, on which its `hf` and `vllm` backends agree:

- The tokenizer's own default decides on special tokens: a tokenizer that puts BOS in front does so here. A text that
  already starts with it gets none, so BOS is never doubled.
- Context and context + continuation are both encoded. The continuation is the part of the second encoding beyond the length
  of the first; trailing white space of the context counts as part of the continuation. The sequence is the first encoding
  followed by that part. Where a token spans the boundary, this is not the encoding of the whole text; a warning counts such
  requests.
- An empty context is replaced by BOS, or by EOS for a tokenizer without BOS, and the continuation is encoded without
  special tokens. (The backends differ for a context of white space alone; here it counts as empty, which is what `hf`
  computes with a tokenizer that puts BOS in front.)
- A text that is scored from its first token on is cut into windows. This is where the backends differ: `vllm` leaves two
  tokens of the engine's length free, `hf` predicts one beyond it. The windows here are those of `vllm`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from contract.errors import InputError, PairError

Ints = npt.NDArray[np.int64]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], **settings: Any) -> Any: ...

    def decode(self, token_ids: Any, **settings: Any) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Holds R token sequences, one after the other."""

    flat: npt.NDArray[np.int32]  # [sum of lengths] the token ids
    lengths: Ints  # [R] the number of tokens of each sequence
    starts: Ints  # [R] the place where each continuation starts
    spanned: npt.NDArray[np.bool_]  # [R] whether a token spans that place


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint on disk; nothing is downloaded.

    Raises:
        InputError: transformers is not installed.
        PairError: the directory has no tokenizer or no fast one, or its tokenizer puts special tokens after the text.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError("tokenizing needs transformers: install lambdasweep[cpu] or lambdasweep[gpu]") from None
    path = Path(directory)
    if not path.is_dir():
        raise PairError(f"{path} is not a directory: give a checkpoint on disk")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exceptions for files it cannot read
        raise PairError(f"the tokenizer in {path} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise PairError(f"{path} has a slow tokenizer: save it with a tokenizer.json")
    bare, full = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    if full[len(full) - len(bare) :] != bare:
        # The continuation would be cut one token late and end in EOS.
        raise PairError(f"the tokenizer in {path} ends texts with special tokens: set add_eos_token to false")
    loaded: Tokenizer = tokenizer
    return loaded


def prefix_of(tokenizer: Tokenizer) -> int | None:
    """Return the token that stands in for an empty context: BOS, or EOS for a tokenizer without BOS, or None."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Encoded:
    """Encode each pair (context, continuation) as one sequence; equal contexts are encoded once.

    If a context is white space alone, the tokenizer must have a `prefix_of`.
    """
    prefix = prefix_of(tokenizer)
    prefix_text = None if prefix is None else tokenizer.decode([prefix])
    heads = [context.rstrip() for context, _ in pairs]
    distinct = list(dict.fromkeys(heads))
    head_ids = dict(zip(distinct, _encode_texts(tokenizer, distinct, prefix_text), strict=True))
    wholes = [context + continuation for context, continuation in pairs]
    whole_ids = _encode_texts(tokenizer, wholes, prefix_text, [not head for head in heads])
    sequences, starts, spanned = [], [], []
    for head, whole in zip(heads, whole_ids, strict=True):
        if head:
            context = head_ids[head]
        else:
            assert prefix is not None
            context = [prefix]
            whole = whole if whole[:1] == context else context + whole
        sequences.append(context + whole[len(context) :])
        starts.append(len(context))
        spanned.append(whole[: len(context)] != context)
    return pack(sequences, starts, spanned)


def encode_windows(tokenizer: Tokenizer, texts: Sequence[str], max_model_len: int) -> tuple[Encoded, list[int]]:
    """Encode whole texts, cut into windows so that each token is scored once.

    The first window begins with `prefix_of`, which the tokenizer must have. Later windows have as many tokens as fit; their
    first token, and more tokens in the last window, were scored in the window before.

    Args:
        tokenizer: the model's tokenizer.
        texts: the texts, which are scored from their first token on.
        max_model_len: the number of tokens that the engine takes, at least 3.

    Returns:
        The windows of all texts, and how many each text has; a text without tokens has none.
    """
    prefix = prefix_of(tokenizer)
    assert prefix is not None
    prefix_text = tokenizer.decode([prefix])
    sequences: list[list[int]] = []
    starts: list[int] = []
    counts = []
    for text, ids in zip(texts, _encode_texts(tokenizer, texts, prefix_text), strict=True):
        if not text:
            ids = []  # a tokenizer that puts BOS in front does so for "" too
        before = len(sequences)
        for sequence, start in windows(ids, prefix, max_model_len):
            sequences.append(sequence)
            starts.append(start)
        counts.append(len(sequences) - before)
    return pack(sequences, starts), counts


def windows(ids: list[int], prefix: int, max_model_len: int) -> Iterator[tuple[list[int], int]]:
    """Yield the tokens of each window over `ids`, and the place of the first one to score; see `encode_windows`."""
    inputs = max_model_len - 2
    ends = [*range(inputs, len(ids), inputs), len(ids)] if ids else []
    for begin, end in itertools.pairwise([0, *ends]):
        window = [prefix, *ids[:end]] if begin == 0 else ids[end - inputs - 1 : end]
        yield window, len(window) - (end - begin)


def pack(sequences: Sequence[Sequence[int]], starts: Sequence[int], spanned: Sequence[bool] | None = None) -> Encoded:
    """Put token sequences one after the other; without `spanned`, no token spans a start."""
    return Encoded(
        np.array(list(itertools.chain.from_iterable(sequences)), np.int32),
        np.array([len(sequence) for sequence in sequences], np.int64),
        np.array(starts, np.int64),
        np.array(spanned or [False] * len(sequences), np.bool_),
    )


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode whole texts, each without the token that `prefix_of` puts in front of it.

    A tokenizer without such a token encodes as it does by default.
    """
    prefix, encoded = prefix_of(tokenizer), encode_prompts(tokenizer, texts)
    return [ids[1:] if ids[:1] == [prefix] else ids for ids in encoded]


def encode_prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode whole texts as the tokenizer does by default, but never with its first token doubled."""
    prefix = prefix_of(tokenizer)
    return _encode_texts(tokenizer, texts, None if prefix is None else tokenizer.decode([prefix]))


def _encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], prefix_text: str | None, bare: Sequence[bool] | None = None
) -> list[list[int]]:
    """Encode texts; no special tokens are added where `bare` says so, or where a text starts with the prefix's text."""
    plain = list(bare or [False] * len(texts))
    if prefix_text is not None:
        plain = [flag or text.startswith(prefix_text) for flag, text in zip(plain, texts, strict=True)]
    encoded: list[list[int]] = [[]] * len(texts)
    for without in (False, True):
        chosen = [index for index, flag in enumerate(plain) if flag is without]
        if not chosen:
            continue
        output = tokenizer(
            [texts[index] for index in chosen],
            add_special_tokens=not without,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # the engine's limit on lengths is checked where the engine is known
        )
        for index, ids in zip(chosen, output["input_ids"], strict=True):
            encoded[index] = list(ids)
    return encoded
