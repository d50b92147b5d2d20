"""This module scores the requests of one unit: it plans the prompts, and turns the engine's answers into logprobs.

A continuation's tokens are predicted by the rows from the last context token to the one before its end, so a prompt is the
request without its last token. Requests of a document that differ in their last token only share one prompt: answers of one
token each (letters) cost one prompt per document. Where a request begins like an earlier one of its document, even beyond
the context, the rows they have in common are scored once, in the earlier one. Whatever else prompts of a unit have in
common, such as context and few-shot examples, they share through the prefix cache, block by block.

A unit's result depends on the unit alone: the cache starts empty, and all prompts are added, in a fixed order, before the
engine's first step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa

from contract import schemas
from contract.errors import EngineError
from serve.engine import Engine, Prompt
from serve.refusals import refuse_request

AnswerKey = tuple[int, int, int]  # prompt, row, token


@dataclass(frozen=True, slots=True)
class Request:
    """One row of the requests table."""

    request_id: int
    doc_id: str
    token_ids: list[int]
    start: int  # index of the first continuation token


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of a request have one entry for each continuation token. Logprobs are in nats."""

    logprobs: list[float]
    ranks: list[int]
    top1_ids: list[int]
    top1_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class UnitScores:
    """A unit's tables, and what they cost."""

    tokens: pa.Table
    quarantine: pa.Table
    prompt_tokens: int  # the tokens of all prompts
    cached_tokens: int  # how many of them were read from the prefix cache


def score_unit(engine: Engine, requests: pa.Table, lam: str, starts_empty: bool = True) -> UnitScores:
    """Score every request of a unit at the engine's current λ.

    Args:
        engine: already switched to `lam`.
        requests: rows of `schemas.REQUESTS`, whole documents.
        lam: canonical point, written into the table.
        starts_empty: whether the prefix cache is cleared before; it is not where this is the second part of a unit.

    Raises:
        EngineError: the engine failed; nothing of the unit may be used.
    """
    if starts_empty:
        engine.clear_prefix_cache()
    scored: dict[int, Score | str] = {}
    fit: list[Request] = []
    for request in read_requests(requests):
        reason = refuse_request(request.token_ids, request.start, engine.settings.max_model_len, engine.vocab_size)
        if reason is None:
            fit.append(request)
        else:
            scored[request.request_id] = reason
    prompts, keys_of = prompts_of(fit)
    answers = engine.score(prompts)
    entry_of = {
        key: entry
        for entry, key in enumerate(
            zip(answers.prompt.tolist(), answers.row.tolist(), answers.token.tolist(), strict=True)
        )
    }
    for request, keys in zip(fit, keys_of, strict=True):
        try:
            entries = [entry_of[key] for key in keys]
        except KeyError:
            raise EngineError(f"the engine did not answer request {request.request_id}") from None
        score = Score(
            answers.logprob[entries].tolist(),
            answers.rank[entries].tolist(),
            answers.top1[entries].tolist(),
            answers.top1_logprob[entries].tolist(),
        )
        scored[request.request_id] = _finite(score)
    return UnitScores(
        *_tables(requests.column("request_id").to_pylist(), scored, lam),
        prompt_tokens=answers.prompt_tokens,
        cached_tokens=answers.cached_tokens,
    )


def prompts_of(requests: Sequence[Request]) -> tuple[list[Prompt], list[list[AnswerKey]]]:
    """Return the prompts that score some requests, and for each request where its tokens' scores are.

    Args:
        requests: those of a document follow each other; each has a context and a continuation.
    """
    prompts: list[_Draft] = []
    keys_of: list[list[AnswerKey]] = []
    for _, group in groupby(requests, key=lambda request: request.doc_id):
        seen: list[tuple[Request, list[AnswerKey]]] = []
        by_prompt: dict[tuple[int, ...], int] = {}
        for request in group:
            ids = request.token_ids
            # Tokens that an earlier request has in the same place, after the same tokens, are scored there.
            common, known = request.start, []
            for earlier, keys in seen:
                shared = _common(earlier.token_ids, ids)
                if earlier.start <= request.start and shared > common:
                    common, known = shared, keys[request.start - earlier.start : shared - earlier.start]
            found = list(known)
            if common < len(ids):
                key = tuple(ids[:-1])
                number = by_prompt.setdefault(key, len(prompts))
                if number == len(prompts):
                    prompts.append(_Draft(ids[:-1], common - 1, []))
                draft = prompts[number]
                draft.first_row = min(draft.first_row, common - 1)
                draft.last.append(ids[-1])
                found += [(number, row, ids[row + 1]) for row in range(common - 1, len(ids) - 1)]
            seen.append((request, found))
            keys_of.append(found)
    return [Prompt(draft.token_ids, draft.first_row, draft.last) for draft in prompts], keys_of


@dataclass(slots=True)
class _Draft:
    """A prompt that is being made."""

    token_ids: list[int]
    first_row: int
    last: list[int]


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    shortest = min(len(one), len(two))
    return next((index for index in range(shortest) if one[index] != two[index]), shortest)


def read_requests(requests: pa.Table) -> Iterator[Request]:
    """Yield the rows of `schemas.REQUESTS`."""
    columns = (
        requests.column(name).to_pylist() for name in ("request_id", "doc_id", "token_ids", "continuation_start")
    )
    for row in zip(*columns, strict=True):
        yield Request(*row)


def _finite(score: Score) -> Score | str:
    """Tell whether scores can be kept: NaN and +∞ are no logprobs, and −∞ (probability 0) is one."""
    numbers = [*score.logprobs, *score.top1_logprobs]
    if any(math.isnan(value) or value == math.inf for value in numbers):
        return "the engine returned NaN or infinity"
    return score


def _tables(request_ids: list[int], scored: dict[int, Score | str], lam: str) -> tuple[pa.Table, pa.Table]:
    good: list[tuple[int, Score]] = []
    bad: list[tuple[int, str]] = []
    for request_id in request_ids:
        found = scored[request_id]
        if isinstance(found, str):
            bad.append((request_id, found))
        else:
            good.append((request_id, found))
    tokens = pa.table(
        {
            "request_id": [request_id for request_id, _ in good],
            **schemas.place_columns(lam, len(good)),
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
