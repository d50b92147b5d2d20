"""Which part of a checkpoint is a language model, where the checkpoint wraps one for several modalities.

Engines score text only, so they hold the language model alone: as vLLM's class of language model, with the wrapper's text
config and the tensors by the names that this class knows. Exports hold every tensor by the wrapper's own names. What is
peculiar to an architecture is its entry in `_WRAPPERS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from contract.errors import PairError
from merge.checkpoint import Checkpoint
from merge.heads import has_own_head
from merge.pair import Pair

# Configs that are nested in a wrapper's, as transformers and vLLM call them.
_NESTED = ("text_config", "llm_config", "language_config", "vision_config", "audio_config", "thinker_config")
# How wrappers call what a language model calls `model.` and `lm_head.`; transformers 4 and 5 in either order.
_TEXT = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
_FLAT = {"model.layers.": "model.layers.", "model.embed_tokens.": "model.embed_tokens.", "model.norm.": "model.norm."}
# What a wrapper says of the whole, its language model included.
_SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """What is peculiar to one architecture."""

    classes: Mapping[str, tuple[str, str]]
    """The language models that it wraps: by the text config's `model_type`, what this one is for a language model, and
    vLLM's class. The first one stands for a text config that does not say."""
    others: tuple[str, ...]
    """How names of tensors of other modalities begin, after a `model.` that some have."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Further beginnings of names, and those they become."""


def _same(model_type: str, architecture: str) -> dict[str, tuple[str, str]]:
    return {model_type: (model_type, architecture)}


# In the Qwen-VL models text has the same position in all sections of the multimodal rotary embedding, which makes it the
# plain one of the language model that they grew from.
_WRAPPERS = {
    "Gemma3ForConditionalGeneration": _Wrapper(
        _same("gemma3_text", "Gemma3ForCausalLM"), ("vision_tower.", "multi_modal_projector.")
    ),
    "Gemma4ForConditionalGeneration": _Wrapper(
        _same("gemma4_text", "Gemma4ForCausalLM"), ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
    ),
    "Llama4ForConditionalGeneration": _Wrapper(
        _same("llama4_text", "Llama4ForCausalLM"), ("vision_model.", "multi_modal_projector.")
    ),
    "Mistral3ForConditionalGeneration": _Wrapper(
        _same("mistral", "MistralForCausalLM") | _same("ministral3", "Ministral3ForCausalLM"),
        ("vision_tower.", "multi_modal_projector."),
    ),
    "Qwen2VLForConditionalGeneration": _Wrapper({"qwen2_vl_text": ("qwen2", "Qwen2ForCausalLM")}, ("visual.",), _FLAT),
    "Qwen2_5_VLForConditionalGeneration": _Wrapper(
        {"qwen2_5_vl_text": ("qwen2", "Qwen2ForCausalLM")}, ("visual.",), _FLAT
    ),
    "Qwen3VLForConditionalGeneration": _Wrapper({"qwen3_vl_text": ("qwen3", "Qwen3ForCausalLM")}, ("visual.",)),
}


@dataclass(frozen=True, slots=True)
class TextPart:
    """The language model of a wrapper."""

    config: Mapping[str, Any]
    """What its config.json would hold."""
    names: Mapping[str, str]
    """How it calls its tensors, by their names in the checkpoint; those of other modalities are left out."""


def text_part(checkpoint: Checkpoint) -> TextPart | None:
    """Return the language model that a checkpoint wraps; None where it wraps none and is one itself.

    Raises:
        PairError: what it wraps cannot be had.
    """
    config = checkpoint.config
    architecture = _named(config)
    wrapper = _WRAPPERS.get(architecture)
    if wrapper is None:
        if any(isinstance(config.get(key), dict) for key in _NESTED):
            raise PairError(
                f"{checkpoint.path} cannot be scored: {architecture} wraps a language model for several modalities, and "
                f"lambdasweep knows how to take it out of {', '.join(sorted(_WRAPPERS))} only"
            )
        if _query_scaling(config):
            raise PairError(
                f"{checkpoint.path} cannot be scored: queries of {architecture} grow with their position "
                "(llama_4_scaling_beta), which vLLM reads of wrappers only as lambdasweep gives it to them: give the "
                "wrapper's checkpoint"
            )
        return None
    names, unknown = {}, []
    for tensor in checkpoint.tensors:
        begins = next((known for known in _TEXT | dict(wrapper.names) if tensor.startswith(known)), None)
        if begins is not None:
            names[tensor] = (_TEXT | dict(wrapper.names))[begins] + tensor.removeprefix(begins)
        elif not tensor.removeprefix("model.").startswith(wrapper.others):
            unknown.append(tensor)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise PairError(
            f"{checkpoint.path} cannot be scored: {', '.join(unknown[:_SHOWN])}{more} may or may not belong to the language "
            f"model of {architecture}"
        )
    nested = config.get("text_config")
    model_type = nested.get("model_type") if isinstance(nested, dict) else None
    model_type = model_type or next(iter(wrapper.classes))
    if model_type not in wrapper.classes:
        raise PairError(
            f"{checkpoint.path} cannot be scored: {architecture} with a language model of type {model_type}, where "
            f"lambdasweep knows {' and '.join(wrapper.classes)}"
        )
    known_as, text_class = wrapper.classes[model_type]
    shared = {key: config[key] for key in _SHARED if config.get(key) is not None}
    made = (
        text_values(config)
        | shared
        | {
            "model_type": known_as,
            "architectures": [text_class],
            # A wrapper's config and its text config may differ in this; what the checkpoint has is what counts.
            "tie_word_embeddings": not has_own_head(checkpoint),
        }
    )
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(made.get(key), dict) and "mrope_section" in made[key]:
            made[key] = _without_sections(made[key])
    if scaling := _query_scaling(made):
        made["llama_4_scaling"] = scaling
    return TextPart(made, names)


def _query_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how queries grow with their position, as vLLM reads it; transformers has it among rotary parameters."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    beta = rope.get("llama_4_scaling_beta") if isinstance(rope, Mapping) else None
    if beta is None:
        return None
    return {"beta": beta, "original_max_position_embeddings": rope["original_max_position_embeddings"]}


def architecture_of(checkpoint: Checkpoint) -> str:
    """Return which class of language model an engine holds of a checkpoint.

    Raises:
        PairError: the checkpoint wraps one that cannot be had.
    """
    part = text_part(checkpoint)
    return _named(part.config if part else checkpoint.config)


def _named(config: Mapping[str, Any]) -> str:
    return str(next(iter(config.get("architectures") or ["a model without architectures"])))


def text_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the language model: its `text_config`, or where it has none what is not nested."""
    nested = config.get("text_config")
    return dict(nested) if isinstance(nested, dict) else {k: v for k, v in config.items() if k not in _NESTED}


def only_text(pair: Pair) -> Pair:
    """Return the pair with the tensors that engines hold, by the names that the checkpoints have.

    Raises:
        PairError: the language model cannot be had.
    """
    part = text_part(pair.shaped)
    if part is None:
        return pair

    def only(parent: Checkpoint) -> Checkpoint:
        return replace(parent, tensors={name: parent.tensors[name] for name in parent.tensors if name in part.names})

    aligned = {name: only(parent) for name, parent in pair.aligned_by_name.items()}
    return replace(pair, base=only(pair.base), aligned_by_name=aligned)


def _without_sections(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a rotary embedding without what tells the positions of several modalities apart."""
    made = {key: value for key, value in rope.items() if key not in ("mrope_section", "mrope_interleaved")}
    return made | {key: "default" for key in ("type", "rope_type") if made.get(key) == "mrope"}
