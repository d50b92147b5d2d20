"""This module writes files that appear complete or not at all, and tables that say what they were computed from."""

import contextlib
import json
import os
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.location import Location, ObjectPath, read_schema

TEMPORARY = ".tmp"
METADATA_KEY = b"lambdasweep"


def commit_bytes(path: Location, data: bytes | memoryview | pa.Buffer) -> None:
    """Write `path` so that it appears complete or not at all, even if the power fails meanwhile.

    Raises:
        OSError: the disk is full or not writable, or the object store refuses or fails; a file that was under the final
            name before is left as it was.
    """
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # its own words name the temporary file, or a directory above
            raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from None
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive, not only the bytes
    finally:
        os.close(directory)


def commit_json(path: Location, value: Any) -> None:
    """Commit `value` as JSON with sorted keys, so that equal values are equal bytes."""
    commit_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def commit_table(path: Location, table: pa.Table, identity: dict[str, Any] | None = None) -> int:
    """Commit a Parquet file and return its size in bytes.

    `identity` says what the table was computed from; it is stored as JSON under the schema metadata key `lambdasweep`. The
    bytes depend on the rows and the identity alone: equal tables are equal files. Its pages have checksums, by which
    `location.read_table` finds a byte that has changed.
    """
    if identity is not None:
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        table = table.replace_schema_metadata({METADATA_KEY: text.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=True, write_page_checksum=True)
    buffer = sink.getvalue()
    commit_bytes(path, buffer)
    return len(buffer)


def read_identity(path: Location) -> dict[str, Any]:
    """Return the identity that `commit_table` stored with a table."""
    return identity_of(read_schema(path))


def identity_of(schema: pa.Schema) -> dict[str, Any]:
    """Return the identity in a schema that was read from a committed table."""
    identity: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return identity
