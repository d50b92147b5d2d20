"""LoRA adapters as parents agree with PEFT's own merge and with float64."""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from contract.errors import PairError
from merge.checkpoint import ADAPTER, ADAPTER_CONFIG, SINGLE, open_checkpoint
from merge.computed import Computed, Factors, factors_on, mapped
from merge.export import ExportPlan, export
from merge.fingerprints import fingerprint
from merge.heads import engine_parent
from merge.interpolate import interpolated_tensors
from merge.line import Line
from merge.pair import Pair, open_pair
from merge.remote_parent import open_here, travelling
from tests.support.adapters import write_adapter
from tests.support.checkpoints import write_checkpoint
from tests.support.exported import Tensors, bits

BF16_UNIT = 2.0**-8  # this is half a unit in the last place, relative


@dataclass(frozen=True)
class Case:
    """This is an adapter, and how many of base's tensors it changes."""

    name: str
    config: dict[str, Any]
    changed: int
    tied: bool = True
    kind: str = "llama"
    dtypes: tuple[torch.dtype, ...] = field(default=(torch.bfloat16,))


CASES = (
    Case("plain", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}, 6),
    Case("float32", {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}, 14, dtypes=(torch.float32,)),
    Case(
        "patterns",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "up_proj", "o_proj"],
            "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 7, "up_proj": 2},
            "alpha_pattern": {"^model.layers.0.mlp.up_proj": 3, "o_proj": 11},
        },
        6,
    ),
    Case(
        "whole modules",
        {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        4,
        tied=False,
    ),
    Case("embedding", {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "gate_proj"]}, 3, tied=False),
    Case("transposed", {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn"], "fan_in_fan_out": True}, 2, kind="gpt2"),
)


def write_base(directory: Path, case: Case) -> Path:
    if case.kind == "llama":
        return write_checkpoint(directory, seed=0, dtype=case.dtypes[0], tie=case.tied)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).to(case.dtypes[0]).save_pretrained(directory)
    return directory


