"""This makes tiny checkpoints of language models that are wrapped for several modalities, with random weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.checkpoints import POSITIONS, VOCAB, write_tokenizer

WINDOW = 16  # a layer with a sliding window sees so many tokens
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
PROCESSOR = '{"image_mean": [0.5, 0.5, 0.5]}\n'  # the file of a checkpoint that takes images


def gemma3() -> Any:
    """Return a Gemma 3 with layers of both kinds, each with a rotary embedding of its own, and a tied head."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    text = _TEXT | {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": rope,
    }
    tokens = {"image_token_index": VOCAB - 1, "boi_token_index": VOCAB - 2, "eoi_token_index": VOCAB - 3}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=_VISION | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        **tokens,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def mistral3() -> Any:
    """Return a Mistral 3 with a head of its own."""
    config = transformers.Mistral3Config(
        text_config=_TEXT | {"model_type": "mistral", "sliding_window": None},
        vision_config=_VISION | {"model_type": "pixtral"},
        image_token_index=VOCAB - 1,
        tie_word_embeddings=False,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def qwen25vl() -> Any:
    """Return a Qwen2.5-VL, whose positions have three sections."""
    hidden = _TEXT["num_attention_heads"] * _TEXT["head_dim"]
    text = _TEXT | {"hidden_size": hidden, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [0]}
    tokens = {"image_token_id": VOCAB - 1, "video_token_id": VOCAB - 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision | {"out_hidden_size": hidden}, tie_word_embeddings=False, **tokens
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


KINDS = {"gemma3": gemma3, "mistral3": mistral3, "qwen25vl": qwen25vl}


def write_wrapped(directory: Path, kind: str, seed: int) -> Path:
    """Write a checkpoint of one of KINDS in bfloat16, with seeded weights, a tokenizer and a processor's file."""
    torch.manual_seed(seed)  # a class fills its buffers, and some parameters, from this seed
    model = KINDS[kind]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Gemma's norms multiply by 1 + their weight.
            is_plain_norm = "norm" in name and "bias" not in name and kind != "gemma3"
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator) + float(is_plain_norm))
    model.to(torch.bfloat16).save_pretrained(directory)
    write_tokenizer(directory)
    (directory / "preprocessor_config.json").write_text(PROCESSOR)
    return directory


def whole_wrapper_says(kind: str, checkpoint: Path, requests: Iterable[list[int]]) -> list[list[float]]:
    """Return the logprobs of each request's tokens but the first, by the whole wrapper in transformers, in float32."""
    model = type(KINDS[kind]()).from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    found = []
    for ids in requests:
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append([float(scores[row, token]) for row, token in enumerate(ids[1:])])
    return found
