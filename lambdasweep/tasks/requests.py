"""Requests: a task's texts → tokens → the requests table, and its cut into shards.

Tokens are those of lm-evaluation-harness 0.4.13, on which its `hf` and `vllm` backends agree:

- The tokenizer's own default decides on special tokens: a tokenizer that puts BOS in front does so here. A text that
  already starts with it gets none, so BOS is never doubled.
- Context and context + continuation are both encoded. The continuation is what the second has beyond the length of the
  first; trailing white space of the context counts as part of the continuation. What is scored is the first followed by
  that rest. Where a token spans the boundary, that is not the encoding of the whole text: a warning counts these.
- An empty context is replaced by BOS, or by EOS for a tokenizer without BOS, and the continuation is encoded without
  special tokens. (The backends differ for a context of white space alone; here it counts as empty, which is what `hf`
  computes with a tokenizer that puts BOS in front.)
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lambdasweep.errors import InputError, PairError, TaskError
from lambdasweep.schemas import REQUESTS
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.formats import TEMPLATES, Prompt, render, select, shots_text

# A prefix that all documents share is computed once per shard; this keeps it at 2 % of a shard's tokens.
PREFIXES_PER_SHARD = 50

_BATCH = 256  # documents encoded at a time: bounds the Python integers alive
_LINES_NAMED = 7  # in a warning

Ints = npt.NDArray[np.int64]


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], **settings: Any) -> Any: ...

    def decode(self, token_ids: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class BuiltTask:
    """A task ready to be scored.

    Attributes:
        table: `schemas.REQUESTS`; the rows of a document follow each other, documents are in file order. `choice`
            counts the choices kept.
        documents: evaluated documents in the table.
        duplicates: of these and the shots, those with a choice repeated in the file; it is scored once.
        warnings: what the user should know, one line each.
        sha256: of the task file's bytes.
        requests_sha256: `content_sha256(table)`.
        template: the format's version and form.
        one_token: every continuation is one token, so a document's answers are read off one forward pass.
    """

    table: pa.Table
    documents: int
    duplicates: int
    warnings: tuple[str, ...]
    sha256: str
    requests_sha256: str
    template: str
    one_token: bool


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint on disk; nothing is downloaded.

    Raises:
        InputError: transformers is not installed.
        PairError: the directory has no tokenizer, no fast one, or one that puts special tokens after the text.
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


def build_requests(spec: TaskSpec, tokenizer: Tokenizer) -> BuiltTask:
    """Read a task file and turn it into requests.

    A continuation of no tokens keeps its row; the scorer has to quarantine it.

    Raises:
        TaskError: with every problem of the request and of the file; or for a row with an empty context, where the
            tokenizer has neither BOS nor EOS to put in its place.
    """
    file = read_documents(spec)
    shots, documents = select(file.documents, spec.shots, spec.limit, spec.seed)
    front = shots_text(shots, file.kind, spec.format)
    prompts = [render(document, file.kind, spec.format) for document in documents]
    prompts = [replace(prompt, context=front + prompt.context) for prompt in prompts]
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    bare = [document.line for document, prompt in zip(documents, prompts, strict=True) if not prompt.context.strip()]
    if bare and prefix is None:
        problem = f"{_lines(bare)}: empty context, and the tokenizer has neither BOS nor EOS to use: fill it in"
        raise TaskError(f"task {spec.name!r} cannot be built from {spec.file}", [problem])
    batches = [_encode(tokenizer, prefix, prompts[i : i + _BATCH]) for i in range(0, len(prompts), _BATCH)]
    flat, lengths, starts, spanned = (np.concatenate(parts) for parts in zip(*batches, strict=True))

    owner = np.repeat(np.arange(len(documents)), [len(document.choices) for document in documents])
    columns = {
        "request_id": pa.array(np.arange(len(owner))),
        "doc_id": pa.array([document.doc_id for document in documents], pa.string()).take(pa.array(owner)),
        "choice": pa.array([i for document in documents for i in range(len(document.choices))], pa.int16()),
        "token_ids": pa.ListArray.from_arrays(pa.array(_offsets(lengths), pa.int32()), pa.array(flat, pa.int32())),
        "continuation_start": pa.array(starts, pa.int32()),
        "continuation_bytes": pa.array([size for prompt in prompts for size in prompt.sizes], pa.int32()),
        "is_gold": pa.array([i == document.gold for document in documents for i in range(len(document.choices))]),
    }
    table = pa.table(columns, schema=REQUESTS)

    line = np.array([document.line for document in documents])[owner]
    repeating = sorted(document.line for document in [*shots, *documents] if document.repeats)
    concerns = [
        (repeating, "documents with a repeated choice, which is scored once"),
        (line[lengths == starts].tolist(), "requests without a token to score, to be quarantined"),
        (line[spanned].tolist(), "requests with a token across context and continuation, cut as lm-eval cuts it"),
    ]
    return BuiltTask(
        table=table,
        documents=len(documents),
        duplicates=len(repeating),
        warnings=file.warnings
        + tuple(f"task {spec.name}: {what}: {len(at)} ({_lines(at)})" for at, what in concerns if at),
        sha256=file.sha256,
        requests_sha256=content_sha256(table),
        template=TEMPLATES[file.kind, spec.format],
        one_token=bool((lengths - starts == 1).all()),
    )


def _lines(numbers: Sequence[int]) -> str:
    distinct = list(dict.fromkeys(numbers))
    more = ", …" if len(distinct) > _LINES_NAMED else ""
    return f"line{'s' * (len(distinct) > 1)} {', '.join(map(str, distinct[:_LINES_NAMED]))}{more}"


# Tokens


def _encode(
    tokenizer: Tokenizer, prefix: int | None, prompts: Sequence[Prompt]
) -> tuple[npt.NDArray[np.int32], Ints, Ints, npt.NDArray[np.bool_]]:
    """Return all tokens in one row, and of each request: its length, where its continuation starts, whether a token
    spans that place. `prefix` stands in for an empty context."""
    heads = [prompt.context.rstrip() for prompt in prompts]
    pairs = [
        (head, prompt.context + text)
        for head, prompt in zip(heads, prompts, strict=True)
        for text in prompt.continuations
    ]
    prefix_text = None if prefix is None else tokenizer.decode([prefix])
    head_ids = dict(zip(heads, _encode_texts(tokenizer, heads, prefix_text), strict=True))
    whole_ids = _encode_texts(tokenizer, [whole for _, whole in pairs], prefix_text, [not head for head, _ in pairs])
    flat: list[int] = []
    lengths, starts, spanned = [], [], []
    for (head, _), whole in zip(pairs, whole_ids, strict=True):
        if head:
            context = head_ids[head]
        else:
            assert prefix is not None
            context = [prefix]
            whole = whole if whole[:1] == context else context + whole
        tokens = context + whole[len(context) :]
        flat += tokens
        lengths.append(len(tokens))
        starts.append(len(context))
        spanned.append(whole[: len(context)] != context)
    return np.array(flat, np.int32), np.array(lengths), np.array(starts), np.array(spanned)


def _encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], prefix_text: str | None, bare: Sequence[bool] | None = None
) -> list[list[int]]:
    """Encode texts; without special tokens where `bare` says so, or where the text starts with the prefix's text."""
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


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)])


