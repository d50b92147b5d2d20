"""Configs are compared by what they mean: spellings of transformers 4 and 5 agree, and each key that is read tells.

transformers' own classes write the configs here, so that nothing of ours says what an architecture's config looks like.
"""

import copy
import functools
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from merge import config_meaning
from merge.config_meaning import compare_configs, meaning

PLAIN = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi",
    "phi3", "olmo", "olmo2", "olmo3", "olmoe", "cohere", "cohere2", "granite", "granitemoe", "glm", "glm4", "gpt2",
    "gpt_neox", "gpt_oss", "falcon", "deepseek_v3", "stablelm", "starcoder2", "smollm3", "mamba2", "opt",
)  # fmt: skip
WRAPPED = ("gemma3", "qwen2_5_vl", "mistral3", "llama4")
ALL = (*PLAIN, *WRAPPED)
# The class of these kinds reads each change, which takes a second for each kind.
OF_EACH_SORT = (
    "llama",
    "qwen2",
    "qwen3_moe",
    "gemma3_text",
    "phi3",
    "cohere2",
    "gpt2",
    "gpt_neox",
    "deepseek_v3",
    "gemma3",
)
BY_PATTERN = {"gemma3_text": 6, "cohere2": 4}  # transformers 4 named a layer in so many
# transformers 4 wrote these as well, or with these values.
WRITTEN_BY_4 = {
    "torch_dtype": "bfloat16", "transformers_version": "4.51.3", "_attn_implementation_autoset": True, "max_length": 20,
    "num_beams": 1, "do_sample": False, "top_k": 50, "temperature": 1.0, "cache_implementation": "hybrid",
    "return_dict": True, "torchscript": False, "pruned_heads": {}, "tf_legacy_loss": False, "use_bfloat16": False,
    "output_hidden_states": True, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0},
    "sep_token_id": 5, "router_aux_loss_coef": 0.5, "attn_pdrop": 0.25, "hidden_dropout_prob": 0.5,
    "initializer_range": 0.5, "_flash_attn_2_enabled": True, "_name_or_path": "somewhere", "use_cache": False,
}  # fmt: skip


@functools.cache
def written(kind: str) -> dict[str, Any]:
    """Return the config of a kind with every default written out, as transformers 5 does it."""
    made: dict[str, Any] = CONFIG_MAPPING[kind]().to_dict()
    return made | {"architectures": [f"{kind}ForCausalLM"]}


def spelled_by_4(config: dict[str, Any], extras: dict[str, Any]) -> dict[str, Any]:
    """Return the same config as transformers 4 spells it."""
    old = {key: value for key, value in copy.deepcopy(config).items() if key not in ("dtype", "rope_parameters")}
    for key, part in old.items():
        if key.endswith("_config") and isinstance(part, dict):
            old[key] = spelled_by_4(part, {})
    kind = config.get("model_type")
    if kind in BY_PATTERN:
        old["sliding_window_pattern"] = BY_PATTERN[kind]
        del old["layer_types"]
    rope = dict(config.get("rope_parameters") or {})
    if "sliding_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if rope:
        factor = rope.pop("partial_rotary_factor", None)
        rope = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
        old |= {"rope_theta": rope.pop("rope_theta")} | ({"partial_rotary_factor": factor} if factor else {})
        old["rope_scaling"] = rope if rope["type"] != "default" else None
    return old | extras


def compared(one: dict[str, Any], two: dict[str, Any], is_shared: bool = False) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    warnings: list[str] = []
    compare_configs(one, two, problems, warnings, is_shared)
    return problems, warnings


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_meaning, "find_spec", lambda name: None)


def left_out(kind: str) -> dict[str, Any]:
    """Return the config with as few defaults as transformers writes."""
    short: dict[str, Any] = CONFIG_MAPPING[kind]().to_diff_dict()
    return short | {"architectures": [f"{kind}ForCausalLM"]}


