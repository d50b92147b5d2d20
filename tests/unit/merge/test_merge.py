"""A pair of checkpoints is checked, has a fingerprint, and keeps to the one formula, as references say."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from contract.errors import PairError
from contract.grid import canonical
from merge import checkpoint as checkpoint_module
from merge import vocabulary
from merge.checkpoint import INDEX, SINGLE, open_checkpoint
from merge.fingerprints import fingerprint
from merge.interpolate import interpolate, interpolated_tensors
from merge.pair import open_pair
from tests.support.checkpoints import write_checkpoint
from tests.support.weights import CONFIG, Tensors, tensors, write, write_vocabulary

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# These are the digits of the significand after the point, and the exponent of the smallest normal number.
FORMATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    kind = BITS[one.dtype]
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one.view(kind), two.view(kind))


# Opening one checkpoint


def problems_of(directory: Path, role: str = "base") -> list[str]:
    with pytest.raises(PairError) as raised:
        open_checkpoint(str(directory), role)
    assert raised.value.title == f"the {role} checkpoint {directory} cannot be used"
    return list(raised.value.problems)


def test_a_single_file_is_known_from_its_header(tmp_path: Path) -> None:
    weights = tensors() | {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 4, dtype=torch.float16)}
    opened = open_checkpoint(str(write(tmp_path / "one", weights)), "base")
    data = (tmp_path / "one" / SINGLE).read_bytes()
    assert opened.config == CONFIG
    assert opened.path == (tmp_path / "one").resolve()
    assert opened.revision is None
    assert opened.nbytes == sum(tensor.nbytes for tensor in weights.values())
    for name, tensor in weights.items():
        info = opened.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert info.nbytes == tensor.nbytes
        expected = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
        assert data[info.begin : info.end] == bytes(expected.tolist())
    kinds = {opened.tensors[name].dtype for name in ("scalar", "none", "model.norm.weight")}
    assert kinds == {"F32", "F16", "BF16"}


def test_shards_are_one_checkpoint_in_natural_order(tmp_path: Path) -> None:
    names = list(tensors())  # layer 2 comes before layer 10
    single = open_checkpoint(str(write(tmp_path / "single", tensors())), "base")
    sharded = open_checkpoint(str(write(tmp_path / "sharded", tensors(), shards=3)), "base")
    assert list(single.tensors) == list(sharded.tensors) == names
    assert {info.file.name for info in sharded.tensors.values()} == {
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }


def test_a_checkpoint_of_transformers_opens(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "base", seed=0, max_shard_size="100KB")
    opened = open_checkpoint(str(directory), "base")
    assert (directory / INDEX).is_file()
    assert len(opened.tensors) == 20
    assert {info.dtype for info in opened.tensors.values()} == {"BF16"}


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="gone does not exist: give a directory or a hub id like org/name"):
        open_checkpoint(str(tmp_path / "gone"), "base")
    file = tmp_path / SINGLE
    save_file(tensors(), file)
    with pytest.raises(
        PairError, match=r"the aligned checkpoint .* is a file: give the directory that holds config\.json"
    ):
        open_checkpoint(str(file), "aligned")
    directory = write(tmp_path / "one", tensors())
    with pytest.raises(PairError, match=r"--base-revision main was given, but .* is a local directory: leave it out"):
        open_checkpoint(str(directory), "base", "main")


def test_a_hub_id_is_downloaded_and_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write(tmp_path / "snapshots" / "0a1b2c", tensors())
    asked: list[tuple[str, str | None]] = []

    def download(source: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert not {"*", "*.bin", "*.pt", "*.py"} & set(allow_patterns)
        assert "consolidated*" in ignore_patterns
        asked.append((source, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    opened = open_checkpoint("org/model", "aligned", "main")
    assert (opened.source, opened.path, opened.revision) == ("org/model", snapshot, "0a1b2c")
    assert asked == [("org/model", "main")]


def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no connection\nand nothing in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(PairError) as raised:
        open_checkpoint("org/model", "base")
    says = "the base checkpoint org/model is no local directory and could not be had from the hub: no connection"
    assert str(raised.value) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "config.json is missing"),
        ("{", "config.json cannot be read: Expecting"),
        ("[1]", "config.json does not hold a JSON object"),
    ],
)
def test_a_bad_config_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    directory = write(tmp_path / "one", tensors())
    (directory / "config.json").unlink()
    if text is not None:
        (directory / "config.json").write_text(text)
    (problem,) = problems_of(directory)
    assert says in problem


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    directory = write(tmp_path / "one", tensors())
    (directory / SINGLE).unlink()
    assert problems_of(directory) == [f"{directory} has neither {SINGLE} nor {INDEX}"]
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    (problem,) = problems_of(directory)
    assert "holds only pickled weights (pytorch_model.bin): loading a pickle runs its code" in problem
    assert "save_pretrained(…, safe_serialization=True)" in problem


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "x.bin", "x"])
def test_an_index_cannot_point_outside_or_at_pickles(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path / "one", tensors(), shards=2)
    for place in (tmp_path, directory):
        save_file({"x": torch.zeros(1)}, place / "x.safetensors")
        save_file({"x": torch.zeros(1)}, place / Path(name).name)
    if name.startswith("/"):
        name = str(tmp_path / "x.safetensors")
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["x"] = name
    (directory / INDEX).write_text(json.dumps(index))
    assert problems_of(directory) == [f"{INDEX} names {name!r}: only safetensors files inside the directory are read"]


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, text: str) -> None:
    directory = write(tmp_path / "one", tensors(), shards=2)
    (directory / INDEX).write_text(text)
    assert problems_of(directory) == [f"{(directory / INDEX).resolve()} has no weight_map"]


def test_a_file_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    directory = write(tmp_path / "one", tensors(), shards=3)
    file = directory / "model-00002-of-00003.safetensors"
    file.unlink()
    assert problems_of(directory) == [f"{file.resolve()} is missing, though {INDEX} names it"]


def test_a_tensor_that_is_in_two_files_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "one", tensors(), shards=2)
    save_file(tensors(), directory / "model-00002-of-00002.safetensors")
    assert (
        "tensor model.embed.weight is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors"
        in problems_of(directory)
    )


def cut(data: bytes, header: int) -> bytes:
    return data[:-1]


def cut_in_the_header(data: bytes, header: int) -> bytes:
    return data[: header // 2]


def cut_in_the_length(data: bytes, header: int) -> bytes:
    return data[:5]


def empty(data: bytes, header: int) -> bytes:
    return b""


def pointer(data: bytes, header: int) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def huge_header(data: bytes, header: int) -> bytes:
    return struct.pack("<Q", 2**63) + data[8:]


def damaged_header(data: bytes, header: int) -> bytes:
    return data[:8] + b"}" + data[9:]


def other_shape(data: bytes, header: int) -> bytes:
    return data.replace(b'"shape":[3,8]', b'"shape":[4,8]', 1)


def unknown_dtype(data: bytes, header: int) -> bytes:
    return data.replace(b'"dtype":"BF16"', b'"dtype":"BF17"', 1)


def negative_offset(data: bytes, header: int) -> bytes:
    # The rows of the padding.
    return data.replace(b'"data_offsets":[0,48]', b'"data_offsets":[-9,39]', 1).replace(b" ", b"", 1)


def a_list(data: bytes, header: int) -> bytes:
    return struct.pack("<Q", 4) + b"[1] " + data[header:]


def trailing(data: bytes, header: int) -> bytes:
    return data + b"\0"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "is truncated: its header tells of {size} bytes, the file has {now}"),
        (trailing, "is followed by other data: its header tells of {size} bytes, the file has {now}"),
        (cut_in_the_header, "is not a safetensors file, or is truncated ({now} bytes)"),
        (cut_in_the_length, "is not a safetensors file, or is truncated ({now} bytes)"),
        (empty, "is not a safetensors file, or is truncated (0 bytes)"),
        (pointer, "is not a safetensors file, or is truncated ({now} bytes)"),
        (huge_header, "is not a safetensors file, or is truncated ({now} bytes)"),
        (damaged_header, "has a damaged safetensors header: Expecting value"),
        (other_shape, "has a damaged safetensors header: 48 bytes for shape [4, 8] of BF16"),
        (unknown_dtype, "has a damaged safetensors header: unknown dtype BF17"),
        (negative_offset, "has a damaged safetensors header: 48 bytes for shape [3, 8] of BF16"),
        (a_list, "has a damaged safetensors header: "),
    ],
)
def test_a_damaged_file_is_named_and_not_read(tmp_path: Path, damage: Callable[[bytes, int], bytes], says: str) -> None:
    directory = write(tmp_path / "one", tensors(), shards=2)
    file = directory.resolve() / "model-00002-of-00002.safetensors"
    data = file.read_bytes()
    file.write_bytes(damage(data, 8 + struct.unpack("<Q", data[:8])[0]))
    (problem,) = problems_of(directory)
    assert problem.startswith(f"{file} {says.format(size=len(data), now=file.stat().st_size)}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(tmp_path / "one", tensors())

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_module, "open", denied, raising=False)
    assert problems_of(directory) == [f"{directory.resolve() / SINGLE} cannot be read: Permission denied"]


def test_every_fault_of_a_checkpoint_is_named_at_once(tmp_path: Path) -> None:
    directory = write(tmp_path / "one", tensors(), shards=3)
    first, second, third = (directory.resolve() / f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
    (directory / "config.json").unlink()
    first.write_bytes(first.read_bytes()[:-3])
    second.unlink()
    third.write_bytes(b"PK\3\4")
    config, missing, cut_short, foreign = problems_of(directory, "aligned")
    assert config == f"{directory.resolve() / 'config.json'} is missing"
    assert missing.startswith(f"{second} is missing")
    assert cut_short.startswith(f"{first} is truncated")
    assert foreign.startswith(f"{third} is not a safetensors file")


# Opening a pair


def mismatches(base: Path, aligned: Path) -> list[str]:
    with pytest.raises(PairError) as raised:
        open_pair(str(base), str(aligned))
    assert raised.value.title == "base and aligned do not fit together"
    return list(raised.value.problems)


def write_pair(
    tmp_path: Path, weights: Tensors | None = None, config: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """Write a sound base, and an aligned parent of other weights and config."""
    other = tensors(1) if weights is None else weights
    return write(tmp_path / "base", tensors()), write(tmp_path / "aligned", other, config)


def test_a_sound_pair_opens(tmp_path: Path) -> None:
    base, aligned = write_pair(tmp_path)
    pair = open_pair(str(base), str(aligned))
    assert (pair.base.path, pair.aligned.path) == (base.resolve(), aligned.resolve())
    assert pair.warnings == ()
    assert pair.nbytes == 2 * 13 * 48


def test_faults_of_both_checkpoints_are_named_at_once(tmp_path: Path) -> None:
    base, aligned = write_pair(tmp_path)
    (base / "config.json").unlink()
    (aligned / SINGLE).write_bytes(b"")
    with pytest.raises(PairError) as raised:
        open_pair(str(base), str(aligned))
    one, two = raised.value.problems
    assert one == f"the base checkpoint {base} cannot be used: {base.resolve() / 'config.json'} is missing"
    assert two.startswith(
        f"the aligned checkpoint {aligned} cannot be used: {aligned.resolve() / SINGLE} is not a safetensors"
    )
    with pytest.raises(PairError) as raised:
        open_pair(str(tmp_path / "gone"), str(tmp_path / "away"))
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        f"the base checkpoint {tmp_path / 'gone'} does not exist",
        f"the aligned checkpoint {tmp_path / 'away'} does not exist",
    ]


def test_names_in_one_parent_only(tmp_path: Path) -> None:
    weights = tensors(1) | {f"extra.{index}": torch.zeros(1) for index in range(10)}
    del weights["model.layers.10.w"], weights["model.layers.2.w"]
    assert mismatches(*write_pair(tmp_path, weights)) == [
        "tensors only in base: model.layers.2.w, model.layers.10.w",
        f"tensors only in aligned: {', '.join(f'extra.{index}' for index in range(8))} and 2 more",
    ]


def test_shapes(tmp_path: Path) -> None:
    weights = tensors(1)
    weights["model.layers.10.w"] = torch.zeros(8, 3, dtype=torch.bfloat16)
    assert mismatches(*write_pair(tmp_path, weights)) == [
        "model.layers.10.w is [3, 8] BF16 in base and [8, 3] BF16 in aligned",
    ]


def test_many_tensors_of_other_shapes_are_not_listed_without_end(tmp_path: Path) -> None:
    problems = mismatches(*write_pair(tmp_path, {name: tensor.T.contiguous() for name, tensor in tensors(1).items()}))
    assert len(problems) == 9
    assert problems[-1] == "and 5 more tensors of different shape or dtype"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_theta": 500000.0}, "rope_theta is 10000.0 in base and 500000.0 in aligned"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            'rope_type is "default" in base and "linear" in aligned',
        ),
        ({"rope_parameters": {"rope_theta": 10000.0, "factor": 4.0}}, "rope_factor is null in base and 4.0 in aligned"),
        ({"hidden_size": 16}, "hidden_size is 8 in base and 16 in aligned"),
        ({"model_type": "other"}, 'model_type is "toy" in base and "other" in aligned'),
        ({"mlp_bias": True}, "mlp_bias is null in base and true in aligned"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is null in base and 1e-05 in aligned"),
    ],
)
def test_configs_must_mean_the_same(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    assert f"config.json: {says}" in mismatches(*write_pair(tmp_path, config=CONFIG | change))


def test_what_post_training_changes_is_no_difference(tmp_path: Path) -> None:
    changed = {
        "eos_token_id": [1, 2],
        "use_cache": False,
        "dtype": "float32",
        "transformers_version": "9",
        "pad_token_id": 1,
    }
    assert open_pair(*map(str, write_pair(tmp_path, config=CONFIG | changed))).warnings == ()


def test_the_versions_of_transformers_that_wrote_them_are_no_difference(tmp_path: Path) -> None:
    older = CONFIG | {
        "num_attention_heads": 2,
        "rope_theta": 500000,
        "rope_scaling": {"type": "llama3", "factor": 8.0},
        "is_llama_config": True,
        "partial_rotary_factor": 0.5,
    }
    newer = CONFIG | {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "is_llama_config": True,
        "mlp_bias": False,
        "layer_types": ["full_attention"],
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
        "transformers.js_config": {"dtype": "q4"},
    }
    del newer["rope_theta"]
    base = write(tmp_path / "base", tensors(), older)
    aligned = write(tmp_path / "aligned", tensors(1), newer)
    assert open_pair(str(base), str(aligned)).warnings == ()
    assert open_pair(str(aligned), str(base)).warnings == ()


def test_another_window_is_a_warning_and_the_smaller_one_holds(tmp_path: Path) -> None:
    pair = open_pair(
        *map(str, write_pair(tmp_path, config=CONFIG | {"max_position_embeddings": 32, "sliding_window": 8}))
    )
    assert pair.warnings == (
        "config.json: max_position_embeddings is 64 in base and 32 in aligned",
        "config.json: sliding_window is null in base and 8 in aligned",
    )


def test_a_changed_token_is_refused(tmp_path: Path) -> None:
    base, aligned = write_pair(tmp_path)
    write_vocabulary(aligned, ["<s>", "</s>", "b", "a", "<turn>"])
    assert mismatches(base, aligned) == [
        "3 token ids stand for different strings in base / aligned: 2: 'a' / 'b', 3: 'b' / 'a', 4: None / '<turn>'; "
        "--vocab shared takes the rows of such ids from aligned"
    ]


def test_other_roles_of_the_same_tokens_only_warn(tmp_path: Path) -> None:
    base, aligned = write_pair(tmp_path)
    write_vocabulary(aligned, ["<s>", "</s>", "a", "b"], eos_token={"content": "a"}, pad_token="</s>")
    assert open_pair(str(base), str(aligned)).warnings == (
        "eos_token is '</s>' in base and 'a' in aligned",
        "pad_token is None in base and '</s>' in aligned",
    )


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"model": {}}', '{"model": null}', '{"model": {"vocab": {"a": "x"}}}']
)
def test_an_unreadable_vocabulary_is_said_to_be_uncompared(tmp_path: Path, text: str | None) -> None:
    base, aligned = write_pair(tmp_path)
    (aligned / "tokenizer.json").unlink()
    if text is not None:
        (aligned / "tokenizer.json").write_text(text)
    assert open_pair(str(base), str(aligned)).warnings == (
        f"aligned has no readable tokenizer.json in {aligned.resolve()}: the vocabularies were not compared",
    )


def test_vocabularies_of_both_kinds_are_read(tmp_path: Path) -> None:
    unigram = {"model": {"vocab": [["a", 0.0], ["b", -1.5]]}, "added_tokens": [{"id": 2, "content": "<s>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert vocabulary.token_strings(tmp_path) == {0: "a", 1: "b", 2: "<s>"}
    write_vocabulary(tmp_path, ["<s>", "a"])
    assert vocabulary.token_strings(tmp_path) == {0: "<s>", 1: "a"}


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float64])
def test_what_cannot_be_interpolated_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = tensors() | {"model.odd": torch.zeros(4).to(dtype)}
    base, aligned = write(tmp_path / "base", weights), write(tmp_path / "aligned", weights)
    assert mismatches(base, aligned) == ["tensors that are not F16, BF16 or F32 cannot be interpolated: model.odd"]


def test_every_mismatch_of_a_pair_is_named_at_once(tmp_path: Path) -> None:
    weights = tensors(1) | {"extra": torch.zeros(1)}
    weights["model.norm.weight"] = torch.zeros(8, dtype=torch.bfloat16)
    base, aligned = write_pair(tmp_path, weights, CONFIG | {"rope_theta": 1.0})
    write_vocabulary(aligned, ["<s>", "</s>", "a", "c"])
    config, only, shape, token = mismatches(base, aligned)
    assert config.startswith("config.json: rope_theta")
    assert only == "tensors only in aligned: extra"
    assert shape == "model.norm.weight is [3, 8] BF16 in base and [8] BF16 in aligned"
    assert token.startswith("1 token ids stand for different strings")


# The fingerprint


def fingerprint_of(directory: Path, **changes: Any) -> str:
    return fingerprint(replace(open_checkpoint(str(directory), "base"), **changes), "base")


def test_a_fingerprint_does_not_depend_on_how_the_weights_lie(tmp_path: Path) -> None:
    single = fingerprint_of(write(tmp_path / "single", tensors()))
    assert len(single) == 64
    assert fingerprint_of(write(tmp_path / "sharded", tensors(), shards=3)) == single
    backwards = dict(reversed(tensors().items()))
    assert fingerprint_of(write(tmp_path / "backwards", backwards, CONFIG | {"use_cache": False}, shards=2)) == single


def test_a_fingerprint_changes_with_whatever_changes_a_score(tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[Tensors], Any] = lambda _: None, **config: Any) -> str:
        weights = tensors()
        change(weights)
        return fingerprint_of(write(tmp_path / name, weights, CONFIG | config))

    def one_bit(weights: Tensors) -> None:
        weights["model.norm.weight"].view(torch.int16)[2, 7] ^= 1

    def shape(weights: Tensors) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"].reshape(8, 3)

    def dtype(weights: Tensors) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"].view(torch.float16)

    def swap(weights: Tensors) -> None:
        weights["model.layers.1.w"], weights["model.layers.2.w"] = (
            weights["model.layers.2.w"],
            weights["model.layers.1.w"],
        )

    prints = [
        changed("same"),
        changed("one bit", one_bit),
        changed("shape", shape),
        changed("dtype", dtype),
        changed("swap", swap),
        changed("drop", lambda weights: weights.pop("model.embed.weight")),
        changed("config", rope_theta=500000.0),
    ]
    assert len(set(prints)) == len(prints)


def test_tensors_larger_than_a_chunk_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(tmp_path / "one", tensors())
    whole = fingerprint_of(directory)
    # Each tensor has 48 bytes, which are two full chunks and a part.
    monkeypatch.setattr("merge.fingerprints._CHUNK", 20)
    assert fingerprint_of(directory) == whole
    weights = tensors()
    weights["model.layers.4.w"][2, 7] = float("inf")
    with pytest.raises(PairError, match="holds NaN or infinity"):
        fingerprint_of(write(tmp_path / "two", weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    weights = tensors(dtype=dtype)
    largest = torch.finfo(dtype)
    weights["model.embed.weight"][0, :5] = torch.tensor(
        [largest.max, largest.min, largest.tiny, -0.0, 0.0], dtype=dtype
    )
    base = write(tmp_path / "sound", weights)
    fingerprint_of(base)
    for name in ("model.layers.10.w", "model.layers.2.w"):
        weights[name][1, 3] = value
    directory = write(tmp_path / "one", weights)
    with pytest.raises(PairError) as raised:
        fingerprint(open_checkpoint(str(directory), "aligned"), "aligned")
    assert raised.value.title == f"the aligned checkpoint {directory} holds NaN or infinity"
    assert raised.value.problems == ("model.layers.2.w", "model.layers.10.w")


# The formula


def exact(base: torch.Tensor, aligned: torch.Tensor, lam: str) -> torch.Tensor:
    """Return θ(λ) in float64, independent of `torch.lerp` and of float32."""
    return base.double() + float(Decimal(lam)) * (aligned.double() - base.double())


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance between neighbouring numbers of `dtype` at float64 `value`."""
    digits, smallest = FORMATS[dtype]
    exponent = torch.frexp(value).exponent - 1  # 2**exponent <= |value| < 2**(exponent + 1)
    return torch.ldexp(torch.ones_like(value), exponent.clamp(min=smallest) - digits)


