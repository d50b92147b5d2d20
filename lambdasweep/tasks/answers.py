"""This module says how the answers of a task are sampled, and makes prompts and grades of rows of one's own.

Rows of `--format generate` are objects `{"prompt": "Which metal is liquid?", "answers": ["mercury", "quicksilver"]}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from contract.schemas import PROMPTS
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import TaskFile, task_error, unescaped
from lambdasweep.tasks.equivalence import read_equivalence
from lambdasweep.tasks.formats import draw_shots, in_chat, render, template_of
from lambdasweep.tasks.normalise import NORMALISERS, is_right, numbers_in
from lambdasweep.tasks.p_true import question_of
from lambdasweep.tasks.prompts import BuiltPrompts
from lambdasweep.tasks.requests import batches, content_sha256
from lambdasweep.tasks.tokens import Tokenizer, encode_prompts
from lambdasweep.tasks.verbalised import pattern_problems, said_in, without

MAX_TOKENS = 256  # lm-eval's default, for rows of one's own too
METRIC = "exact_match"  # an output of rows of one's own is right where its answer is of the class of one of the row's
NORMALISER = "auto"


@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """How the outputs of a task are sampled, and what is known of where they come from; settled, nothing is left open.

    Attributes:
        samples: outputs of each document; 1 where they would all be the same, because the likeliest tokens are taken.
        until: the texts that an output ends before, the end token's text among them.
        normaliser: one of `normalise.NORMALISERS`.
        equivalence: the hash of the model that says which answers mean the same.
        metric: what an output is right by, where it is 1: exact_match, or lm-eval's `metric,filter`.
        think_end_token: a text, or a token's id, that ends the thinking before an answer.
        p_true: the words that ask the model whether an answer is right.
        verbalised: the regular expression that finds how sure an output says it is.
        verbalised_suffix: the text behind each prompt that asks for it.
    """

    name: str
    source: str
    format: str
    shots: int
    limit: int | None
    seed: int
    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    until: tuple[str, ...]
    normaliser: str
    metric: str
    chat: bool = False
    equivalence: str | None = None
    system_prompt: str | None = None
    think_end_token: str | None = None
    p_true: str | None = None
    verbalised: str | None = None
    verbalised_suffix: str | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of one output."""

    answer: str  # as it was found in the output
    answer_class: str  # normalised
    correct: bool
    metrics: dict[str, float]
    start: int | None = None  # the place of the answer in the output; None where it is the last one at which it stands


class Grader(Protocol):
    """Grades outputs of one task."""

    def question(self, request_id: int) -> str:
        """Return the question of a request, without solved examples."""

    def grade(self, outputs: Sequence[tuple[int, str]]) -> list[Grade]:
        """Return the grade of each output (request_id, text), in their order.

        Raises:
            LambdasweepError: the task's own functions failed.
        """


@dataclass(frozen=True, slots=True)
class RowGrader:
    """Grades outputs of rows of one's own."""

    answers: tuple[tuple[str, ...], ...]  # the right answers of each request
    normaliser: str
    verbalised: str | None = None  # finds how sure an output says it is, which is no part of its answer
    questions: tuple[str, ...] = ()  # the question of each request

    def question(self, request_id: int) -> str:
        return self.questions[request_id]

    def grade(self, outputs: Sequence[tuple[int, str]]) -> list[Grade]:
        grades = []
        for request_id, text in outputs:
            said = said_in(text, self.verbalised) if self.verbalised else None
            found = NORMALISERS[self.normaliser](without(text, said))
            start = found.start
            if said and start is not None and start >= said.start:
                start += said.end - said.start
            right = is_right(found, self.answers[request_id], self.normaliser)
            grades.append(Grade(found.answer, found.answer_class, right, {METRIC: float(right)}, start))
        return grades


def end_text(tokenizer: Tokenizer) -> str | None:
    """Return the text of the end token, which lm-eval's models take as one more text that ends an output."""
    if tokenizer.eos_token_id is None:
        return None
    return tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=False)


