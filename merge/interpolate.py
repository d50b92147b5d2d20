"""The one formula: θ(λ) = base + λ · (aligned − base).

`torch.lerp(base, aligned, λ)` per tensor, computed in fp32 and rounded once to the checkpoint's dtype: for half-precision
tensors and a Python-float weight, lerp works in fp32 and rounds at the end. λ itself is rounded to a binary double, and
inside lerp to fp32: a relative error of 6e-8, not the 4e-3 of a λ rounded to bfloat16. Always from the two parents, never
from the previous λ. Live switching and export use this same function, so that both give the same bits on one kind of device.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from merge.pair import Pair


def interpolate(base: torch.Tensor, aligned: torch.Tensor, lam: str) -> torch.Tensor:
    """Return one tensor of θ(λ), in the parents' dtype and shape.

    At λ = 0 and λ = 1 the parent itself is returned, uncopied: lerp would turn −0.0 into +0.0.

    Args:
        base: any shape, float16, bfloat16 or float32.
        aligned: same shape, dtype and device.
        lam: canonical λ.
    """
    if lam == "0":
        return base
    if lam == "1":
        return aligned
    return torch.lerp(base, aligned, float(lam))


def interpolated_tensors(pair: Pair, lam: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of θ(λ) in natural order of the names, one tensor in memory at a time.

    The parents are memory-mapped: ranks and replicas on one node share them through the page cache.
    """
    with ExitStack() as stack:
        files: dict[Path, object] = {}

        def read(name: str, path: Path) -> torch.Tensor:
            if path not in files:
                files[path] = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            tensor: torch.Tensor = files[path].get_tensor(name)  # type: ignore[attr-defined]
            return tensor

        for name, info in pair.base.tensors.items():
            yield name, interpolate(read(name, info.file), read(name, pair.aligned.tensors[name].file), lam)
