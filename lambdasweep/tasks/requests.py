"""A task's texts become tokens and the requests table, which is cut into shards."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import TaskError
from contract.schemas import REQUESTS, UNCONDITIONAL, of_documents
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import TaskFile, TaskSpec, read_documents
from lambdasweep.tasks.formats import ALONE, RenderedDocument, draw_shots, in_chat, render, template_of
from lambdasweep.tasks.tokens import Encoded, Ints, Tokenizer, encode_pairs, prefix_of

# The prefix that all documents share is computed once per shard. A shard has so many times its tokens, so it is 2 % of them.
PREFIXES_PER_SHARD = 50

ALONE_ID = "without a document "

_BATCH = 256  # documents that are encoded at a time, which bounds the number of Python integers in memory
_LINES_NAMED = 7  # a warning names no more lines than this

T = TypeVar("T")
ScoredAs = Literal["choices", "contexts", "continuation", "other", "answers"]


@dataclass(frozen=True, slots=True)
class BuiltTask:
    """A task that is ready to be scored.

    Attributes:
        table: the requests, as `schemas.REQUESTS`; the rows of a document follow each other, and documents are in file
            order. `choice` counts the choices that were kept.
        documents: the number of evaluated documents in the table.
        duplicates: the number of these documents, and of shots, with a choice that the file repeats; it is scored once.
        warnings: what the user should know, one line each.
        sha256: the SHA-256 of the task file's bytes.
        requests_sha256: what `content_sha256(table)` returns.
        template: the format's version and form.
        one_token: whether every continuation is one token, so that a document's answers are read off one forward pass.
        scored_as: how a document's requests belong together, which decides on our metrics of it: they are `choices`; or
            `contexts`, one of which makes the continuation the likeliest; or one `continuation`; or `other`, which has
            none of our metrics.
        chat_template_sha256: the SHA-256 of the chat template that the contexts went through; None without one.
    """

    table: pa.Table
    documents: int
    duplicates: int
    warnings: tuple[str, ...]
    sha256: str
    requests_sha256: str
    template: str
    one_token: bool
    scored_as: ScoredAs
    chat_template_sha256: str | None = None


def build_requests(spec: TaskSpec, tokenizer: Tokenizer, chat: ChatTemplate | None = None) -> BuiltTask:
    """Read a task file and turn it into requests; raises as `read_documents` and `requests_of`."""
    return requests_of(read_documents(spec), tokenizer, chat)


def requests_of(file: TaskFile, tokenizer: Tokenizer, chat: ChatTemplate | None = None) -> BuiltTask:
    """Turn a task file that was read into requests.

    A continuation of no tokens keeps its row; the scorer has to quarantine it. `chat` is needed, and used, only if
    `file.spec.chat` is set.

    Raises:
        TaskError: a row has an empty context and the tokenizer has neither BOS nor EOS to put in its place; or the chat
            template does not render.
    """
    spec = file.spec
    chat = chat if spec.chat else None
    shots, documents = draw_shots(file.documents, spec.shots, spec.limit, spec.seed)
    prompts = [render(document, file.kind, spec.format) for document in documents]
    prompts = in_chat(prompts, shots, file.kind, spec, chat)
    bare = [document.line for document, prompt in zip(documents, prompts, strict=True) if not prompt.context.strip()]
    if bare and prefix_of(tokenizer) is None:
        problem = f"{_lines(bare)}: empty context, and the tokenizer has neither BOS nor EOS to use: fill it in"
        raise TaskError(f"task {spec.name!r} cannot be built from {spec.file}", [problem])
    encoded = [
        encode_pairs(tokenizer, [(prompt.context, text) for prompt in batch for text in prompt.continuations])
        for batch in batches(prompts)
    ]
    owner = np.repeat(np.arange(len(documents)), [len(document.choices) for document in documents])
    table = requests_table(
        doc_ids=pa.array([document.doc_id for document in documents], pa.string()).take(pa.array(owner)),
        choices=[i for document in documents for i in range(len(document.choices))],
        encoded=encoded,
        sizes=[size for prompt in prompts for size in prompt.sizes],
        is_gold=[i == document.gold for document in documents for i in range(len(document.choices))],
    )
    if spec.pmi and file.kind == "choices":
        (alone,) = in_chat([RenderedDocument(ALONE, (), ())], (), file.kind, spec, chat)
        table = with_unconditional(table, encode_pairs(tokenizer, [(alone.context, alone.delimiter + "A")]))
    lengths, starts, spanned = joined(encoded)
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
        template=template_of(file.kind, spec),
        one_token=bool((lengths - starts == 1).all()),
        scored_as=file.kind,
        chat_template_sha256=chat.sha256 if chat else None,
    )


def with_unconditional(table: pa.Table, alone: Encoded) -> pa.Table:
    """Return a table of requests with one more for each different continuation in it, which scores it without a document.

    The tokens that are scored are the same ones, so that the difference of both is what the document adds to them.

    Args:
        table: the requests of documents.
        alone: one sequence, which begins with what stands in front of a continuation then.
    """
    context = alone.flat[: int(alone.starts[0])].tolist()
    starts = table["continuation_start"].to_pylist()
    sizes = table["continuation_bytes"].to_pylist()
    ids = table["token_ids"].to_pylist()
    first = dict[tuple[int, ...], int]()  # the first row of each continuation
    for row, (tokens, start) in enumerate(zip(ids, starts, strict=True)):
        first.setdefault(tuple(tokens[start:]), row)
    rows = {
        "request_id": range(len(table), len(table) + len(first)),
        # Each is a document of its own to the engine: it looks for what requests of a document have in common.
        "doc_id": [f"{ALONE_ID}{place}" for place in range(len(first))],
        "choice": [UNCONDITIONAL] * len(first),
        "token_ids": [[*context, *continuation] for continuation in first],
        "continuation_start": [len(context)] * len(first),
        "continuation_bytes": [sizes[row] for row in first.values()],
        "is_gold": [False] * len(first),
    }
    arrays = [pa.array(rows[field.name], field.type) for field in REQUESTS]
    return pa.concat_tables([table, pa.Table.from_arrays(arrays, schema=REQUESTS)]).combine_chunks()


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut the items to encode into pieces, so that few Python integers are in memory at a time."""
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))


