"""A damaged table counts as absent, is named with all others, and is put aside so that its unit is done again."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract import schemas
from contract.commit import METADATA_KEY, commit_table
from contract.damage import describe, look_at_footers, put_aside
from contract.location import read_table
from contract.rundir import RunDir
from contract.units import rescored_name
from contract.whole_tables import problem_of, read_or_problem
from tests.support.run_files import tokens


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite_pages(path: Path) -> None:
    """Spoil rows and leave both ends of the file as they are, so that only reading shows it."""
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    for lam in ("0", "0.5"):
        for shard in range(3):
            commit_table(run.unit("tokens", "arc", lam, shard), tokens(2, first=2 * shard))
    commit_table(run.unit("quarantine", "arc", "0.5", 2), schemas.QUARANTINE.empty_table())
    return run


@pytest.mark.parametrize("damage", [cut, empty, overwrite_pages])
def test_whatever_arrow_cannot_read_is_absent_and_named(run: RunDir, damage: Callable[[Path], None]) -> None:
    for lam, shard in (("0", 1), ("0.5", 0)):
        damage(run.unit("tokens", "arc", lam, shard))
    assert [run.tokens("arc", lam)["request_id"].to_pylist() for lam in ("0", "0.5")] == [[0, 1, 4, 5], [2, 3, 4, 5]]
    lines = describe(run)
    assert [line.partition(" ")[0] for line in lines] == [
        "tokens/task=arc/lambda=0.5/shard-00000.parquet",
        "tokens/task=arc/lambda=0/shard-00001.parquet",
    ]
    assert run.committed("arc", "0") == {0, 2}
    assert run.all_committed() == {("arc", "0"): {0, 2}, ("arc", "0.5"): {1, 2}}


@pytest.mark.parametrize(("damage", "says"), [(cut, "is cut short or overwritten ("), (empty, "is empty")])
def test_its_ends_tell_a_damaged_table_before_it_is_read(
    run: RunDir, damage: Callable[[Path], None], says: str
) -> None:
    path = run.unit("tokens", "arc", "0", 1)
    assert isinstance(path, Path)
    assert problem_of(path) is None
    damage(path)
    found = problem_of(path)
    assert found is not None
    assert found.startswith(says)
    assert run.committed("arc", "0") == {0, 2}
    assert RunDir(run.root).all_committed()["arc", "0"] == {0, 2}


@pytest.mark.slow
def test_a_table_of_every_length_but_its_own_is_damaged(run: RunDir) -> None:
    """It does not matter how much of a copy arrived."""
    path = run.unit("tokens", "arc", "0", 1)
    assert isinstance(path, Path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert problem_of(path) is not None, size


@pytest.mark.slow
def test_a_byte_of_a_page_that_has_changed_is_noticed(run: RunDir) -> None:
    """Or it changes nothing: much of a page's header says what is known anyway."""
    path = run.unit("tokens", "arc", "0", 1)
    assert isinstance(path, Path)
    commit_table(path, tokens(300))
    data, whole = path.read_bytes(), read_table(path)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    noticed = 0
    places = range(4, footer, 5)
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found, problem = read_or_problem(path)
        noticed += found is None
        assert problem if found is None else found.equals(whole), place
    assert noticed > 0.9 * len(places)


def test_damaged_tables_are_put_aside_with_what_belongs_to_their_units(run: RunDir) -> None:
    first, of_quarantine = run.unit("tokens", "arc", "0", 1), run.unit("quarantine", "arc", "0.5", 2)
    for path in (first, of_quarantine):
        assert isinstance(path, Path)
        cut(path)
    assert len(put_aside(run)) == 2
    assert run.all_committed() == {("arc", "0"): {0, 2}, ("arc", "0.5"): {0, 1}}  # the unit's scores went, too
    assert run.all_committed("quarantine") == {}
    assert sorted(
        path.relative_to(run.root / "damaged").as_posix() for path in (run.root / "damaged").rglob("*.parquet")
    ) == [
        "quarantine/task=arc/lambda=0.5/shard-00002.parquet",
        "tokens/task=arc/lambda=0.5/shard-00002.parquet",
        "tokens/task=arc/lambda=0/shard-00001.parquet",
    ]
    assert put_aside(run) == []
    commit_table(first, tokens(2, first=2))
    assert run.committed("arc", "0") == {0, 1, 2}
    assert len(read_table(first)) == 2


@pytest.mark.parametrize("kind", ["tokens", "quarantine"])
@pytest.mark.parametrize("there", [("arc", "0.5", 1), ("arc", "0", 2), ("mmlu", "0", 1)])
def test_a_table_of_another_unit_is_absent_and_named(tmp_path: Path, kind: str, there: tuple[str, str, int]) -> None:
    table = tokens(2) if kind == "tokens" else schemas.QUARANTINE.empty_table()
    known = dict(zip(("task", "lam", "shard"), ("arc", "0", 1), strict=True))
    for unit in (("arc", "0", 1), there):
        commit_table(RunDir(tmp_path).unit(kind, *unit), table, known)
    says = " is another table, moved or copied there: that of task arc, λ = 0, shard 1"
    looked, read = RunDir(tmp_path), RunDir(tmp_path)
    look_at_footers(looked)
    for lam in ("0", "0.5"):
        for task in ("arc", "mmlu"):
            read.tokens(task, lam)
            read.quarantine(task, lam)
    for run in (looked, read):
        assert run.damaged == {run.unit(kind, *there): says.removeprefix(" ")}
        assert describe(run) == [f"{run.unit(kind, *there).relative_to(tmp_path)}{says}"]


def test_scores_under_another_lambda_are_of_their_own_unit(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    identity = {"task": "arc", "under": "0.5", "lam": "1", "shard": 0}
    for under in ("0.5", "0"):
        commit_table(
            run.unit("rescored", rescored_name("arc", under), "1", 0), schemas.RESCORED.empty_table(), identity
        )
    look_at_footers(run)
    assert list(run.damaged) == [run.unit("rescored", "arc@0", "1", 0)]


def test_a_footer_that_cannot_be_read_is_damage(run: RunDir) -> None:
    path = run.unit("tokens", "arc", "0", 1)
    assert isinstance(path, Path)
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    data[-8 - footer : -8] = bytes(footer)
    path.write_bytes(data)
    look_at_footers(run)
    assert [line.partition(" (")[0] for line in describe(run)] == [
        "tokens/task=arc/lambda=0/shard-00001.parquet cannot be read"
    ]


@pytest.mark.parametrize("identity", [b"{", b"\xff", b"[]", b'{"under": "1"}'])
def test_a_footer_that_does_not_say_what_it_is_of_is_damage(run: RunDir, identity: bytes) -> None:
    """Footers have no checksum, so that a byte of what they say may change unnoticed."""
    path = run.unit("tokens", "arc", "0", 1)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: identity}), path)
    for look in (lambda: look_at_footers(run), lambda: run.tokens("arc", "0")):
        run.damaged.clear()
        look()
        assert list(describe(run)) == [
            "tokens/task=arc/lambda=0/shard-00001.parquet has a damaged footer, which does not say what the table is of"
        ]


def test_a_table_of_something_else_is_no_measurement(run: RunDir) -> None:
    commit_table(run.measured("0.5"), pa.table({"x": [1]}))
    assert list(run.measured_tables()) == []
    (line,) = describe(run)
    assert line.endswith("lambda=0.5.parquet is no table of what a command measured")


def test_a_disk_that_fails_is_no_damaged_table(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("contract.whole_tables.read_table", fail)
    with pytest.raises(OSError, match="Input/output error"):
        run.tokens("arc", "0")
    assert run.damaged == {}
