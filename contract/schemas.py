"""The Arrow schema of every table in a run directory. They are the contract of this tool: see README, "The tables"."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from contract.grid import canonical
from contract.points import is_named

SCHEMA_VERSION = 3  # 1 had no `point` where it is a λ; 2 had no logprobs of samples

LAM = pa.decimal128(12, 6)

# Where rows are: `point` is the canonical point, and `lam` is the same as a number where the point is one.
PLACE = (pa.field("lam", LAM), pa.field("point", pa.string(), nullable=False))


def place(point: str) -> dict[str, Any]:
    """Return what one row at this point has in the columns of `PLACE`."""
    return {"lam": None if is_named(point) else Decimal(point), "point": point}


def place_columns(point: str, rows: int) -> dict[str, pa.Array]:
    """Return the columns of `PLACE` for a table whose rows are all at this point."""
    values = place(point)
    return {field.name: pa.repeat(pa.scalar(values[field.name], field.type), rows) for field in PLACE}


def table_of(schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Make a table of rows that have a canonical point, their second entry, in the place of `lam` and `point`.

    Args:
        schema: the table's schema; its second and third columns are those of `PLACE`.
        rows: rows of this schema but for the place.
    """
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * (len(schema) - 1)
    columns.insert(1, tuple(place(point)["lam"] for point in columns[1]))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def with_point(table: pa.Table) -> pa.Table:
    """Return a table with the columns of `PLACE`, as it is unless it was written before all tables had a point."""
    if "lam" not in table.column_names or "point" in table.column_names:
        return table
    index = table.schema.get_field_index("lam")
    lam, (number, point) = table.column(index), PLACE
    points = pa.array([canonical(value) for value in lam.to_pylist()], point.type)
    return table.set_column(index, number, lam).add_column(index + 1, point, points)


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema that it was written before, as nulls."""
    for at, field in enumerate(schema):
        if field.name not in table.column_names and field.nullable:
            table = table.add_column(at, field, pa.nulls(table.num_rows, field.type))
    return table


def of_documents(requests: pa.Table) -> pa.Table:
    """Return the rows of a request table that belong to documents; those of an unconditional pass come after them."""
    return requests.slice(0, int(np.count_nonzero(requests["choice"].to_numpy() != UNCONDITIONAL)))


def point_of(row: Mapping[str, Any]) -> str:
    """Return the canonical point of a row of a table, or of frontier.json, where `point` stands only if `lam` is null."""
    return canonical(row["lam"]) if row["lam"] is not None else str(row["point"])


UNCONDITIONAL = -1  # stands for a choice in a request that scores a continuation without its document

REQUESTS = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),  # the row number within the task
        pa.field("doc_id", pa.string(), nullable=False),
        # The choice's place; UNCONDITIONAL in the last rows of a task with --pmi, which have no document.
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
        *PLACE,
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
        *PLACE,
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),  # includes the stop token
        pa.field("text", pa.string(), nullable=False),  # leaves out stop and special tokens
        pa.field("finish_reason", pa.string(), nullable=False),  # is stop or length
        # One entry a token, of the model at temperature 1, whatever was sampled with; null in tables of schema 2.
        pa.field("logprobs", pa.list_(pa.float32())),  # nats
        pa.field("ranks", pa.list_(pa.int32())),  # 1 = most likely
        pa.field("top1_ids", pa.list_(pa.int32())),
        pa.field("top1_logprobs", pa.list_(pa.float32())),  # nats
        pa.field("entropies", pa.list_(pa.float32())),  # nats, of the whole distribution that the token was drawn from
    ]
)

# Further columns of GENERATIONS, where the model was asked whether an answer is right: what it says of the letters for yes
# and for no, in nats.
P_TRUE = (
    pa.field("true_logprob", pa.float32()),
    pa.field("false_logprob", pa.float32()),
)

# What another λ makes of the outputs of a λ, by their token ids.
RESCORED = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("sample", pa.int16(), nullable=False),
        *PLACE,  # where they were written
        pa.field("under", pa.string(), nullable=False),  # the canonical point that they are scored at
        *(TOKENS.field(name) for name in ("logprobs", "ranks", "top1_ids", "top1_logprobs")),  # one entry a token
    ]
)

# What became of each output of a task whose answers are written: computed of its generations, without an engine.
GRADED = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("sample", pa.int16(), nullable=False),
        *PLACE,
        pa.field("answer", pa.string(), nullable=False),  # the answer as it was found in the text
        pa.field("answer_class", pa.string(), nullable=False),  # answers of one class, normalised, say the same
        pa.field("answer_start", pa.int32(), nullable=False),  # the token of the output that the answer begins in
        pa.field("correct", pa.bool_(), nullable=False),  # whether the task's metric is 1
        pa.field("metrics", pa.map_(pa.string(), pa.float64()), nullable=False),  # by name, lm-eval's as metric,filter
        pa.field(
            "thinking_tokens", pa.int32()
        ),  # tokens before the answer; null where no token was said to end thinking
        # The token that completes the text of `until` before which the answer was cut; null where it was not cut, and where
        # the engine itself ended the output there. Not written where no token was said to end thinking.
        pa.field("answer_end", pa.int32()),
    ]
)

# A further column of GRADED, where it was looked for: how sure the output says it is, a probability; null where it does not.
VERBALISED = pa.field("verbalised", pa.float64())

QUARANTINE = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

METRICS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        *PLACE,
        pa.field("metric", pa.string(), nullable=False),
        pa.field(
            "confidence", pa.string(), nullable=False
        ),  # is sum, tokens or bytes; of answers lowest, first or votes, too
        pa.field("split", pa.string(), nullable=False),  # is all, select or report
        pa.field("value", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        # Documents, or prompts, that the value was computed from; 0 also where a command of the user did not say.
        pa.field("n", pa.int64(), nullable=False),
        pa.field("resamples", pa.int32()),  # resamples that the interval was computed from; null where there is none
    ]
)

BINS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        *PLACE,
        pa.field("events", pa.string(), nullable=False),  # documents (is the choice right?), tokens or answers
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
        *PLACE,
        pa.field("metric", pa.string(), nullable=False),  # is written "metric,filter", or is docs_left_out
        pa.field("value", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),  # documents that the value was computed from
    ]
)


# What commands of the user measured at a λ, through their own evaluators.
MEASURED = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        *PLACE,
        pa.field("metric", pa.string(), nullable=False),  # behind whose it is: lm_eval/, inspect/ or command/
        pa.field("value", pa.float64()),  # null where the evaluator has none
        pa.field("standard_error", pa.float64()),  # null where the evaluator gives none
        pa.field("n", pa.int64(), nullable=False),  # documents, by the evaluator; 0 where it does not say
        pa.field("file", pa.string(), nullable=False),  # where the number stood, below the command's directory
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
