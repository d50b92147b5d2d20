"""`status`, `plan`, `run` and `report` print what a run is, what it would cost, and what came out."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.rundir import RunDir
from contract.units import Unit
from merge.line import Line
from serve.machine import Gpus
from serve.switch.tiers import Room
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import (
    IRON,
    Result,
    changed_copy,
    contents,
    score_all,
    write_task,
)
from tests.support.receipts import receipt
from tests.support.reports import undrawn

# What commands print


def test_status_counts_what_is_done_left_and_quarantined(begun: RunDir, lambdasweep: Callable[..., Result]) -> None:
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    rows = [{"request_id": row, "reason": reason} for row, reason in enumerate(["too long", "NaN", "too long"])]
    commit_table(begun.unit("quarantine", "metals", "0.5", 0), pa.Table.from_pylist(rows, schema=schemas.QUARANTINE))
    result = lambdasweep("status", begun.root)
    assert result.code == 0
    assert result.err == ""
    *lines, driver = result.out.splitlines()[3:]
    assert driver.startswith("driver was stopped ")  # the stub did nothing
    assert lines == [
        "metals: 1/3 units, 2 documents × 3 λ (cloze, 0 shots)",
        "  left at λ 0, 1",
        "  quarantined: 2 × too long",
        "  quarantined: 1 × NaN",
        "1 unit done, 2 left",
    ]


def test_a_report_of_nothing_says_so(begun: RunDir, lambdasweep: Callable[..., Result]) -> None:
    result = lambdasweep("report", begun.root)
    assert (result.code, result.out) == (0, f"report: {begun.index_html}\n")
    assert result.err == "no unit is committed yet, so there is nothing to report\n"
    assert "No λ is finished yet" in begun.index_html.read_text(encoding="utf-8")


def test_a_plan_tells_the_cost_and_writes_nothing(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[Any], tmp_path: Path
) -> None:
    before = contents(tmp_path)
    result = lambdasweep("plan", *flags())
    assert (result.code, result.err) == (0, "")
    lines = {line.split()[0].rstrip(":"): line.split(maxsplit=1)[1] for line in result.out.splitlines()}
    assert lines["pair"].startswith("20 tensors, 263 kB each; both parents per rank: 526 kB")
    assert lines["memory"].startswith("parents: mmap, 526 kB in the page cache, shared by all ranks; host memory ")
    assert lines["engine"].startswith("cpu, float32, TP 1, PP 1, requests up to 512 tokens (the longest has ")
    asked = lambdasweep("plan", *flags(max_model_len=100)).out
    assert "requests up to 100 tokens (--max-model-len)" in asked
    assert lines["task"].startswith("metals: 2 documents, 5 requests, ")
    assert lines["units"] == "3 to do of 3 (3 λ)"
    tokens = int(lines["task"].split(" requests, ")[1].split()[0])
    assert lines["tokens"].startswith(f"{3 * tokens} at most")
    assert re.fullmatch(r"\d\d kB of tables", lines["disk"])
    assert lines["lambdas"] == "0, 0.5, 1"
    halves = lambdasweep("plan", *flags(pp=2)).out
    assert "both parents per rank: 263 kB" in halves
    assert "TP 1, PP 2" in halves
    assert lines["time"].startswith("about ")
    assert lines["not"].startswith("checked: NaN and infinity in the weights (")
    assert contents(tmp_path) == before
    assert handed == []


GIB = 1 << 30


@pytest.mark.parametrize(
    ("parents", "device", "says"),
    [
        ("reload", {}, "every switch goes through vLLM's own loader (--parents reload)"),
        ("device", {}, "parents: device, 526 kB a rank; host memory "),
        (
            "auto",
            {"device_total": 0},
            "parents: 526 kB a rank, in GPU memory, else pinned (526 kB a replica), else in ",
        ),
        (
            "auto",
            {"device_total": 80 * GIB, "device_free": 79 * GIB},
            "parents: device, 526 kB a rank beside 263 kB live, of 84.83 GB free, of which 5.17 GB are for the KV cache, "
            "steps and vLLM; host memory 0 kB for 1 replica,",
        ),
        (
            "auto",
            {"device_total": 8 * GIB, "device_free": 1 * GIB},
            "parents: pinned, 526 kB a rank beside 263 kB live, of 1.07 GB free, of which 4.31 GB are for the KV cache, "
            "steps and vLLM, which may not fit: give more ranks (--tp); host memory 526 kB for 1 replica,",
        ),
    ],
)
def test_a_plan_tells_where_the_parents_go(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    parents: str,
    device: dict[str, int],
    says: str,
) -> None:
    if device:  # this stands for a machine with a GPU
        monkeypatch.setattr("serve.settings.installed_device", lambda: "cuda")
        found = Room(64 * GIB, 60 * GIB, 1, **device)
        monkeypatch.setattr("serve.engine.free_memory", lambda settings, ranks: replace(found, ranks=ranks))
        monkeypatch.setattr("serve.machine.gpus", lambda: Gpus(2, total) if (total := device["device_total"]) else None)
    result = lambdasweep("plan", *flags(parents=parents))
    assert (result.code, result.err) == (0, "")
    (engine,) = [line for line in result.out.splitlines() if line.startswith("engine")]
    assert (", TP 1 (auto), PP 1," in engine) == bool(device)
    (line,) = [line for line in result.out.splitlines() if line.startswith("memory")]
    assert says in line


def test_the_tier_asked_for_reaches_the_replicas_and_is_no_part_of_the_sweep(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    for parents in ("pinned", "mmap"):  # the second goes on with the first's run directory
        lambdasweep("run", *flags(parents=parents))
        assert handed[-1]["spec"].parents == parents


def test_the_line_is_part_of_the_sweep_and_reaches_the_replicas(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]], tmp_path: Path
) -> None:
    aligned = write_checkpoint(tmp_path / "chat", seed=1, vocab=520)
    line = {"method": "slerp", "lam_map": "layers=0.5:1,embed=1", "vocab": "shared"}
    planned = lambdasweep("plan", *flags(aligned=aligned, **line))
    assert "line      slerp, λ × embed=1,layers=0.5:1, shared vocabulary\n" in planned.out
    warning = (
        "warning: 8 of 520 rows of model.embed_tokens.weight are aligned's at every λ: their token ids stand for other"
    )
    assert warning in planned.out
    result = lambdasweep("run", *flags(aligned=aligned, **line))
    assert result.code == 0
    assert warning in result.err
    record = RunDir(tmp_path / "run").sweep()
    want = {**line, "lam_map": "embed=1,layers=0.5:1"}
    rows = {"model.embed_tokens.weight": 8}
    assert record["line"] == want | {"rows_from_aligned": rows, "ends_at_aligned": False}
    assert record["tokenizer"] == "aligned"
    spec = handed[-1]["spec"]
    assert spec.line == Line(**want)
    assert spec.identity["line"] == record["line"]
    # The same map in another order, with other zeros.
    again = flags(aligned=aligned, **line | {"lam_map": "embed=1.0, layers=0.50:1"})
    assert lambdasweep("run", *again).code == 0


def test_a_plan_for_a_begun_sweep_counts_what_is_left(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    plan = begun.plan_json.read_bytes()
    begun.plan_json.unlink()  # a first command was killed before it wrote the plan
    early = lambdasweep("plan", *flags())
    assert (early.code, early.err) == (0, "")
    assert "units     3 to do of 3 (3 λ)\n" in early.out
    begun.plan_json.write_bytes(plan)
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    assert "2 FLOP × parameters × tokens computed, " in lambdasweep("plan", *flags()).out
    unit = Unit("metals", "0.5", 0, 0, 5, 1)
    # The unit took 36 s.
    commit_json(begun.unit("receipts", "metals", "0.5", 0), receipt(unit, tokens_scheduled=7200).to_json())
    before = contents(begun.root)
    result = lambdasweep("plan", *flags(lambdas="0:1.5:0.5"))
    assert "engine start apart (at 200 tokens/s a replica, as in the 1 unit so far, " in result.out
    assert "units     3 to do of 4 (4 λ)\n" in result.out
    assert f"whether they are those of {begun.root} (`run` reads them)" in result.out
    assert contents(begun.root) == before


def test_warnings_are_said_and_do_not_stop(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def shorten(copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))

    aligned = changed_copy(pair[1], tmp_path / "short", shorten)
    result = lambdasweep("run", *flags(aligned=aligned))
    assert result.code == 0
    assert "warning: config.json: max_position_embeddings is 512 in base and 256 in aligned\n" in result.err
    assert RunDir(tmp_path / "run").sweep()["engine"]["max_model_len"] == 256


def test_a_plan_without_vllm_checks_the_headers_and_says_what_it_left(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    refused: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("lambdasweep.plan.find_spec", lambda name: None)
    result = lambdasweep("plan", *flags())
    assert result.code == 0
    assert "20 tensors, 263 kB each" in result.out
    assert "metals: 2 rows" in result.out
    assert result.out.splitlines()[-1].startswith(
        "not checked: NaN and infinity in the weights, tokens, units, time (install"
    )
    file = write_task(tmp_path / "bad.jsonl", IRON, "{")
    assert len(refused(base=tmp_path / "gone", task=f"bad={file}").problems) == 2


# Figures for a paper


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
def test_figures_for_a_paper_are_written_when_asked_for(begun: RunDir, lambdasweep: Callable[..., Result]) -> None:
    score_all(begun)
    folder = begun.figure("x.svg").parent
    assert isinstance(folder, Path)
    assert lambdasweep("report", begun.root).code == 0
    assert not folder.exists()
    with undrawn():
        assert lambdasweep("report", begun.root, "--figures").code == 0
    assert {path.suffix for path in folder.iterdir()} == {".svg", ".png", ".pdf"}
    assert "figures/" in begun.index_html.read_text(encoding="utf-8")
    assert lambdasweep("report", begun.root).code == 0  # the page's numbers may be others than those of the figures
    assert list(folder.iterdir()) == []


# The report at the end of a run


def test_a_run_ends_with_its_report(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun.index_html.unlink()
    assert f"report: {begun.index_html}\n" in lambdasweep("run", *flags()).out
    assert begun.index_html.is_file()

    def broken(*_: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr("calibration.report.write.page", broken)
    rows = pa.Table.from_pylist([{"request_id": 0, "reason": "too long"}], schema=schemas.QUARANTINE)
    commit_table(begun.unit("quarantine", "metals", "0.5", 0), rows)
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    result = lambdasweep("run", *flags())
    assert result.code == 3  # this is the sweep's status
    assert f"no report (no such glyph): lambdasweep report {begun.root} tries again\n" in result.err
    assert f"run directory: {begun.root}\n" in result.out
