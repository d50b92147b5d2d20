"""θ(λ) on disk agrees with references that share none of its code, survives kills, and has its refusals."""

import hashlib
import json
import math
import os
import shutil
import struct
import time
from fractions import Fraction
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import merge.export
from contract.commit import commit_json
from contract.errors import InputError, PairError
from contract.rundir import RunDir
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from merge.checkpoint import INDEX
from merge.digest import WeightDigest
from merge.export import ExportPlan, export
from merge.file_layout import lay_out, parse_size
from merge.fingerprints import fingerprint
from merge.interpolate import interpolate
from merge.line import Line
from merge.pair import open_pair
from merge.weight_writer import BLOCK, blocks
from tests.support import lines
from tests.support.checkpoints import write_checkpoint
from tests.support.exported import EDGES, FORMATS, UNIT, bits, files, mixed, ulp, weights
from tests.support.forked import fork
from tests.support.tables import add_scores, add_task
from tests.support.weights import write

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make(base: Path, aligned: Path, lam: str, out: Path, shard: str = "5GB", like: str = "aligned") -> Path:
    source = from_flags(None, str(base), str(aligned), None, None, lam)
    export_point(source, out, like, shard, lambda _: None)
    return out


@pytest.fixture(scope="module")
def mixed_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write two parents of all dtypes, dealt out over files in two ways."""
    root = tmp_path_factory.mktemp("mixed")
    return write(root / "base", mixed(0), shards=3), write(root / "aligned", mixed(1), shards=2)


@pytest.mark.parametrize("lam", ["-0.5", "0", "0.35", "0.62", "1", "1.5"])
@pytest.mark.parametrize("shard", ["5GB", "1500KB"])
def test_the_weights_are_lerp_in_float32_rounded_once(
    mixed_pair: tuple[Path, Path], tmp_path: Path, lam: str, shard: str
) -> None:
    out = make(*mixed_pair, lam, tmp_path / "out", shard)
    one, two, found = mixed(0), mixed(1), weights(out)
    assert found.keys() == one.keys()
    for name, made in found.items():
        line = torch.lerp(one[name].float(), two[name].float(), float(lam)).to(one[name].dtype)
        wanted = {"0": one[name], "1": two[name]}.get(lam, line)
        assert (made.dtype, made.shape, bits(made)) == (wanted.dtype, wanted.shape, bits(wanted)), name


def test_the_files_are_as_the_format_wants_them(mixed_pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = make(*mixed_pair, "0.5", tmp_path / "out", "1500KB")
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert names == [f"model-{number:05d}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    index = json.loads((out / INDEX).read_text())
    tensors = mixed(0)
    assert index["metadata"] == {
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
        "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
    }
    for name in names:
        with safe_open(out / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert set(file.keys()) == {tensor for tensor, where in index["weight_map"].items() if where == name}
            large = max(tensors[tensor].nbytes for tensor in file.keys())  # noqa: SIM118
            total = sum(tensors[tensor].nbytes for tensor in file.keys())  # noqa: SIM118
            assert total <= max(1_500_000, large)
        data = (out / name).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        assert length % 8 == 0
        for entry in json.loads(data[8 : 8 + length]).values():
            if "dtype" in entry:
                assert entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 2) == 0
    assert {path.name for path in out.iterdir()} == {*names, INDEX, "README.md", "config.json", *TOKENIZER}


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_loads_it(tmp_path: Path, tie: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = write_checkpoint(tmp_path / "base", seed=0, tie=tie, max_shard_size="100KB")
    aligned = write_checkpoint(tmp_path / "aligned", seed=1, tie=tie)
    (aligned / "chat_template.jinja").write_text("{{ messages[0].content }}")
    out = make(base, aligned, "0.35", tmp_path / "out", "150KB")
    assert (out / INDEX).is_file()
    assert (out / "config.json").read_bytes() == (aligned / "config.json").read_bytes()
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    one, two = (AutoModelForCausalLM.from_pretrained(parent).state_dict() for parent in (base, aligned))
    for name, made in model.state_dict().items():
        assert torch.equal(made, torch.lerp(one[name].float(), two[name].float(), 0.35).bfloat16()), name
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    like_base = make(base, aligned, "0.35", tmp_path / "like-base", like="base")
    assert not (like_base / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (7, 0), (BLOCK + 5,), (3, BLOCK // 2 + 8), (2, 3, BLOCK), (5000, 33)]
)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_blocks_cover_a_tensor_once(shape: tuple[int, ...], itemsize: int) -> None:
    seen = torch.zeros(torch.Size(shape), dtype=torch.int32).view(-1)
    for block in blocks("w", shape, itemsize):
        count = int(torch.Size(block.shape).numel())
        assert 0 < count * itemsize <= BLOCK
        seen[block.start : block.start + count] += 1
    assert bool((seen == 1).all())


def test_a_file_has_the_digest_of_its_tensors(mixed_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It does not matter how the blocks are cut, or in what order threads finish them."""
    from merge.weight_writer import WeightWriter

    pair = open_pair(*map(str, mixed_pair))
    (file,) = lay_out(pair.base.tensors, 10**9)
    with WeightWriter(pair, "0.35", 4) as writer:
        written = writer.write(file, tmp_path / "file")
        assert writer.digest(file, tmp_path / "file") == written
    whole = WeightDigest(torch.device("cpu"))
    for name, tensor in load_file(tmp_path / "file").items():
        if tensor.numel():
            whole.add_whole(name, tensor)
    assert whole.hex() == written


