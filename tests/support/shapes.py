"""This makes checkpoints of the shapes of real models that are headers and nothing else: their files are long, and empty.

Plans that are made from headers can be tested with them at any size.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
GEMMA_27B = LLAMA_8B | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 62,
    "num_key_value_heads": 16,
    "vocab_size": 262_208,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
QWEN_30B_A3B = LLAMA_8B | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
}


def write_shape(directory: Path, config: dict[str, Any]) -> Path:
    """Write a checkpoint in bfloat16 of this config, all of whose weights are a hole in a file; return `directory`."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    _write_hole(directory / "model.safetensors", _tensors(config))
    return directory


def write_adapter_shape(directory: Path, config: dict[str, Any], rank: int) -> Path:
    """Write a LoRA adapter of every matrix of a checkpoint's layers, likewise; return `directory`."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    factors: list[tuple[str, list[int]]] = []
    for name, shape in _tensors(config):
        if "proj" in name:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            factors += [(f"{at}.lora_A.weight", [rank, shape[1]]), (f"{at}.lora_B.weight", [shape[0], rank])]
    _write_hole(directory / "adapter_model.safetensors", factors)
    return directory


def _write_hole(path: Path, tensors: Iterable[tuple[str, list[int]]]) -> None:
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * _product(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _tensors(config: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    each = config["head_dim"]
    queries, keys = config["num_attention_heads"] * each, config["num_key_value_heads"] * each
    kind = config["model_type"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    yield "model.embed_tokens.weight", [vocabulary, hidden]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield f"{at}self_attn.q_proj.weight", [queries, hidden]
        yield f"{at}self_attn.k_proj.weight", [keys, hidden]
        yield f"{at}self_attn.v_proj.weight", [keys, hidden]
        yield f"{at}self_attn.o_proj.weight", [hidden, queries]
        if kind != "llama":
            yield f"{at}self_attn.q_norm.weight", [each]
            yield f"{at}self_attn.k_norm.weight", [each]
        for norm in norms:
            yield f"{at}{norm}.weight", [hidden]
        experts = config.get("num_experts")
        if experts:
            yield f"{at}mlp.gate.weight", [experts, hidden]
            inner = config["moe_intermediate_size"]
        for place in [f"experts.{number}." for number in range(experts)] if experts else [""]:
            yield f"{at}mlp.{place}gate_proj.weight", [inner, hidden]
            yield f"{at}mlp.{place}up_proj.weight", [inner, hidden]
            yield f"{at}mlp.{place}down_proj.weight", [hidden, inner]
    yield "model.norm.weight", [hidden]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [vocabulary, hidden]


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
