"""lm-eval's instances → the requests tables of a task, and the way back from a request to its instance.

An instance is one question that lm-eval puts to a model: the log-likelihood of a continuation after a context, or of a whole
text ("rolling"). The first is one request; the second is one request a window.
"""

import contextlib
import hashlib
import inspect
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lambdasweep.errors import TaskError
from lambdasweep.tasks.harness import VERSION, HarnessTask, quiet, seeded
from lambdasweep.tasks.reading import Reading, read
from lambdasweep.tasks.requests import BuiltTask, ScoredAs, batches, content_sha256, joined, requests_table
from lambdasweep.tasks.tokens import Encoded, Tokenizer, encode_pairs, encode_windows, prefix_of

ROLLING = "loglikelihood_rolling"
UNCONDITIONAL = ".unconditional"  # behind a task's name: its choices without a context

# Where the data lie does not identify a task; what they hold does, and is hashed by itself.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs")
_MIN_WINDOW = 3  # a token before, a token scored, and the one that vLLM would generate


@dataclass(frozen=True, slots=True)
class Question:
    """A document with what lm-eval asks about it.

    `rows` has, for each instance, the table of its requests (a key of `BuiltHarnessTask.parts`) and their rows there,
    [first, end); a text without tokens has none.
    """

    doc: Any
    instances: tuple[Any, ...]
    rows: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class BuiltHarnessTask:
    """A task of lm-eval ready to be scored: `parts` are tasks of ours by name, `questions` are in lm-eval's order."""

    asked: HarnessTask
    parts: dict[str, BuiltTask]
    questions: tuple[Question, ...]


@dataclass(slots=True)
class _Part:
    """The instances that become one table; all lists are parallel."""

    arguments: list[tuple[Any, ...]] = field(default_factory=list)
    doc_ids: list[str] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # UTF-8 bytes of what is scored
    golds: list[bool] = field(default_factory=list)


def build_instances(asked: HarnessTask, tokenizer: Tokenizer, max_model_len: int) -> BuiltHarnessTask:
    """Let lm-eval build its instances and turn them into requests.

    A document is known as `<lm-eval's task>/<its number there, from 0>`. Where a metric compares with the choices'
    log-likelihoods without a context, those are requests of a second task of ours, `<name>.unconditional`: they are no
    choices of a document.

    Raises:
        TaskError: lm-eval cannot build them, they are no log-likelihoods, or there is no token to put in front.
    """
    documents, groups = _ask(asked)
    is_rolling = any(instance.request_type == ROLLING for instances in groups for instance in instances)
    readings = [read(asked.task, doc, instances) for (_, doc), instances in zip(documents, groups, strict=True)]
    reasons = [reading for reading in readings if isinstance(reading, str)]
    if is_rolling and max_model_len < _MIN_WINDOW:
        raise _error(asked, f"windows over its texts need --max-model-len {_MIN_WINDOW} or more")

    parts: dict[str, _Part] = {}
    places: list[list[tuple[str, int]]] = []  # of each instance: its part and its place there
    for (number, _), instances, reading in zip(documents, groups, readings, strict=True):
        known = None if reasons or isinstance(reading, str) else reading
        own = len(known.sizes) if known else len(instances)
        places.append([])
        for index, instance in enumerate(instances):
            name = asked.name if index < own else asked.name + UNCONDITIONAL
            part = parts.setdefault(name, _Part())
            places[-1].append((name, len(part.arguments)))
            part.arguments.append(instance.args)
            part.doc_ids.append(f"{asked.task.task_name}/{number}")
            part.choices.append(index % own)
            part.sizes.append(known.sizes[index % own] if known else len(instance.args[-1].encode()) or 1)
            part.golds.append(known is not None and index == known.gold)

    identity = _identity(asked.task, [doc for _, doc in documents])
    built: dict[str, BuiltTask] = {}
    ends: dict[str, list[int]] = {}
    for name, part in parts.items():
        first = readings[0]
        kind: ScoredAs = first.scored_as if isinstance(first, Reading) and not reasons else "other"
        window = max_model_len if is_rolling else None
        built[name], counts = _build(asked, part, tokenizer, window, kind if name == asked.name else "other", identity)
        ends[name] = [0, *np.cumsum(counts).tolist()]
    if reasons:
        told = f"task {asked.name}: {reasons[0]}, so it has lm-eval's metrics and none of ours"
        built[asked.name] = replace(built[asked.name], warnings=(told, *built[asked.name].warnings))
    rows = [tuple((name, ends[name][at], ends[name][at + 1]) for name, at in each) for each in places]
    return BuiltHarnessTask(
        asked,
        built,
        tuple(
            Question(doc, tuple(instances), where)
            for (_, doc), instances, where in zip(documents, groups, rows, strict=True)
        ),
    )


