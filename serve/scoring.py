"""Requests in, logprobs out: the scoring plan of one unit and what becomes of the engine's answers.

Two strategies, chosen per document:

(a) Every continuation is one token (answer letters): one prompt per document, which asks for the logprobs of exactly those
    tokens at the next position. The LM head runs on one row.
(b) Otherwise one prompt per request, with prompt logprobs and reads from the prefix cache allowed, so that the context
    shared by a document's choices is computed once. vLLM leaves the prompt-logprob rows of cached positions uninitialised
    and says nothing, so an answer counts only if the row of the first continuation token was computed:
    `num_cached_tokens ≤ continuation_start − 1`. A context that fills its last block exactly, or choices with the same
    first tokens, break that; those requests are scored again without reading the cache.

A unit's result depends on the unit alone: the cache starts empty, and all prompts of a pass are added, in a fixed order,
before the engine's first step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lambdasweep import schemas
from serve.engine import Engine, Prompt

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

MAX_CHOICE_TOKENS = 128  # ids that vLLM takes in `logprob_token_ids`


@dataclass(frozen=True, slots=True)
class Request:
    """One row of the requests table."""

    request_id: int
    doc_id: str
    token_ids: list[int]
    start: int  # index of the first continuation token

    @property
    def context(self) -> list[int]:
        return self.token_ids[: self.start]

    @property
    def continuation(self) -> list[int]:
        return self.token_ids[self.start :]


@dataclass(frozen=True, slots=True)
class Score:
    """Per continuation token; None where the engine did not say. Logprobs in nats."""

    logprobs: list[float]
    ranks: list[int | None]
    top1_ids: list[int | None]
    top1_logprobs: list[float | None]


@dataclass(frozen=True, slots=True)
class UnitScores:
    """A unit's tables and what they cost."""

    tokens: pa.Table
    quarantine: pa.Table
    prompt_tokens: int  # of all prompts, rescoring included
    cached_tokens: int  # of those, read from the prefix cache
    rescored: int  # requests that the guard of strategy (b) sent through again


def score_unit(engine: Engine, requests: pa.Table, lam: str) -> UnitScores:
    """Score every request of a unit at the engine's current λ.

    Args:
        engine: already switched to `lam`.
        requests: rows of `schemas.REQUESTS`, whole documents.
        lam: canonical λ, written into the table.

    Raises:
        EngineError: the engine failed; nothing of the unit may be used.
    """
    engine.clear_prefix_cache()
    outcomes: dict[int, Score | str] = {}
    fit: list[Request] = []
    for request in _read(requests):
        reason = _refuse(request, engine.settings.max_model_len, engine.vocab_size)
        if reason is None:
            fit.append(request)
        else:
            outcomes[request.request_id] = reason
    one_token: list[list[Request]] = []
    full: list[Request] = []
    for _, group in groupby(fit, key=lambda request: request.doc_id):
        document = list(group)
        if _is_one_token(document):
            one_token.append(document)
        else:
            full += document

    first = _score_one_token(engine, one_token, outcomes)
    second, again = _score_full(engine, full, outcomes, read_cache=True)
    third, never = _score_full(engine, again, outcomes, read_cache=False)
    for request in never:
        outcomes[request.request_id] = "the engine read the prefix cache where it was told not to"
    outputs = [*first, *second, *third]
    return UnitScores(
        *_tables(requests.column("request_id").to_pylist(), outcomes, lam),
        prompt_tokens=sum(len(output.prompt_token_ids or ()) for output in outputs),
        cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
        rescored=len(again),
    )


def _read(requests: pa.Table) -> Iterator[Request]:
    columns = (
        requests.column(name).to_pylist() for name in ("request_id", "doc_id", "token_ids", "continuation_start")
    )
    for row in zip(*columns, strict=True):
        yield Request(*row)


def _refuse(request: Request, max_model_len: int, vocab_size: int) -> str | None:
    """Return why a request cannot be scored, or None."""
    length = len(request.token_ids)
    if request.start >= length:
        return "empty continuation"
    if request.start < 1:
        return "empty context: the first token has nothing to be predicted from"
    if length > max_model_len:
        return f"{length} tokens are more than the {max_model_len} the engine takes"
    if not all(0 <= token < vocab_size for token in request.token_ids):
        return f"a token id outside the vocabulary of {vocab_size}"
    return None


