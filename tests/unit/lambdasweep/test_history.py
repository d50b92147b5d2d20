"""history.json: by which commands a run was made, on which hardware, and that the report says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.rundir import RunDir
from contract.units import Unit
from lambdasweep.monitor.history import History
from tests.support.command_line import Result
from tests.support.receipts import receipt

UNIT = Unit("t", "0.5", 0, 0, 9, 100)
COMMAND = "lambdasweep run --base b --aligned 'a <chat>' --out runs/one"


def read(run: RunDir) -> dict[str, list[str]]:
    assert isinstance(run.history_json, Path)
    value: dict[str, list[str]] = json.loads(run.history_json.read_text(encoding="utf-8"))
    return value


def test_a_command_is_added_once_and_hardware_when_a_unit_came_from_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.history() == ([], [])
    history = History(run, COMMAND)
    assert read(run) == {"commands": [COMMAND], "hardware": []}  # a driver that is killed now leaves this
    for kind in ("NVIDIA H100", "AMD EPYC", "NVIDIA H100"):
        history.unit_done(receipt(UNIT, hardware=kind))
    History(run, f"{COMMAND} --refine 3")
    History(run, COMMAND)
    assert read(run) == {"commands": [COMMAND, f"{COMMAND} --refine 3"], "hardware": ["AMD EPYC", "NVIDIA H100"]}


@pytest.mark.parametrize("text", ["", "[]", "3", '{"commands": 3}', "{"])
def test_a_strange_history_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.json").write_text(text)
    assert RunDir(tmp_path).history() == ([], [])


def test_a_disk_that_refuses_a_history_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("lambdasweep.monitor.history.commit_json", refuse)
    History(RunDir(tmp_path), COMMAND).unit_done(receipt(UNIT))
    assert not list(tmp_path.iterdir())


def test_a_run_and_its_report_say_by_which_command_and_on_what(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    for _ in range(2):
        assert lambdasweep("run", *flags()).code == 0
    run = RunDir(tmp_path / "run")
    (command,), hardware = run.history()
    assert command.startswith("lambdasweep run --base ")
    assert command.endswith(f"--task metals={tmp_path / 'metals.jsonl'}")
    assert hardware == []
    History(run, command).unit_done(receipt(UNIT, hardware="An <Iron> Box"))
    assert lambdasweep("report", tmp_path / "run").code == 0
    page = (
        (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8").partition("<h2>What was run</h2>")[2]
    )
    assert f"<dt>command</dt><dd>{command}</dd>" in page
    assert "<dt>hardware</dt><dd>An &lt;Iron&gt; Box</dd>" in page
