"""This module knows which architectures vLLM 0.32 does not run on a CPU, or scores otherwise than transformers. It needs no
vLLM.

A plan refuses the former, and no engine is started; of the latter it warns.
"""

from collections.abc import Mapping
from typing import Any

# These architectures have something that vLLM has no kernel for on a CPU.
_WITHOUT_KERNEL = {
    "DeepseekV32ForCausalLM": "sparse attention",
    "FalconMambaForCausalLM": "the selective scan of Mamba-1",
    "GlmMoeDsaForCausalLM": "sparse attention",
    "HYV4ForCausalLM": "sparse attention",
    "JambaForCausalLM": "the selective scan of Mamba-1",
    "KimiLinearForCausalLM": "linear attention",
    "MambaForCausalLM": "the selective scan of Mamba-1",
}
# The CPU kernels of these architectures take bfloat16 only.
_BFLOAT16_ONLY = {"Qwen3NextForCausalLM": "gated delta networks"}
# The groups of experts that a token may go to, with what they are where a config leaves them out. vLLM ends on null.
_GROUPS: dict[str, dict[str, int | None]] = {
    "DeepseekV2ForCausalLM": {"n_group": None, "topk_group": None},
    "DeepseekV3ForCausalLM": {"n_group": 8, "topk_group": 4},
}
# How far, in nats, a fresh vLLM was from transformers with a small random model on a CPU, for reasons that are not known.
_FAR_FROM_TRANSFORMERS = {
    "Ernie4_5_MoeForCausalLM": 0.92,
    "Gemma3nForCausalLM": 1.1,
    "PhiMoEForCausalLM": 0.32,
}


def default_dtype(device: str, architecture: str, stored: str) -> str:
    """Return what an engine computes in where nobody says.

    Args:
        device: cpu or cuda.
        architecture: as the config of the language model names it.
        stored: what a GPU computes in.
    """
    if device != "cpu":
        return stored
    return "bfloat16" if architecture in _BFLOAT16_ONLY else "float32"


def refuse_model(device: str, architecture: str, dtype: str) -> str | None:
    """Return why vLLM cannot run a model, or None as far as it is known to."""
    if device != "cpu":
        return None
    if lacking := _WITHOUT_KERNEL.get(architecture):
        return f"vLLM has no kernel for {lacking} on a CPU, which {architecture} needs: use a machine with a GPU"
    only = _BFLOAT16_ONLY.get(architecture)
    if only and dtype != "bfloat16":
        return f"--dtype {dtype}: on a CPU vLLM computes the {only} of {architecture} in bfloat16 only: leave it out"
    return None


def refuse_groups(architecture: str, config: Mapping[str, Any]) -> str | None:
    """Return why vLLM cannot deal tokens to the experts of a config, or None.

    Args:
        architecture: as the config names it.
        config: the config of the language model. What it leaves out has the value that its class in transformers has.
    """
    if architecture not in _GROUPS or (
        architecture == "DeepseekV2ForCausalLM" and not config.get("n_routed_experts", 64)
    ):
        return None
    null = [name for name, value in _GROUPS[architecture].items() if config.get(name, value) is None]
    if not null:
        return None
    return (
        f"{' and '.join(null)} of the parents' config.json: null, or left out where that means null, and vLLM wants numbers "
        f"for {architecture}: where the experts are in no groups, write 1 for n_group and topk_group, which means the same"
    )


def warn_of_model(device: str, architecture: str) -> str | None:
    """Return what is to be known of a model's numbers, or None."""
    far = _FAR_FROM_TRANSFORMERS.get(architecture)
    if device != "cpu" or far is None:
        return None
    return (
        f"on a CPU a fresh vLLM itself scores small random models of {architecture} up to {far} nats away from "
        "transformers: hold a parent against it before you rely on the numbers"
    )
