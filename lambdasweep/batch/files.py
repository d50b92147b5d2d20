"""This module knows the input files by their footers. It reads no row, so a terabyte is planned from its metadata.

A file is known by its size and the SHA-256 of its Parquet footer, which holds the place, size and statistics of every column
chunk. What a footer cannot show, a value changed in place, shows in the content hash that each table of scores carries.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract import schemas
from contract.errors import InputError
from contract.location import ObjectPath, locate
from lambdasweep.batch.find import find

_MAGIC = b"PAR1"
_BYTES_PER_TOKEN = 4  # of English text; an estimate for planning only
_SHOWN = 20
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_TEXT, _IDS = ("prompt", "continuation"), ("prompt_token_ids", "continuation_token_ids")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the input hold what."""

    id: str
    id_type: pa.DataType
    prompt: str  # prompt or prompt_token_ids
    continuation: str | None  # continuation or continuation_token_ids

    @property
    def is_text(self) -> bool:
        return self.prompt in _TEXT

    @property
    def texts(self) -> list[str]:
        """The columns that become tokens; the last one is scored."""
        return [self.prompt, *([self.continuation] if self.continuation else [])]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "id_type": str(self.id_type),
            "prompt": self.prompt,
            "continuation": self.continuation,
        }


@dataclass(frozen=True, slots=True)
class InputFile:
    """One Parquet file."""

    path: str
    size: int  # bytes
    rows: int
    footer_sha256: str
    first_row: int = 0  # of all files' rows, one after the other
    partition: tuple[tuple[str, str], ...] = ()  # columns that its folders name=value stand for, the same in each row


@dataclass(frozen=True, slots=True)
class Inputs:
    """All input files, in the order of their rows."""

    columns: Columns
    files: tuple[InputFile, ...]
    shards: tuple[tuple[int, int], ...]  # [first row, end row) of all files' rows; never of two files
    costs: tuple[int, ...]  # tokens a shard, by estimate where the input is text
    scored: int  # tokens that get a score, likewise

    @property
    def rows(self) -> int:
        return self.files[-1].first_row + self.files[-1].rows


def open_inputs(requests: Sequence[str], id_name: str, shard_tokens: int) -> Inputs:
    """Find the files, check each, and cut their rows into units.

    Args:
        requests: Parquet files, globs, or directories, local ones or URLs of an object store; files of each in order of
            their names. Of a directory it is all `*.parquet` below it, except what begins with `.` or `_`, or lies in such a
            folder: other writers leave unfinished files there. Folders `name=value` are columns of texts.
        id_name: the id column.
        shard_tokens: about how many tokens a unit has.

    Raises:
        InputError: with every problem of every file.
    """
    problems: list[str] = []
    paths = find(requests, problems)
    files: list[InputFile] = []
    shards: list[tuple[int, int]] = []
    costs: list[int] = []
    scored = 0
    seen: dict[Columns, str] = {}
    for path, partition in paths:
        try:
            size, digest, metadata, schema = read_footer(path)
        except InputError as error:
            problems.append(error.title)
            continue
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}")
            continue
        before = len(problems)
        partition = tuple((name, value) for name, value in partition if name not in schema.names)
        for name, _ in partition:
            schema = schema.append(pa.field(name, pa.string()))
        columns = _columns(path, schema, id_name, problems)
        if any(name == id_name for name, _ in partition):
            problems.append(
                f"{path}: {id_name} is the name of a folder, so all of its rows have one id: give another --id"
            )
        if columns is None or len(problems) > before:
            continue
        if seen and columns not in seen:
            other, where = next(iter(seen.items()))
            problems.append(f"{path} has {_describe(columns)}, and {where} has {_describe(other)}: score them apart")
        seen.setdefault(columns, path)
        first_row = files[-1].first_row + files[-1].rows if files else 0
        used = () if columns is None else tuple(one for one in partition if one[0] in columns.texts)
        files.append(InputFile(path, size, metadata.num_rows, digest, first_row, used))
        for first, end, cost in _cut(metadata, columns, shard_tokens):
            shards.append((first_row + first, first_row + end))
            costs.append(cost)
        for index in range(metadata.num_row_groups):
            scored += _tokens(metadata.row_group(index), columns, columns.texts[-1:])
    if paths and not problems and not shards:
        problems.append("the files have no rows")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise InputError("--requests cannot be scored", [*problems[:_SHOWN], *more])
    return Inputs(next(iter(seen)), tuple(files), tuple(shards), tuple(costs), scored)


