"""`lambdasweep status` and its live view count what is done, read little for it, and show a stale driver as such."""

import io
import itertools
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from contract import schemas
from contract.commit import commit_json
from contract.rundir import RunDir
from contract.units import Unit
from lambdasweep.monitor import watch
from lambdasweep.monitor.heartbeat import SECONDS, DriverState, Heartbeat, process_identity
from lambdasweep.monitor.progress import Tally
from lambdasweep.monitor.run_counts import RunCounts
from lambdasweep.monitor.status import describe
from lambdasweep.monitor.wording import quantity
from tests.support.receipts import receipt

LAMBDAS = ["0", "0.5", "1"]


def whole() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(schemas.TOKENS.empty_table(), sink)
    return sink.getvalue().to_pybytes()


WHOLE = whole()


def unit(task: str = "arc", lam: str = "0", shard: int = 0, cost: int = 10) -> Unit:
    return Unit(task, lam, shard, 0, 1, cost)


def begin(root: Path, tasks: list[str], lambdas: list[str], shards: int, device: str = "cuda") -> RunDir:
    run = RunDir(root)
    parent = {"source": "somewhere"}
    engine = {"device": device, "dtype": "bfloat16", "tensor_parallel": 8, "threads": 3}
    commit_json(run.sweep_json, {"pair": {"base": parent, "aligned": parent}, "engine": engine, "versions": {}})
    entry = {
        "documents": 7,
        "format": "cloze",
        "shots": 0,
        "lambdas": lambdas,
        "shards": [[n, n + 1] for n in range(shards)],
    }
    commit_json(run.plan_json, {"tasks": dict.fromkeys(tasks, entry)})
    return run


