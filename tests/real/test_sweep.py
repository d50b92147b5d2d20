"""The command line runs whole sweeps, with a real Ray cluster, real vLLM engines and real kills.

One undisturbed sweep is the reference. A second directory goes through everything that can happen to a sweep, and must end
with the same bytes.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from contract.commit import read_identity
from contract.rundir import RunDir
from tests.support.checkpoints import write_checkpoint
from tests.support.sweep_process import Sweep, alive, committed, tables, units
from tests.support.waiting import until

LAMBDAS = "0:1.5:0.25"
TASKS = ("letters", "cloze")


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 20))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments of a sweep of a tiny pair, one task file in both formats, and prompts, through a config file."""
    root = tmp_path_factory.mktemp("inputs")
    write_checkpoint(root / "base", seed=0)
    write_checkpoint(root / "aligned", seed=1)
    rows = [
        {
            "query": f"Which of these is number {n}? " + "so " * (n % 40),
            "choices": [f"one {n}", f"two {n}", f"three {n}"],
            "gold": n % 3,
        }
        for n in range(250)
    ]
    rows[7]["query"] = "far too long " * 300  # this row is quarantined in both formats
    prompts = ["One day", "The end of", "word " * 300, "1, 2, 3,"]  # the third prompt is quarantined
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "sweep.toml").write_text(
        'base = "base"\naligned = "aligned"\nmax_model_len = 256\n'
        "[engine]\nkv_cache_memory_bytes = 67108864\n"
        + "".join(f'[[task]]\nname = "{name}"\nfile = "rows.jsonl"\nformat = "{name}"\n' for name in TASKS)
        + '[[generate]]\nname = "stories"\nfile = "prompts.jsonl"\nsamples = 3\nmax_tokens = 6\n'
    )
    return ["--config", str(root / "sweep.toml")]


@pytest.fixture(scope="module")
def reference(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep that nothing happened to."""
    out = tmp_path_factory.mktemp("reference") / "run"
    sweep = Sweep(out, [*inputs, "--lambdas", LAMBDAS, "--replicas", "2"])
    assert sweep.wait() == 3, sweep.text()  # the sweep finished, with one document in quarantine
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of its own that can be filled, or a plain directory where mounting is not allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(tmp_path)], capture_output=True)
    yield tmp_path
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_the_reference_is_complete(reference: Path) -> None:
    run = RunDir(reference)
    assert tables(reference) == units(reference) >= 7 * 2 * len(TASKS)  # each task has several shards
    for task in TASKS:
        requests = pq.read_table(run.requests(task))
        long = {7}
        for lam in ("0", "0.25", "1", "1.5"):
            scored, refused = run.tokens(task, lam), run.quarantine(task, lam)
            assert scored.num_rows + refused.num_rows == requests.num_rows
            bad = {requests.column("doc_id")[number].as_py() for number in refused.column("request_id").to_pylist()}
            assert bad == {str(row + 1) for row in long}
            identity = read_identity(run.unit("tokens", task, lam, 0))
            assert (identity["lam"], identity["task"], identity["shard"]) == (lam, task, 0)
    for lam in ("0", "0.25", "1", "1.5"):
        samples = run.generations("stories", lam)
        keys = list(zip(samples["request_id"].to_pylist(), samples["sample"].to_pylist(), strict=True))
        assert keys == [(prompt, sample) for prompt in (0, 1, 3) for sample in range(3)]
        assert run.quarantine("stories", lam)["request_id"].to_pylist() == [2]
        assert samples["seed"].equals(run.generations("stories", "0")["seed"])  # it is the same at every λ
    assert not run.generations("stories", "1")["text"].equals(run.generations("stories", "0")["text"])
    metrics = pq.read_table(run.metrics_parquet)
    assert {"self_bleu", "distinct_2", "distinct_answers"} <= set(metrics["metric"].to_pylist())
    assert set(metrics.column("n").to_pylist()) >= {249}
    receipts = [json.loads(path.read_text()) for path in reference.rglob("receipts/**/*.json")]
    assert len(receipts) == units(reference)
    assert len({receipt["replica"] for receipt in receipts}) == 2


def test_kills_a_full_disk_and_signals_change_no_byte(inputs: list[str], reference: Path, small_disk: Path) -> None:
    out = small_disk / "run"
    arguments = [*inputs, "--lambdas", LAMBDAS, "--replicas", "2"]
    total = units(reference)

    # All replicas are killed, because one alone would do all units meanwhile. Others take their places.
    sweep = Sweep(out, arguments)
    sweep.until(lambda: tables(out) >= 2)
    victims = sweep.replicas()
    assert len(victims) == 2
    for victim in victims:
        victim.kill()
    sweep.until(lambda: "replica-0.2 is ready" in sweep.text() and "replica-1.2 is ready" in sweep.text())
    # Then the driver is killed. No engine outlives it, and in the end nothing does (Ray's agents take a minute to notice).
    engines, left_behind = sweep.replicas(), sweep.descendants()
    assert len(engines) == 2
    sweep.process.kill()
    sweep.process.wait()
    until(lambda: not alive(engines), 30)
    after_kill = tables(out)  # an engine may commit its unit before it notices
    assert after_kill < total

    # When the disk fills up, the sweep stops, says so, and leaves nothing half-written.
    filler = small_disk / "filler"
    if os.path.ismount(small_disk):
        sweep = Sweep(out, arguments)
        sweep.until(lambda: tables(out) > after_kill)
        fill(filler)
        assert sweep.wait() == 1, sweep.text()
        assert "No space left on device" in sweep.text()
        filler.unlink()
        assert not list(out.rglob(".*.tmp"))

    # The user stops it.
    before = tables(out)
    sweep = Sweep(out, arguments)
    sweep.until(lambda: tables(out) > before)
    sweep.process.send_signal(signal.SIGTERM)
    assert sweep.wait() == 130, sweep.text()
    assert before < tables(out) < total
    assert not list(out.rglob(".*.tmp"))

    # The same command finishes the rest.
    sweep = Sweep(out, arguments)
    assert sweep.wait() == 3, sweep.text()
    assert f"of {total} units are committed already" in sweep.text()
    assert committed(out) == committed(reference)
    assert (out / "sweep.json").read_bytes() == (reference / "sweep.json").read_bytes()
    until(lambda: not alive(left_behind), 120)


def test_running_it_again_starts_no_engine_and_changes_nothing(inputs: list[str], reference: Path) -> None:
    before = committed(reference)
    sweep = Sweep(reference, [*inputs, "--lambdas", "0,1", "--replicas", "2"])
    assert sweep.wait() == 3, sweep.text()
    assert "is ready" not in sweep.text().rpartition("run directory")[0].rpartition("run directory")[2]
    assert committed(reference) == before


def test_tensor_parallel_goes_through_the_same_actor(inputs: list[str], reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "tp2"
    sweep = Sweep(out, [*inputs, "--lambdas", "0.25", "--tp", "2"])
    assert sweep.wait() == 3, sweep.text()
    for task in TASKS:
        one, two = (RunDir(root).tokens(task, "0.25").column("logprobs").to_pylist() for root in (reference, out))
        assert [len(row) for row in one] == [len(row) for row in two]
        assert [x for row in one for x in row] == pytest.approx([x for row in two for x in row], abs=1e-4)