lambdas = st.integers(-2_000_000, 3_000_000).map(lambda count: canonical(Decimal(count).scaleb(-6)))
dtypes = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


def parents(seed: int, dtype: torch.dtype, count: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pair as post-training makes it: a third moved a little, a third a lot, a third not at all; some are zeros."""
    generator = torch.Generator().manual_seed(seed)
    base = 0.05 * torch.randn(count, generator=generator)
    moved = torch.tensor([0.001, 0.1, 0.0]).repeat(count // 3 + 1)[:count]
    aligned = base + moved * torch.randn(count, generator=generator)
    base[::17], aligned[::23] = 0.0, -0.0
    return base.to(dtype), aligned.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_ends_of_the_line_are_the_parents_bit_for_bit(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype)
    base = torch.tensor([-0.0, 0.0, 1.0, largest.max, largest.min, largest.smallest_normal / 4], dtype=dtype)
    aligned = torch.tensor([1.0, -0.0, -0.0, largest.min, -0.0, 0.1], dtype=dtype)
    assert same_bits(interpolate(base, aligned, "0"), base)
    assert same_bits(interpolate(base, aligned, "1"), aligned)
    # The copy is needed, because the formula as it stands loses the sign.
    assert not same_bits(torch.lerp(base, aligned, 0.0), base)


@given(lambdas, dtypes, st.integers(0, 2**32))
def test_theta_is_lerp_in_float32_rounded_once(lam: str, dtype: torch.dtype, seed: int) -> None:
    base, aligned = parents(seed, dtype, 200)
    copies = base.clone(), aligned.clone()
    theta = interpolate(base, aligned, lam)
    assert theta.dtype == dtype
    if lam not in ("0", "1"):
        assert same_bits(theta, torch.lerp(base.float(), aligned.float(), float(lam)).to(dtype))
    assert same_bits(base, copies[0])
    assert same_bits(aligned, copies[1])


@given(lambdas, dtypes, st.integers(0, 2**32))
def test_theta_is_the_exact_line_but_for_one_rounding(lam: str, dtype: torch.dtype, seed: int) -> None:
    base, aligned = parents(seed, dtype, 200)
    line = exact(base, aligned, lam)
    # float32 rounds five times (λ, the difference, 1 − λ, the product, the sum), and no number is above the bound.
    bound = (1 + abs(float(lam))) * (base.double().abs() + aligned.double().abs())
    error = (interpolate(base, aligned, lam).double() - line).abs()
    assert (error <= 0.5 * ulp(line, dtype) + 5 * 2.0**-24 * bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lam", ["0.01", "0.35", "0.5", "0.65", "0.99", "1.35", "2", "-0.5"])
def test_theta_is_half_an_ulp_from_the_line(lam: str, dtype: torch.dtype) -> None:
    base, aligned = parents(3, dtype, 200_000)
    line = exact(base, aligned, lam)
    # Where base and λ · (aligned − base) almost cancel, float32's own rounding of them shows.
    wide = line.abs() >= 2.0**-8 * torch.maximum(base.double().abs(), aligned.double().abs())
    wide &= line.abs() >= 2.0 ** FORMATS[dtype][1]
    assert wide.double().mean() > 0.8
    error = (interpolate(base, aligned, lam).double() - line).abs() / ulp(line, dtype)
    assert error[wide].max() <= 0.51
    # Rounding λ to the tensor's dtype, as merging tools do, is seen by this measure.
    coarse = exact(base, aligned, str(Decimal(float(torch.tensor(float(lam), dtype=dtype)))))
    if Decimal(lam) % Decimal("0.5"):
        assert ((coarse.to(dtype).double() - line).abs() / ulp(line, dtype))[wide].max() > 0.51


@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (5, 7), (3, 1, 9)])
def test_any_shape_and_layout(shape: tuple[int, ...]) -> None:
    base, aligned = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    theta = interpolate(base, aligned, "0.35")
    assert theta.shape == shape
    if len(shape) == 2:
        assert torch.equal(interpolate(base.T, aligned.T, "0.35"), theta.T)


@pytest.mark.parametrize("lam", ["0", "0.35", "1", "1.5", "-0.25"])
def test_a_checkpoint_is_interpolated_tensor_by_tensor(tmp_path: Path, lam: str) -> None:
    base, aligned = tensors(0), tensors(1)
    write(tmp_path / "base", base, shards=2)
    write(tmp_path / "aligned", aligned, shards=3)  # tensors are dealt out otherwise, and paired by name, not by file
    pair = open_pair(str(tmp_path / "base"), str(tmp_path / "aligned"))
    yielded = list(interpolated_tensors(pair, lam))
    assert [name for name, _ in yielded] == list(base)
    for name, tensor in yielded:
        assert same_bits(tensor, interpolate(base[name], aligned[name], lam))
