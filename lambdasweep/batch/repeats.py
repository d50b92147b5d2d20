"""This module finds ids that stand in more than one row, because such rows cannot be told apart.

All of the id column and nothing else is read once. Keys go to as many scratch files as it takes for one of them to fit into
memory; equal ids meet in the same file. Only rows with a repeated id are kept, 8 bytes each.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lambdasweep.batch.files import Columns, InputFile
from lambdasweep.batch.reader import open_parquet, reading

_ROWS_IN_MEMORY = 1 << 21
_MAX_FILES = 256
_BATCH = 1 << 16
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


def repeated_rows(
    files: Sequence[InputFile], columns: Columns, rows_in_memory: int = _ROWS_IN_MEMORY
) -> npt.NDArray[np.int64]:
    """Return the rows, ascending and counted through all files, whose id another row has too; nulls are no ids.

    Integers are compared as they are, texts by 128 bits of BLAKE2b.

    Raises:
        InputError: a file cannot be read, or was changed.
    """
    rows = sum(file.rows for file in files)
    count = min(max(1, -(-rows // rows_in_memory)), _MAX_FILES)
    found = []
    with ExitStack() as stack:
        scratch = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        for file in files:
            row = file.first_row
            with reading(file), open_parquet(file) as parquet:
                for batch in parquet.iter_batches(_BATCH, columns=[columns.id], use_threads=False):
                    entries = _entries(batch.column(0), columns.id_type, row)
                    row += len(batch)
                    # Integers in a row must spread, too: the high bits of a product with an odd number do.
                    spread = (entries["low"] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
                    place = spread % np.uint64(count)
                    for index in range(count):
                        scratch[index].write(entries[place == index].tobytes())
        for stream in scratch:
            stream.seek(0)
            entries = np.frombuffer(stream.read(), _ENTRY)
            entries = entries[np.lexsort((entries["high"], entries["low"]))]
            same = (entries["low"][1:] == entries["low"][:-1]) & (entries["high"][1:] == entries["high"][:-1])
            repeated = np.zeros(len(entries), np.bool_)
            repeated[1:] |= same
            repeated[:-1] |= same
            found.append(entries["row"][repeated].astype(np.int64))
    return np.sort(np.concatenate(found))


def _entries(ids: pa.Array, id_type: pa.DataType, first_row: int) -> npt.NDArray[np.void]:
    rows = np.arange(first_row, first_row + len(ids))[~ids.is_null().to_numpy(zero_copy_only=False)]
    ids = ids.drop_null()
    entries = np.empty(len(ids), _ENTRY)
    entries["row"] = rows
    if pa.types.is_integer(id_type):
        entries["high"] = 0
        entries["low"] = ids.cast(id_type).to_numpy(zero_copy_only=False).astype(np.uint64)
    else:
        texts = ids.cast(id_type).cast(pa.binary()).to_pylist()
        digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
        entries["high"], entries["low"] = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    return entries
