"""Two configs are compared by what they mean, at every depth, and not by how they are spelled.

Versions of transformers write the same model differently: they keep the rotary embedding's numbers in other places, name
layers by a pattern or one by one, and leave defaults out or write them. Where two configs do not agree as they stand,
transformers' own config class is asked what it makes of both, so that a key that is absent has its default. The install for
reading results has no transformers: there only those keys are compared that both configs have.
"""

import contextlib
import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

# No forward pass reads these keys: they are about training, generation, tokens that have a role, and how a model is run.
_UNREAD = {
    "transformers_version", "use_cache", "torch_dtype", "dtype", "auto_map", "tokenizer_class", "name_or_path",
    "initializer_range", "init_std", "embed_init_std", "pretraining_tp", "rescale_prenorm_residual",
    "gradient_checkpointing", "return_dict", "output_hidden_states", "output_attentions", "output_router_logits",
    "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "torchscript",
    "pruned_heads", "tf_legacy_loss", "use_bfloat16", "prefix", "task_specific_params", "tie_encoder_decoder",
    "attn_implementation", "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "transformers.js_config",
    # These are settings of generation, which transformers 4 kept in config.json.
    "assistant_confidence_threshold", "bad_words_ids", "begin_suppress_tokens", "cache_implementation",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
_UNREAD_KINDS = re.compile(
    r"_(name_or_path|model_name_or_path|commit_hash|from_auto|auto_class|attn_implementation.*|experts_implementation.*"
    r"|flash_attn.*|output_attentions|num_labels|sliding_window_pattern|diffusers_version)|unsloth_.*|(bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id|.*dropout.*|.*pdrop|(.*_)?drop_rate"
    r"|(.*_)?drop_?path(_.*)?|.*layerdrop|(.*_)?initializer(_.*)?|(.*_)?loss(_.*)?|.*jitter.*"
)
# These are compared elsewhere: quantised checkpoints are refused, and whether embeddings are tied is seen in the tensors.
_ELSEWHERE = {"quantization_config", "compression_config", "tie_word_embeddings"}
# Post-training changes the window, and requests that fit into both windows get the same numbers.
_WINDOW = {"max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers"}
# Here the window is a number that the rotary embedding is computed from.
_STRETCHED = {"dynamic", "longrope"}
# Where these are absent they follow from other keys or from the tensors.
_DERIVED = {"head_dim", "num_key_value_heads", "layer_types", "architectures"}
_OLD_ROPE_TYPES = {"su": "longrope", "mrope": "default"}
_OF_KIND = re.compile(r"(.*\.|)rope_parameters\.([^.]+)\..+")
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is made of a config: its values by path, and the paths that transformers' class does not know."""

    values: dict[str, Any]
    unknown: frozenset[str] = frozenset()


def compare_configs(
    base: dict[str, Any], aligned: dict[str, Any], problems: list[str], warnings: list[str], is_shared: bool
) -> None:
    """Compare two configs, and add what differs to the problems or to the warnings.

    Args:
        base: base's config.json.
        aligned: aligned's config.json.
        problems: gets one line for each difference that changes numbers.
        warnings: gets one line for each difference that does not, or of which it is not known.
        is_shared: whether the vocabularies may differ (`--vocab shared`).
    """
    one, two = _Reading(meaning(base)), _Reading(meaning(aligned))
    is_alike = base.get("model_type") == aligned.get("model_type")
    has_class = find_spec("transformers") is not None
    # What is null in one and absent in the other looks alike, and has its default where it is absent.
    if (one != two or _nulls(base) != _nulls(aligned)) and is_alike and has_class:
        made = _read(base), _read(aligned)
        if made[0] is not None and made[1] is not None:
            one, two = made[0], made[1]
    _spread(one.values, two.values)
    _spread(two.values, one.values)
    unchecked = []
    for path in sorted(one.values.keys() | two.values.keys()):
        key = path.rpartition(".")[2]
        own, other = one.values.get(path), two.values.get(path)
        if own == other or (not own and not other) or (is_shared and key == "vocab_size"):
            continue
        is_in_both = own is not None and other is not None
        line = f"config.json: {path} is {json.dumps(own)} in base and {json.dumps(other)} in aligned"
        if path in one.unknown | two.unknown:
            warnings.append(f"{line}; transformers does not know this key, so it was taken for one that nothing reads")
        elif key in _WINDOW and not _is_stretched(path, one, two):
            warnings.append(line)
        elif not is_in_both and key in _DERIVED:
            continue
        elif not is_in_both and not has_class:
            unchecked.append(path)
        else:
            problems.append(f"{line}; --vocab shared takes aligned's" if key == "vocab_size" else line)
    if unchecked:
        shown = ", ".join(unchecked[:_SHOWN]) + (
            f" and {len(unchecked) - _SHOWN} more" if len(unchecked) > _SHOWN else ""
        )
        warnings.append(
            f"config.json: {shown}: only base or only aligned has it, and the default of the other is not known without "
            "transformers: not compared"
        )


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config that the weights' meaning depends on, by path, alike for all versions of transformers.

    A path joins the keys of nested tables with dots, as in `text_config.rms_norm_eps`. It is computed from the config alone:
    what is absent stays absent, but for the rotary embedding's kind and base.
    """
    values = {key: value for key, value in config.items() if not _is_unread(key)}
    rope = _rope(values)
    pattern = values.pop("sliding_window_pattern", None) or config.get("_sliding_window_pattern")
    layers = values.get("num_hidden_layers")
    if isinstance(pattern, int) and isinstance(layers, int):
        kinds = ["full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)]
        values.setdefault("layer_types", kinds)
    elif pattern:
        values["sliding_window_pattern"] = pattern
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}.{path}": one for path, one in meaning(value).items()}
        elif value is not None:
            found[key] = value
    return found | rope


def _nulls(config: Mapping[str, Any]) -> set[str]:
    found = {key for key, value in config.items() if value is None and not _is_unread(key)}
    nested = ((key, value) for key, value in config.items() if isinstance(value, Mapping))
    return found | {f"{key}.{path}" for key, value in nested for path in _nulls(value)}


def _is_unread(key: str) -> bool:
    return key in _UNREAD or key in _ELSEWHERE or _UNREAD_KINDS.fullmatch(key) is not None


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Take the numbers of the rotary embedding out of a config, wherever they stand; return them by path."""
    is_there = False
    common: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        is_there = is_there or key in values
        table = values.pop(key, None)
        common |= table if isinstance(table, dict) else {}
    kinds = {key: dict(value) for key, value in common.items() if isinstance(value, dict)}
    common = {key: value for key, value in common.items() if not isinstance(value, dict)}
    for key in ("rope_theta", "partial_rotary_factor"):
        if (value := values.pop(key, None)) is not None:
            is_there = True
            common.setdefault(key, value)
    local = values.pop("rope_local_base_freq", None)
    if kinds:
        kinds = {kind: common | table for kind, table in kinds.items()}
    elif local is not None:  # transformers 4 writes Gemma-3 so: what scales the embedding belongs to the other layers
        kinds = {"full_attention": common, "sliding_attention": {"rope_theta": local}}
    if kinds:
        return {
            f"rope_parameters.{kind}.{key}": value
            for kind, table in kinds.items()
            for key, value in _rope_table(table).items()
        }
    if not is_there and "hidden_size" not in values:
        return {}  # a table that is no model's config
    return _rope_table(common)


def _spread(values: dict[str, Any], by_kind: Mapping[str, Any]) -> None:
    """Give the numbers of one rotary embedding to each kind of layer, if the other config has one for each kind."""
    found = [match for path in by_kind if (match := _OF_KIND.fullmatch(path))]
    for at in {match[1] for match in found}:
        kinds = {match[2] for match in found if match[1] == at}
        for key in [key for key in values if re.fullmatch(rf"{re.escape(at)}rope_[^.]*", key)]:
            value = values.pop(key)
            values |= {f"{at}rope_parameters.{kind}.{key[len(at) :]}": value for kind in kinds}


def _rope_table(table: Mapping[str, Any]) -> dict[str, Any]:
    table = {key: value for key, value in table.items() if value is not None}
    kind = table.pop("type", None)
    kind = table.pop("rope_type", kind) or "default"
    values = {"theta": 10000.0} | {key.removeprefix("rope_"): value for key, value in table.items()}
    return {f"rope_{key}": value for key, value in values.items()} | {"rope_type": _OLD_ROPE_TYPES.get(kind, kind)}


def _is_stretched(path: str, *readings: _Reading) -> bool:
    """Tell whether the rotary embedding beside a window is computed from it."""
    beside = path.rpartition(".")[0]
    kinds = (reading.values.get(f"{beside}.rope_type".lstrip(".")) for reading in readings)
    return path.endswith("max_position_embeddings") and any(kind in _STRETCHED for kind in kinds)


def _read(config: Mapping[str, Any]) -> _Reading | None:
    """Return what transformers' config class makes of a config, or None where it has none or does not take it."""
    found = _read_text(json.dumps(config, sort_keys=True))
    return found and _Reading(dict(found.values), found.unknown)


@lru_cache(maxsize=16)
def _read_text(text: str) -> _Reading | None:
    config = json.loads(text)
    made = made_by_class({key: value for key, value in config.items() if key not in _ELSEWHERE})
    if made is None:
        return None
    values = _filled(meaning(made.to_dict()))
    # A class may go on with a nested config of another kind, and pass over what that says of itself.
    values |= {path: kind for path, kind in meaning(config).items() if path.endswith("model_type")}
    return _Reading(values, frozenset(_unknown(made, config) & values.keys()))


def made_by_class(config: Mapping[str, Any]) -> Any:
    """Return the object that transformers' config class makes of a config.json, which nobody may change.

    It is None where transformers is not installed, has no such class, or its class does not take the config.
    """
    kind = config.get("model_type")
    if find_spec("transformers") is None or not isinstance(kind, str):
        return None
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _made_of_text(json.dumps(config)) if kind in CONFIG_MAPPING else None


@lru_cache(maxsize=16)  # a command asks several times what each parent's config means
def _made_of_text(text: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    config = json.loads(text)
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()  # what it has to say of a config is not about the pair
    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(config)
    except Exception:  # a config class may raise anything over a value that it does not expect
        return None
    finally:
        logging.set_verbosity(loudness)


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """Add what config classes leave open and every model computes alike: the width of a head and the number of KV heads."""
    found = dict(values)
    for path, size in values.items():
        level, _, key = path.rpartition(".")
        at = f"{level}." if level else ""
        heads = values.get(f"{at}num_attention_heads")
        if key == "hidden_size" and isinstance(heads, int) and isinstance(size, int) and heads:
            found.setdefault(f"{at}head_dim", size // heads)
            found.setdefault(f"{at}num_key_value_heads", heads)
    return found


def _unknown(made: Any, config: Mapping[str, Any], at: str = "") -> set[str]:
    """Return the paths of the keys that a config has and its class does not name."""
    named: frozenset[str] = _named(type(made))  # type: ignore[arg-type]
    found: set[str] = set()
    for key, value in config.items():
        part = getattr(made, key, None)
        if isinstance(value, dict) and hasattr(part, "to_dict"):
            found |= _unknown(part, value, f"{at}{key}.")
        elif key not in named:
            found.add(f"{at}{key}")
    return found


@cache
def _named(kind: Any) -> frozenset[str]:
    """Return the keys that a config class names, or sets by itself."""
    named = {field.name for field in dataclasses.fields(kind)} | {*kind.attribute_map}
    named |= {*inspect.signature(kind.__init__).parameters}
    with contextlib.suppress(Exception):  # some have no defaults
        named |= {*kind().to_dict()}
    return frozenset(named)


@cache
def class_default(kind: str, key: str) -> Any:
    """Return the default of a key in transformers' config class of a model type; None where that is not known."""
    if find_spec("transformers") is None:
        return None
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        return None
    fields = {field.name: field.default for field in dataclasses.fields(CONFIG_MAPPING[kind])}
    return fields.get(key, getattr(CONFIG_MAPPING[kind], key, None))
