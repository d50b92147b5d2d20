"""The command line scores and exports the language models of a pair of wrappers, or refuses them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.command_line import Result
from tests.support.wrapped import PROCESSOR, write_wrapped


@pytest.fixture(scope="module")
def wrappers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("wrappers")
    return write_wrapped(root / "base", "gemma3", 0), write_wrapped(root / "aligned", "gemma3", 1)


def unknown(source: Path, target: Path) -> Path:
    """Write a wrapper that nobody knows, with a few tensors of another one."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"architectures": ["NonesuchForConditionalGeneration"]}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    whole = load_file(source / "model.safetensors")
    save_file({name: whole[name] for name in list(whole)[:3]}, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_an_export_has_every_tensor_interpolated_by_the_name_that_the_parents_have(
    lambdasweep: Callable[..., Result], wrappers: tuple[Path, Path], tmp_path: Path
) -> None:
    parents = ["--base", wrappers[0], "--aligned", wrappers[1], "--lam", "0.35"]
    assert lambdasweep("export", *parents, "--out", tmp_path / "out").code == 0
    one, two, made = (load_file(path / "model.safetensors") for path in (*wrappers, tmp_path / "out"))
    assert made.keys() == one.keys()
    assert any(name.startswith("vision_tower.") for name in made)
    assert any(name.startswith("multi_modal_projector.") for name in made)
    assert not any("lm_head" in name for name in made)
    for name, tensor in made.items():
        assert tensor.equal(torch.lerp(one[name].float(), two[name].float(), 0.35).to(one[name].dtype)), name
    assert (tmp_path / "out/preprocessor_config.json").read_text() == PROCESSOR
    assert (tmp_path / "out/config.json").read_bytes() == (wrappers[1] / "config.json").read_bytes()


def test_a_plan_counts_the_language_model_alone(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    wrappers: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = load_file(wrappers[0] / "model.safetensors")
    text = [tensor for name, tensor in whole.items() if name.startswith("language_model.")]
    size = f"{sum(tensor.nbytes for tensor in text) / 1e3:.0f} kB each"
    said = f"{len(text)} tensors of the language model, which is what is scored ({len(whole)} in all), {size}"
    wanted = flags(base=wrappers[0], aligned=wrappers[1])
    result = lambdasweep("plan", *wanted)
    assert (result.code, said in result.out) == (0, True), result
    assert "requests up to 512 tokens" in result.out
    monkeypatch.setattr("lambdasweep.plan.find_spec", lambda name: None)
    result = lambdasweep("plan", *wanted)
    assert (result.code, said in result.out) == (0, True), result


@pytest.mark.parametrize("headers_only", [False, True])
def test_a_wrapper_that_is_not_known_is_refused_with_one_sentence(
    refused: Callable[..., Result],
    wrappers: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    headers_only: bool,
) -> None:
    if headers_only:
        monkeypatch.setattr("lambdasweep.plan.find_spec", lambda name: None)
    base, aligned = (unknown(path, tmp_path / role) for path, role in zip(wrappers, ("base", "aligned"), strict=True))
    (problem,) = refused(base=base, aligned=aligned).problems
    assert problem.startswith(f"{base} cannot be scored: NonesuchForConditionalGeneration wraps a language model")


def test_a_server_refuses_it_too_and_an_export_takes_it(
    lambdasweep: Callable[..., Result], wrappers: tuple[Path, Path], tmp_path: Path
) -> None:
    base, aligned = (unknown(path, tmp_path / role) for path, role in zip(wrappers, ("base", "aligned"), strict=True))
    parents: list[Any] = ["--base", base, "--aligned", aligned, "--lam", "0.35"]
    result = lambdasweep("serve", *parents)
    assert result.code == 2
    assert "cannot be scored: NonesuchForConditionalGeneration" in result.err
    assert lambdasweep("export", *parents, "--out", tmp_path / "out").code == 0
    assert len(load_file(tmp_path / "out/model.safetensors")) == 3
