"""Several aligned checkpoints over one base keep to the formula in exact arithmetic, in memory and on disk."""

import itertools
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import InputError, PairError
from contract.grid import canonical
from contract.points import coordinates
from lambdasweep.aligned_flags import parse_aligned, parse_revisions
from lambdasweep.batch.config import load_score_config
from lambdasweep.config import load_config
from lambdasweep.plan import describe
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from merge.fingerprints import fingerprint
from merge.interpolate import Rule, interpolate, interpolated_tensors, needed, theta
from merge.pair import open_pair
from tests.support.checkpoints import write_checkpoint
from tests.support.exported import EDGES, FORMATS, UNIT, bits, files, mixed, ulp, weights
from tests.support.weights import write

LAMS = st.one_of(
    st.sampled_from(["0", "1", "0.5", "-0.5", "1.5", "0.000001", "0.999999"]),
    st.integers(-3_000_000, 3_000_000).map(lambda millionths: canonical(Decimal(millionths).scaleb(-6))),
)
VALUES = st.one_of(st.sampled_from(EDGES), st.floats(-4e3, 4e3, width=32))
DTYPES = st.sampled_from(list(FORMATS))


def point(*lams: str) -> str:
    return ",".join(f"{name}={lam}" for name, lam in zip("abc", lams, strict=False))


@given(st.lists(LAMS, min_size=2, max_size=3), DTYPES, st.lists(st.tuples(*[VALUES] * 4), min_size=1, max_size=40))
def test_the_error_bound_holds(lams: list[str], dtype: torch.dtype, rows: list[tuple[float, ...]]) -> None:
    """Compute the bound that merge.interpolate derives, in exact arithmetic."""
    parents = [torch.tensor(column, dtype=torch.float64).to(dtype) for column in zip(*rows, strict=True)]
    parents = parents[: 1 + len(lams)]
    copies = [parent.clone() for parent in parents]
    made = theta(parents, point(*lams))
    assert all(bits(parent) == bits(copy) for parent, copy in zip(parents, copies, strict=True))
    away = [place for place, lam in enumerate(lams) if lam != "0"]
    if len(away) < 2:
        place = away[0] if away else 0
        assert bits(made) == bits(interpolate(parents[0], parents[1 + place], lams[place]))
        return
    for row, found in zip(zip(*(parent.double().tolist() for parent in parents), strict=True), made, strict=True):
        base, *aligned = map(Fraction, row)
        steps = [Fraction(lams[place]) * (aligned[place] - base) for place in away]
        exact, size = base + sum(steps), abs(base) + sum(map(abs, steps))
        if not math.isfinite(found):
            assert dtype is torch.float16
            assert abs(exact) > 65504
            continue
        tiny = len(steps) * Fraction(2) ** -149  # the least normal number of fp32, below which nothing is exact
        bound = (len(steps) + 3) * UNIT * (1 + 16 * UNIT) * size + tiny
        error = abs(Fraction(found.item()) - exact)
        if dtype is not torch.float32:
            bound += ulp(max(exact, Fraction(found.item()), key=abs), dtype) / 2
        assert error <= bound


