"""Choices less what they are without their documents: held against sums of plain Python numbers."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibration.analyse import analyse
from calibration.report.facts import gather
from calibration.row_views import examples
from calibration.scores.loader import Loader
from calibration.terminal.tables import render
from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import InputError, LambdasweepError
from contract.rundir import RunDir

# The tokens of each choice of the documents, and the place of the right one.
KINDS = (("iron", [[5], [6, 7], [8]], 1), ("water", [[8], [5]], 0), ("salt", [[6, 7], [8]], 0))
CHOICES = {f"{name} {number}": choices for number in range(9) for name, choices, _ in KINDS}
GOLD = {f"{name} {number}": gold for number in range(9) for name, _, gold in KINDS}
ALONE = [[5], [6, 7], [8]]  # different continuations, in the order in which they appear
CONTEXT, BARE = [1, 2, 3], [1, 9]


def logprob(row: int, lam: str, length: int) -> list[float]:
    """Numbers that differ between rows and λs, as float32 holds them."""
    return [-float(np.float32(0.25 + 0.5 * ((7 * row + 3 * place + len(lam)) % 11))) for place in range(length)]


def sequences() -> list[tuple[str, int, list[int], int, bool]]:
    """(document, choice, tokens, start, is gold) of every request."""
    rows = [
        (name, place, [*CONTEXT, *choice], len(CONTEXT), place == GOLD[name])
        for name, choices in CHOICES.items()
        for place, choice in enumerate(choices)
    ]
    return rows + [("", schemas.UNCONDITIONAL, [*BARE, *tokens], len(BARE), False) for tokens in ALONE]


def write(
    run: RunDir, task: str, pmi: bool, lambdas: tuple[str, ...] = ("0", "1"), left_out: dict[int, str] | None = None
) -> None:
    """Write a task; `left_out` has requests without scores, and `refused` for those in quarantine."""
    rows = [row for row in sequences() if pmi or row[1] >= 0]
    names, choice, ids, starts, gold = zip(*rows, strict=True)
    requests = {
        "request_id": range(len(rows)),
        "doc_id": names,
        "choice": choice,
        "token_ids": ids,
        "continuation_start": starts,
        "continuation_bytes": [3 * (len(one) - start) for one, start in zip(ids, starts, strict=True)],
        "is_gold": gold,
    }
    commit_table(run.requests(task), pa.table({k: list(v) for k, v in requests.items()}, schema=schemas.REQUESTS))
    left_out = left_out or {}
    for lam in lambdas:
        there = [row for row in range(len(rows)) if row not in left_out]
        scores = [logprob(row, lam, len(ids[row]) - starts[row]) for row in there]
        columns = {
            "request_id": there,
            **schemas.place_columns(lam, len(there)),
            "logprobs": scores,
            "ranks": [[1] * len(one) for one in scores],
            "top1_ids": [ids[row][starts[row] :] for row in there],
            "top1_logprobs": scores,
        }
        arrays = [pa.array(columns[field.name], field.type) for field in schemas.TOKENS]
        commit_table(run.unit("tokens", task, lam, 0), pa.Table.from_arrays(arrays, schema=schemas.TOKENS))
        refused = [row for row, why in left_out.items() if why == "refused"]
        if refused:
            of = {"request_id": refused, **schemas.place_columns(lam, len(refused)), "reason": ["NaN"] * len(refused)}
            arrays = [pa.array(of[field.name], field.type) for field in schemas.QUARANTINE]
            commit_table(run.unit("quarantine", task, lam, 0), pa.Table.from_arrays(arrays, schema=schemas.QUARANTINE))


def expected(lam: str) -> dict[str, list[float]]:
    """The pointwise mutual information of each choice, in nats, from the definition."""
    rows = sequences()
    whole = [sum(logprob(row, lam, len(one[2]) - one[3])) for row, one in enumerate(rows)]
    alone = {tuple(one[2][one[3] :]): value for one, value in zip(rows, whole, strict=True) if one[1] < 0}
    found: dict[str, list[float]] = {}
    for one, value in zip(rows, whole, strict=True):
        if one[1] >= 0:
            found.setdefault(one[0], []).append(value - alone[tuple(one[2][one[3] :])])
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    parent = {"source": "here", "fingerprint": "f"}
    commit_json(
        made.sweep_json,
        {"pair": {"base": parent, "aligned": parent}, "engine": {}, "versions": {}, "schema": schemas.SCHEMA_VERSION},
    )
    return made


def plan(run: RunDir, **tasks: bool) -> None:
    entry = {"lambdas": ["0", "1"], "shards": [[0, 1]], "costs": [1], "scored_as": "choices", "documents": 27}
    commit_json(run.plan_json, {"tasks": {name: entry | ({"pmi": True} if pmi else {}) for name, pmi in tasks.items()}})


def test_pmi_is_the_sum_less_that_of_the_same_tokens_alone(run: RunDir) -> None:
    write(run, "quiz", True)
    loader = Loader(run, "quiz")
    assert loader.confidences == ("sum", "tokens", "bytes", "pmi")
    for lam in ("0", "1"):
        logits = loader.load(lam).scores.logits["pmi"]
        for row, (name, values) in enumerate(expected(lam).items()):
            assert logits[row, : len(values)].tolist() == pytest.approx(values, abs=1e-12), name
            assert (logits[row, len(values) :] == -np.inf).all()
        table = examples(loader, "quiz", lam, "pmi").to_pylist()
        for row in table:
            values = expected(lam)[row["doc_id"]]
            whole = sum(map(math.exp, values))
            assert row["probabilities"] == pytest.approx([math.exp(value) / whole for value in values], abs=1e-12)


def test_all_else_is_as_it_is_without_the_unconditional_pass(run: RunDir) -> None:
    write(run, "quiz", True)
    write(run, "plain", False)
    for lam in ("0", "1"):
        with_it, without = Loader(run, "quiz").load(lam), Loader(run, "plain").load(lam)
        for confidence in ("sum", "tokens", "bytes"):
            assert np.array_equal(with_it.scores.logits[confidence], without.scores.logits[confidence])
        assert with_it.token_scores is not None
        assert without.token_scores is not None
        assert np.array_equal(with_it.token_scores.confidence, without.token_scores.confidence)
        assert "pmi" not in without.scores.logits


@pytest.mark.parametrize(("why", "counts"), [("refused", (18, 0)), ("not yet", (0, 18))])
def test_documents_whose_choice_is_not_scored_alone_are_left_out(
    run: RunDir, why: str, counts: tuple[int, int]
) -> None:
    first = sum(map(len, CHOICES.values()))  # the first one alone, [5], which iron and water have
    write(run, "quiz", True, left_out={first: why})
    scores = Loader(run, "quiz").load("0").scores
    assert scores.document.tolist() == list(range(2, 27, 3))
    assert (scores.left_out.quarantined, scores.left_out.unfinished) == counts


def test_a_choice_without_its_unconditional_request_is_damage(run: RunDir) -> None:
    write(run, "quiz", True)
    table = schemas.of_documents(loaded := pq.read_table(run.requests("quiz")))
    commit_table(run.requests("quiz"), pa.concat_tables([table, loaded.slice(len(table) + 1, 1)]))
    with pytest.raises(LambdasweepError, match="request 0 has no unconditional request"):
        Loader(run, "quiz").load("0")


@pytest.mark.slow
def test_it_is_shown_where_every_choice_task_has_it(run: RunDir) -> None:
    write(run, "quiz", True)
    write(run, "other", True)
    plan(run, quiz=True, other=True)
    analysis = analyse(run, resamples=20, confidence="pmi")
    rows = [row for row in analysis.metrics.to_pylist() if row["metric"] == "acc_pmi" and row["split"] == "all"]
    for row in rows:
        right = [max(range(len(v)), key=v.__getitem__) == GOLD[name] for name, v in expected(row["point"]).items()]
        assert row["value"] == pytest.approx(sum(right) / len(right))
        assert row["confidence"] == "pmi"
    assert {row["task"] for row in rows} == {"quiz", "other", "all tasks"}
    assert gather(analysis, "ece_width15", "pmi").confidence == "pmi"
    titles = [str(table.caption) for table in render(analysis.metrics, "pmi", False, analysis.parents)]
    assert all("the log-probabilities less those without the document (pmi)" in title for title in titles)


@pytest.mark.slow
def test_one_choice_task_without_it_takes_all_back_to_the_sums(run: RunDir) -> None:
    write(run, "quiz", True)
    write(run, "plain", False)
    plan(run, quiz=True, plain=False)
    analysis = analyse(run, resamples=20, confidence="pmi")
    pooled = {row["confidence"] for row in analysis.metrics.to_pylist() if row["task"] == "all tasks"}
    assert pooled == {"sum"}
    assert gather(analysis, "ece_width15", "pmi").confidence == "sum"
    assert all("(sum)" in str(table.caption) for table in render(analysis.metrics, "pmi", False, analysis.parents))
    plan(run, plain=False)
    with pytest.raises(InputError, match="'pmi'"):
        analyse(run, resamples=20, confidence="pmi")
