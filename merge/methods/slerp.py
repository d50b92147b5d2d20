"""Spherical interpolation follows the arc between two tensors; two factors are the same for all of their elements.

    θ(λ) = sin((1 − λ)·Ω)/sin Ω · base + sin(λ·Ω)/sin Ω · aligned,   Ω the angle between the flattened tensors

(K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985), with the conventions of mergekit's `slerp` method
(mergekit/merge_methods/slerp.py): where |cos Ω| > 0.9995 the tensors are as good as parallel and the line between them is
straight; a tensor of norm 1e-8 or less is not normalised, hence orthogonal to anything.

Both factors are computed in float64 and rounded to fp32. The products p and q, and their sum, are computed in fp32 and
rounded each. With u = 2⁻²⁴ that makes at most 2u(|p| + |q|) + u|θ|, to first order. In half precision the last rounding adds
half a unit in the last place of the result.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.method import Method
from merge.vocabulary import RowRanges, runs

if TYPE_CHECKING:
    import torch

PARALLEL = 0.9995
_LEAST_NORM = 1e-8
_CHUNK = 1 << 17  # elements at a time: as float64, those of both parents stay in the second-level cache


def angle_between(base: "torch.Tensor", aligned: "torch.Tensor", left_out: RowRanges = ()) -> float | None:
    """Return the angle between two tensors in radians, computed in float64, or None where the straight line is to be taken.

    The result has the same bits whatever the number of threads.

    Args:
        base: a tensor of any shape.
        aligned: a tensor of the same shape; only its number of rows may differ.
        left_out: rows of `aligned` that do not count, among them all that `base` lacks.
    """
    import numpy as np  # whoever only lists the methods need not wait for it

    sums: list[list[float]] = [[], [], []]
    for start, stop, is_left_out in runs(0, len(aligned), left_out) if aligned.dim() else [(0, 1, False)]:
        if is_left_out:
            continue
        one, two = (
            tensor.reshape(1) if not tensor.dim() else tensor[start:stop].reshape(-1) for tensor in (base, aligned)
        )
        for x, y in zip(_parts(one), _parts(two), strict=True):
            a, b = x.double().numpy(), y.double().numpy()
            for found, product in zip(sums, (a * b, a * a, b * b), strict=True):
                found.append(float(np.add.reduce(product)))  # the order of a BLAS dot would depend on its threads
    dot, *squares = map(math.fsum, sums)
    for square in squares:
        norm = math.sqrt(square)
        dot /= norm if norm > _LEAST_NORM else 1.0
    return None if abs(dot) > PARALLEL else math.acos(dot)


def _parts(tensor: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
    return tensor.split(_CHUNK)  # type: ignore[no-untyped-call,no-any-return]


def coefficients(lam: float, angle: float) -> tuple[float, float]:
    """Return the factors of base and of aligned at λ; the angle is in radians."""
    return math.sin((1 - lam) * angle) / math.sin(angle), math.sin(lam * angle) / math.sin(angle)


@dataclass(frozen=True, slots=True)
class Arc:
    """The path of one tensor along its arc."""

    angle: float  # the angle between the parents in radians

    def between(self, base: "torch.Tensor", aligned: "torch.Tensor", lam: float) -> "torch.Tensor":
        """Return the tensor at λ in fp32."""
        one, two = coefficients(lam, self.angle)
        # The products are rounded before their sum: a fused multiply-add rounds otherwise, and only some elements get one.
        return (base.float() * one).add_(aligned.float() * two)


def path(base: "torch.Tensor", aligned: "torch.Tensor", left_out: RowRanges = ()) -> Arc | None:
    """Return the path of a tensor, or None where it goes straight; the arguments are those of `angle_between`."""
    angle = angle_between(base, aligned, left_out)
    return None if angle is None else Arc(angle)


METHOD = Method("slerp", path, one_only="an arc is between two")
