"""The resident route on CPU tensors: what the loader does is traced, and θ(λ) lands where the loader would put it.

The model is a toy with vLLM's loading conventions; `tests/real/test_engine.py` does the same with real engines.
"""

import functools
import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from contract.errors import EngineError, InputError
from contract.points import named
from contract.points import role as role_of
from merge.checkpoint import open_checkpoint
from merge.computed import Factors, mapped_together
from merge.digest import WeightDigest, parameter_key, takes_words
from merge.interpolate import Rule, chunks, interpolated_tensors, mapped_tensors, tensor_rules
from merge.line import STRAIGHT, Line
from merge.pair import Pair, put_together
from serve.switch.held_parents import Added, HeldParents, MappedParents, is_read_anew
from serve.switch.recorder import UntraceableError
from serve.switch.reload import ReloadRoute, tied_modules
from serve.switch.resident import ResidentRoute, _Staging
from serve.switch.tiers import Room, tier_for
from serve.switch.trace import trace
from serve.switch.views import View
from tests.support.examples import examples

CPU = torch.device("cpu")
GIB = 1 << 30
Loader = Any


class Fused(torch.nn.Module):
    """This is a linear layer fused of q, k and v along its rows, with a bias, of which each rank has a share."""

    def __init__(self, rank: int, ranks: int, width: int, rows: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.rank, self.rows = rank, tuple(count // ranks for count in rows)
        self.weight = torch.nn.Parameter(torch.zeros(sum(self.rows), width, dtype=dtype), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(sum(self.rows), dtype=dtype), requires_grad=False)

    def load(self, parameter: torch.nn.Parameter, tensor: torch.Tensor, part: int) -> None:
        count = self.rows[part]
        place = parameter.data.narrow(0, sum(self.rows[:part]), count)
        place.copy_(tensor.narrow(0, self.rank * count, count))


class Model(torch.nn.Module):
    """This model has a padded, tied embedding, a fused layer, a row-parallel layer, a norm, experts and a number."""

    def __init__(self, rank: int, ranks: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rank, self.ranks, self.width = rank, ranks, width
        self.embed = torch.nn.Module()
        self.embed.weight = torch.nn.Parameter(torch.zeros(8, width, dtype=dtype), requires_grad=False)
        self.head = torch.nn.Module()
        self.head.weight = self.embed.weight
        self.qkv = Fused(rank, ranks, width, (8, 4, 4), dtype)
        self.down = torch.nn.Module()
        self.down.weight = torch.nn.Parameter(torch.zeros(3, 2 * width // ranks, dtype=dtype), requires_grad=False)
        self.norm = torch.nn.Module()
        self.norm.weight = torch.nn.Parameter(torch.zeros(width, dtype=dtype), requires_grad=False)
        self.norm.register_buffer("steps", torch.arange(5))
        self.experts = torch.nn.Module()
        self.experts.w13 = torch.nn.Parameter(torch.zeros(3, 4, width, dtype=dtype), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            if name == "embed.weight":
                self.embed.weight[: len(tensor)].data.copy_(tensor)
                self.embed.weight[len(tensor) :].data.fill_(0)
            elif name.startswith("attn."):
                _, letter, kind = name.split(".")
                self.qkv.load(getattr(self.qkv, kind), tensor, "qkv".index(letter))
            elif name == "down.weight":
                share = tensor.shape[1] // self.ranks
                self.down.weight.data.copy_(tensor[:, self.rank * share : (self.rank + 1) * share])
            elif name == "norm.weight":
                self.norm.weight.data[:] = tensor
            elif name.startswith("experts."):
                _, number, kind = name.split(".")
                self.experts.w13.data[int(number)].narrow(0, 2 * ("w1", "w3").index(kind), 2).copy_(tensor)
            else:
                self.scale.data.copy_(tensor)


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    experts = {f"experts.{number}.{kind}": (2, width) for number in range(3) for kind in ("w1", "w3")}
    fused = {f"attn.{letter}.weight": (rows, width) for letter, rows in zip("qkv", (8, 4, 4), strict=True)}
    biases = {f"attn.{letter}.bias": (rows,) for letter, rows in zip("qkv", (8, 4, 4), strict=True)}
    rest: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "scale": ()}
    return {"embed.weight": (5, width), "down.weight": (3, 2 * width), **experts, **fused, **biases, **rest}


@functools.cache
def write_pair(root: Path, width: int, dtype: torch.dtype, first_seed: int = 0) -> Pair:
    parents = []
    for seed, role in enumerate(("base", "aligned"), first_seed):
        generator = torch.Generator().manual_seed(100 * width + seed)
        made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes(width).items()}
        made["norm.weight"][0] = -0.0  # only a copy keeps −0.0
        (root / role).mkdir(parents=True, exist_ok=True)
        (root / role / "config.json").write_text("{}")
        save_file(made, root / role / "model.safetensors")
        parents.append(open_checkpoint(str(root / role), role))
    return Pair(parents[0], {"": parents[1]}, ())


def expected(pair: Pair, lam: str, rank: int, ranks: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the parameters of a rank at θ(λ), by slicing and joining whole tensors made in fp32 and rounded once."""
    from safetensors.torch import load_file

    one, two = (load_file(parent.path / "model.safetensors") for parent in (pair.base, pair.aligned))
    full = {
        name: one[name]
        if lam == "0"
        else two[name]
        if lam == "1"
        else torch.lerp(one[name].float(), two[name].float(), float(lam)).to(one[name].dtype)
        for name in one
    }
    return parameters(full, rank, ranks, dtype)


def parameters(full: dict[str, torch.Tensor], rank: int, ranks: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the parameters of a rank, from the tensors of a checkpoint."""

    def rows(name: str) -> torch.Tensor:
        return full[name].chunk(ranks)[rank]

    found = {
        "embed.weight": torch.cat([full["embed.weight"], torch.zeros(3, full["embed.weight"].shape[1])]),
        "qkv.weight": torch.cat([rows(f"attn.{letter}.weight") for letter in "qkv"]),
        "qkv.bias": torch.cat([rows(f"attn.{letter}.bias") for letter in "qkv"]),
        "down.weight": full["down.weight"].chunk(ranks, dim=1)[rank],
        "norm.weight": full["norm.weight"],
        "experts.w13": torch.stack(
            [torch.cat([full[f"experts.{number}.{kind}"] for kind in ("w1", "w3")]) for number in range(3)]
        ),
        "scale": full["scale"],
    }
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def loaded(model: Model) -> Model:
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    record_metadata_for_reloading(model)
    return model


def route(pair: Pair, model: Model, tier: str) -> ResidentRoute:
    return ResidentRoute(pair, tensor_rules(pair), loaded(model), CPU, lambda *sizes: tier)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@examples(60)
@given(
    path=st.lists(st.sampled_from(["0", "1", "0.35", "1.3", "-0.5", "0.000001"]), min_size=1, max_size=4),
    width=st.sampled_from([1, 2, 7, 8, 12]),
    dtypes=st.sampled_from(list(itertools.product((torch.bfloat16, torch.float16, torch.float32), repeat=2))),
    tier=st.sampled_from(["device", "pinned", "mmap"]),
    place=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
    limit=st.sampled_from([8, 24, 1 << 20]),
)
def test_any_path_gives_what_going_straight_there_gives(
    root: Path,
    path: list[str],
    width: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    tier: str,
    place: tuple[int, int],
    limit: int,
) -> None:
    stored, live = dtypes
    pair = write_pair(root / f"{width}-{stored}", width, stored)
    model = Model(*place, width, live)
    storages = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    resident = route(pair, model, tier)
    resident._limit = limit
    for lam in path:
        digest = resident.switch(lam)
    want = expected(pair, path[-1], *place, live)
    for name, parameter in model.named_parameters():
        assert torch.equal(bits(parameter.data), bits(want[name])), name
        assert parameter.data_ptr() == storages[name]  # a captured CUDA graph reads the same memory
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.norm.steps, torch.arange(5))
    straight = route(pair, Model(*place, width, live), "mmap")
    assert straight.switch(path[-1]) == digest


@functools.cache
def pair_of_other_lines(root: Path, method: str) -> Pair:
    pair = write_pair(root, 8, torch.bfloat16)
    tensors = dict(whole(pair))
    tensors["embed.weight"] = tensors["embed.weight"][:3].clone()
    short = root / method
    short.mkdir()
    (short / "config.json").write_text("{}")
    save_file(tensors, short / "model.safetensors")
    return replace(
        pair,
        base=open_checkpoint(str(short), "base"),
        line=Line(method),
        weights={
            "attn.k.weight": "0.4",
            "attn.v.weight": "0",
            "attn.q.bias": "-1",
            "experts.1.w3": "2",
            "embed.weight": "0.7",
        },
        aligned_rows={"embed.weight": ((1, 2), (3, 5))},
    )


@functools.cache
def rules_of_other_lines(root: Path, method: str) -> dict[str, Rule]:
    return tensor_rules(pair_of_other_lines(root, method))


@functools.cache
def checkpoint_of_other_lines(root: Path, method: str, lam: str) -> dict[str, torch.Tensor]:
    return dict(interpolated_tensors(pair_of_other_lines(root, method), lam))


@examples(60)
@given(
    path=st.lists(st.sampled_from(["0", "1", "0.35", "1.3", "-0.5"]), min_size=1, max_size=3),
    method=st.sampled_from(["linear", "slerp"]),
    live=st.sampled_from([torch.bfloat16, torch.float32]),
    tier=st.sampled_from(["device", "mmap"]),
    place=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
    limit=st.sampled_from([8, 24, 1 << 20]),
    packed=st.booleans(),
)
def test_other_lines_are_those_of_the_checkpoint(
    root: Path,
    path: list[str],
    method: str,
    live: torch.dtype,
    tier: str,
    place: tuple[int, int],
    limit: int,
    packed: bool,
) -> None:
    """Pieces of one parameter move differently, and some rows are aligned's, two of which base does not have."""
    pair, rules = pair_of_other_lines(root / "lines", method), rules_of_other_lines(root / "lines", method)
    model = loaded(Model(*place, 8, live))
    if packed:
        model.qkv.quant_method = Packing(keep=False)  # type: ignore[assignment]
        model.qkv.quant_method.process_weights_after_loading(model.qkv)
    resident = ResidentRoute(pair, rules, model, CPU, lambda *sizes: tier)
    resident._limit = limit
    for lam in path:
        digest = resident.switch(lam)
    want = parameters(checkpoint_of_other_lines(root / "lines", method, path[-1]), *place, live)
    for name, parameter in model.named_parameters():
        if packed and name == "qkv.weight":
            parameter = model.qkv.packed.t()
        assert torch.equal(bits(parameter.data), bits(want[name])), name
    straight = ResidentRoute(pair, rules, loaded(Model(*place, 8, live)), CPU, lambda *sizes: "mmap")
    assert straight.switch(path[-1]) == digest


@examples(20)
@given(
    path=st.lists(
        st.sampled_from(["dpo=0,sft=0", "dpo=0.5,sft=0", "dpo=0,sft=1", "dpo=0.35,sft=-0.5", "dpo=1,sft=1"]),
        min_size=1,
        max_size=4,
    ),
    dtypes=st.sampled_from([(torch.bfloat16, torch.float32), (torch.float16, torch.float16)]),
    tier=st.sampled_from(["device", "mmap"]),
    place=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
    limit=st.sampled_from([24, 1 << 20]),
)
def test_several_aligned_checkpoints_are_those_of_the_checkpoint(
    root: Path,
    path: list[str],
    dtypes: tuple[torch.dtype, torch.dtype],
    tier: str,
    place: tuple[int, int],
    limit: int,
) -> None:
    stored, live = dtypes
    pair = write_pair(root / f"8-{stored}", 8, stored)
    other = write_pair(root / f"9-{stored}", 8, stored, first_seed=7)
    pair = replace(pair, aligned_by_name={"dpo": pair.aligned, "sft": other.aligned}, weights={"attn.k.weight": "0.4"})
    model = loaded(Model(*place, 8, live))
    asked: list[tuple[int, int]] = []

    def choose_tier(tensors: int, factors: int) -> str:
        asked.append((tensors, factors))
        return tier

    resident = ResidentRoute(pair, tensor_rules(pair), model, CPU, choose_tier)
    resident._limit = limit
    for point in path:
        digest = resident.switch(point)
    want = parameters(dict(interpolated_tensors(pair, path[-1])), *place, live)
    for name, parameter in model.named_parameters():
        assert torch.equal(bits(parameter.data), bits(want[name])), name
    assert asked == [(3 * stored.itemsize * sum(parameter.numel() for parameter in model.parameters()), 0)]
    assert route(pair, Model(*place, 8, live), "mmap").switch(path[-1]) == digest


ADAPTED = {"attn.q": (8, 8), "attn.v": (4, 8), "down": (3, 16)}


def write_adapter(
    directory: Path, seed: int, dtype: torch.dtype, sizes: Mapping[str, tuple[int, int]] = ADAPTED, width: int = 8
) -> int:
    """Write factors for a part of a fused layer, for a row-parallel layer and for a padded embedding, and a whole norm.

    Returns:
        The bytes of all factors.
    """
    generator = torch.Generator().manual_seed(seed)
    made = {
        "base_model.model.embed.lora_embedding_A": torch.randn(2, 5, generator=generator).to(dtype),
        "base_model.model.embed.lora_embedding_B": torch.randn(width, 2, generator=generator).to(dtype),
    }
    for module, (rows, columns) in sizes.items():
        for letter, shape in (("A", (2, columns)), ("B", (rows, 2))):
            made[f"base_model.model.{module}.lora_{letter}.weight"] = torch.randn(shape, generator=generator).to(dtype)
    nbytes = sum(tensor.nbytes for tensor in made.values())
    made["base_model.model.norm.modules_to_save.weight"] = torch.randn(width, generator=generator).to(torch.bfloat16)
    directory.mkdir(exist_ok=True, parents=True)
    save_file(made, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 3}')
    return nbytes


@functools.cache
def adapted(root: Path, names: tuple[str, ...], factors: torch.dtype) -> tuple[Pair, int]:
    """Return base with an adapter of each name, and the bytes of all factors."""
    opened, of_factors = {"base": write_pair(root / "adapted", 8, torch.bfloat16).base}, 0
    for seed, name in enumerate(names):
        adapter = root / f"adapter-{factors}-{name}"
        of_factors += write_adapter(adapter, seed, factors)
        opened[role_of(name)] = open_checkpoint(str(adapter), role_of(name))
    return put_together(opened, STRAIGHT), of_factors


@examples(40)
@given(
    path=st.lists(st.sampled_from(["0", "1", "0.35", "-0.5"]), min_size=1, max_size=3),
    count=st.sampled_from([1, 2]),
    live=st.sampled_from([torch.bfloat16, torch.float32]),
    factors=st.sampled_from([torch.bfloat16, torch.float32]),
    tier=st.sampled_from(["device", "pinned", "mmap"]),
    place=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
    limit=st.sampled_from([8, 24, 1 << 20]),
)
def test_adapters_are_kept_as_factors_and_give_the_checkpoint_that_is_exported(
    root: Path,
    path: list[str],
    count: int,
    live: torch.dtype,
    factors: torch.dtype,
    tier: str,
    place: tuple[int, int],
    limit: int,
) -> None:
    names = ("dpo", "sft")[:count] if count > 1 else ("",)
    pair, of_factors = adapted(root, names, factors)
    model = loaded(Model(*place, 8, live))
    asked: list[tuple[int, int]] = []

    def choose_tier(tensors: int, factors: int) -> str:
        asked.append((tensors, factors))
        return tier

    resident = ResidentRoute(pair, tensor_rules(pair), model, CPU, choose_tier)
    resident._limit = limit
    for lam in path:
        point = named(dict.fromkeys(names, lam))
        digest = resident.switch(point)
    want = parameters(dict(interpolated_tensors(pair, point)), *place, live)
    for name, parameter in model.named_parameters():
        assert torch.equal(bits(parameter.data), bits(want[name])), name
    # One parent, the norm of each adapter, and the factors: of what an adapter does not change there is one copy.
    of_base = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert asked == [(of_base + count * 2 * 8, of_factors)]
    if tier != "mmap":
        held = resident._parents
        assert isinstance(held, HeldParents)
        assert sum(memory.numel() for memory in held._memory) < of_base + (1 + count) * 256 * len(
            list(model.parameters())
        )
        assert len(held._memory[1]) == 256  # the norm
    straight = ResidentRoute(pair, tensor_rules(pair), loaded(Model(*place, 8, live)), CPU, lambda *sizes: "mmap")
    assert straight.switch(point) == digest


@pytest.mark.parametrize("tier", ["device", "pinned", "mmap"])
def test_factors_are_brought_to_the_device_once_wherever_base_is(root: Path, tier: str) -> None:
    base = write_pair(root / "brought", 8, torch.bfloat16).base
    write_adapter(root / "brought-adapter", 0, torch.bfloat16)
    pair = put_together({"base": base, "aligned": open_checkpoint(str(root / "brought-adapter"), "aligned")}, STRAIGHT)
    parents, device = mapped_together([*pair.parents.values()]), torch.device("meta")
    targets = trace(loaded(Model(0, 1, 8, torch.bfloat16)), dict(mapped_tensors(pair.base)))
    where = device if tier == "device" else CPU
    held = (
        MappedParents(targets, parents, device)
        if tier == "mmap"
        else HeldParents(targets, parents, where, device, False)
    )
    found: dict[str, list[Added]] = {}
    for target in targets:
        for piece, _, (first, *others) in held.blocks(target, 16, whole=False):
            assert isinstance(first, torch.Tensor)
            assert first.device == where
            found.setdefault(piece.name, []).extend(one for one in others if isinstance(one, Added))
    adapted = {name: blocks for name, blocks in found.items() if blocks}
    assert adapted.keys() == {"attn.q.weight", "attn.v.weight", "down.weight", "embed.weight"}
    for blocks in adapted.values():
        assert len(blocks) > 1
        ups = [block.factors.up for block in blocks]
        assert {up.device for up in ups} == {device}
        assert len({up.untyped_storage()._cdata for up in ups}) == 1  # each block is a window on the same factors


def test_a_block_is_kept_unless_it_is_made_when_it_is_read(root: Path) -> None:
    """What an adapter adds is a view of its factors; what is converted of a file is a copy."""
    base = write_pair(root / "kept", 8, torch.bfloat16).base
    write_adapter(root / "kept-adapter", 0, torch.bfloat16)
    adapted = put_together({"base": base, "aligned": open_checkpoint(str(root / "kept-adapter"), "aligned")}, STRAIGHT)
    other = write_pair(root / "kept-wide", 8, torch.float32).aligned
    widened = put_together({"base": base, "aligned": other}, STRAIGHT)
    for pair, anew in ((adapted, False), (widened, True)):
        parents = mapped_together([*pair.parents.values()])
        targets = trace(loaded(Model(0, 1, 8, torch.float32)), dict(mapped_tensors(pair.base)))
        assert is_read_anew(targets, parents) is anew


class Registering(Model):
    """Makes a parameter while it loads, as vLLM's Transformers backend does where a checkpoint has a bias of the LM head."""

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            if name == "norm.weight":
                made = torch.nn.Parameter(torch.full((self.width,), 7.0), requires_grad=False)
                self.keep(made)
                made[: len(tensor)].data.copy_(tensor)
                made[len(tensor) :].data.fill_(0)
            super().load_weights([(name, tensor)])

    def keep(self, made: torch.nn.Parameter) -> None:
        self.norm.bias = made


class Discarding(Registering):
    """Makes a tensor while it loads that no module has."""

    def keep(self, made: torch.nn.Parameter) -> None:
        pass


def test_what_is_made_while_the_model_loads_is_a_parameter_like_others(root: Path) -> None:
    pair = write_pair(root / "registering", 8, torch.bfloat16)
    model = loaded(Registering(0, 1, 8, torch.float32))
    model.load_weights(whole(pair).items())
    storage = model.norm.bias.data_ptr()
    resident = ResidentRoute(pair, tensor_rules(pair), model, CPU, lambda *sizes: "mmap")
    resident.switch("0.35")
    want = expected(pair, "0.35", 0, 1, torch.float32)["norm.weight"]
    assert torch.equal(bits(model.norm.bias.data), bits(want))
    assert model.norm.bias.data_ptr() == storage
    with pytest.raises(UntraceableError, match="the loader fills what is no parameter of the model"):
        trace(loaded(Discarding(0, 1, 8, torch.float32)), whole(pair))


def test_rows_that_are_not_loaded_as_rows_are_refused(root: Path) -> None:
    tensors = whole(write_pair(root / "turned", 2, torch.bfloat16))
    model = loaded(Transposing(0, 1, 2, torch.float32))
    with pytest.raises(UntraceableError, match=r"rows of experts\.0\.w1 are not loaded as rows"):
        trace(model, tensors, {"experts.0.w1": ((0, 1),)})


def test_tracing_leaves_the_model_as_it_was(root: Path) -> None:
    pair = write_pair(root / "as-it-was", 8, torch.bfloat16)
    model = loaded(Model(0, 1, 8, torch.float32))
    before = {name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    trace(model, whole(pair))
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == {
        name: key for name, (key, _) in before.items()
    }
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    assert all(torch.equal(parameter, before[name][1]) for name, parameter in model.named_parameters())


def whole(pair: Pair) -> dict[str, torch.Tensor]:
    from merge.interpolate import mapped_tensors

    return dict(mapped_tensors(pair.base))


def test_a_tied_parameter_is_filled_once(root: Path) -> None:
    targets = trace(loaded(Model(0, 1, 8, torch.float32)), whole(write_pair(root / "tied", 8, torch.float32)))
    paths = [target.path for target in targets]
    assert "embed.weight" in paths
    assert "head.weight" not in paths


class Transposing(Model):
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights((name, tensor.t() if name == "experts.0.w1" else tensor) for name, tensor in tensors)


class Adding(Model):
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            if name == "norm.weight":
                self.norm.weight.data.add_(tensor)
            else:
                super().load_weights([(name, tensor)])


class Forgetting(Model):
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights((name, tensor) for name, tensor in tensors if name != "attn.k.weight")


class Leaving(Model):
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights((name, tensor) for name, tensor in tensors if name != "norm.weight")


class Filling(Model):
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights(tensors)
        self.norm.weight.data.fill_(1)


class Inventing(Model):
    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights(
            (name, torch.ones(self.width) if name == "norm.weight" else tensor) for name, tensor in tensors
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Adding, "norm.weight is loaded with aten.add_"),
        (Forgetting, "qkv.weight has 128 elements, of which the checkpoint fills 96"),
        (Leaving, "the checkpoint fills nothing of norm.weight"),
        (Filling, "norm.weight is loaded with aten.fill_"),
        (Inventing, "norm.weight is loaded from something that is not in the checkpoint"),
    ],
)
def test_what_does_not_come_from_the_checkpoint_alone_is_refused(root: Path, kind: type[Model], message: str) -> None:
    pair = write_pair(root / "refused", 8, torch.bfloat16)
    model = loaded(kind(0, 1, 8, torch.float32))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(UntraceableError, match=message):
        trace(model, whole(pair))
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


class Computing(Model):
    """This loads a norm as a state space's decay, turns a row-parallel layer, and has q, k, v in another order."""

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        waiting: dict[str, torch.Tensor] = {}
        for name, tensor in tensors:
            if name == "norm.weight":
                super().load_weights([(name, tensor)])
                self.norm.weight.data.copy_(-torch.exp(self.norm.weight.data.float()))
            elif name in ("attn.q.weight", "attn.k.weight"):
                waiting[name] = tensor
                if len(waiting) == 2:
                    q, k = waiting["attn.k.weight"].flip(0), waiting["attn.q.weight"]
                    both = torch.cat([k[:4], q, k[4:]])
                    super().load_weights([("attn.q.weight", both[:8]), ("attn.k.weight", both[8:])])
            else:
                super().load_weights([(name, tensor)])


@pytest.mark.parametrize("place", [(0, 1), (1, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_what_the_loader_computes_it_makes_again(root: Path, place: tuple[int, int], packed: bool) -> None:
    pair = write_pair(root / f"computed-{packed}", 8, torch.bfloat16)
    model = loaded(Computing(*place, 8, torch.float32))
    if packed:
        model.qkv.quant_method = Packing(keep=False)  # type: ignore[assignment]
        model.qkv.quant_method.process_weights_after_loading(model.qkv)
    computed = {target.path: target.computed_from for target in trace(model, whole(pair)) if target.computed_from}
    assert computed == {
        "qkv.weight": ("attn.k.weight", "attn.q.weight", "attn.v.weight"),
        "norm.weight": ("norm.weight",),
    }
    asked: list[tuple[int, int]] = []

    def choose_tier(tensors: int, factors: int) -> str:
        asked.append((tensors, factors))
        return "device"

    resident = ResidentRoute(pair, tensor_rules(pair), model, CPU, choose_tier)
    digests = [resident.switch(lam) for lam in ("0", "1.3", "0.35", "0")]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3
    held = (parameter for name, parameter in model.named_parameters() if name not in computed)
    assert asked == [(2 * 2 * sum(parameter.numel() for parameter in held), 0)]
    for lam in ("0", "0.35", "1"):
        resident.switch(lam)
        fresh = Computing(*place, 8, torch.float32)
        fresh.load_weights(interpolated_tensors(pair, lam))
        for name, want in fresh.named_parameters():
            have = model.qkv.packed.t() if packed and name == "qkv.weight" else model.get_parameter(name)
            assert torch.equal(bits(have), bits(want)), (lam, name)


@pytest.mark.parametrize("tier", ["device", "pinned", "mmap"])
def test_an_adapted_tensor_that_is_loaded_as_no_part_of_a_matrix_is_a_copy(root: Path, tier: str) -> None:
    base = write_pair(root / "turning", 4, torch.bfloat16).base  # k is as wide as it is high, and loaded transposed
    write_adapter(root / "turning-adapter", 0, torch.bfloat16, {"attn.k": (4, 4), "attn.q": (8, 4)}, width=4)
    pair = put_together({"base": base, "aligned": open_checkpoint(str(root / "turning-adapter"), "aligned")}, STRAIGHT)
    model = Turning(0, 1, 4, torch.float32)
    resident = route(pair, model, tier)
    resident._limit = 24
    for lam in ("1", "0.35", "0"):
        resident.switch(lam)
        fresh = Turning(0, 1, 4, torch.float32)
        fresh.load_weights((name, tensor.clone()) for name, tensor in interpolated_tensors(pair, lam))
        for name, want in fresh.named_parameters():
            assert torch.equal(model.get_parameter(name), want), (lam, name)


class Turning(Model):
    """This loader moves elements before it copies them, as GPT-OSS does with its experts, and may change its input."""

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            if name == "attn.k.weight":
                tensor = tensor.t().contiguous().to("cpu")
            if name == "norm.weight":
                tensor.mul_(2)
            super().load_weights([(name, tensor)])


def test_a_copy_that_only_moves_elements_is_none_that_computes(root: Path) -> None:
    pair = write_pair(root / "moved", 4, torch.bfloat16)  # k is as wide as it is high
    targets = {target.path: target for target in trace(loaded(Turning(0, 1, 4, torch.float32)), whole(pair))}
    assert {path for path, target in targets.items() if target.computed_from} == {"norm.weight"}
    model = Turning(0, 1, 4, torch.float32)
    resident = route(pair, model, "mmap")
    for lam in ("0", "0.35", "0"):
        resident.switch(lam)
        fresh = Turning(0, 1, 4, torch.float32)
        fresh.load_weights((name, tensor.clone()) for name, tensor in interpolated_tensors(pair, lam))
        for name, want in fresh.named_parameters():
            assert torch.equal(model.get_parameter(name), want), (lam, name)


def test_a_parameter_of_several_dtypes_is_made_by_the_loader(root: Path) -> None:
    tensors = whole(write_pair(root / "mixed", 8, torch.bfloat16))
    tensors["attn.k.weight"] = tensors["attn.k.weight"].float()
    targets = {target.path: target for target in trace(loaded(Model(0, 1, 8, torch.float32)), tensors)}
    assert targets["qkv.weight"].computed_from == ("attn.k.weight", "attn.q.weight", "attn.v.weight")
    assert targets["qkv.bias"].computed_from == ()


@pytest.mark.parametrize("kind", [Model, Computing])
def test_a_reload_fills_what_a_model_copies_by_itself(root: Path, kind: type[Model]) -> None:
    """vLLM reloads into parameters without memory; only what goes through their weight loaders gets anywhere else."""
    pair = write_pair(root / "reload", 8, torch.bfloat16)
    model = loaded(kind(0, 1, 8, torch.float32))
    reload = ReloadRoute(pair, tensor_rules(pair), model, Any, CPU)
    for lam in ("1.3", "0.35"):
        reload.switch(lam)
        fresh = kind(0, 1, 8, torch.float32)
        fresh.load_weights(interpolated_tensors(pair, lam))
        for name, want in fresh.named_parameters():
            assert torch.equal(model.get_parameter(name), want), (lam, name)


class Decaying(Model):
    """This norm is loaded as a state space's decay is, by a weight loader of vLLM's."""

    def __init__(self, rank: int, ranks: int, width: int, dtype: torch.dtype) -> None:
        from vllm.model_executor.model_loader.weight_utils import composed_weight_loader, default_weight_loader

        super().__init__(rank, ranks, width, dtype)
        loader = composed_weight_loader(default_weight_loader, lambda tensor: -torch.exp(tensor.float()))
        self.norm.weight.weight_loader = loader  # type: ignore[union-attr]

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            if name == "norm.weight":
                self.norm.weight.weight_loader(self.norm.weight, tensor)  # type: ignore[union-attr, operator]
            else:
                super().load_weights([(name, tensor)])


def test_a_reload_leaves_the_resident_route_what_it_needs(root: Path) -> None:
    """vLLM puts loaders of its own into the places of a model's, and they write nowhere when the reload is over."""
    pair = write_pair(root / "after", 8, torch.bfloat16)
    model = loaded(Decaying(0, 1, 8, torch.float32))
    resident = ResidentRoute(pair, tensor_rules(pair), model, CPU, lambda *sizes: "mmap")
    reload = ReloadRoute(pair, tensor_rules(pair), model, Any, CPU)
    for way, lam in ((reload, "1"), (resident, "0.35"), (reload, "0.7"), (resident, "0")):
        way.switch(lam)
        fresh = Decaying(0, 1, 8, torch.float32)
        fresh.load_weights(interpolated_tensors(pair, lam))
        for name, want in fresh.named_parameters():
            assert torch.equal(model.get_parameter(name), want), (lam, name)


def test_a_reload_that_leaves_a_parameter_as_it_was_says_which(root: Path) -> None:
    pair = write_pair(root / "left", 8, torch.bfloat16)
    reload = ReloadRoute(pair, tensor_rules(pair), loaded(Leaving(0, 1, 8, torch.float32)), Any, CPU)
    with pytest.raises(EngineError, match=r"writes nothing into norm\.weight at λ = 0\.35"):
        reload.switch("0.35")


class Telling(Model):
    """Has a module under two names, and its loader tells the second one, as vLLM's Transformers backend does of experts."""

    left_out = ""

    def __init__(self, rank: int, ranks: int, width: int, dtype: torch.dtype) -> None:
        super().__init__(rank, ranks, width, dtype)
        self.experts.shared = self.down

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Any:
        super().load_weights(tensors)
        told = {name for name, _ in self.named_parameters()} - {"down.weight"} | {"experts.shared.weight"}
        return told - {self.left_out}


def test_a_loader_may_tell_any_name_of_a_parameter(root: Path) -> None:
    pair = write_pair(root / "telling", 8, torch.bfloat16)
    model = loaded(Telling(0, 1, 8, torch.float32))
    ReloadRoute(pair, tensor_rules(pair), model, Any, CPU).switch("0.35")
    assert torch.equal(model.down.weight, expected(pair, "0.35", 0, 1, torch.float32)["down.weight"])
    model.left_out = "experts.shared.weight"
    with pytest.raises(EngineError, match=r"loaded no weights into down\.weight at λ = 0\.35"):
        ReloadRoute(pair, tensor_rules(pair), model, Any, CPU).switch("0.35")


class Packing:
    """This quantisation method keeps a packed copy and throws the weight away, as vLLM's on the CPU, or changes it."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.packed = layer.weight.data.t().clone()
        made = layer.weight.data.flip(0) if self.keep else torch.empty(0)
        layer.weight = torch.nn.Parameter(made.clone(), requires_grad=False)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("tier", ["device", "mmap"])
def test_packed_layers_are_packed_anew(root: Path, keep: bool, tier: str) -> None:
    pair = write_pair(root / f"packed-{keep}", 8, torch.bfloat16)
    model = loaded(Model(0, 1, 8, torch.float32))
    model.qkv.quant_method = Packing(keep)  # type: ignore[assignment]
    model.qkv.quant_method.process_weights_after_loading(model.qkv)
    kept = model.qkv.weight
    resident = ResidentRoute(pair, tensor_rules(pair), model, CPU, lambda *sizes: tier)
    for lam in ("0.35", "1.3", "0.35"):
        resident.switch(lam)
        want = expected(pair, lam, 0, 1, torch.float32)
        assert torch.equal(model.qkv.packed, want["qkv.weight"].t())
        assert torch.equal(model.qkv.bias, want["qkv.bias"])
        assert model.qkv.weight is kept
        if keep:
            assert torch.equal(kept, want["qkv.weight"].flip(0))


def test_a_shared_weight_ties_modules_and_a_shared_bias_does_not() -> None:
    """Experts read their router's bias, and are packed for weights of their own: once, when those are filled."""
    model = Model(0, 1, 8, torch.float32)
    router: Any = torch.nn.Module()
    router.e_score_correction_bias = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    model.experts.e_score_correction_bias = router.e_score_correction_bias
    for module in (model.head, model.experts):
        module.quant_method = Packing(keep=False)  # type: ignore[assignment]
    reordered = torch.nn.ModuleList([router, model.embed, model.head, model.experts])
    assert tied_modules(reordered) == [model.head]


def test_a_layout_nobody_makes_is_refused(root: Path) -> None:
    model = loaded(Model(0, 1, 8, torch.float32))
    model.embed.weight = model.head.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    pair = write_pair(root / "layout", 8, torch.bfloat16)
    with pytest.raises(UntraceableError, match=r"keeps embed\.weight in a layout of its own"):
        ResidentRoute(pair, tensor_rules(pair), model, CPU, lambda *sizes: "mmap")


@pytest.mark.parametrize("tier", ["device", "mmap"])
def test_parents_give_every_element_once_in_blocks_within_the_limit(root: Path, tier: str) -> None:
    pair = write_pair(root / "blocks", 8, torch.bfloat16)
    tensors = whole(pair)
    targets = trace(loaded(Model(1, 2, 8, torch.float32)), tensors)
    both = [tensors, tensors]
    parents = MappedParents(targets, both, CPU) if tier == "mmap" else HeldParents(targets, both, CPU, CPU, False)
    for target in targets:
        hits = torch.zeros(target.layout.shape, dtype=torch.int32)
        for _, place, (base, aligned) in parents.blocks(target, 40, whole=True):
            place.on(hits).add_(1)
            assert base.numel() * 2 <= 40
            assert torch.equal(base, aligned)
        padding = 3 if tier == "mmap" and target.path == "embed.weight" else 0
        assert int((hits == 1).sum()) == hits.numel() - padding * 8
        assert int(hits.max()) == 1


def test_chunks_of_tensors_beyond_32_bits() -> None:
    shape, limit = (3, (1 << 31) // 4096 + 5, 4096), 1 << 26
    at = [0, 0]
    for index in chunks(shape, 2, limit):
        expert, rows, columns = index
        assert (columns.start, columns.stop) == (0, 4096)
        assert expert.stop - expert.start == 1
        assert [expert.start, rows.start] == at
        assert (rows.stop - rows.start) * 4096 * 2 <= limit
        at = [expert.start, rows.stop] if rows.stop < shape[1] else [expert.stop, 0]
    assert at == [3, 0]
    huge = torch.empty(1 << 20, 1 << 12, dtype=torch.bfloat16, device="meta")
    last = list(chunks(tuple(huge.shape), 2, limit))[-1]
    view = View.of(huge).block(last)
    assert view.offset + view.shape[0] * view.stride[0] == 1 << 32
    assert view.on(huge).storage_offset() == view.offset


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple),
    itemsize=st.sampled_from([2, 4]),
    limit=st.integers(4, 64),
)
def test_chunks_cover_every_element_once_in_order(shape: tuple[int, ...], itemsize: int, limit: int) -> None:
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    found = [numbers[index] for index in chunks(shape, itemsize, limit)]
    assert torch.cat([block.flatten() for block in found]).tolist() == numbers.flatten().tolist()
    assert all(block.numel() * itemsize <= max(limit, itemsize) for block in found)


def digest_of(tensor: torch.Tensor, name: str = "layer.weight") -> str:
    digest = WeightDigest(CPU)
    digest.add_whole(name, tensor)
    return digest.hex()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (5,), (8,), (6, 8), (6, 7), (2, 3, 8)])
def test_the_digest_is_its_formula(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    raw = tensor.reshape(-1, shape[-1] if shape else 1)
    words = raw.shape[1] * dtype.itemsize % 8 == 0
    total = 0
    for row in range(raw.shape[0]):
        data = raw[row].contiguous().view(torch.uint8).numpy().tobytes()
        size = 8 if words else dtype.itemsize
        numbers = [int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size)]
        total += (2 * row + 1) * sum(numbers)
    assert digest_of(tensor) == f"{total * parameter_key('layer.weight') % 2**64:016x}"


def test_the_digest_sees_what_is_wrong() -> None:
    tensor = torch.randn(16, 12, generator=torch.Generator().manual_seed(4)).bfloat16()
    right = digest_of(tensor)
    flipped = tensor.clone()
    flipped.view(torch.int16)[7, 5] ^= 1
    swapped = tensor.clone()
    swapped[[2, 9]] = tensor[[9, 2]]
    assert len({right, digest_of(flipped), digest_of(swapped), digest_of(tensor, "layer.bias")}) == 4
    assert digest_of(tensor.clone()) == right


def test_words_only_where_everything_lies_on_their_edges() -> None:
    assert takes_words(2, 8, [(0, 8)])
    assert takes_words(2, 8, [(0, 4), (4, 4)])
    assert not takes_words(2, 8, [(0, 2), (2, 6)])
    assert not takes_words(2, 6, [(0, 6)])
    assert takes_words(4, 6, [(0, 6)])


class Recorded:
    """This stands for a CUDA stream or event on the CPU, and writes down what happens."""

    log: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, *_: Any) -> None: ...

    def record(self, stream: Any = None) -> None:
        self.log.append(("record", self))

    def wait_event(self, event: Any) -> None:
        self.log.append(("wait", event))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded.log.clear()
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Recorded)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)