@given(st.lists(LAMS, min_size=2, max_size=3), st.sampled_from(["1", "0.3", "-1", "0"]), DTYPES, st.integers(0, 99))
def test_slices_and_outputs_are_the_same_bits(lams: list[str], weight: str, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parents = [torch.randn(67, generator=generator).to(dtype) for _ in range(4)][: 1 + len(lams)]
    whole = theta(parents, point(*lams), rule=Rule(weight))
    read = needed(point(*lams), Rule(weight))
    for start, stop in ((0, 67), (0, 1), (3, 40), (64, 67)):
        some = [parent[start:stop] for parent in parents]
        # Parents that are not read may hold anything.
        some = [part if place in read else torch.full_like(part, math.nan) for place, part in enumerate(some)]
        out = torch.empty_like(some[0])
        assert theta(some, point(*lams), out, Rule(weight)) is out
        assert bits(out) == bits(whole[start:stop])
    read_twice = [parent for place, parent in enumerate(parents) if place in read]
    assert len(read_twice) == (1 if len(read) == 1 else 1 + sum(lam != "0" for lam in lams))


def test_a_weight_is_on_every_coordinate() -> None:
    parents = [torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert bits(theta(parents, point("0.8", "-1"), rule=Rule("0.5"))) == bits(theta(parents, point("0.4", "-0.5")))
    assert bits(theta(parents, point("0.8", "-1"), rule=Rule("0"))) == bits(parents[0])


@pytest.fixture(scope="module")
def mixed_parents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write base and two aligned parents of all dtypes, dealt out over files in three ways."""
    root = tmp_path_factory.mktemp("mixed")
    return [write(root / name, mixed(seed), shards=3 - seed) for seed, name in enumerate(("base", "dpo", "sft"))]


def make(parents: list[Path], lam: str, out: Path, like: str = "aligned", lam_map: str | None = None) -> Path:
    base, dpo, sft = parents
    source = from_flags(None, str(base), f"sft={sft},dpo={dpo}", None, None, lam, lam_map=lam_map)
    export_point(source, out, like, "1500KB", lambda _: None)
    return out


@pytest.mark.parametrize("lam", ["dpo=0.62,sft=0", "dpo=0,sft=-0.5", "dpo=0,sft=1", "dpo=0,sft=0"])
def test_an_axis_is_the_export_of_the_pair(mixed_parents: list[Path], tmp_path: Path, lam: str) -> None:
    name, own = max(coordinates(lam).items(), key=lambda pair: pair[1] != "0")
    made = files(make(mixed_parents, lam, tmp_path / "plane", like=name))
    aligned = mixed_parents[1 if name == "dpo" else 2]
    source = from_flags(None, str(mixed_parents[0]), str(aligned), None, None, own)
    export_point(source, tmp_path / "line", "aligned", "1500KB", lambda _: None)
    line = files(tmp_path / "line")
    assert {file for file in made if made[file] != line[file]} == {"README.md"}
    assert made.keys() == line.keys()


def test_the_weights_are_base_and_what_each_adds(mixed_parents: list[Path], tmp_path: Path) -> None:
    lam = "sft=0.25,dpo=1.50"
    found = weights(make(mixed_parents, lam, tmp_path / "out"))
    base, dpo, sft = (mixed(seed) for seed in range(3))
    for name, made in found.items():
        step = base[name].float() + 1.5 * (dpo[name].float() - base[name].float())
        want = (step + 0.25 * (sft[name].float() - base[name].float())).to(base[name].dtype)
        assert bits(made) == bits(want), name
    pair = open_pair(str(mixed_parents[0]), {"sft": str(mixed_parents[2]), "dpo": str(mixed_parents[1])})
    live = dict(interpolated_tensors(pair, "dpo=1.5,sft=0.25"))
    assert all(bits(found[name]) == bits(live[name]) for name in live)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base + 1.5 · (dpo − base) + 0.25 · (sft − base)" in card
    prints = [fingerprint(parent, role) for role, parent in pair.parents.items()]
    assert list(pair.parents) == ["base", "aligned.dpo", "aligned.sft"]
    assert all(f"| {role} | " in card for role in pair.parents)
    assert all(f"`{one}`" in card for one in prints)


def test_a_map_weighs_every_coordinate(mixed_parents: list[Path], tmp_path: Path) -> None:
    found = weights(make(mixed_parents, "dpo=0.5,sft=-1", tmp_path / "out", lam_map="layers.10=0.4,weight=0"))
    parents = [mixed(seed) for seed in range(3)]
    assert bits(found["model.embed.weight"]) == bits(parents[0]["model.embed.weight"])
    tensors = [one["model.layers.10.w"] for one in parents]
    assert bits(found["model.layers.10.w"]) == bits(theta(tensors, "dpo=0.2,sft=-0.4"))


def test_every_fault_of_every_parent_is_named_at_once(tmp_path: Path) -> None:
    base = write(tmp_path / "base", mixed(0))
    lacks = {name: tensor for name, tensor in mixed(1).items() if name != "model.layers.10.w"}
    other = {**mixed(2), "model.layers.0.odd": torch.zeros(8)}
    aligned = {"sft": str(write(tmp_path / "sft", lacks)), "dpo": str(write(tmp_path / "dpo", other))}
    with pytest.raises(PairError) as caught:
        open_pair(str(base), aligned)
    assert caught.value.problems == (
        "aligned.dpo: model.layers.0.odd is [7] F32 in base and [8] F32 in aligned",
        "aligned.sft: tensors only in base: model.layers.10.w",
    )
    with pytest.raises(PairError) as caught:
        open_pair(str(base), {"sft": str(tmp_path / "nowhere"), "dpo": str(tmp_path)})
    assert [problem.split(" ")[1] for problem in caught.value.problems] == ["aligned.dpo", "aligned.dpo", "aligned.sft"]


def test_what_is_between_two_is_refused(mixed_parents: list[Path], tmp_path: Path) -> None:
    base, dpo, sft = map(str, mixed_parents)
    for flags, says in (({"method": "slerp"}, "an arc is between two"), ({"vocab": "shared"}, "rows in common")):
        source = from_flags(None, base, f"sft={sft},dpo={dpo}", None, None, "dpo=1,sft=1", **flags)
        with pytest.raises(InputError, match=says):
            export_point(source, tmp_path / "out", "aligned", "5GB", lambda _: None)
    with pytest.raises(InputError, match="--like rl is no parent: give base, aligned, dpo or sft"):
        make(mixed_parents, "dpo=1,sft=1", tmp_path / "out", like="rl")
    with pytest.raises(InputError, match="'sft' is missing"):
        make(mixed_parents, "dpo=1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_config_is_of_the_named_parent(tmp_path: Path) -> None:
    parents = []
    for seed, name in enumerate(("base", "dpo", "sft")):
        parents.append(write(tmp_path / name, {"w": torch.full((2, 2), float(seed))}))
        (parents[-1] / "generation_config.json").write_text(json.dumps({"of": name}))
    for like, whose in (("base", "base"), ("aligned", "dpo"), ("dpo", "dpo"), ("sft", "sft")):
        made = make(parents, "dpo=1,sft=1", tmp_path / f"out-{like}", like=like)
        assert json.loads((made / "generation_config.json").read_text()) == {"of": whose}
        assert torch.equal(weights(made)["w"], torch.full((2, 2), 3.0))


def test_flags_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_aligned("sft=/x/a,b,dpo=/y/c=d") == {"dpo": "/y/c=d", "sft": "/x/a,b"}
    assert parse_aligned({"sft": "a,b=c", "dpo": "x"}) == {"dpo": "x", "sft": "a,b=c"}
    assert parse_aligned("/models/sft=1,dpo=2") == {"": "/models/sft=1,dpo=2"}  # a path does not begin with a name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft=1,dpo=2").mkdir()
    assert parse_aligned("sft=1,dpo=2") == {"": "sft=1,dpo=2"}  # a path that exists as it stands wins
    for bad, problem in itertools.chain(
        [("sft=x", "give two checkpoints or more with names, or one without"), ("sft=x,sft=y", "'sft' is named twice")],
        [("SFT=x,dpo=y", "'SFT' is no name: use a–z, 0–9, - and _"), ("sft=,dpo=y", "'sft' has no checkpoint")],
        [("base=x,dpo=y", "'base' is what another parent is called")],
    ):
        with pytest.raises(InputError) as caught:
            parse_aligned(bad)
        assert problem in caught.value.problems
    assert parse_revisions("main", [""]) == {"": "main"}
    assert parse_revisions("sft=v1,dpo=v2", ["dpo", "sft"]) == {"sft": "v1", "dpo": "v2"}
    for text in ("main", "rl=v1"):
        with pytest.raises(InputError, match="--aligned-revision cannot be used"):
            parse_revisions(text, ["dpo", "sft"])


def flags(tmp_path: Path, **changes: str | int) -> dict[str, Any]:
    given = {"base": "b", "aligned": "sft=s,dpo=d", "lambdas": "sft=0,1,dpo=0:1:0.5", "out": str(tmp_path / "run")}
    return given | changes


def test_a_sweep_of_several_is_read_from_flags_and_files(tmp_path: Path) -> None:
    config = load_config(flags(tmp_path), ["t=rows.jsonl"], [], [], None)
    assert config.aligned == {"dpo": "d", "sft": "s"}
    assert config.lambdas[:3] == ("dpo=0,sft=0", "dpo=0,sft=1", "dpo=0.5,sft=0")
    (tmp_path / "sft").mkdir()
    file = tmp_path / "sweep.toml"
    for aligned in ('{sft = "sft", dpo = "org/dpo"}', '"sft=sft,dpo=org/dpo"'):
        file.write_text(f'aligned = {aligned}\naligned_revision = {{dpo = "v1"}}\n')
        given = {key: value for key, value in flags(tmp_path).items() if key != "aligned"}
        config = load_config(given, ["t=rows.jsonl"], [], [], file)
        assert config.aligned == {"dpo": "org/dpo", "sft": str(tmp_path / "sft")}
        assert config.aligned_revision == {"dpo": "v1"}
    given = {"base": "b", "aligned": "sft=s,dpo=d", "lam": "sft=0.50,dpo=1", "out": str(tmp_path / "scores")}
    assert load_score_config(given, ["x.parquet"], []).sweep.lambdas == ("dpo=1,sft=0.5",)


def test_every_problem_of_a_sweep_of_several_is_named_at_once(tmp_path: Path) -> None:
    changes = {"method": "slerp", "vocab": "shared", "refine": 3, "tokenizer": "rl", "lambdas": "sft=0:1:0.5,rl=1"}
    with pytest.raises(InputError) as caught:
        load_config(flags(tmp_path, **changes), ["t=rows.jsonl"], [], [], None)
    said = "\n".join(caught.value.problems)
    for part in (
        "--method slerp takes one aligned checkpoint: an arc is between two",
        "--vocab shared takes one aligned checkpoint",
        "--refine goes along one λ",
        "--tokenizer is 'rl': use base, aligned, dpo, sft",
        "'rl' is no aligned checkpoint: there are dpo, sft",
        "'dpo' is missing",
    ):
        assert part in said
    assert load_config(flags(tmp_path, tokenizer="sft"), ["t=rows.jsonl"], [], [], None).tokenizer == "sft"
    with pytest.raises(InputError, match="is no name: use a–z"):
        load_config(flags(tmp_path, aligned="SFT=s,dpo=d"), ["t=rows.jsonl"], [], [], None)


def test_a_plan_counts_every_parent(tmp_path: Path) -> None:
    sources = [write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "dpo", "sft"))]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0}) + "\n")
    given = flags(tmp_path, base=str(sources[0]), aligned=f"sft={sources[2]},dpo={sources[1]}")
    lines = list(describe(load_config(given, [f"t={tmp_path / 'rows.jsonl'}"], [], [], None)))
    (pair,) = (line for line in lines if line.startswith("pair"))
    assert "; all 3 parents per rank: " in pair
    assert any(line.startswith("units     6 to do of 6 (6 λ)") for line in lines)
    assert not (tmp_path / "run").exists()
