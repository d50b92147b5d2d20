"""Runs over several aligned checkpoints have tables of points, which say what tables of λs with the same scores say."""

import dataclasses
import io
import json
import math
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from calibration.analyse import analyse, write_metrics
from calibration.report.facts import gather
from calibration.report.figures import page_figures, paper_figures
from calibration.report.measures import drawn_measures
from calibration.report.notices import notices
from calibration.report.plane_figure import plane_measures, plane_rows
from calibration.report.write import _svg as as_svg
from calibration.report.write import write_report
from calibration.samples_at_lambda import by_lambda
from calibration.terminal.tables import render
from contract import points, schemas
from contract.commit import commit_json, commit_table
from contract.errors import InputError
from contract.points import parse_points
from contract.records import read_sweep
from contract.rundir import RunDir
from contract.schemas import point_of
from lambdasweep import open_run
from lambdasweep.monitor import status, watch
from lambdasweep.monitor.run_counts import RunCounts
from tests.support.reports import undrawn
from tests.support.tables import SWEEP, add_prompts, add_samples, add_scores, add_task

POINTS = parse_points("dpo=0,0.5,1,sft=0,1", ["dpo", "sft"])
# A run along a line has the same scores: base and dpo have the places of base and aligned.
LINE = dict(zip(POINTS, ("0", "2", "0.5", "3", "1", "4"), strict=True))


def add_quiz(run, task, place, seed=0):
    """Write a choice task that is most accurate at dpo=0.5,sft=0 and ever surer with dpo."""
    documents = 60
    rng = np.random.default_rng(seed)
    order = rng.permutation(documents)
    noise = np.abs(rng.normal(size=documents))
    add_task(run, task, [2] * documents, sorted(map(place, POINTS)))
    for number, point in enumerate(POINTS):
        right = np.isin(np.arange(documents), order[: (40, 30, 52, 35, 45, 33)[number]])
        gaps = (0.5 * number + 0.3 + noise) * np.where(right, 1, -1)
        scores = {
            2 * d + c: [float(-math.log1p(math.exp(gaps[d] if c else -gaps[d])))]
            for d in range(documents)
            for c in (0, 1)
        }
        add_scores(run, task, place(point), scores, top1={r: [5 if r % 4 else 6] for r in scores})


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("line") / "run")
    for seed, task in enumerate(("one", "two")):
        add_quiz(run, task, LINE.get, seed)
    return run


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("plane") / "run")
    for seed, task in enumerate(("one", "two")):
        add_quiz(run, task, str, seed)
    pair = {role: dict(SWEEP["pair"]["aligned"], source=role) for role in ("base", "aligned.dpo", "aligned.sft")}
    engine = {"dtype": "float32", "device": "cpu", "tensor_parallel": 1, "threads": 1}
    commit_json(run.sweep_json, {**SWEEP, "pair": pair, "engine": engine})
    return run


@pytest.fixture(scope="module")
def analysis(plane):
    return analyse(plane, resamples=100)


@pytest.fixture(scope="module")
def straight(line):
    return analyse(line, resamples=100)


def test_a_point_is_a_part_of_a_path(plane):
    path = plane.unit("tokens", "one", "dpo=0.5,sft=1", 3)
    assert path.relative_to(plane.root).as_posix() == "tokens/task=one/lambda=dpo%3D0.5%2Csft%3D1/shard-00003.parquet"
    assert plane.all_committed() == {(task, point): {0} for task in ("one", "two") for point in POINTS}
    assert plane.begun("one", [*POINTS, "dpo=9,sft=9"]) == list(POINTS)


def test_tables_have_a_point_beside_a_lambda_that_is_null(plane):
    run = open_run(plane.root)
    table = run.tokens(task="one", lam="sft=1.0,dpo=0.50")
    assert table.column_names[:4] == ["task", "request_id", "lam", "point"]
    assert table["lam"].null_count == len(table) == 120
    assert set(table["point"].to_pylist()) == {"dpo=0.5,sft=1"}
    assert set(run.tokens()["point"].to_pylist()) == set(POINTS)
    for made in (run.explode(task="one"), run.examples(task="one")):
        assert list(dict.fromkeys(made["point"].to_pylist())) == sorted(POINTS)
        assert made["lam"].null_count == len(made)
    read = pq.read_table(plane.root / "tokens", partitioning="hive")  # other tools decode the folder's name like this
    assert set(read["lambda"].to_pylist()) == set(POINTS)
    with pytest.raises(InputError, match="'sft' is missing"):
        run.tokens(task="one", lam="dpo=0.5")
    with pytest.raises(InputError, match="name"):
        run.tokens(task="one", lam=0.1234567)
    with pytest.raises(InputError, match=r"has no λ = dpo=0.5,sft=2: give one of dpo=0,sft=0; dpo=0,sft=1"):
        run.tokens(task="one", lam="dpo=0.5,sft=2")


