"""Sizes are read where vLLM reads them; the last test holds all of them against vLLM's own reading."""

import json
from pathlib import Path
from typing import Any

import pytest

from merge.checkpoint import Checkpoint
from merge.model_sizes import model_sizes

_GEMMA = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}
_ROPE = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "names of GPT-2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": 1024,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 128,
    },
    "a wrapper that leaves defaults out": {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": _GEMMA | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        "vision_config": {"model_type": "siglip_vision_model"},
    },
    "a wrapper that says all": {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {"model_type": "mistral", "num_hidden_layers": 40, "num_attention_heads": 32, "head_dim": 128}
        | {"hidden_size": 5120, "num_key_value_heads": 8, "max_position_embeddings": 131072},
        "vision_config": {"model_type": "pixtral"},
    },
    "a wrapper without a text config": {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "vision_config": {"depth": 1},
    },
    "a window before scaling": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "a window after scaling": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 8192,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    },
    "one head of keys and values": {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "multi_query": True,
        "new_decoder_architecture": False,
    },
    "groups of heads, whatever multi_query says": {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 8192,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "num_hidden_layers": 60,
        "multi_query": True,
        "new_decoder_architecture": True,
    },
    "two kinds of factors": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": _ROPE,
        "pad_token_id": 0,
    },
}
WINDOWS = [1024, 131072, 131072, 128000, 8192, 8192, 2048, 2048, 131072]


def read(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint("model", Path("model"), None, config, {})


@pytest.mark.parametrize(("name", "window"), list(zip(CONFIGS, WINDOWS, strict=True)), ids=list(CONFIGS))
def test_the_window_is_found(name: str, window: int) -> None:
    assert model_sizes(read(CONFIGS[name])).window == window


def test_the_short_window_is_that_of_the_short_factors() -> None:
    found = {name: model_sizes(read(config)).short_window for name, config in CONFIGS.items()}
    assert found == dict.fromkeys(CONFIGS) | {"two kinds of factors": 4096}


def test_a_config_that_transformers_does_not_know_is_read_as_it_is_written() -> None:
    config = {"model_type": "nonesuch", "max_seq_len": 2048, "num_hidden_layers": 3, "num_attention_heads": 4}
    found = model_sizes(read(config | {"hidden_size": 64, "num_kv_heads": 2}))
    assert (found.window, found.layers, found.kv_values_per_token) == (2048, 3, 2 * 3 * 2 * 16)


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({"num_experts": 8, "num_experts_per_token": 2}, 0.25),
        ({"num_experts": 8, "top_k_experts": 2}, 0.25),
        ({"n_routed_experts": 8, "moe_topk": 2}, 0.25),
        ({"moe_num_experts": 8, "moe_top_k": 2}, 0.25),
        ({"num_experts": 8, "moe_topk": [2, 4]}, 1.0),  # another number for each layer
        ({"num_experts": 8}, 1.0),
    ],
)
def test_the_share_of_experts_is_read_under_all_its_names(config: dict[str, Any], share: float) -> None:
    assert model_sizes(read({"model_type": "nonesuch", **config})).expert_share == share


@pytest.mark.parametrize(
    ("config", "is_hybrid", "is_plain"),
    [
        ({}, False, True),
        ({"kv_lora_rank": 512}, False, False),
        ({"mamba_d_state": 16}, True, False),
        ({"layer_types": ["linear_attention", "full_attention"]}, True, False),
        ({"layer_types": ["chunked_attention", "full_attention"]}, False, False),
        ({"layer_types": ["sliding_attention", "full_attention"]}, False, True),
    ],
)
def test_what_layers_keep_is_told_by_the_config(config: dict[str, Any], is_hybrid: bool, is_plain: bool) -> None:
    sizes = {"model_type": "nonesuch", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    found = model_sizes(read(sizes | config))
    assert (found.is_hybrid, found.has_plain_cache) == (is_hybrid, is_plain)


def test_what_is_not_said_is_not_known() -> None:
    found = model_sizes(read({"model_type": "nonesuch"}))
    assert (found.window, found.layers, found.kv_values_per_token, found.short_window) == (None, None, 0, None)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_those_that_vllm_reads(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from vllm.config.model import _get_and_verify_max_len
    from vllm.transformers_utils.config import get_config
    from vllm.transformers_utils.model_arch_config_convertor import (
        MODEL_ARCH_CONFIG_CONVERTORS,
        ModelArchConfigConvertorBase,
    )

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    whole = get_config(str(tmp_path), trust_remote_code=False)
    text = whole.get_text_config()
    convertor = MODEL_ARCH_CONFIG_CONVERTORS.get(text.model_type, ModelArchConfigConvertorBase)(text, text)
    longest = _get_and_verify_max_len(text, convertor.convert(), None, 1, False, None)
    assert longest == 1
    found = model_sizes(read(CONFIGS[name]))
    assert found.window is not None
    assert _get_and_verify_max_len(text, convertor.convert(), None, found.window, False, None) == found.window
    with pytest.raises(ValueError, match="greater than the derived max_model_len"):
        _get_and_verify_max_len(text, convertor.convert(), None, found.window + 1, False, None)
    assert found.layers == convertor.get_num_hidden_layers()
    values = 2 * convertor.get_num_hidden_layers() * convertor.get_total_num_kv_heads() * convertor.get_head_size()
    assert found.kv_values_per_token == values
