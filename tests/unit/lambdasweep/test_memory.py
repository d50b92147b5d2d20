"""The parents of large models go where the table of docs/clusters.md says, by arithmetic over headers alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contract.errors import InputError
from lambdasweep.cli import app
from lambdasweep.config import load_config
from lambdasweep.engine_defaults import cache_warnings, fit, settle
from lambdasweep.memory import Memory, placed
from lambdasweep.plan import _describe_pair
from merge.checkpoint import open_checkpoint
from merge.line import STRAIGHT
from merge.pair import Pair, put_together
from serve.machine import Gpus, gpu_count, smallest_gpu
from serve.settings import EngineSettings
from serve.switch.tiers import Room
from tests.support.paths import ROOT
from tests.support.shapes import GEMMA_27B, LLAMA_8B, LLAMA_70B, QWEN_30B_A3B, write_adapter_shape, write_shape

# This is an H100 of 80 GB, of which CUDA takes 0.6 GB as it starts, in a machine with memory for everything.
H100: dict[str, Any] = {"device_total": 85_000_000_000, "device_free": 84_400_000_000, "utilization": 0.92}
GPUS = Gpus(8, H100["device_total"])  # of a node
HOST = 2_000_000_000_000
FLAGS: dict[str, Any] = {"base": "base", "aligned": "aligned", "lambdas": "0,1", "out": "run"}
SHAPES = {
    "Llama-3.1 8B": LLAMA_8B,
    "Llama-3.1 70B": LLAMA_70B,
    "Gemma-3 27B": GEMMA_27B,
    "Qwen3 30B-A3B": QWEN_30B_A3B,
}
LONGEST = 4096
# Each row has the model, the number of aligned checkpoints, ranks, and tokens of the longest request (None: not known).
ROWS: list[tuple[str, int, int, int | None]] = [
    ("Llama-3.1 8B", 1, 1, LONGEST),
    ("Llama-3.1 8B", 2, 1, LONGEST),
    ("Llama-3.1 8B", 1, 1, None),
    ("Llama-3.1 70B", 1, 8, LONGEST),
    ("Llama-3.1 70B", 1, 4, LONGEST),
    ("Gemma-3 27B", 1, 1, LONGEST),
    ("Gemma-3 27B", 1, 4, LONGEST),
    ("Qwen3 30B-A3B", 1, 1, LONGEST),
    ("Qwen3 30B-A3B", 1, 4, LONGEST),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Pair]:
    """Return pairs of these shapes, by the model's name and the number of aligned checkpoints."""
    folder = tmp_path_factory.mktemp("shapes")
    found = {}
    for number, (name, config) in enumerate(SHAPES.items()):
        one = open_checkpoint(str(write_shape(folder / str(number), config)), "base")
        for count in {count for called, count, _, _ in ROWS if called == name}:
            names = ["aligned"] if count == 1 else [f"aligned.{letter}" for letter in "ab"]
            found[name, count] = put_together({"base": one} | dict.fromkeys(names, one), STRAIGHT)
    return found


def settings_of(pair: Pair, tp: int, longest: int | None, **asked: Any) -> EngineSettings:
    config = load_config(FLAGS | {"tp": tp} | asked, [f"t={ROOT}"], [], [], None)
    settings = settle(config, pair, "cuda", None)
    return settings if longest is None else fit(settings, config, pair, None, longest, False, GPUS)


def memory(pair: Pair, tp: int, longest: int | None) -> Memory:
    return placed(pair, settings_of(pair, tp, longest), "auto", Room(HOST, HOST, tp, **H100))


def row(name: str, count: int, tp: int, longest: int | None, found: Memory) -> str:
    def gb(value: float) -> str:
        return f"{value / 1e9:.1f}"

    room = found.room
    called = name + (f", {count} aligned" if count > 1 else "") + ("" if longest else ", its whole window")
    kept = " | ".join(map(gb, (room.kept_for_cache, room.kept_for_steps, room.kept_unused)))
    host = gb(found.host) if found.host else "–"
    weights = f"{gb(found.live)} | {gb(found.parents)}"
    return f"| {called} | {tp} | {weights} | {kept} | {found.tier} | {gb(found.device)} | {host} |"


