"""What a method is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from merge.vocabulary import Spans


class Path(Protocol):
    """The way of one tensor, by the numbers that are the same for all of its elements; hashable, equal where these are."""

    def between(self, base: "torch.Tensor", aligned: "torch.Tensor", lam: float) -> "torch.Tensor":
        """Return the tensor at λ in fp32, element by element: the parents may be parts of the tensor, of any shape.

        λ is neither 0 nor 1.
        """


@dataclass(frozen=True, slots=True)
class Method:
    """A way from base to an aligned checkpoint."""

    name: str  # of --method, and in sweep.json
    path: "Callable[[torch.Tensor, torch.Tensor, Spans], Path | None] | None" = None
    """Base, aligned and the rows of aligned that do not count → the way of this tensor; None: it is straight. No function:
    every tensor's is, and nothing is read to know that."""
    one_only: str = ""
    """Why it takes one aligned checkpoint; empty: it takes several."""
