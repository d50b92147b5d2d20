"""`open_run` gives a run's tables as Arrow, and the examples use them."""

import contextlib
import importlib.util
import math
import re
import subprocess
import sys
from decimal import Decimal
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from calibration import analyse
from calibration.analyse import write_metrics
from calibration.frontier.frontier import write_frontiers
from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import InputError
from contract.rundir import RunDir
from lambdasweep import open_run
from lambdasweep.demo import BASE
from merge.vocabulary import tokenizer_digest
from tests.support.forked import fork, joined, run_script
from tests.support.paths import ROOT
from tests.support.reports import add_quiz
from tests.support.tables import add_scores, add_task


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def computed(run):
    analysis = analyse.analyse(run, resamples=40)
    write_metrics(run, analysis)
    write_frontiers(run, analysis.found)
    return analysis


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        open_run(tmp_path)


def test_opening_is_light():
    ask = "import sys, lambdasweep\nprint(*(name for name in ('pyarrow', 'numpy', 'altair') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_metrics_are_what_was_computed(run):
    add_quiz(run, documents=12)
    opened = open_run(run.root)
    with pytest.raises(InputError, match="lambdasweep report"):
        opened.metrics()
    found = computed(run).metrics
    assert opened.metrics().equals(found)
    commit_table(run.metrics_parquet, opened.metrics().drop_columns(["resamples"]))
    with pytest.raises(InputError, match="another version"):
        opened.metrics()


@pytest.mark.slow
def test_the_frontier_as_a_table(run):
    add_quiz(run, documents=12)
    add_quiz(run, "other", documents=12, seed=3)
    opened = open_run(run.root)
    with pytest.raises(InputError, match=r"frontier\.json is not there"):
        opened.frontier()
    found = computed(run).found
    rows = opened.frontier().to_pylist()
    expected = [(one, point) for one in (*found.tasks, *found.pools) for point in one.points]
    assert len(rows) == len(expected) == 12
    for row, (one, point) in zip(rows, expected, strict=True):
        assert (row["task"], row["lam"], row["documents"]) == (one.task, Decimal(point.lam), point.documents)
        assert (row["accuracy"], row["accuracy_ci_low"]) == (point.accuracy.value, point.accuracy.low)
        assert (row["nll"], row["nll_ci_low"]) == (point.nll.value, point.nll.low)
        assert (row["error"], row["error_ci_high"]) == (point.error.value, point.error.high)
        assert (row["on_frontier"], row["chosen"]) == (point.on_frontier, point.lam == one.chosen.lam)
        assert (row["p_error"], row["membership"]) == (point.p_error, point.membership)
    every = (*found.tasks, *found.pools)
    assert [one.task for one in every] == ["other", "quiz", "all tasks"]
    assert opened.answers() == {one.task: one.answer for one in every}
    assert opened.claims() == {one.task: one.claim.text for one in every}
    commit_json(run.frontier_json, {"tasks": [], "macro": None})
    with pytest.raises(InputError, match="another version"):
        opened.answers()


@pytest.mark.parametrize("lam", ["0.50", 0.5, Decimal("0.5")])
def test_tokens_of_a_task_and_a_lambda(run, lam):
    add_quiz(run, documents=3)
    add_quiz(run, "other", documents=5)
    opened = open_run(run.root)
    table = opened.tokens("quiz", lam)
    assert table.drop_columns(["task"]).equals(run.tokens("quiz", "0.5"))
    assert set(table["task"].to_pylist()) == {"quiz"}
    assert opened.tokens("quiz").num_rows == 4 * 6
    assert opened.tokens(lam=lam).num_rows == 6 + 10
    assert opened.tokens().num_rows == 4 * 16


def test_a_task_or_lambda_that_is_not_there_is_named(run):
    add_quiz(run, documents=3)
    opened = open_run(run.root)
    with pytest.raises(InputError, match="has no task 'quizz': give one of quiz"):
        opened.tokens("quizz")
    with pytest.raises(InputError, match=r"has no λ = 0\.7: give one of 0, 0\.5, 1, 1\.5"):
        opened.examples("quiz", 0.7)
    with pytest.raises(InputError, match="confidence 'words' does not exist"):
        opened.examples("quiz", 0.5, "words")