def commit(run: RunDir, one: Unit, with_receipt: bool = True, **values: Any) -> None:
    for kind in ("tokens", "receipts")[: 1 + with_receipt]:
        path = run.unit(kind, *one.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "tokens":
            path.write_bytes(WHOLE)
        else:
            path.write_text(json.dumps(receipt(one, **values).to_json()))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return begin(tmp_path / "run", ["arc", "mmlu"], LAMBDAS, 2)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """Count the calls of a method of RunDir."""
    calls: list[tuple[Any, ...]] = []
    method = getattr(RunDir, name)

    def count(self: RunDir, *arguments: Any) -> Any:
        calls.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(RunDir, name, count)
    return calls


def state(run: RunDir, **values: Any) -> None:
    usual: dict[str, Any] = {
        "written": time.time(),
        "began": 0.0,
        "every": SECONDS,
        "state": "running",
        "error": "",
        "host": "node-7",
        "pid": 42,
        "left": 5,
        "done": 1,
        "given_up": 0,
        "failures": 0,
        "requests_per_second": 25_000.0,
        "tokens_per_second": 2.5e6,
        "seconds_left": 3725.0,
        "replicas": {"replica-0": {"doing": "scoring", "seconds": 12.0, "unit": ["arc", "0.5", 1]}},
        "news": ["replica-0 is ready on H100"],
    }
    commit_json(run.driver_json, usual | values)


# The driver's side


def test_rates_are_of_the_recent_past() -> None:
    now = 0.0
    units = [unit(shard=n) for n in range(1000)]
    tally = Tally(units, clock=lambda: now)
    tally.unit_started("replica-0", units[0])
    assert tally.rates() is None
    for n in range(400):  # the first units are slow, at 10 s each
        now += 10
        tally.unit_done(receipt(units[n]))
    for n in range(400, 800):  # the next ones take 2 s each
        now += 2
        tally.unit_done(receipt(units[n]))
    assert tally.left == 200
    requests, tokens, left = tally.rates() or pytest.fail("no rates")
    assert (requests, tokens, left) == pytest.approx((50, 375, 400))
    now += 600  # if no unit is done any more, the rate falls
    assert (tally.rates() or pytest.fail("no rates"))[0] < 25


def test_what_is_left_takes_as_many_tokens_as_at_the_nearest_lambda() -> None:
    """Costs are the most that outputs can take: at λ = 2 they take all of it, and at λ ≤ 1 a tenth."""
    now = 0.0
    lambdas = ["0", "0.5", "1", "1.5", "2"]
    units = [unit(lam=lam, shard=n, cost=1000) for lam in lambdas for n in range(10)]
    tally = Tally(units, clock=lambda: now)
    tally.unit_started("replica-0", units[0])
    for lam, tokens in (("0", 100), ("2", 1000)):  # a hundred tokens a second
        for n in range(10):
            now += tokens / 100
            tally.unit_done(receipt(unit(lam=lam, shard=n), tokens_scheduled=tokens))
    # λ = 0.5 is nearer to 0, 1.5 is nearer to 2, and 1 is as near to both: it may be long.
    assert (tally.rates() or pytest.fail("no rates"))[2] == pytest.approx(10 * (1 + 10 + 10))
    now += 1
    tally.unit_done(receipt(unit(lam="1"), tokens_scheduled=100))
    assert (tally.rates() or pytest.fail("no rates"))[2] == pytest.approx(10 * 1 + 9 * 1 + 10 * 10)
    tally.replica_lost("replica-0", True, unit(lam="1.5"))
    assert (tally.rates() or pytest.fail("no rates"))[2] == pytest.approx(10 * 1 + 9 * 1 + 9 * 10)
    tally.grow([unit("mmlu", cost=110)])  # of a task of which nothing is known: the share of all that was done
    assert (tally.rates() or pytest.fail("no rates"))[2] == pytest.approx(109 + 1.1 * 11_100 / 21_000)


def test_given_up_units_are_no_longer_left() -> None:
    units = [unit(shard=n) for n in range(3)]
    tally = Tally(units)
    tally.replica_starting("replica-0")
    tally.replica_ready("replica-0")
    tally.unit_started("replica-0", units[0])
    tally.replica_lost("replica-0", True, None)
    assert (tally.left, tally.failures, tally.given_up, tally.replicas) == (3, 1, 0, {})
    tally.replica_lost("replica-1", True, units[0])
    assert (tally.left, tally.failures, tally.given_up) == (2, 2, 1)


@pytest.mark.parametrize(
    ("done", "error", "ends"),
    [(2, None, "done"), (1, None, "stopped"), (1, SystemExit(130), "stopped"), (1, OSError("no space"), "failed")],
)
def test_driver_json_tells_what_the_driver_does_and_how_it_ended(
    run: RunDir, done: int, error: BaseException | None, ends: str
) -> None:
    units = [unit(), unit(lam="1")]
    try:
        with Heartbeat(run, units) as heartbeat:
            first = DriverState.read(run)
            assert first is not None
            assert (first.state, first.left, first.replicas) == ("running", 2, {})
            now = itertools.count(time.monotonic() + SECONDS, SECONDS)
            heartbeat.clock = lambda: next(now)
            heartbeat.replica_starting("replica-0")
            heartbeat.unit_started("replica-0", units[0])
            heartbeat.message("news")
            heartbeat.tick()
            running = DriverState.read(run)
            assert running is not None
            assert running.replicas["replica-0"]["doing"] == "scoring"
            assert running.replicas["replica-0"]["unit"] == ["arc", "0", 0]
            assert running.news == ["news"]
            for one in units[:done]:
                heartbeat.unit_done(receipt(one))
            if error:
                raise error
    except (OSError, SystemExit):
        pass
    last = DriverState.read(run)
    assert last is not None
    assert (last.state, last.left, last.done, last.replicas) == (ends, 2 - done, done, {})
    assert last.error == ("no space" if ends == "failed" else "")


def test_the_driver_writes_no_more_often_than_it_says(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    heartbeat = Heartbeat(run, [unit()])
    heartbeat.clock = lambda: now
    with heartbeat:
        for now in range(1, 31):
            before = run.driver_json.stat().st_ino
            heartbeat.tick()
            assert (run.driver_json.stat().st_ino != before) == (now % SECONDS == 0)


def test_a_disk_that_refuses_driver_json_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with Heartbeat(RunDir(tmp_path / "run"), [unit()]) as heartbeat:
        heartbeat.tick()


# The watcher's side


def test_the_status_reads_each_record_once(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(run, unit())
    sweeps, plans = counted(monkeypatch, "sweep"), counted(monkeypatch, "plan")
    assert "1 unit done, 11 left" in list(describe(run.root))
    assert (len(sweeps), len(plans)) == (1, 1)


def test_receipts_are_read_once_and_complete_folders_listed_no_more(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(run, unit(shard=0))
    commit(run, unit(shard=1))
    commit(run, unit(lam="1"))
    listed, read = counted(monkeypatch, "committed"), counted(monkeypatch, "receipt")
    counts = RunCounts(run)
    counts.refresh(10)
    assert sorted(listed[:2]) == [("arc", "0", "tokens"), ("arc", "1", "tokens")]
    assert (counts.done, counts.total, counts.spent.receipts, len(read)) == (3, 12, 3, 3)
    listed.clear()
    commit(run, unit(lam="1", shard=1))
    commit(run, unit("mmlu", "0.5"))
    counts.refresh(10)
    assert sorted(listed) == [("arc", "1", "tokens"), ("mmlu", "0.5", "tokens")]
    assert (counts.done, counts.spent.receipts, len(read)) == (5, 5, 5)


def test_a_receipt_that_comes_late_is_read_then(run: RunDir) -> None:
    commit(run, unit(), with_receipt=False)
    counts = RunCounts(run)
    counts.refresh(10)
    assert (counts.done, counts.spent.receipts) == (1, 0)
    commit(run, unit(), quarantined=4)
    counts.refresh(10)
    assert (counts.done, counts.spent.receipts, counts.spent.quarantined["arc"]) == (1, 1, 4)


def test_the_plan_may_grow_while_it_is_watched(run: RunDir) -> None:
    counts = RunCounts(run)
    begin(run.root, ["arc", "mmlu", "gsm"], ["-0.5", *LAMBDAS], 2)
    commit(run, unit("gsm", "-0.5"))
    counts.refresh(10)
    assert (counts.done, counts.total) == (1, 24)


@pytest.mark.parametrize(("device", "cost"), [("cuda", "0.16 GPU-hours"), ("cpu", "0.48 core-hours")])
def test_cost_is_seconds_times_ranks(tmp_path: Path, device: str, cost: str) -> None:
    run = begin(tmp_path / "run", ["arc"], LAMBDAS, 2, device)
    for shard in (0, 1):
        commit(run, unit(shard=shard))  # this is 36 s on 8 ranks, on a CPU with 3 threads each
    assert f"{cost}, 2000 tokens, 25% of them cached" in list(describe(run.root))


def test_status_of_a_running_driver(run: RunDir) -> None:
    commit(run, unit())
    state(run, failures=2, given_up=1)
    lines = list(describe(run.root))
    start = lines.index("1 unit done, 11 left")
    assert lines[start + 2] == "driver runs on node-7 (process 42), seen 0 s ago; 2 replicas failed, 1 unit given up"
    assert lines[start + 3 :] == [
        "1 h 02 min left, 25 k requests/s, 2.5 M tokens/s",
        "  replica-0: arc λ 0.5 shard 1 for 12 s",
    ]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"written": -200.0}, "driver not seen for 3 min 2"),
        ({"state": "failed", "error": "no replica starts.\nIt said: x"}, "driver failed 0 s ago: no replica starts."),
        ({"state": "stopped"}, "driver was stopped 0 s ago, with 1 unit done and 5 left"),
        ({"state": "done", "left": 0}, "driver ended 0 s ago, with 1 unit done and 0 left"),
    ],
)
def test_status_of_a_driver_that_is_gone(run: RunDir, values: dict[str, Any], says: str) -> None:
    if "written" in values:  # times are relative to now, whenever the tests were collected
        values = values | {"written": time.time() + values["written"]}
    state(run, **values)
    *_, last = describe(run.root)
    assert last.startswith(says)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"written": 1}', '{"of": "another version"}'])
