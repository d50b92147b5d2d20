"""Checkpoints are taken or refused as they lie around: damaged indices, stale buffers, the hub's cache, quantised ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract.errors import PairError
from merge.checkpoint import INDEX, SINGLE, open_checkpoint
from merge.export import ExportPlan, export
from merge.fingerprints import fingerprint
from merge.interpolate import interpolated_tensors
from merge.pair import Pair, open_pair
from merge.quantised import KINDS
from tests.support.exported import bits
from tests.support.weights import CONFIG, Tensors, tensors, write

BUFFERS: Tensors = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
    "transformer.h.0.attn.bias": torch.tril(torch.ones(1, 1, 4, 4, dtype=torch.bool)),
    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
    "transformer.h.0.attn.masked_bias": torch.tensor(float("-inf"), dtype=torch.float16),
    "bert.embeddings.position_ids": torch.arange(4)[None],
}


def opened(base: Path, aligned: Path) -> Pair:
    return open_pair(str(base), str(aligned))


def problems_of(base: Path, aligned: Path) -> list[str]:
    with pytest.raises(PairError) as raised:
        opened(base, aligned)
    return list(raised.value.problems)


def exported(pair: Pair, lam: str, out: Path) -> Tensors:
    export(ExportPlan(pair, {"base": "", "aligned": ""}, lam, "base", out, 10**9), "", 1, print)
    return load_file(out / SINGLE)


def test_an_index_that_names_a_tensor_which_no_file_has_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "base", tensors(), shards=2)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.gone"] = "model-00001-of-00002.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    (problem,) = problems_of(directory, write(tmp_path / "aligned", tensors(1)))
    assert problem.endswith(f"{INDEX} names tensors that no file has: model.gone; copy the checkpoint again")


@pytest.mark.parametrize("roles", [("base",), ("aligned",), ("base", "aligned")])
def test_buffers_that_no_model_reads_are_left_out(tmp_path: Path, roles: tuple[str, ...]) -> None:
    plain = opened(write(tmp_path / "0", tensors()), write(tmp_path / "1", tensors(1)))
    with_buffers = {role: BUFFERS if role in roles else {} for role in ("base", "aligned")}
    directories = [
        write(tmp_path / role, tensors(seed) | buffers) for seed, (role, buffers) in enumerate(with_buffers.items())
    ]
    pair = opened(*directories)
    assert pair.warnings == tuple(
        f"{role}: 5 buffers that no model reads are left out, bert.embeddings.position_ids among them" for role in roles
    )
    found = exported(pair, "0.35", tmp_path / "out")
    assert found.keys() == tensors().keys()
    wanted = dict(interpolated_tensors(plain, "0.35"))
    assert all(bits(found[name]) == bits(wanted[name]) for name in wanted)
    assert fingerprint(pair.opened["base"], "base") == fingerprint(plain.opened["base"], "base")


def test_a_bias_of_attention_is_no_buffer(tmp_path: Path) -> None:
    bias: Tensors = {"h.0.attn.bias": torch.ones(8, dtype=torch.bfloat16)}
    pair = opened(write(tmp_path / "base", tensors() | bias), write(tmp_path / "aligned", tensors(1) | bias))
    assert "h.0.attn.bias" in pair.base.tensors
    assert pair.warnings == ()


def test_the_hub_s_cache_is_read_through_its_links(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", tensors(), shards=3)
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0a1b2c"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(plain.iterdir())):
        shutil.copy(file, cache / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    aligned = write(tmp_path / "aligned", tensors(1))
    linked, direct = opened(snapshot, aligned), opened(plain, aligned)
    assert fingerprint(linked.base, "base") == fingerprint(direct.base, "base")
    found = exported(linked, "0", tmp_path / "out")
    assert all(bits(found[name]) == bits(tensor) for name, tensor in tensors().items())
    assert not (tmp_path / "out" / "config.json").is_symlink()
    problem = problems_of(cache, aligned)[-1]
    assert problem.endswith(f"{cache} is a folder of the hub's cache: give {snapshot}, or the hub id")


def test_a_consolidated_file_beside_shards_is_not_read_and_alone_is_refused(tmp_path: Path) -> None:
    base, aligned = write(tmp_path / "base", tensors(), shards=2), write(tmp_path / "aligned", tensors(1))
    for directory in (base, aligned):
        save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, directory / "consolidated.safetensors")
    assert opened(base, aligned).base.tensors.keys() == tensors().keys()
    (aligned / SINGLE).unlink()
    (problem,) = problems_of(base, aligned)
    assert "has only consolidated.safetensors, whose tensors have other names: give the checkpoint with" in problem


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float16"), ("float16", "bfloat16")])
def test_parents_of_two_dtypes_make_float32(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    one, two = (getattr(torch, dtype) for dtype in dtypes)
    config = CONFIG | {"dtype": dtypes[0]}
    base = write(tmp_path / "base", tensors(0, one), config)
    aligned = write(tmp_path / "aligned", tensors(1, two), CONFIG | {"dtype": dtypes[1]})
    pair = opened(base, aligned)
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    assert pair.warnings == (
        f"13 tensors are {names[dtypes[0]]} in base and {names[dtypes[1]]} in aligned: θ(λ) has them in F32, which holds "
        "the numbers of both exactly",
    )
    for lam in ("0", "1", "0.35"):
        found = exported(pair, lam, tmp_path / lam)
        assert json.loads((tmp_path / lam / "config.json").read_text())["dtype"] == "float32"
        live = dict(interpolated_tensors(pair, lam))
        for name in found:
            start, end = tensors(0, one)[name].float(), tensors(1, two)[name].float()
            wanted = {"0": start, "1": end}.get(lam, torch.lerp(start, end, float(lam)))
            assert found[name].dtype == live[name].dtype == torch.float32
            assert bits(found[name]) == bits(live[name]) == bits(wanted)


def test_more_rows_name_the_flag_that_takes_them(tmp_path: Path) -> None:
    rows = {"model.embed_tokens.weight": torch.zeros(4, 8)}
    more = {"model.embed_tokens.weight": torch.zeros(6, 8)}
    base = write(tmp_path / "base", rows)
    aligned = write(tmp_path / "aligned", more, CONFIG | {"vocab_size": 6})
    assert problems_of(base, aligned) == [
        "config.json: vocab_size is 4 in base and 6 in aligned; --vocab shared takes aligned's",
        "model.embed_tokens.weight is [4, 8] F32 in base and [6, 8] F32 in aligned; --vocab shared takes the rows that base "
        "lacks from aligned",
    ]


# Each kind of quantised checkpoint has a config.json, tensors of one layer, and files beside them, with the names that the
# tools write: AutoGPTQ, AutoAWQ, bitsandbytes, gpt-oss, llm-compressor, DeepSeek, ModelOpt.
CODES = torch.zeros(2, 2, dtype=torch.int32)
FOUND: tuple[tuple[str, dict[str, Any], Tensors, tuple[str, ...]], ...] = (
    ("FP8", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, {}, ()),
    ("FP8", {}, {"l.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(1, 1)}, ()),
    ("FP8", {}, {"l.weight": torch.zeros(2, 2).to(torch.float8_e5m2)}, ()),
    ("ModelOpt", {}, {}, ("hf_quant_config.json",)),
    ("GPTQ", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, {}, ()),
    ("GPTQ", {}, {"l.qweight": CODES, "l.g_idx": torch.zeros(2, dtype=torch.int32)}, ()),
    ("GPTQ", {}, {}, ("quantize_config.json",)),
    ("AWQ", {"quantization_config": {"quant_method": "awq", "bits": 4}}, {}, ()),
    ("AWQ", {}, {"l.qweight": CODES, "l.qzeros": CODES.clone()}, ()),
    ("AWQ", {}, {}, ("quant_config.json",)),
    ("bitsandbytes", {"quantization_config": {"_load_in_4bit": True, "quant_method": "bitsandbytes"}}, {}, ()),
    ("bitsandbytes", {}, {"l.weight": torch.zeros(4, 1, dtype=torch.uint8), "l.weight.absmax": torch.ones(1)}, ()),
    ("bitsandbytes", {}, {"l.weight": torch.zeros(2, 2, dtype=torch.int8), "l.SCB": torch.ones(2)}, ()),
    ("MXFP4", {"quantization_config": {"quant_method": "mxfp4"}}, {}, ()),
    ("MXFP4", {}, {"m.gate_up_proj_blocks": torch.zeros(2, 2, dtype=torch.uint8)}, ()),
    ("compressed-tensors", {"quantization_config": {"quant_method": "compressed-tensors"}}, {}, ()),
    ("compressed-tensors", {"compression_config": {"quant_method": "compressed-tensors"}}, {}, ()),
    ("compressed-tensors", {}, {"l.weight_packed": CODES, "l.weight_shape": torch.zeros(2)}, ()),
    ("bitsandbytes", {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}, {}, ()),
    ("aqlm", {"quantization_config": {"quant_method": "aqlm"}}, {}, ()),
    ("int32 codes", {}, {"l.codes": CODES}, ()),
    ("a method of its own", {"quantization_config": {"bits": 4}}, {}, ()),
)


@pytest.mark.parametrize("role", ["base", "aligned"])
@pytest.mark.parametrize("number", range(len(FOUND)), ids=[f"{number}-{one[0]}" for number, one in enumerate(FOUND)])
def test_a_quantised_parent_is_refused_with_what_to_give(tmp_path: Path, number: int, role: str) -> None:
    method, config, weights, files = FOUND[number]
    directories = {
        name: write(tmp_path / name, tensors() | weights, CONFIG | config)
        if name == role
        else write(tmp_path / name, tensors())
        for name in ("base", "aligned")
    }
    for file in files:
        (directories[role] / file).write_text("{}")
    (problem,) = problems_of(directories["base"], directories["aligned"])
    assert problem.startswith(
        f"the {role} checkpoint {directories[role]} cannot be used: it is quantised with {method} ("
    )
    assert "and there is no line between quantised weights: give " in problem


def test_every_kind_of_quantised_checkpoint_is_met() -> None:
    assert {kind.name for kind in KINDS} <= {method for method, *_ in FOUND}


def test_gguf_files_are_refused_with_what_to_give(tmp_path: Path) -> None:
    base = write(tmp_path / "base", tensors())
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    for source in (folder, folder / "model-Q4_K_M.gguf"):
        with pytest.raises(PairError) as raised:
            open_checkpoint(str(source), "aligned")
        (problem,) = raised.value.problems
        assert problem.startswith("model-Q4_K_M.gguf is GGUF, and only safetensors are read: give the checkpoint that")
    assert problems_of(base, folder)
