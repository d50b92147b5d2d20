"""This module knows a checkpoint directory from its safetensors headers alone: no torch is needed and no weight is read."""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from contract.errors import PairError
from merge.file_states import FileState, state_of
from merge.quantised import gguf_problem, quantised_problem

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"  # as PEFT writes an adapter
ADAPTER = "adapter_model.safetensors"

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_SHOWN = 8
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
# Older versions of transformers saved these buffers. No loader reads them: models compute them anew.
_UNREAD = re.compile(
    r"(.*\.)?(rotary_emb|rotary_embs|rope)\.(original_)?(inv_freq|cos_cached|sin_cached)|(.*\.)?(attn|attention|self_attn)"
    r"\.masked_bias|(.*\.)?position_ids"
)
# Attention's mask has this name, and so may a bias, which has another shape.
_MASK = re.compile(r"(.*\.)?(attn|attention|self_attn)\.bias")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The place of one tensor: it is bytes `[begin, end)` of `file`.

    A parent's tensor may be computed of what is stored (`merge.parents`): it has another dtype, or an adapter adds to it.
    """

    file: Path
    dtype: str  # the dtype as safetensors names it: F32, BF16, …
    shape: tuple[int, ...]
    begin: int
    end: int
    name: str  # the tensor's name in its file
    stored: str  # the dtype in the file
    update: "LowRank | None" = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def is_computed(self) -> bool:
        """Tell whether the tensor is not as it is stored."""
        return self.update is not None or self.dtype != self.stored


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a LoRA adapter adds to a tensor: scale · up · down, or that product transposed.

    `up` has the shape (outputs, rank) and `down` the shape (rank, inputs).
    """

    up: TensorInfo
    down: TensorInfo
    scale: float
    is_transposed: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One parent's checkpoint. `tensors` is in natural order of the names (layer 2 before layer 10).

    Of a LoRA adapter, `config` is its adapter_config.json and `tensors` has its factors.
    """

    source: str  # what the user gave: a directory or a hub id
    path: Path
    revision: str | None  # the commit that a hub id resolved to; None for a local directory
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    unread: tuple[str, ...] = ()  # stored buffers that no model reads, which are left out
    is_adapter: bool = False
    files: Mapping[Path, FileState] = field(default_factory=dict, compare=False)
    """The state of each weight file before it was opened."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())


