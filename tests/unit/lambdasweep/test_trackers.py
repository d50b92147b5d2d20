"""Trackers have what `report --log` gave them, read back from their own files. Nothing uses a network."""

import contextlib
import json
import sqlite3
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calibration.analyse import Analysis
from contract.commit import commit_bytes, commit_json
from contract.errors import InputError, LambdasweepError
from contract.rundir import RunDir
from lambdasweep.exchange.logged import Logged, gather_logged
from lambdasweep.exchange.trackers import TRACKERS, check_tracker, log_to
from tests.support.reports import add_quiz, add_words, analysed
from tests.support.tables import SWEEP, add_scores

GRID = ("0", "0.25", "1", "1.5")


def _png() -> bytes:
    """Return a picture of one pixel, because trackers look into the pictures that they are given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head, pixel = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), zlib.compress(bytes(4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


PNG = _png()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Analysis]:
    run = RunDir(tmp_path_factory.mktemp("trackers") / "run-7")
    add_quiz(run, documents=12, grid=GRID)
    add_words(run, grid=GRID)
    report(run)
    return run, analysed(run)


def report(run: RunDir) -> None:
    """Write what a report consists of; trackers take its files as they are."""
    for path, data in (
        (run.index_html, b"<html>"),
        (run.frontier_json, b"{}"),
        (run.metrics_csv, b"task,value\nquiz,0.5\n"),
        (run.figure("frontier.png"), PNG),
        (run.figure("frontier.svg"), b"<svg/>"),
    ):
        commit_bytes(path, data)


@pytest.fixture(scope="module")
def logged(made: tuple[RunDir, Analysis]) -> Logged:
    return gather_logged(*made)


@pytest.mark.slow
def test_a_step_is_a_lambda_and_has_the_metrics_with_their_intervals(logged: Logged, made: Any) -> None:
    assert [(step.number, step.lam, step.values["lambda"]) for step in logged.steps] == [
        *((0, "0", 0.0), (25, "0.25", 0.25), (100, "1", 1.0), (150, "1.5", 1.5))
    ]
    assert logged.unit == "0.01"
    rows = {
        (str(row["lam"].normalize()), row["task"], row["metric"]): row
        for row in made[1].metrics.to_pylist()
        if (row["split"], row["confidence"]) == ("all", "sum")
    }
    step = logged.steps[1].values
    row = rows["0.25", "quiz", "ece_width15"]
    assert [step[f"quiz/ece_width15{end}"] for end in ("", "_low", "_high")] == [
        *(row["value"], row["ci_low"], row["ci_high"])
    ]
    assert step["words/perplexity"] == rows["0.25", "words", "perplexity"]["value"]
    assert not [name for name in step if "_vs_" in name or "temperature" in name or "docs_" in name]
    assert logged.summary == {
        "quiz/lambda_star": made[1].found.tasks[0].chosen.lam,
        "quiz/answer": made[1].found.tasks[0].answer,
    }
    assert logged.settings["base fingerprint"] == "b0"
    figures = {"figures/frontier.png", "figures/frontier.svg"}
    assert logged.files.keys() == {"index.html", "frontier.json", "metrics.csv", *figures}
    assert logged.files["figures/frontier.png"] == PNG


def test_points_of_several_coordinates_are_steps_in_order(tmp_path: Path) -> None:
    points = ("dpo=0,sft=0", "dpo=0,sft=1", "dpo=1,sft=0", "dpo=0.5,sft=0.5")
    run = RunDir(tmp_path)
    add_quiz(run, documents=12, grid=points[:0])
    pair = {"base": {"source": "/here"}, "aligned.dpo": {"source": "/dpo"}, "aligned.sft": {"source": "/sft"}}
    plan = run.plan()
    plan["tasks"]["quiz"]["lambdas"] = list(points)
    commit_json(run.plan_json, plan)
    commit_json(run.sweep_json, SWEEP | {"pair": pair})
    for number, point in enumerate(points):
        add_scores(run, "quiz", point, {r: [-1.0 - 0.1 * number * (r % 2)] for r in range(24)})
    report(run)
    analysis = analysed(run)
    found = gather_logged(run, analysis)
    assert found.unit == ""
    assert [(step.number, step.lam) for step in found.steps] == list(enumerate(sorted(points)))
    assert found.steps[2].values["lambda_dpo"] == 0.5


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of W&B's file of a run: a header of 7 bytes, then LevelDB's log, in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little is left of the block for the head of a piece
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)  # a checksum comes first
        whole += data[place + 7 : place + 7 + length]
        if kind in (1, 4):  # the piece is the whole record, or its last part
            yield whole
            whole = b""
        place += 7 + length


@pytest.mark.slow
def test_wandb_offline(logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install lambdasweep[wandb]")
    from wandb.proto import wandb_internal_pb2 as records

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    # W&B would list all installed packages, which takes half of its time.
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    folder = Path(log_to("wandb", logged))
    (file,) = folder.parent.glob("*.wandb")
    found = [records.Record.FromString(data) for data in wandb_records(file.read_bytes())]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.HasField("history")
    ]
    steps = [row for row in rows if "quiz/acc" in row]  # W&B repeats λ beside the table and the pictures
    assert [{name: row[name] for name in step.values} for row, step in zip(steps, logged.steps, strict=True)] == [
        dict(step.values) for step in logged.steps
    ]
    (run,) = (one.run for one in found if one.HasField("run") and one.run.display_name)
    assert (run.project, run.display_name) == ("lambdasweep", "run-7")
    assert any(one.HasField("metric") and one.metric.step_metric == "lambda" for one in found)
    (table,) = (row["metrics/path"] for row in rows if "metrics/path" in row)
    assert json.loads((folder / table).read_text())["data"] == [["quiz", "0.5"]]
    (picture,) = (row["figures/frontier/path"] for row in rows if "figures/frontier/path" in row)
    assert (folder / picture).read_bytes() == PNG
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for one in found
        for item in one.summary.update
    }
    assert summary["quiz/answer"] == logged.summary["quiz/answer"]
    assert any(one.HasField("exit") and one.exit.exit_code == 0 for one in found)


@pytest.mark.slow
def test_mlflow_in_a_folder(logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install lambdasweep[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    mlflow.set_tracking_uri(tmp_path.as_uri())
    where = log_to("mlflow", logged)
    client = mlflow.MlflowClient(tmp_path.as_uri())
    experiment = client.get_experiment_by_name("lambdasweep")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id in where
    assert (run.info.run_name, run.info.status) == ("run-7", "FINISHED")
    for name in logged.steps[0].values:
        history = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert history == [(step.number, step.values[name]) for step in logged.steps if name in step.values], name
    assert run.data.tags["lambda_step"] == "0.01"
    assert run.data.tags["quiz.answer"] == logged.summary["quiz/answer"]
    assert run.data.params["base.fingerprint"] == "b0"
    folder = Path(client.download_artifacts(run.info.run_id, "report", str(tmp_path)))
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        **logged.files
    }


def test_trackio_in_a_folder(logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # trackio reads it when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed: pip install lambdasweep[trackio]")
    assert log_to("trackio", logged) == "project lambdasweep, run run-7"
    with contextlib.closing(sqlite3.connect(tmp_path / "lambdasweep.db")) as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        (settings,) = (json.loads(row[0]) for row in store.execute("SELECT config FROM configs"))
    assert {run for run, _, _ in rows} == {"run-7"}
    found = [(step, json.loads(values)) for _, step, values in rows]
    curves = [(step, values) for step, values in found if "lambda" in values]
    assert curves == [(step.number, dict(step.values)) for step in logged.steps]
    assert any("figures/frontier" in values for _, values in found)
    assert settings["quiz/answer"] == logged.summary["quiz/answer"]
    assert settings["lambda_step"] == "0.01"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as caught:
        check_tracker(name)
    assert str(caught.value) == f"--log {name} needs the package {name}: install lambdasweep[{name}]"


def test_an_unknown_tracker_and_one_that_fails(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--log tensorboard is unknown: give wandb, mlflow, trackio"):
        check_tracker("tensorboard")

    class Failing:
        @staticmethod
        def init(**_: object) -> None:
            raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "wandb", Failing)
    with pytest.raises(LambdasweepError, match=r"wandb did not take the whole run \(ConnectionError: no route\)"):
        log_to("wandb", logged)
