"""The scoring plan asks about every continuation token once, in the right place, and computes nothing in vain.

The engine is a table of numbers that stands for any model: what it says of a token depends on all tokens before it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import schemas
from contract.errors import EngineError
from serve.engine import EngineScores, Prompt
from serve.scoring import Request, prompts_of, score_unit

VOCAB = 5


def says(prefix: Sequence[int], token: int) -> tuple[float, int, int, float]:
    """Return the logprob and rank of a token after a prefix, and the most likely token with its logprob."""
    seed = hash((tuple(prefix), "model"))
    logits = np.random.default_rng(abs(seed)).normal(size=VOCAB)
    logprobs = logits - np.log(np.exp(logits).sum())
    return (
        float(logprobs[token]),
        int((logprobs > logprobs[token]).sum()) + 1,
        int(logprobs.argmax()),
        float(logprobs.max()),
    )


class Table:
    """This scores prompts as `serve.engine.Engine` does, in an order of its own."""

    vocab_size = VOCAB
    settings = type("Settings", (), {"max_model_len": 12})

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.forget: list[int] = []
        self.spoil: float | None = None

    def clear_prefix_cache(self) -> None: ...

    def score(self, prompts: Sequence[Prompt]) -> EngineScores:
        self.prompts = list(prompts)
        rows = []
        for number, prompt in enumerate(prompts):
            ids = list(prompt.token_ids)
            for row in range(prompt.first_row, len(ids)):
                for token in prompt.last if row == len(ids) - 1 else [ids[row + 1]]:
                    rows.append((number, row, token, *says(ids[: row + 1], token)))
        rows = [row for index, row in enumerate(rows[::-1]) if index not in self.forget]
        columns = list(zip(*rows, strict=True)) or [()] * 7
        logprob = np.array(columns[3], float)
        if self.spoil is not None:
            logprob[0] = self.spoil
        prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        whole = [np.array(column, np.int64) for column in (*columns[:3], columns[4], columns[5])]
        return EngineScores(*whole[:3], logprob, *whole[3:], np.array(columns[6], float), prompt_tokens, 0)


def table_of(documents: Sequence[Sequence[tuple[list[int], list[int]]]]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for number, document in enumerate(documents):
        for context, continuation in document:
            rows.append(
                {
                    "request_id": len(rows),
                    "doc_id": str(number),
                    "choice": 0,
                    "token_ids": context + continuation,
                    "continuation_start": len(context),
                    "continuation_bytes": 1,
                    "is_gold": True,
                }
            )
    return pa.Table.from_pylist(rows, schema=schemas.REQUESTS)


tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)
documents = st.lists(
    st.one_of(
        st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)).map(lambda d: [(d[0], one) for one in d[1]]),
        st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3),  # the requests have contexts of their own
    ),
    max_size=4,
)


@given(documents=documents)
def test_every_token_gets_what_the_model_says_of_it(documents: list[list[tuple[list[int], list[int]]]]) -> None:
    engine = Table()
    requests = table_of(documents)
    scores = score_unit(engine, requests, "0.5")  # type: ignore[arg-type]
    assert scores.quarantine.num_rows == 0
    found = {row["request_id"]: row for row in scores.tokens.to_pylist()}
    assert found.keys() == set(range(requests.num_rows))
    for request in requests.to_pylist():
        ids, start = request["token_ids"], request["continuation_start"]
        said = [says(ids[:at], ids[at]) for at in range(start, len(ids))]
        row = found[request["request_id"]]
        assert row["logprobs"] == pytest.approx([one[0] for one in said])
        assert row["ranks"] == [one[1] for one in said]
        assert row["top1_ids"] == [one[2] for one in said]
        assert row["top1_logprobs"] == pytest.approx([one[3] for one in said])


@given(documents=documents)
def test_no_row_of_a_document_is_asked_about_twice(documents: list[list[tuple[list[int], list[int]]]]) -> None:
    engine = Table()
    score_unit(engine, table_of(documents), "0.5")  # type: ignore[arg-type]
    for number, document in enumerate(documents):
        requests = [
            Request(index, str(number), context + continuation, len(context))
            for index, (context, continuation) in enumerate(document)
        ]
        if len({request.start for request in requests}) > 1:
            continue  # a context can begin inside another request's continuation
        prompts, _ = prompts_of(requests)
        asked = [
            (tuple(prompt.token_ids[: row + 1]), token)
            for prompt in prompts
            for row in range(prompt.first_row, len(prompt.token_ids))
            for token in (set(prompt.last) if row == len(prompt.token_ids) - 1 else [prompt.token_ids[row + 1]])
        ]
        wanted = {
            (tuple(request.token_ids[:at]), request.token_ids[at])
            for request in requests
            for at in range(request.start, len(request.token_ids))
        }
        assert set(asked) == wanted
        assert len(asked) == len(wanted)


def request(number: int, ids: list[int], start: int, doc: str = "d") -> Request:
    return Request(number, doc, ids, start)


def test_letters_share_one_prompt() -> None:
    prompts, keys_of = prompts_of([request(choice, [1, 2, 3, 4, choice], 4) for choice in range(4)])
    assert prompts == [Prompt([1, 2, 3, 4], 3, [0, 1, 2, 3])]
    assert keys_of == [[(0, 3, choice)] for choice in range(4)]


def test_choices_are_scored_from_where_they_part() -> None:
    """A prompt's first row is where it leaves the earlier ones: up to there the cache may be read."""
    prompts, keys_of = prompts_of(
        [request(0, [1, 2, 3, 4, 0], 2), request(1, [1, 2, 3, 0, 0], 2), request(2, [1, 2, 3], 2)]
    )
    assert prompts == [Prompt([1, 2, 3, 4], 1, [0]), Prompt([1, 2, 3, 0], 2, [0])]
    assert keys_of == [[(0, 1, 3), (0, 2, 4), (0, 3, 0)], [(0, 1, 3), (1, 2, 0), (1, 3, 0)], [(0, 1, 3)]]


def test_a_context_may_begin_inside_an_earlier_continuation() -> None:
    prompts, keys_of = prompts_of([request(0, [1, 2, 3, 4, 0], 1), request(1, [1, 2, 3, 4, 1], 2)])
    assert prompts == [Prompt([1, 2, 3, 4], 0, [0, 1])]
    assert keys_of[1] == [(0, 1, 3), (0, 2, 4), (0, 3, 1)]


def test_documents_do_not_borrow_from_each_other() -> None:
    prompts, _ = prompts_of([request(0, [1, 2, 3, 4], 2, "a"), request(1, [1, 2, 3, 4], 2, "b")])
    assert prompts == [Prompt([1, 2, 3], 1, [4])] * 2


def test_a_missing_answer_fails_the_unit() -> None:
    engine = Table()
    engine.forget = [2]
    with pytest.raises(EngineError, match="the engine did not answer request 0"):
        score_unit(engine, table_of([[([1], [2, 3, 4])]]), "0.5")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_logprob_is_quarantined(value: float) -> None:
    engine = Table()
    engine.spoil = value
    scores = score_unit(engine, table_of([[([1], [2, 3])], [([2], [4])]]), "0.5")  # type: ignore[arg-type]
    assert scores.quarantine.to_pylist() == [{"request_id": 1, "reason": "the engine returned NaN or infinity"}]
    assert scores.tokens.column("request_id").to_pylist() == [0]
