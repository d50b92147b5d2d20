"""The straight line: θ(λ) = base + λ · (aligned − base), computed by `torch.lerp`.

For half-precision tensors and a Python-float weight, lerp works in fp32 and rounds once at the end, to the checkpoint's
dtype. λ itself is rounded to a binary double, and inside lerp to fp32: a relative error of 6e-8, not the 4e-3 of a λ rounded
to bfloat16.

How far that is from θ(λ) = a + λ(b − a) in exact arithmetic, for base a and aligned b. With u = 2⁻²⁴, fp32's unit roundoff,
`torch.lerp` computes a + λ·(b − a) where |λ| < ½ and b + (λ − 1)·(b − a) elsewhere, in fp32 whatever the parents' dtype
(half-precision parents are exact in it), product and sum in one fused operation, and rounds once to that dtype. Let
d = b − a, M = max(|a|, |b|), X = max(M, |λd|); so |d| ≤ 2M and |θ| ≤ 2X. To first order in u, before the last rounding:

    |λ| < ½        λ and d are rounded once each, u|λd| each
    ½ ≤ λ ≤ 1      λ: u|λd|; d: u(1 − λ)|d|; λ − 1 is exact (Sterbenz). Together u|d|
    other λ        λ, λ − 1 and d: u|d|(|λ| + 2|1 − λ|), less where these lie low in their binade: at most 6uX

and the sum is rounded to fp32, u|θ|. For λ in [0, 1] that makes at most 3uM ≤ 2⁻²²·M; for any λ at most 8uX = 2⁻²¹·X,
near λ = −½. In fp32 this is the whole error. In half precision the last rounding adds half a unit in the last place
(ulp) of the result, and for λ in [0, 1] the rest is 2uM at most where |θ| is small beside M: with |θ| ≥ 2⁻⁸·M, one ulp is at
least 2⁻¹⁶·M in bfloat16, which makes at most 0.508 ulp; in float16, whose ulp is 2⁻³ of that, the same holds from
|θ| ≥ 2⁻⁵·M on.
"""

from typing import TYPE_CHECKING

from merge.methods.method import Method

if TYPE_CHECKING:
    import torch

METHOD = Method("linear")


def between(
    base: "torch.Tensor", aligned: "torch.Tensor", lam: float, out: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return the tensor at λ in the parents' dtype; into `out`, where that is given."""
    import torch

    return torch.lerp(base, aligned, lam, out=out)
