"""Models that vLLM has no kernel for are refused by a plan, and each is what vLLM's registry calls it."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from contract.errors import InputError
from lambdasweep.config import load_config
from lambdasweep.engine_defaults import model_warnings, server_defaults, settle
from merge.checkpoint import open_checkpoint
from merge.line import STRAIGHT
from merge.pair import Pair, put_together
from serve.runnable import _BFLOAT16_ONLY, _FAR_FROM_TRANSFORMERS, _GROUPS, _WITHOUT_KERNEL
from serve.settings import EngineSettings
from tests.support.paths import ROOT
from tests.support.shapes import LLAMA_8B, write_shape


def pair_of(folder: Path, architecture: str, more: dict[str, Any] | None = None) -> Pair:
    shape = LLAMA_8B | {"architectures": [architecture]} | (more or {})
    one = open_checkpoint(str(write_shape(folder, shape)), "base")
    return put_together({"base": one, "aligned": one}, STRAIGHT)


def settled(pair: Pair, device: str, **flags: Any) -> EngineSettings:
    given = {"base": "base", "aligned": "aligned", "lambdas": "0,1", "out": "run"} | flags
    return settle(load_config(given, [f"t={ROOT}"], [], [], None), pair, device, None)


def test_a_model_without_a_kernel_is_refused_on_a_cpu_only(tmp_path: Path) -> None:
    pair = pair_of(tmp_path / "pair", "KimiLinearForCausalLM")
    told = "no kernel for linear attention on a CPU, which KimiLinearForCausalLM needs: use a machine with a GPU"
    for refused in (lambda: settled(pair, "cpu"), lambda: server_defaults(pair, "cpu", {})):
        with pytest.raises(InputError, match=told):
            refused()
    assert settled(pair, "cuda").dtype == "bfloat16"
    assert "dtype" not in server_defaults(pair, "cuda", {})
    extra = {"hf_overrides": {"rope_theta": 5.0}, "max_num_seqs": 4}  # the first is a part of the run's numbers
    assert server_defaults(pair, "cuda", {"extra": extra}).items() >= {"hf_overrides": {"rope_theta": 5.0}}.items()
    assert "max_num_seqs" not in server_defaults(pair, "cuda", {"extra": extra})


@pytest.mark.parametrize(
    ("architecture", "groups", "told"),
    [
        ("DeepseekV2ForCausalLM", {}, "n_group and topk_group of the parents' config.json: null"),
        ("DeepseekV2ForCausalLM", {"n_group": 1, "topk_group": None}, "topk_group of the parents' config.json: null"),
        ("DeepseekV2ForCausalLM", {"n_group": 1, "topk_group": 1}, ""),
        ("DeepseekV2ForCausalLM", {"n_routed_experts": None}, ""),
        ("DeepseekV3ForCausalLM", {}, ""),
        ("DeepseekV3ForCausalLM", {"n_group": None}, "n_group of the parents' config.json: null"),
    ],
)
def test_experts_without_numbers_of_groups_are_refused(
    tmp_path: Path, architecture: str, groups: dict[str, int | None], told: str
) -> None:
    from transformers import AutoConfig

    pair = pair_of(tmp_path / "pair", architecture, groups)
    for device in ("cpu", "cuda"):
        with pytest.raises(InputError, match=told) if told else nullcontext():
            settled(pair, device)
        with pytest.raises(InputError, match=told) if told else nullcontext():
            server_defaults(pair, device, {})
    kind = {"DeepseekV2ForCausalLM": "deepseek_v2", "DeepseekV3ForCausalLM": "deepseek_v3"}[architecture]
    class_of = AutoConfig.for_model(kind)
    assert {name: getattr(class_of, name) for name in _GROUPS[architecture]} == _GROUPS[architecture]


def test_a_model_whose_kernels_take_bfloat16_only_gets_it(tmp_path: Path) -> None:
    pair = pair_of(tmp_path / "pair", "Qwen3NextForCausalLM")
    assert settled(pair, "cpu").dtype == server_defaults(pair, "cpu", {})["dtype"] == "bfloat16"
    with pytest.raises(InputError, match="--dtype float32: on a CPU vLLM computes the gated delta networks"):
        settled(pair, "cpu", dtype="float32")
    plain = pair_of(tmp_path / "plain", "LlamaForCausalLM")
    assert settled(plain, "cpu").dtype == server_defaults(plain, "cpu", {})["dtype"] == "float32"


def test_a_model_that_vllm_scores_otherwise_than_transformers_is_warned_of(tmp_path: Path) -> None:
    for number, (architecture, told) in enumerate((("PhiMoEForCausalLM", 1), ("LlamaForCausalLM", 0))):
        pair = pair_of(tmp_path / str(number), architecture)
        warnings = model_warnings(settled(pair, "cpu"), pair)
        assert [architecture in warning and "0.32 nats" in warning for warning in warnings] == [True] * told
        assert model_warnings(settled(pair, "cuda"), pair) == ()


def test_the_names_are_those_of_vllm() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert {*_WITHOUT_KERNEL, *_BFLOAT16_ONLY, *_FAR_FROM_TRANSFORMERS} <= {*ModelRegistry.get_supported_archs()}
