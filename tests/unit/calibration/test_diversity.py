"""The diversity of samples agrees with sacrebleu and with counting by hand, and a run shows it."""

import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sacrebleu.metrics import BLEU

from calibration.analyse import analyse
from calibration.metrics.diversity import DIVERSITY, diversity, normalised
from calibration.report.write import write_report
from calibration.terminal.tables import render
from calibration.uncertainty.resample import draw
from contract.commit import commit_table
from contract.errors import InputError, LambdasweepError
from contract.grid import canonical
from contract.rundir import RunDir
from lambdasweep import open_run
from tests.support.reports import add_quiz, undrawn
from tests.support.tables import add_prompts, add_quarantine, add_samples

texts = st.lists(
    st.lists(st.sampled_from(["the", "cat", "sat", "The", "mat", ",", "don't", "a", "7.5", "—"]), max_size=9).map(
        " ".join
    ),
    min_size=1,
    max_size=5,
)


def by_hand(samples: list[str]) -> dict[str, float]:
    """Return the metrics of one prompt, each from its definition."""
    bleu = BLEU(effective_order=True)
    words = [bleu.tokenizer(text.rstrip()).split() for text in samples]
    found = {}
    for n in (1, 2, 3):
        grams = [tuple(some[i : i + n]) for some in words for i in range(len(some) - n + 1)]
        found[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else math.nan
    pairs = list(itertools.permutations(samples, 2))
    scores = [bleu.sentence_score(one, [other]).score / 100 for one, other in pairs]
    found["self_bleu"] = sum(scores) / len(scores) if scores else math.nan
    found["distinct_answers"] = len({normalised(text) for text in samples})
    return found


@given(prompts=st.lists(texts, min_size=1, max_size=4))
def test_metrics_are_those_of_their_definitions(prompts: list[list[str]]) -> None:
    prompt = np.repeat(np.arange(len(prompts)), [len(samples) for samples in prompts])
    found = diversity(prompt, [text for samples in prompts for text in samples], len(prompts))
    for row, samples in zip(found, prompts, strict=True):
        expected = by_hand(samples)
        np.testing.assert_allclose(row, [expected[name] for name in DIVERSITY], rtol=1e-13, atol=0)


def test_metrics_by_hand() -> None:
    samples = ["the cat sat", "The cat sat!", "a dog ran off"]
    ((one, two, three, bleu, answers),) = diversity(np.zeros(3, np.int64), samples, 1)
    # there are 3 + 4 + 4 words, and "cat" and "sat" are there twice
    assert (one, two, three) == pytest.approx((9 / 11, 7 / 8, 5 / 5))
    assert answers == 2  # articles, case and punctuation do not count
    # A triple that is nowhere in common counts as half of one.
    forth = (2 / 3 * 1 / 2 * 1 / 2 / 1) ** (1 / 3) * math.exp(1 - 4 / 3)
    back = (2 / 4 * 1 / 3 * 1 / 2 / 2 * 1 / 4 / 1) ** (1 / 4)
    assert bleu == pytest.approx((forth + back) / 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  Cat,\nsat. ", "cat sat"), ("an A a THE", ""), ("theatre", "theatre"), ("it's 7.5", "its 75"), ("É", "é")],
)
def test_answers_are_normalised_as_in_squad(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_what_does_not_exist_is_nan() -> None:
    found = diversity(np.array([0, 2, 2]), ["alone", "two", "two"], 3)
    # There is no pair of words, and no pair of samples.
    np.testing.assert_array_equal(found[0], [1, np.nan, np.nan, np.nan, 1])
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[2], [0.5, np.nan, np.nan, 1, 1])


GRID = ("0", "0.5", "1")
WORDS = {  # the samples grow more alike with λ
    "0": [["red fox runs", "blue cow sits", "a pig"], ["one two", "three four", "five six"], ["x y z", "x y w", "u v"]],
    "0.5": [["red fox runs", "red fox sits", "a pig"], ["one two", "one four", "five six"], ["x y z"] * 2 + ["u v"]],
    "1": [["red fox runs"] * 3, ["one two", "one two", "One two."], ["x y z"] * 3],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Write a generate task of six prompts at three λs; the middle λ lacks one prompt and quarantines another."""
    run = RunDir(tmp_path / "run")
    add_prompts(run, "stories", 6, GRID, samples=3)
    for lam, texts in WORDS.items():
        kept = {prompt: texts[prompt % 3] for prompt in range(6) if lam != "0.5" or prompt not in (1, 4)}
        add_samples(run, "stories", lam, {prompt: some for prompt, some in kept.items() if prompt < 3})
        add_samples(run, "stories", lam, {prompt: some for prompt, some in kept.items() if prompt >= 3}, shard=1)
    add_quarantine(run, "stories", "0.5", [1])
    return run


def values(run: RunDir) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (canonical(row["lam"]), row["metric"], row["split"]): row
        for row in analyse(run, resamples=200).metrics.to_pylist()
    }


def test_metrics_of_a_run_are_means_over_prompts(run: RunDir) -> None:
    found = values(run)
    assert {row["confidence"] for row in found.values()} == {"sum"}
    for lam, prompts in (("0", range(6)), ("0.5", (0, 2, 3, 5)), ("1", range(6))):
        for metric in DIVERSITY:
            row = found[lam, metric, "all"]
            each = np.array([by_hand(WORDS[lam][prompt % 3])[metric] for prompt in prompts])
            assert row["value"] == pytest.approx(np.nanmean(each)), (lam, metric)
            assert row["n"] == np.count_nonzero(~np.isnan(each))  # samples of two words have no triples
            assert row["ci_low"] <= row["value"] <= row["ci_high"]
    in_report = draw("stories", 6, 0).in_report
    shares = [by_hand(WORDS["0"][prompt % 3])["self_bleu"] for prompt in np.flatnonzero(in_report)]
    assert found["0", "self_bleu", "report"]["value"] == pytest.approx(np.mean(shares))
    counts = [found["0.5", name, "all"]["value"] for name in ("docs_quarantined", "docs_unfinished")]
    assert counts == [1, 1]


def test_differences_to_the_parents_are_of_the_same_prompts(run: RunDir) -> None:
    found = values(run)
    one = [by_hand(WORDS["0.5"][prompt % 3])["distinct_1"] for prompt in (0, 2, 3, 5)]
    other = [by_hand(WORDS["0"][prompt % 3])["distinct_1"] for prompt in (0, 2, 3, 5)]
    row = found["0.5", "distinct_1_vs_base", "all"]
    assert row["value"] == pytest.approx(np.mean(np.subtract(one, other)))
    assert row["n"] == 4
    assert ("0", "distinct_1_vs_base", "all") not in found
    # The interval is that of the paired differences over the resamples of the prompts.
    drawn = draw("stories", 6, 200)
    weights = drawn.counts[[0, 2, 3, 5]].astype(float)
    means = np.sort(np.subtract(one, other) @ weights / weights.sum(0))
    assert means[0] <= row["ci_low"] <= row["value"] <= row["ci_high"] <= means[-1]


@pytest.mark.parametrize("damage", ["missing sample", "other prompt", "quarantined too", "other λ"])
def test_tables_that_do_not_fit_are_refused(run: RunDir, damage: str) -> None:
    if damage == "missing sample":
        add_samples(run, "stories", "1", {0: ["red fox runs"] * 2})
    elif damage == "other prompt":
        add_samples(run, "stories", "1", {9: ["red fox runs"] * 3}, shard=2)
    elif damage == "quarantined too":
        add_quarantine(run, "stories", "1", [0])
    else:
        table = run.generations("stories", "0")
        commit_table(run.unit("generations", "stories", "1", 0), table.slice(0, 9))
    with pytest.raises(LambdasweepError, match=r"task 'stories' at λ = 1: its generations do not fit its prompts"):
        analyse(run, resamples=5)


@pytest.mark.slow
def test_the_terminal_and_the_report_show_them(run: RunDir) -> None:
    add_quiz(run, "quiz", documents=8, grid=GRID)
    plan = run.plan()
    analysis = analyse(run, resamples=20)
    tables = render(analysis.metrics, intervals=True)
    console = Console(width=100, file=io.StringIO())
    for table in tables:
        console.print(table)
    shown = console.file.getvalue()
    assert re.search(r"0\.5 +partial +0\.\d{4}", shown)
    assert "left out: up to 1 of 6 prompts at 1 of 3 λs: quarantined" in shown
    assert all(len(line) <= 100 and "…" not in line for line in shown.splitlines())

    with undrawn():
        write_report(run, analysis, figures=True)
    assert run.plan() == plan
    html = run.index_html.read_text()
    assert "<h2>Diversity</h2>" in html
    assert all(f'id="sampled-{metric}"' in html for metric in DIVERSITY)
    assert "stories: 6 prompts only: differences between λs are mostly chance." in html
    assert run.figure("self_bleu-stories.svg").is_file()
    found = json.loads(run.frontier_json.read_text())
    assert [one["task"] for one in found["tasks"]] == ["quiz"]
    assert [point["lam"] for point in found["diversity"]["stories"]] == list(GRID)
    row = values(run)["1", "self_bleu", "all"]
    assert found["diversity"]["stories"][2]["self_bleu"]["value"] == row["value"]


def test_notebooks_read_samples(run: RunDir) -> None:
    add_quiz(run, "quiz", documents=8, grid=GRID)
    opened = open_run(run.root)
    table = opened.generations("stories", 0.5)
    assert table.drop_columns(["task"]).equals(run.generations("stories", "0.5"))
    assert opened.generations().num_rows == 18 + 12 + 18
    assert set(opened.tokens()["task"].to_pylist()) == set(opened.examples()["task"].to_pylist()) == {"quiz"}
    with pytest.raises(InputError, match="task 'stories' has no tokens: it is sampled"):
        opened.tokens("stories")
    with pytest.raises(InputError, match="task 'quiz' has no generations: it is scored"):
        opened.generations("quiz")


def test_a_run_of_samples_alone_has_a_report(run: RunDir) -> None:
    write_report(run, analyse(run, resamples=20))
    html = run.index_html.read_text()
    assert "No answer yet" in html
    assert 'id="sampled-self_bleu"' in html
