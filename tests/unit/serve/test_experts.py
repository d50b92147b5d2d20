"""Experts whose kernel has a layout of its own are laid out again in the memory that the kernel has read all along."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from serve.switch.experts import lay_out_again

pytest.importorskip("vllm")

Replace = Callable[[torch.nn.Module, torch.Tensor], None]


def another_parameter(module: torch.nn.Module, made: torch.Tensor) -> None:
    """Replace a parameter as vLLM 0.32 does."""
    module.w2_weight = torch.nn.Parameter(made, requires_grad=False)


def other_memory(module: torch.nn.Module, made: torch.Tensor) -> None:
    """Replace a parameter as vLLM 0.33 does where strides differ."""
    module.w2_weight.data = made


def in_place(module: torch.nn.Module, made: torch.Tensor) -> None:
    """Replace a parameter as vLLM 0.33 does where nothing differs."""
    module.w2_weight.data.copy_(made)


@pytest.mark.parametrize("replace", [another_parameter, other_memory, in_place])
def test_a_layout_is_made_in_the_memory_of_the_parameter(replace: Replace) -> None:
    class Flipped:
        """Stands for the experts of a kernel that wants rows the other way round."""

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            replace(layer, layer.w2_weight.data.flip(0))

    module = torch.nn.Module()
    module.w2_weight = parameter = torch.nn.Parameter(torch.arange(6.0).view(3, 2), requires_grad=False)
    module.quant_method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=Flipped()))
    place, wanted = parameter.data_ptr(), parameter.data.flip(0)
    lay_out_again(module)
    assert module.w2_weight is parameter
    assert parameter.data_ptr() == place
    assert torch.equal(parameter.data, wanted)
