"""This has a small shape of each family of benchmarks/families.py, and writes a pair of random checkpoints of a shape."""

import json
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
_MULTI_HEAD = {"num_key_value_heads": 4}  # as many as heads: their configs have no such key
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
    "Gemma": {"head_dim": 32},
    "Gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Gemma3Text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Gemma4Text": {"head_dim": 32, "global_head_dim": 64, "sliding_window": 48, "hidden_size_per_layer_input": 0}
    | {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi3": {},
    "Mistral": {"head_dim": 32},
    "Olmo": {"clip_qkv": None},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"]},
    "Glm": {"head_dim": 32},
    "Glm4": {"head_dim": 32},
    "GPT2": _MULTI_HEAD | {"intermediate_size": None},
    "OPT": _MULTI_HEAD | {"word_embed_proj_dim": 128, "ffn_dim": 256},
    "Bloom": _MULTI_HEAD,
    "StableLm": {},
    "Starcoder2": {},
    "SmolLM3": {},
    "Exaone4": {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"]},
    "SeedOss": {"head_dim": 32},
    "Nemotron": {},
    "Granite": {},
    "Cohere": {},
    "Cohere2": {"head_dim": 32, "sliding_window": 48},
    "GPTNeoX": _MULTI_HEAD,
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
    "Phimoe": _LOCAL_EXPERTS | {"attention_bias": True, "lm_head_bias": True},
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_layer_start_index": 1},
    "Dots1": _ROUTED_EXPERTS | {"layer_types": ["full_attention"] * 2},
    "Llama4Text": {"num_local_experts": 4, "num_experts_per_tok": 1}
    | {"intermediate_size_mlp": 256, "head_dim": 32, "interleave_moe_layer_step": 1}
    # Prompts are longer than a chunk, and than the positions after which queries grow in layers without rotary embedding.
    | {"no_rope_layers": [1, 0], "attention_chunk_size": 32, "floor_scale": 8},
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
    "DeepseekV32": _LATENT | {"topk_method": "noaux_tc", "q_lora_rank": 64, "index_n_heads": 4, "index_head_dim": 128},
    "DeepseekV4": _ROUTED_EXPERTS | {"head_dim": 128, "num_key_value_heads": 1, "mlp_layer_types": ["moe", "moe"]},
    "HYV4": _ROUTED_EXPERTS
    | {"num_key_value_heads": 4, "head_dim": 64, "q_lora_rank": 64, "kv_lora_rank": 512}
    | {"qk_nope_head_dim": 128, "v_head_dim": 128},
    # These families have state spaces, alone or beside attention.
    "Mamba": {"state_size": 16, "time_step_rank": 8},
    "FalconMamba": {"state_size": 16, "time_step_rank": 8},
    "Mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 32},
    "Jamba": _LOCAL_EXPERTS
    | {"num_experts": 4, "mamba_d_state": 16, "mamba_dt_rank": 8, "attn_layer_period": 2, "attn_layer_offset": 1}
    | {"expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    | {"conv_dim": 128, "conv_dim_out": 128, "conv_bias": False, "block_dim": 128, "block_ff_dim": 256}
    | {"block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0, "block_norm_eps": 1e-5, "block_use_swiglu": True},
    "FalconH1": _MAMBA | {"head_dim": 32, "mamba_d_ssm": 256},
    "GraniteMoeHybrid": _MAMBA
    | _LOCAL_EXPERTS
    | {"shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
    "NemotronH": {"head_dim": 32, "mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1}
    | {"chunk_size": 32, "hybrid_override_pattern": "M-*-", "num_hidden_layers": 4},
    "Zamba2": _MAMBA
    | {"mamba_headdim": 32, "n_mamba_heads": 8, "num_mem_blocks": 1, "num_hidden_layers": 3, "num_key_value_heads": 4}
    | {"mamba_ngroups": 1, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "KimiLinear": _LATENT
    | {"num_experts": 4, "num_experts_per_token": 2, "linear_head_dim": 32, "linear_num_heads": 4}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "Qwen3Next": _EXPERTS
    | {"head_dim": 32, "shared_expert_intermediate_size": 64}
    | {"layer_types": ["linear_attention", "full_attention"]},
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
} | {
    "image_size": 28,
    "patch_size": 14,
}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
_PATCHES: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
# Wrappers for several modalities: name of the class without Config and ForConditionalGeneration, and behind a plus which of
# its language models; then its config. Their language model has the dense shape where nothing else is said.
WRAPPERS: dict[str, dict[str, Any]] = {
    "Gemma3": {
        "text_config": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48},
        "vision_config": _VISION | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "Gemma4": {
        "text_config": FAMILIES["Gemma4Text"],
        "vision_config": _VISION | {"head_dim": 16, "num_key_value_heads": 2, "position_embedding_size": 64},
    },
    "Mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
        "vision_config": _VISION | {"model_type": "pixtral"},
    },
    "Mistral3+Ministral3": {
        "text_config": {
            "model_type": "ministral3",
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 32,  # prompts are longer: queries grow with their position
                "max_position_embeddings": 512,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        "vision_config": _VISION | {"model_type": "pixtral"},
    },
    "Qwen2VL": {
        "text_config": _SECTIONS,
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
    },
    "Qwen2_5_VL": {
        "text_config": _SECTIONS,
        "vision_config": _PATCHES | {"out_hidden_size": 128, "fullatt_block_indexes": [0]},
    },
    "Qwen3VL": {
        "text_config": _SECTIONS | {"head_dim": 32},
        "vision_config": _PATCHES
        | {"out_hidden_size": 128, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "Llama4": {
        "text_config": FAMILIES["Llama4Text"],
        "vision_config": _VISION | {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
    },
}
# What the configs of published checkpoints say otherwise than transformers 5 writes it; None: they have no such key.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Phimoe": {"architectures": ["PhiMoEForCausalLM"]},
    "DeepseekV4": {"mlp_layer_types": None, "num_hash_layers": 0, "compress_ratios": [128, 128]},
}
# Why vLLM does not run what transformers writes of these.
NOT_RUN = {
    "DeepseekV4": "vLLM knows the names of published checkpoints only, whose weights are quantised, which `plan` refuses",
}
# Why a fresh vLLM itself is not within 1e-4 nats of transformers.
DIFFERING = {
    "Apertus": "it has the two numbers of the activation function in bfloat16",
    "Cohere2": "its sliding window is one token wider, as the models were trained",
    "Qwen3Next": "it computes in bfloat16, and transformers in float32",
}
# One family of each kind.
KINDS = ("Qwen3Moe", "GptOss", "DeepseekV3", "Falcon", "FalconH1", "Phi", "Llama4", "Mistral3+Ministral3", "Qwen3VL")


def make_pair(family: str, out: Path) -> None:
    """Write `out`/base with random weights and `out`/aligned with half as much added, in bfloat16."""
    import torch

    model = _model(family)
    one, two = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    parents: dict[str, dict[str, Any]] = {"base": {}, "aligned": {}}
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    for name, weight in [*model.named_parameters(), *buffers]:
        # A norm's weights are near 1 and the others' near 0, as in a model that has learnt something.
        start = 0.12 * torch.randn(weight.shape, generator=one) + float(
            any(part in name for part in ("norm", "ln_")) and "bias" not in name
        )
        parents["base"][name] = start
        parents["aligned"][name] = start + 0.06 * torch.randn(weight.shape, generator=two)
    for role, weights in parents.items():
        model.load_state_dict(weights, strict=False)
        model.to(torch.bfloat16).save_pretrained(out / role)
        model.to(torch.float32)
        config = out / role / "config.json"
        said = PUBLISHED.get(family, {})
        written = {key: value for key, value in json.loads(config.read_text()).items() if key not in said}
        written |= {key: value for key, value in said.items() if value is not None}
        config.write_text(json.dumps(written, indent=2))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "lambdasweep/demo/base" / file, out / role)


def _model(family: str) -> Any:
    import transformers

    kind = family.partition("+")[0]
    config_class = getattr(transformers, f"{kind}Config")
    if family in WRAPPERS:
        config = config_class(**WRAPPERS[family] | {"text_config": _DENSE | WRAPPERS[family]["text_config"]})
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    config = config_class(**_DENSE | FAMILIES[family])
    head = "LMHeadModel" if hasattr(transformers, f"{kind}LMHeadModel") else "ForCausalLM"
    return getattr(transformers, f"{kind.removesuffix('Text')}{head}")(config)
