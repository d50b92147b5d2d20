"""Prompts to be sampled from are read from a JSONL file into a table, the same at every λ, which is cut into shards.

Each line of the file is an object `{"prompt": "Once upon a time", "id": "a name, if it has one"}`; other keys are ignored.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from contract.errors import PairError
from contract.schemas import PROMPTS
from lambdasweep.settings import SamplingSettings, problems_of
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import (
    Document,
    check_name,
    check_text,
    json_lines,
    named,
    read_bytes,
    read_object,
    system_problems,
    task_error,
    temperature_problems,
)
from lambdasweep.tasks.equivalence import Equivalence
from lambdasweep.tasks.p_true import Question
from lambdasweep.tasks.requests import batches, content_sha256
from lambdasweep.tasks.tokens import Tokenizer, encode_prompts

_OUTPUTS = 256  # with so many at a time, more hardly make an engine faster
_MOST = 8  # times the target: the tokens of a shard at most, but for its last prompt


@dataclass(frozen=True, slots=True)
class GenerateSpec(SamplingSettings):
    """The generate task that a user asks for; nothing is checked until `read_prompts`.

    Args:
        name: the name of the task, which must be safe in file names.
        file: the JSONL file.
    """

    name: str
    file: Path

    @property
    def source(self) -> str:
        """Return the path that is recorded as the place that the task comes from."""
        return str(self.file.resolve())


@dataclass(frozen=True, slots=True)
class Prompts:
    """The checked contents of a file, cut at the task's limit, and the hash of the file's bytes."""

    spec: GenerateSpec
    documents: tuple[Document, ...]  # each document has its prompt as the query, and no choices
    sha256: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuiltPrompts:
    """A task that is ready to be sampled; the schema of `table` is `schemas.PROMPTS`. `template` is that of answers."""

    table: pa.Table
    warnings: tuple[str, ...]
    sha256: str
    requests_sha256: str
    stop_token_ids: tuple[int, ...]
    tokenizer: Tokenizer
    chat_template_sha256: str | None = None
    template: str | None = None
    question: Question | None = None  # asks whether an answer is right
    equivalence: Equivalence | None = None  # says which answers mean the same

    @property
    def question_tokens(self) -> int:
        """Return how many tokens of a request are to be kept for a question; 0 where none is asked."""
        return self.question.tokens if self.question else 0


def read_prompts(spec: GenerateSpec) -> Prompts:
    """Read and check a file of prompts; `documents.named` decides what the documents are known by.

    Raises:
        TaskError: the request or the file has problems; the error lists the first 20 of them, each with its line.
    """
    problems = check_name(spec.name) + problems_of(asdict(spec), SamplingSettings, str)
    problems += temperature_problems(spec.temperature) + system_problems(spec.system_prompt, spec.chat)
    data = read_bytes(spec.name, spec.file, problems)
    documents: list[Document] = []
    ids: list[Any] = []
    lines = 0
    for line, raw in json_lines(data):
        lines += 1
        row = read_object(line, raw, problems)
        prompt = None if row is None else check_text(line, "prompt", row.get("prompt"), problems, may_be_empty=True)
        if row is not None and prompt is not None:
            documents.append(Document(line, str(line), prompt, (), 0))
            ids.append(row.get("id"))
    if lines == 0:
        problems.append("the file is empty: give one JSON object a line")
    if problems:
        raise task_error(spec.name, spec.file, problems)
    known, warnings = named(spec.name, documents, ids)
    return Prompts(spec, known[: spec.limit], hashlib.sha256(data).hexdigest(), warnings)


def build_prompts(
    spec: GenerateSpec, tokenizer: Tokenizer, stop_token_ids: tuple[int, ...], chat: ChatTemplate | None = None
) -> BuiltPrompts:
    """Read a file of prompts and tokenise it; raises as `read_prompts` and `tokenised`."""
    return tokenised(read_prompts(spec), tokenizer, stop_token_ids, chat)


def tokenised(
    file: Prompts, tokenizer: Tokenizer, stop_token_ids: tuple[int, ...], chat: ChatTemplate | None = None
) -> BuiltPrompts:
    """Tokenise prompts that were read. A prompt without tokens keeps its row; the sampler has to quarantine it.

    Args:
        file: the prompts.
        tokenizer: the tokenizer, whose own default decides on special tokens.
        stop_token_ids: the ids at which a sample ends.
        chat: the chat template, which is needed, and used, only if `file.spec.chat` is set.

    Raises:
        TaskError: the chat template does not render, or leaves the system prompt out.
    """
    spec = file.spec
    chat = chat if spec.chat else None
    texts = [document.query for document in file.documents]
    if chat is not None:
        if problems := chat.check_system(spec.system_prompt):
            raise task_error(spec.name, spec.file, problems)
        chat = chat.asked(spec.system_prompt)
        before = [] if spec.system_prompt is None else [{"role": "system", "content": spec.system_prompt}]
        try:
            texts = [chat([*before, {"role": "user", "content": text}]) for text in texts]
        except Exception as error:  # a template is a program, which may raise anything
            problem = f"the chat template does not render it ({type(error).__name__}: {error})"
            raise task_error(spec.name, spec.file, [problem]) from error
    table = pa.table(
        {
            "request_id": range(len(texts)),
            "doc_id": [document.doc_id for document in file.documents],
            "prompt": [document.query for document in file.documents],
            "token_ids": [ids for batch in batches(texts) for ids in encode_prompts(tokenizer, batch)],
        },
        schema=PROMPTS,
    )
    return BuiltPrompts(
        table=table,
        warnings=file.warnings,
        sha256=file.sha256,
        requests_sha256=content_sha256(table),
        stop_token_ids=stop_token_ids,
        tokenizer=tokenizer,
        chat_template_sha256=chat.sha256 if chat else None,
    )


def prompt_costs(samples: int, max_tokens: int, table: pa.Table) -> list[int]:
    """Return the most tokens that each prompt takes: its own tokens once, and `max_tokens` for each of its samples."""
    lengths: list[int] = [len(ids) for ids in table["token_ids"].to_pylist()]
    return [length + samples * max_tokens for length in lengths]


def prompt_shards(costs: Sequence[int], samples: int, target_tokens: int) -> list[tuple[int, int]]:
    """Cut prompts into shards; whole prompts, in order.

    A shard is closed by the prompt with which it has `target_tokens` and enough outputs, because an engine writes many at a
    time in hardly more time than a few; or with which it has so many tokens that losing it would cost too much.

    Args:
        costs: the most tokens of each prompt, without what all prompts begin with, which is computed once a shard.
        samples: of each prompt.
        target_tokens: of a shard.

    Returns:
        The rows [first row, end row) of each shard.
    """
    runs, first, size = [], 0, 0
    for row, cost in enumerate(costs):
        size += cost
        is_wide = (row + 1 - first) * samples >= _OUTPUTS or size >= _MOST * target_tokens
        if (size >= target_tokens and is_wide) or row + 1 == len(costs):
            runs.append((first, row + 1))
            first, size = row + 1, 0
    return runs


def stop_tokens(directory: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids at which a checkpoint's answers end, ascending; without any, samples end at their greatest length.

    They are `eos_token_id` of generation_config.json, or else of config.json or its `text_config`, or else the tokenizer's.

    Raises:
        PairError: a file is not JSON, or `eos_token_id` is something else than ids.
    """
    found: Any = None
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if found is None and path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                found = values.get("eos_token_id")
                if found is None:
                    found = (values.get("text_config") or {}).get("eos_token_id")
            except (OSError, ValueError, AttributeError) as error:
                raise PairError(f"{path} cannot be read: {error}") from None
    if found is None:
        found = tokenizer.eos_token_id
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(one) is int for one in ids):
        raise PairError(f"eos_token_id in {directory} is {found!r}: give an id or a list of ids")
    return tuple(sorted({*ids}))