# Numbers

LAMBDAS = st.one_of(
    st.sampled_from(["-0.5", "-0.51", "-0.500001", "0.5", "0.499999", "1.5", "3.000001", "-1", "0.000001", "0.999999"]),
    st.integers(-4_000_000, 4_000_000).map(lambda millionths: f"{millionths / 10**6:f}"),
)


@given(
    lam=LAMBDAS.filter(lambda lam: float(lam) not in (0, 1)),
    dtype=st.sampled_from(list(FORMATS)),
    pairs=st.lists(
        st.tuples(*[st.one_of(st.sampled_from(EDGES), st.floats(-4e3, 4e3, width=32))] * 2), min_size=1, max_size=40
    ),
)
def test_the_error_bound_holds(lam: str, dtype: torch.dtype, pairs: list[tuple[float, float]]) -> None:
    """Compute the bounds that merge.methods.linear derives, in exact arithmetic."""
    base, aligned = (torch.tensor(column, dtype=torch.float64).to(dtype) for column in zip(*pairs, strict=True))
    made = interpolate(base, aligned, lam, out=torch.empty_like(base))
    exact_lam = Fraction(lam)
    inside = 0 <= exact_lam <= 1
    for one, two, found in zip(base.double().tolist(), aligned.double().tolist(), made.double().tolist(), strict=True):
        a, b = Fraction(one), Fraction(two)
        theta, largest = a + exact_lam * (b - a), max(abs(a), abs(b))
        if not math.isfinite(found):
            assert dtype is torch.float16
            assert abs(theta) > 65504
            continue
        error = abs(Fraction(found) - theta)
        tiny = Fraction(2) ** -149  # the least normal number of fp32, below which nothing is exact
        bound = (4 * largest if inside else 8 * max(largest, abs(exact_lam * (b - a)))) * UNIT * (1 + 16 * UNIT) + tiny
        if dtype is torch.float32:
            assert error <= bound
            continue
        assert error <= ulp(max(theta, Fraction(found), key=abs), dtype) / 2 + bound
        near = Fraction(1, 1 << (8 if dtype is torch.bfloat16 else 5))
        normal = abs(theta) >= Fraction(2) ** (FORMATS[dtype][1] + 1)
        if inside and normal and abs(theta) >= near * largest:
            assert error <= Fraction(51, 100) * ulp(max(theta, Fraction(found), key=abs), dtype)


# Refusals


def test_what_overflows_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    one = {f"model.layers.{layer}.w": torch.full((4, 4), 1.0, dtype=torch.float16) for layer in range(12)}
    two = {name: tensor.clone() for name, tensor in one.items()}
    for name in ("model.layers.2.w", "model.layers.10.w"):
        one[name][1, 1], two[name][1, 1] = -60000, 60000
    base, aligned = write(tmp_path / "base", one), write(tmp_path / "aligned", two)
    with pytest.raises(PairError) as caught:
        make(base, aligned, "1.5", tmp_path / "out", "100KB")
    assert caught.value.problems == ("model.layers.2.w", "model.layers.10.w")
    assert "too large for F16 in 2 tensors" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aligned", "base"]
    make(base, aligned, "1.02", tmp_path / "out")  # 62400 fits