def files_of(checkpoints: Iterable[Checkpoint]) -> dict[Path, FileState]:
    """Return the weight files of several checkpoints, with their states before they were opened."""
    return {file: state for one in checkpoints for file, state in one.files.items()}


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key that keeps the tensors of a layer together and the layers in order."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def open_checkpoint(source: str, role: str, revision: str | None = None) -> Checkpoint:
    """Open a local directory or a hub id (downloaded through `huggingface_hub`).

    Args:
        source: a directory, or `organisation/name` on the hub.
        role: what messages call the checkpoint: `base`, `aligned` or `aligned.NAME`.
        revision: the branch, tag or commit of a hub id.

    Raises:
        PairError: the checkpoint cannot be used; the error lists everything that is wrong with it.
    """
    path, commit = _locate(source, role, revision)
    if gguf := gguf_problem(path):
        raise PairError(_unusable(source, role), [gguf])
    problems: list[str] = []
    is_adapter = (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()
    config = _read_json(path / (ADAPTER_CONFIG if is_adapter else "config.json"), problems)
    files, indexed = _weight_files(path, problems, ADAPTER if is_adapter else SINGLE)
    tensors: dict[str, TensorInfo] = {}
    states: dict[Path, FileState] = {}
    for file in files:
        try:
            states[file] = state_of(file)
            header = _read_header(file, problems)
        except OSError as error:
            problems.append(f"{file} cannot be read: {error.strerror}")
            continue
        for name, info in header.items():
            if name in tensors:
                problems.append(f"tensor {name} is in {tensors[name].file.name} and in {file.name}")
            tensors[name] = info
    if not problems and (gone := sorted(indexed - tensors.keys(), key=natural_key)):
        more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
        problems.append(
            f"{INDEX} names tensors that no file has: {', '.join(gone[:_SHOWN])}{more}; copy the checkpoint again"
        )
    if quantised := quantised_problem(path, config, {name: info.dtype for name, info in tensors.items()}):
        problems = [quantised]  # what else seems to be wrong may come of that
    if problems:
        raise PairError(_unusable(source, role), problems)
    unread = {name for name, info in tensors.items() if _is_unread(name, info)}
    ordered = {name: tensors[name] for name in sorted(tensors.keys() - unread, key=natural_key)}
    return Checkpoint(source, path, commit, config, ordered, tuple(sorted(unread, key=natural_key)), is_adapter, states)


def _is_unread(name: str, info: TensorInfo) -> bool:
    is_mask = len(info.shape) == 4 and info.shape[:2] == (1, 1) and info.shape[2] == info.shape[3]
    return _UNREAD.fullmatch(name) is not None or (is_mask and _MASK.fullmatch(name) is not None)


def _unusable(source: str, role: str) -> str:
    return f"the {role} checkpoint {source} cannot be used"


def _locate(source: str, role: str, revision: str | None) -> tuple[Path, str | None]:
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise PairError(f"--{role}-revision {revision} was given, but {source} is a local directory: leave it out")
        return path.resolve(), None
    if path.exists():
        if gguf := gguf_problem(path):
            raise PairError(_unusable(source, role), [gguf])
        raise PairError(f"the {role} checkpoint {source} is a file: give the directory that holds config.json")
    if not _HUB_ID.fullmatch(source):
        raise PairError(f"the {role} checkpoint {source} does not exist: give a directory or a hub id like org/name")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise PairError(
            f"the {role} checkpoint {source} is no local directory, and huggingface_hub is not installed: "
            "install lambdasweep[cpu] or lambdasweep[gpu], or give a directory"
        ) from None
    try:
        local = snapshot_download(
            source,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"],
            ignore_patterns=["consolidated*", "original/*"],  # the same weights once more
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = ""
        if any(mark in str(error) for mark in ("401", "403", "gated", "Gated")):
            hint = "; it may be gated: accept its terms on its page, and set HF_TOKEN to a token of your account"
        raise PairError(
            f"the {role} checkpoint {source} is no local directory and could not be had from the hub: {reason}{hint}"
        ) from None
    return Path(local), Path(local).name  # a snapshot's folder is named by its commit


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path} is missing")
    except (OSError, ValueError) as error:
        problems.append(f"{path} cannot be read: {error}")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{path} does not hold a JSON object")
    return {}


def _weight_files(path: Path, problems: list[str], single: str) -> tuple[list[Path], set[str]]:
    """Return the safetensors files, and the names of the tensors that an index says they have.

    It is a problem if the index is damaged or names files outside the directory, or if there are only pickles.
    """
    if (path / INDEX).is_file():
        weight_map = _read_json(path / INDEX, problems).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            problems.append(f"{path / INDEX} has no weight_map")
            return [], set()
        files = []
        for name in sorted({str(value) for value in weight_map.values()}):
            # The name is judged, not the resolved path: the hub's cache keeps its files behind links.
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or os.sep != "/" or pure.suffix != ".safetensors":
                problems.append(f"{INDEX} names {name!r}: only safetensors files inside the directory are read")
            elif not (path / name).is_file():
                problems.append(f"{path / name} is missing, though {INDEX} names it")
            else:
                files.append(path / name)
        return files, {*weight_map}
    if (path / single).is_file():
        return [path / single], set()
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickles:
        problems.append(
            f"{path} holds only pickled weights ({', '.join(pickles[:3])}): loading a pickle runs its code, so they are "
            "refused; save the model with save_pretrained(…, safe_serialization=True)"
        )
    elif any(path.glob("consolidated*.safetensors")):
        problems.append(
            f"{path} has only consolidated.safetensors, whose tensors have other names: give the checkpoint with {SINGLE} "
            f"or {INDEX}"
        )
    elif (snapshots := sorted((path / "snapshots").glob("*/config.json"))) and single == SINGLE:
        problems.append(f"{path} is a folder of the hub's cache: give {snapshots[-1].parent}, or the hub id")
    else:
        problems.append(f"{path} has neither {single} nor {INDEX}" if single == SINGLE else f"{path} has no {single}")
    return [], set()


def _read_header(file: Path, problems: list[str]) -> dict[str, TensorInfo]:
    """Parse one file's header and compare it with the file's size; a truncated file becomes a problem."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, max(size - 8, 0)):
            problems.append(f"{file} is not a safetensors file, or is truncated ({size} bytes)")
            return {}
        try:
            header = json.loads(stream.read(length))
            tensors = {
                name: _tensor(file, 8 + length, name, entry) for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{file} has a damaged safetensors header: {error}")
            return {}
    end = max((info.end for info in tensors.values()), default=8 + length)
    if end != size:
        state = "truncated" if end > size else "followed by other data"
        problems.append(f"{file} is {state}: its header tells of {end} bytes, the file has {size}")
    return tensors


def _tensor(file: Path, offset: int, name: str, entry: dict[str, Any]) -> TensorInfo:
    dtype, shape = str(entry["dtype"]), tuple(int(side) for side in entry["shape"])
    begin, end = (offset + int(value) for value in entry["data_offsets"])
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype}")
    if begin < offset or end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"{end - begin} bytes for shape {list(shape)} of {dtype}")
    return TensorInfo(file, dtype, shape, begin, end, name, dtype)