@pytest.mark.slow
def test_metrics_are_those_of_the_same_scores_along_a_line(plane, straight, analysis):
    metrics = write_metrics(plane, analysis)
    assert metrics.schema.names[:4] == ["task", "lam", "point", "metric"]
    assert metrics["lam"].null_count == len(metrics)
    assert open_run(plane.root).metrics().equals(metrics)
    renamed = {"agreement_aligned": "agreement_dpo"}

    def values(table, name):
        kept = [row for row in table.to_pylist() if not row["metric"].endswith("_vs_sft")]
        kept = [row for row in kept if "matched" not in row["metric"] and row["metric"] != "agreement_sft"]
        key = ("metric", "confidence", "split")
        return {
            (row["task"], name(point_of(row)), *(row[one] for one in key)): (row["value"], row["ci_low"], row["n"])
            for row in kept
        }

    want = {
        (task, lam, renamed.get(metric, metric).replace("_vs_aligned", "_vs_dpo"), *rest): value
        for (task, lam, metric, *rest), value in values(straight.metrics, str).items()
    }
    assert values(metrics, LINE.get) == want
    sft = metrics.filter(pc.equal(metrics["metric"], "acc_vs_sft"))
    assert set(sft["point"].to_pylist()) == set(POINTS) - {"dpo=0,sft=1"}
    assert list(dict.fromkeys(metrics["point"].to_pylist())) == list(POINTS)


@pytest.mark.slow
def test_the_best_point_is_that_of_the_same_scores(straight, analysis):
    found, straight = analysis.found, straight.found
    for one, two in zip((*found.tasks, *found.pools), (*straight.tasks, *straight.pools), strict=True):
        assert LINE[one.chosen.lam] == two.chosen.lam
        theirs = {point.lam: point for point in two.points}
        for point in one.points:
            same = theirs[LINE[point.lam]]
            assert (point.accuracy, point.nll, point.error) == (same.accuracy, same.nll, same.error)
            assert point.membership == same.membership
            others = {name for name, parent in analysis.parents.items() if parent != point.lam}
            assert point.gains.keys() == others
    written = found.to_json()
    star = written["pools"][0]["chosen"]
    assert star["lam"] is None
    assert star["point"] == found.pools[0].chosen.lam
    assert star.keys() == {"lam", "point", "like"}
    assert set(star["like"]) < set(POINTS) - {star["point"]}
    assert [point["point"] for point in written["tasks"][0]["points"]] == list(POINTS)
    answer = found.pools[0].answer
    assert answer.startswith(f"{star['point']} (no difference shown to ")
    assert "Against sft: NLL " in answer
    assert "Against base: " in answer
    assert "other points" in answer
    assert straight.to_json()["pools"][0]["chosen"].keys() == {"lam", "low", "high", "like_low", "like_high"}


@pytest.mark.slow
def test_the_terminal_has_a_table_of_points(analysis):
    console = Console(width=112, record=True, file=io.StringIO())
    for table in render(analysis.metrics, intervals=True, parents=analysis.parents, stars=analysis.found.stars):
        console.print(table)
    text = console.export_text()
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("dpo=")]
    assert [row[0] for row in rows] == list(POINTS) * 3
    assert [row[1] for row in rows[:6]][:2] == ["base", "sft"]
    assert rows[4][1] == "dpo"
    stars = [one.chosen.lam for one in (*analysis.found.tasks, *analysis.found.pools)]
    assert [row[0] for row in rows if "λ*" in row] == stars


