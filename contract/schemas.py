"""The Arrow schema of every table in a run directory. They are the contract of this tool: see README, "The tables"."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from contract.grid import canonical
from contract.points import is_named

SCHEMA_VERSION = 1

LAM = pa.decimal128(12, 6)

# Rows of a run over several aligned checkpoints have no single λ, so their tables have this column too: see `of_points`.
POINT = pa.field("point", pa.string(), nullable=False)


def of_points(schema: pa.Schema) -> pa.Schema:
    """Return a schema as tables have it whose points have several coordinates: `lam` may be null, and `point` follows it."""
    index = schema.get_field_index("lam")
    return schema.set(index, schema.field(index).with_nullable(True)).insert(index + 1, POINT)


def schema_at(schema: pa.Schema, points: Sequence[str]) -> pa.Schema:
    """Return a schema as tables with these points have it; the points are all λs, or all have named coordinates."""
    return of_points(schema) if any(map(is_named, points)) else schema


def place_columns(point: str, rows: int) -> dict[str, pa.Array]:
    """Return the columns that say that all rows of a table are at this point: `lam`, or `lam` and `point`."""
    if is_named(point):
        return {"lam": pa.nulls(rows, LAM), "point": pa.array([point] * rows, pa.string())}
    return {"lam": pa.array([Decimal(point)] * rows, LAM)}


def place(point: str) -> dict[str, Any]:
    """Return what one row at this point has in the columns that `place_columns` makes."""
    return {"lam": None, "point": point} if is_named(point) else {"lam": Decimal(point)}


def table_of(schema: pa.Schema, rows: Sequence[tuple[Any, ...]], points: Sequence[str]) -> pa.Table:
    """Make a table of rows in the order of a schema, with a canonical point in the place of `lam`.

    Args:
        schema: the schema that the table has over one aligned checkpoint; its second column is `lam`.
        rows: rows of this schema.
        points: all points of the run; they tell the kind of points even where there are no rows.
    """
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    if any(map(is_named, points)):
        schema = of_points(schema)
        columns.insert(1, (None,) * len(rows))
    else:
        columns[1] = tuple(map(Decimal, columns[1]))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def point_of(row: Mapping[str, Any]) -> str:
    """Return the canonical point of a row of a table, or of frontier.json."""
    return canonical(row["lam"]) if row["lam"] is not None else str(row["point"])


REQUESTS = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),  # the row number within the task
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("choice", pa.int16(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),  # the context's and the continuation's tokens
        pa.field("continuation_start", pa.int32(), nullable=False),  # the continuation's first index in token_ids
        pa.field("continuation_bytes", pa.int32(), nullable=False),  # UTF-8 bytes of the continuation's text
        pa.field("is_gold", pa.bool_(), nullable=False),
    ]
)

TOKENS = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("lam", LAM, nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),  # nats, one per continuation token
        pa.field("ranks", pa.list_(pa.int32()), nullable=False),  # 1 = most likely; null where the engine did not say
        pa.field("top1_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("top1_logprobs", pa.list_(pa.float32()), nullable=False),
    ]
)

# The requests table of a generate task holds the prompts that samples are drawn from.
PROMPTS = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),  # the row number within the task
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # the text as it is in the prompt file
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    ]
)

GENERATIONS = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("sample", pa.int16(), nullable=False),
        pa.field("lam", LAM, nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),  # includes the stop token
        pa.field("text", pa.string(), nullable=False),  # leaves out stop and special tokens
        pa.field("finish_reason", pa.string(), nullable=False),  # is stop or length
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

METRICS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("lam", LAM, nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("confidence", pa.string(), nullable=False),  # is sum, tokens or bytes
        pa.field("split", pa.string(), nullable=False),  # is all, select or report
        pa.field("value", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),  # documents, or prompts, that the value was computed from
        pa.field("resamples", pa.int32()),  # resamples that the interval was computed from; null where there is none
    ]
)

BINS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("lam", LAM, nullable=False),
        pa.field("events", pa.string(), nullable=False),  # documents (is the predicted choice right?) or tokens
        pa.field("confidence", pa.string(), nullable=False),  # is sum, tokens or bytes
        pa.field("split", pa.string(), nullable=False),  # is all, select or report
        pa.field("bin", pa.int16(), nullable=False),
        pa.field("bin_low", pa.float64(), nullable=False),  # the left edge, which is not in the bin
        pa.field("bin_high", pa.float64(), nullable=False),  # the right edge, which is in the bin
        pa.field("n", pa.int64(), nullable=False),  # events in the bin, at least 1
        pa.field("mean_confidence", pa.float64(), nullable=False),
        pa.field("accuracy", pa.float64(), nullable=False),
        pa.field("ci_low", pa.float64()),  # the lower end of the accuracy's 95 % interval; null for tokens
        pa.field("ci_high", pa.float64()),
    ]
)

# This table holds lm-eval's own metrics of its tasks and groups.
OUTCOMES = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),  # the task's or the group's name
        pa.field("lam", LAM, nullable=False),
        pa.field("metric", pa.string(), nullable=False),  # is written "metric,filter", or is docs_left_out
        pa.field("value", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),  # documents that the value was computed from
    ]
)


def batch_scores(id_name: str, id_type: pa.DataType) -> pa.Schema:
    """Return the schema of what `lambdasweep score` writes: one row for each row of the input that could be scored."""
    return pa.schema(
        [
            pa.field(id_name, id_type, nullable=False),
            *(TOKENS.field(name) for name in ("logprobs", "ranks", "top1_ids", "top1_logprobs")),
            pa.field("sum_logprob", pa.float64(), nullable=False),  # in nats
            pa.field("num_tokens", pa.int32(), nullable=False),  # tokens that were scored
        ]
    )


def batch_quarantine(id_name: str, id_type: pa.DataType) -> pa.Schema:
    """Return the schema of the rows that `lambdasweep score` could not score."""
    return pa.schema(
        [
            pa.field(id_name, id_type),
            pa.field("file", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),  # the row's number in the file, from 0
            pa.field("reason", pa.string(), nullable=False),
        ]
    )
