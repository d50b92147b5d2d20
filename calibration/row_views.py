"""Document by document: what was predicted, how surely, and whether it was right."""

import numpy as np
import pyarrow as pa

from calibration.metrics.predictions import predictions
from calibration.scores.loader import Loaded, Loader
from calibration.scores.per_document import CONFIDENCES, ChoiceScores
from calibration.uncertainty.resample import draw
from contract import schemas
from contract.errors import InputError

EXAMPLES = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("lam", schemas.LAM, nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # select, report
        pa.field("gold", pa.int16()),  # place of the right choice; null in a continuation task, as the next two
        pa.field("prediction", pa.int16()),
        pa.field("confidence", pa.float64()),  # probability of the prediction
        pa.field("correct", pa.bool_()),  # of a continuation: it is the greedy one; null where the engine did not say
        pa.field("nll", pa.float64(), nullable=False),  # nats; infinite where what is right has probability 0
        pa.field("brier", pa.float64()),
    ]
)


def examples(loader: Loader, task: str, lam: str, confidence: str = CONFIDENCES[0]) -> pa.Table:
    """Return EXAMPLES of one task at one λ: the documents that its metrics are of, in their order.

    Raises:
        InputError: there is no such confidence.
        LambdasweepError: a table is damaged.
    """
    if confidence not in CONFIDENCES:
        raise InputError(f"confidence {confidence!r} does not exist: give one of {', '.join(CONFIDENCES)}")
    loaded = loader.load(lam)
    names = np.array(loader.doc_ids(), object)[loaded.scores.document]
    in_report = draw(task, len(loader.documents.sizes), resamples=0).in_report[loaded.scores.document]
    count = len(names)
    schema = schemas.schema_at(EXAMPLES, [lam])
    columns = {
        "task": [task] * count,
        **schemas.place_columns(lam, count),
        "doc_id": names.tolist(),
        "split": np.where(in_report, "report", "select").tolist(),
        **_of_choices(loaded, confidence),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _of_choices(loaded: Loaded, confidence: str) -> dict[str, object]:
    scores = loaded.scores
    if not isinstance(scores, ChoiceScores):
        nothing = [None] * len(scores.document)
        correct = pa.array(scores.greedy, mask=~scores.decided)
        nll = 0.0 - scores.logprob  # not −x, which makes −0.0 of 0
        return {**dict.fromkeys(("gold", "prediction", "confidence", "brier"), nothing), "correct": correct, "nll": nll}
    made = predictions(scores.logits[confidence], scores.gold)
    return {
        "gold": scores.gold,
        "prediction": made.choice,
        "confidence": made.confidence,
        "correct": made.correct,
        "nll": made.nll,
        "brier": made.brier,
    }
