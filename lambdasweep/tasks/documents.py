"""A task file holds one JSON object on each line, and is checked as a whole before anything is scored.

Its rows are all of one kind; other keys are ignored. The last kind is that of the format `generate`:

    {"query": "Which is a metal?", "choices": ["iron", "oxygen"], "gold": 0}
    {"context": "The capital of France is", "continuation": "Paris"}
    {"prompt": "The capital of France is", "answers": ["Paris"]}
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from contract.errors import InputError, TaskError
from contract.json_objects import keys_once
from lambdasweep.input_files import local_files, why_none
from lambdasweep.settings import TaskSettings, problems_of
from lambdasweep.tasks.convert import index_of
from lambdasweep.tasks.datasets import PREFIX as DATASET
from lambdasweep.tasks.datasets import read_dataset
from lambdasweep.tasks.format_names import FORMATS, GENERATE, MAX_CHOICES

Kind = Literal["choices", "continuation", "answers"]

MAX_SHOWN = 20
# Settings of answers that the model writes.
WRITTEN = (
    "repeats",
    "temperature",
    "max_tokens",
    "until",
    "normaliser",
    "equivalence",
    "think_end_token",
    "p_true",
    "verbalised",
    "verbalised_suffix",
)
LEAST_TEMPERATURE = 0.01  # vLLM raises temperatures between 0 and 0.01 to 0.01
_ROWS_SHOWN = 5
_ROW = re.compile(r"line (\d+): ")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_NAME = 128  # file systems take names of 255 bytes, and our prefixes and suffixes need some of them


@dataclass(frozen=True, slots=True)
class TaskSpec(TaskSettings):
    """The task that a user asks for; nothing is checked until `read_documents`.

    Args:
        name: the name of the task, which must be safe in file names.
        file: the JSONL file.
    """

    name: str
    file: Path

    @property
    def source(self) -> str:
        """Return the path that is recorded as the place that the task comes from."""
        return str(self.file) if str(self.file).startswith(DATASET) else str(self.file.resolve())


@dataclass(frozen=True, slots=True)
class Document:
    """One row of a task file. A continuation row has its context as `query`, and its continuation as the only choice.

    A row of answers has its prompt as `query`, and all of its right answers as choices.

    `choices` are stripped and differ from each other; `gold` is the index of the right one; `repeats` counts the choices
    that were dropped because an earlier choice of the row has the same text.
    """

    line: int
    doc_id: str
    query: str
    choices: tuple[str, ...]
    gold: int
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class TaskFile:
    """The checked contents of a task file, in file order, and the hash of its bytes."""

    spec: TaskSpec
    kind: Kind
    documents: tuple[Document, ...]
    sha256: str
    warnings: tuple[str, ...] = ()


def read_documents(spec: TaskSpec) -> TaskFile:
    """Read and check a task file.

    A document is known by its row's `id` if every row has an `id` that is a string or an integer and no two are equal;
    otherwise it is known by its line number, counted from 1.

    Raises:
        TaskError: the request or the file has problems; the error lists the first 20 of them, each with its line.
    """
    asked = asdict(spec)
    if spec.format != GENERATE:  # what is said of all tasks and samples at once is not about this one
        asked |= dict.fromkeys(WRITTEN)
    problems = check_name(spec.name) + problems_of(asked, TaskSettings, str)
    problems += temperature_problems(asked["temperature"]) + system_problems(spec.system_prompt, spec.chat)
    data = read_bytes(spec.name, spec.file, problems, has_format=True)
    documents: list[Document] = []
    ids: list[Any] = []
    first: dict[Kind, int] = {}  # the line of the first row of each kind
    lines = 0
    for line, raw in json_lines(data):
        lines += 1
        row = read_object(line, raw, problems)
        kind = _kind(line, row, spec.format, problems) if row is not None else None
        if row is None or kind is None:
            continue
        first.setdefault(kind, line)
        document = _READ[kind](line, row, spec.format, problems)
        if document:
            documents.append(document)
            ids.append(row.get("id"))
    if len(first) == 2:
        problems.append(
            f"rows with choices (line {first['choices']}) and rows with a continuation (line {first['continuation']}) "
            "are mixed: put them in two files"
        )
    if lines == 0:
        problems.append("the file is empty: give one JSON object a line")
    elif spec.shots >= lines:
        problems.append(f"{spec.shots} shots from {lines} rows leave none to evaluate: ask for fewer shots")
    if problems:
        raise task_error(spec.name, spec.file, problems)
    known, warnings = named(spec.name, documents, ids)
    return TaskFile(spec, next(iter(first)), known, hashlib.sha256(data).hexdigest(), warnings)


def system_problems(system_prompt: str | None, chat: bool) -> list[str]:
    """Return what is wrong with a system prompt, if anything."""
    if system_prompt is None or chat:
        return []
    return ["there is a system prompt and no chat template that it would go into: give --template chat, too"]


def unescaped(until: str) -> str:
    """Return the text that `--until` means: a shell hands over a new line as a backslash and an n."""
    return until.replace("\\n", "\n")


def read_bytes(name: str, file: Path, problems: list[str], has_format: bool = False) -> bytes:
    """Return the bytes of a task's file; of a directory or a glob those of all its `*.jsonl`, one after the other.

    A data set of a hub is converted.

    Args:
        name: of the task.
        file: what the user gave.
        problems: those that were found so far.
        has_format: whether a user may write a format behind it, which is still there if it is none.

    Raises:
        TaskError: the file cannot be read; the error also lists the problems found so far.
    """
    try:
        if str(file).startswith(DATASET):
            return read_dataset(str(file))
        if found := local_files(file, ".jsonl"):
            return b"\n".join(Path(one).read_bytes() for one in found)
        said = (has_format and _misspelt_format(file)) or why_none(file, ".jsonl")
        if said is None:
            return file.read_bytes()
    except OSError as error:
        said = f"the file cannot be read ({error.strerror}): check the path and its permissions"
    except InputError as error:
        problems += [f"{error.title}: {problem}" for problem in error.problems] or [error.title]
        said = _misspelt_format(file) if has_format else None
    raise task_error(name, file, [*problems, *filter(None, [said])])


def _misspelt_format(file: Path) -> str | None:
    """Say that there is no such format, where a path that leads nowhere is FILE:FORMAT with a format that there is not."""
    path, _, form = str(file).rpartition(":")
    if form.isidentifier() and path and (get_close_matches(form, FORMATS) or local_files(Path(path), ".jsonl")):
        return f"there is no format {form!r}: write {path}:FORMAT with one of {', '.join(FORMATS)}"
    return None


def json_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number, counted from 1, and the bytes of each line that is not blank."""
    # The bytes are split at "\n" alone: JSON strings may hold other characters that str.splitlines would break at.
    for line, raw in enumerate(data.split(b"\n"), start=1):
        text = raw.removeprefix(_BYTE_ORDER_MARK)  # each of several files may begin with it
        if text.strip():
            yield line, text


