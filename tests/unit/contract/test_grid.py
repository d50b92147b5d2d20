"""The λ grid has canonical names and ranges, and every way to write it wrong is refused."""

import itertools
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import GridError
from contract.grid import MAX_POINTS, canonical, parse_grid

CANONICAL = re.compile(r"0|-?(0|[1-9]\d*)\.\d{0,5}[1-9]|-?[1-9]\d*")

# λ is a whole number of millionths, which is exact and in range.
millionths = st.integers(-999_999_999_999, 999_999_999_999)


def exact(count: int) -> Decimal:
    return Decimal(count).scaleb(-6)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("+0", "0"),
        ("-0.000", "0"),
        ("000", "0"),
        ("1.0", "1"),
        ("1.", "1"),
        ("+1.50", "1.5"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("-0.50", "-0.5"),
        ("007.10", "7.1"),
        ("10", "10"),
        ("100.00", "100"),
        ("0.000001", "0.000001"),
        ("0.1234560000", "0.123456"),
        ("999999.999999", "999999.999999"),
        (" 0.35 ", "0.35"),
        ("٣", "3"),  # any digit is taken, and the canonical name has ASCII digits
        (2, "2"),
        (-1, "-1"),
        (Decimal("0.50"), "0.5"),
        (Decimal("1E+2"), "100"),
        (Decimal("5E-6"), "0.000005"),
    ],
)
def test_a_point_has_one_name(written: str | int | Decimal, name: str) -> None:
    assert canonical(written) == name


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "is not a decimal number"),
        (".", "is not a decimal number"),
        ("1e-3", "is not a decimal number"),
        ("0,5", "is not a decimal number"),
        ("nan", "is not a decimal number"),
        ("inf", "is not a decimal number"),
        ("1_000", "is not a decimal number"),
        ("--1", "is not a decimal number"),
        ("0x1", "is not a decimal number"),
        ("0.0000001", "more than 6 decimals"),
        ("0.3333333", "more than 6 decimals"),
        ("1000000", "out of range"),
        ("-1000000.5", "out of range"),
    ],
)
def test_what_is_no_point_is_refused(written: str, says: str) -> None:
    with pytest.raises(GridError, match=says):
        canonical(written)


@given(millionths, st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_canonical_names_round_trip(count: int, zeros_before: int, zeros_after: int, plus: bool) -> None:
    value = exact(count)
    name = canonical(value)
    assert CANONICAL.fullmatch(name)
    assert Decimal(name) == value
    assert canonical(name) == name
    sign, digits = ("-", f"{value:f}"[1:]) if f"{value:f}".startswith("-") else ("+" * plus, f"{value:f}")
    assert canonical(sign + "0" * zeros_before + digits + "0" * zeros_after) == name


@given(millionths, millionths)
def test_two_points_are_one_exactly_when_their_names_are(one: int, two: int) -> None:
    assert (canonical(exact(one)) == canonical(exact(two))) == (one == two)


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ("0:1:0.25", ["0", "0.25", "0.5", "0.75", "1"]),
        ("0:1.5:0.5", ["0", "0.5", "1", "1.5"]),
        ("0:1:0.3", ["0", "0.3", "0.6", "0.9"]),  # 1 is not on a step
        ("0:0.3:0.1", ["0", "0.1", "0.2", "0.3"]),  # floats end at 0.30000000000000004, beyond the stop
        ("0.5:0.5:0.1", ["0.5"]),
        ("0:0.000003:0.000001", ["0", "0.000001", "0.000002", "0.000003"]),
        ("-0.5:0.5:0.25", ["-0.5", "-0.25", "0", "0.25", "0.5"]),
        ("1:3:1", ["1", "2", "3"]),
        ("1,0.25,0", ["0", "0.25", "1"]),
        ("2,10,-3", ["-3", "2", "10"]),  # λs are ordered by value, not by text
        ("1.50", ["1.5"]),
        ("0:1:0.5,1.25,2:3:1", ["0", "0.5", "1", "1.25", "2", "3"]),
        (" 0 : 1 : 0.5 , 1.5 ", ["0", "0.5", "1", "1.5"]),
    ],
)
def test_grids(grid: str, names: list[str]) -> None:
    assert parse_grid(grid) == tuple(names)