def test_what_an_adapter_adds_is_staged_with_base(recorded: None) -> None:
    """An aligned parent that an adapter makes is read of base's block, which has to be there even if base is not read."""
    generator = torch.Generator().manual_seed(5)
    base, other = (torch.randn(4, 6, generator=generator).bfloat16() for _ in range(2))
    added = Added(Factors(torch.randn(4, 2, generator=generator), torch.randn(2, 6, generator=generator), 0.5))
    staging = _Staging(CPU, 64, 3)
    staged: list[Any] = []
    for places, there in (((1,), {0}), ((2,), {2}), ((1, 2), {0, 2}), ((0, 1), {0})):
        for buffers in staging._buffers:
            buffers.fill_(0xFF)  # NaN, which is not what it was, and no block of before
        staged = staging.load([base, added, other], places)
        assert staged[1] is added
        assert {place for place in (0, 2) if torch.equal(staged[place], (base, added, other)[place])} == there  # type: ignore[arg-type]
        if 1 in places:
            assert torch.equal(staged[1].to(staged[0]), added.to(base))
        staging.release()
    with_vectors = Added(added.factors.part(slice(1, 2), slice(0, 6)))  # a block of a single row
    row, *_ = staging.load([base[1], with_vectors, other[1]], (1,))
    assert isinstance(row, torch.Tensor)
    assert torch.equal(with_vectors.to(row), added.to(base)[1])