def task_error(name: str, file: Path, problems: Sequence[str]) -> TaskError:
    """Make one error of the problems of a task."""
    return TaskError(f"task {name!r} cannot be built from {file}", by_rows(problems))


def by_rows(problems: Sequence[str]) -> list[str]:
    """Return the problems of a file; what is wrong with many rows is said once, and the first 20 are shown."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        match = _ROW.match(problem)
        lines.setdefault(problem[match.end() :] if match else problem, []).extend([match[1]] if match else [])
    said = []
    for problem, rows in lines.items():
        where = ", ".join(rows[:_ROWS_SHOWN]) + (
            f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
        )
        said.append(f"line{'s' * (len(rows) > 1)} {where}: {problem}" if rows else problem)
    shown = said[:MAX_SHOWN]
    if len(said) > MAX_SHOWN:
        shown.append(f"and {len(said) - MAX_SHOWN} more")
    return shown


def temperature_problems(temperature: float | None, called: str = "temperature") -> list[str]:
    """Return what is wrong with a temperature, if anything; `called` is what it is called in messages."""
    if temperature is None or temperature == 0 or LEAST_TEMPERATURE <= temperature < float("inf"):
        return []
    return [f"{called} is {temperature:g}: give 0, or {LEAST_TEMPERATURE} or more"]


def check_name(name: str) -> list[str]:
    """Return what is wrong with the name of a task, if anything."""
    if _NAME.fullmatch(name) and len(name) <= _MAX_NAME:
        return []
    return [
        f"the task name {name!r} cannot be a file name: use at most {_MAX_NAME} letters, digits, '.', '_' "
        "and '-', and start with a letter or digit"
    ]


def read_object(line: int, raw: bytes, problems: list[str]) -> dict[str, Any] | None:
    """Return the JSON object on a line; if there is none, add a problem and return None."""
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=keys_once)
    except UnicodeDecodeError:
        problems.append(f"line {line}: is not UTF-8: convert the file")
    except json.JSONDecodeError as error:
        problems.append(f"line {line}: is not JSON ({error.msg} at column {error.colno}): write one object a line")
    except (ValueError, RecursionError) as error:  # a key twice, numbers of thousands of digits, or very deep objects
        problems.append(f"line {line}: cannot be read as JSON ({error})")
    else:
        if isinstance(row, dict):
            return row
        problems.append(f"line {line}: is of type {_json_type(row)}, not an object: write {{…}}")
    return None


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), "null")


def _kind(line: int, row: dict[str, Any], format: str, problems: list[str]) -> Kind | None:
    if format == GENERATE:
        if "answers" in row:
            return "answers"
        problems.append(f"line {line}: has no answers: the {GENERATE} format needs prompt and a list of answers")
        return None
    if "choices" in row and "continuation" in row:
        problems.append(f"line {line}: has both choices and a continuation: keep one of them")
        return None
    if "choices" in row:
        return "choices"
    if "continuation" in row:
        return "continuation"
    hint = f", and answers need --format {GENERATE}" if "answers" in row else ""
    problems.append(f"line {line}: has neither choices (with query and gold) nor a continuation (with context){hint}")
    return None


def check_text(line: int, name: str, value: Any, problems: list[str], may_be_empty: bool = False) -> str | None:
    """Return a value of a row if it is text; if it is not, add a problem and return None."""
    if not isinstance(value, str):
        what = "is missing" if value is None else f"is of type {_json_type(value)}"
        problems.append(f"line {line}: {name} {what}: give a string")
    elif not may_be_empty and not value.strip():
        problems.append(f"line {line}: {name} is empty: there is nothing to score")
    elif not _is_unicode(value):
        problems.append(f"line {line}: {name} holds half of a surrogate pair (such as \\ud800), which is not text")
    else:
        return value
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choices(line: int, row: dict[str, Any], format: str, problems: list[str]) -> Document | None:
    before = len(problems)
    query = check_text(line, "query", row.get("query"), problems, may_be_empty=True)
    choices = row["choices"]
    gold = row.get("gold")
    if not isinstance(choices, list):
        problems.append(f"line {line}: choices is of type {_json_type(choices)}: give a list of strings")
        return None
    for index, choice in enumerate(choices):
        check_text(line, f"choice {index}", choice, problems)
    limit = MAX_CHOICES.get(format)
    if limit and len(choices) > limit:
        problems.append(f"line {line}: has {len(choices)} choices: the {format} format takes at most {limit}")
    if len(choices) < 2:
        problems.append(f"line {line}: has {len(choices)} choices: give at least 2")
    if not isinstance(gold, int) and all(isinstance(choice, str) for choice in choices):
        gold = index_of(gold, choices)  # a letter, 1.0, or the text of the choice, where it means one choice only
    if isinstance(gold, bool) or not isinstance(gold, int):
        what = "is missing" if row.get("gold") is None else f"is {row['gold']!r}"
        problems.append(
            f"line {line}: gold {what}: give the index of the right choice, counted from 0, its letter or its text, if that "
            "means one choice"
        )
    elif choices and not 0 <= gold < len(choices):
        problems.append(f"line {line}: gold is {gold}: it counts from 0, so give 0 to {len(choices) - 1}")
    if len(problems) > before:
        return None
    assert query is not None
    assert isinstance(gold, int)
    # Both formats strip the choices, so choices that differ in outer whitespace alone would be scored as the same text.
    stripped = [choice.strip() for choice in choices]
    kept = tuple(dict.fromkeys(stripped))
    if len(kept) < 2:
        problems.append(f"line {line}: all choices are the same text: give at least 2 different ones")
        return None
    return Document(line, str(line), query, kept, kept.index(stripped[gold]), len(stripped) - len(kept))


def _continuation(line: int, row: dict[str, Any], format: str, problems: list[str]) -> Document | None:
    context = check_text(line, "context", row.get("context"), problems, may_be_empty=True)
    continuation = check_text(line, "continuation", row["continuation"], problems)
    if format == "letters":
        problems.append(f"line {line}: the letters format needs choices, and this row has a continuation: use cloze")
    if context is None or continuation is None:
        return None
    return Document(line, str(line), context, (continuation,), 0)


def _answers(line: int, row: dict[str, Any], format: str, problems: list[str]) -> Document | None:
    before = len(problems)
    prompt = check_text(line, "prompt", row.get("prompt"), problems, may_be_empty=True)
    answers = row["answers"]
    if not isinstance(answers, list) or not answers:
        what = "is empty" if isinstance(answers, list) else f"is of type {_json_type(answers)}"
        problems.append(f"line {line}: answers {what}: give a list of one string or more")
        return None
    for index, answer in enumerate(answers):
        check_text(line, f"answer {index}", answer, problems)
    if prompt is None or len(problems) > before:
        return None
    return Document(line, str(line), prompt, tuple(dict.fromkeys(answer.strip() for answer in answers)), 0)


_READ: dict[Kind, Callable[[int, dict[str, Any], str, list[str]], Document | None]] = {
    "choices": _choices,
    "continuation": _continuation,
    "answers": _answers,
}


def named(task: str, documents: Sequence[Document], ids: Sequence[Any]) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    """Return the documents named by their rows' ids if these can name them, otherwise as they are, and any warning."""
    if any(isinstance(value, bool) or not isinstance(value, (str, int)) for value in ids):
        return tuple(documents), ()
    names = [str(value) for value in ids]
    if not all(map(_is_unicode, names)):
        return tuple(documents), ()
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        warning = f"task {task}: id {name!r} is on {count} rows, so documents are known by their line numbers"
        return tuple(documents), (warning,)
    return tuple(replace(document, doc_id=name) for document, name in zip(documents, names, strict=True)), ()