def test_a_strange_driver_json_is_as_good_as_none(run: RunDir, text: str) -> None:
    run.driver_json.write_text(text)
    assert list(describe(run.root))[-1] == "0 units done, 12 left"


def test_a_driver_that_was_killed_on_this_machine_is_gone(run: RunDir) -> None:
    """SIGKILL leaves a driver.json that says the driver runs, with minutes left, but its process is gone."""
    process = subprocess.Popen(["sleep", "600"])
    state(run, pid=process.pid, host="here", began_as=process_identity(process.pid))
    assert "driver runs on here" in "\n".join(describe(run.root))
    process.kill()
    process.wait()
    *_, last = describe(run.root)
    assert last.startswith("driver ended without a word, seen 0 s ago (process ")
    assert "on this machine is gone); the same command goes on" in last
    assert not RunCounts(run).driver_runs
    # A driver is told from another process with its number, and from a process of another machine or container.
    state(run, pid=os.getpid(), began_as=process_identity(process.pid))
    assert RunCounts(run).driver_is_gone
    elsewhere = "another-boot pid:[1] " + process_identity(os.getpid()).rpartition(" ")[2]
    state(run, pid=process.pid, began_as=elsewhere)
    assert RunCounts(run).driver_runs


def test_a_run_without_its_report_says_so(run: RunDir) -> None:
    says = f"there is no report yet: the same command, or `lambdasweep report {run.root}`, writes it"
    assert says not in list(describe(run.root))
    for task, lam, shard in itertools.product(("arc", "mmlu"), LAMBDAS, (0, 1)):
        commit(run, unit(task, lam, shard))
    assert says in list(describe(run.root))
    state(run)
    assert says not in list(describe(run.root))  # a driver may be working
    run.driver_json.unlink()
    run.index_html.parent.mkdir()
    run.index_html.write_text("here")
    assert says not in list(describe(run.root))


