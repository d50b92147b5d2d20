"""vLLM is shown the config and the tensors of the language model that a checkpoint wraps."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.line import STRAIGHT
from tests.support.checkpoints import write_checkpoint
from tests.support.wrapped import WINDOW, write_wrapped

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return write_wrapped(root / "base", "gemma3", 0), write_wrapped(root / "aligned", "gemma3", 1)


def test_the_loader_yields_the_language_model_by_its_own_names(pair: tuple[Path, Path]) -> None:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    from serve.text_part import TEXT_PART

    loader = get_model_loader(LoadConfig(load_format=TEXT_PART, use_tqdm_on_load=False))
    model = SimpleNamespace(model=str(pair[0]), revision=None)
    loaded = dict(loader.get_all_weights(model, SimpleNamespace()))
    whole = load_file(pair[0] / "model.safetensors")
    wanted = {
        name.removeprefix("language_model."): tensor
        for name, tensor in whole.items()
        if name.startswith("language_model.")
    }
    assert loaded.keys() == wanted.keys()
    assert len(loaded) < len(whole)
    assert all(loaded[name].equal(wanted[name]) for name in wanted)


def test_a_server_starts_with_the_text_config(pair: tuple[Path, Path]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from serve.http.server import Serving, arguments, engine_arguments
    from serve.text_part import TEXT_PART

    args = arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", (), {"max_model_len": 128, "dtype": "float32"}))
    assert (args.load_format, args.config_format) == (TEXT_PART, TEXT_PART)
    # The reference engines get these arguments, too.
    assert {"load_format", "config_format"} <= engine_arguments(args).keys()
    config = AsyncEngineArgs.from_cli_args(args).create_model_config()
    assert config.architectures == ["Gemma3ForCausalLM"]
    assert not config.is_multimodal_model
    assert (config.hf_config.model_type, config.hf_config.sliding_window) == ("gemma3_text", WINDOW)
    assert config.hf_config.rope_parameters["full_attention"]["factor"] == 8.0


def test_nothing_is_changed_for_a_language_model(tmp_path: Path) -> None:
    from serve.text_part import text_arguments

    assert text_arguments(write_checkpoint(tmp_path / "a", seed=0)) == {}


@pytest.mark.parametrize(("said", "is_tuned"), [({}, True), ({"attn_temperature_tuning": False}, False)])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_llama_4_is_tuned_as_its_config_says_however_long_requests_may_be(
    tmp_path: Path, said: dict[str, bool], is_tuned: bool, is_wrapped: bool
) -> None:
    from serve.text_part import text_arguments

    config: dict[str, Any] = {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text"} | said
    if is_wrapped:
        config = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "text_config": config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    prefix = "language_model." if is_wrapped else ""
    save_file({f"{prefix}model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert text_arguments(tmp_path)["override_generation_config"] == {"attn_temperature_tuning": is_tuned}
