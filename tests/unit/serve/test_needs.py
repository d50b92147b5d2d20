"""Our count of what a request takes of the KV cache is vLLM's own count."""

from typing import Any

import pytest

from merge.model_sizes import ModelSizes
from serve.needs import needs

STEP = 8192


def sizes(layers: int, windowed: int) -> ModelSizes:
    return ModelSizes(
        window=131_072,
        layers=layers,
        kv_values_per_token=2 * layers * 16 * 128,
        kv_heads=16,
        windowed_layers=windowed,
        sliding_window=1024,
        has_plain_cache=True,
    )


@pytest.mark.parametrize(("layers", "windowed"), [(32, 0), (62, 52), (26, 22), (17, 9), (10, 5)])
@pytest.mark.parametrize("length", [1024, 20_000, 131_072])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 1), (1, 4)])
def test_a_request_takes_what_vllm_says(
    layers: int, windowed: int, length: int, tp: int, pp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    import torch
    from vllm.config import ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    config = VllmConfig(
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=STEP, max_model_len=length, max_num_seqs=16, is_encoder_decoder=False
        )
    )
    config.scheduler_config.async_scheduling = pp == 1  # a GPU does this; vLLM 0.32 has it for one stage only
    config.parallel_config.pipeline_parallel_size = pp
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")  # replicas do this, too
    config.cache_config.kv_cache_layout = "NHD"
    config.model_config = ModelConfig.__new__(ModelConfig)  # only the length of this is read
    config.model_config.max_model_len = length
    common: dict[str, Any] = {"block_size": 16, "num_kv_heads": 16 // tp, "head_size": 128, "dtype": torch.bfloat16}
    specs = {
        f"layers.{layer}": SlidingWindowSpec(**common, sliding_window=1024)
        if layer < windowed
        else FullAttentionSpec(**common)
        for layer in range(layers)
    }
    groups = kv_cache_utils.get_kv_cache_groups(config, specs)
    theirs = kv_cache_utils._max_memory_usage_bytes_from_groups(config, groups)
    ours = needs(sizes(layers, windowed), length, STEP, 16, 2, tp, pp).request * pp  # the sum over all stages
    assert ours == pytest.approx(theirs, rel=0.03)  # blocks have 16 tokens, and there is one more of each kind
    if not windowed:
        assert ours == theirs


def test_scoring_has_the_longest_request_and_three_steps() -> None:
    found = needs(sizes(62, 52), 1024, STEP, 16, 2, 1, 1)
    assert found.scoring - found.request == 3 * STEP * 70 * 2 * 16 * 128 * 2  # eight of these layers are padding


def test_stages_share_the_layers() -> None:
    whole, half = (needs(sizes(32, 0), 1024, STEP, 16, 2, 1, pipeline) for pipeline in (1, 2))
    assert (whole.request, whole.scoring) == (2 * half.request, 2 * half.scoring)


def test_the_widest_step_counts() -> None:
    wide = ModelSizes(131_072, 1, 1, step_values_per_token=6 * 8192 + 3 * 28_672, vocabulary=128)
    assert needs(wide, 1024, 65_536, 16, 2, 1, 1).step == 65_536 * 2 * (6 * 8192 + 3 * 28_672)
