"""Spherical interpolation multiplies two tensors by two factors that are the same for all of their elements.

    θ(λ) = sin((1 − λ)·Ω)/sin Ω · base + sin(λ·Ω)/sin Ω · aligned,   Ω the angle between the flattened tensors

(K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985), with the conventions of mergekit's `slerp` method
(mergekit/merge_methods/slerp.py): where |cos Ω| > 0.9995 the tensors are as good as parallel and the line between them is
straight; a tensor of norm 1e-8 or less is not normalised, hence orthogonal to anything.
"""

import math

import numpy as np
import torch

from merge.vocabulary import Spans, runs

PARALLEL = 0.9995
_LEAST_NORM = 1e-8
_CHUNK = 1 << 17  # elements at a time: as float64, those of both parents stay in the second-level cache


def angle_between(base: torch.Tensor, aligned: torch.Tensor, left_out: Spans = ()) -> float | None:
    """Return the angle between two tensors in radians, computed in float64, or None where the straight line is to be taken.

    The result has the same bits whatever the number of threads.

    Args:
        base: a tensor of any shape.
        aligned: a tensor of the same shape; only its number of rows may differ.
        left_out: rows of `aligned` that do not count, among them all that `base` lacks.
    """
    sums: list[list[float]] = [[], [], []]
    for start, stop, is_left_out in runs(0, len(aligned), left_out) if aligned.dim() else [(0, 1, False)]:
        if is_left_out:
            continue
        one, two = (
            tensor.reshape(1) if not tensor.dim() else tensor[start:stop].reshape(-1) for tensor in (base, aligned)
        )
        for x, y in zip(torch.split(one, _CHUNK), torch.split(two, _CHUNK), strict=True):
            a, b = x.double().numpy(), y.double().numpy()
            for found, product in zip(sums, (a * b, a * a, b * b), strict=True):
                found.append(float(np.add.reduce(product)))  # the order of a BLAS dot would depend on its threads
    dot, *squares = map(math.fsum, sums)
    for square in squares:
        norm = math.sqrt(square)
        dot /= norm if norm > _LEAST_NORM else 1.0
    return None if abs(dot) > PARALLEL else math.acos(dot)


def coefficients(lam: float, angle: float) -> tuple[float, float]:
    """Return the factors of base and of aligned at λ; the angle is in radians."""
    return math.sin((1 - lam) * angle) / math.sin(angle), math.sin(lam * angle) / math.sin(angle)
