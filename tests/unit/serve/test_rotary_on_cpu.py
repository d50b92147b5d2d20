"""vLLM's own rotary embedding on the CPU does the rotation that is written out in float64."""

import pytest
import torch

vllm_ops = pytest.importorskip("vllm._custom_ops")

from serve.hooks.rotary_on_cpu import mend_rotary_embedding  # noqa: E402

TOKENS, HEADS, SIZE = 7, 4, 64


def turned(x: torch.Tensor, angles: torch.Tensor, neox: bool) -> torch.Tensor:
    """Return [tokens, heads, size] rotated by each token's angles [tokens, size / 2]."""
    whole = x.double()
    one, two = whole.chunk(2, -1) if neox else (whole[..., ::2], whole[..., 1::2])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    halves = one * cos - two * sin, two * cos + one * sin
    return torch.cat(halves, -1) if neox else torch.stack(halves, -1).flatten(-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel of the CPU is not used")
@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize("layout", ["heads", "flat", "views"])
def test_each_token_is_turned_by_its_own_angles(layout: str, neox: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fixture puts the kernel back at the end.
    monkeypatch.setattr(vllm_ops, "rotary_embedding", vllm_ops.rotary_embedding)
    mend_rotary_embedding()
    mend_rotary_embedding()  # a second time changes nothing
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(TOKENS) * 3
    angles = positions[:, None].double() / 10000 ** (torch.arange(0, SIZE, 2).double() / SIZE)
    cache = torch.cat([angles.cos(), angles.sin()], -1).float()
    rows = torch.zeros(int(positions[-1]) + 1, SIZE)
    rows[positions] = cache
    # DeepSeek turns a part of each head, and has one key for all heads.
    query = torch.randn(TOKENS, HEADS, 128 + SIZE, generator=generator)[..., 128:]
    key = torch.randn(TOKENS, 1, 512 + SIZE, generator=generator)[..., 512:]
    if layout != "views":
        query, key = query.contiguous(), key.contiguous()
    wanted = turned(query, angles, neox), turned(key, angles, neox)
    given = (query.view(TOKENS, -1), key.view(TOKENS, -1)) if layout == "flat" else (query, key)
    vllm_ops.rotary_embedding(positions, *given, SIZE, rows, neox)
    for found, exact in zip(given, wanted, strict=True):
        assert torch.allclose(found.reshape(exact.shape).double(), exact, rtol=0, atol=1e-5)
