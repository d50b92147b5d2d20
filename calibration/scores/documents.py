"""A task's request table says which rows make up a document, and on which tokens each row is scored, at every λ alike."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calibration.arrays import Ints
from calibration.scores.columns import ints, one_chunk, places
from contract.errors import LambdasweepError

# This module needs only these columns of schemas.REQUESTS.
REQUEST_COLUMNS = ("request_id", "doc_id", "continuation_bytes", "is_gold")
CONTINUATION_COLUMNS = ("token_ids", "continuation_start")


@dataclass(frozen=True, slots=True)
class Documents:
    """Says how the R requests of a task make up its D documents, which is the same at every λ."""

    of_request: Ints  # [R] the document of each request
    position: Ints  # [R] the place of each request among the choices of its document
    byte_counts: Ints  # [R] the UTF-8 bytes of each request's continuation
    sizes: Ints  # [D] the number of choices of each document
    gold: Ints  # [D] the place of each document's gold choice

    @property
    def gold_requests(self) -> Ints:
        """Return [D] the request of each document's right choice."""
        return np.cumsum(self.sizes) - self.sizes + self.gold

    @property
    def is_continuation(self) -> bool:
        """Tell whether every document is one continuation; then there is no choice, and no confidence in one."""
        return len(self.sizes) > 0 and bool((self.sizes == 1).all())


@dataclass(frozen=True, slots=True)
class Continuations:
    """The tokens that the R requests of a task are scored on, which are the same at every λ."""

    token_ids: Ints  # [sum of lengths] the token ids, request after request
    lengths: Ints  # [R] the number of tokens of each request's continuation


def documents_of(requests: pa.Table, where: str) -> Documents:
    """Group the rows of a request table into documents.

    Args:
        requests: all rows of one task, with at least REQUEST_COLUMNS of schemas.REQUESTS.
        where: the words that name the run and the task in messages.

    Raises:
        LambdasweepError: request_id is not the row number, a document's rows are not contiguous, a document does not have
            exactly one gold choice, or a continuation has no bytes.
    """
    if not np.array_equal(ints(requests["request_id"]), np.arange(len(requests))):
        raise damaged_requests(where, "request_id is not the row number")
    # Codes are given out in order of appearance, so documents are contiguous if their codes never fall.
    of_request = ints(one_chunk(requests["doc_id"]).dictionary_encode().indices)
    if (np.diff(of_request) < 0).any():
        raise damaged_requests(where, "the rows of a document are not next to each other")
    byte_counts = ints(requests["continuation_bytes"])
    if (byte_counts < 1).any():
        raise damaged_requests(where, f"request {int(np.argmax(byte_counts < 1))} has a continuation of no bytes")
    sizes = np.bincount(of_request)
    position = np.arange(len(of_request)) - (np.cumsum(sizes) - sizes)[of_request]
    gold_rows = np.flatnonzero(one_chunk(requests["is_gold"]).to_numpy(zero_copy_only=False))
    gold_counts = np.bincount(of_request[gold_rows], minlength=len(sizes))
    if (gold_counts != 1).any():
        document = int(np.argmax(gold_counts != 1))
        first = int(np.argmax(of_request == document))
        name = requests["doc_id"][first].as_py()
        raise damaged_requests(where, f"document {name!r} has {gold_counts[document]} gold choices, not one")
    return Documents(of_request, position, byte_counts, sizes, position[gold_rows])


def continuations_of(requests: pa.Table) -> Continuations:
    """Cut the continuations out of all rows of a task's request table, of which CONTINUATION_COLUMNS are enough."""
    lists = one_chunk(requests["token_ids"])
    starts = ints(requests["continuation_start"])
    lengths = ints(pc.list_value_length(lists)) - starts
    # Only the tokens of continuations are taken, because contexts are hundreds of times longer.
    first = np.cumsum(lengths + starts) - lengths
    return Continuations(ints(lists.flatten().take(pa.array(np.repeat(first, lengths) + places(lengths)))), lengths)


def unconditional_of(continuations: Continuations, alone: Continuations) -> Ints:
    """Return [R] which of U unconditional requests has the same continuation as each of R requests; −1: none.

    Args:
        continuations: the tokens that the R requests are scored on.
        alone: those of the U requests.
    """
    found = pc.index_in(_as_bytes(continuations), value_set=_as_bytes(alone))
    return ints(pc.fill_null(found, -1))


def _as_bytes(continuations: Continuations) -> pa.Array:
    """Return the tokens of each request as one value, which Arrow can look up."""
    flat = continuations.token_ids.astype("<i4")
    ends = np.concatenate([[0], np.cumsum(continuations.lengths)]) * flat.itemsize
    buffers = [None, pa.py_buffer(ends.astype("<i8").tobytes()), pa.py_buffer(flat.tobytes())]
    return pa.Array.from_buffers(pa.large_binary(), len(continuations.lengths), buffers)


def damaged_requests(where: str, what: str) -> LambdasweepError:
    """Return the error of a request table that is not as it was written."""
    return LambdasweepError(
        f"{where}: {what}. The request table is damaged: restore it, or sweep again into another directory"
    )
