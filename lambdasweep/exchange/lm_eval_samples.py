"""The documents of a task at one λ become the samples that lm-eval 0.4.13 writes when it is told to log them.

The names of the keys are those of its `SampleResult`, and the hashes are made as its evaluator makes them.
"""

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.rundir import RunDir
from lambdasweep.exchange.texts import ContextAndContinuation
from lambdasweep.tasks.lm_eval_tasks.own_metrics import RequestScores, read_scores

FILTER = "none"


@dataclass(frozen=True, slots=True)
class TaskTexts:
    """What the samples of a task have in common at all λs."""

    name: str
    requests: pa.Table  # the rows of schemas.REQUESTS
    texts: Sequence[ContextAndContinuation]  # the context and the continuation of each request
    is_of_lm_eval: bool  # whether a document is known by its number among lm-eval's documents


def samples_at(run: RunDir, task: TaskTexts, lam: str) -> list[dict[str, Any]]:
    """Return one sample for each document that is scored, in order.

    Its metrics are those of the catalogue that are means over documents: `acc`, `nll` and `brier` under the confidence of
    the sums, `acc_tokens` and `acc_bytes` under the others; for a continuation task `acc` and `nll`. A number that is not
    finite is null, because JSON has none.

    Raises:
        LambdasweepError: a table is damaged; the message names the run, the task and λ.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(task.requests["doc_id"].to_pylist()):
        rows_of[name].append(row)
    tokens = run.tokens(task.name, lam)
    answers = read_scores(task.requests, tokens.filter(pc.less(tokens["request_id"], len(task.requests))))
    choice, gold = task.requests["choice"].to_pylist(), task.requests["is_gold"].to_pylist()
    number = {name: place for place, name in enumerate(rows_of)}
    found = []
    for name, metrics in _metrics(run, task.name, lam).items():
        rows = rows_of[name]
        at = int(name.rpartition("/")[2]) if task.is_of_lm_eval else number[name]
        right = next(row for row in rows if gold[row])
        found.append(_sample(at, name, rows, choice[right], answers, task.texts, metrics))
    return found


def standard_error(values: Sequence[float | None]) -> float | str:
    """Return the standard error of a mean as lm-eval computes it, or `N/A` where there is none."""
    known = [value for value in values if value is not None]
    if len(known) < max(2, len(values)):
        return "N/A"
    return statistics.stdev(known) / math.sqrt(len(known))


def hashed(text: str) -> str:
    """Return lm-eval's hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _metrics(run: RunDir, task: str, lam: str) -> dict[str, dict[str, float | None]]:
    """Return the metrics of each document that is scored, by its name."""
    from calibration.row_views import examples
    from calibration.scores.loader import Loader
    from calibration.scores.per_document import CONFIDENCES

    loader = Loader(run, task)
    found: dict[str, dict[str, float | None]] = {}
    for confidence in CONFIDENCES[:1] if loader.documents.is_continuation else loader.confidences:
        suffix = "" if confidence == CONFIDENCES[0] else f"_{confidence}"
        for row in examples(loader, task, lam, confidence).to_pylist():
            of_document = found.setdefault(row["doc_id"], {})
            of_document[f"acc{suffix}"] = None if row["correct"] is None else float(row["correct"])
            if not suffix:
                of_document["nll"] = row["nll"] if math.isfinite(row["nll"]) else None
                of_document |= {} if row["brier"] is None else {"brier": row["brier"]}
    return found


def _sample(
    number: int,
    name: str,
    rows: Sequence[int],
    gold: int,
    answers: RequestScores,
    texts: Sequence[ContextAndContinuation],
    metrics: Mapping[str, float | None],
) -> dict[str, Any]:
    continuations = [texts[row][1] for row in rows]
    doc = {"id": name, "choices": continuations, "gold": gold}
    target = str(gold) if len(rows) > 1 else str(continuations[0])
    responses = [[str(answers.logprob[row]), str(answers.greedy[row])] for row in rows]
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {
            f"gen_args_{place}": {"arg_0": texts[row][0], "arg_1": texts[row][1]} for place, row in enumerate(rows)
        },
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": FILTER,
        "metrics": list(metrics),
        "doc_hash": hashed(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": hashed(str(texts[rows[0]][0])),
        "target_hash": hashed(target),
        **metrics,
    }
