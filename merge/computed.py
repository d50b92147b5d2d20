"""A parent's tensor that is not as it is stored is computed when it is read, part by part and always to the same bits."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from merge.checkpoint import Checkpoint, LowRank, TensorInfo

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Of the float32 rows that are computed at a time: on a CPU they stay in the second-level cache.
_CPU_ROWS, _CUDA_ROWS = 1 << 20, 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What an adapter adds to a matrix, or to a part of one: scale · up · down.

    The products are added one after another, each rounded by itself, so that no element depends on what is computed beside
    it, or where: a matrix product would sum in an order of its own for each shape and device.
    """

    up: torch.Tensor  # (rows, rank)
    down: torch.Tensor  # (rank, columns)
    scale: float

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes

    def part(self, rows: slice, columns: slice) -> "Factors":
        """Return what is added to a part of the matrix."""
        return Factors(self.up[rows], self.down[:, columns], self.scale)

    def on(self, device: torch.device) -> "Factors":
        """Return the same on a device."""
        return Factors(self.up.to(device), self.down.to(device), self.scale)

    def added(self, base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return base + scale · up · down, added in float32 and rounded once to `dtype`.

        Args:
            base: (rows, columns), of any strides, on the device of the factors.
            dtype: of the result, which is contiguous.
        """
        made = torch.empty(base.shape, dtype=dtype, device=base.device)
        height, width = base.shape
        down = self.down.float().contiguous()
        step = max(1, (_CPU_ROWS if base.device.type == "cpu" else _CUDA_ROWS) // (4 * max(1, width)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            up = self.up[rows].float()
            total = torch.zeros_like(made[rows], dtype=torch.float32)
            product = torch.empty_like(total)
            for place in range(down.shape[0]):
                total.add_(torch.mul(up[:, place, None], down[place], out=product))
            made[rows].copy_(total.mul_(self.scale).add_(base[rows].float()))
        return made


def part_of_matrix(
    shape: Sequence[int], stride: Sequence[int], offset: int, columns: int
) -> tuple[slice, slice] | None:
    """Return the rows and columns that a window on a contiguous matrix is, or None where it is something else.

    Args:
        shape, stride, offset: of the window, in elements, as `torch.as_strided` takes them.
        columns: of the matrix.
    """
    if len(shape) not in (1, 2):
        return None
    height, width = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
    first, left = divmod(offset, columns)
    if (height > 1 and stride[0] != columns) or (width > 1 and stride[-1] != 1) or left + width > columns:
        return None
    return slice(first, first + height), slice(left, left + width)


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A tensor that is made of stored ones: it has another dtype, or an adapter adds to it."""

    stored: torch.Tensor  # a memory map
    dtype: torch.dtype
    factors: Factors | None = None  # of memory maps

    @property
    def shape(self) -> torch.Size:
        return self.stored.shape

    def whole(self) -> torch.Tensor:
        """Return the whole tensor, contiguous."""
        return self.window(self.shape, self.stored.stride(), 0)

    def window(self, shape: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
        """Return what `as_strided` would return of the whole tensor; `offset` counts from its first element."""
        if self.factors is None:
            start = int(self.stored.storage_offset()) + offset
            return self.stored.as_strided(tuple(shape), tuple(stride), start).to(self.dtype)
        part = part_of_matrix(shape, stride, offset, self.stored.shape[1])
        if part is None:
            return self.whole().as_strided(tuple(shape), tuple(stride), offset)
        return self.factors.part(*part).added(self.stored[part], self.dtype).view(tuple(shape))


def mapped(checkpoint: Checkpoint) -> dict[str, torch.Tensor | Computed]:
    """Return the tensors of a parent by name, in natural order of the names.

    Each is a memory map of its part of the file, or is computed of such maps: nothing is read before its elements are used,
    and the processes of one node share through the page cache what was read.
    """
    return mapped_together([checkpoint])[0]


def mapped_together(checkpoints: Sequence[Checkpoint]) -> list[dict[str, torch.Tensor | Computed]]:
    """Return what `mapped` returns of each; what two of them have in common, as base and an adapter do, is one object."""
    with ExitStack() as stack:
        files: dict[object, Any] = {}
        maps: dict[tuple[str, object, str], torch.Tensor] = {}  # two names of a parent have two maps of one tensor
        tensors: dict[tuple[str, TensorInfo], torch.Tensor | Computed] = {}

        def stored(called: str, info: TensorInfo) -> torch.Tensor:
            if info.file not in files:
                files[info.file] = stack.enter_context(safe_open(info.file, framework="pt", device="cpu"))
            key = called, info.file, info.name
            if key not in maps:
                maps[key] = files[info.file].get_tensor(info.name)
            return maps[key]

        def made(called: str, info: TensorInfo) -> torch.Tensor | Computed:
            tensor = stored(called, info)
            if not info.is_computed:
                return tensor
            update = info.update
            factors = _factors(update, *(stored(called, one) for one in (update.up, update.down))) if update else None
            return Computed(tensor, TORCH_DTYPES[info.dtype], factors)

        for checkpoint in checkpoints:
            for called, info in checkpoint.tensors.items():
                if (called, info) not in tensors:
                    tensors[called, info] = made(called, info)
        return [{called: tensors[called, info] for called, info in one.tensors.items()} for one in checkpoints]


def _factors(update: LowRank, up: torch.Tensor, down: torch.Tensor) -> Factors:
    return Factors(*((down.T, up.T) if update.is_transposed else (up, down)), update.scale)


def factors_on(base: torch.Tensor | Computed, tensor: torch.Tensor | Computed) -> Factors | None:
    """Return what an adapter adds to base's tensor to make another one; None where that is made of something else."""
    if not isinstance(tensor, Computed) or tensor.factors is None or tensor.dtype != base.dtype:
        return None
    return tensor.factors if tensor.stored is (base.stored if isinstance(base, Computed) else base) else None


def whole(tensor: torch.Tensor | Computed) -> torch.Tensor:
    """Return a parent's tensor with all of its elements."""
    return tensor if isinstance(tensor, torch.Tensor) else tensor.whole()
