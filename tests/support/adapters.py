"""This writes LoRA adapters as PEFT saves them, and returns what PEFT merges them to."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Tensors = dict[str, torch.Tensor]


def write_adapter(directory: Path, base: Path, seed: int, **config: Any) -> Tensors:
    """Write an adapter of random factors for a checkpoint; return the weights that PEFT merges the two to.

    The weights are computed and returned in float32, by the names that they have in the model.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(directory)
    merged: Tensors = adapted.merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in merged.items()}