def requests_table(
    doc_ids: pa.Array, choices: Sequence[int], encoded: Sequence[Encoded], sizes: Sequence[int], is_gold: Sequence[bool]
) -> pa.Table:
    """Return the R requests of a task as `schemas.REQUESTS`; every argument has R entries, `encoded` in several pieces."""
    lengths, starts, _ = joined(encoded)
    flat = np.concatenate([part.flat for part in encoded])
    columns = {
        "request_id": pa.array(np.arange(len(lengths))),
        "doc_id": doc_ids,
        "choice": pa.array(choices, pa.int16()),
        "token_ids": pa.ListArray.from_arrays(pa.array(_offsets(lengths), pa.int32()), pa.array(flat, pa.int32())),
        "continuation_start": pa.array(starts, pa.int32()),
        "continuation_bytes": pa.array(sizes, pa.int32()),
        "is_gold": pa.array(is_gold, pa.bool_()),
    }
    return pa.table(columns, schema=REQUESTS)


def joined(encoded: Sequence[Encoded]) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Return the lengths, starts and spanned [R] of all pieces, one piece after the other."""
    lengths = np.concatenate([part.lengths for part in encoded])
    starts = np.concatenate([part.starts for part in encoded])
    return lengths, starts, np.concatenate([part.spanned for part in encoded])


def _lines(numbers: Sequence[int]) -> str:
    distinct = list(dict.fromkeys(numbers))
    more = ", …" if len(distinct) > _LINES_NAMED else ""
    return f"line{'s' * (len(distinct) > 1)} {', '.join(map(str, distinct[:_LINES_NAMED]))}{more}"


# These functions take the table as a whole.


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)])


def content_sha256(table: pa.Table) -> str:
    """Hash a requests table by its columns' names and its rows' order and values, however Arrow or Parquet stores them."""
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
    """Cut a requests table into shards of whole documents, in order.

    A shard is closed by the document with which it reaches `target_tokens`, or 50 times the prefix that all documents
    share if that is more. Tokens are counted as they are computed: a document's context once, the common prefix once
    per shard. The rest at the end joins the shard before it if the prefix would be more than 2 % of the rest.

    Returns:
        The rows [first row, end row) of each shard, which depend on the table and `target_tokens` alone.
    """
    if not len(table):
        return []
    own = of_documents(table)
    doc_ids = own["doc_id"].to_numpy()
    first_rows = np.flatnonzero(np.concatenate([[True], doc_ids[1:] != doc_ids[:-1]]))
    cut = _cut(own, first_rows, target_tokens)
    if len(own) == len(table):
        return cut
    # The last rows have no documents, and another context than all others.
    rest = table.slice(len(own))
    apart = _cut(rest, np.arange(len(rest)), target_tokens)
    return cut + [(len(own) + first, len(own) + end) for first, end in apart]


def _cut(table: pa.Table, first_rows: Ints, target_tokens: int) -> list[tuple[int, int]]:
    """Cut a table, at least one row, between any of the runs of rows that begin at `first_rows`."""
    starts = table["continuation_start"].to_numpy().astype(np.int64)
    lengths = pc.list_value_length(table["token_ids"]).to_numpy().astype(np.int64)
    common = common_prefix(table["token_ids"], starts)
    own = np.maximum.reduceat(starts, first_rows) - common + np.add.reduceat(lengths - starts, first_rows)
    done = _offsets(own)  # done[i] is the number of tokens of the documents before i, without the common prefix
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


def common_prefix(token_ids: pa.ChunkedArray, ends: Ints | None = None) -> int:
    """Return the length of the longest prefix that all lists of tokens share, each up to its end; there is at least one."""
    lengths = pc.list_value_length(token_ids).to_numpy().astype(np.int64)
    flat = pc.list_flatten(token_ids).to_numpy()
    begins = _offsets(lengths)[:-1]
    shortest = int((lengths if ends is None else ends).min())
    for position in range(shortest):
        column = flat[begins + position]
        if (column != column[0]).any():
            return position
    return shortest
