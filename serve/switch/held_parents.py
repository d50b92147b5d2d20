"""This module keeps the parents of a rank: on its device, in pinned host memory, or in the page cache.

    device   beside the live parameters: a switch costs memory bandwidth
    pinned   page-locked host memory: a switch costs the bus to the device
    mmap     the checkpoint files themselves: costs no memory of its own, and all ranks of a node share what one has read;
             on the CPU, where these are plain reads, nothing is faster

A rank keeps only its own tensor-parallel share. Of an aligned checkpoint that is an adapter it keeps the factors, whole and
on its device: what they add to base is computed where a block is used.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from merge.computed import Computed, Factors, factors_on, part_of_matrix
from merge.interpolate import chunks
from serve.switch.trace import Piece, Target
from serve.switch.views import View

# Bytes of a block of each parent, and of the block of θ(λ) they make. On the CPU it stays in the second-level cache from the
# lerp to the digest to the conversion. On a GPU that holds the parents it is a whole parameter, mostly, so that starting a
# kernel costs nothing beside running it; where parents come over the bus, two blocks are on their way at a time.
CPU_BLOCK, CUDA_BLOCK, STAGED_BLOCK = 1 << 20, 256 << 20, 32 << 20

Tensors = Mapping[str, torch.Tensor | Computed]  # the tensors of a checkpoint, by name
Form = Literal["own", "base"] | Factors
"""An aligned parent's part of a piece is numbers of its own, base's, or those with what an adapter adds."""
_ALIGN = 256  # bytes


@dataclass(frozen=True, slots=True)
class Added:
    """A block of an aligned parent that an adapter makes of base's block."""

    factors: Factors

    def to(self, base: torch.Tensor) -> torch.Tensor:
        """Return the block; `base` is base's, of one or two dimensions, on the device of the factors."""
        matrix = base if base.dim() == 2 else base[None]
        return self.factors.added(matrix, base.dtype).view(base.shape)


Part = torch.Tensor | Added
Block = tuple[Piece, View, list[Part]]  # what it is of, place in the parameter, base and each aligned one


class Parents(Protocol):
    """An object that has all parents of one rank."""

    def blocks(self, target: Target, limit: int, whole: bool) -> Iterator[Block]:
        """Yield what a parameter is made of, in blocks of at most `limit` bytes of each parent.

        A piece whose rows are aligned's at every λ is read from aligned in base's place, too. `whole` says that all pieces
        move alike: then a block may span several of them, and the first stands for all.
        """


class MappedParents:
    """These parents are the checkpoint files, which are read where a block needs them."""

    def __init__(self, targets: Sequence[Target], parents: Sequence[Tensors], device: torch.device) -> None:
        """`targets`: the parameters of this rank; `parents`: base and each aligned one; `device`: the rank's."""
        self._parents = parents
        self._brought = _Brought(device)
        # Now, because what is free later on belongs to the KV cache.
        for piece in (piece for target in targets for piece in target.pieces):
            self._brought.forms(parents, piece)

    def blocks(self, target: Target, limit: int, whole: bool) -> Iterator[Block]:
        for piece in target.pieces:
            first, *others = (tensors[piece.name] for tensors in _kept(self._parents, piece))
            forms = self._brought.forms(self._parents, piece)
            for index in chunks(piece.place.shape, target.dtype.itemsize, limit):
                source = piece.source.block(index)
                base = _part(first, source)
                aligned = [
                    base if form == "base" else _part(tensor, source) if form == "own" else _added(form, source)
                    for form, tensor in zip(forms, others, strict=True)
                ]
                yield piece, piece.place.block(index), [base, *aligned]


def is_read_anew(targets: Sequence[Target], parents: Sequence[Tensors]) -> bool:
    """Tell whether `MappedParents` makes any block anew when it is read: whoever keeps it, holds a copy."""
    for piece in (piece for target in targets for piece in target.pieces):
        tensors = [of_parent[piece.name] for of_parent in _kept(parents, piece)]
        for tensor, form in zip(tensors, ("own", *_forms(parents, piece)), strict=True):
            if form == "own" and isinstance(tensor, Computed):
                return True
    return False


def held_bytes(targets: Sequence[Target], parents: Sequence[Tensors]) -> tuple[int, int]:
    """Return what a rank's share of all parents takes: its tensors, and the factors of adapters, which are on its device."""
    total = 0
    factors: dict[int, int] = {}
    for target in targets:
        forms = [_forms(parents, piece) for piece in target.pieces]
        copies = 1 + sum("own" in of_parent for of_parent in zip(*forms, strict=True))
        total += copies * target.layout.numel() * target.dtype.itemsize
        factors |= {id(form): form.nbytes for of_piece in forms for form in of_piece if isinstance(form, Factors)}
    return total, sum(factors.values())


