"""A run directory lies at a local path, or under a prefix of an object store (`s3://bucket/run`, `gs://bucket/run`).

An object store shows an object when its upload is complete, and never a part of it. `ObjectPath` has those methods of
`pathlib.Path` that the code calls on the files of a run, so that most code need not know which of the two it holds.

Credentials come from the environment of each process (`AWS_ACCESS_KEY_ID` and the like, `~/.aws`, an instance's role,
`GOOGLE_APPLICATION_CREDENTIALS`) and are never part of an `ObjectPath`.
"""

import contextlib
import errno
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract.errors import InputError

T = TypeVar("T")

SCHEMES = ("s3", "gs")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
# The AWS SDK's standard backoff waits up to 20 s between tries: a store that is away for a minute or two stops no sweep.
_ATTEMPTS, _PROBE_ATTEMPTS = 20, 3
# A damaged file is an OSError too: only the words of pyarrow's message tell that the store failed.
_OF_STORE = re.compile("AWS Error|google::cloud")
_TRIES = 3  # so often an object is read that is replaced meanwhile
_GS_SECONDS, _GS_PROBE_SECONDS = 180, 10


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A key of an object store, or a prefix of keys; it does for objects what `pathlib.Path` does for local files.

    Raises:
        OSError: every method that asks the store raises FileNotFoundError where there is no such object, EACCES where the
            store refuses, and EREMOTEIO where it cannot be reached or fails, each after pyarrow's own retries (on timeouts,
            refused connections, 429 and 5xx).
    """

    scheme: str  # one of SCHEMES
    key: str  # written bucket/prefix/name

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(self.scheme, self.key.rpartition("/")[0])

    @property
    def bucket(self) -> str:
        return self.key.partition("/")[0]

    def resolve(self) -> "ObjectPath":
        return self

    def is_file(self) -> bool:
        return self._type() == "File"

    def is_dir(self) -> bool:
        return self._type() == "Directory"

    def exists(self) -> bool:
        return self._type() != "NotFound"

    def read_bytes(self) -> bytes:
        data: bytes = self._ask(lambda store: store.open_input_stream(self.key).read())
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes | memoryview | pa.Buffer) -> None:
        """Upload the object: afterwards the store has it whole, or as it was before."""

        def upload(store: Any) -> None:
            # There is no `with` here: leaving it by an exception would complete the upload of a part. All bytes go in one
            # write; where that fails, the stream refuses to complete.
            stream = store.open_output_stream(self.key)
            try:
                stream.write(data)
                stream.close()
            except OSError:
                # Parts may be on their way. Where the garbage collector closes the stream, it waits for them with the
                # interpreter locked, and a server in this process could not answer.
                with contextlib.suppress(OSError):
                    stream.close()
                raise

        self._ask(upload)

    def open(self) -> pa.NativeFile:
        """Open the object for reading at any offset; `of_read` explains an error that such a read raises."""
        return self._ask(lambda store: store.open_input_file(self.key))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda store: store.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what lies directly below this prefix, if anything; the store is asked once for every 1000 entries."""
        return self._list(recursive=False)

    def walk(self) -> Iterator["ObjectPath"]:
        """Yield all objects below this prefix, if any; the store is asked once for every 1000 objects."""
        return self._list(recursive=True)

    def check(self) -> None:
        """Ask the store whether the bucket is there.

        Raises:
            InputError: there is no such bucket, the credentials are wrong, or the store cannot be reached.
        """
        try:
            kind = _ask(self, _PROBE_ATTEMPTS, lambda store: store.get_file_info(self.bucket).type.name)
        except OSError as error:
            raise InputError(error.strerror or str(error)) from None
        if kind == "NotFound":
            raise InputError(f"{self} cannot be used: there is no bucket {self.bucket}; make it, or give another")

    def _list(self, recursive: bool) -> Iterator["ObjectPath"]:
        from pyarrow import fs

        selector = fs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        for info in self._ask(lambda store: store.get_file_info(selector)):
            if not recursive or info.type == fs.FileType.File:
                yield ObjectPath(self.scheme, info.path)

    def _type(self) -> str:
        kind: str = self._ask(lambda store: store.get_file_info(self.key).type.name)
        return kind

    def _ask(self, what: Callable[[Any], T]) -> T:
        return _ask(self, _ATTEMPTS, what)


Location = Path | ObjectPath


