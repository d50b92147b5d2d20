"""This makes runs that lack something which most reports have."""

import math

import pyarrow.parquet as pq

from tests.support.reports import GRID, add_quiz, add_words
from tests.support.tables import add_quarantine, add_scores, add_task


def empty(run):
    add_task(run, "quiz", [2] * 4, GRID)


def one_document(run):
    add_quiz(run, documents=1)


def one_lambda(run):
    add_quiz(run, grid=("0.5",))


def no_parents(run):
    add_quiz(run, grid=("0.25", "0.5"))


def all_right(run):
    add_task(run, "quiz", [2] * 8, ["0", "1"])
    for lam in ("0", "1"):
        add_scores(run, "quiz", lam, {r: [-0.1 if r % 2 == 0 else -3.0] for r in range(16)})


def all_wrong(run):
    add_task(run, "quiz", [2] * 8, ["0", "1"])
    for lam in ("0", "1"):
        add_scores(run, "quiz", lam, {r: [-0.1 if r % 2 else -3.0] for r in range(16)})


def impossible(run):
    add_task(run, "quiz", [2] * 8, ["0", "1"])
    for lam in ("0", "1"):
        add_scores(run, "quiz", lam, {r: [-math.inf if r == 0 else -1.0] for r in range(16)})


def half_finished(run):
    add_quiz(run, scored=("0", "0.5"))
    add_quiz(run, "other", scored=())
    add_scores(run, "quiz", "1.5", {0: [-1.0], 1: [-2.0]})


def nothing_finished(run):
    add_quiz(run, scored=())
    add_scores(run, "quiz", "1", {0: [-1.0], 1: [-2.0]})


def continuations_only(run):
    add_words(run)


def all_quarantined(run):
    add_task(run, "quiz", [2] * 4, ["0", "1"])
    for lam in ("0", "1"):
        add_quarantine(run, "quiz", lam, list(range(8)))


def quarantined_parents(run):
    add_quiz(run, scored=("0.5",))
    for lam in ("0", "1", "1.5"):
        add_quarantine(run, "quiz", lam, list(range(len(pq.read_table(run.requests("quiz"))))))


def one_choice(run):
    add_task(run, "quiz", [1, 2, 1, 1, 2, 1, 1, 1], ["0", "1"])
    for lam in ("0", "1"):
        add_scores(run, "quiz", lam, {r: [-1.0 - 0.1 * r] for r in range(10)})


ALL = (
    empty,
    one_document,
    one_lambda,
    no_parents,
    all_right,
    all_wrong,
    impossible,
    half_finished,
    nothing_finished,
    continuations_only,
    all_quarantined,
    quarantined_parents,
    one_choice,
)
