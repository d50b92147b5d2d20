"""The parts of a line work without an engine: weights on λ by module, rows that keep still, and the arc."""

import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from contract.errors import InputError, PairError
from merge.interpolate import PLAIN, Rule, interpolate
from merge.lam_map import parse_map, resolve_map, scaled
from merge.line import Line
from merge.methods import slerp
from merge.methods.slerp import angle_between, coefficients, path
from merge.pair import Pair, open_pair
from merge.vocabulary import has_vocabulary_rows, runs

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.{part}.weight" for layer in range(12) for part in ("self_attn.q_proj", "mlp.down_proj")),
    "model.norm.weight",
    "lm_head.weight",
]


def weights(text: str, names: list[str] = NAMES) -> dict[str, str]:
    return resolve_map(parse_map(text), names)


def test_a_map_names_layers_and_modules() -> None:
    found = weights("layers.0-9=0.3, layers.10-=0.80,embed=1,lm_head=-2,")
    assert {name: weight for name, weight in found.items() if "layers" not in name} == {
        "model.embed_tokens.weight": "1",
        "lm_head.weight": "-2",
    }
    assert [found[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in (0, 9, 10, 11)] == [
        "0.3",
        "0.3",
        "0.8",
        "0.8",
    ]
    assert "model.norm.weight" not in found


def test_the_pattern_of_most_parts_holds_in_whatever_order() -> None:
    rules = ["*=0", "mlp=0.1", "layers.3=0.2", "layers.3.mlp=0.3", "model.layers.3.mlp.down_proj.weight=0.4", "q_*=0.5"]
    for order in (rules, rules[::-1]):
        found = weights(",".join(order))
        assert found["model.norm.weight"] == "0"
        assert found["model.layers.2.mlp.down_proj.weight"] == "0.1"
        assert found["model.layers.3.mlp.down_proj.weight"] == "0.4"
        assert found["model.layers.2.self_attn.q_proj.weight"] == "0.5"
        assert found["model.layers.3.self_attn.q_proj.weight"] == "0.2"


def test_names_of_other_architectures() -> None:
    names = ["transformer.wte.weight", "transformer.h.0.attn.weight", "transformer.h.11.attn.weight"]
    assert weights("embed=0.5,layers.1-=0.25", names) == {names[0]: "0.5", names[2]: "0.25"}


@pytest.mark.parametrize(
    ("text", "by_layer"),
    [
        ("layers=0.2:1", ["0.2", "0.272727", "0.345455", "0.418182"]),  # a third is rounded to six decimals
        ("layers.0-4=0:1", ["0", "0.25", "0.5", "0.75", "1"]),
        ("layers.2-10.mlp=1:0:-1", [None, None, "1", "0.75", "0.5", "0.25", "0", "-0.25", "-0.5", "-0.75", "-1", None]),
        ("layers.7=0.2:1", [None] * 7 + ["0.2", None]),
    ],
)
def test_values_are_spread_over_the_layers_that_match(text: str, by_layer: list[str | None]) -> None:
    found = weights(text)
    assert [found.get(f"model.layers.{layer}.mlp.down_proj.weight") for layer in range(len(by_layer))] == by_layer


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mlp", "'mlp' is not PATTERN=WEIGHT"),
        ("=1", "'=1' is not PATTERN=WEIGHT"),
        ("mlp=", "weight '' is not a decimal number"),
        ("mlp=1e-3", "weight '1e-3' is not a decimal number"),
        ("mlp=0.1234567", "weight 0.1234567 has more than 6 decimals"),
        (
            "gate=1",
            "gate=1 matches no tensor of the pair, which has model.embed_tokens.weight, model.layers.N.self_attn",
        ),
        ("layers.12-=1", "layers.12-=1 matches no tensor"),
        ("layers.0-5=1,layers.5-=2", "layers.0-5=1 and layers.5-=2 name model.layers.5.self_attn.q_proj.weight alike"),
        ("mlp=1,mlp=1", "mlp=1 and mlp=1 name model.layers.0.mlp.down_proj.weight alike"),
        ("*=0:1", r"\*=0:1 spreads its values over layers, but matches tensors of none"),
    ],
)
def test_a_map_that_cannot_be_used(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        weights(text)


def test_every_problem_of_a_map_is_named_at_once() -> None:
    with pytest.raises(InputError) as raised:
        weights("gate=1,up=2,mlp=1,mlp=2")
    assert len(raised.value.problems) == 3


@given(*[st.decimals(-(10**6) + 1, 10**6 - 1, places=6, allow_nan=False, allow_infinity=False)] * 2)
def test_a_weighed_lam_is_exact(lam: Decimal, weight: Decimal) -> None:
    found = scaled(f"{lam:f}", f"{weight:f}")
    if f"{weight:f}" != "1":
        assert Decimal(found) == lam * weight
        assert "e" not in found.lower()
        assert found == "0" or "." not in found or found[-1] not in "0."


def test_a_weight_moves_a_tensor_to_the_product(tmp_path: Path) -> None:
    one, two = (torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    assert torch.equal(interpolate(one, two, "0.5", rule=Rule("0.25")), interpolate(one, two, "0.125"))
    assert interpolate(one, two, "2", rule=Rule("0.5")) is two
    assert interpolate(one, two, "1.3", rule=Rule("0")) is one
    assert interpolate(one, two, "1", rule=PLAIN) is two


# Vocabularies


def test_rows_are_known_by_name() -> None:
    rows = ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias", "transformer.wte.weight", "output.weight"]
    assert all(map(has_vocabulary_rows, rows))
    others = [
        "model.layers.0.mlp.weight",
        "layers.0.attn.output.weight",
        "embed_tokens_per_layer.weight",
        "lm_head.x.weight",
    ]
    assert not any(map(has_vocabulary_rows, others))


def write(directory: Path, rows: int, strings: dict[int, str], width: int = 4, **config: object) -> str:
    directory.mkdir()
    generator = torch.Generator().manual_seed(rows)
    tensors = {
        "model.embed_tokens.weight": torch.randn(rows, width, generator=generator),
        "model.norm.weight": torch.randn(width, generator=generator),
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"vocab_size": rows, **config}))
    vocabulary = {text: token for token, text in strings.items()}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return str(directory)


