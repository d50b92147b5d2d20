"""The page and the figures in RUN/report show what the tables say, and admit what is not known."""

import csv
import io
import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pyarrow.compute as pc
import pytest
from jsonschema import ValidationError

from calibration import analyse
from calibration.report import document
from calibration.report.curve_figure import outcome_curve_rows
from calibration.report.data import chart_data
from calibration.report.facts import gather
from calibration.report.figures import OUTCOME_FIGURES, page_figures, paper_figures
from calibration.report.identity import quarantine
from calibration.report.notices import notices
from calibration.report.numbers import numbers
from calibration.report.page import page
from calibration.report.tasks_figure import task_rows, tasks_chart
from calibration.report.write import write_report
from calibration.terminal.tables import render
from calibration.uncertainty.resample import draw
from contract import schemas
from contract.commit import commit_json, commit_table
from contract.records import read_plan, read_sweep
from contract.rundir import RunDir
from tests.support import odd_runs
from tests.support.reports import GRID, MARKUP, add_quiz, add_words, analysed, vega_lite, written
from tests.support.tables import SWEEP, add_quarantine, add_scores, add_task, add_written

VOID = {"meta", "link", "br", "hr", "img", "input"}


def facts_of(run):
    analysis = analysed(run)
    return gather(analysis, "ece_width15", "sum")


def shown(run):
    """Return the page alone."""
    plan = read_plan(run)
    return page_of(page(facts_of(run), read_sweep(run), plan, quarantine(run, plan), []))


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


class Page(HTMLParser):
    """This parser has the text of a page outside of scripts, its elements by name, and what is not closed."""

    def __init__(self, html):
        super().__init__()
        self.text, self.elements, self.data, self._open = "", [], "", []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if not self._open or self._open[-1][0] not in ("script", "style"):
            self.text += data
        elif self._open[-1][1].get("id") == "data":
            self.data += data


def page_of(html):
    return Page(html)


def found_links(found):
    """This parser has the links of a page."""
    return [attributes["href"] for tag, attributes in found.elements if tag == "a"]


def drawn_rows(spec):
    """Return the rows of a chart's data, as dicts of text."""
    values = spec["data"]["values"]
    return list(csv.DictReader(io.StringIO(values)))


# The bins


def test_bins_add_up_to_the_metrics(run):
    add_quiz(run)
    add_words(run)
    found = analysed(run)
    metrics = {
        (row["task"], row["lam"], row["metric"], row["confidence"], row["split"]): row["value"]
        for row in found.metrics.to_pylist()
    }
    bins = {}
    for row in found.bins.to_pylist():
        bins.setdefault((row["task"], row["lam"], row["events"], row["confidence"], row["split"]), []).append(row)
    assert len(bins) == 4 * (3 * 3 + 3) + 4 * 3
    for (task, lam, events, confidence, split), rows in bins.items():
        total = sum(row["n"] for row in rows)
        ece = sum(row["n"] * abs(row["accuracy"] - row["mean_confidence"]) for row in rows) / total
        name = "ece_width15" if events == "documents" else "token_ece_width15"
        assert ece == pytest.approx(metrics[task, lam, name, confidence, split], abs=1e-12)
        for row in rows:
            assert row["bin_low"] < row["mean_confidence"] <= row["bin_high"] + 1e-12
            if events == "documents":
                assert 0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1
            else:
                assert row["ci_low"] is None
                assert row["ci_high"] is None


def test_the_interval_of_a_bin_by_hand(run):
    add_task(run, "quiz", [2] * 10, ["0"])
    add_scores(run, "quiz", "0", {r: [-0.1 if r % 2 == (r >= 14) else -3.0] for r in range(20)})  # 7 of 10 are right
    (row,) = [
        row
        for row in analysed(run).bins.to_pylist()
        if (row["events"], row["confidence"], row["split"]) == ("documents", "sum", "all")
    ]
    assert (row["n"], row["accuracy"], row["bin"]) == (10, 0.7, 14)
    # The ends are the roots of (p̂ − p)² = z² p (1 − p) / n.
    z2 = 1.959963984540054**2
    roots = np.roots([1 + z2 / 10, -2 * 0.7 - z2 / 10, 0.49])
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(sorted(roots)))