def exported(pair: Pair, lam: str, out: Path, like: str = "base") -> Tensors:
    export(ExportPlan(pair, dict.fromkeys(pair.opened, ""), lam, like, out, 10**9), "", 2, print)
    return load_file(out / SINGLE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_adapter_is_what_peft_merges(tmp_path: Path, case: Case) -> None:
    base = write_base(tmp_path / "base", case)
    merged = write_adapter(tmp_path / "adapter", base, 1, **case.config)
    pair = open_pair(str(base), str(tmp_path / "adapter"))
    stored = load_file(base / SINGLE)
    aligned = dict(interpolated_tensors(pair, "1"))
    assert aligned.keys() == stored.keys()
    changed = 0
    for name, tensor in aligned.items():
        # PEFT's own sum is in float32, and ours is rounded once more to the dtype of base.
        unit = BF16_UNIT if tensor.dtype == torch.bfloat16 else 0.0
        bound = unit * merged[name].abs() + 4e-6
        assert ((tensor.float() - merged[name]).abs() <= bound).all(), name
        changed += not torch.equal(tensor, stored[name].to(tensor.dtype))
    assert changed == case.changed
    for lam in ("0", "0.35", "1"):
        found, live = exported(pair, lam, tmp_path / lam), dict(interpolated_tensors(pair, lam))
        for name, one in stored.items():
            assert bits(found[name]) == bits(live[name])
            start, end = one.float(), aligned[name].float()
            wanted = {"0": start, "1": end}.get(lam, torch.lerp(start, end, float(lam)))
            assert bits(live[name]) == bits(wanted.to(live[name].dtype))
    assert not list((tmp_path / "1").glob("adapter_*"))


def test_a_tensor_is_rounded_once_from_exact_factors(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", seed=0)
    write_adapter(tmp_path / "adapter", base, 1, r=8, lora_alpha=12, target_modules=["gate_proj"])
    pair = open_pair(str(base), str(tmp_path / "adapter"))
    name = "model.layers.0.mlp.gate_proj.weight"
    factors = load_file(tmp_path / "adapter" / ADAPTER)
    up, down = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{one}.weight"].double() for one in "BA")
    exact = load_file(base / SINGLE)[name].double() + 12 / 8 * up @ down
    made = mapped(pair.aligned)[name]
    assert isinstance(made, Computed)
    error = (made.whole().double() - exact).abs()
    assert (error <= exact.abs() * BF16_UNIT * (1 + 1e-3) + 1e-7).all()


@pytest.mark.parametrize("is_transposed", [False, True])
def test_any_window_has_the_bits_of_the_whole(is_transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns, rank = 57, 1031, 9  # these rows cut badly into the parts that are computed at a time
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    stored = torch.randn(rows, columns, generator=generator).bfloat16()
    if is_transposed:
        up, down = up.T.contiguous().T, down.T.contiguous().T
    made = Computed(stored, torch.bfloat16, Factors(up, down, 0.3))
    whole = made.whole()
    assert bits(whole) != bits(stored)
    for shape, stride, offset in (
        ((57, 1031), (1031, 1), 0),
        ((20, 1031), (1031, 1), 11 * 1031),
        ((20, 1031), (2062, 1), 11 * 1031),  # every other row
        ((57, 100), (1031, 1), 900),
        ((1, 13), (1031, 1), 5 * 1031 + 7),
        ((300,), (1,), 9 * 1031 + 50),
        ((1031, 57), (1, 1031), 0),
        ((3, 19, 1031), (19 * 1031, 1031, 1), 0),
        ((2000,), (1,), 1000),
    ):
        assert bits(made.window(shape, stride, offset)) == bits(whole.as_strided(shape, stride, offset))


def test_factors_are_of_base_s_own_numbers_or_of_none() -> None:
    stored, factors = torch.ones(3, 4).bfloat16(), Factors(torch.ones(3, 1), torch.ones(1, 4), 2.0)
    assert factors_on(stored, Computed(stored, torch.bfloat16, factors)) is factors
    assert factors_on(Computed(stored, torch.float32), Computed(stored, torch.float32, factors)) is factors
    assert factors_on(stored, Computed(stored, torch.float32, factors)) is None
    assert factors_on(stored, Computed(stored.clone(), torch.bfloat16, factors)) is None
    assert factors_on(stored, stored) is None


def test_several_adapters_are_added(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", seed=0, dtype=torch.float32)
    for seed, name in enumerate(("dpo", "sft"), 1):
        write_adapter(tmp_path / name, base, seed, r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    pair = open_pair(str(base), {name: str(tmp_path / name) for name in ("dpo", "sft")})
    assert pair.parents.keys() == {"base", "aligned.dpo", "aligned.sft"}
    point = "dpo=0.5,sft=0.25"
    found = exported(pair, point, tmp_path / "out")
    start, one, two = (dict(interpolated_tensors(pair, at)) for at in ("dpo=0,sft=0", "dpo=1,sft=0", "dpo=0,sft=1"))
    for name, tensor in found.items():
        wanted = start[name].double() + 0.5 * (one[name].double() - start[name].double())
        wanted += 0.25 * (two[name].double() - start[name].double())
        assert (tensor.double() - wanted).abs().max() < 1e-6


def test_fingerprints_and_other_machines_have_the_adapter_itself(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", seed=0)
    adapter = tmp_path / "adapter"
    write_adapter(adapter, base, 1, r=4, lora_alpha=8, target_modules=["q_proj"])
    pair = open_pair(str(base), str(adapter))
    prints = {role: fingerprint(one, role) for role, one in pair.opened.items()}
    one, others = travelling(pair, prints)
    assert (open_here(one).path, open_here(others[""]).path) == (base.resolve(), adapter.resolve())
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {"lora_alpha": 9}))
    assert fingerprint(open_checkpoint(str(adapter), "aligned"), "aligned") != prints["aligned"]


def test_tokenizer_and_config_are_base_s_unless_the_adapter_has_a_tokenizer(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", seed=0)
    adapter = tmp_path / "adapter"
    write_adapter(adapter, base, 1, r=4, lora_alpha=8, target_modules=["q_proj"])
    pair = open_pair(str(base), str(adapter))
    assert (pair.aligned.path, pair.aligned.source) == (base.resolve(), str(adapter))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (adapter / name).write_bytes((base / name).read_bytes())
    (adapter / "chat_template.jinja").write_text("of the adapter")
    pair = open_pair(str(base), str(adapter))
    assert pair.aligned.path == adapter.resolve()
    exported(pair, "1", tmp_path / "out", like="aligned")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "of the adapter"
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("adapter")
    base = write_checkpoint(root / "base", seed=0)
    write_adapter(root / "adapter", base, 1, r=4, lora_alpha=8, target_modules=["q_proj"])
    return base, root / "adapter"


def changed(adapter: Path, to: Path, config: dict[str, Any], weights: Tensors | None = None) -> Path:
    to.mkdir()
    plain = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (to / ADAPTER_CONFIG).write_text(json.dumps(plain | config))
    save_file(load_file(adapter / ADAPTER) if weights is None else weights, to / ADAPTER)
    return to


MERGE = "merge it with peft's merge_and_unload()"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"use_dora": True},
            f"use_dora is True in adapter_config.json, which makes weights by another formula .*{MERGE}",
        ),
        ({"bias": "all"}, f"bias is 'all' in adapter_config.json.*{MERGE}"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes base's weights, too: convert it"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"peft_type": "IA3"}, f"it is of the kind IA3, and only LoRA is taken: {MERGE}"),
        ({"r": 5}, "has rank 4, and adapter_config.json says 5"),
        ({"lora_alpha": None}, "and lora_alpha None"),
        ({"fan_in_fan_out": True}, "make a tensor of shape .*, and base's is"),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, written: tuple[Path, Path], config: dict[str, Any], says: str
) -> None:
    base, adapter = written
    with pytest.raises(PairError, match=says) as raised:
        open_pair(str(base), str(changed(adapter, tmp_path / "adapter", config)))
    assert all(
        problem.startswith(f"the adapter {tmp_path / 'adapter'} cannot be used: ") for problem in raised.value.problems
    )


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (("layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"), "base has no weights named model.layers.7"),
        (("layers.0.self_attn.q_proj.lora_B.weight", "x.lora_magnitude_vector"), "which is no factor of a plain LoRA"),
        (("layers.0.self_attn.q_proj.lora_B", "layers.0.self_attn.k_proj.lora_B"), "has one of two factors"),
        (("model.model.layers.0.self_attn.q_proj", "model.self_attn.q_proj"), "named self_attn.q_proj: give the base"),
        (("model.model.layers.0.", "model.model.layers.00."), "base has no weights named model.layers.00.self_attn"),
    ],
)
def test_factors_must_fit_base(tmp_path: Path, written: tuple[Path, Path], rename: tuple[str, str], says: str) -> None:
    base, adapter = written
    weights = {name.replace(*rename): tensor for name, tensor in load_file(adapter / ADAPTER).items()}
    with pytest.raises(PairError, match=says):
        open_pair(str(base), str(changed(adapter, tmp_path / "adapter", {}, weights)))


@pytest.mark.parametrize("prefix", ["", "model.", "model.model.", "language_model.model.", "thinker.model.model."])
def test_models_may_have_a_prefix_more_or_less(tmp_path: Path, written: tuple[Path, Path], prefix: str) -> None:
    base, adapter = written
    weights = {
        name.replace("base_model.model.model.", f"base_model.model.{prefix}"): tensor
        for name, tensor in load_file(adapter / ADAPTER).items()
    }
    called, wanted = (
        open_pair(str(base), str(one)).aligned.tensors
        for one in (changed(adapter, tmp_path / "adapter", {}, weights), adapter)
    )
    adapted = {name for name, info in called.items() if info.update is not None}
    assert adapted == {name for name, info in wanted.items() if info.update is not None}
    assert len(adapted) == 2


def test_factors_that_make_no_matrix_and_none_at_all_are_refused(tmp_path: Path, written: tuple[Path, Path]) -> None:
    base, adapter = written
    cut = {name: tensor[:3] if "lora_A" in name else tensor for name, tensor in load_file(adapter / ADAPTER).items()}
    with pytest.raises(PairError, match=r"q_proj have the shapes \[3, 64\] and \[128, 4\]"):
        open_pair(str(base), str(changed(adapter, tmp_path / "cut", {}, cut)))
    with pytest.raises(PairError, match="it has no factors"):
        open_pair(str(base), str(changed(adapter, tmp_path / "empty", {}, {})))


def test_a_pattern_is_of_whole_names_of_modules(tmp_path: Path, written: tuple[Path, Path]) -> None:
    """PEFT takes `proj` for no part of `q_proj`, whose rank is then the adapter's."""
    base, adapter = written
    to = changed(adapter, tmp_path / "adapter", {"rank_pattern": {"proj": 5}, "alpha_pattern": {"attn.q_proj": 1}})
    update = open_pair(str(base), str(to)).aligned.tensors["model.layers.1.self_attn.q_proj.weight"].update
    assert update is not None
    assert update.scale == 8 / 4


@pytest.mark.parametrize("wraps", ["base_layer", "modules_to_save", "modules_to_save.default"])
def test_a_layer_that_is_saved_whole_counts_under_every_name_that_peft_has_for_it(tmp_path: Path, wraps: str) -> None:
    """A resized embedding is saved under the name of the layer that the adapted one wraps."""
    base = write_checkpoint(tmp_path / "base", seed=0, tie=False)
    write_adapter(tmp_path / "adapter", base, 1, r=2, lora_alpha=4, target_modules=["q_proj"])
    name = "model.embed_tokens.weight"
    saved = load_file(base / SINGLE)[name].flip(0).contiguous()
    weights = load_file(tmp_path / "adapter" / ADAPTER)
    weights[f"base_model.model.{name.replace('weight', f'{wraps}.weight')}"] = saved
    pair = open_pair(str(base), str(changed(tmp_path / "adapter", tmp_path / "saved", {}, weights)))
    assert bits(dict(interpolated_tensors(pair, "1"))[name]) == bits(saved)


def test_bytes_of_an_adapter_are_those_of_its_factors_and_of_what_it_has_whole(
    tmp_path: Path, written: tuple[Path, Path]
) -> None:
    base, adapter = written
    weights = load_file(adapter / ADAPTER)
    factors = {name: tensor.nbytes for name, tensor in weights.items()}
    pair = open_pair(str(base), str(adapter))
    assert pair.held_bytes(1) == (pair.base.nbytes, sum(factors.values()))
    assert pair.stored_bytes == pair.base.nbytes + sum(factors.values())
    # What is added to another tensor than base's is no factor of base's.
    name = "model.layers.0.self_attn.q_proj.weight"
    own = load_file(base / SINGLE)[name].flip(0).contiguous()
    weights[f"base_model.model.{name.replace('weight', 'base_layer.weight')}"] = own
    pair = open_pair(str(base), str(changed(adapter, tmp_path / "whole", {}, weights)))
    others = sum(nbytes for stored, nbytes in factors.items() if ".layers.1." in stored)
    assert pair.held_bytes(1) == (pair.base.nbytes + own.nbytes, others)


def test_a_checkpoint_that_an_adapter_lies_beside_is_the_checkpoint(tmp_path: Path, written: tuple[Path, Path]) -> None:
    base, adapter = written
    both = Path(shutil.copytree(base, tmp_path / "both"))
    for file in (ADAPTER, ADAPTER_CONFIG):
        shutil.copy(adapter / file, both)
    found = open_checkpoint(str(both), "aligned")
    assert (found.is_adapter, found.tensors.keys()) == (False, open_checkpoint(str(base), "base").tensors.keys())
    assert engine_parent([open_checkpoint(str(one), "parent") for one in (adapter, both)]) == (1, {})


def test_adapters_go_where_they_can(tmp_path: Path, written: tuple[Path, Path]) -> None:
    base, adapter = written
    with pytest.raises(PairError, match="is an adapter: give the checkpoint that it was made for as --base"):
        open_pair(str(adapter), str(base))
    with pytest.raises(PairError, match="--vocab shared does not go with an adapter"):
        open_pair(str(base), str(adapter), line=Line(vocab="shared"))
    tied = tmp_path / "tied"
    write_adapter(tied, base, 1, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(PairError, match="brings an LM head of its own, and no engine starts with a base that ties"):
        open_pair(str(base), str(tied))
    embedding = tmp_path / "embedding"
    write_adapter(embedding, base, 1, r=2, target_modules=["embed_tokens"])
    with pytest.raises(
        PairError, match=r"it changes model\.embed_tokens\.weight, to which base ties its LM head: peft makes"
    ):
        open_pair(str(base), str(embedding))
    odd = {name: tensor.double() for name, tensor in load_file(adapter / ADAPTER).items()}
    with pytest.raises(PairError, match="it has tensors of F64: save it in F32, BF16 or F16"):
        open_pair(str(base), str(changed(adapter, tmp_path / "odd", {}, odd)))
    (tmp_path / "odd" / ADAPTER).unlink()
    with pytest.raises(PairError, match=f"has no {ADAPTER}"):
        open_pair(str(base), str(tmp_path / "odd"))


@pytest.mark.parametrize(
    ("made_for", "warns"),
    [
        ("", "does not say which"),
        ("org/other", "is an adapter of org/other, and base is"),
        ("org/BASE", ""),
        (None, ""),
    ],
)
def test_another_base_is_warned_of(
    tmp_path: Path, written: tuple[Path, Path], made_for: str | None, warns: str
) -> None:
    base, adapter = written
    config = {} if made_for is None else {"base_model_name_or_path": made_for}
    warnings = open_pair(str(base), str(changed(adapter, tmp_path / "adapter", config))).warnings
    assert len(warnings) == bool(warns)
    assert warns in "".join(warnings)


def test_rank_stabilised_scale(tmp_path: Path, written: tuple[Path, Path]) -> None:
    base, adapter = written
    name = "model.layers.0.self_attn.q_proj.weight"
    for is_stabilised, scale in ((False, 8 / 4), (True, 8 / math.sqrt(4))):
        to = changed(adapter, tmp_path / str(is_stabilised), {"use_rslora": is_stabilised})
        update = open_pair(str(base), str(to)).aligned.tensors[name].update
        assert update is not None
        assert update.scale == scale
