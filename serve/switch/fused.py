"""This module does a switch in one pass over a GPU's memory: it reads both parents, writes θ(λ), and takes its digest.

Done one after the other, the interpolation and the digest read and write θ(λ) three times where once is enough, in a dozen
kernels a block. The arithmetic is that of `merge.interpolate`: `torch.lerp` on CUDA is a fused multiply-add from the nearer
parent, in fp32, rounded once; the tests hold the two against each other bit by bit. The digest is that of `merge.digest`,
whose sums may be made in any order.
"""

import importlib.util
from typing import Any

import numpy as np
import torch

from merge.digest import WeightDigest

_COLUMNS = 4096  # elements of a row that one program takes at a time
_ROWS = 4  # a program takes so many runs of a row one after another, which makes fewer additions to the digest

_kernel: Any = None


def is_available() -> bool:
    """Tell whether Triton is installed; it comes with PyTorch for CUDA."""
    return importlib.util.find_spec("triton") is not None


def write(
    base: torch.Tensor,
    aligned: torch.Tensor,
    lam: str,
    out: torch.Tensor,
    digest: WeightDigest,
    key: int,
    first_row: int,
    words: bool,
) -> None:
    """Write θ(λ) into `out` and add it to `digest`.

    Args:
        base, aligned: contiguous, of one shape, dtype (float16, bfloat16, float32) and device; whole rows.
        lam: canonical λ of this tensor, after its weight; at "0" and "1" the parent is copied.
        out: a tensor like the parents; it may not overlap with one.
        key: the parameter's key in the digest.
        first_row: the row of the parameter that `out` begins with.
        words: whether the digest takes the parameter in words of 8 bytes, see `merge.digest.takes_words`.

    Raises:
        Exception: Triton cannot compile for this device.
    """
    columns = out.shape[-1] if out.dim() else 1
    rows = out.numel() // max(columns, 1)
    if not rows or not columns:
        return
    mode = "base" if lam == "0" else "aligned" if lam == "1" else "near" if abs(float(lam)) < 0.5 else "far"
    # As PyTorch does, λ is rounded to fp32 first and then taken from 1 in fp32.
    weight = np.float32(float(lam))
    factor = float(weight if mode == "near" else np.float32(1) - weight)
    grid = (-(-rows // _ROWS), -(-columns // _COLUMNS))
    _compiled()[grid](
        base, aligned, out, digest.partial_sums, factor, rows, columns, key, first_row,
        MODE=mode, ITEM=out.element_size(), WORDS=words,
        COLUMNS=_COLUMNS, ROWS=_ROWS, PARTS=digest.partial_sums.numel(),
    )  # fmt: skip


def _compiled() -> Any:
    """Return the kernel. Triton is imported here: on the CPU nothing needs it."""
    global _kernel
    if _kernel is not None:
        return _kernel
    import triton
    import triton.language as tl

    # `key`, `first_row` and `rows` differ from parameter to parameter, and are no reason to compile the kernel again.
    @triton.jit(do_not_specialize=["factor", "rows", "key", "first_row"])  # type: ignore[untyped-decorator]
    def kernel(  # type: ignore[no-untyped-def]
        base, aligned, out, sums, factor, rows, columns, key, first_row,
        MODE: tl.constexpr, ITEM: tl.constexpr, WORDS: tl.constexpr,
        COLUMNS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    ):  # fmt: skip
        block = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < columns
        # Each element of 2 or 4 bytes stands in a word of 8, little-endian.
        shift = ((column % (8 // ITEM)) * (8 * ITEM)).to(tl.int64)
        end = rows.to(tl.int64) * columns
        total = tl.zeros((), dtype=tl.int64)
        for turn in tl.static_range(ROWS):
            row = block * ROWS + turn
            place = row * columns + column
            kept = inside & (place < end)
            if MODE == "base":
                made = tl.load(base + place, mask=kept, other=0.0)
            elif MODE == "aligned":
                made = tl.load(aligned + place, mask=kept, other=0.0)
            else:
                one = tl.load(base + place, mask=kept, other=0.0).to(tl.float32)
                two = tl.load(aligned + place, mask=kept, other=0.0).to(tl.float32)
                if MODE == "near":  # noqa: SIM108 Triton compiles one of the two
                    exact = tl.fma(two - one, factor, one)
                else:
                    exact = tl.fma(one - two, factor, two)
                made = exact.to(out.dtype.element_ty)
            tl.store(out + place, made, mask=kept)
            if WORDS and ITEM == 2:
                bits = made.to(tl.uint16, bitcast=True).to(tl.int64) << shift
            elif WORDS:
                bits = made.to(tl.uint32, bitcast=True).to(tl.int64) << shift
            elif ITEM == 2:
                bits = made.to(tl.int16, bitcast=True).to(tl.int64)
            else:
                bits = made.to(tl.int32, bitcast=True).to(tl.int64)
            words = tl.sum(tl.where(kept, bits, 0))
            total += words * (2 * (first_row + row) + 1)
        part = (block * tl.num_programs(1) + tl.program_id(1)) % PARTS
        tl.atomic_add(sums + part, total * key, sem="relaxed")

    _kernel = kernel
    return kernel
