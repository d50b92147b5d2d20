"""A sweep runs as a job of a real Ray cluster, as `ray job submit` runs it: it is stopped, continued, and measured.

The cluster is one node of its own with token authentication, on loopback ports that nobody else uses.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.rundir import RunDir
from lambdasweep.demo import ALIGNED, BASE, LETTERS
from lambdasweep.monitor.heartbeat import DriverState
from ray_jobs.prometheus import SERIES
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.waiting import finish, until
from tests.support.waiting import run as run_command
from tests.support.warm_python import descendants, warm_python

LAMBDAS = "0:1.5:0.0125"
UNITS = 121


def sweep_arguments(out: Path) -> list[str]:
    flags = [
        "--base",
        BASE,
        "--aligned",
        ALIGNED,
        "--task",
        f"letters={LETTERS}",
        "--format",
        "letters",
        "--limit",
        "30",
    ]
    return ["run", *map(str, flags), "--lambdas", LAMBDAS, "--replicas", "1", "--out", str(out)]


def listeners(process: psutil.Process) -> dict[str, set[str]]:
    """Return the addresses that a process and its descendants listen on, by the process's name."""
    found: dict[str, set[str]] = {}
    for one in [process, *descendants(process.pid)]:
        try:
            connections = one.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(one.name(), set()).add(connection.laddr.ip)
    return found


def is_loopback(address: str) -> bool:
    return ip_address(address.removeprefix("::ffff:")).is_loopback


