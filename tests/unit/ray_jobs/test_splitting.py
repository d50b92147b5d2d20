"""The requests that kill engines are found by halving a unit, whatever dies by chance meanwhile."""

import random

import pytest

from contract.units import Receipt, Unit
from ray_jobs.health import Deadlines
from ray_jobs.splitting import MAX_OFFENDERS, REASON, Splitter


def split(rows: int, starts: list[int], kills, charge=lambda: True) -> tuple[list[Unit], Unit | None]:
    """Run a splitter to its end; return the parts that were tried, and the unit as it was committed."""
    whole = Unit("task", "0.5", 3, 100, 100 + rows, 7)
    splitter = Splitter(lambda unit: starts)
    splitter.add(whole)
    tried: list[Unit] = []
    for number in range(10_000):
        handed = splitter.next(f"replica-{number}")
        if handed is None:
            break
        part, commits = handed
        assert part.key == whole.key
        assert splitter.next("another") is None  # one part of a unit is tried at a time
        left_out = {row for row, _ in part.offenders}
        if any(kills(row) for row in range(part.first_row, part.end_row) if row not in left_out):
            is_charged = charge()
            given_up = splitter.failed(f"replica-{number}", is_charged)
            if given_up:
                assert splitter.open == 0
                return tried, None
            if is_charged:
                tried.append(part)
            continue
        tried.append(part)
        splitter.passed(f"replica-{number}")
        if commits:
            assert splitter.open == 0
            return tried, part
    raise AssertionError("the splitter did not end")


@pytest.mark.parametrize("seed", range(100))
def test_exactly_the_offenders_are_left_out(seed: int) -> None:
    source = random.Random(seed)
    rows = source.randint(8, 60)
    starts = sorted({100, *(source.randrange(100, 100 + rows) for _ in range(rows // 3))})
    bad = set(source.sample(range(100, 100 + rows), min(rows, source.randint(0, 4))))
    tried, done = split(rows, starts, bad.__contains__, lambda: source.random() < 0.7)
    assert done is not None
    assert done.offenders == tuple((row, REASON) for row in sorted(bad))
    assert (done.first_row, done.end_row) == (100, 100 + rows)
    # Whole documents come first: a part that cuts through a document lies within it.
    for part in tried[:-1]:
        edges = [edge for edge in (part.first_row, part.end_row) if edge not in {*starts, 100 + rows}]
        assert not edges or not any(part.first_row < start < part.end_row for start in starts)
    assert len(tried) <= 3 + 2 * len(bad) * (2 * rows.bit_length() + 2)  # this is halving, and not one by one


def test_a_chance_death_quarantines_nothing() -> None:
    splitter = Splitter(lambda unit: [0, 1, 2, 3])
    splitter.add(Unit("task", "0", 0, 0, 4, 1))
    deaths = {0, 1, 3}  # a half fails once, and each of two requests alone
    for number in range(20):
        handed = splitter.next(f"replica-{number}")
        assert handed is not None
        if handed[1]:
            assert handed[0].offenders == ()
            return
        if number in deaths:
            assert not splitter.failed(f"replica-{number}")
        else:
            splitter.passed(f"replica-{number}")
    raise AssertionError("it never came to the whole unit")


def test_a_unit_without_an_offender_that_fails_again_is_given_up() -> None:
    splitter = Splitter(lambda unit: [0, 1])
    splitter.add(Unit("task", "0", 0, 0, 2, 1))
    for name in "ab":
        splitter.next(name)
        splitter.passed(name)
    handed = splitter.next("c")
    assert handed is not None
    assert handed[1]
    assert splitter.failed("c", charge=False) is False  # a preempted replica proves nothing
    assert splitter.next("d") == handed
    assert splitter.failed("d") is True
    assert splitter.open == 0
    assert splitter.next("e") is None


def test_where_everything_fails_the_unit_is_given_up() -> None:
    tried, done = split(50, list(range(100, 150)), lambda row: True)
    assert done is None
    assert len({part.first_row for part in tried if part.end_row - part.first_row == 1}) == MAX_OFFENDERS + 1


def test_a_unit_of_offenders_only_is_given_up_and_no_other_is_split() -> None:
    unit = Unit("task", "0", 0, 0, 4, 1)
    splitter = Splitter(lambda unit: [0, 2])
    assert splitter.add(unit)
    kills = 0
    while splitter.next("a"):
        kills += 1
        if splitter.failed("a"):
            break
    assert (splitter.open, kills) == (0, 2 + 3 * 2)  # both documents and three requests alone are tried, each twice
    assert not splitter.add(Unit("task", "0", 1, 4, 8, 1))
    assert splitter.open == 0


def test_deadlines_follow_what_units_take() -> None:
    deadlines = Deadlines()
    first = deadlines.allowed(1000)
    assert first == deadlines.allowed(10**9) == 3600  # nothing is known yet
    one = Unit("task", "0", 0, 0, 9, 1000)
    deadlines.observe(10.0, one, receipt_of(one, 700))
    deadlines.observe(30.0, one, receipt_of(one, 400))
    assert deadlines.allowed(1000) == 20 * 20 * 1.0
    assert deadlines.allowed(1) == 300


def test_a_lambda_whose_outputs_never_end_has_the_time_that_they_take() -> None:
    """Elsewhere outputs have a fiftieth of the tokens that they may have, at the same speed."""
    deadlines = Deadlines()
    unit = Unit("task", "0.5", 0, 0, 9, 100_000)
    for _ in range(3):
        deadlines.observe(20.0, unit, receipt_of(unit, 2_000, generated=1_900))
    assert deadlines.allowed(unit.cost) == pytest.approx(20 * 50 * 20.0)
    # What is computed beside, as a question behind each answer is, makes no unit cheaper than its cost.
    other = Deadlines()
    other.observe(20.0, unit, receipt_of(unit, 300_000, generated=1_900))
    assert other.allowed(unit.cost) == 20 * 20.0


def test_outputs_that_are_scored_again_have_the_time_that_long_ones_take() -> None:
    """They have as many tokens as were written, at every λ another number."""
    deadlines, again = Deadlines(), Unit("task@0", "0.5", 0, 0, 9, 100_000, at="0")
    deadlines.observe(20.0, again, receipt_of(again, 2_000))
    assert deadlines.allowed(again.cost) == pytest.approx(20 * 50 * 20.0)


def receipt_of(unit: Unit, computed: int, generated: int = 0) -> Receipt:
    counts = {"requests": 9, "quarantined": 0, "tokens_scheduled": computed, "tokens_cached": 0}
    seconds = dict.fromkeys(("switch_seconds", "score_seconds", "commit_seconds"), 0.0)
    names = {"replica": "r", "host": "h", "hardware": "cpu", "route": "resident", "weight_digests": ()}
    return Receipt(*unit.key, **counts, **seconds, **names, tokens_generated=generated)  # type: ignore[arg-type]