def test_a_directory_that_exists_is_not_touched(mixed_pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(InputError, match=r"exists: give another --out"):
        make(*mixed_pair, "0.5", out)
    assert files(out) == {"mine": b"x"}
    assert list(tmp_path.iterdir()) == [out]


def test_the_disk_is_looked_at_first(
    mixed_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 64 << 20

    monkeypatch.setattr(merge.export.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"no disk space: the weights take 0\.01 GB more and .* has 0\.07 GB free"):
        make(*mixed_pair, "0.5", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "nbytes"), [("5GB", 5 * 10**9), ("500 MiB", 500 << 20), ("7", 7), ("2kb", 2000)])
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "5 XB", "-1GB", "1.5GB", "GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=r"is no size: write it like 5GB"):
        parse_size(text)


def test_what_is_no_point(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        from_flags(None, "base", None, None, None, None)
    assert caught.value.problems == ("--aligned is missing", "--lam is missing")
    with pytest.raises(InputError, match=r"a run knows its pair and its line: give RUN, or --base and --aligned"):
        from_flags(tmp_path, "base", None, None, None, "1")
    with pytest.raises(InputError, match=r"--like chat is no parent"):
        make(tmp_path, tmp_path, "1", tmp_path / "out", like="chat")


# Lines


@pytest.mark.parametrize(
    "line",
    [Line("slerp", lines.MAP, "shared"), Line("linear", lines.MAP, "strict"), Line("linear", "", "shared")],
    ids=str,
)
@pytest.mark.parametrize("lam", ["0", "0.35", "1", "-0.5"])
def test_every_line_is_exported_as_it_is_live(tmp_path: Path, line: Line, lam: str) -> None:
    base, aligned = lines.write_pair(tmp_path, tied=False, shared=line.vocab == "shared")
    source = from_flags(None, str(base), str(aligned), None, None, lam, line.method, line.lam_map, line.vocab)
    export_point(source, tmp_path / "out", "aligned", "5GB", lambda _: None)
    found, want = weights(tmp_path / "out"), lines.made(base, aligned, line, lam)
    assert found.keys() == want.keys()
    assert all(bits(found[name]) == bits(want[name]) for name in want)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("slerp(base, aligned; " in card) == (line.method == "slerp")
    assert (f"`{line.lam_map}`" in card) == bool(line.lam_map)
    assert ("rows of `model.embed_tokens.weight` are aligned's" in card) == (line.vocab == "shared")


def test_a_line_that_cannot_be_exported(tmp_path: Path) -> None:
    base, aligned = lines.write_pair(tmp_path, tied=False, shared=True)
    source = from_flags(None, str(base), str(aligned), None, None, "0.5", vocab="shared")
    with pytest.raises(InputError, match="--like base does not go with --vocab shared"):
        export_point(source, tmp_path / "out", "base", "5GB", lambda _: None)
    with pytest.raises(InputError) as caught:
        from_flags(None, str(base), str(aligned), None, None, "0.5", "cubic", None, "some")
    assert caught.value.problems == (
        "--method is 'cubic': use linear, slerp",
        "--vocab is 'some': use strict, shared",
    )


# Kills


def start(pair: tuple[Path, Path], lam: str, out: Path, log: Path) -> ForkProcess:
    source = from_flags(None, *map(str, pair), None, None, lam)  # type: ignore[arg-type]
    return fork(lambda: export_point(source, out, "aligned", "1MB", print), log)


@pytest.fixture(scope="module")
def large_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write 80 MB in 80 files, which takes long enough to be killed in the middle."""
    root = tmp_path_factory.mktemp("large")
    parents = []
    for seed, role in enumerate(("base", "aligned")):
        drawn = torch.randn(1000, 500, generator=torch.Generator().manual_seed(seed)).bfloat16()
        tensors = {f"model.layers.{n}.w": drawn.roll(n * (seed + 1), 1) for n in range(80)}  # θ(λ) has no two alike
        parents.append(write(root / role, tensors))
    return parents[0], parents[1]


@pytest.mark.slow
def test_a_killed_export_goes_on_where_it_stopped(large_pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = make(*large_pair, "0.3", tmp_path / "whole", "1MB")
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    process = start(large_pair, "0.3", out, tmp_path / "killed.log")
    while not (partial / "model-00010-of-00080.safetensors").exists():
        assert process.exitcode is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not out.exists()
    kept = json.loads((partial / "progress.json").read_text())["files"]
    assert 0 < len(kept) < 80
    damaged, *sound = sorted(kept)
    with open(partial / damaged, "r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x00\x00\x00")
    before = {name: (partial / name).stat().st_ino for name in sound}
    process = start(large_pair, "0.3", out, tmp_path / "log")
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == f"going on: {len(sound)} of 80 files are there already\n"
    assert {name: (out / name).stat().st_ino for name in sound} == before
    assert files(out) == files(whole)
    assert not partial.exists()


def test_a_parent_that_is_written_to_meanwhile_stops_it(
    mixed_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, aligned = (shutil.copytree(path, tmp_path / path.name) for path in mixed_pair)
    write_file = merge.export.WeightWriter.write

    def change(writer: Any, file: Any, path: Path) -> str:
        if path.name.startswith("model-00002"):
            (weights_file, *_) = sorted(aligned.glob("*.safetensors"))
            with open(weights_file, "r+b") as stream:
                stream.seek(-2, os.SEEK_END)
                stream.write(b"\x01\x02")
        return write_file(writer, file, path)

    monkeypatch.setattr(merge.export.WeightWriter, "write", change)
    with pytest.raises(PairError, match="a parent has changed while it was in use"):
        make(base, aligned, "0.3", tmp_path / "out", "1500KB")
    assert not (tmp_path / "out").exists()
    kept = json.loads((tmp_path / ".out.partial" / "progress.json").read_text())["files"]
    assert [name[:11] for name in kept] == ["model-00001"]
    # The next export is of the parents as they are then, and takes nothing over.
    monkeypatch.undo()
    again, whole = (make(base, aligned, "0.3", tmp_path / name, "1500KB") for name in ("out", "whole"))
    assert files(again) == files(whole)


def test_what_another_lambda_left_is_not_used(mixed_pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = make(*mixed_pair, "0.3", tmp_path / "whole", "1500KB")
    pair = open_pair(*map(str, mixed_pair))
    prints = {"base": fingerprint(pair.base, "base"), "aligned": fingerprint(pair.aligned, "aligned")}
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    plan = ExportPlan(pair, prints, "0.4", "aligned", out, 1_500_000)
    export(plan, "card", 2, lambda _: None)
    out.rename(partial)
    digests = {}
    with merge.export.WeightWriter(pair, "0.4", 2) as writer:
        for file in lay_out(pair.base.tensors, 1_500_000):
            digests[file.name] = writer.digest(file, partial / file.name)
    record = {"lam": "0.4", "fingerprints": prints, "max_shard_bytes": 1_500_000, "files": digests}
    commit_json(partial / "progress.json", record)
    said: list[str] = []
    source = from_flags(None, *map(str, mixed_pair), None, None, "0.3")  # type: ignore[arg-type]
    export_point(source, out, "aligned", "1500KB", said.append)
    assert said == []
    assert files(out) == files(whole)


def test_one_at_a_time(mixed_pair: tuple[Path, Path], tmp_path: Path) -> None:
    import fcntl

    partial = tmp_path / ".out.partial"
    partial.mkdir()
    held = os.open(partial, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match=r"another lambdasweep process is writing"):
            make(*mixed_pair, "0.5", tmp_path / "out")
    finally:
        os.close(held)
    make(*mixed_pair, "0.5", tmp_path / "out")


# From a run


@pytest.fixture
def run(tmp_path: Path, mixed_pair: tuple[Path, Path], few_resamples: None) -> RunDir:
    """Return a run over two tasks in which 0.5 is the most accurate λ of both."""
    run = RunDir(tmp_path / "run")
    for task in ("one", "two"):
        add_task(run, task, [2] * 20, ["0", "0.5", "1"])
        for lam, right in (("0", 8), ("0.5", 20), ("1", 10)):
            scores = {
                2 * d + choice: [-0.1 if (choice == 0) == (d % 20 < right) else -3.0]
                for d in range(20)
                for choice in (0, 1)
            }
            add_scores(run, task, lam, scores)
    pair = open_pair(*map(str, mixed_pair))
    record: dict[str, Any] = json.loads(run.sweep_json.read_text())
    for role, parent in (("base", pair.base), ("aligned", pair.aligned)):
        record["pair"][role] |= {"source": str(parent.path), "revision": None, "fingerprint": fingerprint(parent, role)}
    commit_json(run.sweep_json, record)
    return run


@pytest.mark.slow
def test_a_run_gives_its_best_lambda_and_what_it_measured(
    run: RunDir, tmp_path: Path, mixed_pair: tuple[Path, Path]
) -> None:
    said: list[str] = []
    export_point(from_flags(run.root, None, None, None, None, None), tmp_path / "out", "aligned", "5GB", said.append)
    assert "λ = 0.5: λ* of 2 tasks pooled" in said
    reference = make(*mixed_pair, "0.5", tmp_path / "reference")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "λ = 0.5 (λ* of 2 tasks pooled) was measured live in vLLM 0.32.0, on all documents:" in card
    assert "which flatters it a little; the intervals of its gains in accuracy and NLL are wider by that." in card
    assert "The only numbers of held-out documents" in card
    assert "λ = 0.5 (unlike its neighbours; 40 documents)." in card
    assert "| one | accuracy | 1.0000 | 1.0000 to 1.0000 | 20 |" in card
    for role in ("base", "aligned"):
        assert run.sweep()["pair"][role]["fingerprint"] in card
    elsewhere = from_flags(run.root, None, None, None, None, "0.7")
    export_point(elsewhere, tmp_path / "unmeasured", "aligned", "5GB", said.append)
    assert "λ = 0.7 was not measured." in (tmp_path / "unmeasured" / "README.md").read_text()


@pytest.mark.slow
def test_a_changed_parent_of_a_run_is_refused(run: RunDir, tmp_path: Path, mixed_pair: tuple[Path, Path]) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(mixed_pair[1], changed)
    file = min(changed.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.embed.weight"][0, 0] += 1
    save_file(tensors, file)
    record = run.sweep()
    record["pair"]["aligned"]["source"] = str(changed)
    commit_json(run.sweep_json, record)
    with pytest.raises(InputError) as caught:
        export_point(from_flags(run.root, None, None, None, None, None), tmp_path / "out", "aligned", "5GB", print)
    (problem,) = caught.value.problems
    assert problem.startswith(f"aligned {changed} was ")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.slow
def test_another_tokenizer_than_the_runs_is_refused(run: RunDir, tmp_path: Path, mixed_pair: tuple[Path, Path]) -> None:
    """The weights are the run's, and every text would come out as other tokens."""
    changed = Path(shutil.copytree(mixed_pair[1], tmp_path / "changed"))
    (changed / "tokenizer.json").write_text("{}")
    record = run.sweep()
    record["pair"]["aligned"] |= {"source": str(changed), "tokenizer_sha256": "5" * 64}
    commit_json(run.sweep_json, record)
    with pytest.raises(InputError) as caught:
        export_point(from_flags(run.root, None, None, None, None, None), tmp_path / "out", "aligned", "5GB", print)
    digest = hashlib.sha256(b"{}").hexdigest()[:12]
    assert caught.value.problems == (f"the tokenizer of aligned {changed} was 555555555555… and is {digest}… now",)
    assert not (tmp_path / "out").exists()


def test_a_card_names_checkpoints_of_the_hub(mixed_pair: tuple[Path, Path]) -> None:
    from dataclasses import replace

    import yaml

    from lambdasweep.takehome.model_card import model_card

    pair = open_pair(*map(str, mixed_pair))
    base = replace(pair.base, source="org/base", revision="abc")
    pair = replace(pair, opened={**pair.opened, "base": base})
    card = model_card(pair, {"base": "b", "aligned": "a"}, "0.5", "aligned", None)
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["org/base"]
    assert front["tags"] == ["merge", "lambdasweep"]
    assert str(mixed_pair[1].parent) not in card
