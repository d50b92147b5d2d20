"""What vLLM 0.32 does not run on a CPU, by architecture: a plan refuses it, and no engine is started. Knows no vLLM."""

# What a model has for which there is no kernel.
_WITHOUT_KERNEL = {
    "DeepseekV32ForCausalLM": "sparse attention",
    "FalconMambaForCausalLM": "the selective scan of Mamba-1",
    "GlmMoeDsaForCausalLM": "sparse attention",
    "HYV4ForCausalLM": "sparse attention",
    "JambaForCausalLM": "the selective scan of Mamba-1",
    "KimiLinearForCausalLM": "linear attention",
    "MambaForCausalLM": "the selective scan of Mamba-1",
}
# Whose kernels take bfloat16 only.
_BFLOAT16_ONLY = {"Qwen3NextForCausalLM": "gated delta networks"}


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
