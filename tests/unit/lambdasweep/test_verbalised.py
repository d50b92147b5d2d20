"""How sure an answer says it is: what is found of it, what is left to be graded, and what becomes of answers without one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from calibration.metrics.written import answer_estimates
from calibration.scores.per_answer import AnswerLoader
from calibration.uncertainty.resample import draw
from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import TaskError
from contract.records import read_plan
from contract.rundir import RunDir
from lambdasweep import open_run
from lambdasweep.tasks.answers import RowGrader, answers_of
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.grading import graded_table
from lambdasweep.tasks.tokens import load_tokenizer
from lambdasweep.tasks.verbalised import pattern_problems, said_in, without
from tests.support.checkpoints import write_tokenizer
from tests.support.paths import ROOT
from tests.support.tables import add_written

ASKS = r"[Cc]onfidence: (-?[\d.]+)"
GIVEN = r"Confidence: ([\d.]*\d)"  # the one that the documents give
WHOLE = r"Confidence: (\d+)"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(root)
    return load_tokenizer(root)


@pytest.mark.parametrize(
    ("output", "pattern", "probability", "left"),
    [
        ("Paris. Confidence: 85%", ASKS, 0.85, "Paris. "),
        ("Paris. Confidence: 85 %", ASKS, 0.85, "Paris. "),
        ("Paris. Confidence: 85", ASKS, 0.85, "Paris. "),
        ("Paris. Confidence: 0.85", ASKS, 0.85, "Paris. "),
        ("Paris. Confidence: 1", ASKS, 1.0, "Paris. "),
        ("Paris. Confidence: 1 per cent", ASKS, 0.01, "Paris. "),
        ("Paris. Confidence: 0.5 percent", ASKS, 0.005, "Paris. "),
        ("Paris. Confidence: 0", ASKS, 0.0, "Paris. "),
        ("confidence: 10, no: confidence: 90", ASKS, 0.9, "confidence: 10, no: "),
        ("Paris. Confidence: 120", ASKS, None, "Paris. "),
        ("Paris. Confidence: -5", ASKS, None, "Paris. "),
        ("Paris. Confidence: 1.2.3", ASKS, None, "Paris. "),
        ("Paris.", ASKS, None, "Paris."),
        ("Paris. Confidence: 90.", GIVEN, 0.9, "Paris. ."),
        ("Paris. Confidence: 0.9.", GIVEN, 0.9, "Paris. ."),
        ("Paris. Confidence: .9", GIVEN, 0.9, "Paris. "),
        ("Paris. Confidence: 90, or so", GIVEN, 0.9, "Paris. , or so"),
        ("Paris. Confidence: 9/10", GIVEN, None, "Paris. "),
        ("Paris. Confidence: 9 out of 10", GIVEN, None, "Paris. "),
        ("Paris. Confidence: 9 of 10.", GIVEN, None, "Paris. ."),
        ("Paris. Confidence: 90 of course", GIVEN, 0.9, "Paris.  of course"),
        ("Paris. Confidence: 0.9", WHOLE, None, "Paris. "),
        ("Paris. Confidence: 0,9", WHOLE, None, "Paris. "),
        ("Paris. Confidence: 9/10", WHOLE, None, "Paris. "),
        ("Paris. Confidence: 90 / 100 %", WHOLE, None, "Paris. "),
        ("Paris. Confidence: 85", r"Confidence: (\d)", None, "Paris. "),
        ("Paris. Confidence: 85.", WHOLE, 0.85, "Paris. ."),
        ("Paris. 0.9", r"(\d+)$", None, "Paris. 0."),
        ("Paris. 85 %", r"(\d) %$", None, "Paris. 8"),
        ("I am 70% sure: Paris", r"I am \d+% sure: ", None, "Paris"),
        ("70% Paris", r"^\d+%", 0.7, " Paris"),
        ("70 Paris", r"\d+|none", 0.7, " Paris"),
        ("so (0.3) or none", r"\((0?\.\d+)\)|none", None, "so (0.3) or "),
    ],
)
def test_what_is_found_of_an_output(output: str, pattern: str, probability: float | None, left: str) -> None:
    said = said_in(output, pattern)
    assert (said.probability if said else None) == (None if probability is None else pytest.approx(probability))
    assert without(output, said) == left


@pytest.mark.parametrize(
    ("pattern", "suffix", "says"),
    [
        (None, None, []),
        (ASKS, " How sure?", []),
        (
            None,
            " How sure?",
            ["there is a verbalised_suffix, and nothing finds what it asks for: give --verbalised, too"],
        ),
        (
            "(",
            None,
            ["verbalised is '(', which is no regular expression: missing ), unterminated subpattern at position 0"],
        ),
        (r"\d*", None, [r"verbalised is '\\d*', which matches nothing at all: give one that wants a number"]),
    ],
)
def test_patterns_that_find_nothing_are_refused(
    pattern: str | None, suffix: str | None, says: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    assert pattern_problems(pattern, suffix) == says
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Q: a?", "answers": ["sand"]}))
    spec = TaskSpec("quiz", file, format="generate", verbalised=pattern, verbalised_suffix=suffix)
    if says:
        with pytest.raises(TaskError) as refused:
            answers_of(read_documents(spec), tokenizer, ())
        assert list(refused.value.problems) == says
    else:
        assert answers_of(read_documents(spec), tokenizer, ())[0].verbalised == pattern


def test_the_suffix_is_behind_prompts_and_not_behind_examples(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Q: {word}?", "answers": [word]} for word in ("sand", "sea", "tin")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TaskSpec("quiz", file, format="generate", shots=1, verbalised=ASKS, verbalised_suffix=r"\nHow sure?")
    settled, built, _ = answers_of(read_documents(spec), tokenizer, ())
    assert settled.verbalised_suffix == "\nHow sure?"
    for prompt in built.table["prompt"].to_pylist():
        shot, own = prompt.split("\n\n")
        assert own.endswith("?\nHow sure?")
        assert "How sure" not in shot
    plain, without_it, _ = answers_of(read_documents(TaskSpec("quiz", file, format="generate")), tokenizer, ())
    assert plain.verbalised_suffix is None
    assert without_it.table["prompt"].to_pylist() == [row["prompt"] for row in rows]


def test_the_number_is_no_part_of_the_answer() -> None:
    grader = RowGrader((("Paris",), ("B",), ("B",)), "squad", ASKS)
    (grade,) = grader.grade([(0, " Paris. Confidence: 90")])
    assert (grade.answer, grade.correct) == ("Paris.", True)
    (grade,) = RowGrader((("Paris",),), "squad").grade([(0, " Paris. Confidence: 90")])
    assert not grade.correct
    (grade,) = RowGrader((("Paris",),), "exact", GIVEN).grade([(0, "Paris Confidence: 85%")])
    assert (grade.answer, grade.correct) == ("Paris", True)
    letters = RowGrader((("B",),), "letter", r"<(\d+)>")
    for output in ("Is it C? The answer is B <80>", "<80> Is it C? The answer is B", "<80> The answer is B. <70>"):
        (grade,) = letters.grade([(0, output)])
        assert grade.start is not None
        assert output[grade.start] == "B"
        assert grade.correct


@pytest.mark.parametrize(
    ("normaliser", "text", "answer", "place"),
    [
        ("auto", "9\nConfidence: 0.9", "9", 0),
        ("number", "It is 5. Confidence: 95%", "5", 6),
        ("exact", "on\nConfidence: 0.5", "on", 0),
        ("squad", "Confidence: 0.9 then 9", "then 9", 16),
    ],
)
def test_no_answer_begins_in_what_says_how_sure_it_is(
    normaliser: str, text: str, answer: str, place: int, tokenizer: Any
) -> None:
    graded = graded_table(
        outputs([text], 1, tokenizer), "0", RowGrader(((answer,),), normaliser, GIVEN), tokenizer, verbalised=GIVEN
    )
    assert graded["answer"].to_pylist() == [answer]
    (start,) = graded["answer_start"].to_pylist()
    ids = tokenizer([text])["input_ids"][0]
    assert len(tokenizer.decode(ids[:start])) <= place < len(tokenizer.decode(ids[: start + 1]))


def outputs(texts: list[str], samples: int, tokenizer: Any) -> pa.Table:
    """Return outputs with these texts, some of each document."""
    ids = tokenizer(texts)["input_ids"]
    rows = range(len(texts))
    columns: dict[str, Any] = {
        "request_id": [row // samples for row in rows],
        "sample": [row % samples for row in rows],
        **schemas.place_columns("0", len(rows)),
        "seed": [7] * len(rows),
        "token_ids": ids,
        "text": texts,
        "finish_reason": ["stop"] * len(rows),
        **{name: [[-0.5] * len(one) for one in ids] for name in ("logprobs", "top1_logprobs", "entropies")},
        **{name: [[1] * len(one) for one in ids] for name in ("ranks", "top1_ids")},
    }
    return pa.table(columns, schema=schemas.GENERATIONS)


def test_the_pattern_of_the_documents_takes_whole_numbers() -> None:
    for name in ("docs/answers.md", "examples/sweep.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert GIVEN in text, name
        assert WHOLE not in text, name


def test_outputs_without_a_number_are_left_out_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    """From outputs to metrics: other metrics have them all the same."""
    run, documents, samples = RunDir(tmp_path / "run"), 40, 3
    add_written(run, "quiz", documents, ("0",), samples)
    plan = run.plan()
    plan["tasks"]["quiz"]["verbalised"] = ASKS
    commit_json(run.plan_json, plan)
    rng, texts, sure, right = np.random.default_rng(2), [], [], []
    for document in range(documents):
        for sample in range(samples):
            is_right, value = bool(rng.uniform() < 0.6), int(rng.integers(1, 100))
            silent = document == 7 or (document + sample) % 5 == 0
            texts.append(("the sea" if is_right else "sand") + ("" if silent else f" confidence: {value} %"))
            sure.append(np.nan if silent else value / 100)
            right.append(is_right)
    generations = outputs(texts, samples, tokenizer)
    commit_table(run.unit("generations", "quiz", "0", 0), generations)
    grader = RowGrader((("sea",),) * documents, "squad", ASKS)
    graded = graded_table(generations, "0", grader, tokenizer, verbalised=ASKS)
    assert graded["correct"].to_pylist() == right
    assert graded["verbalised"].to_numpy() == pytest.approx(sure, nan_ok=True)
    assert "verbalised" not in graded_table(generations, "0", grader, tokenizer).column_names
    commit_table(run.unit("graded", "quiz", "0", 0), graded)
    scores = AnswerLoader(run, "quiz", read_plan(run)["quiz"]).load("0")
    found = answer_estimates(scores, draw("quiz", documents, 20))
    has = ~np.isnan(sure)
    kept, values = np.array(right)[has], np.array(sure)[has]
    assert found["brier", "verbalised", "all"].value == pytest.approx(brier_score_loss(kept, values))
    assert found["auroc", "verbalised", "all"].value == pytest.approx(roc_auc_score(kept, values))
    assert found["brier", "verbalised", "all"].n == documents - 1
    assert found["missing", "verbalised", "all"].value == pytest.approx(1 - has.mean())
    assert found["brier", "tokens", "all"].n == found["mean_at_k", "sum", "all"].n == documents
    assert open_run(run.root).graded("quiz", "0")["verbalised"].null_count == int((~has).sum())
