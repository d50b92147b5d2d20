"""A parent's tensor that is not as it is stored is computed when it is read, part by part and always to the same bits."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from merge.checkpoint import Checkpoint, LowRank, TensorInfo

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROWS_BYTES = 1 << 20  # of the float32 rows that are computed at a time: they stay in the second-level cache


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A tensor that is made of stored ones.

    Where an adapter adds to it, base and the sum of its `rank` products are added in float32 and rounded once to `dtype`.
    The products are added one after another, each rounded by itself, so that no element depends on what is computed beside
    it: a matrix product would sum in an order of its own for each shape.
    """

    stored: torch.Tensor  # a memory map
    dtype: torch.dtype
    up: torch.Tensor | None = None  # a memory map, (rows, rank)
    down: torch.Tensor | None = None  # a memory map, (rank, columns)
    scale: float = 1.0

    @property
    def shape(self) -> torch.Size:
        return self.stored.shape

    def whole(self) -> torch.Tensor:
        """Return the whole tensor, contiguous."""
        return self.window(self.shape, self.stored.stride(), 0)

    def window(self, shape: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
        """Return what `as_strided` would return of the whole tensor; `offset` counts from its first element."""
        if self.up is None or self.down is None:
            start = int(self.stored.storage_offset()) + offset
            return self.stored.as_strided(tuple(shape), tuple(stride), start).to(self.dtype)
        columns = self.stored.shape[1]
        height, width = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1]) if len(shape) == 2 else (0, 0)
        first, left = divmod(offset, columns)
        are_rows = (height == 1 or stride[0] == columns) and (width == 1 or stride[-1] == 1) and left + width <= columns
        if not height or not are_rows:
            return self.whole().as_strided(tuple(shape), tuple(stride), offset)
        made = torch.empty((height, width), dtype=self.dtype)
        step = max(1, _ROWS_BYTES // (4 * max(1, width)))
        for start in range(0, height, step):
            stop = min(start + step, height)
            self._fill(made[start:stop], slice(first + start, first + stop), slice(left, left + width))
        return made.view(tuple(shape))

    def _fill(self, made: torch.Tensor, rows: slice, columns: slice) -> None:
        assert self.up is not None
        assert self.down is not None
        up, down = self.up[rows].float(), self.down[:, columns].float().contiguous()
        total = torch.zeros(made.shape)
        product = torch.empty(made.shape)
        for place in range(down.shape[0]):
            total.add_(torch.mul(up[:, place, None], down[place], out=product))
        made.copy_(total.mul_(self.scale).add_(self.stored[rows, columns].float()))


def mapped(checkpoint: Checkpoint) -> dict[str, torch.Tensor | Computed]:
    """Return the tensors of a parent by name, in natural order of the names.

    Each is a memory map of its part of the file, or is computed of such maps: nothing is read before its elements are used,
    and the processes of one node share through the page cache what was read.
    """
    with ExitStack() as stack:
        files: dict[object, Any] = {}

        def stored(info: TensorInfo) -> torch.Tensor:
            if info.file not in files:
                files[info.file] = stack.enter_context(safe_open(info.file, framework="pt", device="cpu"))
            tensor: torch.Tensor = files[info.file].get_tensor(info.name)
            return tensor

        def made(info: TensorInfo) -> torch.Tensor | Computed:
            tensor = stored(info)
            if not info.is_computed:
                return tensor
            dtype, update = TORCH_DTYPES[info.dtype], info.update
            if update is None:
                return Computed(tensor, dtype)
            return Computed(tensor, dtype, *_factors(update, stored(update.up), stored(update.down)), update.scale)

        return {name: made(info) for name, info in checkpoint.tensors.items()}


def _factors(update: LowRank, up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (down.T, up.T) if update.is_transposed else (up, down)


def whole(tensor: torch.Tensor | Computed) -> torch.Tensor:
    """Return a parent's tensor with all of its elements."""
    return tensor if isinstance(tensor, torch.Tensor) else tensor.whole()