def test_a_driver_with_a_wrong_clock_is_alive_once_it_is_seen_to_write(run: RunDir) -> None:
    state(run, written=1000.0)
    counts = RunCounts(run)
    assert not counts.driver_runs
    state(run, written=1003.0)
    counts.refresh(1)
    assert counts.driver_runs


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RunCounts:
    """Return the counts of a run of 57 tasks at 101 λs with 64 replicas."""
    lambdas = [f"{n / 100:.2f}".rstrip("0").rstrip(".") for n in range(101)]
    tasks = [f"{n:02}_mmlu_subject_with_a_long_name" for n in range(57)]
    run = begin(tmp_path_factory.mktemp("large") / "run", tasks, lambdas, 2)
    for task in tasks[3:5]:
        for shard, lam in itertools.product((0, 1), lambdas[:50]):
            commit(run, unit(task, lam, shard))
    replicas = {
        f"replica-{n}": {"doing": "scoring", "seconds": 1.0, "unit": [tasks[40], lambdas[90], 1]} for n in range(64)
    }
    state(run, replicas=replicas)
    counts = RunCounts(run)
    counts.refresh(60)
    return counts


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (120, 30), (200, 50)])
def test_the_view_of_a_large_run_fits_the_terminal(large: RunCounts, width: int, height: int) -> None:
    lines = watch.render(large, width, height)
    text = [line.plain for line in lines]
    assert len(lines) <= height
    assert max(line.cell_len for line in lines) <= width
    rows = [line for line in text if line[2:8] == "_mmlu_"]
    assert [row for row in rows if row.startswith("40")]  # λs in work come before all others
    if height >= 24:
        assert sum(" 49 %" in row for row in rows) == 2  # λs that are begun come next
    (folded,) = [line for line in text if " more " in line and "%" in line]
    assert len(rows) + int(folded.split()[0]) == 57
    (now,) = [line for line in text if line.startswith("▼ now")]
    assert now.index("▼", 1) > 0.7 * len(rows[0].rstrip(" 0123456789%"))  # λ 0.9 of 0 to 1, behind the names
    (rest,) = [line for line in text if "more replicas" in line]
    shown = re.findall(r"replica-(\d+) ", "".join(text[: text.index(rest)]))
    assert [int(number) for number in shown] == list(range(64 - int(rest.split()[1])))


def test_the_map_shows_what_is_done(run: RunDir) -> None:
    for one in (unit(), unit(shard=1), unit(lam="1")):
        commit(run, one)
    counts = RunCounts(run)
    counts.refresh(1)
    text = [line.plain.rstrip() for line in watch.render(counts, 80, 24)]
    assert "     0     0.5   1" in text
    assert "arc  █████ ····· ▒▒▒▒▒   50 %" in text
    assert "mmlu ····· ····· ·····    0 %" in text


def test_elsewhere_than_on_a_terminal_the_view_is_lines(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [unit(task, lam, shard) for task in ("arc", "mmlu") for lam in LAMBDAS for shard in (0, 1)]

    looks = itertools.count()

    def sleep(_: float) -> None:
        if next(looks) % 2:  # at every other look nothing is new, and no line is printed
            commit(run, left.pop())
            commit(run, left.pop())

    monkeypatch.setattr(watch.time, "sleep", sleep)
    out = io.StringIO()
    watch.watch(run, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"{n}/12 units" for n in range(0, 13, 2)]
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (9999, "9999"), (12_345, "12.3 k"), (4.56e6, "4.56 M"), (2e9, "2 G")]
)
def test_quantities(number: float, text: str) -> None:
    assert quantity(number) == text
