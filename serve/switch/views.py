"""This module has strided windows: they say where something lies in a tensor, for any tensor of the same layout."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a tensor, in elements, at least one-dimensional."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: torch.Tensor, start: int = 0) -> "View":
        """Return the window that `tensor` is on the tensor whose first element is element `start` of the storage."""
        if tensor.dim() == 0:
            tensor = tensor.expand(1)
        return View(tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()) - start)

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the same window on `tensor`."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)

    def block(self, index: tuple[slice, ...]) -> "View":
        """Return the part of the window that `index`, from `merge.interpolate.chunks`, cuts out."""
        offset = self.offset + sum(part.start * step for part, step in zip(index, self.stride, strict=True))
        return View(tuple(part.stop - part.start for part in index), self.stride, offset)