def test_staging_never_overwrites_a_block_that_is_in_use(recorded: None) -> None:
    staging = _Staging(CPU, 64, 2)
    seen = []
    for turn in range(5):
        sources = [torch.full((2, 3), value, dtype=torch.bfloat16).t() for value in (turn, -turn)]
        base, aligned = staging.load(sources, (1,) if turn == 3 else (0, 1))
        assert torch.equal(base, sources[0]) == (turn != 3)  # parents that are not read are not copied
        assert torch.equal(aligned, sources[1])
        seen.append(base.data_ptr())
        staging.release()
    assert seen[0] == seen[2] == seen[4] != seen[1] == seen[3]
    for turn in range(5):
        (one, released), (two, filled), (three, waited), (four, done) = Recorded.log[4 * turn : 4 * turn + 4]
        assert (one, two, three, four) == ("wait", "record", "wait", "record")
        assert filled is waited  # it is computed with once it is there
        assert released is done is staging._released[turn % 2]  # it is filled again once that is over


def room(**changes: Any) -> Room:
    values: dict[str, Any] = {
        "host_total": 1000 * GIB,
        "host_available": 900 * GIB,
        "ranks": 8,
        "device_total": 80 * GIB,
        "device_free": 60 * GIB,
        "utilization": 0.9,
    }
    return Room(**(values | changes))


