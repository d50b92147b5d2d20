"""This module handles mixtures of experts whose weights a kernel keeps in a layout of its own.

vLLM (0.32, 0.33) makes that layout after the first load only: later it finds the kernel there and leaves the weights as
the loader writes them. The layout often has the loader's shape, strides and dtype, so that nothing but the kernel's class
tells the two apart.
"""

from typing import Any

import torch


def kernel_of(module: torch.nn.Module) -> Any:
    """Return what makes a kernel's layout of a module's expert weights, or None where the kernel takes them as loaded."""
    experts = getattr(getattr(getattr(module, "quant_method", None), "moe_kernel", None), "fused_experts", None)
    if experts is None:
        return None
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEExperts

    makes = type(experts).process_weights_after_loading is not FusedMoEExperts.process_weights_after_loading
    return experts if makes else None


def lay_out_again(module: torch.nn.Module) -> None:
    """Put weights that a reload left in the loader's layout into the kernel's, in the memory that the kernel reads."""
    before = {name: (parameter, parameter.data) for name, parameter in module.named_parameters(recurse=False)}
    kernel_of(module).process_weights_after_loading(module)
    for name, (parameter, memory) in before.items():
        made = getattr(module, name)
        # vLLM 0.32 puts another parameter in this one's place, and 0.33 gives it other memory.
        if made.data_ptr() != memory.data_ptr():
            memory.copy_(made)
            parameter.data = memory
            delattr(module, name)
            module.register_parameter(name, parameter)
