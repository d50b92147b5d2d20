"""The straight line is θ(λ) = base + λ · (aligned − base), computed by `torch.lerp`.

For tensors in half precision and a Python-float weight, lerp works in fp32 and rounds once at the end, to the checkpoint's
dtype. λ itself is rounded to a binary double, and inside lerp to fp32, which is a relative error of 6e-8; a λ rounded to
bfloat16 would have one of 4e-3.

With base a and aligned b, the result differs from the exact θ(λ) = a + λ(b − a) by a bounded error. Let u = 2⁻²⁴ be
fp32's unit roundoff. `torch.lerp` computes a + λ·(b − a) where |λ| < ½ and b + (λ − 1)·(b − a) elsewhere. It works in fp32
whatever the parents' dtype (half-precision parents are exact in fp32), does product and sum in one fused operation, and
rounds once to the parents' dtype. Let d = b − a, M = max(|a|, |b|) and X = max(M, |λd|); so |d| ≤ 2M and |θ| ≤ 2X. To first
order in u, the errors before the last rounding are:

    |λ| < ½        u|λd| from rounding λ, and as much from rounding d
    ½ ≤ λ ≤ 1      u|λd| from λ and u(1 − λ)|d| from d, while λ − 1 is exact (Sterbenz): together u|d|
    other λ        u|d|(|λ| + 2|1 − λ|) from λ, λ − 1 and d, less where these lie low in their binade: at most 6uX

Rounding the sum to fp32 adds u|θ|. For λ in [0, 1] all of this is at most 3uM ≤ 2⁻²²·M; for any λ it is at most
8uX = 2⁻²¹·X, near λ = −½. In fp32 this is the whole error. In half precision the last rounding adds half a unit in the last
place (ulp) of the result. For λ in [0, 1] and |θ| small beside M the other errors are 2uM at most: if |θ| ≥ 2⁻⁸·M, one ulp
is at least 2⁻¹⁶·M in bfloat16, so that the whole error is at most 0.508 ulp; in float16, whose ulp is 2⁻³ of that, the same
holds if |θ| ≥ 2⁻⁵·M.
"""

from typing import TYPE_CHECKING

from merge.methods.method import Method

if TYPE_CHECKING:
    import torch

METHOD = Method("linear")


def between(
    base: "torch.Tensor", aligned: "torch.Tensor", lam: float, out: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return the tensor at λ in the parents' dtype; it is written to `out`, if that is given."""
    import torch

    return torch.lerp(base, aligned, lam, out=out)