def with_end(until: Sequence[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the texts that an output ends before, with that of the end token."""
    end = end_text(tokenizer)
    return (*until, end) if end and end not in until else tuple(until)


def end_tokens(stop_token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that an output ends with: the checkpoint's, and the tokenizer's end token, as in lm-eval."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(sorted({*stop_token_ids, *own}))


def think_end_problems(think_end_token: str | None, tokenizer: Tokenizer) -> list[str]:
    """Return what is wrong with an end of thinking, if anything: one that no output has would make answers of thoughts."""
    if think_end_token is None:
        return []
    asked = f"think_end_token is {think_end_token!r}"
    if not think_end_token:
        return [f"{asked}: give a text that ends thinking, or the id of a token"]
    if think_end_token.isdecimal():
        if int(think_end_token) in tokenizer.get_vocab().values():
            return []
        return [f"{asked}, and the tokenizer has no token with this id: give the id of one, or a text"]
    ids = tokenizer([think_end_token], add_special_tokens=False)["input_ids"][0]
    read = tokenizer.decode(ids, skip_special_tokens=True)
    if think_end_token in read:
        return []
    special = [token for token in ids if not tokenizer.decode([token], skip_special_tokens=True)]
    if special:
        # Of several the last one: what is behind it is the answer.
        return [f"{asked}, and the texts of outputs have no special tokens: give {special[-1]}, the id of the token"]
    return [f"{asked}, and the tokenizer reads it back as {read!r}: give the id of the token that ends thinking"]


def answers_of(
    file: TaskFile, tokenizer: Tokenizer, stop_token_ids: Sequence[int], chat: ChatTemplate | None = None
) -> tuple[AnswerSpec, BuiltPrompts, RowGrader]:
    """Turn a task file of format `generate` that was read into prompts.

    Args:
        file: the rows.
        tokenizer: the tokenizer, whose own default decides on special tokens.
        stop_token_ids: the checkpoint's.
        chat: the chat template, which is needed, and used, only if `file.spec.chat` is set.

    Raises:
        TaskError: the chat template does not render, rows have no answer that an output could give, or no output could have
            what ends its thinking.
    """
    spec = file.spec
    kind = spec.normaliser or NORMALISER
    no_answer = [
        f"line {document.line}: the normaliser {kind} finds no answer in {list(document.choices)}, so that no output could "
        "be right: mend the answers, or give another --normaliser"
        for document in file.documents
        if not any(NORMALISERS[kind](answer).answer_class for answer in document.choices)
    ]
    chat = chat if spec.chat else None
    question, of_question = question_of(spec.p_true, tokenizer, chat, spec.think_end_token)
    equivalence, of_model = read_equivalence(spec.equivalence)
    of_pattern = pattern_problems(spec.verbalised, spec.verbalised_suffix) + of_model
    if problems := no_answer + think_end_problems(spec.think_end_token, tokenizer) + of_question + of_pattern:
        raise task_error(spec.name, spec.file, problems)
    shots, documents = draw_shots(file.documents, spec.shots, spec.limit, spec.seed)
    suffix = unescaped(spec.verbalised_suffix or "")
    asked = [replace(document, query=document.query + suffix) for document in documents]
    prompts = [render(document, file.kind, spec.format) for document in asked]
    texts = [prompt.context for prompt in in_chat(prompts, shots, file.kind, spec, chat)]
    until: tuple[str, ...] = ("\n\n",) if spec.shots and spec.until is None else ()
    if spec.until:
        until = (unescaped(spec.until),)
    temperature = float(spec.temperature or 0.0)
    settled = AnswerSpec(
        name=spec.name,
        source=spec.source,
        format=spec.format,
        shots=spec.shots,
        limit=spec.limit,
        seed=spec.seed,
        samples=(spec.repeats or 1) if temperature else 1,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        max_tokens=spec.max_tokens or MAX_TOKENS,
        until=with_end(until, tokenizer),
        normaliser=kind,
        metric=METRIC,
        chat=spec.chat,
        equivalence=equivalence.recorded if equivalence else None,
        system_prompt=spec.system_prompt,
        think_end_token=spec.think_end_token,
        p_true=question.asked if question else None,
        verbalised=spec.verbalised,
        verbalised_suffix=suffix or None,
    )
    table = prompts_table([document.doc_id for document in documents], texts, tokenizer)
    built = BuiltPrompts(
        table=table,
        warnings=(
            file.warnings
            + greedy_warnings(spec.name, spec.repeats, temperature)
            + (_several_numbers(file) if kind == "number" else ())
        ),
        sha256=file.sha256,
        requests_sha256=content_sha256(table),
        stop_token_ids=end_tokens(stop_token_ids, tokenizer),
        tokenizer=tokenizer,
        chat_template_sha256=chat.sha256 if chat else None,
        template=template_of(file.kind, spec),
        question=question,
        equivalence=equivalence,
    )
    return (
        settled,
        built,
        RowGrader(
            tuple(document.choices for document in documents),
            settled.normaliser,
            spec.verbalised,
            tuple(document.query for document in documents),
        ),
    )


def _several_numbers(file: TaskFile) -> tuple[str, ...]:
    """Say that right answers have several numbers, of which one counts."""
    several = [
        (document.doc_id, answer)
        for document in file.documents
        for answer in document.choices
        if numbers_in(answer) > 1
    ]
    if not several:
        return ()
    told = f"{len(several)} right answers have several numbers, of which the normaliser takes the last"
    return (f"task {file.spec.name}: {told}: {several[0][1]!r} of {several[0][0]} is the first",)


def greedy_warnings(name: str, repeats: int | None, temperature: float) -> tuple[str, ...]:
    """Say that a number of samples was asked for, and that they would all be the same."""
    if not repeats or repeats == 1 or temperature:
        return ()
    return (f"task {name}: at temperature 0 all {repeats} samples are the same, so one is made: give --temperature",)


def prompts_table(doc_ids: Sequence[str], texts: Sequence[str], tokenizer: Tokenizer) -> pa.Table:
    """Return the requests table of prompts, as `schemas.PROMPTS`."""
    columns: dict[str, Any] = {
        "request_id": range(len(texts)),
        "doc_id": list(doc_ids),
        "prompt": list(texts),
        "token_ids": [ids for batch in batches(texts) for ids in encode_prompts(tokenizer, batch)],
    }
    return pa.table(columns, schema=PROMPTS)
