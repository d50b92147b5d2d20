"""The texts of a task's requests are what its tokens decode to, because tables hold tokens only."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from contract.errors import InputError
from contract.points import role
from contract.records import SweepRecord

if TYPE_CHECKING:
    from lambdasweep.tasks.tokens import Tokenizer

ContextAndContinuation = tuple[str, str] | tuple[list[int], list[int]]
"""Both are texts, or both are token ids."""


def tokenizer_of(sweep: SweepRecord, say: Callable[[str], None]) -> "Tokenizer | None":
    """Return the tokenizer that made the requests of a run, or None, with one line of news, where it is not at hand.

    Nothing is downloaded: a checkpoint of the hub is looked for in the hub's cache.
    """
    from lambdasweep.tasks.tokens import load_tokenizer

    whose = sweep.tokenizer or "base"
    name = whose if whose in sweep.pair else role(whose)
    parent = sweep.pair[name]
    try:
        return load_tokenizer(_folder(parent.source, parent.revision))
    except InputError as error:
        say(f"samples hold token ids in the place of texts: {error}")
        return None


def _folder(source: str, revision: str | None) -> Path:
    if revision is None or Path(source).is_dir():
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise InputError(f"{source} is on the hub, and huggingface_hub is not installed") from None
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise InputError(f"{source} at {revision} is not in the hub's cache on this machine") from None


def texts_of(requests: pa.Table, tokenizer: "Tokenizer | None") -> list[ContextAndContinuation]:
    """Return the context and the continuation of each request, in order; as token ids where there is no tokenizer.

    A special token that the tokenizer puts in front of every text is left out, as it is no part of the text that was asked.

    Args:
        requests: the rows of one task, as schemas.REQUESTS.
        tokenizer: the tokenizer that made them.
    """
    found: list[ContextAndContinuation] = []
    known: dict[tuple[int, ...], str] = {}
    rows = zip(requests["token_ids"].to_pylist(), requests["continuation_start"].to_pylist(), strict=True)
    for ids, start in rows:
        if tokenizer is None:
            found.append((ids[:start], ids[start:]))
            continue
        first = int(ids[:1] == [tokenizer.bos_token_id])
        key = tuple(ids[first:start])
        if key not in known:
            known[key] = _decoded(tokenizer, key)
        whole = _decoded(tokenizer, ids[first:])
        context = known[key]
        # A continuation that is decoded alone may lose the space in front of it.
        found.append(
            (context, whole[len(context) :] if whole.startswith(context) else _decoded(tokenizer, ids[start:]))
        )
    return found


def _decoded(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
