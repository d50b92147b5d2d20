"""Token by token: the list columns of a token table as one row for each token."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calibration.scores.per_document import continuations_of, places
from contract import schemas

EXPLODED = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("lam", schemas.LAM, nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # in the continuation, from 0
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("logprob", pa.float32()),  # nats
        pa.field("rank", pa.int32()),  # 1 = most likely; null where the engine did not say, as the next two
        pa.field("top1_id", pa.int32()),
        pa.field("top1_logprob", pa.float32()),
    ]
)


def explode(tokens: pa.Table, requests: pa.Table) -> pa.Table:
    """Return EXPLODED, in the order of the rows and of the tokens in them.

    Args:
        tokens: schemas.TOKENS, rows of one task.
        requests: of that task: at least `token_ids` and `continuation_start` of schemas.REQUESTS, all rows.
    """
    continuations = continuations_of(requests)
    request = tokens["request_id"].to_numpy()
    lengths = continuations.lengths[request]
    starts = (np.cumsum(continuations.lengths) - continuations.lengths)[request]
    position = places(lengths)
    parent = pa.array(np.repeat(np.arange(len(request)), lengths))
    columns = [
        tokens["request_id"].take(parent),
        *(tokens[name].take(parent) for name in ("lam", "point") if name in tokens.column_names),
        pa.array(position, pa.int32()),
        pa.array(continuations.tokens[np.repeat(starts, lengths) + position], pa.int32()),
        *(pc.list_flatten(tokens[name]) for name in ("logprobs", "ranks", "top1_ids", "top1_logprobs")),
    ]
    return pa.table(columns, schema=schemas.of_points(EXPLODED) if "point" in tokens.column_names else EXPLODED)