@pytest.mark.slow
def test_the_table_in_the_documents_is_what_the_code_computes(pairs: dict[tuple[str, int], Pair]) -> None:
    rows = [row(*asked, memory(pairs[asked[:2]], *asked[2:])) for asked in ROWS]
    assert "\n".join(rows) in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8"), "\n".join(["", *rows])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # their model cards count parameters so
        ("Llama-3.1 8B", 8_030_261_248),
        ("Llama-3.1 70B", 70_553_706_496),
        ("Qwen3 30B-A3B", 30_532_122_624),
    ],
)
def test_shapes_have_the_parameters_of_the_real_models(
    pairs: dict[tuple[str, int], Pair], name: str, parameters: int
) -> None:
    pair = pairs[name, 1]
    assert sum(math.prod(info.shape) for info in pair.base.tensors.values()) == parameters
    found = memory(pair, 1, LONGEST)
    assert (found.live, found.parents) == (2 * parameters, 4 * parameters)


def test_what_does_not_fit_is_said(pairs: dict[tuple[str, int], Pair]) -> None:
    assert "which may not fit: give more ranks" in memory(pairs["Llama-3.1 70B", 1], 1, LONGEST).each
    assert "may not fit" not in memory(pairs["Llama-3.1 70B", 1], 4, LONGEST).each


@pytest.mark.parametrize(
    ("name", "asked", "gpus", "ranks"),
    [  # bytes of the weights in bf16, a rank, and what is kept free beside them, are those of docs/clusters.md
        ("Llama-3.1 8B", {}, GPUS, 1),
        ("Llama-3.1 70B", {}, GPUS, 4),  # two ranks of 70.6 GB leave less than 16.6 GB
        ("Gemma-3 27B", {}, GPUS, 1),
        ("Qwen3 30B-A3B", {}, GPUS, 1),
        ("Llama-3.1 70B", {"tp": 8}, GPUS, 8),
        ("Llama-3.1 70B", {"tp": "auto"}, GPUS, 4),
        ("Llama-3.1 70B", {"tp": 1}, GPUS, 1),
        ("Llama-3.1 70B", {"pp": 2}, GPUS, 2),  # of each of two stages
        ("Llama-3.1 70B", {}, Gpus(8, 151_000_000_000), 2),
        ("Llama-3.1 70B", {}, Gpus(8, 25_400_000_000), 8),  # they do not hold it, which `plan` says
        ("Llama-3.1 70B", {}, Gpus(7, 25_400_000_000), 4),  # 64 heads, of which 8 of keys and values
        ("Qwen3 30B-A3B", {}, Gpus(8, 20_000_000_000), 8),  # two ranks share a head of keys and values
        ("Llama-3.1 70B", {}, None, 1),
    ],
)
def test_engines_have_the_fewest_ranks_that_hold_the_model(
    pairs: dict[tuple[str, int], Pair], name: str, asked: dict[str, Any], gpus: Gpus | None, ranks: int
) -> None:
    pair = pairs[name, 1]
    config = load_config(FLAGS | asked, [f"t={ROOT}"], [], [], None)
    settings = fit(settle(config, pair, "cuda", None), config, pair, None, LONGEST, False, gpus)
    assert settings.tensor_parallel == ranks
    if gpus == GPUS and "tp" not in asked:
        found = placed(pair, settings, "auto", Room(HOST, HOST, settings.ranks, **H100))
        assert found.device <= H100["device_free"]


@pytest.mark.parametrize(
    ("written", "flag", "tp"),
    [
        ("4", None, 4),
        ('"auto"', None, None),
        ("4", "auto", None),
        ('"auto"', 2, 2),
        (None, "auto", None),
        (None, None, None),
    ],
)
def test_a_flag_wins_over_a_file_and_auto_is_the_default(
    tmp_path: Path, written: str | None, flag: int | str | None, tp: int | None
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f"tp = {written}\n" if written else "")
    assert load_config(FLAGS | {"tp": flag}, [f"t={ROOT}"], [], [], file).tp == tp


def test_what_is_neither_a_number_nor_auto_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text('tp = "all"\n')
    with pytest.raises(InputError) as refused:
        load_config(FLAGS, [f"t={ROOT}"], [], [], file)
    assert refused.value.problems == (f"{file}: tp is 'all': give a whole number or auto",)
    result = CliRunner().invoke(app, ["plan", "--tp", "all"])
    assert (
        result.exit_code,
        "Invalid value for '--tp': 'all' is neither a whole number nor auto." in result.output,
    ) == (2, True)


def test_a_begun_run_keeps_its_ranks(pairs: dict[tuple[str, int], Pair]) -> None:
    pair = pairs["Llama-3.1 70B", 1]
    config = load_config(FLAGS, [f"t={ROOT}"], [], [], None)
    recorded = settings_of(pair, 8, LONGEST).to_json()
    settings = fit(settle(config, pair, "cuda", recorded), config, pair, recorded, LONGEST, False, GPUS)
    assert settings.to_json() == recorded


