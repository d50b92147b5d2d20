"""The catalogue of metrics knows what a run's table has, and one new entry is seen in everything that shows metrics."""

import dataclasses
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from calibration import catalogue
from calibration.analyse import analyse
from calibration.catalogue import Answer, Column, Metric
from calibration.report.facts import gather
from calibration.report.figures import page_figures, paper_figures
from calibration.report.numbers import numbers
from calibration.report.page import page
from calibration.terminal.tables import render
from calibration.uncertainty.intervals import Estimate, interval
from contract.rundir import RunDir
from lambdasweep.takehome.model_card import model_card
from lambdasweep.takehome.point import MeasuredPoint
from tests.support.paths import ROOT
from tests.support.reports import add_quiz
from tests.support.tables import add_outputs, add_prompts, add_samples, add_scores, add_task, add_written

GRID = ("0", "0.5", "1")
DOCUMENTS = 24

DOUBT = Metric(
    *("doubt", "Doubt", "share of the other choices", "down", "percentile", "ourselves"),
    mean_of=lambda made: 1 - made.confidence,
    scaled=True,
    answer=Answer("doubt", "doubt of the answer"),
    column=Column(6, "doubt", ".3f", ".2f"),
    drawn=True,
    form=".2f",
    card="doubt (share)",
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run of a choice task that grows surer with λ, a continuation task, and a generate task."""
    run = RunDir(tmp_path / "run")
    add_task(run, "quiz", [2] * DOCUMENTS, GRID)
    add_task(run, "words", [1] * 4, GRID)
    for lam in GRID:
        gaps = {d: (0.3 + float(lam) + d / 40) * (-1 if d % 4 == 0 else 1) for d in range(DOCUMENTS)}
        scores = {2 * d: [-math.log1p(math.exp(-gap))] for d, gap in gaps.items()}
        scores |= {2 * d + 1: [-math.log1p(math.exp(gap))] for d, gap in gaps.items()}
        add_scores(run, "quiz", lam, dict(sorted(scores.items())), top1={key: [5] for key in scores})
        add_scores(run, "words", lam, {d: [-1.0 - d] for d in range(4)}, ranks={d: [1] for d in range(4)})
    add_prompts(run, "stories", 4, GRID)
    for lam in GRID:
        add_samples(run, "stories", lam, {prompt: ["a b c d", f"a b {lam}"] for prompt in range(4)})
    return run


@pytest.mark.slow
def test_the_catalogue_is_what_a_table_has(run: RunDir) -> None:
    add_quiz(run, "other", grid=GRID)  # with the other task it makes a pool
    add_written(run, "sums", 8, GRID, 3)
    for lam in GRID:
        outputs = [(f"say {d % 3}", d % 2 == 0, [-0.1 - d / 9, -float(lam)], 0, False) for d in range(24)]
        add_outputs(
            run, "sums", lam, {d: outputs[3 * d : 3 * d + 3] for d in range(8)}, thinking=1, said=[(-1, -2)] * 24
        )
    table = analyse(run, resamples=20).metrics
    names = {name for name in table["metric"].to_pylist() if not name.startswith("docs_")}
    assert [name for name in names if catalogue.find(name) is None] == []
    known = [one for some in catalogue.METRICS.values() for one in some]
    # This run has no unconditional pass.
    known = [one for one in known if one.confidence != "pmi"]
    expected = {f"{one.name}_{parent}" for one in known if one.per_parent for parent in ("base", "aligned")}
    expected |= {f"{one.name}_2" for one in known if one.per_count}
    expected |= {one.name for one in known if not (one.per_parent or one.per_count)}
    expected |= {f"{one.name}_scaled" for one in known if one.scaled}
    assert {name for name in names if "_vs_" not in name} == expected
    compared = {name.partition("_vs_")[0] for name in names if "_vs_" in name}
    assert compared == {name for name in expected if (found := catalogue.find(name)) and found.compared}


def test_the_documents_have_the_catalogue() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert "\n".join(catalogue.table()) in text, "print calibration.catalogue.table() into docs/metrics.md"


@pytest.mark.slow
def test_a_metric_is_one_entry(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.METRICS, "choices", (*catalogue.METRICS["choices"], DOUBT))
    analysis = analyse(run, resamples=40, error="doubt")

    # The table has it on every split and under every confidence, scaled, and against the parents.
    rows = [row for row in analysis.metrics.to_pylist() if row["metric"].startswith("doubt")]
    of_sample = {row["metric"]: row for row in rows if (row["split"], row["confidence"]) == ("all", "sum")}
    assert of_sample.keys() == {
        f"doubt{scaled}{parent}" for scaled in ("", "_scaled") for parent in ("", "_vs_base", "_vs_aligned")
    }
    assert {(row["split"], row["confidence"]) for row in rows} == {
        (split, confidence) for split in ("all", "select", "report") for confidence in ("sum", "tokens", "bytes")
    }
    first = next(row for row in rows if (row["metric"], row["split"], str(row["lam"])[:1]) == ("doubt", "all", "0"))
    gaps = np.array([0.3 + d / 40 for d in range(DOCUMENTS)])
    assert first["value"] == pytest.approx((1 - 1 / (1 + np.exp(-gaps))).mean())
    assert first["ci_low"] < first["ci_high"]

    # The interval is of the kind that the entry says.
    drawn = Estimate(0.3, np.linspace(0.2, 0.9, 101), 10)
    monkeypatch.setitem(catalogue.METRICS, "samples", (dataclasses.replace(DOUBT, name="other", interval="normal"),))
    percentile, normal = interval(drawn, "doubt"), interval(drawn, "other")
    assert percentile
    assert normal
    assert percentile.low + percentile.high == pytest.approx(1.1)
    assert normal.high - 0.3 == pytest.approx(1.96 * np.std(drawn.resampled), rel=1e-3)
    monkeypatch.undo()
    monkeypatch.setitem(catalogue.METRICS, "choices", (*catalogue.METRICS["choices"], DOUBT))

    # The answer holds accuracy against it.
    (one,) = analysis.found.tasks
    assert one.metric == "doubt"
    assert ", doubt 0." in one.answer

    # The terminal and the report show it.
    console = Console(width=120, file=io.StringIO())
    for table in render(analysis.metrics, intervals=True, parents=analysis.parents):
        console.print(table)
    printed = console.file.getvalue()
    assert "doubt" in next(line for line in printed.splitlines() if "accuracy" in line)
    facts = gather(analysis, "doubt", "sum")
    assert "task-doubt" in page_figures(facts)["curves"]
    assert "Doubt" in numbers(facts)[0].header
    html = page(facts, analysis.sweep, analysis.plan, [], [])
    assert '"doubt of the answer","0 to 1, lower is better"' in html  # an axis' title has two lines
    assert "share of the other choices ↓" in html
    assert "share of the other choices ↓" in json.dumps(paper_figures(facts), ensure_ascii=False)

    # The model card of a point has it.
    at_half = tuple(row for row in analysis.metrics.to_pylist() if str(row["lam"]).startswith("0.5"))
    measured = MeasuredPoint("run", analysis.sweep, "asked for", at_half)
    parent = SimpleNamespace(source="org/model", revision="abc", path=Path("model"))
    pair = SimpleNamespace(
        opened={"base": parent, "aligned": parent},
        line=SimpleNamespace(lam_map="", method="linear"),
        aligned_rows={},
    )
    card = model_card(pair, {"base": "b", "aligned": "a"}, "0.5", "aligned", measured)
    assert "| quiz | doubt (share) | " in card
