"""Sweeps with real engines survive a replica that hangs and requests that kill engines."""

import json
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import LambdasweepError
from contract.rundir import RunDir
from lambdasweep.batch.config import load_score_config
from lambdasweep.batch.score import run_score
from lambdasweep.config import SweepConfig
from lambdasweep.sweep import run_sweep
from lambdasweep.tasks.documents import TaskSpec
from ray_jobs import driver, health
from ray_jobs.splitting import REASON
from tests.support.checkpoints import write_checkpoint
from tests.support.faulty import POISON, FaultyReplica, ReplicaOfAChangedParent
from tests.support.waiting import share_of_a_core
from tests.support.warm_python import warm_python


def test_a_hung_replica_is_replaced_and_a_deadly_request_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "base", seed=0)
    write_checkpoint(tmp_path / "aligned", seed=1)
    rows = [{"query": f"Which is number {n}?", "choices": [f"one {n}", f"two {n}"], "gold": 0} for n in range(2)]
    for name, of_task in (("deadly", rows), ("harmless", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_task))
    monkeypatch.setattr(driver, "Replica", FaultyReplica)
    monkeypatch.setattr(sys, "executable", warm_python())  # Ray makes its workers from this Python
    silence = round(15 / share_of_a_core())  # a sound replica may take long to answer on a busy machine
    monkeypatch.setattr(health, "SILENCE_SECONDS", float(silence))
    monkeypatch.setattr(health, "PING_SECONDS", 1.0)
    monkeypatch.setenv("LAMBDASWEEP_FAULTS", str(tmp_path))
    config = SweepConfig(
        base=str(tmp_path / "base"),
        aligned=str(tmp_path / "aligned"),
        lambdas=("0.5",),
        tasks=tuple(TaskSpec(name, tmp_path / f"{name}.jsonl", format="cloze") for name in ("deadly", "harmless")),
        out=tmp_path / "run",
        replicas=2,
        max_model_len=128,
        engine={"kv_cache_memory_bytes": 1 << 26},
    )
    result = run_sweep(config, print)
    told = capfd.readouterr().err
    assert result.exit_code == 3
    assert f"has not answered for {silence} s" in told
    assert not psutil.pid_exists(int((tmp_path / "hung").read_text()))  # a stopped process does not end by itself
    run = RunDir(tmp_path / "run")
    assert run.quarantine("deadly", "0.5").to_pylist() == [{"request_id": POISON, "reason": REASON}]
    assert run.tokens("deadly", "0.5").column("request_id").to_pylist() == [0, 1, 2]
    assert run.tokens("harmless", "0.5").column("request_id").to_pylist() == [0, 1]
    assert run.quarantine("harmless", "0.5").num_rows == 0


def test_a_parent_that_is_written_to_ends_the_sweep_before_a_wrong_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file keeps its size and its headers, and the engine reads it where it lies."""
    for seed, name in enumerate(("base", "aligned", "other")):
        write_checkpoint(tmp_path / name, seed=seed)
    row = {"query": "Which is it?", "choices": ["this", "that"], "gold": 0}
    (tmp_path / "task.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr(driver, "Replica", ReplicaOfAChangedParent)
    monkeypatch.setattr(sys, "executable", warm_python())  # Ray makes its workers from this Python
    monkeypatch.setenv("LAMBDASWEEP_FAULTS", str(tmp_path))
    config = SweepConfig(
        base=str(tmp_path / "base"),
        aligned=str(tmp_path / "aligned"),
        lambdas=("0", "0.5", "1", "1.5"),
        tasks=(TaskSpec("task", tmp_path / "task.jsonl", format="cloze"),),
        out=tmp_path / "run",
        replicas=1,
        max_model_len=128,
        engine={"kv_cache_memory_bytes": 1 << 26},
    )
    with pytest.raises(LambdasweepError, match="no replica starts"):
        run_sweep(config, print)
    told = capfd.readouterr().err
    assert "a parent has changed while it was in use" in told
    assert "is not the one that the sweep was started with" in told
    # What was scored before the change is kept, and there is nothing else.
    assert len(RunDir(tmp_path / "run").all_committed()) == 1


def test_a_deadly_row_of_a_batch_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "model", seed=0)
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": list("abcde"), "prompt": [f"text number {n}" for n in range(5)]}), file)
    monkeypatch.setattr(driver, "Replica", FaultyReplica)
    monkeypatch.setattr(sys, "executable", warm_python())  # Ray makes its workers from this Python
    monkeypatch.setenv("LAMBDASWEEP_FAULTS", str(tmp_path))
    (tmp_path / "hung").touch()  # none hangs
    flags = {"model": str(tmp_path / "model"), "out": str(tmp_path / "out"), "replicas": 1, "max_model_len": 128}
    engine = ["kv_cache_memory_bytes=67108864"]
    assert run_score(load_score_config(flags, [str(file)], engine), print).exit_code == 3
    (refused,) = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert refused == {"id": "d", "file": str(file), "row": POISON, "reason": REASON}
    assert pq.read_table(tmp_path / "out" / "scores")["id"].to_pylist() == list("abce")
