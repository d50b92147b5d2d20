"""This module makes requests of input rows, and output rows of their scores.

A row with a continuation is one request; rows that follow each other and have the same prompt are one document, so that
answers of one token share one forward pass. A row without a continuation is scored from its first token on: behind BOS
(`prefix_of`), and in windows where it is longer than the model takes, each window a request.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contract import schemas
from lambdasweep.batch.files import Columns
from lambdasweep.tasks.requests import batches, requests_table
from lambdasweep.tasks.tokens import Encoded, Tokenizer, encode_pairs, encode_texts, pack, prefix_of, windows

_MAX_TOKEN = np.iinfo(np.int32).max
_MAX_DOCUMENT = 16  # rows; the scoring plan holds each row of a document against those before it


@dataclass(frozen=True, slots=True)
class Built:
    """N rows as requests.

    Attributes:
        requests: `schemas.REQUESTS`, those of a row after each other, rows in order.
        owner: [R] which row each request belongs to.
        refused: rows that have no request, and why.
    """

    requests: pa.Table
    owner: npt.NDArray[np.int64]
    refused: dict[int, str]


def build(
    rows: pa.Table, columns: Columns, refused: Mapping[int, str], tokenizer: Tokenizer, max_model_len: int
) -> Built:
    """Tokenise some rows.

    Args:
        rows: the columns of the input.
        columns: what they hold.
        refused: rows of `rows` that are to have no request, and why.
        tokenizer: of the model.
        max_model_len: tokens that the engine takes, at least 3.
    """
    refused = dict(refused) | dict.fromkeys(np.flatnonzero(rows[columns.id].is_null().to_numpy()).tolist(), "null id")
    values: list[list[Any]] = []
    for name in columns.texts:
        values.append(_texts(rows[name]) if columns.is_text else rows[name].to_pylist())
    prefix = prefix_of(tokenizer)
    good: list[int] = []
    for row, value in enumerate(zip(*values, strict=True)):
        reason = refused.get(row) or _refuse(columns, value, prefix)
        if reason:
            refused[row] = reason
        else:
            good.append(row)
    if columns.continuation is not None:
        pairs = [(values[0][row], values[1][row]) for row in good]
        encoded = [_encode_pairs(tokenizer, batch, columns.is_text) for batch in batches(pairs)]
        owner = list(good)
        documents = list(_documents(encoded, owner))
    else:
        assert prefix is not None or not good
        encoded, owner = [], []
        for batch in batches(good):
            part = [values[0][row] for row in batch]
            tokens = encode_texts(tokenizer, part) if columns.is_text else [_bare(ids, prefix) for ids in part]
            sequences, starts = [], []
            for row, ids in zip(batch, tokens, strict=True):
                if not ids:
                    refused[row] = "empty prompt: no token to score"
                for sequence, start in windows(ids, prefix or 0, max_model_len):
                    sequences.append(sequence)
                    starts.append(start)
                    owner.append(row)
            encoded.append(pack(sequences, starts))
        documents = owner
    encoded = encoded or [pack([], [])]
    count = len(owner)
    table = requests_table(
        doc_ids=pa.array(map(str, documents), pa.string()),
        choices=[0] * count,
        encoded=encoded,
        sizes=[0] * count,
        is_gold=[False] * count,
    )
    return Built(table, np.array(owner, np.int64), refused)


def score_table(
    rows: pa.Table, columns: Columns, built: Built, tokens: pa.Table, quarantine: pa.Table, file: str, first_row: int
) -> tuple[pa.Table, pa.Table]:
    """Return the scores and the quarantine of some rows, both in their order.

    Args:
        rows: what `build` was given.
        columns: likewise.
        built: what it returned.
        tokens: `schemas.TOKENS` of its requests.
        quarantine: `schemas.QUARANTINE` of its requests; a row with a request in it has no score.
        file: where the rows are from.
        first_row: of `rows` in that file.
    """
    refused = dict(built.refused)
    for request, reason in zip(quarantine["request_id"].to_numpy(), quarantine["reason"].to_pylist(), strict=True):
        refused.setdefault(int(built.owner[request]), reason)
    ids = rows[columns.id].cast(columns.id_type).combine_chunks()
    owner = built.owner[tokens["request_id"].to_numpy()]
    kept = ~np.isin(owner, list(refused))
    tokens, owner = tokens.filter(pa.array(kept)), owner[kept]
    scored, begins = np.unique(owner, return_index=True)
    ends = np.append(0, np.cumsum(pc.list_value_length(tokens["logprobs"]).to_numpy()))
    offsets = ends[np.append(begins, len(owner))]
    lists = {
        name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pc.list_flatten(tokens[name]).combine_chunks())
        for name in ("logprobs", "ranks", "top1_ids", "top1_logprobs")
    }
    logprobs = lists["logprobs"].flatten().to_numpy().astype(np.float64)
    scores = {
        columns.id: ids.take(pa.array(scored)),
        **lists,
        "sum_logprob": np.add.reduceat(logprobs, offsets[:-1]) if len(scored) else [],
        "num_tokens": np.diff(offsets),
    }
    bad = sorted(refused)
    left_out = {
        columns.id: ids.take(pa.array(bad, pa.int64())),
        "file": [file] * len(bad),
        "row": [first_row + row for row in bad],
        "reason": [refused[row] for row in bad],
    }
    name, kind = columns.id, columns.id_type
    return (
        pa.table(scores, schema=schemas.batch_scores(name, kind)),
        pa.table(left_out, schema=schemas.batch_quarantine(name, kind)),
    )


def _refuse(columns: Columns, values: Sequence[Any], prefix: int | None) -> str | None:
    """Return why a row cannot be tokenised, or None."""
    for name, value in zip(columns.texts, values, strict=True):
        if value is None:
            return f"null {name}"
        if isinstance(value, bytes):
            return f"{name} is not UTF-8"
        if not columns.is_text:
            if None in value:
                return f"null in {name}"
            if value and not (min(value) >= 0 and max(value) <= _MAX_TOKEN):
                return "a token id outside the vocabulary"
    needs_prefix = columns.continuation is None or (columns.is_text and not values[0].strip())
    if needs_prefix and prefix is None:
        return "the first token has nothing to be predicted from: the tokenizer has neither BOS nor EOS"
    return None


def _encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[Any, Any]], is_text: bool) -> Encoded:
    if is_text:
        return encode_pairs(tokenizer, pairs)
    return pack([prompt + continuation for prompt, continuation in pairs], [len(prompt) for prompt, _ in pairs])


def _bare(ids: list[int], prefix: int | None) -> list[int]:
    return ids[1:] if ids[:1] == [prefix] else ids


def _documents(encoded: Sequence[Encoded], owner: Sequence[int]) -> Iterator[int]:
    """Yield the document of each request: the first of the rows that follow each other with its context."""
    document, previous, members = -1, b"", 0
    for row, context in zip(owner, _contexts(encoded), strict=True):
        if context != previous or members == _MAX_DOCUMENT:
            document, previous, members = row, context, 0
        members += 1
        yield document


def _contexts(encoded: Sequence[Encoded]) -> Iterator[bytes]:
    for part in encoded:
        begins = np.append(0, np.cumsum(part.lengths))[:-1]
        for begin, start in zip(begins.tolist(), part.starts.tolist(), strict=True):
            yield part.flat[begin : begin + start].tobytes()


def _texts(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """Return texts; those that are not UTF-8, which Parquet does not forbid, as bytes."""
    try:
        texts: list[str | bytes | None] = column.to_pylist()
    except UnicodeDecodeError:
        texts = []
        for value in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(value)
    return texts
