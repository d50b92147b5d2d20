"""Points over several aligned checkpoints have names and an order, and make grids."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import points
from contract.errors import GridError
from contract.grid import canonical
from contract.points import parse_point, parse_points

NAMES = ("dpo", "sft")
LAMS = st.decimals(-9, 9, places=3).map(canonical)


def test_a_grid_is_the_product_of_those_of_its_coordinates() -> None:
    grid = parse_points("sft=0,0.5,1,dpo=0:1:0.5", NAMES)
    assert len(grid) == 9
    assert grid[:4] == ("dpo=0,sft=0", "dpo=0,sft=0.5", "dpo=0,sft=1", "dpo=0.5,sft=0")
    assert grid == tuple(sorted(grid, key=points.order))
    assert parse_points("dpo=0:1:0.5,sft=0:0.5:0.5,1.0", NAMES) == grid
    assert parse_points("0,1") == ("0", "1")


# Without an alphabet, Hypothesis looks through all of Unicode first.
CHOSEN = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,6}", fullmatch=True, alphabet=st.characters(codec="ascii"))


@given(st.dictionaries(CHOSEN, LAMS, min_size=2, max_size=4))
def test_a_point_has_one_name(lams: dict[str, str]) -> None:
    point = points.named(lams)
    assert points.coordinates(point) == dict(sorted(lams.items()))
    backwards = ",".join(f"{name}={Decimal(lam):.5f}" for name, lam in sorted(lams.items(), reverse=True))
    assert parse_point(backwards, lams.keys()) == point == parse_point(point, set(lams))
    assert points.from_path(points.in_path(point)) == point
    assert not set("=,/?#") & set(points.in_path(point))


@given(LAMS)
def test_over_one_checkpoint_nothing_is_different(lam: str) -> None:
    assert points.coordinates(lam) == {"": lam}
    assert parse_point(lam) == points.named({"": lam}) == points.in_path(lam) == lam
    assert points.order(lam) == (Decimal(lam),)
    assert points.is_parent(lam) == (lam in ("0", "1"))


def test_points_sort_as_numbers() -> None:
    descending = ["dpo=10,sft=0", "dpo=2,sft=1", "dpo=2,sft=-1", "dpo=-0.5,sft=3"]
    assert sorted(descending, key=points.order) == descending[::-1]


def test_parents_and_the_middle() -> None:
    assert points.parents([""]) == {"base": "0", "aligned": "1"}
    assert points.parents(["sft", "dpo"]) == {
        "base": "dpo=0,sft=0",
        "dpo": "dpo=1,sft=0",
        "sft": "dpo=0,sft=1",
    }
    assert [point for point in parse_points("dpo=0,1,2,sft=0,1", NAMES) if points.is_parent(point)] == [
        "dpo=0,sft=0",
        "dpo=0,sft=1",
        "dpo=1,sft=0",
    ]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("0:1:0.5", ["it names no coordinate: there are dpo, sft"]),
        ("0.5,dpo=1,sft=0", ["it names no coordinate: there are dpo, sft"]),
        ("dpo=0:1:0.5", ["'sft' is missing"]),
        ("dpo=1,dpo=2,rl=0", ["'dpo' is named twice", "'rl' is no aligned checkpoint: there are dpo, sft"]),
        ("dpo=1e3,sft=0:1:0", ["dpo: λ '1e3' is not a decimal number: write it like 0.35", "sft: '0:1:0' has step 0"]),
        ("dpo=0,sft=", ["sft: an empty part between two commas"]),
    ],
)
def test_every_problem_of_a_grid_is_named(text: str, problems: list[str]) -> None:
    with pytest.raises(GridError) as caught:
        parse_points(text, NAMES)
    assert "write it like dpo=0:1:0.25,sft=0:1:0.25" in caught.value.title
    for problem in problems:
        assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def test_a_point_takes_one_number_for_each() -> None:
    with pytest.raises(GridError, match=r"dpo: λ '0:1:1' is not a decimal number"):
        parse_point("dpo=0:1:1,sft=0", NAMES)
    with pytest.raises(GridError, match="at most 100000 are taken"):
        parse_points("dpo=0:1:0.001,sft=0:1:0.001", NAMES)


def test_names() -> None:
    assert points.name_problems(["dpo", "sft-2_b"]) == []
    assert len(points.name_problems(["", "a b", "base", "dpo", "dpo"])) == 4
