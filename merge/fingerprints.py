"""A fingerprint stands for a checkpoint's weights and config in 64 hexadecimal digits; NaN and infinity are refused.

The hashes behind it are remembered, so that a parent's weights are read once on each node and not at every start:

    $XDG_CACHE_HOME/lambdasweep/weights/<stamp>.json    the SHA-256 of each tensor, if all weights are finite

The stamp stands for the resolved path, size, times of change and inode of every weight file: files that were changed have
another stamp and are read again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from contract.cache import cache_folder
from contract.commit import commit_json
from contract.errors import PairError
from merge.checkpoint import Checkpoint, TensorInfo
from merge.config_meaning import meaning

_SHOWN = 8  # a message names no more tensors than this
_THREADS = 16  # one core hashes about 1.8 GB/s, so 16 cores outrun most disks
_CHUNK = 4 << 20  # bytes that are hashed and scanned at a time: they stay in the second-level cache, and bound memory
_SETTLED_NS = 2_000_000_000  # a file changed later than this may change again within one tick of its clock
_SHA256 = re.compile(r"[0-9a-f]{64}")


def remembered_fingerprint(checkpoint: Checkpoint, role: str) -> str:
    """Return what `fingerprint` returns, from the remembered hashes of these very files where there are any.

    If several processes ask at the same time, only one of them reads the weights.

    Raises:
        PairError: a tensor holds NaN or infinity; the error names every such tensor.
    """
    entry = cache_folder("weights") / f"{stamp(checkpoint)}.json"
    digests = _recall(entry, checkpoint)
    if digests is None:
        with locked(entry.with_suffix(".lock")):
            digests = _recall(entry, checkpoint)
            if digests is None:
                began = time.time_ns()
                digests = scan(checkpoint, role)
                if f"{stamp(checkpoint)}.json" == entry.name and _newest(checkpoint) < began - _SETTLED_NS:
                    with contextlib.suppress(OSError):  # without a cache that can be written only time is lost
                        commit_json(entry, digests)
    return combine(checkpoint, digests)


def stamp(checkpoint: Checkpoint) -> str:
    """Return 64 hexadecimal digits that stand for the weight files as they are on this machine, without reading them."""
    rows = []
    for file in _files(checkpoint):
        status = file.stat()
        rows.append([str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({file.resolve() for file in {info.file for info in checkpoint.tensors.values()}})


def _newest(checkpoint: Checkpoint) -> int:
    """Return when a weight file was last changed, in nanoseconds since 1970."""
    statuses = [file.stat() for file in _files(checkpoint)]
    return max((max(status.st_mtime_ns, status.st_ctime_ns) for status in statuses), default=0)


def _recall(entry: Path, checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return the hashes that a cache entry holds, or None where it is missing or damaged."""
    try:
        digests = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(digests, dict) or digests.keys() != checkpoint.tensors.keys():
        return None
    return digests if all(isinstance(one, str) and _SHA256.fullmatch(one) for one in digests.values()) else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; where the file system knows no locks, go on without one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
        yield


def fingerprint(checkpoint: Checkpoint, role: str) -> str:
    """Read every weight once: hash it, and refuse NaN and infinity.

    Returns:
        The fingerprint, 64 hexadecimal digits.

    Raises:
        PairError: a tensor holds NaN or infinity; the error names every such tensor.
    """
    return combine(checkpoint, scan(checkpoint, role))


def scan(checkpoint: Checkpoint, role: str) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes, by the tensor's name.

    Raises:
        PairError: a tensor holds NaN or infinity; the error names every such tensor.
    """
    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:  # hashlib and NumPy release the interpreter lock
        scanned = list(pool.map(_scan, checkpoint.tensors.values()))
    bad = [name for name, (_, finite) in zip(checkpoint.tensors, scanned, strict=True) if not finite]
    if bad:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise PairError(f"the {role} checkpoint {checkpoint.source} holds NaN or infinity", [*bad[:_SHOWN], *more])
    return {name: digest for name, (digest, _) in zip(checkpoint.tensors, scanned, strict=True)}


def combine(checkpoint: Checkpoint, digests: dict[str, str]) -> str:
    """Make the fingerprint from the hashes of all tensors.

    It does not depend on how the tensors are split over files: it is the SHA-256 of the sorted list of (name, dtype, shape,
    SHA-256 of the bytes) and of the part of the config that `merge.config_meaning.meaning` returns.
    """
    rows: list[Any] = [[name, info.dtype, list(info.shape), digests[name]] for name, info in checkpoint.tensors.items()]
    return hashlib.sha256(json.dumps([sorted(rows), meaning(checkpoint.config)], sort_keys=True).encode()).hexdigest()


def _scan(info: TensorInfo) -> tuple[str, bool]:
    """Return one tensor's SHA-256 and whether all of its numbers are finite."""
    # A number whose exponent bits are all set is NaN or infinity, whatever the float format.
    width, exponent = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}[
        info.dtype
    ]
    digest, finite = hashlib.sha256(), True
    with open(info.file, "rb") as stream:
        stream.seek(info.begin)
        left = info.nbytes
        while left:
            chunk = stream.read(min(_CHUNK, left))
            if not chunk:
                raise PairError(f"{info.file} became shorter while it was read")
            left -= len(chunk)
            digest.update(chunk)
            bits = np.frombuffer(chunk, width)
            finite = finite and not bool(((bits & exponent) == exponent).any())
    return digest.hexdigest(), finite
