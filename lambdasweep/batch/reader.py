"""This module reads rows of an input file in bounded memory."""

import bisect
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from contract.errors import InputError
from contract.location import ObjectPath, locate, of_read
from lambdasweep.batch.files import InputFile, read_footer

_BUFFER = 1 << 20  # bytes of a column chunk in memory at a time
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 4096  # decoded at a time, by the rows' average size


@contextmanager
def reading(file: InputFile) -> Iterator[None]:
    """Turn what is wrong with a file into an InputError; what may pass, as a network's failure, stays an OSError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError):
            error = of_read(locate(file.path), error)
        if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError)) and error.errno:
            raise error from None
        raise InputError(
            f"{file.path} cannot be read: {str(error).splitlines()[0]}; restore it, and run the same command again"
        ) from None


def open_parquet(file: InputFile) -> pq.ParquetFile:
    """Open an input file, to be read within `reading`.

    Raises:
        InputError: it is not what it was when it was planned.
    """
    size, digest, _, _ = read_footer(file.path)
    if (size, digest) != (file.size, file.footer_sha256):
        raise InputError(f"{file.path} was changed while it was scored: score it into another --out")
    location = locate(file.path)
    source = location.open() if isinstance(location, ObjectPath) else location
    return pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)


class Reader:
    """Reads runs of rows of one file.

    A run is read by decoding its row groups from their beginning. One that lies behind the run before in the same row groups
    is read on from there, so that the units of a large row group cost one pass over it.
    """

    def __init__(self, file: InputFile, columns: list[str]) -> None:
        self.file = file
        with reading(file):
            self._parquet = open_parquet(file)
        metadata = self._parquet.metadata
        self._columns = columns
        self._read = [name for name in columns if name not in dict(file.partition)]
        self._starts = [0]  # first row of each row group
        nbytes = 0
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            self._starts.append(self._starts[-1] + group.num_rows)
            nbytes += group.total_byte_size
        self._batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(nbytes, 1)))
        self._groups = range(0)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._position = 0

    def rows(self, first: int, end: int) -> pa.Table:
        """Return rows [first, end) of the file, first < end.

        Raises:
            InputError: the file is damaged there.
        """
        groups = range(bisect.bisect_right(self._starts, first) - 1, bisect.bisect_left(self._starts, end))
        with reading(self.file):
            if groups != self._groups or first < self._position:
                self._groups, self._rest, self._position = groups, None, self._starts[groups[0]]
                self._batches = self._parquet.iter_batches(
                    self._batch_rows, row_groups=list(groups), columns=self._read, use_threads=False
                )
            parts = []
            while self._position < end:
                batch = self._rest or next(self._batches)
                begin, stop = self._position, min(self._position + len(batch), end)
                self._rest = batch.slice(stop - begin) if stop - begin < len(batch) else None
                if stop > first:
                    parts.append(batch.slice(max(first - begin, 0), stop - max(first, begin)))
                self._position = stop
        table = pa.Table.from_batches(parts)
        for name, value in self.file.partition:
            table = table.append_column(name, pa.repeat(pa.scalar(value), len(table)))
        return table.select(self._columns)
