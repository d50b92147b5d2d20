"""This writes checkpoints with a few tensors by hand."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from merge.checkpoint import INDEX, SINGLE

Tensors = dict[str, torch.Tensor]
CONFIG = {"model_type": "toy", "hidden_size": 8, "rope_theta": 10000.0, "max_position_embeddings": 64, "vocab_size": 4}


def tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    names = ["model.embed.weight", *(f"model.layers.{layer}.w" for layer in range(11)), "model.norm.weight"]
    return {name: torch.randn(3, 8, generator=generator).to(dtype) for name in names}


def write(directory: Path, weights: Tensors, config: dict[str, Any] | None = None, shards: int = 0) -> Path:
    """Write a checkpoint of any tensors; `shards` > 0 deals them out over files with an index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    write_vocabulary(directory, ["<s>", "</s>", "a", "b"])
    if not shards:
        save_file(weights, directory / SINGLE)
        return directory
    files = [f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" for shard in range(shards)]
    weight_map = {name: files[index % shards] for index, name in enumerate(weights)}
    for file in files:
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def write_vocabulary(directory: Path, strings: list[str], **roles: Any) -> None:
    added = [{"id": index, "content": text} for index, text in enumerate(strings) if text.startswith("<")]
    vocab = {text: index for index, text in enumerate(strings)}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"} | roles))