def test_bins_of_the_halves(run):
    add_quiz(run, documents=41)
    in_report = draw("quiz", 41).in_report
    rows = [
        row for row in analysed(run).bins.to_pylist() if row["events"] == "documents" and row["confidence"] == "sum"
    ]
    for split, count in (("all", 41), ("select", int((~in_report).sum())), ("report", int(in_report.sum()))):
        of_lam = [row for row in rows if row["split"] == split and row["lam"] == Decimal("0.5")]
        assert sum(row["n"] for row in of_lam) == count


# The files


@pytest.mark.slow
def test_the_csv_is_the_metrics_table(run):
    add_quiz(run, documents=8)
    analysis = analysed(run)
    write_report(run, analysis)
    header, *lines = run.metrics_csv.read_text().splitlines()
    assert header == ",".join(schemas.METRICS.names)
    assert len(lines) == analysis.metrics.num_rows
    rows = dict(zip((tuple(line.split(",")[:6]) for line in lines), (line.split(",") for line in lines), strict=True))
    row = next(r for r in analysis.metrics.to_pylist() if r["metric"] == "nll" and r["lam"] == Decimal("0.5"))
    found = rows["quiz", "0.5", "0.5", "nll", row["confidence"], row["split"]]
    assert float(found[6]) == pytest.approx(row["value"], rel=1e-6)
    assert not re.search(r"\b(nan|None|inf)\b", "\n".join(lines))


@pytest.mark.slow
def test_the_page_needs_nothing_else(run):
    add_quiz(run)
    found = page_of(written(run))
    for tag, attributes in found.elements:
        assert "src" not in attributes, tag
        assert tag not in ("link", "iframe", "object", "img")
    links = {attributes["href"] for tag, attributes in found.elements if tag == "a"}
    assert links
    for link in links:
        assert (run.index_html.parent / link).is_file()


@pytest.mark.slow
def test_text_of_a_task_stays_text(run):
    name = MARKUP
    add_quiz(run, name, documents=8)
    add_words(run, "<b>words<b>")
    plan = run.plan()
    plan["tasks"][name]["file"] = "</dl><script>alert(3)</script>"
    from contract.commit import commit_json

    commit_json(run.plan_json, plan)
    add_quarantine(run, name, "1", [3], shard=1)
    found = page_of(written(run, figures=True))
    assert sum(tag == "script" for tag, _ in found.elements) == 3
    assert not {"img", "b"} & {tag for tag, _ in found.elements} - {"b"}
    assert name in found.text
    assert "</dl><script>alert(3)</script>" in found.text
    assert "<" not in found.data
    assert name in [attributes.get("value") for tag, attributes in found.elements if tag == "option"]
    json.loads(found.data)
    names = {path.name for path in (run.root / "report/figures").iterdir()}
    assert {unquote(link).removeprefix("figures/") for link in found_links(found) if "figures/" in link} == names