def read_footer(path: str) -> tuple[int, str, pq.FileMetaData, pa.Schema]:
    """Return a file's size in bytes, its footer's SHA-256, its metadata and its Arrow schema.

    Raises:
        InputError: the file is no Parquet file, or is damaged.
        OSError: it cannot be read.
    """
    location = locate(path)
    with location.open() if isinstance(location, ObjectPath) else open(location, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 8, 0))
        end = stream.read()
        length = int.from_bytes(end[:4], "little")
        if end[4:] != _MAGIC or length + 12 > size:
            raise InputError(f"{path} is no Parquet file, or is truncated ({size} bytes)")
        stream.seek(size - 8 - length)
        digest = hashlib.sha256(stream.read(length)).hexdigest()
        stream.seek(0)
        try:
            parquet = pq.ParquetFile(stream)
        except (OSError, pa.ArrowException) as error:  # Thrift's are OSErrors
            raise InputError(f"{path} has a damaged footer: {str(error).splitlines()[0]}") from None
        return size, digest, parquet.metadata, parquet.schema_arrow


def _columns(path: str, schema: pa.Schema, id_name: str, problems: list[str]) -> Columns | None:
    """Return what a file's columns are; whatever does not fit is told in `problems`."""

    def kind(name: str) -> pa.DataType:
        kind = schema.field(name).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def is_text(kind: pa.DataType) -> bool:
        return any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))

    def check(name: str, id_type: pa.DataType | None = None) -> None:
        found = schema.field(name).type
        if name in _TEXT:
            good, wanted = is_text(kind(name)), "text"
        else:
            good = any(is_one(found) for is_one in _LISTS) and pa.types.is_integer(found.value_type)
            wanted = "lists of integers"
        if not good:
            problems.append(f"{path}: {name} is {found}: give {wanted}")

    names = schema.names
    twice = sorted({name for name in (id_name, *_TEXT, *_IDS) if names.count(name) > 1})
    if twice:
        problems.append(f"{path} has several columns named {', '.join(twice)}")
        return None
    prompts = [name for name in (_TEXT[0], _IDS[0]) if name in names]
    continuations = [name for name in (_TEXT[1], _IDS[1]) if name in names]
    id_type = None
    reserved = {*schemas.batch_scores("", pa.int64()).names, *schemas.batch_quarantine("", pa.int64()).names}
    if id_name in reserved | {*_TEXT, *_IDS}:
        problems.append(f"{path}: the id column cannot be {id_name}, which names another column: rename it")
    elif id_name not in names:
        problems.append(f"{path} has no column {id_name}: name the id column with --id (it has {', '.join(names)})")
    elif is_text(kind(id_name)):
        id_type = pa.string()
    elif pa.types.is_integer(kind(id_name)):
        id_type = kind(id_name)
    else:
        problems.append(f"{path}: {id_name} is {schema.field(id_name).type}: give integers or text as ids")
    if len(prompts) != 1:
        what = "both prompt and prompt_token_ids" if prompts else "neither prompt nor prompt_token_ids"
        problems.append(f"{path} has {what}: give one of them")
    if len(continuations) > 1:
        problems.append(f"{path} has both continuation and continuation_token_ids: give one of them")
    elif len(prompts) == 1 and continuations and (prompts[0] in _TEXT) is not (continuations[0] in _TEXT):
        problems.append(f"{path} has {prompts[0]} and {continuations[0]}: give both as text or both as token ids")
    for name in [*prompts, *continuations]:
        check(name)
    if id_type is None or len(prompts) != 1 or len(continuations) > 1:
        return None
    return Columns(id_name, id_type, prompts[0], continuations[0] if continuations else None)


def _describe(columns: Columns) -> str:
    return " and ".join([f"{columns.id} ({columns.id_type})", *columns.texts])


def _cut(metadata: pq.FileMetaData, columns: Columns, shard_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, end row, tokens): runs of whole row groups, or equal parts of a large one."""
    first = row = cost = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        tokens = _tokens(group, columns, columns.texts)
        parts = min(round(tokens / shard_tokens), group.num_rows)
        if cost and (parts > 1 or cost + tokens > shard_tokens):
            yield first, row, cost
            first, cost = row, 0
        if parts > 1:
            # Equal costs: units of a row group are handed out one after another, and a replica reads it once.
            for part in range(parts):
                ends = row + group.num_rows * part // parts, row + group.num_rows * (part + 1) // parts
                yield *ends, tokens // parts
            row += group.num_rows
            first = row
        else:
            row += group.num_rows
            cost += tokens
    if row > first:
        yield first, row, cost


def _tokens(group: Any, columns: Columns, names: Sequence[str]) -> int:
    """Return the tokens of some columns of a row group: as many as there are, or as the size of the text lets expect, but no
    fewer than rows."""
    total = 0
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema.partition(".")[0] in names:
            total += column.total_uncompressed_size // _BYTES_PER_TOKEN if columns.is_text else column.num_values
    return max(total, int(group.num_rows))
