"""Whoever writes to a weight file after it was opened is noticed, whatever the size and however it is done."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contract.errors import PairError
from merge.checkpoint import open_checkpoint
from merge.file_states import check_unchanged
from tests.support.weights import write


def written_to(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04")


def replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.rename(file)


def cut_short(file: Path) -> None:
    os.truncate(file, 100)


@pytest.mark.parametrize(
    ("change", "says", "matters_to_maps"),
    [
        (written_to, "was written to: its size or time of change is another", True),
        (cut_short, "was written to: its size or time of change is another", True),
        (replaced, "was replaced: its size or time of change is another", False),
        (Path.unlink, "is gone", False),
    ],
)
def test_a_change_is_noticed(tmp_path: Path, change: Callable[[Path], None], says: str, matters_to_maps: bool) -> None:
    root = write(tmp_path / "one", {f"model.{n}.w": torch.ones(8, 8) for n in range(4)}, shards=2)
    files = open_checkpoint(str(root), "aligned").files
    assert sorted(files) == sorted(root.glob("*.safetensors"))
    check_unchanged(files)
    changed, _ = sorted(files)
    change(changed)
    with pytest.raises(PairError, match=re.escape("a parent has changed while it was in use")) as caught:
        check_unchanged(files)
    assert caught.value.problems == (f"{changed} {says}",)
    if matters_to_maps:
        with pytest.raises(PairError):
            check_unchanged(files, are_mapped=True)
    else:
        check_unchanged(files, are_mapped=True)  # a map shows the file that was there


def test_another_inode_alone_is_no_change(tmp_path: Path) -> None:
    """Network file systems that live outside of the kernel give the same file another one after a while."""
    root = write(tmp_path / "one", {"model.0.w": torch.ones(8, 8)})
    files = open_checkpoint(str(root), "aligned").files
    (file,) = files
    before = file.stat()
    replaced(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_ino != before.st_ino
    check_unchanged(files)


def test_what_a_link_leads_to_counts(tmp_path: Path) -> None:
    """The hub's cache consists of links."""
    root = write(tmp_path / "one", {"model.0.w": torch.ones(8, 8)})
    blob = (root / "model.safetensors").rename(tmp_path / "blob")
    (root / "model.safetensors").symlink_to(blob)
    files = open_checkpoint(str(root), "base").files
    written_to(blob)
    with pytest.raises(PairError, match="was written to"):
        check_unchanged(files)