@pytest.mark.slow
def test_the_report_draws_a_plane_and_says_what_it_leaves_out(plane, analysis):
    found = analysis.found
    facts = gather(analysis, "ece_width15", "sum")
    assert facts.grid == POINTS
    assert facts.start == facts.stop(found.pools[0].chosen.lam) == POINTS.index(found.pools[0].chosen.lam)
    charts = page_figures(facts)
    assert list(charts) == ["frontier", "plane", "reliability"]
    assert list(charts["plane"]) == ["task-plane-acc", "task-plane-ece_width15"]
    rows = charts["plane"]["task-plane-acc"]["data"]["values"].splitlines()
    assert len(rows) == 1 + 3 * len(POINTS)
    assert rows[1].startswith('one,"dpo=0,sft=0",0,0,0.666667,')
    assert rows[1].endswith(",60,base")
    kinds = (
        "frontier",
        "acc",
        "ece_width15",
        *(f"{a}-{b}" for b in ("documents",) for a in ("reliability", "confidence")),
    )
    assert set(paper_figures(facts)) == {
        *(f"{kind}-{task.name.replace(' ', '-')}" for task in facts.tasks for kind in kinds),
        *(f"{kind}-tokens-{name}" for name in ("one", "two") for kind in ("reliability", "confidence")),
    }
    key = {name: chart["layer"][0]["encoding"]["color"] for name, chart in charts["plane"].items()}
    assert all(colour["legend"]["title"] for colour in key.values())
    # Better values have the same colours: higher accuracy, and lower error.
    assert [key[f"task-plane-{name}"]["scale"]["reverse"] for name in ("acc", "ece_width15")] == [False, True]
    told = list(notices(facts))
    assert any("no curves, no interval of λ*" in text for text in told)
    assert not any("weighed by module" in text for text in told)
    with undrawn():
        write_report(plane, analysis, figures=True)
    assert plane.figure("acc-one.svg").is_file()
    svg = as_svg(paper_figures(facts)["acc-one"])
    assert all(f">{name}<" in svg for name in ("base", "dpo", "sft", "λ*", "0.667"))
    assert ">null<" not in svg
    page = plane.index_html.read_text()
    assert "θ = base + λ_dpo · (dpo − base) + λ_sft · (sft − base)" in page
    assert "<h2>dpo against sft</h2>" in page
    assert "<h2>Along λ</h2>" not in page
    assert "aligned.sft source" in page
    saved = json.loads(plane.frontier_json.read_text())
    assert saved["pools"][0]["chosen"]["point"] == found.pools[0].chosen.lam
    table = open_run(plane.root).frontier()
    assert table["point"].to_pylist()[: len(POINTS)] == list(POINTS)
    assert pc.sum(table["chosen"]).as_py() == 3
    bins = pq.read_table(plane.bins_parquet)
    assert bins.schema.remove_metadata().equals(schemas.BINS)
    assert plane.metrics_csv.read_text().splitlines()[1].startswith('one,,"dpo=0,sft=0",acc,')


@pytest.mark.slow
def test_a_point_that_is_compared_with_none_is_named_in_the_plane(analysis):
    facts = gather(analysis, "ece_width15", "sum")
    task = facts.tasks[0]
    apart = dataclasses.replace(task, apart=("dpo=0.5,sft=1",))
    measure = plane_measures(facts, drawn_measures("choices"))[0]
    named, plain = ({row["lambda"]: row["label"] for row in plane_rows(facts, one, measure)} for one in (apart, task))
    told = named.pop("dpo=0.5,sft=1"), plain.pop("dpo=0.5,sft=1")
    assert told[0] == ", ".join(filter(None, (told[1], "apart")))
    assert named == plain
    assert not any("apart" in label for label in plain.values())
    (told,) = (text for text in notices(dataclasses.replace(facts, tasks=(apart,))) if "than at most λs" in text)
    assert "hollow" not in told


@pytest.mark.slow
def test_a_run_whose_tables_have_no_point_is_reported(line, straight, tmp_path):
    """Tables without points were written before all tables had them."""
    old = RunDir(tmp_path / "old")
    shutil.copytree(line.root, old.root)
    for path in old.root.rglob("tokens/**/*.parquet"):
        commit_table(path, pq.read_table(path).drop_columns("point"))
    assert "point" not in pq.read_schema(next(old.root.rglob("tokens/**/*.parquet"))).names
    assert old.tokens("one", "0.5").equals(line.tokens("one", "0.5"))
    before = write_metrics(old, analyse(old, resamples=100))
    assert before.equals(straight.metrics)
    commit_table(old.metrics_parquet, before.drop_columns("point"))
    assert open_run(old.root).metrics().equals(before)