def _is_one_token(document: Sequence[Request]) -> bool:
    first = document[0]
    return len(document) <= MAX_CHOICE_TOKENS and all(
        len(request.token_ids) == request.start + 1
        and request.start == first.start
        and request.context == first.context
        for request in document
    )


def _score_one_token(
    engine: Engine, documents: Sequence[Sequence[Request]], outcomes: dict[int, Score | str]
) -> "list[RequestOutput]":
    """Strategy (a). `logprobs` stays unset: then up to 128 ids are taken, and ranks of the others are column numbers."""
    from vllm import SamplingParams

    prompts = [
        Prompt(
            document[0].context,
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprob_token_ids=sorted({request.token_ids[-1] for request in document}),
                detokenize=False,
                ignore_eos=True,
            ),
        )
        for document in documents
    ]
    outputs = engine.generate(prompts)
    for document, output in zip(documents, outputs, strict=True):
        completion = output.outputs[0]
        row = completion.logprobs[0] if completion.logprobs else {}
        top1 = completion.token_ids[0]  # greedy: the sampled token is the most likely one
        for request in document:
            token = request.token_ids[-1]
            if token not in row or top1 not in row:
                outcomes[request.request_id] = "the engine returned no logprob"
                continue
            score = Score([row[token].logprob], [1 if token == top1 else None], [top1], [row[top1].logprob])
            outcomes[request.request_id] = _finite(score)
    return outputs


def _score_full(
    engine: Engine, requests: Sequence[Request], outcomes: dict[int, Score | str], *, read_cache: bool
) -> "tuple[list[RequestOutput], list[Request]]":
    """Strategy (b). Returns the outputs and the requests whose first continuation rows were not computed."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=1,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        skip_reading_prefix_cache=not read_cache,
    )
    outputs = engine.generate([Prompt(request.token_ids, params) for request in requests])
    again: list[Request] = []
    for request, output in zip(requests, outputs, strict=True):
        if (output.num_cached_tokens or 0) > request.start - 1:
            again.append(request)
        else:
            outcomes[request.request_id] = _finite(_prompt_score(request, output.prompt_logprobs))
    return outputs, again


def _prompt_score(request: Request, rows: Any) -> Score:
    """Read the continuation's rows of flat prompt logprobs: in each, the actual token first, then the most likely one."""
    logprobs: list[float] = []
    ranks: list[int | None] = []
    top1_ids: list[int | None] = []
    top1_logprobs: list[float | None] = []
    for position in range(request.start, len(request.token_ids)):
        begin, end = rows.start_indices[position], rows.end_indices[position]
        if rows.token_ids[begin] != request.token_ids[position]:
            raise AssertionError("vLLM's prompt logprobs are not aligned with the prompt")
        top1 = end - 1 if rows.ranks[begin] != 1 else begin
        logprobs.append(rows.logprobs[begin])
        ranks.append(rows.ranks[begin])
        top1_ids.append(rows.token_ids[top1])
        top1_logprobs.append(rows.logprobs[top1])
    return Score(logprobs, ranks, top1_ids, top1_logprobs)


def _finite(score: Score) -> Score | str:
    """A score is right or absent: NaN and +∞ are no logprobs (−∞, probability 0, is one)."""
    numbers = [*score.logprobs, *(value for value in score.top1_logprobs if value is not None)]
    if any(math.isnan(value) or value == math.inf for value in numbers):
        return "the engine returned NaN or infinity"
    return score


def _tables(request_ids: list[int], outcomes: dict[int, Score | str], lam: str) -> tuple[pa.Table, pa.Table]:
    good: list[tuple[int, Score]] = []
    bad: list[tuple[int, str]] = []
    for request_id in request_ids:
        outcome = outcomes[request_id]
        if isinstance(outcome, str):
            bad.append((request_id, outcome))
        else:
            good.append((request_id, outcome))
    tokens = pa.table(
        {
            "request_id": [request_id for request_id, _ in good],
            "lam": pa.array([Decimal(lam)] * len(good), schemas.LAM),
            "logprobs": [score.logprobs for _, score in good],
            "ranks": [score.ranks for _, score in good],
            "top1_ids": [score.top1_ids for _, score in good],
            "top1_logprobs": [score.top1_logprobs for _, score in good],
        },
        schema=schemas.TOKENS,
    )
    quarantine = pa.table(
        {"request_id": [request_id for request_id, _ in bad], "reason": [reason for _, reason in bad]},
        schema=schemas.QUARANTINE,
    )
    return tokens, quarantine
