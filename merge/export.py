"""This module writes θ(λ) as a checkpoint on disk; `merge.methods` and, of several aligned checkpoints, `merge.interpolate`
say what it is and how exact.

The directory appears under its final name complete or not at all: it is written as `.NAME.partial` beside it, flushed and
renamed. An export that was killed goes on from there: a file that is recorded in `progress.json` was flushed before, and is
kept if it still has its header and its digest.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.commit import commit_bytes, commit_json
from contract.errors import InputError, PairError
from contract.points import role
from merge.checkpoint import INDEX, Checkpoint
from merge.file_layout import OutputFile, index, lay_out
from merge.file_states import check_unchanged
from merge.heads import flags_of_tensors
from merge.pair import Pair
from merge.weight_writer import WeightWriter

PROGRESS = "progress.json"
_SPARE_BYTES = 64 << 20
_SHOWN = 8
# These files go with the weights: configs, tokenizer, chat templates, terms of use. Code and lists of weight files do not.
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
_NOT_BESIDE = ("*.index.json", "adapter_*", PROGRESS)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """Says what to write. `like` names the parent whose config, tokenizer and chat template go with the weights."""

    pair: Pair
    fingerprints: dict[str, str]  # each parent's fingerprint, by its role
    lam: str  # the canonical point to export
    like: str  # a name that Pair.parent takes
    out: Path
    max_shard_bytes: int

    @property
    def parent(self) -> Checkpoint:
        return self.pair.parent(self.like)

    @property
    def beside(self) -> tuple[Path, ...]:
        """The directories whose files go with the weights: of an adapter, base's and then its own."""
        name = "base" if self.like == "base" else role("" if self.like == "aligned" else self.like)
        opened = self.pair.opened.get(name) or next(iter(list(self.pair.opened.values())[1:]))
        return (self.pair.opened["base"].path, opened.path) if opened.is_adapter else (opened.path,)


def export(plan: ExportPlan, card: str, threads: int, say: Callable[[str], None]) -> int:
    """Write θ(λ) as a Hugging Face checkpoint and return the number of bytes of its weight files.

    It takes a few MB of memory for each thread, whatever the model's size.

    Args:
        plan: what to write.
        card: the text of README.md.
        threads: how many blocks are in work at a time, each on a core of its own.
        say: a function that is called with one line of news at a time.

    Raises:
        InputError: `out` exists, another process is writing it, or it does not fit on the disk. Nothing is written.
        PairError: NaN or infinity came out; the error names the tensors, and nothing is left behind. Or a parent's files
            were changed meanwhile; what was written before goes on counting for the parents as they were.
        OSError: the disk is full or not writable; the same call, made again, goes on from there.
    """
    out = plan.out.absolute()
    files = lay_out(plan.pair.shaped.tensors, plan.max_shard_bytes)
    check_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with _locked(partial, out):
        with WeightWriter(plan.pair, plan.lam, threads) as writer:
            written = _written(partial, plan, files, writer)
            if written:
                say(f"going on: {len(written)} of {len(files)} files are there already")
            _clear(partial, {PROGRESS, *written})
            _check_disk(out, sum(file.nbytes for file in files if file.name not in written))
            for file in files:
                if file.name in written:
                    continue
                digest = writer.write(file, partial / file.name)
                check_unchanged(plan.pair.files)
                if not writer.not_finite:  # NaN or infinity makes the whole export useless: then nothing is recorded
                    written[file.name] = digest
                    commit_json(partial / PROGRESS, _identity(plan) | {"files": written})
            if writer.not_finite:
                shutil.rmtree(partial)
                raise _overflow(plan, writer.not_finite)
        if len(files) > 1:
            commit_json(partial / INDEX, index(files, plan.pair.shaped.tensors))
        for source in beside(*plan.beside):
            content = _config(plan) if source.name == "config.json" else source.read_bytes()
            commit_bytes(partial / source.name, content)
        commit_bytes(partial / "README.md", card.encode())
        (partial / PROGRESS).unlink()
        _flush(partial)
        check_target(out)
        os.rename(partial, out)
        _flush(out.parent)
    return sum(file.nbytes for file in files)


def check_target(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        InputError: `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists: give another --out, or remove it")


def beside(*paths: Path) -> list[Path]:
    """Return the files that an export copies beside the weights, sorted by name; of equal names the last path's is taken."""
    found: dict[str, Path] = {}
    for path in paths:
        files = {file for pattern in _BESIDE for file in path.glob(pattern)}
        dropped = {file for pattern in _NOT_BESIDE for file in path.glob(pattern)}
        found |= {file.name: file for file in files - dropped if file.is_file()}
    return [found[name] for name in sorted(found)]


def _config(plan: ExportPlan) -> bytes:
    """Return config.json of the parent that was asked for, changed only where it would not be true of the weights."""
    tensors, parent = plan.pair.shaped.tensors, plan.parent
    changes = flags_of_tensors(parent, tensors)
    stored = {info.stored for info in parent.tensors.values()}
    if any(info.dtype not in stored for info in tensors.values()):
        changes |= {key: "float32" for key in ("dtype", "torch_dtype") if key in parent.config}
    source = plan.beside[0] / "config.json"
    if not changes:
        return source.read_bytes()
    config = json.loads(source.read_text(encoding="utf-8"))
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _identity(plan: ExportPlan) -> dict[str, Any]:
    line = plan.pair.line.to_json()
    return {"lam": plan.lam, "line": line, "fingerprints": plan.fingerprints, "max_shard_bytes": plan.max_shard_bytes}


def _written(partial: Path, plan: ExportPlan, files: list[OutputFile], writer: WeightWriter) -> dict[str, str]:
    """Return the digest of each file that an earlier call with the same plan left whole, by the file's name."""
    try:
        progress = json.loads((partial / PROGRESS).read_text())
        recorded = progress.pop("files")
    except (OSError, ValueError, KeyError):
        return {}
    if progress != _identity(plan):
        return {}
    return {
        file.name: recorded[file.name]
        for file in files
        if file.name in recorded and _is_whole(partial / file.name, file, recorded[file.name], writer)
    }


def _is_whole(path: Path, file: OutputFile, digest: str, writer: WeightWriter) -> bool:
    if not path.is_file() or path.stat().st_size != file.nbytes:
        return False
    with open(path, "rb") as stream:
        if stream.read(len(file.header)) != file.header:
            return False
    return writer.digest(file, path) == digest


def _clear(partial: Path, keep: set[str]) -> None:
    for path in partial.iterdir():
        if path.name not in keep:
            path.unlink()


def _check_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed + _SPARE_BYTES:
        raise InputError(
            f"no disk space: the weights take {needed / 1e9:.2f} GB more and {out.parent} has {free / 1e9:.2f} GB free; "
            "make room or give another --out"
        )


def _overflow(plan: ExportPlan, names: set[str]) -> PairError:
    ordered = [name for name in plan.pair.shaped.tensors if name in names]
    more = [f"and {len(ordered) - _SHOWN} more"] if len(ordered) > _SHOWN else []
    dtypes = {plan.pair.shaped.tensors[name].dtype for name in ordered}
    return PairError(
        f"θ({plan.lam}) cannot be exported: NaN or numbers too large for {' and '.join(sorted(dtypes))} in "
        f"{len(ordered)} tensors; give a λ nearer to [0, 1], or parents without NaN",
        [*ordered[:_SHOWN], *more],
    )


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """Make the temporary directory and lock it; the kernel releases the lock when the process ends, however it ends."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another lambdasweep process is writing {out}: wait for it, or stop it first") from None
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            partial.rmdir()  # succeeds only where nothing was written


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