def test_status_shows_points(plane):
    run = RunDir(plane.root)
    record = run.plan()
    for task in record["tasks"].values():
        task |= {"documents": 60, "format": "cloze", "shots": 0, "lambdas": [*POINTS, "dpo=2,sft=0", "dpo=2,sft=1"]}
    commit_json(run.plan_json, record)
    try:
        text = "\n".join(status.describe(run.root))
        assert "aligned.dpo aligned.dpo" in text
        assert "left at λ dpo=2,sft=0; dpo=2,sft=1" in text
        for width in (40, 100, 200):
            lines = [line.plain for line in watch.render(RunCounts(run), width, 24)]
            assert all(len(line) <= width for line in lines)
            assert sum("█" in line for line in lines) >= 2
    finally:
        for task in record["tasks"].values():
            task["lambdas"] = sorted(POINTS)
        commit_json(run.plan_json, record)


def test_an_empty_run_has_the_columns(tmp_path):
    run = RunDir(tmp_path / "run")
    add_task(run, "one", [2] * 4, POINTS)
    commit_json(run.sweep_json, {**SWEEP, "pair": {"base": {"fingerprint": "b"}, "aligned.a": {"fingerprint": "a"}}})
    for made, schema in ((analyse(run).metrics, schemas.METRICS), (run.tokens("one", POINTS[0]), schemas.TOKENS)):
        assert made.schema.equals(schema)
        assert len(made) == 0


@pytest.mark.slow
def test_three_coordinates_have_tables_and_no_plane(tmp_path):
    run = RunDir(tmp_path / "run")
    add_quiz(run, "one", lambda point: point.replace(",", ",rl=0,"))
    pair = dict.fromkeys(("base", "aligned.dpo", "aligned.sft", "aligned.rl"), SWEEP["pair"]["aligned"])
    commit_json(run.sweep_json, {**SWEEP, "pair": pair})
    made = analyse(run, resamples=50)
    facts = gather(made, "ece_width15", "sum")
    assert facts.grid == parse_points("dpo=0,0.5,1,sft=0,1,rl=0", ["dpo", "rl", "sft"])
    assert list(page_figures(facts)) == ["frontier", "reliability"]
    assert "A point has 3 coordinates (dpo, rl, sft)" in next(notices(facts))


@pytest.mark.slow
def test_samples_at_points_are_those_of_the_same_samples_along_a_line(tmp_path):
    """Write prompts of a generate task whose samples are alike at one point and different at the next."""
    runs = {}
    for name, places in (("plane", dict(zip(POINTS, POINTS, strict=True))), ("line", LINE)):
        run = runs[name] = RunDir(tmp_path / name)
        add_prompts(run, "say", 12, sorted(map(places.get, POINTS), key=points.order))
        if name == "plane":
            pair = {"base": SWEEP["pair"]["base"]} | dict.fromkeys(
                ("aligned.dpo", "aligned.sft"), SWEEP["pair"]["aligned"]
            )
            commit_json(run.sweep_json, SWEEP | {"pair": pair})
        for number, point in enumerate(POINTS):
            texts = {p: [f"so it is {p % (1 + s * number)}" for s in (0, 1)] for p in range(12)}
            add_samples(run, "say", places[point], texts)
    found = {name: by_lambda(analyse(run).metrics)["say"] for name, run in runs.items()}
    assert [(row.pop("lam"), row.pop("point")) for row in found["plane"]] == [(None, point) for point in POINTS]
    along = {row.pop("lam"): row for row in found["line"]}
    assert found["plane"] == [along[LINE[point]] for point in POINTS]
    assert found["plane"][0]["self_bleu"]["value"] > found["plane"][5]["self_bleu"]["value"]
    plane = runs["plane"]
    table = open_run(str(plane.root)).generations(lam="sft=1,dpo=0.5")
    assert set(zip(table["lam"].to_pylist(), table["point"].to_pylist(), strict=True)) == {(None, "dpo=0.5,sft=1")}
    made = analyse(plane)
    write_metrics(plane, made)
    write_report(plane, made)
    facts = gather(made, "ece_width15", "sum")
    charts = page_figures(facts)["diversity"]
    assert {"distinct_2-say", "self_bleu-say"} <= paper_figures(facts).keys()
    assert list(charts) == ["sampled-plane-distinct_2", "sampled-plane-self_bleu"]
    assert json.loads(plane.frontier_json.read_text())["diversity"]["say"][1]["point"] == "dpo=0,sft=1"
    out = io.StringIO()
    for one in render(made.metrics, intervals=True, parents=read_sweep(plane).parents):
        Console(file=out, width=100).print(one)
    assert "dpo=0.5,sft=1" in out.getvalue()