def test_the_policy_allows_the_pages_scripts_only(run):
    import base64
    import hashlib

    add_quiz(run, documents=8)
    html = written(run)
    policy = next(a["content"] for tag, a in page_of(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]


# What is drawn


@pytest.mark.slow
def test_the_answers_come_first(run):
    add_quiz(run)
    add_quiz(run, "other", seed=1)
    found = analysed(run).found
    text = shown(run).text
    places = [text.index(one.answer) for one in (*found.pools, *found.tasks)]
    assert places == sorted(places)
    assert places[-1] < text.index("Accuracy against calibration")


def test_the_frontier_shows_every_point_the_parents_and_scaled_aligned(run):
    add_quiz(run)
    facts = facts_of(run)
    (found,) = facts.frontiers
    rows = drawn_rows(page_figures(facts)["frontier"]["frontier-task"])
    assert [row["lambda"] for row in rows] == [*GRID, "1, temperature-scaled"]
    assert [row["role"] for row in rows] == ["base", "other λ", "aligned", "other λ", "aligned, temperature-scaled"]
    for row, point in zip(rows, found[1].points, strict=False):
        assert float(row["x"]) == pytest.approx(point.error.value, abs=1e-6)
        assert float(row["y"]) == pytest.approx(point.accuracy.value, abs=1e-6)
        assert row["member"] == str(int(point.on_frontier))
        assert row["chosen"] == str(int(point.lam == found[1].chosen.lam))
    scaled = facts.tasks[0].cell("1", "ece_width15_scaled")
    assert float(rows[-1]["x"]) == pytest.approx(scaled.value, abs=1e-6)
    assert {row["label"] for row in rows} >= {"0 base", "1 aligned"} or "λ*" in "".join(row["label"] for row in rows)


def test_curves_have_bands_and_the_scaled_line(run):
    add_quiz(run)
    facts = facts_of(run)
    charts = page_figures(facts)["curves"]
    assert set(charts) == {
        f"task-{metric}"
        for metric in (
            *("acc", "ece_width15", "smece", "overconfidence", "brier", "nll", "auroc", "token_ece_width15"),
            *("option_mass", "ks"),  # the right choice stands first in every document, so that there is no skill
        )
    }
    rows = drawn_rows(charts["task-brier"])
    task = facts.tasks[0]
    for row, lam in zip(rows, GRID, strict=True):
        cell = task.cell(lam, "brier")
        assert [float(row[key]) for key in ("value", "low", "high")] == pytest.approx(
            [cell.value, cell.low, cell.high], rel=1e-5
        )
        assert float(row["scaled"]) == pytest.approx(task.cell("1", "brier_scaled").value, rel=1e-5)
    assert {row["scaled"] for row in drawn_rows(charts["task-auroc"])} == {""}


@pytest.mark.slow
def test_a_lambda_with_scores_of_other_documents_is_joined_to_none(run):
    """Its point is hollow, and neither the line nor the band of the others goes through it."""
    add_quiz(run)
    whole = page_figures(facts_of(run))["curves"]["task-acc"]
    assert {row["apart"] for row in drawn_rows(whole)} == {"0"}
    assert not any("datum.apart" in json.dumps(layer) for layer in whole["layer"])
    rows = run.tokens("quiz", "0.5")
    commit_table(run.unit("tokens", "quiz", "0.5", 0), rows.filter(pc.greater_equal(rows["request_id"], 8)))
    add_quarantine(run, "quiz", "0.5", list(range(8)))
    facts = facts_of(run)
    assert facts.tasks[0].apart == ("0.5",)
    multiple = tasks_chart(facts, list(task_rows(facts, facts.tasks[0])), (0, 1))
    for chart in (page_figures(facts)["curves"]["task-acc"], multiple):
        assert {row["lambda"]: row["apart"] for row in drawn_rows(chart)} == dict.fromkeys(GRID, "0") | {"0.5": "1"}
        drawn = {
            (layer["mark"]["type"], layer["mark"].get("filled")): [
                step["filter"] for step in layer.get("transform", [])
            ]
            for layer in chart["layer"]
            if layer["mark"]["type"] in ("line", "area", "point") and layer["mark"].get("size") != 110
        }
        assert drawn["point", False] == ["datum.apart"]
        assert drawn["line", None] == drawn["area", None] == drawn["point", True] == ["!datum.apart"]
    assert any("other documents have scores at λ = 0.5 than at most λs" in text for text in notices(facts))


def test_reliability_follows_task_and_slider(run):
    add_quiz(run)
    spec = page_figures(facts_of(run))["reliability"]["task-reliability-documents"]
    assert {param["name"]: param["bind"] for param in spec["params"]} == {
        "task": {"element": "#task"},
        "point": {"element": "#lambda"},
    }
    assert spec["transform"] == [{"filter": "datum.task === task && datum.point === toNumber(point)"}]
    rows = drawn_rows(spec)
    for place, lam in enumerate(GRID):
        of_lam = [row for row in rows if row["point"] == str(place)]
        assert {row["lambda"] for row in of_lam} == {lam}
        assert sum(int(row["n"]) for row in of_lam) == 40
        assert sum(float(row["share"]) for row in of_lam) == pytest.approx(1, abs=1e-4)


def test_a_lambda_has_one_colour_everywhere(run):
    add_quiz(run)
    add_words(run)
    facts = facts_of(run)

    def domains(value):
        if isinstance(value, dict):
            if value.get("field") == "lam" and value.get("type") == "quantitative" and "legend" in value:
                yield tuple(value["scale"]["domain"])
            for one in value.values():
                yield from domains(one)
        elif isinstance(value, list):
            for one in value:
                yield from domains(one)

    found = [domain for charts in page_figures(facts).values() for c in charts.values() for domain in domains(c)]
    found += [domain for chart in paper_figures(facts).values() for domain in domains(chart)]
    assert len(found) > 20
    assert set(found) == {(0.0, 1.5)}


def test_a_figure_has_room_for_what_it_shows(run):
    """Nothing touches the edge, legends name what is drawn only, and a histogram as a file says what its lines are."""
    add_quiz(run)
    facts = facts_of(run)
    charts = page_figures(facts)
    frontier = charts["frontier"]["frontier-task"]["layer"]
    scales = [
        layer["encoding"][axis].get("scale") for layer in frontier for axis in "xy" if layer["mark"]["type"] == "line"
    ]
    assert scales
    assert all(scale["padding"] >= 10 for scale in scales)
    (values,) = {
        tuple(shape["legend"]["values"]) for layer in frontier if (shape := layer["encoding"].get("shape")) is not None
    }
    assert set(values) == {row["role"] for row in drawn_rows(charts["frontier"]["frontier-task"])}
    halos = [layer for layer in frontier if layer["mark"].get("style") == "halo"]
    assert len(halos) == 1
    histogram = charts["reliability"]["task-confidence-documents"]
    top = histogram["layer"][0]["encoding"]["y"]["scale"]["domain"][1]
    assert top > 1.05 * max(float(row["share"]) for row in drawn_rows(histogram))
    assert "dashed line: mean confidence" in paper_figures(facts)["confidence-documents-quiz"]["title"]["subtitle"][1]


def test_the_plotting_library_is_put_together_once_on_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: made.append(snippet) or "globalThis.x = 1;\r\n")
    texts = []
    for broken in (False, False, True, False):
        if broken:
            (entry,) = (tmp_path / "lambdasweep/figures").iterdir()
            entry.write_bytes(entry.read_bytes()[:-3])
        document._bundle.cache_clear()
        texts.append(document._bundle())
    document._bundle.cache_clear()
    assert set(texts) == {"globalThis.x = 1;\r\n"}
    assert len(made) == 2  # it is made at first, and where the remembered copy is damaged