@pytest.mark.parametrize("lam", [0.1 + 0.2, np.float64(0.1) + np.float64(0.2), 0.3, "0.30", Decimal("0.3")])
def test_a_lambda_that_was_computed_in_floats_is_found(run, lam):
    add_task(run, "quiz", [2], ["0", "0.3", "1"])
    add_scores(run, "quiz", "0.3", {0: [-1.0], 1: [-2.0]})
    assert open_run(run.root).tokens("quiz", lam)["point"].to_pylist() == ["0.3", "0.3"]


@pytest.mark.parametrize(
    ("lam", "says"),
    [
        (0.2999999, "has no λ = 0.2999999: give one of 0, 0.3, 1; the nearest is 0.3"),
        (1e-9, "has no λ = 0.000000001: give one of 0, 0.3, 1; the nearest is 0"),
        (7, "has no λ = 7: give one of 0, 0.3, 1; the nearest is 1"),
        ("0.30000000000000004", "λ 0.30000000000000004 has more than 6 decimals: round it"),
        (float("nan"), "λ 'nan' is not a decimal number: write it like 0.35"),
    ],
)
def test_the_nearest_lambda_is_named_where_one_is_not_there(run, lam, says):
    add_task(run, "quiz", [2], ["0", "0.3", "1"])
    with pytest.raises(InputError, match=re.escape(says)):
        open_run(run.root).tokens("quiz", lam)


def test_exploded_tokens_by_hand(run):
    add_task(run, "words", [1, 1, 1], ["0", "1"], continuations=[[7, 8], [9], [10, 11]])
    scores = {2: [-3.0, -4.0], 0: [-1.0, -2.0]}  # the rows are in no order, and request 1 is not there
    add_scores(run, "words", "1", scores, ranks={2: [1, None]}, top1={0: [7, 99]})
    table = open_run(run.root).explode("words")
    assert table.to_pylist() == [
        {
            **{"task": "words", "request_id": request, "lam": Decimal(1), "point": "1"},
            **{"position": position, "token_id": token},
            **{"logprob": logprob, "rank": rank, "top1_id": top1, "top1_logprob": 0.0},
        }
        for request, position, token, logprob, rank, top1 in [
            (2, 0, 10, -3.0, 1, None),
            (2, 1, 11, -4.0, None, None),
            (0, 0, 7, -1.0, None, 7),
            (0, 1, 8, -2.0, None, 99),
        ]
    ]


def test_examples_by_hand(run):
    add_task(run, "quiz", [2, 3, 2], ["0"], gold=[0, 2, 1])
    # The last document is not scored.
    add_scores(run, "quiz", "0", {0: [-1.0], 1: [-1.0], 2: [-3.0], 3: [-1.0], 4: [-2.0]})
    rows = open_run(run.root).examples("quiz", 0).to_pylist()
    odds = [math.exp(x) for x in (-3, -1, -2)]
    p = [one / sum(odds) for one in odds]
    assert [(row["doc_id"], row["gold"], row["prediction"], row["correct"]) for row in rows] == [
        ("doc0", 0, 0, True),
        ("doc1", 2, 1, False),
    ]
    assert [row["confidence"] for row in rows] == pytest.approx([0.5, p[1]])
    assert [row["nll"] for row in rows] == pytest.approx([math.log(2), -math.log(p[2])])
    assert rows[0]["probabilities"] == pytest.approx([0.5, 0.5])  # the document has two choices, not three
    assert rows[1]["probabilities"] == pytest.approx(p)
    assert [row["brier"] for row in rows] == pytest.approx([0.5, p[0] ** 2 + p[1] ** 2 + (1 - p[2]) ** 2])