def _ask(asked: HarnessTask) -> tuple[list[tuple[int, Any]], list[list[Any]]]:
    """Return lm-eval's documents, each with its number, and the instances of each."""
    with quiet(), seeded():
        try:
            # It draws a progress bar.
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                asked.task.build_all_requests(limit=asked.limit)
            documents = list(asked.task.doc_iterator(limit=asked.limit))
        except Exception as error:  # whatever the task's own functions raise
            raise _error(asked, f"lm-eval cannot build its requests ({type(error).__name__}: {error})") from error
    found = defaultdict(list)
    for instance in asked.task.instances:
        found[instance.doc_id].append(instance)
    kinds = {instance.request_type for instance in asked.task.instances}
    if len(kinds) > 1 or not kinds <= {"loglikelihood", ROLLING}:
        raise _error(
            asked, f"it asks for {' and '.join(sorted(kinds))}: one kind of log-likelihood alone is scored here"
        )
    return documents, [sorted(found[number], key=lambda instance: instance.idx) for number, _ in documents]


def _build(
    asked: HarnessTask, part: _Part, tokenizer: Tokenizer, window: int | None, scored_as: ScoredAs, identity: str
) -> tuple[BuiltTask, list[int]]:
    """Return a part as a task of ours, and how many requests each of its instances became."""
    if prefix_of(tokenizer) is None and (window or not all(context.strip() for context, *_ in part.arguments)):
        raise _error(asked, "it has empty contexts, and the tokenizer has neither BOS nor EOS to use")
    encoded: list[Encoded] = []
    counts: list[int] = []
    for batch in batches(part.arguments):
        if window:
            windows, of_each = encode_windows(tokenizer, [text for (text,) in batch], window)
            encoded.append(windows)
            counts += of_each
        else:
            encoded.append(encode_pairs(tokenizer, [(context, continuation) for context, continuation in batch]))
            counts += [1] * len(batch)
    owner = np.repeat(np.arange(len(counts)), counts)
    if not len(owner):
        raise _error(asked, "its texts have no tokens")
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths, starts, spanned = joined(encoded)
    doc_ids = pa.array(part.doc_ids, pa.string()).take(pa.array(owner))
    table = requests_table(
        doc_ids=doc_ids,
        choices=(place if window else np.array(part.choices)[owner]).tolist(),
        encoded=encoded,
        sizes=np.array(part.sizes)[owner].tolist(),
        is_gold=np.array(part.golds)[owner].tolist(),
    )
    concerns = [
        (lengths == starts, "requests without a token to score, to be quarantined"),
        (spanned, "requests with a token across context and continuation, cut as lm-eval cuts it"),
    ]
    return (
        BuiltTask(
            table=table,
            documents=len(set(part.doc_ids)),
            duplicates=0,
            warnings=tuple(f"task {asked.name}: {what}: {int(at.sum())}" for at, what in concerns if at.any()),
            sha256=identity,
            requests_sha256=content_sha256(table),
            template=f"lm-eval {VERSION} {asked.task.OUTPUT_TYPE}",
            one_token=bool((lengths - starts == 1).all()),
            scored_as=scored_as,
        ),
        counts,
    )


def _identity(task: Any, documents: Sequence[Any]) -> str:
    """Hash the task's configuration, functions by their source, and the documents, which its metrics may read."""
    config = {key: value for key, value in task.dump_config().items() if key not in _PLACES}
    if isinstance(config.get("metadata"), dict):
        config["metadata"] = {key: value for key, value in config["metadata"].items() if key != "config_source"}
    text = json.dumps([config, documents], sort_keys=True, default=_text)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        # The address in the default representation of an object changes from run to run.
        text = repr(value)
        return type(value).__qualname__ if callable(value) or " at 0x" in text else text


def _error(asked: HarnessTask, problem: str) -> TaskError:
    return TaskError(f"task {asked.name!r} cannot be built from {asked.source}", [problem])
