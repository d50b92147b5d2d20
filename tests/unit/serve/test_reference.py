"""What vLLM's own load of a parent says is remembered, for that very checkpoint and kind of engine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merge.checkpoint import open_checkpoint
from serve import reference
from tests.support.checkpoints import write_checkpoint


def test_another_config_or_engine_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[Any] = []

    def ask(arguments: dict[str, Any], checkpoint: Path) -> tuple[float, ...]:
        asked.append((arguments, json.loads((checkpoint / "config.json").read_text())))
        return (float(len(asked)),)

    monkeypatch.setattr(reference, "_ask", ask)
    first = write_checkpoint(tmp_path / "first", seed=0)

    def answer(path: Path, **arguments: Any) -> tuple[float, ...]:
        return tuple(
            reference._reference({"dtype": "float32"} | arguments, open_checkpoint(str(path), "x"), path, "cpu")
        )

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
