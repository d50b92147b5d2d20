"""What vLLM's own load of a parent says is remembered, for that very checkpoint and kind of engine."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract.errors import EngineError
from serve import reference
from serve.reference import References
from serve.verify import Way
from tests.support.checkpoints import write_checkpoint

Asked = list[tuple[dict[str, Any], Path, dict[str, str]]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return what is asked of fresh engines; the n-th one answers n."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: Asked = []

    def ask(arguments: dict[str, Any], checkpoint: Path, environment: dict[str, str]) -> tuple[float, ...]:
        found.append((arguments, checkpoint, environment))
        return (float(len(found)),)

    monkeypatch.setattr(reference, "_ask", ask)
    return found


def references(path: Path, **arguments: Any) -> References:
    return References({"dtype": "float32"} | arguments, Way("0", {"1": path}, "0.35"), "cpu")


def answer(path: Path, **arguments: Any) -> tuple[float, ...]:
    return references(path, **arguments).said["1"]


def test_another_config_or_engine_is_asked_anew(tmp_path: Path, asked: Asked) -> None:
    first = write_checkpoint(tmp_path / "first", seed=0)
    assert answer(first) == (1.0,)
    assert answer(first) == (1.0,)
    moved = Path(shutil.copytree(first, tmp_path / "moved"))
    assert answer(moved) == (1.0,)  # the same weights elsewhere
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"q_lora_rank": None}))  # absent, it has its class's default
    assert answer(moved) == (2.0,)
    (moved / "generation_config.json").write_text('{"attn_temperature_tuning": false}')  # which Llama-4 reads
    assert answer(moved) == (3.0,)
    assert answer(moved, dtype="bfloat16") == (4.0,)
    assert answer(first) == (1.0,)


def test_another_number_of_threads_is_asked_anew(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel adds in an order that follows from how many threads there are, and not from which cores they are on."""
    path = write_checkpoint(tmp_path / "one", seed=0)
    bound = "VLLM_CPU_OMP_THREADS_BIND"

    def cores(count: int) -> Callable[[int], set[int]]:
        return lambda process: set(range(count))

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", cores(4))
    changes: list[tuple[str, str | int]] = [
        (bound, "0,1"),
        (bound, "2-3"),  # as many
        (bound, "0"),
        (bound, "0|1"),  # a rank more
        (bound, "auto"),
        ("cores", 3),
        (bound, "nobind"),
        ("OMP_NUM_THREADS", "2"),
        ("OMP_NUM_THREADS", "3"),
        ("VLLM_CPU_ATTN_SPLIT_KV", "0"),
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
        ("VLLM_LOGGING_LEVEL", "INFO"),  # this is of no consequence
    ]
    said = []
    for name, value in changes:
        if isinstance(value, int):
            monkeypatch.setattr(os, "sched_getaffinity", cores(value))
        else:
            monkeypatch.setenv(name, value)
        said += answer(path)
    assert said == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]


def test_nobody_is_asked_of_an_adapter_which_vllm_loads_as_no_checkpoint(tmp_path: Path, asked: Asked) -> None:
    path = write_checkpoint(tmp_path / "one", seed=0)
    save_file({"x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    found = References({}, Way("0", {"dpo=1,sft=0": tmp_path, "dpo=0,sft=1": path}, "dpo=0.35,sft=0.35"), "cpu")
    assert found.said == {"dpo=0,sft=1": (1.0,)}


def test_only_what_an_earlier_start_has_left_behind_counts_as_remembered(tmp_path: Path, asked: Asked) -> None:
    path = write_checkpoint(tmp_path / "one", seed=0)
    first, second = references(path), references(path)
    assert (first.said, first.remembered) == ({"1": (1.0,)}, set())
    assert (second.said, second.remembered) == ({"1": (1.0,)}, {"1"})


def test_what_is_asked_afresh_takes_the_place_of_what_was_remembered(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "one", seed=0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    answer(path)
    doubted = references(path)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # an engine that runs in this process sets what it likes
    assert doubted.afresh("1") == (2.0,)
    arguments, checkpoint, environment = asked[-1]
    assert (arguments, checkpoint, environment["OMP_NUM_THREADS"]) == ({"dtype": "float32"}, path, "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert answer(path) == (2.0,)


def test_what_is_in_doubt_is_forgotten_where_no_fresh_engine_starts(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no memory for it beside the engine in question, and the next start asks before its own engine."""
    path = write_checkpoint(tmp_path / "one", seed=0)
    answer(path)
    doubted = references(path)
    with monkeypatch.context() as context:

        def fails(*_: Any) -> None:
            raise EngineError("no memory")

        context.setattr(reference, "_ask", fails)
        with pytest.raises(EngineError, match="no memory"):
            doubted.afresh("1")
    assert (references(path).said, references(path).remembered) == ({"1": (2.0,)}, {"1"})


def test_an_answer_of_weights_that_are_no_numbers_is_not_remembered(tmp_path: Path, asked: Asked) -> None:
    path = write_checkpoint(tmp_path / "one", seed=0)
    weights = load_file(path / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    assert [answer(path), answer(path)] == [(1.0,), (2.0,)]
    assert references(path).remembered == set()
