"""Columns of Arrow tables become arrays, and lists of different lengths are told apart in what they are flattened to."""

import numpy as np
import pyarrow as pa

from calibration.arrays import Ints


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return a column's chunks as one array, so that a column is flattened once."""
    return column.combine_chunks()


def ints(column: pa.Array | pa.ChunkedArray) -> Ints:
    """Return a column of integers without nulls."""
    array: Ints = column.to_numpy().astype(np.int64)
    return array


def owners_of(lengths: Ints) -> Ints:
    """Return [sum of lengths] the index of the list that each flattened value comes from, for lists of lengths [T]."""
    return np.repeat(np.arange(len(lengths)), lengths)


def places(lengths: Ints) -> Ints:
    """Return [sum of lengths] the index of each flattened value in its own list, for lists of lengths [T]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