@pytest.mark.parametrize(
    ("parents", "changes", "tier"),
    [
        (35 * GIB, {}, "device"),  # 60 are free, of which 8 + 8 + 4.8 must stay so
        (40 * GIB, {}, "pinned"),
        (40 * GIB, {"kv_cache_bytes": 4 * GIB}, "device"),
        (40 * GIB, {"host_total": 390 * GIB}, "mmap"),  # all eight ranks count
        (40 * GIB, {"host_available": 39 * GIB}, "mmap"),
        (1 * GIB, {"device_total": 0, "device_free": 0}, "mmap"),  # the CPU reads files as fast as memory
        (35 * GIB, {"factor_bytes": 4 * GIB}, "device"),
        (35 * GIB, {"factor_bytes": 5 * GIB}, "pinned"),  # they are on the device wherever the rest is
        (97 * GIB, {"factor_bytes": 5 * GIB}, "pinned"),  # of the host they take nothing
    ],
)
def test_the_fastest_tier_that_fits(parents: int, changes: dict[str, Any], tier: str) -> None:
    assert tier_for("auto", parents, room(**changes)) == tier


def test_a_tier_that_was_asked_for_is_used_or_refused() -> None:
    assert tier_for("mmap", 1, room()) == "mmap"
    assert tier_for("pinned", 1, room()) == "pinned"
    assert tier_for("device", 1, room(device_total=0)) == "device"
    with pytest.raises(InputError, match=r"42\.9 GB a rank, and 64\.4 GB are free and 22\.3 GB must stay so"):
        tier_for("device", 40 * GIB, room())
    with pytest.raises(InputError, match=r"the host has 107\.4 GB for 8 ranks"):
        tier_for("pinned", 40 * GIB, room(host_total=100 * GIB))
    with pytest.raises(InputError, match="use --parents auto"):
        tier_for("device", 40 * GIB, room(device_total=0, host_total=100 * GIB))


