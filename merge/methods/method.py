"""This module says what a method is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from merge.vocabulary import RowRanges


class TensorPath(Protocol):
    """The path of one tensor holds numbers that are the same for all of its elements. It is hashable, and equal by them."""

    def between(self, base: "torch.Tensor", aligned: "torch.Tensor", lam: float) -> "torch.Tensor":
        """Return the tensor at λ in fp32, element by element: the parents may be parts of the tensor, of any shape.

        λ is neither 0 nor 1.
        """


@dataclass(frozen=True, slots=True)
class Method:
    """A method is a way from base to an aligned checkpoint."""

    name: str  # the name that --method and sweep.json have
    path: "Callable[[torch.Tensor, torch.Tensor, RowRanges], TensorPath | None] | None" = None
    """It takes base, aligned and the rows of aligned that do not count, and returns the tensor's path; None where the tensor
    goes straight. Without a function every tensor goes straight, and nothing is read to know that."""
    one_only: str = ""
    """The reason why it takes one aligned checkpoint; it is empty where the method takes several."""
