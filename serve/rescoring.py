"""What the model wrote at one λ, scored at another: one unit of outputs, by their token ids."""

from typing import Any

import pyarrow as pa

from contract import schemas
from serve.engine import Engine
from serve.scoring import UnitScores, score_unit


def rescore_unit(engine: Engine, prompts: pa.Table, outputs: pa.Table, lam: str, under: str) -> UnitScores:
    """Score every output of a unit at the engine's current λ; a document has all of its outputs scored, or is in quarantine.

    Args:
        engine: already switched to `under`.
        prompts: rows of `schemas.PROMPTS`, of the outputs' documents at least.
        outputs: rows of `schemas.GENERATIONS`, those of a document one after the other.
        lam: canonical point that the outputs were written at.
        under: canonical point that they are scored at; both are written into the table.

    Raises:
        EngineError: the engine failed; nothing of the unit may be used.
    """
    prompt_of = dict(zip(*(prompts[name].to_pylist() for name in ("request_id", "token_ids")), strict=True))
    owner, written = outputs["request_id"].to_pylist(), outputs["token_ids"].to_pylist()
    columns: dict[str, Any] = {
        "request_id": range(len(owner)),
        "doc_id": [str(one) for one in owner],
        "choice": outputs["sample"],
        "token_ids": [prompt_of[one] + ids for one, ids in zip(owner, written, strict=True)],
        "continuation_start": [len(prompt_of[one]) for one in owner],
        "continuation_bytes": [1] * len(owner),
        "is_gold": [False] * len(owner),
    }
    scores = score_unit(engine, pa.table(columns, schema=schemas.REQUESTS), under)
    reasons: dict[int, str] = {}
    for row, why in zip(*(scores.quarantine[name].to_pylist() for name in ("request_id", "reason")), strict=True):
        reasons.setdefault(owner[row], why)
    scored = scores.tokens["request_id"].to_pylist()
    kept = [place for place, row in enumerate(scored) if owner[row] not in reasons]
    found = scores.tokens.take(pa.array(kept, pa.int64())).combine_chunks()
    rows = found["request_id"]
    table = {
        "request_id": outputs["request_id"].take(rows),
        "sample": outputs["sample"].take(rows),
        **schemas.place_columns(lam, len(kept)),
        "under": [under] * len(kept),
        **{name: found[name] for name in ("logprobs", "ranks", "top1_ids", "top1_logprobs")},
    }
    bad = {"request_id": list(reasons), "reason": list(reasons.values())}
    return UnitScores(
        pa.table(table, schema=schemas.RESCORED),
        pa.table(bad, schema=schemas.QUARANTINE),
        prompt_tokens=scores.prompt_tokens,
        cached_tokens=scores.cached_tokens,
    )
