"""A sweep is prepared from the same bytes that were checked."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdasweep import demo
from lambdasweep.config import load_config
from lambdasweep.engine_defaults import fit, rope_warnings, settle
from lambdasweep.prepare import prepare
from merge.checkpoint import Checkpoint
from merge.pair import Pair
from serve.settings import EngineSettings


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, prompts = tmp_path / "tasks.jsonl", tmp_path / "prompts.jsonl"
    tasks.write_text(json.dumps({"query": "Which?", "choices": ["iron", "oxygen"], "gold": 0}) + "\n")
    prompts.write_text(json.dumps({"prompt": "Say"}) + "\n")
    checked = {path: path.read_bytes() for path in (tasks, prompts)}
    reads: Counter[Path] = Counter()
    read_bytes = Path.read_bytes

    def changing(path: Path) -> bytes:
        """Read a file, which another process changes as soon as it was read."""
        data = read_bytes(path)
        if path in checked:
            reads[path] += 1
            path.write_text("this is not JSON\n")
        return data

    monkeypatch.setattr(Path, "read_bytes", changing)
    flags = {"base": str(demo.BASE), "aligned": str(demo.ALIGNED), "lambdas": "0,1", "out": str(tmp_path / "run")}
    prepared = prepare(load_config(flags, [f"quiz={tasks}"], [f"stories={prompts}"], [], None))
    assert reads == {tasks: 1, prompts: 1}
    assert prepared.tasks["quiz"].built.sha256 == hashlib.sha256(checked[tasks]).hexdigest()
    assert prepared.prompts["stories"].built.sha256 == hashlib.sha256(checked[prompts]).hexdigest()
    assert prepared.tasks["quiz"].built.documents == 1


def settings_of(
    tmp_path: Path, config: dict[str, object], device: str, longest: int | None, **asked: Any
) -> EngineSettings:
    """Settle the engine's settings over a pair of these sizes."""
    recorded = asked.pop("recorded", None)
    flags = {"base": "base", "aligned": "aligned", "lambdas": "0,1", "out": str(tmp_path / "run"), **asked}
    wanted = load_config(flags, [f"t={demo.BASE}"], [], [], None)
    parent = Checkpoint("base", tmp_path, None, {"model_type": "nonesuch", **config}, {})
    pair = Pair(parent, {"": parent}, ())
    settings = settle(replace(wanted, dtype="float32"), pair, device, recorded)
    return settings if longest is None else fit(settings, wanted, pair, recorded, longest)


@pytest.mark.parametrize(
    ("device", "asked", "recorded", "longest", "length"),
    [
        ("cuda", None, None, None, 131072),  # nothing is known about the requests
        ("cpu", None, None, None, 8192),
        ("cuda", None, None, 9, 1024),
        ("cuda", None, None, 1024, 1024),
        ("cuda", None, None, 1025, 2048),
        ("cuda", None, None, 100_000, 131072),
        ("cuda", None, None, 200_000, 131072),  # that request is quarantined
        ("cpu", None, None, 5000, 8192),
        ("cpu", None, None, 9000, 8192),
        ("cuda", 300, None, 9, 300),
        ("cuda", 100_000, None, 9, 100_000),
        ("cuda", None, 2048, 9, 2048),  # a run keeps the length that it began with,
        ("cuda", None, 2048, 2049, 4096),  # and where that is too short it is another run
        ("cuda", None, 777, 777, 777),
    ],
)
def test_engines_take_requests_as_long_as_the_longest(
    tmp_path: Path, device: str, asked: int | None, recorded: int | None, longest: int | None, length: int
) -> None:
    given = {"max_model_len": asked} if asked else {}
    before = {"max_model_len": recorded} if recorded else None
    config = {"max_position_embeddings": 131072}
    assert settings_of(tmp_path, config, device, longest, recorded=before, **given).max_model_len == length


@pytest.mark.parametrize(
    ("longest", "asked", "length", "warns"),
    [
        (9, None, 600, False),
        (600, None, 600, False),
        (601, None, 1024, True),
        (9, 700, 700, True),
        (9, 500, 500, False),
    ],
)
def test_short_requests_keep_the_short_rotary_factors(
    tmp_path: Path, longest: int, asked: int | None, length: int, warns: bool
) -> None:
    rope = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    config = {"max_position_embeddings": 131072, "original_max_position_embeddings": 600, "rope_scaling": rope}
    given = {"max_model_len": asked} if asked else {}
    settings = settings_of(tmp_path, config, "cuda", longest, **given)
    assert settings.max_model_len == length
    parent = Checkpoint("base", tmp_path, None, {"model_type": "nonesuch", **config}, {})
    told = rope_warnings(settings, Pair(parent, {"": parent}, ()))
    assert [f"--max-model-len {600}" in text for text in told] == [True] * warns


def test_the_kv_cache_on_a_cpu_is_of_the_length_that_is_used(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 80, "num_attention_heads": 64, "hidden_size": 8192, "max_position_embeddings": 8192}
    each = 2 * 80 * 8192 * 4
    whole, short = (settings_of(tmp_path, sizes, "cpu", longest).kv_cache_bytes for longest in (None, 9))
    assert (whole, short) == (2 * 8192 * each, 2 * 1024 * each)


def test_a_sample_counts_with_its_prompt(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Say"}) + "\n")
    parents = []
    for name, parent in (("base", demo.BASE), ("aligned", demo.ALIGNED)):
        copy = Path(shutil.copytree(parent, tmp_path / name))
        config = json.loads((copy / "config.json").read_text()) | {"max_position_embeddings": 8192}
        (copy / "config.json").write_text(json.dumps(config))
        parents.append(str(copy))
    flags = {"base": parents[0], "aligned": parents[1], "lambdas": "0,1", "out": str(tmp_path / "run")}
    lengths = {}
    for most in (64, 1024):
        config = load_config(flags | {"max_tokens": most}, [], [f"stories={prompts}"], [], None)
        lengths[most] = prepare(config).settings.max_model_len
    assert lengths == {64: 1024, 1024: 2048}
