"""`export` and `serve` take a point of a run, or of a pair."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import (
    Result,
)


def test_export_writes_a_point(lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    parents = ["--base", pair[0], "--aligned", pair[1]]
    result = lambdasweep("export", *parents, "--lam", "-0.50", "--out", tmp_path / "out", "--max-shard-size", "100KB")
    assert (result.code, result.err) == (0, "")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert re.fullmatch(rf"θ\(-0\.5\): {written / 1e3:.0f} kB in \d+\.\d s in {tmp_path / 'out'}\n", result.out)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    again = lambdasweep("export", *parents, "--lam", "0", "--out", tmp_path / "out")
    assert (again.code, again.problems) == (2, [f"{tmp_path / 'out'} exists: give another --out, or remove it"])
    missing = lambdasweep("export", *parents[:2], "--out", tmp_path / "other")
    assert (missing.code, missing.problems) == (2, ["--aligned is missing", "--lam is missing"])
    assert not (tmp_path / "other").exists()


def test_what_follows_the_dashes_is_for_vllm(
    lambdasweep: Callable[..., Result], pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("serve.http.server.serve", served.append)
    flags = ["--port", "8001", "--", "--lam"]
    result = lambdasweep("serve", "--base", pair[0], "--aligned", pair[1], "--lam", "0.620", "--", *flags)
    assert (result.code, result.err) == (0, "")
    (serving,) = served
    assert (serving.lam, serving.parents, serving.name) == ("0.62", "auto", "aligned-lambda")
    assert serving.flags == tuple(flags)
    assert (serving.base, serving.aligned) == (pair[0], {"": pair[1]})
    assert serving.defaults["max_model_len"] == 512
    assert serving.defaults["dtype"] == "float32"


def test_serve_wants_a_point(lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert lambdasweep("serve", "--", "--port", "8001").problems == [
        "--base is missing",
        "--aligned is missing",
        "--lam is missing",
    ]
    assert lambdasweep("serve", tmp_path / "gone").code == 2
    parents = ["--base", pair[0], "--aligned", pair[1], "--lam", "0.5"]
    (problem,) = lambdasweep("serve", *parents, "--parents", "ram").problems
    assert problem == "--parents ram is unknown: give auto, device, pinned, mmap, reload"
