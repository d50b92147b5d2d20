"""The part of a checkpoint that is a language model is found by its tensors and its config."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from contract.errors import PairError
from merge.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from merge.line import Line
from merge.pair import open_pair
from merge.text_part import _WRAPPERS, only_text, text_part
from tests.support.paths import ROOT

TEXT = {"model_type": "gemma3_text", "hidden_size": 8, "num_hidden_layers": 1}
OTHERS = ("vision_tower.layers.0.weight", "multi_modal_projector.weight")


def write(directory: Path, config: dict[str, Any], names: tuple[str, ...]) -> Checkpoint:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.full((2, 2), float(at)) for at, name in enumerate(names)}
    save_file(tensors, directory / "model.safetensors")
    return open_checkpoint(str(directory), "base")


def wrapper(architecture: str = "Gemma3ForConditionalGeneration", **changes: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "wrapper",
        "text_config": TEXT,
        "vision_config": {},
    } | changes


@pytest.mark.parametrize(
    "spelling",
    [
        {
            "language_model.model.layers.0.mlp.weight": "model.layers.0.mlp.weight",
            "language_model.model.embed_tokens.weight": "model.embed_tokens.weight",
            "language_model.lm_head.weight": "lm_head.weight",
        },
        {
            "model.language_model.layers.0.mlp.weight": "model.layers.0.mlp.weight",
            "model.language_model.embed_tokens.weight": "model.embed_tokens.weight",
            "lm_head.weight": "lm_head.weight",
        },
    ],
    ids=["transformers 4", "transformers 5"],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_are_those_of_the_language_model_in_every_spelling(
    tmp_path: Path, spelling: dict[str, str], prefix: str
) -> None:
    others = tuple(prefix + name for name in OTHERS)
    part = text_part(write(tmp_path / "a", wrapper(), (*spelling, *others)))
    assert part is not None
    assert part.names == spelling


LANGUAGE_MODELS = [(name, model_type) for name, one in _WRAPPERS.items() for model_type in one.classes]


def without_memory(architecture: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a model as transformers makes it, by name."""
    with torch.device("meta"):
        made = getattr(transformers, architecture)(config)
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}


@pytest.mark.parametrize(("architecture", "model_type"), LANGUAGE_MODELS)
def test_the_part_has_config_names_and_shapes_of_the_language_model_of_transformers(
    architecture: str, model_type: str
) -> None:
    kind = getattr(transformers, f"{architecture.removesuffix('ForConditionalGeneration')}Config")
    config = kind(text_config={"model_type": model_type, "num_hidden_layers": 4})
    if architecture == "Gemma4ForConditionalGeneration":  # its towers are optional
        config = kind(text_config=config.text_config.to_dict(), vision_config={}, audio_config={})
    whole = without_memory(architecture, config)
    tensors = {
        name: TensorInfo(Path("none"), "BF16", shape, begin=0, end=0, name=name, stored="BF16")
        for name, shape in whole.items()
    }
    values = config.to_dict() | {"architectures": [architecture]}
    part = text_part(Checkpoint("none", Path("none"), None, values, tensors))
    assert part is not None
    assert len(part.names) < len(whole)
    found = {name: whole[stored] for stored, name in part.names.items()}
    # Keys of the wrapper's text config that the class of the language model does not know are kept as they are.
    made = transformers.AutoConfig.for_model(**part.config)
    assert found == without_memory(part.config["architectures"][0], made)


