"""Weights are read once on a machine, and a replica's parents are those of its sweep, wherever it runs."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.errors import PairError
from merge import fingerprints
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.fingerprints import fingerprint, remembered_fingerprint, stamp
from merge.remote_parent import RemoteParent, describe_parent, open_here
from tests.support.weights import CONFIG, tensors, write

SCAN = fingerprints.scan


@pytest.fixture(autouse=True)
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the checkpoints whose weights were read; the cache is the test's own, and files count as settled at once."""
    read: list[Path] = []

    def watched(checkpoint: Checkpoint, role: str) -> dict[str, str]:
        read.append(checkpoint.path)
        time.sleep(0.05)  # other threads ask meanwhile
        return SCAN(checkpoint, role)

    monkeypatch.setattr(fingerprints, "scan", watched)
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read


def made_afresh(checkpoint: Checkpoint, role: str) -> str:
    """Return the fingerprint that is not remembered; `scans` does not count what is read for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "scan", SCAN)
        return fingerprint(checkpoint, role)


def remember(directory: Path) -> str:
    return remembered_fingerprint(open_checkpoint(str(directory), "base"), "base")


def entries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "lambdasweep" / "weights").glob("*.json"))


def test_weights_are_read_once(tmp_path: Path, scans: list[Path]) -> None:
    directory = write(tmp_path / "one", tensors(), shards=2)
    checkpoint = open_checkpoint(str(directory), "base")
    assert remember(directory) == remember(directory) == made_afresh(checkpoint, "base")
    assert scans == [directory]
    (tmp_path / "link").symlink_to(directory)
    assert remember(tmp_path / "link") == made_afresh(checkpoint, "base")
    assert scans == [directory]
    write(tmp_path / "two", tensors(), CONFIG | {"rope_theta": 5.0})
    shutil.copy(tmp_path / "two" / "config.json", directory)  # the same weights under it are another model
    assert remember(directory) == made_afresh(open_checkpoint(str(directory), "base"), "base")
    assert remember(directory) != made_afresh(checkpoint, "base")
    assert scans == [directory]


def test_of_several_that_ask_at_once_one_reads(tmp_path: Path, scans: list[Path]) -> None:
    directory = write(tmp_path / "one", tensors())
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(remember, [directory] * 4))) == 1
    assert scans == [directory]


def flip(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))


def flip_and_set_the_time_back(file: Path) -> None:
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_copy(file: Path) -> None:
    shutil.copy2(file, file.with_suffix(".copy"))
    flip_and_set_the_time_back(file.with_suffix(".copy"))
    file.with_suffix(".copy").replace(file)


@pytest.mark.parametrize("change", [flip, flip_and_set_the_time_back, replace_by_a_copy])
def test_a_changed_file_is_read_again(tmp_path: Path, scans: list[Path], change: Callable[[Path], None]) -> None:
    directory = write(tmp_path / "one", tensors(), shards=2)
    before = remember(directory)
    time.sleep(0.02)  # the file system's clock ticks once
    change(max(directory.glob("*.safetensors")))
    assert remember(directory) == made_afresh(open_checkpoint(str(directory), "base"), "base") != before
    assert scans == [directory] * 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"model.norm.weight": "00"}', b"\xff"])
def test_a_damaged_entry_is_ignored_and_written_anew(tmp_path: Path, scans: list[Path], damage: bytes) -> None:
    directory = write(tmp_path / "one", tensors())
    before = remember(directory)
    (entry,) = entries(tmp_path)
    sound = entry.read_bytes()
    entry.write_bytes(damage)
    assert remember(directory) == before
    assert scans == [directory] * 2
    assert entry.read_bytes() == sound


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", 60_000_000_000)
    remember(write(tmp_path / "one", tensors()))
    assert entries(tmp_path) == []


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, scans: list[Path]) -> None:
    (tmp_path / "cache").write_text("a file")
    directory = write(tmp_path / "one", tensors())
    assert remember(directory) == remember(directory)
    assert scans == [directory] * 2


def test_weights_with_nan_are_refused_each_time(tmp_path: Path, scans: list[Path]) -> None:
    weights = tensors()
    weights["model.norm.weight"][0, 0] = float("nan")
    directory = write(tmp_path / "one", weights)
    for _ in range(2):
        with pytest.raises(PairError, match="holds NaN or infinity"):
            remember(directory)
    assert entries(tmp_path) == []


# On another machine


def sent(directory: Path) -> RemoteParent:
    checkpoint = open_checkpoint(str(directory), "aligned")
    return describe_parent(checkpoint, "aligned", made_afresh(checkpoint, "aligned"))


def test_the_very_files_of_the_driver_are_not_read(tmp_path: Path, scans: list[Path], monkeypatch: Any) -> None:
    directory = write(tmp_path / "one", tensors())
    monkeypatch.chdir(tmp_path)
    parent = sent(Path("one"))
    monkeypatch.chdir("/")  # a worker's directory is another one
    assert open_here(parent).path == directory
    assert scans == []


def test_a_copy_is_read_once(tmp_path: Path, scans: list[Path]) -> None:
    parent = sent(write(tmp_path / "one", tensors()))
    copy = write(tmp_path / "copy", tensors(), shards=3)  # the files are split otherwise, and only the content counts
    there = replace(parent, source=str(copy))
    assert open_here(there).path == open_here(there).path == copy
    assert scans == [copy]


def test_another_checkpoint_is_refused(tmp_path: Path, scans: list[Path]) -> None:
    directory = write(tmp_path / "one", tensors())
    parent = sent(directory)
    (tmp_path / "flipped").mkdir()
    for file in directory.iterdir():
        shutil.copy(file, tmp_path / "flipped")
    flip(tmp_path / "flipped" / "model.safetensors")
    says = r"aligned checkpoint .* on this machine is not the one that the sweep was started with: "
    with pytest.raises(PairError, match=says + "weights or config"):
        open_here(replace(parent, source=str(tmp_path / "flipped")))
    other = write(tmp_path / "other", tensors(dtype=torch.float16))
    scans.clear()
    with pytest.raises(PairError, match=says + "tensors, shapes or dtypes"):
        open_here(replace(parent, source=str(other)))
    assert scans == []  # the headers tell


def test_a_hub_id_is_resolved_again_by_its_commit(
    tmp_path: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(source: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((source, revision))
        return str(tmp_path / machine / "c0ffee")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for machine in ("here", "there"):
        write(tmp_path / machine / "c0ffee", tensors())
    machine = "here"
    checkpoint = open_checkpoint("org/model", "base", "main")
    parent = describe_parent(checkpoint, "base", made_afresh(checkpoint, "base"))
    machine = "there"
    assert open_here(parent).path == tmp_path / "there" / "c0ffee"
    assert asked == [("org/model", "main"), ("org/model", "c0ffee")]
    assert stamp(checkpoint) == parent.stamp
