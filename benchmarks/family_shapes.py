"""This has a small shape of each family of benchmarks/families.py, and writes a pair of random checkpoints of a shape."""

import shutil
from pathlib import Path
from typing import Any

from peers import ROOT

_DENSE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
} | {
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = _ROUTED_EXPERTS | {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 32}
# By the name of transformers' classes, without Config and ForCausalLM, this says what differs from the dense shape.
FAMILIES: dict[str, dict[str, Any]] = {
    # These families are plain and dense.
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 32},
    "Gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Gemma3Text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Phi3": {},
    "Mistral": {"head_dim": 32},
    "Olmo2": {},
    "Granite": {},
    "Cohere": {},
    "Cohere2": {"head_dim": 32, "sliding_window": 48},
    "GPTNeoX": {},
    "Apertus": {},
    "Gemma3nText": {
        "head_dim": 32,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 512,
    }
    | {
        "hidden_size_per_layer_input": 32,
        "altup_num_inputs": 2,
        "laurel_rank": 16,
        "activation_sparsity_pattern": [0.0] * 4,
    }
    | {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [256] * 4,
        "sliding_window": 48,
    },
    # The loaders of these families do more than copy.
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Phi": {},
    # These families have experts.
    "Mixtral": _LOCAL_EXPERTS,
    "Qwen2Moe": _EXPERTS | {"shared_expert_intermediate_size": 64},
    "Qwen3Moe": _EXPERTS | {"head_dim": 32},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoe": _LOCAL_EXPERTS,
    "Glm4Moe": _ROUTED_EXPERTS | {"head_dim": 32},
    "Lfm2Moe": _EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Llama4Text": {"num_local_experts": 4, "num_experts_per_tok": 1}
    | {"intermediate_size_mlp": 256, "head_dim": 32, "interleave_moe_layer_step": 1},
    "GptOss": _LOCAL_EXPERTS | {"head_dim": 32, "sliding_window": 48},
    # vLLM reads the second half of it, which transformers 5 writes under other names.
    "MiMoV2Flash": _ROUTED_EXPERTS
    | {"head_dim": 32, "v_head_dim": 32, "sliding_window": 48}
    | {"hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1], "layernorm_epsilon": 1e-5, "sliding_window_size": 48}
    | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 32, "swa_v_head_dim": 32}
    | {"rope_theta": 5e6, "swa_rope_theta": 1e4, "partial_rotary_factor": 0.334, "add_swa_attention_sink_bias": True},
    # These families have multi-head latent attention, with experts. Kimi-K2 has the architecture of DeepSeek-V3.
    "DeepseekV2": _LATENT | {"topk_method": "greedy"},
    "DeepseekV3": _LATENT | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "Glm4MoeLite": _LATENT | {"q_lora_rank": 64},
    "DeepseekV4": _ROUTED_EXPERTS | {"head_dim": 128, "num_key_value_heads": 1},
    "HYV4": _ROUTED_EXPERTS
    | {"num_key_value_heads": 4, "head_dim": 64, "q_lora_rank": 64, "kv_lora_rank": 512}
    | {"qk_nope_head_dim": 128, "v_head_dim": 128},
    # These families have state spaces, alone or beside attention.
    "Mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 32},
    "FalconH1": _MAMBA | {"head_dim": 32, "mamba_d_ssm": 256},
    "GraniteMoeHybrid": _MAMBA
    | _LOCAL_EXPERTS
    | {"shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
    "NemotronH": {"head_dim": 32, "mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1}
    | {"chunk_size": 32, "hybrid_override_pattern": "M-*-", "num_hidden_layers": 4},
    "Zamba2": _MAMBA
    | {"mamba_headdim": 32, "n_mamba_heads": 8, "num_mem_blocks": 1, "num_hidden_layers": 3}
    | {"mamba_ngroups": 1, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "KimiLinear": _LATENT
    | {"num_experts": 4, "num_experts_per_token": 2, "linear_head_dim": 32, "linear_num_heads": 4}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "Qwen3Next": _EXPERTS
    | {"head_dim": 32, "shared_expert_intermediate_size": 64}
    | {"layer_types": ["linear_attention", "full_attention"]},
}
# One family of each kind.
KINDS = ("Qwen3Moe", "GptOss", "DeepseekV3", "Falcon", "FalconH1")


def make_pair(family: str, out: Path) -> None:
    """Write `out`/base with random weights and `out`/aligned with half as much added, in bfloat16."""
    import torch
    import transformers

    shape = _DENSE | FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**shape)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    one, two = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    parents: dict[str, dict[str, Any]] = {"base": {}, "aligned": {}}
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    for name, weight in [*model.named_parameters(), *buffers]:
        # A norm's weights are near 1 and the others' near 0, as in a model that has learnt something.
        start = 0.12 * torch.randn(weight.shape, generator=one) + float("norm" in name and "bias" not in name)
        parents["base"][name] = start
        parents["aligned"][name] = start + 0.06 * torch.randn(weight.shape, generator=two)
    for role, weights in parents.items():
        model.load_state_dict(weights, strict=False)
        model.to(torch.bfloat16).save_pretrained(out / role)
        model.to(torch.float32)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "lambdasweep/demo/base" / file, out / role)
