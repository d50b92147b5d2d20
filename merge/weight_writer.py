"""Weights of θ(λ) are written block by block: each block is read from the parents, interpolated, checked and written.

The place of every block is known beforehand, so blocks are independent: each thread takes one from the parents to the file
while it is in the core's cache, and while one thread waits for the disk others compute. Each thread needs memory for one
block of each parent and one block of the result.
"""

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from contract.errors import PairError
from merge.checkpoint import Checkpoint, TensorInfo
from merge.computed import TORCH_DTYPES, Computed, mapped
from merge.digest import WeightDigest, parameter_key, takes_words
from merge.file_layout import OutputFile
from merge.interpolate import PLAIN, chunks, needed, tensor_rules, theta
from merge.pair import Pair
from merge.vocabulary import RowRanges, runs

BLOCK = 1 << 20  # bytes of a block: one of each parent and one of the result stay in the second-level cache
_SYNC = 64 << 20  # bytes that are written between two requests to flush: the disk works while blocks are still made
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous part of a tensor: its elements have this shape and begin at element `start`."""

    name: str
    shape: tuple[int, ...]
    start: int
    is_aligned: bool = False  # whether the block is aligned's at every λ


def blocks(name: str, shape: tuple[int, ...], itemsize: int, aligned_rows: RowRanges = ()) -> Iterator[Block]:
    """Cut a tensor into blocks of whole rows, also where `aligned_rows` begin or end; larger rows are cut themselves."""
    strides = _strides(shape)
    for place in chunks(shape, itemsize, BLOCK):
        sides = tuple(part.stop - part.start for part in place)
        if not math.prod(sides):
            continue
        start = sum(part.start * step for part, step in zip(place, strides, strict=True))
        if not aligned_rows:
            yield Block(name, sides, start)
            continue
        first = place[0].start
        for begin, end, is_aligned in runs(first, place[0].stop, aligned_rows):
            yield Block(name, (end - begin, *sides[1:]), start + (begin - first) * strides[0], is_aligned)


class WeightWriter:
    """Writes files of θ(λ).

    Args:
        pair: the parents and the line between them.
        point: the canonical point.
        threads: how many blocks are in work at a time.

    Attributes:
        not_finite: the names of the tensors in which NaN or infinity came out so far.
    """

    def __init__(self, pair: Pair, point: str, threads: int) -> None:
        self._pair = pair
        self._parents = list(pair.parents.values())
        self._mapped = [mapped(parent) if _is_computed(parent) else {} for parent in self._parents]
        self._tensors = pair.shaped.tensors
        self._rules = tensor_rules(pair)
        self._point = point
        self._threads = threads
        self._local = threading.local()
        self._lock = threading.Lock()
        self.not_finite: set[str] = set()

    def __enter__(self) -> "WeightWriter":
        self._stack = ExitStack()
        self._descriptors = {
            file: _opened(self._stack, file, os.O_RDONLY)
            for parent in self._parents
            for file in sorted({info.file for info in parent.tensors.values()})
        }
        # Threads work on different blocks; torch itself uses one thread within a block.
        self._torch_threads = torch.get_num_threads()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(self._threads, initializer=_one_thread))
        self._flusher = self._stack.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()
        torch.set_num_threads(self._torch_threads)

    def write(self, file: OutputFile, path: Path) -> str:
        """Write one file and flush it to the disk; return the digest of its weights (`merge.digest`).

        Raises:
            PairError: a parent's file became shorter meanwhile.
            OSError: the disk is full or not writable.
        """
        with ExitStack() as stack:
            out = _opened(stack, path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.ftruncate(out, file.nbytes)
            _write_all(out, file.header, 0)
            digest = WeightDigest(_CPU)
            running: set[Future[int]] = set()
            flushing: Future[None] | None = None
            unflushed = 0
            try:
                for block in self._blocks(file):
                    if len(running) >= 2 * self._threads:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        unflushed += sum(future.result() for future in done)
                    if unflushed >= _SYNC and (flushing is None or flushing.done()):
                        flushing, unflushed = self._flusher.submit(os.fdatasync, out), 0
                    running.add(self._pool.submit(self._make, block, out, file.offsets[block.name], digest))
            finally:  # no thread may write to a descriptor that is closed by then, and may belong to another file
                wait(running)
                wait([flushing] if flushing is not None else [])
            for future in running:
                future.result()
            if flushing is not None:
                flushing.result()
            os.fsync(out)
        return digest.hex()

    def digest(self, file: OutputFile, path: Path) -> str:
        """Return the digest of the weights of a file that was written before."""
        digest = WeightDigest(_CPU)
        with ExitStack() as stack:
            descriptor = _opened(stack, path, os.O_RDONLY)

            def take(block: Block) -> None:
                dtype = TORCH_DTYPES[self._tensors[block.name].dtype]
                made = self._buffer(0, block, dtype)
                _read(descriptor, made, file.offsets[block.name] + block.start * dtype.itemsize, path)
                self._add(digest, block, made)

            for future in [self._pool.submit(take, block) for block in self._blocks(file)]:
                future.result()
        return digest.hex()

    def _blocks(self, file: OutputFile) -> Iterator[Block]:
        for name in file.offsets:
            info = self._tensors[name]
            yield from blocks(
                name, info.shape, TORCH_DTYPES[info.dtype].itemsize, self._pair.aligned_rows.get(name, ())
            )

    def _make(self, block: Block, out: int, offset: int, digest: WeightDigest) -> int:
        dtype = TORCH_DTYPES[self._tensors[block.name].dtype]
        point, rule = ("1", PLAIN) if block.is_aligned else (self._point, self._rules[block.name])
        made = self._buffer(0, block, dtype)
        parents = [made] * len(self._parents)
        for place in needed(point, rule):
            parents[place] = self._load(place, block, dtype)
        theta(parents, point, made, rule)
        # Both NaN and infinity show in the extremes, which unlike isfinite() take no tensor of the block's size.
        if not all(math.isfinite(extreme.item()) for extreme in torch.aminmax(made)):
            self.not_finite.add(block.name)
        self._add(digest, block, made)
        _write_all(out, _bytes(made), offset + block.start * dtype.itemsize)
        return made.numel() * dtype.itemsize

    def _load(self, place: int, block: Block, dtype: torch.dtype) -> torch.Tensor:
        info: TensorInfo = self._parents[place].tensors[block.name]
        computed = self._mapped[place].get(block.name)
        if isinstance(computed, Computed):
            return computed.window(block.shape, _strides(info.shape)[-len(block.shape) :], block.start)
        tensor = self._buffer(1 + place, block, dtype)
        _read(self._descriptors[info.file], tensor, info.begin + block.start * dtype.itemsize, info.file)
        return tensor

    def _buffer(self, place: int, block: Block, dtype: torch.dtype) -> torch.Tensor:
        if not hasattr(self._local, "buffers"):
            self._local.buffers = torch.empty((1 + len(self._parents), BLOCK), dtype=torch.uint8)
        buffer: torch.Tensor = self._local.buffers[place]
        return buffer[: math.prod(block.shape) * dtype.itemsize].view(dtype).view(block.shape)

    def _add(self, digest: WeightDigest, block: Block, made: torch.Tensor) -> None:
        shape = self._tensors[block.name].shape
        made = made.reshape(1) if made.dim() == 0 else made
        columns = shape[-1] if shape else 1
        steps = [step // columns for step in _strides(shape)[:-1]]
        words = takes_words(made.element_size(), columns, ())
        with self._lock:
            digest.add(made, parameter_key(block.name), block.start // columns, steps, words)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _is_computed(parent: Checkpoint) -> bool:
    return any(info.is_computed for info in parent.tensors.values())


def _one_thread() -> None:
    torch.set_num_threads(1)


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _read(descriptor: int, tensor: torch.Tensor, offset: int, path: Path) -> None:
    view = _bytes(tensor)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise PairError(f"{path} became shorter while it was read")
        view, offset = view[count:], offset + count


def _write_all(out: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(out, view, offset)
        view, offset = view[count:], offset + count
