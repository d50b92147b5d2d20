"""P(True): what a model is asked about its own answer, in which tokens, and what happens where it cannot be asked."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contract import schemas
from contract.errors import TaskError
from contract.units import Unit
from lambdasweep.tasks.answers import answers_of
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.p_true import KADAVATH, question_of
from lambdasweep.tasks.tokens import load_tokenizer
from ray_jobs.work import GenerateSource
from serve.engine import EngineScores, Prompt
from serve.hooks.seeded_draws import Drawn, Draws, TokenRecord
from serve.sampling import sample_unit
from serve.settings import EngineSettings, Sampling
from tests.support.checkpoints import write_tokenizer

OWN = r"Is it right?\nA. yes\nB. no\nLetter:"
TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SKIPS = "{% for turn in messages if turn.role == 'user' %}{{ turn.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(root)
    return load_tokenizer(root)


@pytest.mark.parametrize(
    ("asked", "behind"),
    [
        (KADAVATH, "\nIs the proposed answer:\n (A) True\n (B) False\nThe proposed answer is: ("),
        (OWN, "\nIs it right?\nA. yes\nB. no\nLetter: "),
        (OWN + " ", "\nIs it right?\nA. yes\nB. no\nLetter: "),
    ],
)
def test_a_question_follows_the_answer(asked: str, behind: str, tokenizer: Any) -> None:
    question, problems = question_of(asked, tokenizer, None)
    assert question is not None
    assert not problems
    rows = question.requests(["Q: a?\nA:", "Q: b?\nA:"], [" an e", ""])
    texts = ["Q: a?\nA: an e", "Q: b?\nA:"]
    expected = tokenizer([text + behind + letter for text in texts for letter in "AB"])["input_ids"]
    assert rows["token_ids"].to_pylist() == expected
    assert rows.schema.equals(schemas.REQUESTS)
    for ids, start, letter in zip(expected, rows["continuation_start"].to_pylist(), "ABAB", strict=True):
        assert tokenizer.decode(ids[start:]).strip() == letter
    assert question.tokens > len(tokenizer([behind])["input_ids"][0])


def test_in_a_chat_the_question_is_a_turn(tokenizer: Any) -> None:
    chat = ChatTemplate(TEMPLATE, tokenizer)
    question, problems = question_of(KADAVATH, tokenizer, chat)
    assert question is not None
    assert not problems
    asked = "Is the proposed answer:\n (A) True\n (B) False\nThe proposed answer is:"
    turns = [("user", "Q: a?"), ("assistant", " an e \n"), ("user", asked)]
    whole = chat([{"role": role, "content": content} for role, content in turns])
    prompt = chat([{"role": "user", "content": "Q: a?"}])
    rows = question.requests([prompt], [" an e \n"])
    assert rows["token_ids"].to_pylist() == tokenizer([whole + "(A", whole + "(B"])["input_ids"]
    assert question.asked == asked


@pytest.mark.parametrize(
    ("asked", "template", "says"),
    [
        ("right?", None, "p_true is 'right?', and a question says what A and B mean"),
        ("kadavat", None, "p_true is 'kadavat'"),
        (KADAVATH, SKIPS, "the chat template does not show a question after an answer: leave --p-true out"),
        (KADAVATH, "{{ raise_exception('no') }}", "does not render a question after an answer (TemplateError: no)"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(
    asked: str, template: str | None, says: str, tokenizer: Any, tmp_path: Path
) -> None:
    chat = ChatTemplate(template, tokenizer) if template else None
    question, (problem,) = question_of(asked, tokenizer, chat)
    assert question is None
    assert says in problem
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Q: a?", "answers": ["sand"]}))
    if chat is None:
        with pytest.raises(TaskError) as refused:
            answers_of(read_documents(TaskSpec("quiz", file, format="generate", p_true=asked)), tokenizer, ())
        assert list(refused.value.problems) == [problem]


def test_what_was_asked_is_recorded(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Q: a?", "answers": ["sand"]}))
    spec, built, _ = answers_of(read_documents(TaskSpec("quiz", file, format="generate", p_true=OWN)), tokenizer, ())
    assert spec.p_true == "Is it right?\nA. yes\nB. no\nLetter:"
    assert built.question is not None
    source = GenerateSource("/run", "quiz", built.table, "hash", Sampling(1, 0.0, 4, (1,)), tokenizer, built.question)
    unit = Unit("quiz", "0.5", 0, 0, 1, 1)
    assert source.open(unit).identity["p_true"] == [built.question.right, built.question.wrong]
    assert "p_true" not in dataclasses.replace(source, question=None).open(unit).identity


class _Engine:
    """Samples the token 5 and its end, and gives every letter the logprob −(tokens of its prompt) / 100."""

    vocab_size = 512
    settings = EngineSettings("cpu", "float32", 200)

    def __init__(self, broken: int) -> None:
        self.log: list[str] = []
        self._broken = broken

    def clear_prefix_cache(self) -> None:
        self.log.append("clear")

    def sample(self, draws: Any, sampling: Any, tokenizer: Any) -> Draws:
        self.log.append("sample")
        none = np.zeros(2, np.float32)
        record = TokenRecord(none, none.astype(np.int32), none.astype(np.int32), none, none)
        return Draws([Drawn((5, 1), "stop", True, record) for _ in draws], 0, 0)

    def score(self, prompts: list[Prompt]) -> EngineScores:
        self.log.append("score")
        asked = [(number, len(one.token_ids) - 1, token) for number, one in enumerate(prompts) for token in one.last]
        prompt, row, token = (np.array(column) for column in zip(*asked, strict=True))
        logprob = np.array([np.nan if number == self._broken else -(at + 1) / 100 for number, at, _ in asked])
        logprob[1::2] -= 1.0
        return EngineScores(prompt, row, token, logprob, row, token, logprob, 7, 3)


def test_a_document_that_cannot_be_asked_about_is_quarantined(tokenizer: Any) -> None:
    """All of its samples are left out, and its reason says that it is the question's."""
    question, _ = question_of(OWN, tokenizer, None)
    texts = ["a b", "a b c", "x" * 190, "the"]
    columns = {
        "request_id": range(4),
        "doc_id": list("wxyz"),
        "prompt": texts,
        "token_ids": tokenizer(texts)["input_ids"],
    }
    prompts = pa.table(columns, schema=schemas.PROMPTS)
    engine: Any = _Engine(broken=3)  # the second sample of the second prompt
    decode = lambda ids: tokenizer.decode(ids)  # noqa: E731
    found = sample_unit(engine, prompts, "0.5", Sampling(2, 1.0, 8, (1,)), decode, None, question)
    assert engine.log == ["clear", "sample", "score"]  # the cache is not cleared again
    assert found.generations["request_id"].to_pylist() == [0, 0, 3, 3]
    reasons = {row["request_id"]: row["reason"] for row in found.quarantine.to_pylist()}
    assert reasons.keys() == {1, 2}
    assert reasons[1] == "whether its answer is right cannot be asked: the engine returned NaN or infinity"
    assert "are more than the 200 the engine takes" in reasons[2]
    length = (
        len(tokenizer(["a b" + tokenizer.decode([5]) + "\nIs it right?\nA. yes\nB. no\nLetter: A"])["input_ids"][0]) - 1
    )
    row = found.generations.slice(1, 1).to_pylist()[0]
    assert [row["true_logprob"], row["false_logprob"]] == pytest.approx([-length / 100, -length / 100 - 1])
    assert (found.prompt_tokens, found.cached_tokens) == (7, 3)
    plain = sample_unit(engine, prompts.slice(0, 1), "0.5", Sampling(2, 1.0, 8, (1,)), decode)
    assert plain.generations.schema.equals(schemas.GENERATIONS)