BASE = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}  # rows 5 and 6 of 7 are padding


@pytest.mark.parametrize(
    ("rows", "strings", "ranges"),
    [
        (7, BASE, None),  # the padding is interpolated
        (7, BASE | {5: "<turn>"}, ((5, 6),)),
        (7, BASE | {0: "<pad>", 3: "x", 4: "y"}, ((0, 1), (3, 5))),
        (7, {0: "a", 1: "b", 2: "c", 3: "d"}, ((4, 5),)),  # only base has this string
        (9, BASE, ((7, 9),)),  # base has no such rows
        (9, BASE | {6: "z", 7: "<turn>"}, ((6, 9),)),
        (6, BASE, None),  # base has more padding
        (4, {0: "a", 1: "x", 2: "c", 3: "d"}, ((1, 2),)),
    ],
)
def test_rows_of_other_strings_are_those_of_aligned(
    tmp_path: Path, rows: int, strings: dict[int, str], ranges: tuple[tuple[int, int], ...] | None
) -> None:
    base, aligned = write(tmp_path / "base", 7, BASE), write(tmp_path / "aligned", rows, strings)
    pair = open_pair(base, aligned, line=Line(vocab="shared"))
    assert pair.aligned_rows == ({} if ranges is None else {"model.embed_tokens.weight": ranges})
    count = sum(stop - start for start, stop in ranges or ())
    told = [text for text in pair.warnings if "rows of model.embed_tokens.weight are aligned's at every λ" in text]
    assert told == ([pair.warnings[0]] if ranges else [])
    assert not ranges or told[0].startswith(f"{count} of {rows} rows")
    assert pair.shaped is pair.aligned
    if (rows, strings) == (7, BASE):
        assert open_pair(base, aligned) == Pair(pair.base, {"": pair.aligned}, ())
        return
    with pytest.raises(PairError):
        open_pair(base, aligned)


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    base = write(tmp_path / "base", 7, BASE)
    shared = Line(vocab="shared")
    with pytest.raises(PairError, match="no token id stands for the same string in base and aligned"):
        open_pair(base, write(tmp_path / "other", 7, {0: "x", 1: "a", 2: "b", 3: "c", 4: "d"}), line=shared)
    with pytest.raises(PairError, match=r"embed_tokens\.weight is \[7, 4\] F32 in base and \[7, 5\] F32 in aligned"):
        open_pair(base, write(tmp_path / "wide", 7, BASE, width=5), line=shared)
    with pytest.raises(PairError, match="hidden_act"):
        open_pair(base, write(tmp_path / "config", 9, BASE, hidden_act="relu"), line=shared)
    (tmp_path / "wide" / "tokenizer.json").unlink()
    with pytest.raises(PairError, match=r"aligned has no readable tokenizer\.json in .*, which --vocab shared goes by"):
        open_pair(base, str(tmp_path / "wide"), line=shared)


