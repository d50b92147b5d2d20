"""Figures for a paper are drawn by the engine of a browser, and show what there is, with the same bytes each time."""

import re

import pyarrow.parquet as pq
import pytest

from calibration.report.measures import drawn_measures
from contract import schemas
from contract.commit import read_identity
from contract.rundir import RunDir
from tests.support import odd_runs
from tests.support.reports import MARKUP, add_quiz, add_words, drawn


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def test_everything_is_written_and_again_with_the_same_bytes(run):
    add_quiz(run)
    add_words(run, "some words")
    drawn(run, pngs=True)
    folder = run.root / "report"
    first = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kinds = {
        "quiz": ("frontier", "accuracy-and-confidence", "reliability-documents", "confidence-documents"),
        "some-words": (),
    }
    measures = {"quiz": drawn_measures("choices"), "some-words": drawn_measures("continuation")}
    # Every right answer is in the first place, so there is no skill against the places of right answers.
    measures["quiz"] = tuple(one for one in measures["quiz"] if one.metric != "nll_skill_prior")
    assert set(first) == {"index.html", "frontier.json", "bins.parquet", "metrics.csv"} | {
        f"figures/{kind}-{task}.{ending}"
        for task, own in kinds.items()
        for kind in (*own, *(one.metric for one in measures[task]), "reliability-tokens", "confidence-tokens")
        for ending in ("svg", "png", "pdf")
    }
    drawn(run, pngs=True)
    again = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert again.keys() == first.keys()
    # The writer of PDFs puts the same objects down in any order.
    assert {name: data for name, data in again.items() if not name.endswith(".pdf")} == {
        name: data for name, data in first.items() if not name.endswith(".pdf")
    }
    assert first["figures/frontier-quiz.png"].startswith(b"\x89PNG")
    assert first["figures/frontier-quiz.pdf"].startswith(b"%PDF")
    for name, words in (("acc-quiz", "quiz: Accuracy"), ("nll-some-words", "some words: NLL")):
        svg = first[f"figures/{name}.svg"].decode()
        assert f">{words}" in svg
        assert f">here → here, n = {40 if 'quiz' in name else 6} documents<" in svg
    assert len(first["index.html"]) < 3_000_000
    assert not re.search(rb"NaN|Infinity|undefined", first["figures/nll-quiz.svg"])
    for name, data in first.items():
        assert str(run.root).encode() not in data, name
    assert read_identity(run.bins_parquet)["base"] == "b0"
    assert pq.read_table(run.bins_parquet).schema.remove_metadata().equals(schemas.BINS)


@pytest.mark.parametrize("make", odd_runs.ALL, ids=lambda make: make.__name__)
def test_what_is_absent_is_no_number(run, make):
    make(run)
    drawn(run)
    for figure in (run.root / "report").glob("figures/*.svg"):
        assert "NaN" not in figure.read_text(encoding="utf-8"), figure.name


def test_text_of_a_task_stays_text(run):
    add_quiz(run, MARKUP, documents=8)
    drawn(run)
    (path,) = (run.root / "report/figures").glob("nll-%3Cscript*.svg")
    svg = path.read_text(encoding="utf-8")
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
