"""lm-eval's instances become the requests tables of a task, with the way back from a request to its instance.

An instance is one question that lm-eval puts to a model: the log-likelihood of a continuation after a context, or of a whole
text ("rolling"). A continuation is one request; a whole text has one request for each window.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from contract.errors import TaskError
from lambdasweep.tasks.answers import AnswerSpec, end_tokens, prompts_table, think_end_problems, with_end
from lambdasweep.tasks.equivalence import read_equivalence
from lambdasweep.tasks.formats import AS_TURNS
from lambdasweep.tasks.lm_eval_tasks.answers import read
from lambdasweep.tasks.lm_eval_tasks.load import LmEvalTask
from lambdasweep.tasks.lm_eval_tasks.spec import ROLLING, VERSION
from lambdasweep.tasks.p_true import question_of
from lambdasweep.tasks.prompts import BuiltPrompts
from lambdasweep.tasks.requests import BuiltTask, ScoredAs, batches, content_sha256, joined, requests_table
from lambdasweep.tasks.tokens import Encoded, Tokenizer, encode_pairs, encode_windows, prefix_of

UNCONDITIONAL = ".unconditional"  # with this behind its name, a task of ours has the choices without a context

# The place of the data does not identify a task; their content does, and is hashed by itself.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs")
_MIN_WINDOW = 3  # a window holds a token before, a token that is scored, and the one that vLLM would generate


@dataclass(frozen=True, slots=True)
class BuiltLmEvalTask:
    """A task of lm-eval that is ready to be scored.

    `parts` holds tasks of ours by name. `rows` is parallel to `source.asked`: for each instance of a document it has the
    part that its requests are in, and their rows [first, end) there; a text without tokens has no rows.
    """

    source: LmEvalTask
    parts: dict[str, BuiltTask | BuiltPrompts]
    rows: tuple[tuple[tuple[str, int, int], ...], ...]


def build_answers(
    source: LmEvalTask, tokenizer: Tokenizer, stop_token_ids: Sequence[int]
) -> tuple[BuiltLmEvalTask, AnswerSpec]:
    """Turn lm-eval's instances of a task whose answers the model writes into prompts, one for each document.

    Args:
        source: the task; it has `outputs`.
        tokenizer: the model's tokenizer, which has the text and the token of its own end.
        stop_token_ids: the ids at which the checkpoint's answers end.

    Raises:
        TaskError: no output could have what ends its thinking, or whether it is right cannot be asked.
    """
    asked = source.outputs
    assert asked is not None
    question, of_question = question_of(asked.p_true, tokenizer, source.chat, asked.think_end_token)
    equivalence, of_model = read_equivalence(asked.equivalence)
    if problems := think_end_problems(asked.think_end_token, tokenizer) + of_question + of_model:
        raise TaskError(f"task {source.name!r} cannot be built from {source.source}", problems)
    spec = AnswerSpec(
        name=source.name,
        source=source.source,
        format=source.format,
        shots=source.shots,
        limit=source.limit,
        seed=source.seed,
        samples=asked.samples,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        max_tokens=asked.max_tokens,
        until=with_end(asked.until, tokenizer),
        normaliser=asked.normaliser,
        metric=asked.metric,
        chat=source.chat is not None,
        system_prompt=source.system_prompt,
        equivalence=equivalence.recorded if equivalence else None,
        think_end_token=asked.think_end_token,
        p_true=question.asked if question else None,
        verbalised=asked.verbalised,
        groups=source.groups,
    )
    doc_ids = [f"{source.task.task_name}/{one.number}" for one in source.asked]
    table = prompts_table(doc_ids, [one.instances[0].args[0] for one in source.asked], tokenizer)
    built = BuiltPrompts(
        table=table,
        warnings=(),
        sha256=_identity(source),
        requests_sha256=content_sha256(table),
        stop_token_ids=end_tokens(stop_token_ids, tokenizer),
        tokenizer=tokenizer,
        chat_template_sha256=source.chat.sha256 if source.chat else None,
        template=_template(source),
        question=question,
        equivalence=equivalence,
    )
    rows = tuple(((source.name, place, place + 1),) for place in range(len(source.asked)))
    return BuiltLmEvalTask(source, {source.name: built}, rows), spec


@dataclass(slots=True)
class _Part:
    """The instances that become one table; all lists are parallel."""

    arguments: list[tuple[Any, ...]] = field(default_factory=list)
    doc_ids: list[str] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # the UTF-8 bytes of each text that is scored
    golds: list[bool] = field(default_factory=list)


def build_instances(source: LmEvalTask, tokenizer: Tokenizer, max_model_len: int) -> BuiltLmEvalTask:
    """Turn lm-eval's instances into requests.

    A document is known as `<lm-eval's task>/<its number there, from 0>`. Some metrics also need the choices' log-likelihoods
    without a context. These are requests of a second task of ours, `<name>.unconditional`, because they are no choices of a
    document.

    Raises:
        TaskError: there is no token to put in front of a text, or no token to score, or no room for a window.
    """
    readings = [read(source.task, one.doc, one.instances) for one in source.asked]
    reasons = [reading for reading in readings if isinstance(reading, str)]
    parts: dict[str, _Part] = {}
    places: list[list[tuple[str, int]]] = []  # the part of each instance of each document, and its place there
    scored_as: ScoredAs = "other"
    for one, reading in zip(source.asked, readings, strict=True):
        known = None if reasons or isinstance(reading, str) else reading
        scored_as = known.scored_as if known else "other"
        own = len(known.sizes) if known else len(one.instances)
        places.append([])
        for index, instance in enumerate(one.instances):
            name = source.name if index < own else source.name + UNCONDITIONAL
            part = parts.setdefault(name, _Part())
            places[-1].append((name, len(part.arguments)))
            part.arguments.append(instance.args)
            part.doc_ids.append(f"{source.task.task_name}/{one.number}")
            part.choices.append(index % own)
            part.sizes.append(known.sizes[index % own] if known else len(instance.args[-1].encode()) or 1)
            part.golds.append(known is not None and index == known.gold)

    window = max_model_len if source.asked[0].instances[0].request_type == ROLLING else None
    identity = _identity(source)
    built: dict[str, BuiltTask] = {}
    ends: dict[str, list[int]] = {}
    for name, part in parts.items():
        kind = scored_as if name == source.name else "other"
        built[name], counts = _build(source, part, tokenizer, window, kind, identity)
        ends[name] = [0, *np.cumsum(counts).tolist()]
    if reasons:
        told = f"task {source.name}: {reasons[0]}, so it has lm-eval's metrics and none of ours"
        built[source.name] = replace(built[source.name], warnings=(told, *built[source.name].warnings))
    rows = [tuple((name, ends[name][at], ends[name][at + 1]) for name, at in each) for each in places]
    return BuiltLmEvalTask(source, dict(built), tuple(rows))


def _build(
    source: LmEvalTask, part: _Part, tokenizer: Tokenizer, window: int | None, scored_as: ScoredAs, identity: str
) -> tuple[BuiltTask, list[int]]:
    """Return a part as a task of ours, and the number of requests that each of its instances became."""
    if window and window < _MIN_WINDOW:
        raise _error(source, f"windows over its texts need --max-model-len {_MIN_WINDOW} or more")
    if prefix_of(tokenizer) is None and (window or not all(context.strip() for context, *_ in part.arguments)):
        raise _error(source, "it has empty contexts, and the tokenizer has neither BOS nor EOS to use")
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
        raise _error(source, "its texts have no tokens")
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
            warnings=tuple(f"task {source.name}: {what}: {int(at.sum())}" for at, what in concerns if at.any()),
            sha256=identity,
            requests_sha256=content_sha256(table),
            template=_template(source),
            one_token=bool((lengths - starts == 1).all()),
            scored_as=scored_as,
            chat_template_sha256=source.chat.sha256 if source.chat else None,
        ),
        counts,
    )


def _template(source: LmEvalTask) -> str:
    turns = AS_TURNS if source.as_turns and source.shots else ""
    return f"lm-eval {VERSION} {source.task.OUTPUT_TYPE}{turns}"


def _identity(source: LmEvalTask) -> str:
    """Hash the task's configuration, with functions by their source, and the documents, which its metrics may read."""
    config = {key: value for key, value in source.task.dump_config().items() if key not in _PLACES}
    if isinstance(config.get("metadata"), dict):
        config["metadata"] = {key: value for key, value in config["metadata"].items() if key != "config_source"}
    text = json.dumps([config, [one.doc for one in source.asked]], sort_keys=True, default=_text)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        # The address in the default representation of an object changes from run to run.
        text = repr(value)
        return type(value).__qualname__ if callable(value) or " at 0x" in text else text


def _error(source: LmEvalTask, problem: str) -> TaskError:
    return TaskError(f"task {source.name!r} cannot be built from {source.source}", [problem])
