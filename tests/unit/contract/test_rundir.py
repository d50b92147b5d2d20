"""In a run directory a file under its final name is complete, equal tables are equal files, and one driver runs."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract import commit, schemas
from contract.commit import commit_bytes, commit_json, commit_table, read_identity
from contract.errors import InputError, RunMismatchError
from contract.rundir import RunDir
from tests.support.run_files import everything, tokens

HOLDER = """
import sys, time
from contract.rundir import RunDir
with RunDir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


# Commit


def test_a_commit_makes_one_complete_file_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    commit_bytes(path, b"first")
    commit_bytes(path, b"second")
    assert everything(tmp_path) == {"deep/er/file": b"second"}


class Full:
    """This is a file on a full disk, which takes some bytes and then no more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(bytes(data)[: len(data) // 2])
        self.file.flush()
        raise OSError(28, "No space left on device")


def fail_writing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "open", lambda path, mode: Full(path.open(mode)), raising=False)


def fail_syncing(patch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(5, "Input/output error")

    patch.setattr(os, "fsync", fsync)


def fail_renaming(patch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    patch.setattr(os, "replace", replace)


def interrupt(patch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(os, "replace", replace)


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize("fail", [fail_writing, fail_syncing, fail_renaming, interrupt])
def test_a_commit_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None], before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises((OSError, KeyboardInterrupt)):
            commit_bytes(path, b"x" * 1000)
    assert everything(tmp_path) == ({} if before is None else {"file": before})


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    path = tmp_path / "file"
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        happened.append("sync directory" if target == tmp_path.resolve() else f"sync {target.read_bytes().decode()}")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent  # a rename across file systems is a copy
        assert not path.exists()
        happened.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    commit_bytes(path, b"all of it")
    assert happened == ["sync all of it", "rename", "sync directory"]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "tokens" / "shard-00000.parquet"
    writer = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from contract import commit\n"
            "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "commit.commit_bytes(Path(sys.argv[1]), b'whole')\n",
            str(path),
        ]
    )
    assert writer.returncode == -signal.SIGKILL
    (left,) = path.parent.iterdir()
    assert left.name.startswith(".")
    assert left.read_bytes() == b"whole"
    assert RunDir(tmp_path).sweep_temporaries() == 1
    assert everything(tmp_path) == {}


# Equal values are equal bytes


def test_equal_tables_are_equal_files(tmp_path: Path) -> None:
    table = tokens(100)
    again = pa.Table.from_pylist(table.to_pylist(), schema=schemas.TOKENS)
    sizes = [
        commit_table(tmp_path / "one", table, {"base": "aa", "λ": 1}),
        commit_table(tmp_path / "two", again, {"λ": 1, "base": "aa"}),
    ]
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two
    assert sizes == [len(one), len(two)]
    assert pq.read_table(tmp_path / "one").equals(table)


def test_how_a_table_lies_in_memory_does_not_matter(tmp_path: Path) -> None:
    commit_table(tmp_path / "whole", tokens(100), {})
    commit_table(tmp_path / "chunks", pa.concat_tables([tokens(30), tokens(0), tokens(70, first=30)]), {})
    commit_table(tmp_path / "slice", pa.concat_tables([tokens(7), tokens(200)]).slice(7, 100), {})
    assert len(set(everything(tmp_path).values())) == 1


def test_metadata_that_a_table_came_with_is_not_stored(tmp_path: Path) -> None:
    commit_table(tmp_path / "plain", tokens(3), {"base": "aa"})
    commit_table(tmp_path / "tagged", tokens(3).replace_schema_metadata({"host": "node7"}), {"base": "aa"})
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "tagged").read_bytes()


def test_another_row_or_identity_is_another_file(tmp_path: Path) -> None:
    commit_table(tmp_path / "one", tokens(3), {"base": "aa"})
    commit_table(tmp_path / "row", tokens(3, first=1), {"base": "aa"})
    commit_table(tmp_path / "identity", tokens(3), {"base": "ab"})
    assert len(set(everything(tmp_path).values())) == 3


def test_equal_json_is_equal_bytes(tmp_path: Path) -> None:
    commit_json(tmp_path / "one", {"b": [1, "λ"], "a": {"y": None, "x": 0.5}})
    commit_json(tmp_path / "two", {"a": {"x": 0.5, "y": None}, "b": [1, "λ"]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert "λ" in (tmp_path / "one").read_text(encoding="utf-8")


def test_an_identity_comes_back(tmp_path: Path) -> None:
    identity = {"base": "aa", "engine": {"dtype": "float32", "extra": {"λ": [1, None, True]}}, "schema": 1}
    commit_table(tmp_path / "table", tokens(2), identity)
    assert read_identity(tmp_path / "table") == identity
    commit_table(tmp_path / "bare", tokens(2))
    assert read_identity(tmp_path / "bare") == {}


# What is there


def test_names(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.unit("tokens", "arc", "-0.35", 17) == tmp_path / "tokens/task=arc/lambda=-0.35/shard-00017.parquet"
    assert run.unit("receipts", "arc", "1", 123456) == tmp_path / "receipts/task=arc/lambda=1/shard-123456.json"
    assert run.requests("arc") == tmp_path / "requests/task=arc.parquet"


def test_only_final_names_count_as_committed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.committed("arc", "0.5") == set()
    for shard in (0, 3, 123456):
        commit_table(run.unit("tokens", "arc", "0.5", shard), tokens(2, first=shard))
    commit_table(run.unit("quarantine", "arc", "0.5", 9), schemas.QUARANTINE.empty_table())
    commit_table(run.unit("tokens", "arc", "0.50", 5), tokens(1))
    commit_table(run.unit("tokens", "other", "0.5", 6), tokens(1))
    folder = run.unit("tokens", "arc", "0.5", 0).parent
    for name in (".shard-00001.parquet.0f.tmp", "shard-00002.parquet.tmp", "shard-4.parquet", "shard-00007.json", "x"):
        (folder / name).write_bytes(b"")
    assert run.committed("arc", "0.5") == {0, 3, 123456}
    assert run.committed("arc", "0.5", "quarantine") == {9}
    assert run.committed("arc", "0.5", "receipts") == set()


def test_rows_come_back_in_request_order(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.tokens("arc", "0.5").equals(schemas.TOKENS.empty_table())
    assert run.quarantine("arc", "0.5").equals(schemas.QUARANTINE.empty_table())
    for shard in (10, 2, 100_000, 0):
        commit_table(run.unit("tokens", "arc", "0.5", shard), tokens(2, first=10 * shard), {"base": "aa"})
    read = run.tokens("arc", "0.5")
    assert read.schema.equals(schemas.TOKENS)
    assert read.schema.metadata is None
    assert read["request_id"].to_pylist() == [0, 1, 20, 21, 100, 101, 1_000_000, 1_000_001]


def test_only_temporaries_are_swept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    commit_table(run.unit("tokens", "arc", "0.5", 0), tokens(2))
    commit_json(run.sweep_json, {})
    (tmp_path / "notes.tmp").write_text("the user's own")
    (tmp_path / ".directory.tmp").mkdir()
    kept = everything(tmp_path)
    (tmp_path / ".plan.json.0f.tmp").write_bytes(b"{")
    (run.unit("tokens", "arc", "0.5", 0).parent / ".shard-00001.parquet.0f.tmp").write_bytes(b"PAR1")
    assert run.sweep_temporaries() == 2
    assert everything(tmp_path) == kept
    assert (tmp_path / ".directory.tmp").is_dir()
    assert run.sweep_temporaries() == 0


def test_what_is_no_run_directory_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone does not exist: give the directory that `lambdasweep run --out` wrote"):
        RunDir(tmp_path / "gone").sweep()
    with pytest.raises(InputError, match=r"is not a run directory: it has no sweep\.json"):
        RunDir(tmp_path).sweep()
    with pytest.raises(InputError, match=r"is not a run directory: it has no sweep\.json"):
        RunDir(tmp_path).plan()  # whichever record is asked for first, the reason is one
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not a run directory: it has no plan\.json"):
        RunDir(tmp_path).plan()
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "plan.json").write_text('{"tasks": ')
    with pytest.raises(
        InputError, match=r"plan\.json is damaged \(.*\): restore it, or start again in another directory"
    ):
        RunDir(tmp_path).plan()
    assert not RunDir(tmp_path).exists()


# The lock


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        says = f"another lambdasweep process is writing to {run.root}: wait for it, or stop it first"
        with pytest.raises(RunMismatchError, match=re.escape(says)), run.lock():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with run.lock():
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock(), pytest.raises(RunMismatchError), run.lock():
        pass
