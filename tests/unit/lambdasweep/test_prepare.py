"""What is prepared for a sweep is what was checked."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from lambdasweep import demo
from lambdasweep.config import load_config
from lambdasweep.prepare import prepare


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
