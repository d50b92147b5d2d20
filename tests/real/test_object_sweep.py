"""A whole sweep into an object store, with a kill, writes the tables that the same sweep writes on the disk."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract import location
from contract.location import locate
from contract.rundir import RunDir
from lambdasweep import open_run
from lambdasweep.demo import ALIGNED, BASE, CLOZE
from tests.support.object_store import BUCKET, KEY_ID, SECRET, Store, enter, serve
from tests.support.paths import ROOT
from tests.support.sweep_process import alive
from tests.support.waiting import finish, until
from tests.support.waiting import run as run_command
from tests.support.warm_python import descendants, warm_python

URL = f"s3://{BUCKET}/run"
RESULTS = ("requests/", "tokens/", "quarantine/", "metrics.parquet", "plan.json", "sweep.json")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serve() as store, pytest.MonkeyPatch.context() as patch:
        enter(store, patch)
        yield store
        location._store.cache_clear()


def start(out: str, log: Path) -> subprocess.Popen[bytes]:
    arguments = ["--base", BASE, "--aligned", ALIGNED, "--task", f"cloze={CLOZE}", "--limit", "60", "--format", "cloze"]
    command = [warm_python(), "-m", "lambdasweep", "run", *map(str, arguments), "--lambdas", "0:1:0.1", "--out", out]
    with open(log, "ab") as stream:
        return subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)


def lambdasweep(*arguments: str) -> str:
    command = [warm_python(), "-m", "lambdasweep", *arguments]
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_killed_and_resumed_sweep_into_a_store_is_that_on_the_disk(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "run"
    assert finish(start(str(local), tmp_path / "local.log"), tmp_path / "local.log") == 0, (
        tmp_path / "local.log"
    ).read_text()

    log = tmp_path / "store.log"
    sweep, run = start(URL, log), RunDir(URL)
    until(lambda: sweep.poll() is not None or run.committed("cloze", "0") | run.committed("cloze", "1"))
    assert sweep.poll() is None, log.read_text()
    tree = [psutil.Process(sweep.pid), *descendants(sweep.pid)]
    for process in tree:
        if process.is_running():
            os.kill(process.pid, signal.SIGKILL)
    sweep.wait()
    until(lambda: not alive(tree[1:]))
    before = sum(map(len, run.all_committed().values()))
    assert 0 < before < 11
    assert (run.root / "lease.json").is_file()  # the driver's process is gone, so its lease does not count
    assert finish(start(URL, log), log) == 0, log.read_text()
    assert "of 11 units are committed already" in log.read_text()

    stored = store.objects("run/")
    on_disk = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    results = {name for name in on_disk if name.startswith(RESULTS)}
    assert len(results) == 11 + 4
    assert {name for name in stored if name.startswith(RESULTS)} == results
    assert {name for name in results if stored[name] != on_disk[name]} == set()
    assert "lease.json" not in stored

    printed = lambdasweep("status", URL) + lambdasweep("report", URL)
    assert "11 units done, 0 left" in printed
    assert f"report: {URL}/report/index.html" in printed
    (local / "history.json").write_bytes(store.objects("run/")["history.json"])  # the commands were others
    lambdasweep("report", str(local))
    stored = store.objects("run/")
    for name in ("report/index.html", "report/frontier.json", "report/bins.parquet", "metrics.parquet"):
        assert stored[name] == (local / name).read_bytes(), name
    there, here = open_run(URL), open_run(local)
    assert there.metrics() == here.metrics()
    assert there.frontier() == here.frontier()
    assert there.tokens() == here.tokens()
    assert there.explode(lam="0.5") == here.explode(lam="0.5")

    # The secret is nowhere in the files and the output, in no encoding of a table.
    everything = [*stored.values(), log.read_bytes(), printed.encode(), *(name.encode() for name in stored)]
    tables = [location.read_table(run.root / name) for name in stored if name.endswith(".parquet")]
    everything += [repr(table.to_pydict()).encode() + repr(table.schema.metadata).encode() for table in tables]
    assert len(everything) > 60
    for secret in (SECRET, KEY_ID):
        assert not any(secret.encode() in data for data in everything)


def test_a_batch_from_and_into_a_store_is_that_on_the_disk(store: Store, tmp_path: Path) -> None:
    prompts = [f"text number {n}" for n in range(20)]
    pq.write_table(pa.table({"id": [*range(19), None], "prompt": prompts}), tmp_path / "in.parquet")
    local, url, key = tmp_path / "out", f"s3://{BUCKET}/batch", "requests/in.parquet"
    store.client().put_object(Bucket=BUCKET, Key=key, Body=(tmp_path / "in.parquet").read_bytes())
    for requests, out in ((str(tmp_path / "in.parquet"), str(local)), (f"s3://{BUCKET}/requests", url)):
        command = [warm_python(), "-m", "lambdasweep", "score", "--model", str(BASE), "--requests", requests]
        command += ["--out", out, "--replicas", "1"]
        done = run_command(command)
        assert done.returncode == 3, done.stderr
    stored = store.objects("batch/")
    on_disk = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*.*") if path.is_file()}
    assert set(stored) == set(on_disk) - {".lock"}
    results = {name for name in stored if not name.startswith(("receipts/", "driver.json", "score.json"))}
    names_its_file = "quarantine/shard-0000000.parquet"
    assert len(results) == 3
    assert {name for name in results if stored[name] != on_disk[name]} == {names_its_file}
    (there,) = location.read_table(locate(f"{url}/{names_its_file}")).to_pylist()
    (here,) = pq.read_table(local / names_its_file).to_pylist()
    assert there == here | {"file": f"s3://{BUCKET}/{key}"}
    assert "19 rows scored, 1 quarantined" in lambdasweep("status", url)
