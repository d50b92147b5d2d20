"""This module spreads a checkpoint's tensors over safetensors files: it knows sizes, headers and index before any weight."""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.errors import InputError
from merge.checkpoint import DTYPE_BYTES, SINGLE, TensorInfo

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file to write: it holds `header`, then the tensors without gaps.

    Each tensor begins at its offset, in bytes from the file's beginning.
    """

    name: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int


def parse_size(text: str) -> int:
    """Return the bytes that a size such as `5GB` or `500MiB` means.

    Raises:
        InputError: the text is no such size, or means 0 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if not size:
        raise InputError(f"--max-shard-size {text} is no size: write it like 5GB or 500MB")
    return size


def lay_out(tensors: Mapping[str, TensorInfo], max_shard_bytes: int) -> list[OutputFile]:
    """Spread tensors in order over files of at most `max_shard_bytes` of weights; a larger tensor has a file of its own."""
    groups: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, info in tensors.items():
        if groups[-1] and filled + info.nbytes > max_shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = info
        filled += info.nbytes
    count = len(groups)
    names = (
        [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)] if count > 1 else [SINGLE]
    )
    return [_file(name, group) for name, group in zip(names, groups, strict=True)]


def index(files: list[OutputFile], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return the content of `model.safetensors.index.json` for a checkpoint of several files."""
    total = sum(info.nbytes for info in tensors.values())
    parameters = sum(info.nbytes // DTYPE_BYTES[info.dtype] for info in tensors.values())
    return {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": {name: file.name for file in files for name in file.offsets},
    }


def _file(name: str, tensors: Mapping[str, TensorInfo]) -> OutputFile:
    # Wide types come first: then each tensor begins at a multiple of its own width, which readers that map the file rely on.
    ordered = sorted(tensors, key=lambda tensor: -DTYPE_BYTES[tensors[tensor].dtype])
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for tensor in ordered:
        info = tensors[tensor]
        begins[tensor], end = end, end + info.nbytes
        entries[tensor] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begins[tensor], end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return OutputFile(
        name, header, {tensor: len(header) + begin for tensor, begin in begins.items()}, len(header) + end
    )
