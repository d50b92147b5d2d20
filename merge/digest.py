"""A checksum of live weights is cheap enough to take at every λ switch, and the same in whatever order the work is done.

    digest = Σ over parameters p, rows r of p:  key(p) · (2r + 1) · Σ words of the row   (mod 2⁶⁴)

A row runs along the last dimension. Its words are its bits as signed 64-bit integers or, where that does not come out even,
as integers of the element's width. Sums commute, so a parameter may be cut into blocks and the blocks visited in any order.
Two different λs, a flipped bit, a row or a parameter in the wrong place all show; words of one row that change places do
not, and it is no defence against malice.
"""

import hashlib
from collections.abc import Sequence

import torch

_WORD = 8
# The sum is spread over so many partial sums: additions from all over a GPU to one number would wait for each other.
_PARTIAL_SUMS = 1024
_INTEGERS = {2: torch.int16, 4: torch.int32}


class WeightDigest:
    """Adds up blocks on the device that they are on, and waits for the device only when `hex` is asked for.

    Args:
        device: the device that the blocks are on.
    """

    def __init__(self, device: torch.device) -> None:
        self.partial_sums = torch.zeros(_PARTIAL_SUMS, dtype=torch.int64, device=device)
        """Partial sums, shape (1024,), int64; kernels may add to any of them, and the digest is made of their sum."""

    def add(self, block: torch.Tensor, key: int, first_row: int, row_steps: Sequence[int], words: bool) -> None:
        """Take in one block of a parameter.

        Args:
            block: a float16, bfloat16 or float32 tensor with one dimension more than `row_steps` has entries; its last
                dimension is contiguous.
            key: the parameter's number, see `parameter_key`.
            first_row: the number, within the parameter, of the block's first row.
            row_steps: how many rows of the parameter lie from one index to the next in each leading dimension of the block.
            words: whether the block's rows begin and end at multiples of 8 bytes within the parameter's rows.
        """
        if words:
            sums = block.view(torch.int64).sum(-1)
        else:
            sums = block.view(_INTEGERS[block.element_size()]).sum(-1, dtype=torch.int64)
        start, weights = 2 * first_row + 1, None
        for side, step in zip(sums.shape, row_steps, strict=True):
            along = torch.arange(start, start + 2 * step * side, 2 * step, dtype=torch.int64, device=block.device)
            start, weights = 0, along if weights is None else weights[..., None] + along
        weighed = sums * start if weights is None else (sums * weights).sum()
        self.partial_sums[0] += weighed * key

    def add_whole(self, name: str, tensor: torch.Tensor) -> None:
        """Take in a whole contiguous tensor as a parameter of its own."""
        tensor = tensor.reshape(1) if tensor.dim() == 0 else tensor
        columns = tensor.shape[-1]
        steps = [step // max(columns, 1) for step in tensor.stride()[:-1]]
        self.add(tensor, parameter_key(name), 0, steps, takes_words(tensor.element_size(), columns, ()))

    def hex(self) -> str:
        """Return the digest of all blocks added so far, as 16 hexadecimal digits."""
        return f"{int(self.partial_sums.sum().item()) & ((1 << 64) - 1):016x}"


def parameter_key(name: str) -> int:
    """Return an odd number, as a signed 64-bit integer, that stands for a parameter's name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
    return number | 1


def takes_words(itemsize: int, columns: int, windows: Sequence[tuple[int, int]]) -> bool:
    """Tell whether a parameter is summed in 64-bit words.

    Args:
        itemsize: the bytes of one element.
        columns: the number of elements in a row.
        windows: the first element and the number of elements, within a row, of each piece that makes up the parameter.
    """
    return all(count * itemsize % _WORD == 0 for count in (columns, *(count for window in windows for count in window)))