@pytest.mark.parametrize(("visible", "count"), [(None, 3), ("0,2", 2), ("", 0), ("0,1,2,3,4", 3)])
def test_gpus_that_a_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    monkeypatch.setattr("serve.machine._GPUS", tmp_path)
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_a_request_of_the_whole_window_has_room_and_so_do_the_logits_of_a_step(
    pairs: dict[tuple[str, int], Pair],
) -> None:
    pair = pairs["Llama-3.1 8B", 1]
    window, short = memory(pair, 1, None).room, memory(pair, 1, LONGEST).room
    assert window.kv_cache_bytes is None
    # These are tokens, times the bytes a token: 2 × 32 layers × 8 heads × 128 × 2.
    assert window.kept_for_cache == 131_072 * 131_072
    assert short.kept_for_cache < window.kept_for_cache
    # A step makes the logits of 1,024 requests over 262,208 words in float32 four times, and three passes over 512 MiB of
    # them.
    assert memory(pairs["Gemma-3 27B", 1], 1, LONGEST).room.kept_for_steps == 4 * 1024 * 262_208 * 4 + 3 * (512 << 20)


@pytest.mark.parametrize(
    ("samples", "asked", "recorded", "cache"),
    [
        (False, {}, None, (1024 + 3 * 8192) * 131_072),
        (True, {}, None, None),  # vLLM takes what is free
        (True, {}, 5, 5),  # a run goes on as it began
        (False, {}, 5, 5),
        (False, {"engine": ["kv_cache_memory_bytes=7"]}, 5, 7),
        (True, {"engine": ["kv_cache_memory_bytes=5"]}, 5, 5),
        (True, {"engine": ["kv_cache_memory_bytes=7"]}, None, 7),
        (False, {"max_model_len": 2048}, None, (2048 + 3 * 8192) * 131_072),
    ],
)
def test_the_kv_cache_of_a_sweep_that_only_scores_is_settled(
    pairs: dict[tuple[str, int], Pair], samples: bool, asked: dict[str, Any], recorded: int | None, cache: int | None
) -> None:
    pair = pairs["Llama-3.1 8B", 1]
    asked, engine = dict(asked), list(asked.get("engine", []))
    asked.pop("engine", None)
    config = load_config(FLAGS | asked, [f"t={ROOT}"], [], engine, None)
    eager = {"extra": {"enforce_eager": True}}
    before = {"max_model_len": 1024, "kv_cache_bytes": recorded, **eager} if recorded else None
    settings = settle(config, pair, "cuda", before, samples)
    settings = fit(settings, config, pair, before, 9, samples, GPUS)
    assert settings.kv_cache_bytes == cache
    # A cache that was enough for scoring makes sampling slower.
    is_warned = samples and recorded is not None and not engine
    assert bool(cache_warnings(settings, config, before, samples)) == is_warned
    assert settings.extra["enforce_eager"] == (not samples or recorded is not None)


@pytest.mark.parametrize(
    ("tp", "device_total", "cache"),
    [
        # These are tokens, times the bytes a token: 2 × 32 layers × 32 heads × 128 × 2.
        (1, 85_000_000_000, (1024 + 3 * 8192) * 2**19),
        (1, 25_400_000_000, None),  # 13.5 GB of weights and 13.4 GB of keys and values are more than a GPU of 24 GB has
        (2, 25_400_000_000, (1024 + 3 * 8192) * 2**18),
        (1, None, None),
    ],
)
def test_a_kv_cache_that_may_not_fit_is_left_to_vllm(
    tmp_path: Path, tp: int, device_total: int | None, cache: int | None
) -> None:
    shape = LLAMA_8B | {"num_key_value_heads": 32, "intermediate_size": 11_008, "vocab_size": 32_000}  # Llama-2 7B
    one = open_checkpoint(str(write_shape(tmp_path / "model", shape)), "base")
    pair = put_together({"base": one, "aligned": one}, STRAIGHT)
    config = load_config(FLAGS | {"tp": tp}, [f"t={ROOT}"], [], [], None)
    gpus = None if device_total is None else Gpus(8, device_total)
    settings = fit(settle(config, pair, "cuda", None), config, pair, None, 9, False, gpus)
    assert settings.kv_cache_bytes == cache


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("81559, Disabled\n24564, [N/A]\n", 24564 << 20),
        ("81559, Disabled\n81559, Enabled\n", None),  # MIG's parts have less
        ("[N/A], [N/A]\n", None),  # this GPU shares its memory with the host
        ("", None),
    ],
)
def test_the_smallest_gpu_counts(said: str, found: int | None) -> None:
    assert smallest_gpu(said) == found


