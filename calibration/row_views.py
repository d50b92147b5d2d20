"""Notebooks look at single rows: what was predicted for each document and how surely, or the scores of each token."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calibration.metrics.predictions import predictions
from calibration.scores.columns import places
from calibration.scores.documents import continuations_of
from calibration.scores.loader import Loader, TaskScores
from calibration.scores.per_document import CONFIDENCES, ChoiceScores
from calibration.uncertainty.resample import draw
from contract import schemas
from contract.errors import InputError

EXPLODED = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        *schemas.PLACE,
        pa.field("position", pa.int32(), nullable=False),  # the token's place in the continuation, from 0
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("logprob", pa.float32()),  # in nats
        # Rank 1 is the most likely token; rank and both top1 columns are null where the engine did not say.
        pa.field("rank", pa.int32()),
        pa.field("top1_id", pa.int32()),
        pa.field("top1_logprob", pa.float32()),
    ]
)

EXAMPLES = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        *schemas.PLACE,
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # is select or report
        pa.field("gold", pa.int16()),  # the place of the right choice; null in a continuation task
        pa.field("prediction", pa.int16()),  # the place of the predicted choice; null in a continuation task
        pa.field("confidence", pa.float64()),  # the probability of the prediction; null in a continuation task
        pa.field("correct", pa.bool_()),  # a continuation is correct if it is the greedy one; null if that is not known
        pa.field("nll", pa.float64(), nullable=False),  # in nats; infinite where the right answer has probability 0
        pa.field("brier", pa.float64()),  # null in a continuation task
        pa.field(
            "probabilities", pa.list_(pa.float64())
        ),  # of each choice, in their order; null in a continuation task
    ]
)


def examples(loader: Loader, task: str, lam: str, confidence: str = CONFIDENCES[0]) -> pa.Table:
    """Return EXAMPLES of one task at one λ: the documents from which its metrics are computed, in their order.

    Raises:
        InputError: there is no such confidence.
        LambdasweepError: a table is damaged; the message names the run, the task and λ.
    """
    if confidence not in loader.confidences:
        raise InputError(f"confidence {confidence!r} does not exist: give one of {', '.join(loader.confidences)}")
    at_lambda = loader.load(lam)
    names = np.array(loader.doc_ids(), object)[at_lambda.scores.document]
    in_report = draw(task, len(loader.documents.sizes), resamples=0).in_report[at_lambda.scores.document]
    count = len(names)
    columns = {
        "task": [task] * count,
        **schemas.place_columns(lam, count),
        "doc_id": names.tolist(),
        "split": np.where(in_report, "report", "select").tolist(),
        **_of_choices(at_lambda, confidence),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in EXAMPLES], schema=EXAMPLES)


def _of_choices(at_lambda: TaskScores, confidence: str) -> dict[str, object]:
    scores = at_lambda.scores
    if not isinstance(scores, ChoiceScores):
        nothing = [None] * len(scores.document)
        correct = pa.array(scores.greedy, mask=~scores.decided)
        nll = 0.0 - scores.logprob  # −x would turn 0 into −0.0
        return {
            **dict.fromkeys(("gold", "prediction", "confidence", "brier", "probabilities"), nothing),
            "correct": correct,
            "nll": nll,
        }
    made = predictions(scores.logits[confidence], scores.gold)
    return {
        "gold": scores.gold,
        "prediction": made.choice,
        "confidence": made.confidence,
        "correct": made.correct,
        "nll": made.nll,
        "brier": made.brier,
        "probabilities": [row[:size].tolist() for row, size in zip(made.probability, scores.sizes, strict=True)],
    }


def explode(tokens: pa.Table, requests: pa.Table) -> pa.Table:
    """Return EXPLODED, one row for each token, in the order of the rows and of the tokens in them.

    Args:
        tokens: rows of one task, as schemas.TOKENS.
        requests: all rows of that task's requests, at least `token_ids` and `continuation_start` of schemas.REQUESTS.
    """
    continuations = continuations_of(requests)
    request = tokens["request_id"].to_numpy()
    lengths = continuations.lengths[request]
    starts = (np.cumsum(continuations.lengths) - continuations.lengths)[request]
    position = places(lengths)
    parent = pa.array(np.repeat(np.arange(len(request)), lengths))
    columns = [
        tokens["request_id"].take(parent),
        *(tokens[field.name].take(parent) for field in schemas.PLACE),
        pa.array(position, pa.int32()),
        pa.array(continuations.token_ids[np.repeat(starts, lengths) + position], pa.int32()),
        *(pc.list_flatten(tokens[name]) for name in ("logprobs", "ranks", "top1_ids", "top1_logprobs")),
    ]
    return pa.table(columns, schema=EXPLODED)