@pytest.mark.parametrize("kind", ALL)
def test_no_spelling_is_a_difference(kind: str) -> None:
    new = written(kind)
    for other in (spelled_by_4(new, WRITTEN_BY_4), left_out(kind), spelled_by_4(left_out(kind), WRITTEN_BY_4)):
        assert compared(new, other) == ([], [])
        assert compared(other, new) == ([], [])


@pytest.mark.usefixtures("without_transformers")
@pytest.mark.parametrize("kind", ALL)
def test_no_spelling_is_refused_without_transformers(kind: str) -> None:
    new = written(kind)
    assert compared(new, spelled_by_4(new, WRITTEN_BY_4)) == ([], [])
    for other in (left_out(kind), spelled_by_4(left_out(kind), WRITTEN_BY_4)):
        problems, warnings = compared(new, other)
        assert problems == []
        assert all(warning.endswith("is not known without transformers: not compared") for warning in warnings)


def changes(config: dict[str, Any], at: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Yield another value for every leaf of a config, by its keys."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += changes(value, (*at, key))
        elif isinstance(value, bool):
            found.append(((*at, key), not value))
        elif isinstance(value, int):
            found.append(((*at, key), value + 8))
        elif isinstance(value, float):
            found.append(((*at, key), 0.5 * value + 0.3))
        elif isinstance(value, str):
            found.append(((*at, key), f"other_{value}"))
    return found


def with_change(config: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    if len(keys) == 1:
        return config | {keys[0]: value}
    return config | {keys[0]: with_change(config[keys[0]], keys[1:], value)}


WINDOW = {"max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers"}
# These keys were looked up by hand: no forward pass of any of these kinds reads them.
UNREAD = {
    "tie_word_embeddings",  # the tensors tell this
    "dtype", "transformers_version", "use_cache", "return_dict", "output_hidden_states", "output_router_logits",
    "chunk_size_feed_forward", "problem_type", "initializer_range", "initializer_factor", "init_std", "pretraining_tp",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "router_aux_loss_coef", "router_jitter_noise",
    "input_jitter_noise", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout",
    "summary_first_dropout", "classifier_dropout", "residual_dropout", "embedding_dropout", "dropout",
    "activation_dropout", "layerdrop", "rescale_prenorm_residual", "resid_dropout", "aux_loss_coef",
    "projector_dropout", "attn_dropout", "hidden_dropout_prob", "_attn_implementation", "_name_or_path",
    "_output_attentions", "output_attentions", "_experts_implementation", "_sliding_window_pattern", "id2label", "label2id",
}  # fmt: skip


# Mistral-3 hands it to its vision tower, whose class has no such key.
NOT_OF_ITS_CLASS = ("vision_config", "vocab_size")


def is_set_twice(config: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return len(keys) == 1 and keys[0] in (config.get("rope_parameters") or {})


@pytest.mark.parametrize("kind", OF_EACH_SORT)
def test_each_key_that_is_read_stops_the_pair(kind: str) -> None:
    config = written(kind)
    seen = 0
    for keys, value in changes(config):
        if UNREAD & set(keys) or is_set_twice(config, keys):
            assert compared(config, with_change(config, keys, value)) == ([], []), keys
        elif keys[-1] not in WINDOW and keys != NOT_OF_ITS_CLASS:
            problems, _ = compared(config, with_change(config, keys, value))
            assert problems, keys
            seen += 1
    assert seen > 10


@pytest.mark.usefixtures("without_transformers")
@pytest.mark.parametrize("kind", ALL)
def test_each_key_that_is_read_stops_the_pair_without_transformers(kind: str) -> None:
    config = written(kind)
    for keys, value in changes(config):
        if not UNREAD & set(keys) and keys[-1] not in WINDOW and not is_set_twice(config, keys):
            assert compared(config, with_change(config, keys, value))[0], keys


def test_a_default_that_one_config_leaves_out_is_the_class_s() -> None:
    plain = written("llama")
    assert compared(plain, {key: value for key, value in plain.items() if key != "rms_norm_eps"}) == ([], [])
    changed = plain | {"rms_norm_eps": 1e-5}
    assert compared(changed, {key: value for key, value in plain.items() if key != "rms_norm_eps"})[0] == [
        "config.json: rms_norm_eps is 1e-05 in base and 1e-06 in aligned"
    ]


@pytest.mark.usefixtures("without_transformers")
def test_what_is_left_unchecked_is_named() -> None:
    plain = written("llama")
    short = {key: value for key, value in plain.items() if key not in ("rms_norm_eps", "hidden_act", "head_dim")}
    assert compared(plain, short) == (
        [],
        [
            "config.json: hidden_act, rms_norm_eps: only base or only aligned has it, and the default of the other is not "
            "known without transformers: not compared"
        ],
    )


def test_a_key_that_no_class_knows_warns() -> None:
    plain = written("llama")
    assert compared(plain | {"trained_by": "us"}, plain) == (
        [],
        [
            'config.json: trained_by is "us" in base and null in aligned; transformers does not know this key, so it was '
            "taken for one that nothing reads"
        ],
    )


def test_a_nested_difference_has_its_path_and_a_vocabulary_its_flag() -> None:
    plain = written("gemma3")
    changed = with_change(plain, ("text_config", "rms_norm_eps"), 1e-5)
    assert compared(plain, changed)[0] == [
        "config.json: text_config.rms_norm_eps is 1e-06 in base and 1e-05 in aligned"
    ]
    rows = with_change(plain, ("text_config", "vocab_size"), 128_320)
    (problem,), _ = compared(plain, rows)
    assert problem.endswith("in base and 128320 in aligned; --vocab shared takes aligned's")
    assert compared(plain, rows, is_shared=True) == ([], [])


def test_another_window_warns_unless_the_embedding_is_computed_from_it() -> None:
    plain = written("llama")
    assert compared(plain, plain | {"max_position_embeddings": 99}) == (
        [],
        ["config.json: max_position_embeddings is 2048 in base and 99 in aligned"],
    )
    stretched = plain | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    assert compared(stretched, stretched | {"max_position_embeddings": 99})[0] == [
        "config.json: max_position_embeddings is 2048 in base and 99 in aligned"
    ]


def test_old_and_new_spellings_of_a_scaled_embedding_agree() -> None:
    plain = written("llama")
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    new = plain | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **scaled}}
    bare = {key: value for key, value in plain.items() if key != "rope_parameters"} | {"rope_theta": 500000}
    for name in ("type", "rope_type"):
        assert compared(new, bare | {"rope_scaling": {name: "llama3", **scaled}}) == ([], [])
        assert meaning(new) == meaning(bare | {"rope_scaling": {name: "llama3", **scaled}})
    (problem,), _ = compared(new, bare | {"rope_scaling": {"rope_type": "llama3", **scaled, "factor": 4.0}})
    assert problem == "config.json: rope_factor is 8.0 in base and 4.0 in aligned"


@pytest.mark.usefixtures("without_transformers")
def test_one_embedding_is_as_good_as_the_same_for_each_kind_of_layer() -> None:
    plain = {"model_type": "gemma3_text", "hidden_size": 8}
    table = {"rope_type": "default", "rope_theta": 1e6}
    by_kind = {"full_attention": table, "sliding_attention": table}
    one, each = plain | {"rope_theta": 1e6}, plain | {"rope_parameters": by_kind}
    assert compared(one, each) == compared(each, one) == ([], [])
    local = plain | {"rope_parameters": by_kind | {"sliding_attention": table | {"rope_theta": 1e4}}}
    assert (
        compared(one, local)
        == compared(each, local)
        == (
            ["config.json: rope_parameters.sliding_attention.rope_theta is 1000000.0 in base and 10000.0 in aligned"],
            [],
        )
    )


def test_null_is_no_default() -> None:
    own = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 128}
    problems, _ = compared(own | {"q_lora_rank": None}, own)
    assert problems == ["config.json: q_lora_rank is null in base and 1536 in aligned"]
    plain = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128}
    assert compared(plain | {"rope_scaling": None, "head_dim": None}, plain) == ([], [])
