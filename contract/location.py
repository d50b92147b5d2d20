"""Where a run directory lies: a local path, or a prefix of an object store (`s3://bucket/run`, `gs://bucket/run`).

An object store shows an object when its upload is complete, and never a part of it. `ObjectPath` has the methods of
`pathlib.Path` that the files of a run are used with, so that most code need not know which of the two it holds.

Credentials come from the environment of each process (`AWS_ACCESS_KEY_ID` and the like, `~/.aws`, an instance's role,
`GOOGLE_APPLICATION_CREDENTIALS`) and are never part of an `ObjectPath`.
"""

import contextlib
import errno
import functools
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
# Standard backoff of the AWS SDK, up to 20 s between tries: a store that is away for a minute or two stops no sweep.
_ATTEMPTS, _PROBE_ATTEMPTS = 20, 3
_OF_STORE = re.compile("AWS Error|google::cloud")  # a damaged file is an OSError too; pyarrow tells in words only
_GS_SECONDS, _GS_PROBE_SECONDS = 180, 10


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A key of an object store, or a prefix of keys: what `pathlib.Path` is for local files.

    Raises:
        OSError: of every method that asks the store: FileNotFoundError, EACCES where the store refuses, EREMOTEIO where it
            cannot be reached or fails, each after the retries of pyarrow (timeouts, refused connections, 429 and 5xx).
    """

    scheme: str  # one of SCHEMES
    key: str  # bucket/prefix/name

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
        """Upload the object: it is there whole, or as it was before."""

        def upload(store: Any) -> None:
            # Not `with`: leaving it by an exception would complete the upload of a part. All bytes go in one write; where
            # that fails, the stream refuses to complete.
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
        """Open the object to be read at any place; what fails in a read, `of_read` explains."""
        return self._ask(lambda store: store.open_input_file(self.key))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda store: store.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what lies directly below, nothing where there is nothing; one request for 1000 of them."""
        return self._list(recursive=False)

    def walk(self) -> Iterator["ObjectPath"]:
        """Yield all objects below, nothing where there are none; one request for 1000 of them."""
        return self._list(recursive=True)

    def check(self) -> None:
        """Ask for the bucket.

        Raises:
            InputError: there is none, the credentials are wrong, or the store cannot be reached.
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
    """Return what a user's path or URL means.

    Raises:
        InputError: a URL that is none of a bucket.
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
        # Not repeated here: it may hold a secret, which may itself hold slashes.
        raise InputError(
            f"a {scheme}:// URL is a bucket and a path, without credentials and options: set those in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if not all(part not in ("", ".", "..") for part in key.split("/")):
        raise InputError(f"{root} names no bucket and path: write {scheme}://bucket/run")
    return ObjectPath(scheme, key)


def read_table(path: Location, columns: list[str] | None = None, filters: pc.Expression | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, or the rows that pass a filter."""
    return pq.read_table(_source(path), columns=columns, filters=filters)


def read_metadata(path: Location) -> pq.FileMetaData:
    """Read a Parquet file's footer, and no more of it."""
    if isinstance(path, ObjectPath):
        return path._ask(lambda store: pq.read_metadata(path.key, filesystem=store))
    return pq.read_metadata(path)


def read_schema(path: Location) -> pa.Schema:
    """Read a Parquet file's schema with its metadata."""
    return pq.read_schema(_source(path))


def _source(path: Location) -> Any:
    # One request for the whole of an object: the tables are small, and Parquet's own reads would be several.
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
    # What the AWS tools read and pyarrow does not; keys, tokens, profiles and roles it finds by itself.
    environment = os.environ.get
    return fs.S3FileSystem(
        endpoint_override=environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL"),
        region=environment("AWS_REGION") or environment("AWS_DEFAULT_REGION"),
        tls_ca_file_path=environment("AWS_CA_BUNDLE"),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # one request for an object of less than 10 MB, not three
    )


def of_read(path: Location, error: OSError) -> OSError:
    """Return what failed in a read from an opened file: where it was the store, as every method of `ObjectPath` says it."""
    return _explained(path, error) if isinstance(path, ObjectPath) and _OF_STORE.search(str(error)) else error


def _explained(path: ObjectPath, error: OSError) -> OSError:
    """Return the error with a message that says what to do, and a number that says what kind it is."""
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