@given(st.sets(st.integers(0, 20)), st.integers(0, 20), st.integers(0, 20))
def test_runs_cover_every_row_once(kept: set[int], first: int, length: int) -> None:
    ranges = tuple((row, row + 1) for row in sorted(kept))
    found = list(runs(first, first + length, ranges))
    rows = [(row, is_kept) for start, stop, is_kept in found for row in range(start, stop)]
    assert rows == [(row, row in kept) for row in range(first, first + length)]


# The arc


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lam", ["0.5", "0.35", "1.3", "-0.5"])
def test_the_arc_is_its_formula(dtype: torch.dtype, lam: str) -> None:
    """It agrees with float64 up to three roundings of the largest term in fp32."""
    one, two = (torch.randn(37, 21, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    a, b = one.double(), two.double()
    angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    assert angle_between(one, two) == pytest.approx(angle, rel=1e-14)
    at = float(lam)
    terms = math.sin((1 - at) * angle) / math.sin(angle) * a, math.sin(at * angle) / math.sin(angle) * b
    made = interpolate(one, two, lam, rule=Rule(path=path(one, two)))
    exact = terms[0] + terms[1]
    assert made.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    limit = rounding * exact.abs() + torch.finfo(dtype).smallest_normal + 2.0**-23 * (terms[0].abs() + terms[1].abs())
    assert bool(((made.double() - exact).abs() <= limit * (1 + 2.0**-20)).all())


def test_the_ends_of_the_arc_are_the_parents() -> None:
    one, two = torch.tensor([-0.0, 1.0, 2.0]), torch.tensor([3.0, -0.0, 1.0])
    rule = Rule(path=path(one, two))
    assert rule.path is not None
    assert interpolate(one, two, "0", rule=rule) is one
    assert interpolate(one, two, "1", rule=rule) is two


def test_where_the_line_is_straight() -> None:
    one = torch.randn(100, generator=torch.Generator().manual_seed(0))
    other = torch.randn(100, generator=torch.Generator().manual_seed(1))
    assert angle_between(one, 1.5 * one) is None
    assert angle_between(one, -one) is None
    assert angle_between(one, one + 0.01 * other) is None  # cos = 0.99995
    assert angle_between(one, one + 0.05 * other) is not None  # cos = 0.9987
    zero = torch.zeros(100)
    assert angle_between(zero, one) == angle_between(zero, zero) == pytest.approx(math.pi / 2)
    assert angle_between(torch.tensor(2.0), torch.tensor(-3.0)) is None


def test_an_angle_leaves_rows_out() -> None:
    one, two = (torch.randn(9, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rows = [0, 3, 4]
    alone = angle_between(one[rows], two[rows])
    assert angle_between(one[:5], two, ((1, 3), (5, 9))) == pytest.approx(alone, rel=1e-14)
    assert angle_between(one, two) != pytest.approx(alone, rel=1e-3)


def test_an_angle_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slerp, "_CHUNK", 1 << 12)
    one, two = (torch.randn(300, 301, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    threads, found = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add(angle_between(one, two))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_coefficients_at_the_middle() -> None:
    one, two = coefficients(0.5, math.pi / 2)
    assert one == two == pytest.approx(math.sqrt(0.5))