class HeldParents:
    """These parents are copies of this rank's share, laid out as its parameters are, each in one allocation.

    Args:
        targets: the parameters of this rank.
        parents: base's tensors, and those of each aligned checkpoint.
        where: to hold them.
        device: the rank's, which holds the factors of adapters.
        pin: page-lock the copies, so that what is brought from them to the GPU overlaps with its work.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        parents: Sequence[Tensors],
        where: torch.device,
        device: torch.device,
        pin: bool,
    ) -> None:
        brought = _Brought(device)
        # By the target's path and the piece's place: the form of each aligned parent.
        self._forms = {target.path: [brought.forms(parents, piece) for piece in target.pieces] for target in targets}
        # By parent: where the copies of targets begin. Base has one of each.
        self._starts: list[dict[str, int]] = []
        sizes = []
        for number in range(len(parents)):
            starts, size = {}, 0
            for target in targets:
                if number == 0 or any(forms[number - 1] == "own" for forms in self._forms[target.path]):
                    starts[target.path] = size
                    size += -(-target.layout.numel() * target.dtype.itemsize // _ALIGN) * _ALIGN
            self._starts.append(starts)
            sizes.append(size)
        self._memory = [torch.zeros(size, dtype=torch.uint8, device=where) for size in sizes]
        if pin:
            for memory in filter(torch.numel, self._memory):
                _page_lock(memory)
        for target in targets:
            for piece, forms in zip(target.pieces, self._forms[target.path], strict=True):
                for number, (tensors, form) in enumerate(zip(_kept(parents, piece), ("own", *forms), strict=True)):
                    if form != "own":
                        continue
                    held = self._of(number, target)
                    for index in chunks(piece.place.shape, target.dtype.itemsize, CUDA_BLOCK):
                        part = _part(tensors[piece.name], piece.source.block(index))
                        piece.place.block(index).on(held).copy_(part)

    def blocks(self, target: Target, limit: int, whole: bool) -> Iterator[Block]:
        forms = self._forms[target.path]
        is_whole = whole and all(one == forms[0] for one in forms) and not any(isinstance(f, Factors) for f in forms[0])
        windows = [(piece, piece.place) for piece in target.pieces]
        if is_whole:
            windows = [(target.pieces[0], View.of(target.layout))]
        for (piece, window), aligned in zip(windows, forms, strict=False):
            for index in chunks(window.shape, target.dtype.itemsize, limit):
                place = window.block(index)
                base = place.on(self._of(0, target))
                parts = [
                    base
                    if form == "base"
                    else place.on(self._of(number, target))
                    if form == "own"
                    else _added(form, piece.source.block(index))
                    for number, form in enumerate(aligned, 1)
                ]
                yield piece, place, [base, *parts]

    def _of(self, number: int, target: Target) -> torch.Tensor:
        start = self._starts[number][target.path]
        size = target.layout.numel() * target.dtype.itemsize
        return self._memory[number][start : start + size].view(target.dtype)


class _Brought:
    """Factors of adapters on a rank's device, each brought there once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._found: dict[int, tuple[Factors, Factors]] = {}  # those of the files stay alive, and so keep their number

    def forms(self, parents: Sequence[Tensors], piece: Piece) -> list[Form]:
        return [self._here(form) if isinstance(form, Factors) else form for form in _forms(parents, piece)]

    def _here(self, factors: Factors) -> Factors:
        if id(factors) not in self._found:
            self._found[id(factors)] = factors, factors.on(self._device)
        return self._found[id(factors)][1]


def _forms(parents: Sequence[Tensors], piece: Piece) -> list[Form]:
    """Return the form of each aligned parent's part of a piece."""
    first, *others = (tensors[piece.name] for tensors in _kept(parents, piece))
    found: list[Form] = []
    for tensor in others:
        factors = factors_on(first, tensor)
        is_matrix = factors is not None and _matrix_part(factors, piece.source) is not None
        found.append("base" if tensor is first else factors if factors is not None and is_matrix else "own")
    return found


def _matrix_part(factors: Factors, window: View) -> tuple[slice, slice] | None:
    return part_of_matrix(window.shape, window.stride, window.offset, factors.down.shape[1])


def _added(factors: Factors, window: View) -> Added:
    part = _matrix_part(factors, window)
    assert part is not None  # a block of a part is one
    return Added(factors.part(*part))


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