def test_a_dense_grid_is_exact() -> None:
    grid = parse_grid("0:1.5:0.01")
    assert grid == tuple(canonical(Decimal(index) / 100) for index in range(151))
    assert max(map(len, grid)) == 4


@given(st.integers(-2_000_000, 2_000_000), st.integers(1, 3_000_000), st.integers(0, 60), st.integers(0, 2_999_999))
def test_a_range_is_its_start_and_whole_steps_up_to_its_stop(start: int, step: int, steps: int, beyond: int) -> None:
    stop = start + steps * step + beyond % step
    grid = parse_grid(f"{canonical(exact(start))}:{canonical(exact(stop))}:{canonical(exact(step))}")
    assert [Decimal(name) for name in grid] == [exact(start + index * step) for index in range(steps + 1)]
    assert all(CANONICAL.fullmatch(name) for name in grid)
    assert (grid[-1] == canonical(exact(stop))) == (beyond % step == 0)


@given(st.lists(millionths, min_size=1, max_size=20, unique=True), st.randoms(use_true_random=False))
def test_a_grid_is_in_ascending_order_however_it_was_written(counts: list[int], random) -> None:
    names = [canonical(exact(count)) for count in counts]
    grid = parse_grid(",".join(names))
    assert grid == tuple(canonical(exact(count)) for count in sorted(counts))
    random.shuffle(names)
    assert parse_grid(",".join(names)) == grid
    assert parse_grid(",".join(grid)) == grid
    assert all(Decimal(low) < Decimal(high) for low, high in itertools.pairwise(grid))


@pytest.mark.parametrize(
    ("grid", "problems"),
    [
        ("", ["an empty part between two commas: remove it"]),
        ("   ", ["an empty part between two commas: remove it"]),
        ("0,,1", ["an empty part between two commas: remove it"]),
        ("0,1,", ["an empty part between two commas: remove it"]),
        ("0,0.0", ["λ 0 is named by '0' and by '0.0': name each point once"]),
        ("0,-0", ["λ 0 is named by '0' and by '-0': name each point once"]),
        ("1,1", ["λ 1 is named twice: name each point once"]),
        (
            "0:1:0.5,0.5:1:0.5",
            [
                "λ 0.5 is named by '0:1:0.5' and by '0.5:1:0.5': name each point once",
                "λ 1 is named by '0:1:0.5' and by '0.5:1:0.5': name each point once",
            ],
        ),
        ("0:1", ["'0:1' is not start:stop:step"]),
        ("0:1:0.1:2", ["'0:1:0.1:2' is not start:stop:step"]),
        ("0:1:0", ["'0:1:0' has step 0: give a step above 0"]),
        ("1:0:0.1", ["'1:0:0.1' runs downwards: give start ≤ stop and a step above 0"]),
        ("0:1:-0.1", ["'0:1:-0.1' runs downwards: give start ≤ stop and a step above 0"]),
        ("0:x:0.1", ["λ 'x' is not a decimal number: write it like 0.35"]),
        ("0::0.1", ["λ '' is not a decimal number: write it like 0.35"]),
        ("0:1:0.0000001", ["λ 0.0000001 has more than 6 decimals: round it"]),
        ("0:1:0.000001", ["'0:1:0.000001' has 1000001 points: at most 100000 are taken"]),
        # All problems are told at once.
        (
            "0,1e-3,,0.5:0:0.1,0,2000000",
            [
                "λ '1e-3' is not a decimal number: write it like 0.35",
                "an empty part between two commas: remove it",
                "'0.5:0:0.1' runs downwards: give start ≤ stop and a step above 0",
                "λ 0 is named twice: name each point once",
                "λ 2000000 is out of range: |λ| must be below 1000000",
            ],
        ),
    ],
)
def test_every_problem_of_a_grid_is_named(grid: str, problems: list[str]) -> None:
    with pytest.raises(GridError) as raised:
        parse_grid(grid)
    assert list(raised.value.problems) == problems
    assert "write it like 0:1.5:0.1 or 0,0.25,1" in raised.value.title


@pytest.mark.slow
def test_a_grid_is_bounded_as_a_whole() -> None:
    half = f"0:{MAX_POINTS // 2}:1"
    with pytest.raises(GridError, match=f"{MAX_POINTS + 2} points: at most {MAX_POINTS} are taken"):
        parse_grid(f"{half},0.5:{MAX_POINTS // 2}.5:1")