@dataclass(frozen=True)
class Cluster:
    """This is a running Ray head, and how to speak to it."""

    environment: dict[str, str]
    dashboard: str
    metrics: str
    log: Path

    def job(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.environment | ({"RAY_AUTH_TOKEN": token} if token else {})
        command = ["ray", "job", arguments[0], "--address", self.dashboard, *arguments[1:]]
        return run_command(command, env=environment)

    def status(self, job: str) -> str:
        printed = self.job("status", job).stdout
        return next((state for state in ("SUCCEEDED", "FAILED", "STOPPED") if state in printed.upper()), "")

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        with urllib.request.urlopen(self.metrics, timeout=60) as answer:
            text = answer.read().decode()
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = os.environ | {
        "PATH": f"{Path(warm_python()).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray listens on loopback only, as it does where lambdasweep starts it.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    with contextlib.ExitStack() as stack:
        yield started_head(stack, environment)


class HeadEnded(AssertionError):
    """A Ray head ended before it could be used."""


def started_head(stack: contextlib.ExitStack, environment: dict[str, str]) -> Cluster:
    """Return a Ray head that answers. A port may be taken before Ray gets to it, and then others are tried."""
    for _ in range(2):
        with contextlib.suppress(HeadEnded):
            return stack.enter_context(head(environment))
    return stack.enter_context(head(environment))


@contextlib.contextmanager
def head(environment: dict[str, str]) -> Iterator[Cluster]:
    """Start a Ray head, wait until its dashboard and its agent answer, and end it with all that it started.

    Raises:
        HeadEnded: if the head ends first.
    """
    where = Path(tempfile.mkdtemp(prefix="ray-"))  # the path is short, because socket names have a limit
    flags = ("port", "dashboard-port", "metrics-export-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = free_ports(len(flags))
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={where}"]
    command += [f"--{flag}={port}" for flag, port in zip(flags, ports, strict=True)]
    address, metrics = f"http://127.0.0.1:{ports[1]}", f"http://127.0.0.1:{ports[2]}/metrics"
    started = Cluster(environment, address, metrics, where / "head.log")
    with open(started.log, "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        if process.poll() is not None:
            raise HeadEnded(started.log.read_text())
        with contextlib.suppress(OSError):  # the agent listens later than the dashboard does
            return bool(started.samples()) and started.job("list").returncode == 0
        return False

    try:
        until(answers)
        yield started
    finally:
        processes = [psutil.Process(process.pid), *descendants(process.pid)] if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=30)
        for one in left:
            one.kill()
        shutil.rmtree(where, ignore_errors=True)


def test_a_job_is_stopped_gone_on_with_and_measured(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = RunDir(out)
    refused = cluster.job("list", token="another")
    assert refused.returncode != 0
    assert "token" in refused.stdout + refused.stderr  # nobody gets in without the token of this cluster

    entry = [warm_python(), "-m", "lambdasweep", *sweep_arguments(out), "--address", "auto"]
    submitted = cluster.job("submit", "--submission-id", "first", "--no-wait", "--", *entry)
    assert submitted.returncode == 0, submitted.stderr + cluster.log.read_text()[-3000:]

    until(run.plan_json.exists)
    lambdas = run.plan()["tasks"]["letters"]["lambdas"]

    def tables() -> int:
        return sum(len(run.committed("letters", lam)) for lam in lambdas)

    assert len(lambdas) == UNITS
    exported = {one.name: one.exported for one in SERIES}
    done, left = exported["lambdasweep_units_done"], exported["lambdasweep_units_left"]
    samples = until(lambda: (now := cluster.samples()).get(done) and now, 240)

    # Each metric of ours is one that the code defines, with its labels, and everything that happened is counted.
    ours = {name for name in samples if "lambdasweep" in name}
    assert ours <= set(exported.values())
    unheard = ("units_given_up", "requests_quarantined", "failures", "tokens_generated")
    quiet = {exported[f"lambdasweep_{name}"] for name in unheard}
    assert set(exported.values()) - ours - quiet - {exported["lambdasweep_tokens_cached"]} == set()
    for one in SERIES:
        for labels, _ in samples.get(one.exported, []):
            assert set(one.labels) <= labels.keys()
    committed = tables()
    assert 0 < sum(value for _, value in samples[done]) <= committed
    assert all(value == 1 for _, value in samples[done])  # the task has one shard
    assert UNITS - committed <= sum(value for _, value in samples[left]) < UNITS
    assert {labels["lam"] for labels, _ in samples[left]} == set(lambdas)
    assert {labels["replica"] for labels, _ in samples[exported["lambdasweep_tokens_scheduled"]]} == {"replica-0"}
    receipts = [run.receipt("letters", lam, 0) for lam in lambdas]
    per_unit = {receipt.requests for receipt in receipts if receipt}
    ((_, requests),) = samples[exported["lambdasweep_requests"]]
    assert requests == sum(value for _, value in samples[done]) * per_unit.pop()

    # The job is stopped. Committed tables are kept, and `status` says that it was stopped.
    assert cluster.job("stop", "first").returncode == 0
    assert cluster.status("first") == "STOPPED"
    state = DriverState.read(run)
    assert state is not None
    kept = tables()
    assert (state.state, state.done + state.left) == ("stopped", UNITS)
    assert 0 <= kept - state.done <= 1  # the replica may commit its unit when the driver has counted for the last time
    assert committed <= kept < UNITS
    assert not list(out.rglob(".*.tmp"))
    for path in out.glob("tokens/*/*/*.parquet"):
        assert pq.read_table(path).num_rows > 0

    # The same command finishes the rest.
    assert cluster.job("submit", "--submission-id", "second", "--no-wait", "--", *entry).returncode == 0
    state = until(lambda: (now := DriverState.read(run)) and now.state == "done" and now, shows=tables)
    assert (state.done, state.left) == (UNITS - kept, 0)
    assert tables() == UNITS
    cluster.job("stop", "second")  # other tests look at the metrics of 121 λs that it would compute


def test_a_sweep_of_one_machine_listens_on_loopback_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open(log, "wb") as file:
        sweep = subprocess.Popen(
            [warm_python(), "-m", "lambdasweep", *sweep_arguments(tmp_path / "run")],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        until(lambda: b"is ready" in log.read_bytes(), shows=lambda: log.stat().st_size)
        found = listeners(psutil.Process(sweep.pid))
    finally:
        sweep.send_signal(signal.SIGTERM)
        finish(sweep, log)
    assert {"gcs_server", "raylet"} <= found.keys()
    assert [(name, one) for name, them in found.items() for one in them if not is_loopback(one)] == []
    assert json.loads((tmp_path / "run" / "driver.json").read_text())["state"] in ("stopped", "done")