def test_blocks_of_a_target_are_windows_on_it() -> None:
    def windows(tensor: torch.Tensor) -> Iterator[View]:
        yield View.of(tensor)
        yield View.of(tensor[1:, 2:5])
        yield View.of(tensor.t()[3])

    tensor = torch.arange(30).reshape(5, 6)
    shifted = torch.arange(100)[70:].reshape(5, 6)
    for view, part in zip(windows(tensor), (tensor, tensor[1:, 2:5], tensor.t()[3]), strict=True):
        assert torch.equal(view.on(tensor), part)
        assert torch.equal(view.on(shifted), part + 70)
    assert View.of(torch.tensor(3.0)).shape == (1,)


def test_page_locked_parents_are_unlocked_when_they_are_freed_or_do_not_all_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: dict[int, int] = {}

    class Cudart:
        refuses = False

        def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
            assert address not in locked, "part or all of the requested memory range is already mapped"
            if self.refuses and locked:
                return 2
            locked[address] = nbytes
            return 0

        def cudaHostUnregister(self, address: int) -> int:
            del locked[address]
            return 0

    cudart = Cudart()

    def check(code: int) -> None:
        if code:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    pair = write_pair(tmp_path, 8, torch.bfloat16)
    tensors = [dict(mapped_tensors(parent)) for parent in pair.parents.values()]
    targets = trace(loaded(Model(0, 1, 8, torch.bfloat16)), tensors[-1])
    held = HeldParents(targets, tensors, CPU, CPU, pin=True)
    assert len(locked) == 2
    assert all(locked.values())
    block = next(held.blocks(targets[0], 1 << 20, whole=True))[2]
    del held
    assert len(locked) == 2  # a block of each parent is still there
    del block
    assert locked == {}
    cudart.refuses = True
    with pytest.raises(RuntimeError, match="out of memory"):
        HeldParents(targets, tensors, CPU, CPU, pin=True)
    gc.collect()
    assert locked == {}
