"""This has numbers at the edges of each format, and looks at an exported checkpoint."""

from fractions import Fraction
from pathlib import Path

import torch
from safetensors.torch import load_file

from merge.weight_writer import BLOCK

Tensors = dict[str, torch.Tensor]


def weights(directory: Path) -> Tensors:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mixed(seed: int) -> Tensors:
    """Return tensors of every dtype and of shapes that cut badly into blocks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "model.embed.weight": draw(700, 999),
        "model.layers.0.a": draw(3, 5, dtype=torch.float16),
        "model.layers.0.odd": draw(7, dtype=torch.float32),
        "model.layers.0.scalar": draw(),
        "model.layers.0.empty": draw(0, 4),
        "model.layers.1.flat": draw(BLOCK + 3, dtype=torch.float16),  # one row is two blocks and a bit
        "model.layers.2.cube": draw(3, 300, 501, dtype=torch.float32),
        "model.layers.10.w": draw(1, 1),
    }


UNIT = Fraction(1, 1 << 24)
# These are the digits of the significand after the point, and the exponent of the smallest normal number.
FORMATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}
EDGES = [
    0.0,
    -0.0,
    2.0**-126,
    -(2.0**-126),
    2.0**-133,
    2.0**-149,
    2.0**-24,
    1.0,
    -1.0,
    1.0 + 2.0**-7,
    65504.0 / 16,
    3e4,
]


def ulp(value: Fraction, dtype: torch.dtype) -> Fraction:
    """Return the distance of neighbouring numbers of a dtype around a value."""
    digits, smallest = FORMATS[dtype]
    exponent = smallest
    while value and Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    return Fraction(2) ** (exponent - digits)