def test_every_figure_names_its_axes(run):
    add_quiz(run)
    add_words(run)
    for name, chart in paper_figures(facts_of(run)).items():
        titles = re.findall(r'"title": "([^"]+)"', json.dumps(chart, ensure_ascii=False))
        assert titles, name
        assert not any(re.fullmatch(r"\w+_\w+", title) for title in titles), name


@pytest.mark.slow
def test_every_chart_keeps_to_the_schema_of_vega_lite(run):
    add_quiz(run)
    add_words(run)
    facts = facts_of(run)
    page_charts, paper = page_figures(facts), paper_figures(facts)
    charts = [chart for name in ("frontier", "reliability", "tasks") for chart in page_charts[name].values()]
    charts += [page_charts["curves"]["task-ece_width15"], paper["frontier-quiz"], paper["reliability-documents-quiz"]]
    for chart in charts:
        vega_lite().validate(chart)
    broken = charts[0] | {"layer": [charts[0]["layer"][0] | {"mark": {"type": "lines"}}]}
    with pytest.raises(ValidationError):
        vega_lite().validate(broken)


@pytest.mark.slow
def test_a_large_run_has_fewer_stops(run, monkeypatch):
    add_quiz(run, grid=("0", "0.25", "0.5", "0.75", "1", "1.25", "1.5"))
    rows = len(facts_of(run).bins)
    monkeypatch.setattr("calibration.report.facts.MAX_BIN_ROWS", rows // 3)
    facts = facts_of(run)
    assert {"0", "1", facts.chosen} <= set(facts.stops) < set(facts.grid)
    assert facts.stops[facts.start] == facts.chosen
    reliability = drawn_rows(page_figures(facts)["reliability"]["task-reliability-documents"])
    assert {row["lambda"] for row in reliability} == set(facts.stops)
    curve = drawn_rows(page_figures(facts)["curves"]["task-acc"])
    assert [row["lambda"] for row in curve] == list(facts.grid)
    assert {row["lambda"] for row in curve if int(row["point"]) >= 0} == set(facts.stops)
    assert f"stops at {len(facts.stops)} of 7 λs" in " ".join(notices(facts))


def test_the_numbers_are_those_of_the_metrics(run):
    add_quiz(run)
    facts = facts_of(run)
    (table,) = numbers(facts)
    assert [row[0] for row in table.rows] == list(GRID)
    assert table.rows[0][1].startswith("base")
    brier = facts.tasks[0].cell("0.5", "brier")
    column = table.header.index("Brier score")
    assert table.rows[1][column] == f"{brier.value:.4f} [{brier.low:.4f}, {brier.high:.4f}]"


def test_what_chart_data_cannot_draw_is_null():
    rows = [
        {"lam": 0.1, "value": float("nan"), "task": 'a,"b"'},
        {"lam": 1 / 3, "value": float("inf")},
        {"lam": 2, "value": None},
    ]
    data = chart_data(rows, ("task", "lam", "value"))
    assert data["values"] == 'task,lam,value\n"a,""b""",0.1,\n,0.333333,\n,2,\n'
    assert data["format"]["parse"] == {"task": "string", "lam": "number", "value": "number"}


def test_quarantine_is_counted_by_reason_and_its_ids_are_capped(run):
    add_quiz(run, documents=40)
    add_quarantine(run, "quiz", "0.5", list(range(0, 60, 2)), shard=1)
    add_quarantine(run, "quiz", "1", [2, 3], shard=1)
    (found,) = quarantine(run, read_plan(run))
    assert (found.reason, found.count, found.lambdas, found.requests) == ("too long", 32, ("0.5", "1"), 31)
    assert found.request_ids == (0, 2, 3, *range(4, 38, 2))
    text = shown(run).text
    assert "too long" in text
    assert "… and 11 more" in text
    assert "TASK@λ" not in text


@pytest.mark.slow
def test_outputs_that_another_lambda_could_not_score_are_in_the_quarantine(run):
    add_quiz(run, documents=40)
    add_written(run, "sums", 4, GRID, 1)
    plan = run.plan()
    plan["tasks"]["sums"]["rescored"] = {"0": list(GRID)}
    commit_json(run.plan_json, plan)
    add_quarantine(run, "sums@0", GRID[1], [2])
    (found,) = quarantine(run, read_plan(run))
    assert (found.task, found.count, found.lambdas, found.request_ids) == ("sums@0", 1, (GRID[1],), (2,))
    text = shown(run).text
    assert "sums@0" in text
    assert "TASK@λ: what the task's outputs could not be scored under" in text


# What is not there


CASES = {
    odd_runs.empty: ["No λ is finished yet", "quiz: λ = 0, 0.5, 1, 1.5 are not scored yet", "No answer yet"],
    odd_runs.one_document: ["1 document only", "quiz: no frontier"],
    odd_runs.one_lambda: [
        "so there is no curve yet",
        "λ = 0 (base) is not in the grid",
        "λ = 1 (aligned) is not in the grid",
    ],
    odd_runs.no_parents: ["λ = 0 (base) is not in the grid, so nothing is compared with base"],
    odd_runs.all_right: ["every answer is right at λ = 0, 1, so confidence cannot rank them (no AUROC)"],
    odd_runs.all_wrong: ["every answer is wrong at λ = 0, 1, so confidence cannot rank them (no AUROC)"],
    odd_runs.impossible: [
        "right choices have probability 0 at λ = 0, 1: NLL is infinite there",
        "of at least 1e-09 it is ",
    ],
    odd_runs.half_finished: [
        "quiz: λ = 1.5 is partly scored",
        "quiz: λ = 1 is not scored yet",
        "λ = 1 (aligned) is not finished",
        "other: λ = 0, 0.5, 1, 1.5 are not scored yet",
    ],
    odd_runs.nothing_finished: ["No λ is finished yet", "quiz: λ = 1 is partly scored"],
    odd_runs.continuations_only: [
        "words: 6 documents only",
        "words: accuracy is of the documents with known token ranks only, at least 3 of 6",
        "words: every answer is right at λ = 0, 0.5, 1, 1.5.",
        "There is no finished task with choices",
        "No answer yet",
    ],
    odd_runs.quarantined_parents: [
        "documents are in quarantine and are left out at λ = 0, 1, 1.5",
        "no document could be evaluated",
    ],
    odd_runs.one_choice: ["8 documents only", "every answer is right at λ = 0, 1"],
    odd_runs.all_quarantined: ["4 of 4 documents are in quarantine", "no document could be evaluated"],
}


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_report_says_what_is_absent(run, make):
    make(run)
    found = page_of(written(run))
    for says in CASES[make]:
        assert says in found.text
    for wrong in ("nan", "None", "undefined"):
        assert not re.search(rf"\b{wrong}\b", found.text.partition("What was run")[0])
    data = json.loads(found.data)
    assert not re.search(r"\b(nan|inf)\b", json.dumps(data["specs"]))
    assert set(CASES) == set(odd_runs.ALL)


def test_a_sound_report_admits_nothing(run):
    add_quiz(run)
    assert list(notices(facts_of(run))) == []


def test_partly_scored_points_are_in_the_table_but_in_no_figure(run):
    odd_runs.half_finished(run)
    facts = facts_of(run)
    assert facts.grid == ("0", "0.5")
    rows = drawn_rows(page_figures(facts)["curves"]["task-acc"])
    assert [row["lambda"] for row in rows] == ["0", "0.5"]
    rows = drawn_rows(page_figures(facts)["reliability"]["task-reliability-documents"])
    assert {row["lambda"] for row in rows} == {"0", "0.5"}
    (table,) = numbers(facts)
    assert [(row[0], row[1]) for row in table.rows][-1] == ("1.5", "partial")


def add_outcomes(run, harness, rows):
    """Commit what lm-eval said: rows of (task or group, λ, metric, value, n)."""
    commit_table(run.outcomes(harness), schemas.table_of(schemas.OUTCOMES, rows))


@pytest.mark.parametrize("alone", [False, True], ids=["beside choices", "alone"])
def test_tasks_that_only_lm_eval_can_judge(run, alone):
    """A rolling task has no choices and no confidence: lm-eval's numbers are in the tables, the figures are without it."""
    if not alone:
        add_task(run, "quiz", [2, 2], ["0", "1"])
        for lam in ("0", "1"):
            add_scores(run, "quiz", lam, {0: [-1.0], 1: [-2.0], 2: [-1.5], 3: [-1.0]})
    add_task(run, "pages", [2, 1], ["0", "1"])
    plan = run.plan()["tasks"]
    plan["pages"]["scored_as"] = "other"
    commit_json(run.plan_json, {"tasks": plan})
    for lam in ("0", "1"):
        add_scores(run, "pages", lam, {0: [-1.0, -2.0], 1: [-2.0], 2: [-3.0]})
    add_outcomes(run, "pages", [("pages", lam, "word_perplexity,none", 12.5, 2) for lam in ("0", "1")])
    add_outcomes(run, "both", [("both", lam, "acc,none", 0.25, 4) for lam in ("0", "1")])
    analysis = analyse.analyse(run, resamples=20)
    analyse.write_metrics(run, analysis)
    write_report(run, analysis)
    html = run.index_html.read_text(encoding="utf-8")
    assert "Only lm-eval&#39;s own metrics can judge pages" in html
    assert "lm_eval/word_perplexity,none" in run.metrics_csv.read_text(encoding="utf-8")
    assert ("quiz" in html) == (not alone)
    found = page_of(html)
    assert [name for name in json.loads(found.data)["specs"] if name.startswith("outcome")] == [
        "outcome-0",
        "outcome-1",
    ]
    assert ("select", {"id": "lm-eval", "autocomplete": "off"}) in found.elements
    # Figures that follow the slider must find one.
    sliders = [attributes for _, attributes in found.elements if attributes.get("id") == "lambda"]
    assert len(sliders) == (not alone)
    assert ("#lambda" in found.data) == (not alone)


@pytest.mark.slow
def test_the_metrics_of_lm_eval_are_drawn_along_lambda(run):
    add_quiz(run)
    values = {"0": 0.25, "0.5": 0.5, "1": None, "1.5": 0.75}
    rows = [("quiz", lam, "acc_norm,none", value, 40) for lam, value in values.items()]
    rows += [("quiz", lam, "docs_left_out", 1.0, 41) for lam in values]
    rows += [("all", "0", "acc,strict", 0.125, 80)]
    add_outcomes(run, "all", rows)
    facts = facts_of(run)
    assert facts.every_lam == facts.grid  # colours follow the whole grid, so that a λ keeps its own
    charts = page_figures(facts)["outcomes"]
    assert [chart["title"] for chart in charts.values()] == [
        "acc_norm",
        "acc,strict",
    ]
    drawn = list(outcome_curve_rows(facts, facts.outcomes[0], "acc_norm,none"))
    shown_as = [(row["task"], row["lambda"], row["value"], row["low"], row["documents"], row["role"]) for row in drawn]
    assert shown_as == [
        ("quiz", "0", 0.25, None, 40, "base"),
        ("quiz", "0.5", 0.5, None, 40, "other λ"),
        ("quiz", "1.5", 0.75, None, 40, "other λ"),
    ]
    assert "docs_left_out" not in json.dumps(json.loads(shown(run).data)["specs"])
    assert list(notices(facts)) == []
    more = [("all", "0", f"metric_{i},none", 0.5, 80) for i in range(OUTCOME_FIGURES)]
    add_outcomes(run, "all", rows + more)
    assert len(page_figures(facts_of(run))["outcomes"]) == OUTCOME_FIGURES
    assert list(notices(facts_of(run))) == [
        f"The first {OUTCOME_FIGURES} metrics of lm-eval are drawn; metrics.csv and metrics.parquet hold all of them."
    ]


def test_where_the_line_does_not_end_at_aligned_nothing_is_called_that(run):
    add_quiz(run)
    plain = shown(run)
    line = {**SWEEP["line"], "lam_map": "layers=0.2:1", "ends_at_aligned": False}
    commit_json(run.sweep_json, {**SWEEP, "line": line})
    weighed = shown(run)
    notice = "λ = 1 is the whole map and not the aligned parent"
    assert "triangle: aligned" in plain.text
    assert notice not in plain.text
    assert notice in weighed.text
    assert "θ(λ) = base + λ · w · (aligned − base)" in weighed.text
    assert "triangle: aligned" not in weighed.text
    analysis = analysed(run)
    metrics = set(analysis.metrics["metric"].to_pylist())
    assert "acc_vs_base" in metrics
    assert not [name for name in metrics if "aligned" in name or "matched" in name]
    (found,) = analysis.found.tasks
    assert [set(point.gains) for point in found.points] == [set(), {"base"}, {"base"}, {"base"}]
    assert "aligned" not in found.answer
    # Figures also show the role of λ = 1 and its label.
    for mark in (",aligned,", "1 aligned"):
        assert mark in plain.data
        assert mark not in weighed.data
    (table,) = render(analysis.metrics, parents=analysis.parents)
    assert str(next(iter(table.columns[1].cells))).startswith("base")
    assert not any("aligned" in str(cell) for cell in table.columns[1].cells)


@pytest.mark.parametrize(
    ("method", "lam_map", "formula"),
    [
        ("linear", "", "θ(λ) = base + λ · (aligned − base)"),
        ("slerp", "", "θ(λ) = slerp(base, aligned; λ)"),
        ("slerp", "mlp=0", "θ(λ) = slerp(base, aligned; λ · w)"),
    ],
)
def test_the_page_tells_the_line(run, method, lam_map, formula):
    add_quiz(run)
    commit_json(run.sweep_json, {**SWEEP, "line": {**SWEEP["line"], "method": method, "lam_map": lam_map}})
    page = shown(run)
    assert formula in page.text
    assert not lam_map or lam_map in page.text
