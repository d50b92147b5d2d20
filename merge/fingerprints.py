"""Fingerprints: what a checkpoint's weights and config are, in 64 hexadecimal digits; NaN and infinity are refused.

They are remembered, so that a parent's weights are read once on each node and not at every start:

    $XDG_CACHE_HOME/lambdasweep/weights/<stamp>.json    SHA-256 of each tensor, of weights that hold no NaN and no infinity

The stamp stands for the resolved path, size, times of change and inode of every weight file: a file that was changed has
another one and is read again.
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

from contract.errors import PairError
from contract.rundir import commit_json
from merge.checkpoint import Checkpoint, TensorInfo
from merge.pair import meaning

_SHOWN = 8  # offenders
_THREADS = 16  # a core hashes about 1.8 GB/s, and so many of them outrun most disks
_CHUNK = 4 << 20  # bytes hashed and scanned at a time: stays in the second-level cache, and bounds memory
_SETTLED_NS = 2_000_000_000  # a file changed later than this may change again within one tick of its clock
_SHA256 = re.compile(r"[0-9a-f]{64}")


def remembered_fingerprint(checkpoint: Checkpoint, role: str) -> str:
    """Return `fingerprint`, from what is remembered of these very files where there is anything.

    Of several processes that ask at the same time, one reads the weights.

    Raises:
        PairError: as `fingerprint`.
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
                    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
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
    return sorted({info.file.resolve() for info in checkpoint.tensors.values()})


def _newest(checkpoint: Checkpoint) -> int:
    """Return when a weight file was last changed, in nanoseconds since 1970."""
    statuses = [file.stat() for file in _files(checkpoint)]
    return max((max(status.st_mtime_ns, status.st_ctime_ns) for status in statuses), default=0)


def cache_folder(name: str) -> Path:
    """Return where this machine remembers one kind of thing."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "lambdasweep" / name


def _recall(entry: Path, checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return what an entry holds; None where there is none, or it is damaged."""
    try:
        digests = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(digests, dict) or digests.keys() != checkpoint.tensors.keys():
        return None
    return digests if all(isinstance(one, str) and _SHA256.fullmatch(one) for one in digests.values()) else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; where the file system has none, go on without."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
        yield


def fingerprint(checkpoint: Checkpoint, role: str) -> str:
    """Read every weight once: hash it, and refuse NaN and infinity.

    Returns:
        64 hexadecimal digits.

    Raises:
        PairError: naming every tensor that holds NaN or infinity.
    """
    return combine(checkpoint, scan(checkpoint, role))


def scan(checkpoint: Checkpoint, role: str) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes; raises as `fingerprint`."""
    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:  # hashlib and NumPy release the interpreter lock
        scanned = list(pool.map(_scan, checkpoint.tensors.values()))
    bad = [name for name, (_, finite) in zip(checkpoint.tensors, scanned, strict=True) if not finite]
    if bad:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise PairError(f"the {role} checkpoint {checkpoint.source} holds NaN or infinity", [*bad[:_SHOWN], *more])
    return {name: digest for name, (digest, _) in zip(checkpoint.tensors, scanned, strict=True)}


def combine(checkpoint: Checkpoint, digests: dict[str, str]) -> str:
    """Make the fingerprint of the hashes of all tensors.

    It does not depend on how they are split over files: SHA-256 over the sorted list of (name, dtype, shape, SHA-256 of the
    bytes) and the config's relevant part.
    """
    rows: list[Any] = [[name, info.dtype, list(info.shape), digests[name]] for name, info in checkpoint.tensors.items()]
    return hashlib.sha256(json.dumps([sorted(rows), meaning(checkpoint.config)], sort_keys=True).encode()).hexdigest()


def _scan(info: TensorInfo) -> tuple[str, bool]:
    """Return one tensor's SHA-256 and whether all of its numbers are finite."""
    # Exponent bits all set is NaN or infinity, whatever the float format.
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