def test_names_of_a_wrapper_that_has_no_place_of_its_own_for_the_language_model(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 8}
    sections = {"type": "mrope", "mrope_section": [1, 1, 2], "mrope_interleaved": True}
    config |= {"vision_config": {"hidden_size": 4}, "rope_scaling": sections}
    names = ("model.layers.0.mlp.weight", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    part = text_part(write(tmp_path / "a", config, (*names, "visual.blocks.0.weight")))
    assert part is not None
    assert part.names == {name: name for name in names}
    assert part.config["architectures"] == ["Qwen2ForCausalLM"]
    assert part.config["model_type"] == "qwen2"
    assert part.config["hidden_size"] == 8
    assert part.config["rope_scaling"] == {"type": "default"}
    assert "vision_config" not in part.config


def test_the_config_is_the_text_config_with_what_the_wrapper_says_of_the_whole(tmp_path: Path) -> None:
    config = wrapper(torch_dtype="bfloat16", eos_token_id=[1, 106])
    part = text_part(write(tmp_path / "a", config, ("language_model.model.norm.weight", *OTHERS)))
    assert part is not None
    assert part.config == TEXT | {
        "architectures": ["Gemma3ForCausalLM"],
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
    }


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("heads", [(), ("language_model.lm_head.weight",), ("lm_head.weight",)])
def test_embeddings_are_tied_where_there_is_no_head(tmp_path: Path, said: bool | None, heads: tuple[str, ...]) -> None:
    told = {} if said is None else {"tie_word_embeddings": said}
    config = wrapper(text_config=TEXT | told)
    part = text_part(write(tmp_path / "a", config, ("language_model.model.norm.weight", *heads)))
    assert part is not None
    assert part.config["tie_word_embeddings"] is (not heads)


@pytest.mark.parametrize(("head", "ties"), [("none", True), ("copy", True), ("own", False)])
def test_a_stored_head_that_a_config_without_text_config_ties_is_one_of_its_own_if_it_differs(
    tmp_path: Path, head: str, ties: bool
) -> None:
    """An engine that held a copy as a head of its own would have a parameter of which the pair has no tensor."""
    names = ("model.layers.0.mlp.weight", "model.embed_tokens.weight", "visual.blocks.0.weight")
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "vision_config": {}}
    found = write(tmp_path / "a", config | {"tie_word_embeddings": True}, names)
    if head != "none":
        weights = load_file(found.path / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + float(head == "own")
        save_file(weights, found.path / "model.safetensors")
    part = text_part(open_checkpoint(str(found.path), "base"))
    assert part is not None
    assert part.config["tie_word_embeddings"] is ties


def test_a_language_model_is_no_wrapper(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": {"type": "linear"}}
    assert text_part(write(tmp_path / "a", config, ("model.norm.weight",))) is None


@pytest.mark.parametrize(
    ("config", "names", "words"),
    [
        (
            wrapper("NonesuchForConditionalGeneration"),
            ("language_model.model.norm.weight",),
            "cannot be scored: NonesuchForConditionalGeneration wraps a language model for several modalities",
        ),
        (wrapper("Nonesuch", text_config=None, audio_config={}), ("model.norm.weight",), "Nonesuch wraps a language"),
        (
            wrapper("Mistral3ForConditionalGeneration"),
            ("language_model.model.norm.weight",),
            "Mistral3ForConditionalGeneration with a language model of type gemma3_text, where lambdasweep knows mistral",
        ),
        (
            wrapper(),
            ("language_model.model.norm.weight", "model.norm.weight", "adapter.weight"),
            "cannot be scored: adapter.weight, model.norm.weight may or may not belong to the language model of Gemma3",
        ),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, config: dict[str, Any], names: tuple[str, ...], words: str
) -> None:
    checkpoint = write(tmp_path / "a", config, names)
    with pytest.raises(PairError) as caught:
        text_part(checkpoint)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engines_hold_the_language_model_of_both_parents_with_its_weights_on_lambda(tmp_path: Path) -> None:
    names = ("language_model.model.layers.0.mlp.weight", "language_model.model.norm.weight", *OTHERS)
    for role in ("base", "aligned"):
        write(tmp_path / role, wrapper(), names)
    line = Line(lam_map="vision_tower=0.5,mlp=0.25")
    pair = open_pair(str(tmp_path / "base"), str(tmp_path / "aligned"), line=line)
    held = only_text(pair)
    assert [list(parent.tensors) for parent in held.parents.values()] == [list(names[:2])] * 2
    assert held.weights[names[0]] == "0.25"
    assert set(pair.base.tensors) == set(names)


def test_the_documents_name_every_wrapper_with_its_language_models() -> None:
    told = (ROOT / "docs/architectures.md").read_text(encoding="utf-8")
    for architecture, wrapper in _WRAPPERS.items():
        classes = ", ".join(f"`{text_class}`" for _, text_class in wrapper.classes.values())
        assert f"| `{architecture}` | {classes} |" in told


GROWING = {"rope_type": "yarn", "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16384}


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_queries_that_grow_with_their_position_are_told_where_vllm_looks(tmp_path: Path, key: str) -> None:
    text = {"model_type": "ministral3", "hidden_size": 8, key: GROWING}
    config = wrapper("Mistral3ForConditionalGeneration", text_config=text)
    part = text_part(write(tmp_path / "a", config, ("language_model.model.embed_tokens.weight",)))
    assert part is not None
    assert part.config["llama_4_scaling"] == {"beta": 0.1, "original_max_position_embeddings": 16384}
    assert part.config[key] == GROWING


def test_a_model_whose_queries_grow_is_refused_where_vllm_would_not_see_it(tmp_path: Path) -> None:
    config = {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "rope_parameters": GROWING}
    with pytest.raises(PairError, match="queries of Ministral3ForCausalLM grow with their position"):
        text_part(write(tmp_path / "a", config, ("model.embed_tokens.weight",)))
