"""Prompts in, samples out: one unit of a generate task.

Sample i of a prompt has the same seed at every λ (common random numbers): what differs between two λs is the model's doing.
Samples of a prompt are requests of their own, which share the prompt through the prefix cache. A unit's result depends on
the unit alone: the cache starts empty, and all requests are added, in a fixed order, before the engine's first step.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from contract import schemas
from contract.thinking import answer_part
from serve.engine import Engine
from serve.hooks.seeded_draws import Draw, Drawn
from serve.refusals import refuse_prompt
from serve.scoring import UnitScores, score_unit
from serve.settings import Sampling

_NO_NUMBERS = "the engine's logits were NaN or infinity"
_SEAM_TOKENS = 16  # so many tokens of a prompt tell what is between it and a sample


class Question(Protocol):
    """Asks a model whether answers are right."""

    @property
    def identity(self) -> list[str]:
        """Return what tables say of the question."""

    @property
    def tokens(self) -> int:
        """Return how many tokens of a request are to be kept for the question."""

    def requests(self, prompts: Sequence[str], answers: Sequence[str]) -> pa.Table:
        """Return `schemas.REQUESTS` with two rows for each answer: that it is right, and that it is wrong.

        Answers are as they stand behind their prompts, white space in front included.
        """


@dataclass(frozen=True, slots=True)
class UnitSamples:
    """A unit's tables and what they cost."""

    generations: pa.Table
    quarantine: pa.Table
    prompt_tokens: int  # the prompts of all requests have so many tokens
    cached_tokens: int  # so many tokens of prompts were read from the prefix cache
    new_tokens: int  # so many tokens were sampled


def sample_unit(
    engine: Engine,
    prompts: pa.Table,
    lam: str,
    sampling: Sampling,
    decode: Callable[[Sequence[int]], str],
    tokenizer: Any = None,
    question: Question | None = None,
) -> UnitSamples:
    """Sample every prompt of a unit at the engine's current λ.

    A prompt has all of its samples in the table, or it is in quarantine.

    Args:
        engine: already switched to `lam`.
        prompts: rows of `schemas.PROMPTS`.
        lam: canonical point, written into the table.
        sampling: of the task.
        decode: tokens → text.
        tokenizer: which the texts of `sampling.until` are seen with while the engine samples; without one a sample goes on
            to its end, and only its text is cut.
        question: is asked of each sample, and its two log-probabilities then stand in the table. The prefix cache still has
            the prompts, and the samples.

    Raises:
        EngineError: the engine failed; nothing of the unit may be used.
    """
    engine.clear_prefix_cache()
    ids, tokens = prompts.column("request_id").to_pylist(), prompts.column("token_ids").to_pylist()
    reasons: dict[int, str] = {}
    most = sampling.max_tokens + (question.tokens if question else 0)
    draws: list[Draw] = []
    drawn_of: list[tuple[int, int]] = []  # request_id, sample
    for request_id, token_ids in zip(ids, tokens, strict=True):
        reason = refuse_prompt(token_ids, most, engine.settings.max_model_len, engine.vocab_size)
        if reason is not None:
            reasons[request_id] = reason
            continue
        for sample in range(sampling.samples):
            draws.append(Draw(token_ids, seed_of(request_id, token_ids, sample)))
            drawn_of.append((request_id, sample))
    stops = [token for token in sampling.stop_token_ids if token < engine.vocab_size]  # vLLM refuses others
    answers = engine.sample(draws, replace(sampling, stop_token_ids=tuple(stops)), tokenizer)
    for (request_id, _), drawn in zip(drawn_of, answers.drawn, strict=True):
        if not drawn.is_finite:
            reasons[request_id] = _NO_NUMBERS
    rows = [
        (request_id, sample, draw.seed, drawn)
        for (request_id, sample), draw, drawn in zip(drawn_of, draws, answers.drawn, strict=True)
        if request_id not in reasons
    ]
    table = _table(rows, lam, set(stops), decode, sampling)
    prompt_tokens, cached_tokens = answers.prompt_tokens, answers.cached_tokens
    if question is not None:
        texts = dict(zip(ids, prompts.column("prompt").to_pylist(), strict=True))
        prompt_ids, owner = dict(zip(ids, tokens, strict=True)), table["request_id"].to_pylist()
        written = [
            _seam(prompt_ids[one], sample, decode) + text if text else text
            for one, sample, text in zip(
                owner, *(table[name].to_pylist() for name in ("token_ids", "text")), strict=True
            )
        ]
        requests = question.requests([texts[one] for one in owner], written)
        scores = score_unit(engine, requests, lam, starts_empty=False)
        table = _with_answers(table, scores, reasons)
        prompt_tokens, cached_tokens = prompt_tokens + scores.prompt_tokens, cached_tokens + scores.cached_tokens
    bad = [(request_id, reasons[request_id]) for request_id in ids if request_id in reasons]
    return UnitSamples(
        table,
        pa.table({"request_id": [one for one, _ in bad], "reason": [why for _, why in bad]}, schema=schemas.QUARANTINE),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        new_tokens=sum(len(drawn.token_ids) for drawn in answers.drawn),
    )


