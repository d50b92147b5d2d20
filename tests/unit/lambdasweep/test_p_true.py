"""P(True): what a model is asked about its own answer, in which tokens, and what happens where it cannot be asked."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
from tests.support.checkpoints import SPECIAL, write_tokenizer

OWN = r"Is it right?\nA. yes\nB. no\nLetter:"
TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPACED = (
    "{% for turn in messages %}{% if turn.role == 'user' %}[INST] {{ turn.content }} [/INST]"
    "{% else %} {{ turn.content | trim }} </s>{% endif %}{% endfor %}"
)
THINKS = TEMPLATE.replace("<assistant>{% endif", "<assistant><think>\n{% endif")
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
    # A system message stands in front of the prompt, and the question asks behind an answer.
    briefed, problems = question_of(KADAVATH, tokenizer, chat.asked("Be brief."))
    assert not problems
    assert briefed is not None
    assert briefed.requests([prompt], [" an e \n"]).equals(rows)


def test_a_reply_is_written_as_the_template_writes_it(tokenizer: Any) -> None:
    """Llama 2's template has a space behind [/INST] that its prompt has not, and a prompt may begin the reply itself."""
    chat = ChatTemplate(SPACED, tokenizer)
    question, problems = question_of(KADAVATH, tokenizer, chat)
    assert question is not None
    assert not problems
    asked = {"role": "user", "content": question.asked}
    user = {"role": "user", "content": "Q: a?"}
    begun = chat([user, {"role": "assistant", "content": "The best answer is"}], add_generation_prompt=False)
    rows = question.requests([chat([user]), begun], [" an e \n", " C.\n"])
    turns = [[user, {"role": "assistant", "content": text}, asked] for text in ("an e", "The best answer is C.")]
    expected = [chat(some) + letter for some in turns for letter in ("(A", "(B")]
    assert "[/INST] The best answer is C. </s>" in expected[2]
    assert rows["token_ids"].to_pylist() == tokenizer(expected)["input_ids"]


@pytest.mark.parametrize(
    ("asked", "template", "says"),
    [
        (
            KADAVATH,
            THINKS,
            "opens a reply with what it does not put in front of an answer that is there, such as an open <think>",
        ),
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


def test_thoughts_can_be_left_out_in_a_chat_only(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Q: a?", "answers": ["sand"]}))
    spec = TaskSpec("quiz", file, format="generate", p_true=KADAVATH, think_end_token="</think>")
    with pytest.raises(TaskError, match="an answer behind thoughts can be asked about in a chat only") as refused:
        answers_of(read_documents(spec), tokenizer, ())
    assert len(refused.value.problems) == 1
    in_chat = dataclasses.replace(spec, template="chat")
    built = answers_of(read_documents(in_chat), tokenizer, (), ChatTemplate(TEMPLATE, tokenizer))[1]
    assert built.question is not None


class _Engine:
    """Samples the token 5 and its end, and gives every letter the logprob −(tokens of its prompt) / 100."""

    vocab_size = 512
    settings = EngineSettings("cpu", "float32", 200)

    def __init__(self, broken: int, written: tuple[int, ...] = (5, 1)) -> None:
        self.log: list[str] = []
        self.asked: list[list[int]] = []
        self._broken, self._written = broken, written

    def clear_prefix_cache(self) -> None:
        self.log.append("clear")

    def sample(self, draws: Any, sampling: Any, tokenizer: Any) -> Draws:
        self.log.append("sample")
        none = np.zeros(len(self._written), np.float32)
        record = TokenRecord(none, none.astype(np.int32), none.astype(np.int32), none, none)
        return Draws([Drawn(self._written, "stop", True, record) for _ in draws], 0, 0)

    def score(self, prompts: list[Prompt]) -> EngineScores:
        self.log.append("score")
        self.asked += [list(one.token_ids) for one in prompts]
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


def test_the_question_has_the_tokens_of_the_prompt_and_the_answer(tokenizer: Any) -> None:
    """A decoder like that of Llama 2 leaves out the space in front of a text, which is there all the same."""
    letters = sorted({*"▁\n.:?()", *map(chr, range(48, 58)), *map(chr, range(65, 91)), *map(chr, range(97, 123))})
    model = models.BPE({text: number for number, text in enumerate([*SPECIAL, *letters])}, [])
    spaced = tokenizers.Tokenizer(model)
    spaced.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first")
    spaced.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bos, eos, _ = SPECIAL
    like_llama = PreTrainedTokenizerFast(tokenizer_object=spaced, bos_token=bos, eos_token=eos)
    prompt = "The capital is"
    for one, answer in ((like_llama, " Paris"), (like_llama, "\nParis"), (tokenizer, " Paris"), (tokenizer, "Paris")):
        asked, _ = question_of(OWN, one, None)
        before = one([prompt])["input_ids"][0]
        written = one([prompt + answer])["input_ids"][0][len(before) :]
        columns = {"request_id": [0], "doc_id": ["a"], "prompt": [prompt], "token_ids": [before]}
        engine: Any = _Engine(-1, (*written, 1))
        decode = lambda ids, one=one: one.decode(ids, skip_special_tokens=True)  # noqa: E731
        found = sample_unit(
            engine, pa.table(columns, schema=schemas.PROMPTS), "0.5", Sampling(1, 1.0, 20, (1,)), decode, None, asked
        )
        assert found.generations["text"].to_pylist() == [answer.lstrip(" ") if one is like_llama else answer]
        assert engine.asked
        for ids in engine.asked:
            assert ids[: len(before) + len(written)] == before + written
            assert one.decode(ids[len(before) + len(written) :]).startswith("\nIs it right?")
