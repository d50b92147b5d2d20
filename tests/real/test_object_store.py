"""A run directory in an object store takes real uploads to a real server, and whatever goes wrong with them is told."""

import errno
import gc
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract import lease, location, schemas
from contract.commit import commit_bytes, commit_json, commit_table, read_identity
from contract.errors import InputError, LambdasweepError, RunMismatchError
from contract.location import ObjectPath, locate, read_json, read_table
from contract.rundir import RunDir
from lambdasweep import open_run
from lambdasweep.batch.files import open_inputs
from lambdasweep.batch.find import lies_in
from lambdasweep.batch.reader import Reader
from lambdasweep.batch.repeats import repeated_rows
from lambdasweep.cli import app
from tests.support.object_store import BUCKET, SECRET, Store, enter, serve
from tests.support.run_files import everything, tokens
from tests.support.tables import add_quarantine, add_scores, add_task
from tests.support.waiting import until

BIG = bytes(12 << 20)  # this is more than a single upload takes, so that it is uploaded in parts

HOLDER = """
import sys, time
from contract.rundir import RunDir
with RunDir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""

HALF = """
import os, signal, sys
from contract.location import _store, locate
path = locate(sys.argv[1])
stream = _store(path.scheme, 20).open_output_stream(path.key)
stream.write(bytes(25 << 20))
print("writing", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with serve() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Store]:
    enter(server, monkeypatch)
    yield server
    server.refuse = lambda method, path: None
    server.requests.clear()
    location._store.cache_clear()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}"


def below(url: str) -> str:
    return url.removeprefix(f"s3://{BUCKET}/") + "/"


# Commit


def test_a_run_in_a_store_has_the_files_and_rows_of_a_local_one(store: Store, url: str, tmp_path: Path) -> None:
    runs = RunDir(tmp_path / "run"), RunDir(url)
    for run in runs:
        assert not run.exists()
        assert run.committed("arc", "0.5") == set()
        assert run.all_committed() == {}
        assert run.all_outcomes() == []
        add_task(run, "arc", [2, 2], ["0.5", "1"])
        add_scores(run, "arc", "0.5", {0: [-1.0], 1: [-2.0]}, shard=0)
        add_scores(run, "arc", "0.5", {2: [-1.5], 3: [-2.5]}, shard=11)
        add_scores(run, "arc", "1", {0: [-1.0], 1: [-2.0]}, shard=0)
        add_quarantine(run, "arc", "1", [2, 3], shard=1)
        commit_table(run.outcomes("b"), schemas.OUTCOMES.empty_table(), {"λ": [1]})
        commit_table(run.outcomes("a"), schemas.OUTCOMES.empty_table())
    assert store.objects(below(url)) == everything(tmp_path / "run")
    here, there = runs
    for ask in (
        lambda run: (run.exists(), run.sweep(), run.plan()),
        lambda run: (run.committed("arc", "0.5"), run.committed("arc", "1", "quarantine"), run.committed("arc", "2")),
        lambda run: (run.all_committed(), run.all_committed("quarantine"), run.all_committed("receipts")),
        lambda run: (run.tokens("arc", "0.5"), run.quarantine("arc", "1"), run.tokens("arc", "2")),
        lambda run: [path.name for path in run.all_outcomes()],
        lambda run: (read_identity(run.outcomes("b")), read_table(run.requests("arc"), columns=["doc_id"])),
        lambda run: (run.sweep_json.is_file(), run.root.is_dir(), (run.root / "gone").exists()),
    ):
        assert ask(there) == ask(here)
    assert there.committed("arc", "0.5") == {0, 11}
    assert there.sweep_temporaries() == 0
    with pytest.raises(FileNotFoundError):
        there.metrics_parquet.read_bytes()


def test_a_commit_is_one_request_and_replaces_the_one_before(store: Store, url: str) -> None:
    path = locate(url) / "deep" / "file"
    commit_bytes(path, b"first")
    store.requests.clear()
    commit_bytes(path, b"second")
    assert [method for method, _ in store.requests] == ["PUT"]
    assert store.objects(below(url)) == {"deep/file": b"second"}
    path.unlink()
    path.unlink(missing_ok=True)
    assert store.objects(below(url)) == {}


