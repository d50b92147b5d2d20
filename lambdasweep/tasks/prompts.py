"""Prompts to be sampled from: a JSONL file → the λ-free prompts table, and its cut into shards.

One object a line: `{"prompt": "Once upon a time", "id": "a name, if it has one"}`; other keys are ignored.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from contract.errors import PairError
from contract.schemas import PROMPTS
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import (
    Document,
    check_limit,
    check_name,
    check_text,
    json_lines,
    named,
    read_bytes,
    read_object,
    task_error,
)
from lambdasweep.tasks.requests import batches, content_sha256
from lambdasweep.tasks.tokens import Tokenizer, encode_prompts

SAMPLES, TEMPERATURE, MAX_TOKENS = 16, 1.0, 64
MAX_SAMPLES = 2**15 - 1  # `sample` is an int16
_LEAST_TEMPERATURE = 0.01  # vLLM raises what lies between 0 and this


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """What the user asks for; nothing is checked until `read_prompts`.

    Args:
        name: file-name-safe name of the task.
        file: the JSONL file.
        samples: of each prompt.
        temperature: that logits are divided by; 0 takes the likeliest token each time.
        max_tokens: at which a sample is cut.
        limit: take the first so many prompts; all of them when None.
        chat: make each prompt a user turn of the aligned model's chat template.
    """

    name: str
    file: Path
    samples: int = SAMPLES
    temperature: float = TEMPERATURE
    max_tokens: int = MAX_TOKENS
    limit: int | None = None
    chat: bool = False

    @property
    def source(self) -> str:
        """Where the task comes from, for the record."""
        return str(self.file.resolve())


@dataclass(frozen=True, slots=True)
class Prompts:
    """The checked contents of a file, its limit applied, and the hash of its bytes."""

    spec: GenerateSpec
    documents: tuple[Document, ...]  # the prompt is the query; there are no choices
    sha256: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuiltPrompts:
    """A generate task ready to be sampled; `table` is `schemas.PROMPTS`."""

    table: pa.Table
    warnings: tuple[str, ...]
    sha256: str
    requests_sha256: str
    stop_token_ids: tuple[int, ...]
    tokenizer: Tokenizer
    chat_template_sha256: str | None = None


def read_prompts(spec: GenerateSpec) -> Prompts:
    """Read and check a file of prompts; documents are known by what `documents.named` says.

    Raises:
        TaskError: with every problem of the request and of the file, each with its line; the first 20 are shown.
    """
    problems = check_name(spec.name) + check_limit(spec.limit)
    if not 1 <= spec.samples <= MAX_SAMPLES:
        problems.append(f"samples is {spec.samples}: give 1 to {MAX_SAMPLES}")
    if not (spec.temperature == 0 or _LEAST_TEMPERATURE <= spec.temperature < float("inf")):
        problems.append(f"temperature is {spec.temperature:g}: give 0, or {_LEAST_TEMPERATURE} or more")
    if spec.max_tokens < 1:
        problems.append(f"max_tokens is {spec.max_tokens}: give 1 or more")
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
        tokenizer: its own default decides on special tokens.
        stop_token_ids: at which a sample ends.
        chat: needed, and used, where `file.spec.chat` is set.

    Raises:
        TaskError: the chat template does not render.
    """
    spec = file.spec
    chat = chat if spec.chat else None
    texts = [document.query for document in file.documents]
    if chat is not None:
        try:
            texts = [chat([{"role": "user", "content": text}]) for text in texts]
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


def prompt_costs(spec: GenerateSpec, table: pa.Table) -> list[int]:
    """Return the most tokens that each prompt takes: itself once, and its samples."""
    lengths: list[int] = [len(ids) for ids in table["token_ids"].to_pylist()]
    return [length + spec.samples * spec.max_tokens for length in lengths]


def prompt_shards(costs: Sequence[int], target_tokens: int) -> list[tuple[int, int]]:
    """Cut prompts into runs; one is closed by the prompt with which it reaches `target_tokens`.

    Returns:
        [first row, end row) of each.
    """
    runs, first, size = [], 0, 0
    for row, cost in enumerate(costs):
        size += cost
        if size >= target_tokens or row + 1 == len(costs):
            runs.append((first, row + 1))
            first, size = row + 1, 0
    return runs


def stop_tokens(directory: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids at which a checkpoint's answers end, ascending; of none, samples end at their greatest length.

    `eos_token_id` of generation_config.json, else of config.json, else the tokenizer's.

    Raises:
        PairError: a file is not JSON, or says something else than ids.
    """
    found: Any = None
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if found is None and path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            except (OSError, ValueError, AttributeError) as error:
                raise PairError(f"{path} cannot be read: {error}") from None
    if found is None:
        found = tokenizer.eos_token_id
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(one) is int for one in ids):
        raise PairError(f"eos_token_id in {directory} is {found!r}: give an id or a list of ids")
    return tuple(sorted({*ids}))
