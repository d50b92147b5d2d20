"""This module keeps the parents of a rank: on its device, in pinned host memory, or in the page cache.

    device   beside the live parameters: a switch costs memory bandwidth
    pinned   page-locked host memory: a switch costs the bus to the device
    mmap     the checkpoint files themselves: costs no memory of its own, and all ranks of a node share what one has read;
             on the CPU, where these are plain reads, nothing is faster

A rank keeps only its own tensor-parallel share.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from merge.computed import Computed
from merge.interpolate import chunks
from serve.switch.trace import Piece, Target
from serve.switch.views import View

# Bytes of a block of each parent, and of the block of θ(λ) they make. On the CPU it stays in the second-level cache from the
# lerp to the digest to the conversion. On a GPU that holds the parents it is a whole parameter, mostly, so that starting a
# kernel costs nothing beside running it; where parents come over the bus, two blocks are on their way at a time.
CPU_BLOCK, CUDA_BLOCK, STAGED_BLOCK = 1 << 20, 256 << 20, 32 << 20

Block = tuple[Piece, View, list[torch.Tensor]]  # its piece, its place in the parameter, base and each aligned tensor
Tensors = Mapping[str, torch.Tensor | Computed]  # the tensors of a checkpoint, by name
_ALIGN = 256  # bytes


class Parents(Protocol):
    """An object that has all parents of one rank."""

    def blocks(self, target: Target, limit: int, whole: bool) -> Iterator[Block]:
        """Yield what a parameter is made of, in blocks of at most `limit` bytes of each parent.

        A piece whose rows are aligned's at every λ is read from aligned in base's place, too. `whole` says that all pieces
        move alike: then a block may span several of them, and the first stands for all.
        """


class MappedParents:
    """These parents are the checkpoint files, which are read where a block needs them."""

    def __init__(self, parents: Sequence[Tensors]) -> None:
        """`parents`: base and each aligned one."""
        self._parents = parents

    def blocks(self, target: Target, limit: int, whole: bool) -> Iterator[Block]:
        for piece in target.pieces:
            tensors = [parent[piece.name] for parent in _kept(self._parents, piece)]
            for index in chunks(piece.place.shape, target.dtype.itemsize, limit):
                source = piece.source.block(index)
                yield piece, piece.place.block(index), [_part(tensor, source) for tensor in tensors]


class HeldParents:
    """These parents are copies of this rank's share, laid out as its parameters are, each in one allocation.

    Args:
        targets: the parameters of this rank.
        parents: base's tensors, and those of each aligned checkpoint.
        device: where to hold them.
        pin: page-lock them, so that copies to the GPU overlap with its work.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        parents: Sequence[Tensors],
        device: torch.device,
        pin: bool,
    ) -> None:
        self._starts, size = {}, 0
        for target in targets:
            self._starts[target.path] = size
            size += -(-target.layout.numel() * target.dtype.itemsize // _ALIGN) * _ALIGN
        self._memory = [torch.zeros(size, dtype=torch.uint8, device=device) for _ in parents]
        if pin:
            for memory in self._memory:
                _page_lock(memory)
        for target in targets:
            for piece in target.pieces:
                for held, tensors in zip(self._of(target), _kept(parents, piece), strict=True):
                    for index in chunks(piece.place.shape, target.dtype.itemsize, CUDA_BLOCK):
                        part = _part(tensors[piece.name], piece.source.block(index))
                        piece.place.block(index).on(held).copy_(part)

    def blocks(self, target: Target, limit: int, whole: bool) -> Iterator[Block]:
        held = self._of(target)
        first = target.pieces[0]
        windows = [(first, View.of(target.layout))] if whole else [(piece, piece.place) for piece in target.pieces]
        for piece, window in windows:
            for index in chunks(window.shape, target.dtype.itemsize, limit):
                place = window.block(index)
                yield piece, place, [place.on(tensor) for tensor in held]

    def _of(self, target: Target) -> list[torch.Tensor]:
        start = self._starts[target.path]
        size = target.layout.numel() * target.dtype.itemsize
        return [memory[start : start + size].view(target.dtype) for memory in self._memory]


def _page_lock(memory: torch.Tensor) -> None:
    """Page-lock host memory for as long as it lives.

    pin_memory=True would not do: PyTorch's pinned allocator rounds up to a power of two, twice the memory at worst. Memory
    is unlocked when it is freed, because memory that CUDA holds for locked cannot be locked again.

    Raises:
        torch.cuda.CudaError: the system does not let that much memory be locked.
    """
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr()
    torch.cuda.check_error(cudart.cudaHostRegister(address, memory.numel(), 0))
    weakref.finalize(memory.untyped_storage(), cudart.cudaHostUnregister, address)


def _part(tensor: torch.Tensor | Computed, window: View) -> torch.Tensor:
    return (
        window.on(tensor)
        if isinstance(tensor, torch.Tensor)
        else tensor.window(window.shape, window.stride, window.offset)
    )


def _kept(parents: Sequence[Tensors], piece: Piece) -> Sequence[Tensors]:
    return [parents[-1]] * len(parents) if piece.is_kept else parents