def seed_of(request_id: int, token_ids: Sequence[int], sample: int) -> int:
    """Return a seed of 63 bits: of the prompt's place in its file, its tokens and the number of the sample.

    vLLM's CPU generators (mt19937) use its lower 32 bits only: of 16 samples, two share them once in 36 million prompts.
    """
    digest = hashlib.sha256(np.array([request_id, sample, *token_ids], "<i8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def cut(text: str, until: Sequence[str]) -> str:
    """Return a text up to the first of the texts that end it, as lm-eval's `postprocess_generated_text` does."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text


def _table(
    rows: Sequence[tuple[int, int, int, Drawn]],
    lam: str,
    stops: set[int],
    decode: Callable[[Sequence[int]], str],
    sampling: Sampling,
) -> pa.Table:
    texts = []
    for *_, drawn in rows:
        ends = drawn.token_ids and drawn.token_ids[-1] in stops
        part = answer_part(drawn.token_ids[:-1] if ends else drawn.token_ids, decode, sampling.think_end_token)
        texts.append(cut(part.text, sampling.until or ()))
    columns = {
        "request_id": [request_id for request_id, *_ in rows],
        "sample": [sample for _, sample, *_ in rows],
        **schemas.place_columns(lam, len(rows)),
        "seed": [seed for _, _, seed, _ in rows],
        "token_ids": [list(drawn.token_ids) for *_, drawn in rows],
        "text": texts,
        "finish_reason": [drawn.finish_reason for *_, drawn in rows],
        "logprobs": [drawn.record.logprob for *_, drawn in rows],
        "ranks": [drawn.record.rank for *_, drawn in rows],
        "top1_ids": [drawn.record.top1 for *_, drawn in rows],
        "top1_logprobs": [drawn.record.top1_logprob for *_, drawn in rows],
        "entropies": [drawn.record.entropy for *_, drawn in rows],
    }
    return pa.table(columns, schema=schemas.GENERATIONS)


def _seam(prompt: Sequence[int], sample: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    """Return what a decoder leaves out in front of a sample, and not behind its prompt: the space of Llama 2's `▁Paris`."""
    tail = list(prompt[-_SEAM_TOKENS:])
    before, alone, both = decode(tail), decode(sample), decode([*tail, *sample])
    seam = both[len(before) : len(both) - len(alone)]
    return seam if both == before + seam + alone else ""


def _with_answers(table: pa.Table, scores: UnitScores, reasons: dict[int, str]) -> pa.Table:
    """Put what the model said of each sample beside it; a prompt of which it said nothing is left out, with the reason."""
    owner = table["request_id"].to_pylist()
    for number, why in zip(*(scores.quarantine[name].to_pylist() for name in ("request_id", "reason")), strict=True):
        reasons.setdefault(owner[number // 2], f"whether its answer is right cannot be asked: {why}")
    said = dict(zip(*(scores.tokens[name].to_pylist() for name in ("request_id", "logprobs")), strict=True))
    kept = [place for place, request_id in enumerate(owner) if request_id not in reasons]
    table = table.take(pa.array(kept, pa.int64())).combine_chunks()
    for choice, field in enumerate(schemas.P_TRUE):
        table = table.append_column(field, pa.array([sum(said[2 * place + choice]) for place in kept], field.type))
    return table