def test_examples_are_decoded(run, tmp_path):
    """Decoded texts are those of the library tokenizers, with the tokenizer of the demo pair."""
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    add_task(run, "quiz", [2], ["0"])
    asked, answers = tokenizer.encode("which animal").ids, [tokenizer.encode(text).ids for text in (" cat", " dog")]
    add_scores(run, "quiz", "0", {r: [-1.0 - r] * len(answers[r]) for r in (0, 1)})
    requests = pq.read_table(run.requests("quiz"))
    ids = pa.array([[*asked, *answer] for answer in answers], schemas.REQUESTS.field("token_ids").type)
    starts = pa.array([len(asked)] * 2, pa.int32())
    for name, values in (("token_ids", ids), ("continuation_start", starts)):
        requests = requests.set_column(requests.schema.get_field_index(name), schemas.REQUESTS.field(name), values)
    commit_table(run.requests("quiz"), requests)
    (row,) = open_run(run.root).examples("quiz", 0, texts=BASE).to_pylist()
    assert row["question"] == tokenizer.decode(asked, skip_special_tokens=False)
    assert row["choices"] == [tokenizer.decode(answer, skip_special_tokens=False) for answer in answers]
    assert ["".join(tokens) for tokens in row["tokens"]] == row["choices"]
    assert len(row["probabilities"]) == 2
    with pytest.raises(InputError, match="give texts=DIRECTORY, that of base's"):
        open_run(run.root).examples("quiz", 0, texts=True)
    # Another tokenizer than the run's would make other texts of the same tokens.
    for digest, is_refused in ((tokenizer_digest(BASE), False), ("5" * 64, True)):
        record = run.sweep()
        record["pair"]["base"]["tokenizer_sha256"] = digest
        commit_json(run.sweep_json, record)
        with pytest.warns(UserWarning, match="is not that of the run") if is_refused else contextlib.nullcontext():
            assert open_run(run.root).examples("quiz", 0, texts=BASE).to_pylist() == [row]
        record["pair"]["base"]["source"] = str(BASE)
        commit_json(run.sweep_json, record)
        with pytest.raises(InputError, match="is not that of the run") if is_refused else contextlib.nullcontext():
            assert open_run(run.root).examples("quiz", 0, texts=True).to_pylist() == [row]


@pytest.mark.slow
def test_examples_average_to_the_metrics(run):
    add_quiz(run)
    metrics = {
        (row["lam"], row["metric"], row["split"]): row["value"]
        for row in computed(run).metrics.to_pylist()
        if row["confidence"] == "sum"
    }
    table = open_run(run.root).examples("quiz")
    for lam in map(Decimal, ("0", "0.5", "1", "1.5")):
        for split in ("all", "select", "report"):
            rows = table.filter(pc.equal(table["lam"], pa.scalar(lam, schemas.LAM)))
            if split != "all":
                rows = rows.filter(pc.equal(rows["split"], split))
            for column, metric in (
                ("correct", "acc"),
                ("nll", "nll"),
                ("brier", "brier"),
                ("confidence", "confidence"),
            ):
                mean = pc.mean(rows[column].cast(pa.float64())).as_py()
                assert mean == pytest.approx(metrics[lam, metric, split], rel=1e-9)


def test_examples_of_continuations(run):
    add_task(run, "words", [1, 1, 1], ["0"], continuations=[[5], [6], [7]])
    add_scores(run, "words", "0", {0: [-1.0], 1: [-2.0], 2: [0.0]}, top1={0: [5], 1: [5]})
    rows = open_run(run.root).examples("words", 0).to_pylist()
    assert [(row["correct"], row["nll"], row["gold"], row["confidence"]) for row in rows] == [
        (True, 1.0, None, None),
        (False, 2.0, None, None),
        (None, 0.0, None, None),
    ]
    assert math.copysign(1, rows[2]["nll"]) == 1


@pytest.mark.slow
def test_a_reliability_diagram_of_one_point(run):
    add_quiz(run)
    spec = open_run(run.root).plot_reliability("quiz", 0.5).to_dict()
    (values,) = spec["datasets"].values()
    header, *rows = (line.split(",") for line in values.strip().split("\n"))
    assert {row[header.index("lambda")] for row in rows} == {"0.5"}
    assert sum(int(row[header.index("n")]) for row in rows) == 40
    assert spec["title"] == "quiz, λ = 0.5"


def test_a_reliability_diagram_of_nothing_says_so(run):
    add_quiz(run, scored=("0",))
    with pytest.raises(InputError, match="nothing of task 'quiz' is scored at λ = 1 yet"):
        open_run(run.root).plot_reliability("quiz", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a run that has its metrics, which nobody changes."""
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    add_quiz(run, documents=12)
    computed(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("library", ["duckdb", "pandas", "polars"])
def test_the_examples_run(finished, library, tmp_path):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install '.[dev]'")
    log = tmp_path / "log"
    process = fork(partial(run_script, ROOT / "examples" / f"with_{library}.py", str(finished.root)), log)
    assert joined(process, log) == 0, log.read_text()
    assert "quiz" in log.read_text()