def test_a_rank_holds_whole_heads(pairs: dict[tuple[str, int], Pair]) -> None:
    pair = pairs["Qwen3 30B-A3B", 1]  # it has four heads of keys and values
    caches = {tp: settings_of(pair, tp, LONGEST).kv_cache_bytes or 0 for tp in (1, 2, 4, 8)}
    assert [caches[1] // caches[tp] for tp in (1, 2, 4, 8)] == [1, 2, 4, 4]


def test_a_cache_that_the_config_does_not_tell_of_is_left_to_vllm(pairs: dict[tuple[str, int], Pair]) -> None:
    pair = pairs["Llama-3.1 8B", 1]
    for key in ("kv_lora_rank", "mamba_d_state"):
        base = replace(pair.base, config=pair.base.config | {"model_type": "nonesuch", key: 512})
        other = replace(pair, base=base, aligned_by_name={"": base})
        assert settings_of(other, 1, LONGEST).kv_cache_bytes is None
        assert memory(other, 1, LONGEST).room.kept_for_cache == 8_500_000_000


def test_a_rank_holds_one_parent_and_the_factors_of_an_adapter(
    pairs: dict[tuple[str, int], Pair], tmp_path: Path
) -> None:
    two = pairs["Llama-3.1 70B", 1]
    adapter = open_checkpoint(str(write_adapter_shape(tmp_path / "adapter", LLAMA_70B, 16)), "aligned")
    adapted = put_together({"base": two.base, "aligned": adapter}, STRAIGHT)
    hidden, inner, keys = 8192, 28672, 1024
    # Of q, k, v, o, gate, up and down: the numbers on both sides of a matrix, 16 times.
    sides = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner)
    factors = 2 * 16 * 80 * sides
    found = memory(adapted, 4, LONGEST)
    assert found.parents == two.base.nbytes // 4 + factors
    assert memory(two, 4, LONGEST).parents == 2 * (two.base.nbytes // 4)
    # The factors are in GPU memory wherever base is.
    settings, room = settings_of(adapted, 8, LONGEST), Room(HOST, HOST, 8, **H100)
    tiers = {asked: placed(adapted, settings, asked, room) for asked in ("device", "pinned", "mmap", "reload")}
    plain = {asked: placed(two, settings, asked, room) for asked in tiers}
    base = two.base.nbytes // 8
    assert {asked: found.device - plain[asked].device for asked, found in tiers.items()} == {
        "device": factors - base,  # instead of a whole parent
        "pinned": factors,
        "mmap": factors,
        "reload": 0,
    }
    assert {asked: found.host for asked, found in tiers.items()} == {
        "device": 0,
        "pinned": 8 * base,
        "mmap": 0,
        "reload": 0,
    }
    assert f" a rank and {factors / 1e6:.2f} MB of factors in GPU memory beside " in tiers["pinned"].each
    several = put_together({"base": two.base, "aligned.a": adapter, "aligned.b": adapter}, STRAIGHT)
    assert memory(several, 4, LONGEST).parents == two.base.nbytes // 4 + 2 * factors
    assert _describe_pair(adapted, 4).endswith(
        f"base and the factors of 1 adapter per rank: {found.parents / 1e9:.2f} GB"
    )


def test_factors_that_do_not_fit_beside_the_weights_ask_for_more_ranks(
    pairs: dict[tuple[str, int], Pair], tmp_path: Path
) -> None:
    """A rank of four has 35.3 of 84.4 GB for its weights, keeps 16.6 GB free, and has 32.5 GB left for factors."""
    two = pairs["Llama-3.1 70B", 1]
    config = load_config(FLAGS, [f"t={ROOT}"], [], [], None)
    for rank, ranks, fits in ((64, 4, True), (1536, 8, True), (4096, 8, False)):
        adapter = open_checkpoint(str(write_adapter_shape(tmp_path / str(rank), LLAMA_70B, rank)), "aligned")
        adapted = put_together({"base": two.base, "aligned": adapter}, STRAIGHT)
        settings = fit(settle(config, adapted, "cuda", None), config, adapted, None, LONGEST, False, GPUS)
        found = placed(adapted, settings, "mmap", Room(HOST, HOST, settings.ranks, **H100))
        assert (rank, settings.tensor_parallel, "may not fit" not in found.each) == (rank, ranks, fits)
        assert (settings.kv_cache_bytes is not None) == fits