def test_a_listing_is_one_request_for_a_thousand_files(store: Store, url: str) -> None:
    run = RunDir(url)
    paths = [run.unit("tokens", "arc", f"0.{lam}", shard) for lam in range(1, 10) for shard in range(125)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: path.write_bytes(b"x"), paths))
    store.requests.clear()
    assert run.all_committed() == {("arc", f"0.{lam}"): set(range(125)) for lam in range(1, 10)}
    assert len(store.requests) == 2
    assert len(run.committed("arc", "0.3")) == 125
    assert len(store.requests) == 3


def test_an_upload_whose_process_is_killed_is_no_file(store: Store, url: str) -> None:
    path = RunDir(url).unit("tokens", "arc", "0.5", 0)
    writer = subprocess.Popen([sys.executable, "-c", HALF, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    until(lambda: any("partNumber" in path for _, path in store.requests))
    writer.kill()
    writer.communicate()
    uploads = store.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert [upload["Key"] for upload in uploads] == [path.key.removeprefix(f"{BUCKET}/")]
    assert store.objects(below(url)) == {}
    assert RunDir(url).committed("arc", "0.5") == set()
    commit_bytes(path, b"again")
    assert RunDir(url).committed("arc", "0.5") == {0}


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize("dies", ["uploads", "partNumber=2", "uploadId"])
def test_an_upload_that_fails_leaves_what_was_there(store: Store, url: str, before: bytes | None, dies: str) -> None:
    path = locate(url) / "file"
    if before is not None:
        commit_bytes(path, before)
    # The last request of all has an uploadId and no part.
    store.refuse = lambda method, asked: (
        403 if dies in asked and (dies != "uploadId" or (method == "POST" and "=" in asked)) else None
    )
    with pytest.raises(OSError, match="refuses the credentials") as raised:
        commit_bytes(path, BIG)
    assert raised.value.errno == errno.EACCES
    del raised
    gc.collect()  # no thread is left that waits for the server, which needs the interpreter to answer
    store.refuse = lambda method, asked: None
    assert store.objects(below(url)) == ({} if before is None else {"file": before})
    commit_bytes(path, BIG)
    assert store.objects(below(url)) == {"file": BIG}


@pytest.mark.parametrize("status", [500, 503])
def test_failures_that_pass_are_tried_again(store: Store, url: str, status: int) -> None:
    left = [status] * 3
    store.refuse = lambda method, asked: left.pop() if left else None
    commit_bytes(locate(url) / "file", b"whole")
    assert store.objects(below(url)) == {"file": b"whole"}
    assert len(store.requests) == 4
    left += [status] * 2
    assert (locate(url) / "file").read_bytes() == b"whole"


# Requests to be scored


def put(store: Store, key: str, **columns: list[object]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=30)
    store.client().put_object(Bucket=BUCKET, Key=key, Body=sink.getvalue().to_pybytes())


def test_requests_in_a_store_are_found_planned_and_read_as_local_ones(store: Store, url: str, tmp_path: Path) -> None:
    columns = {"id": list(range(100)), "prompt": [f"text {n}" for n in range(100)]}
    for key in ("in/b.parquet", "in/a.parquet", "in/deep/c.parquet", "in/notes.txt", "other/d.parquet"):
        put(store, below(url) + key, **columns)
    for request, found in {
        f"{url}/in/a.parquet": ["in/a"],
        f"{url}/in/*.parquet": ["in/a", "in/b"],
        f"{url}/*/*.parquet": ["in/a", "in/b", "other/d"],
        f"{url}/*/[cd].parquet": ["other/d"],
        f"{url}/in": ["in/a", "in/b", "in/deep/c"],
        f"{url}/in/": ["in/a", "in/b", "in/deep/c"],
    }.items():
        inputs = open_inputs([request], "id", 1000)
        assert [file.path for file in inputs.files] == [f"{url}/{name}.parquet" for name in found]
    local = tmp_path / "a.parquet"
    local.write_bytes(store.objects(below(url))["in/a.parquet"])
    inputs, here = open_inputs([f"{url}/in/a.parquet"], "id", 100), open_inputs([str(local)], "id", 100)
    assert (inputs.shards, inputs.costs) == (here.shards, here.costs)
    assert [replace(file, path="") for file in inputs.files] == [replace(file, path="") for file in here.files]
    reader = Reader(inputs.files[0], ["id", "prompt"])
    for first, end in ((50, 65), (0, 100), (99, 100)):
        assert reader.rows(first, end) == Reader(here.files[0], ["id", "prompt"]).rows(first, end)
    assert repeated_rows(open_inputs([f"{url}/in"], "id", 1000).files, inputs.columns).tolist() == list(range(300))


def test_all_that_is_wrong_with_requests_in_a_store(store: Store, url: str) -> None:
    put(store, below(url) + "in/a.parquet", id=[1], text=["x"])
    store.client().put_object(Bucket=BUCKET, Key=below(url) + "in/b.parquet", Body=b"no table")
    asked = [f"{url}/in", f"{url}/none", f"{url}/none*", f"{url}/**/*.parquet", "s3://no-such-bucket/in", "ftp://x/in"]
    with pytest.raises(InputError) as raised:
        open_inputs(asked, "id", 1000)
    assert list(raised.value.problems) == [
        f"{url}/none: no such Parquet file",
        f"{url}/none*: no such Parquet file",
        f"{url}/**/*.parquet: ** is not supported in a URL: give the folder, for all *.parquet below it",
        "s3://no-such-bucket/in cannot be used: there is no bucket no-such-bucket; make it, or give another",
        "ftp:// is not supported: give a local path, s3://bucket/run or gs://bucket/run",
        f"{url}/in/a.parquet has neither prompt nor prompt_token_ids: give one of them",
        f"{url}/in/b.parquet is no Parquet file, or is truncated (8 bytes)",
    ]
    assert lies_in(locate(f"{url}/in/out"), f"{url}/in/")
    assert lies_in(locate(f"{url}/in"), f"{url}/in")
    assert not lies_in(locate(f"{url}/input"), f"{url}/in")
    assert not lies_in(Path("in/out"), f"{url}/in")


def test_a_store_that_fails_while_requests_are_read_is_no_damaged_file(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "_ATTEMPTS", 2)
    put(store, below(url) + "a.parquet", id=list(range(100)), prompt=["text"] * 100)
    (file,) = open_inputs([f"{url}/a.parquet"], "id", 1000).files
    reader = Reader(file, ["id", "prompt"])
    store.refuse = lambda method, asked: 503
    with pytest.raises(OSError, match="the store failed") as raised:
        reader.rows(0, 100)
    assert raised.value.errno == errno.EREMOTEIO
    store.refuse = lambda method, asked: None
    assert Reader(file, ["id", "prompt"]).rows(0, 100).num_rows == 100
    put(store, below(url) + "a.parquet", id=list(range(101)), prompt=["text"] * 101)
    with pytest.raises(InputError, match="was changed while it was scored"):
        Reader(file, ["id", "prompt"])
    store.client().delete_object(Bucket=BUCKET, Key=below(url) + "a.parquet")
    with pytest.raises(InputError, match="cannot be read"):
        Reader(file, ["id", "prompt"])


# What cannot be used


def said(url: str, command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """A user is told one message, and the exit status is 2."""
    arguments = [command, url]
    if command == "run":
        demo = Path(location.__file__).parent / "demo"
        arguments = ["run", "--base", str(demo / "base"), "--aligned", str(demo / "aligned"), "--lambdas", "0,1"]
        arguments += ["--task", f"cloze={demo / 'cloze.jsonl'}", "--out", url]
    with pytest.raises(LambdasweepError) as raised:
        app(arguments, standalone_mode=False)
    assert raised.value.exit_code == 2
    output = capsys.readouterr()
    assert SECRET not in str(raised.value) + output.out + output.err
    return str(raised.value)


@pytest.mark.parametrize("command", ["run", "status", "report"])
def test_a_bucket_that_is_not_there(store: Store, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    says = "s3://no-such-bucket/run cannot be used: there is no bucket no-such-bucket; make it, or give another"
    assert said("s3://no-such-bucket/run", command, capsys) == says
    with pytest.raises(InputError, match=says):
        open_run("s3://no-such-bucket/run")


@pytest.mark.parametrize("command", ["run", "status", "report"])
def test_a_store_that_cannot_be_reached(
    store: Store, url: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert said(url, command, capsys).startswith(
        f"{url} cannot be used: the store cannot be reached; check the network, AWS_ENDPOINT_URL and AWS_REGION ("
    )


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_place_without_a_run(store: Store, url: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(url, command, capsys).startswith(f"{url} is not a run directory: it has no ")


def test_a_place_that_holds_something_else(store: Store, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    commit_bytes(locate(url) / "thesis.tex", b"")
    assert said(url, "run", capsys).startswith(f"{url} is not empty and no run directory (it holds thesis.tex)")
    assert said(f"{url}/thesis.tex", "run", capsys) == f"{url}/thesis.tex is a file: give a directory as --out"


def test_wrong_credentials(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """This test has a server of its own, which checks signatures."""
    with serve() as strict:
        users = strict.client("iam")
        users.create_user(UserName="user")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        users.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=json.dumps(policy))
        key = users.create_access_key(UserName="user")["AccessKey"]
        enter(strict, monkeypatch)
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{strict.moto}/moto-api/reset-auth", b"0", plain)).close()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        for command in ("run", "status", "report"):
            location._store.cache_clear()
            assert said(url, command, capsys).startswith(
                f"{url} cannot be used: the store refuses the credentials in the environment; check them"
            )
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        location._store.cache_clear()
        assert said(url, "status", capsys) == f"{url} is not a run directory: it has no sweep.json"


# The lease


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.1)


def test_a_second_driver_is_refused_until_the_first_is_killed(store: Store, url: str, short_lease: None) -> None:
    run = RunDir(url)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        says = f"another lambdasweep process is writing to {url} (process {holder.pid} on "
        with pytest.raises(RunMismatchError, match=re.escape(says)), run.lock():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with run.lock():  # on the same machine a dead process is known to be dead
        assert (run.root / "lease.json").is_file()
    assert not (run.root / "lease.json").exists()


def write_lease(run: RunDir, age: float) -> None:
    commit_json(
        run.root / "lease.json",
        {"driver": "other", "host": "elsewhere 1", "process": 1, "renewed": time.time() - age},
    )


def test_a_lease_of_another_machine_counts_until_it_runs_out(store: Store, url: str, short_lease: None) -> None:
    run = RunDir(url)
    write_lease(run, age=lease.LEASE_SECONDS - 10)
    with pytest.raises(RunMismatchError, match=r"process 1 on elsewhere\).* runs out 90 s after"), run.lock():
        pass
    write_lease(run, age=lease.LEASE_SECONDS + 1)
    with run.lock():
        before = read_json(run.root / "lease.json")["renewed"]
        until(lambda: read_json(run.root / "lease.json")["renewed"] > before)


def test_a_driver_whose_lease_is_taken_is_interrupted(
    store: Store, url: str, short_lease: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, interrupted, read = RunDir(url), threading.Event(), lease._read
    taken: list[int] = []

    def taken_before(path: ObjectPath) -> dict[str, object] | None:
        """Another driver takes the lease once, when the driver is about to look whether it still has it."""
        if threading.current_thread() is not threading.main_thread() and not taken:
            write_lease(run, age=0)
            taken.append(1)
        return read(path)

    monkeypatch.setattr(lease, "_read", taken_before)
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        with pytest.raises(RunMismatchError, match="process 1 on elsewhere"), run.lock():
            until(interrupted.is_set)
        assert interrupted.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((run.root / "lease.json").read_bytes())["driver"] == "other"


def test_of_two_that_start_at_once_the_later_write_stands(
    store: Store, url: str, short_lease: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = RunDir(url), lease._write

    def both(path: ObjectPath, driver: str) -> None:
        write(path, driver)
        write_lease(run, age=0)

    monkeypatch.setattr(lease, "_write", both)
    with pytest.raises(RunMismatchError, match="process 1 on elsewhere"), run.lock():
        raise AssertionError("held")


def test_tables_are_equal_bytes_in_either_place(store: Store, url: str, tmp_path: Path) -> None:
    sizes = [commit_table(where / "table", tokens(100), {"base": "aa"}) for where in (tmp_path, locate(url))]
    assert store.objects(below(url)) == everything(tmp_path)
    assert sizes == [len((tmp_path / "table").read_bytes())] * 2