# The table as a whole


def content_sha256(table: pa.Table) -> str:
    """Hash the rows of a requests table: names, order and values, not how Arrow or Parquet keeps them."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name]
        digest.update(f"{name} {len(column)}\n".encode())
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            digest.update(_bytes(pc.list_value_length(column).to_numpy()))
            digest.update(_bytes(pc.list_flatten(column).to_numpy()))
        elif pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
            digest.update(_bytes(column.to_numpy()))
        else:
            texts = [text.encode() for text in column.to_pylist()]
            digest.update(_bytes(np.array([len(text) for text in texts])))
            digest.update(b"".join(texts))
    return digest.hexdigest()


def _bytes(values: npt.NDArray[Any]) -> bytes:
    return values.astype("<i8").tobytes()


def shards(table: pa.Table, target_tokens: int) -> list[tuple[int, int]]:
    """Cut a requests table into runs of whole documents, in order.

    A shard is closed by the document with which it reaches `target_tokens`, or 50 times the prefix that all documents
    share if that is more. Tokens are counted as they are computed: a document's context once, the common prefix once
    per shard. What remains at the end joins the shard before it where the prefix would be more than 2 % of it.

    Returns:
        [first row, end row) of each shard; a function of the table and `target_tokens` alone.
    """
    if not len(table):
        return []
    doc_ids = table["doc_id"].to_numpy()
    first_rows = np.flatnonzero(np.concatenate([[True], doc_ids[1:] != doc_ids[:-1]]))
    starts = table["continuation_start"].to_numpy().astype(np.int64)
    lengths = pc.list_value_length(table["token_ids"]).to_numpy().astype(np.int64)
    common = _common_prefix(table, lengths, starts)
    own = np.maximum.reduceat(starts, first_rows) - common + np.add.reduceat(lengths - starts, first_rows)
    done = _offsets(own)  # done[i]: tokens of the documents before i, without the common prefix
    smallest = PREFIXES_PER_SHARD * common
    target = max(target_tokens, smallest)
    cuts = [0]
    while cuts[-1] < len(own):
        reached = int(np.searchsorted(done, done[cuts[-1]] + target - common))
        cuts.append(min(max(reached, cuts[-1] + 1), len(own)))
    if len(cuts) > 2 and common + done[-1] - done[cuts[-2]] < smallest:
        del cuts[-2]
    rows = [*first_rows.tolist(), len(table)]
    return [(rows[begin], rows[end]) for begin, end in itertools.pairwise(cuts)]


def _common_prefix(table: pa.Table, lengths: Ints, starts: Ints) -> int:
    """Length of the longest prefix that the contexts of all requests share."""
    flat = pc.list_flatten(table["token_ids"]).to_numpy()
    begins = _offsets(lengths)[:-1]
    shortest = int(starts.min())
    for position in range(shortest):
        column = flat[begins + position]
        if (column != column[0]).any():
            return position
    return shortest
