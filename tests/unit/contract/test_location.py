"""A place is a local path or a URL of an object store, and the lease of one in a store is of one process."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract import lease
from contract.errors import InputError
from contract.location import ObjectPath, locate, read_json
from contract.rundir import RunDir

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize("root", ["run", "/deep/er/run", "s3:/run", "C:/run", ".", "~/run"])
def test_what_has_no_scheme_is_a_local_path(root: str) -> None:
    assert locate(root) == Path(root)
    assert locate(Path(root)) == Path(root)


def test_a_url_is_a_bucket_and_a_key() -> None:
    path = locate("s3://bucket/runs/λ 1/")
    assert isinstance(path, ObjectPath)
    assert str(path) == "s3://bucket/runs/λ 1"
    assert str(path / "a" / "b") == "s3://bucket/runs/λ 1/a/b"
    assert (path.name, str(path.parent), path.bucket) == ("λ 1", "s3://bucket/runs", "bucket")
    assert locate(path) is path
    assert str(RunDir("gs://b/run").unit("tokens", "arc", "0.5", 7)) == (
        "gs://b/run/tokens/task=arc/lambda=0.5/shard-00007.parquet"
    )


def test_an_object_that_is_replaced_while_it_is_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is cut would be nobody's, and another driver would take it."""
    whole = b'{"driver": "one", "host": "here", "process": 1, "renewed": 1.25}'
    reads = [whole[:-1], whole]
    monkeypatch.setattr(ObjectPath, "read_bytes", lambda path: reads.pop(0))
    path = locate("s3://bucket/run/lease.json")
    assert isinstance(path, ObjectPath)
    found = lease._read(path)
    assert found is not None
    assert found["driver"] == "one"
    reads[:] = [whole[:9]] * 9
    with pytest.raises(ValueError, match="delimiter"):
        read_json(path)
    assert len(reads) == 6
    assert lease._read(path) is None


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("s3://", "names no bucket"),
        ("s3:///run", "names no bucket"),
        ("s3://bucket//run", "names no bucket"),
        ("s3://bucket/../run", "names no bucket"),
        ("http://bucket/run", "http:// is not supported: give a local path, s3://bucket/run or gs://bucket/run"),
        (f"s3://id:{SECRET}@bucket/run", "without credentials"),
        (f"s3://bucket/run?secret_key={SECRET}", "without credentials"),
    ],
)
def test_other_urls_are_refused_without_repeating_a_secret(root: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as raised:
        locate(root)
    assert SECRET not in str(raised.value)


def test_processes_of_other_containers_are_not_mistaken_for_dead_ones() -> None:
    mine = {"driver": "x", "host": lease._host(), "process": os.getpid(), "renewed": time.time()}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert lease._is_fresh(mine)
    assert not lease._is_fresh(mine | {"process": gone.pid})
    assert lease._is_fresh(mine | {"process": gone.pid, "host": f"{mine['host']}0"})