def locate(root: str | os.PathLike[str] | ObjectPath) -> Location:
    """Return the location that a user's path or URL means.

    Raises:
        InputError: the URL names no bucket of a store that is supported.
    """
    if isinstance(root, ObjectPath):
        return root
    match = _URL.fullmatch(root) if isinstance(root, str) else None
    if not match:
        return Path(root)
    scheme, key = match[1], match[2].rstrip("/")
    if scheme not in SCHEMES:
        raise InputError(f"{scheme}:// is not supported: give a local path, s3://bucket/run or gs://bucket/run")
    if any(mark in key for mark in "@?#"):
        # The message does not repeat the URL: it may hold a secret, which may itself hold slashes.
        raise InputError(
            f"a {scheme}:// URL is a bucket and a path, without credentials and options: set those in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if not all(part not in ("", ".", "..") for part in key.split("/")):
        raise InputError(f"{root} names no bucket and path: write {scheme}://bucket/run")
    return ObjectPath(scheme, key)


def read_table(path: Location, columns: list[str] | None = None, filters: pc.Expression | None = None) -> pa.Table:
    """Read a Parquet file, all of it or only some of its columns, or only the rows that pass a filter.

    Raises:
        OSError, pa.ArrowException: the file is not there, is no Parquet file, or a page is not as its checksum says.
    """
    if filters is None:  # without pyarrow.dataset, whose import takes as long as hundreds of tables
        with pq.ParquetFile(_readable(path), page_checksum_verification=True) as file:
            return file.read(columns=columns)
    return pq.read_table(_readable(path), columns=columns, filters=filters, page_checksum_verification=True)


def read_metadata(path: Location) -> pq.FileMetaData:
    """Read only the footer of a Parquet file."""
    if isinstance(path, ObjectPath):
        return path._ask(lambda store: pq.read_metadata(path.key, filesystem=store))
    return pq.read_metadata(path)


def read_schema(path: Location) -> pa.Schema:
    """Read a Parquet file's schema with its metadata."""
    return pq.read_schema(_readable(path))


def read_json(path: Location) -> Any:
    """Read a JSON file, which somebody may replace meanwhile.

    A store tells an object's size first and then gives so many bytes, which cuts a longer one that has taken its place
    between the two requests. What is no JSON is therefore read again.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        ValueError: it is no JSON, however often it is read.
    """
    for _ in range(_TRIES - 1 if isinstance(path, ObjectPath) else 0):
        with contextlib.suppress(ValueError):
            return json.loads(path.read_bytes())
    return json.loads(path.read_bytes())


def _readable(path: Location) -> Any:
    # One request brings the whole object: the tables are small, and Parquet's own reads would be several requests.
    return pa.BufferReader(path.read_bytes()) if isinstance(path, ObjectPath) else path


def _ask(path: ObjectPath, attempts: int, what: Callable[[Any], T]) -> T:
    try:
        return what(_store(path.scheme, attempts))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _explained(path, error) from None


@functools.cache
def _store(scheme: str, attempts: int) -> Any:
    """Return this process's file system for a scheme; pyarrow's are thread-safe."""
    from pyarrow import fs

    if scheme == "gs":
        seconds = _GS_PROBE_SECONDS if attempts == _PROBE_ATTEMPTS else _GS_SECONDS
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=seconds))
    # The AWS tools read these variables and pyarrow does not; it finds keys, tokens, profiles and roles by itself.
    environment = os.environ.get
    return fs.S3FileSystem(
        endpoint_override=environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL"),
        region=environment("AWS_REGION") or environment("AWS_DEFAULT_REGION"),
        tls_ca_file_path=environment("AWS_CA_BUNDLE"),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # an object of less than 10 MB is uploaded by one request instead of three
    )


def of_read(path: Location, error: OSError) -> OSError:
    """Return the error of a read from an opened file, explained as `ObjectPath` explains it where the store failed."""
    return _explained(path, error) if isinstance(path, ObjectPath) and _OF_STORE.search(str(error)) else error


def _explained(path: ObjectPath, error: OSError) -> OSError:
    """Return the error with a message that says what to do and an errno that says what kind of error it is."""
    text = str(error)
    number = errno.EREMOTEIO
    if "NO_SUCH_BUCKET" in text:
        advice = f"there is no bucket {path.bucket}; make it, or give another"
    elif re.search(r"ACCESS_DENIED|SIGNATURE|ACCESS_KEY|TOKEN|CREDENTIALS|HTTP status 40[13]|Permission", text):
        number = errno.EACCES
        advice = "the store refuses the credentials in the environment; check them and what they may do in this bucket"
    elif "NETWORK_CONNECTION" in text:
        advice = "the store cannot be reached; check the network, AWS_ENDPOINT_URL and AWS_REGION"
    else:
        advice = "the store failed"
    return OSError(number, f"{path} cannot be used: {advice} ({text})")
