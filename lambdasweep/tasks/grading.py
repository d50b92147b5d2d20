"""The outputs of a run are graded at each λ from committed tables, and the grades are kept in tables of their own.

A table depends on the committed outputs and on the task alone. It is written at the end of a run, where lm-eval is
installed, so that whoever reads the run directory later needs neither lm-eval nor a tokenizer.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from contract import schemas
from contract.commit import commit_table, identity_of
from contract.points import order
from contract.records import Plan
from contract.rundir import RunDir
from contract.thinking import answer_part
from contract.whole_tables import read_or_problem
from lambdasweep.tasks.answers import Grader
from lambdasweep.tasks.equivalence import Judge, same_meaning
from lambdasweep.tasks.prompts import BuiltPrompts
from lambdasweep.tasks.tokens import Tokenizer
from lambdasweep.tasks.verbalised import Said, said_in

_END = "answer_end"
_GRADING = 2  # it grows whenever outputs are graded otherwise than before, so that one run has one way


def write_graded(
    run: RunDir, task: str, built: BuiltPrompts, grader: Grader, identity: dict[str, Any], plan: Plan
) -> None:
    """Commit RUN/graded/task=<task>/lambda=<λ>/… for each λ at which every unit of the task is committed.

    A table that is there and was made of the same outputs is kept as it is.

    Args:
        run: the run.
        task: of the plan.
        built: its prompts.
        grader: of its outputs.
        identity: what every table of the run carries.
        plan: of the run.

    Raises:
        LambdasweepError: a function of the task failed.
    """
    record = plan[task]
    identity = {
        **identity,
        "task": task,
        "requests_sha256": built.requests_sha256,
        "task_sha256": built.sha256,
        "metric": record.metric,
        "normaliser": record.normaliser,
        "grading": _GRADING,
    }
    if record.verbalised is not None:
        identity["verbalised"] = record.verbalised
    if record.equivalence is not None:
        identity["equivalence"] = record.equivalence
    entails: Judge | None = None
    for lam in sorted(record.lambdas, key=order):
        if len(run.committed(task, lam, "generations")) != len(record.shards):
            continue
        path = run.unit("graded", task, lam, 0)
        own = identity | {"lam": lam}
        before = read_or_problem(path)[0] if path.is_file() else None
        # Tables of thoughts that were graded before they said where answers end are graded again.
        is_whole = before is not None and (record.think_end_token is None or _END in before.column_names)
        if is_whole and before is not None and identity_of(before.schema) == own:
            continue
        damaged = len(run.damaged)
        generations = run.generations(task, lam)
        if len(run.damaged) > damaged:
            continue  # its units are sampled again, and then they are graded
        if built.equivalence is not None and entails is None:
            entails = built.equivalence.judge()
        table = graded_table(
            generations,
            lam,
            grader,
            built.tokenizer,
            record.think_end_token,
            tuple(record.until or ()),
            record.verbalised,
            entails,
        )
        commit_table(path, table, own)
        run.damaged.pop(path, None)


def graded_table(
    generations: pa.Table,
    lam: str,
    grader: Grader,
    tokenizer: Tokenizer,
    think_end_token: str | None = None,
    until: Sequence[str] = (),
    verbalised: str | None = None,
    entails: Judge | None = None,
) -> pa.Table:
    """Return `schemas.GRADED` of the outputs at one λ, in their order; `until` counts only with `think_end_token`.

    With `verbalised`, a regular expression, it has the column `schemas.VERBALISED`, too. With `entails`, answers of a
    document that mean the same are of one class.
    """
    requests, texts = generations["request_id"].to_pylist(), generations["text"].to_pylist()
    grades = grader.grade(list(zip(requests, texts, strict=True)))
    classes = [grade.answer_class for grade in grades]
    if entails is not None:
        classes = []
        for request, some in groupby(zip(requests, grades, strict=True), key=lambda one: one[0]):
            own = [grade for _, grade in some]
            texts_of, classes_of = [grade.answer for grade in own], [grade.answer_class for grade in own]
            classes += same_meaning(grader.question(request), texts_of, classes_of, entails)
    found = [said_in(text, verbalised) if verbalised else None for text in texts]
    starts, thinking, ends = [], [], []
    for scalar, text, grade, said in zip(generations["token_ids"], texts, grades, found, strict=True):
        ids = scalar.as_py()  # one output at a time: as lists, those of a λ take many times the memory
        start = grade.start
        if start is None and said is not None and grade.answer:
            start = _outside(text, grade.answer, said)
        starts.append(answer_start(tokenizer, ids, text, grade.answer, start, think_end_token))
        thinking.append(None if think_end_token is None else thinking_tokens(tokenizer, ids, think_end_token))
        ends.append(None if think_end_token is None else answer_end(tokenizer, ids, text, until, think_end_token))
    columns = {
        "request_id": requests,
        "sample": generations["sample"],
        **schemas.place_columns(lam, len(requests)),
        "answer": [grade.answer for grade in grades],
        "answer_class": classes,
        "answer_start": starts,
        "correct": [grade.correct for grade in grades],
        "metrics": [sorted(grade.metrics.items()) for grade in grades],
        "thinking_tokens": thinking,
        _END: ends,
    }
    table = pa.table(columns, schema=schemas.GRADED)
    table = table.drop_columns([_END]) if think_end_token is None else table
    if verbalised is None:
        return table
    sure = [None if said is None else said.probability for said in found]
    return table.append_column(schemas.VERBALISED, pa.array(sure, schemas.VERBALISED.type))


def _outside(text: str, answer: str, said: Said) -> int | None:
    """Return where an answer stands for the last time outside of what an output says of how sure it is, or None."""
    place = text.rfind(answer, said.end)
    place = text.rfind(answer, 0, said.start) if place < 0 else place
    return None if place < 0 else place


def answer_start(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    text: str,
    answer: str,
    start: int | None = None,
    think_end_token: str | None = None,
) -> int:
    """Return the place of the token that an answer begins in: at `start`, or where it stands in the text for the last time.

    Where there is no answer, or a filter made something of it that does not stand in the text, it is that of the first token
    of the text, which is 0 unless the model thought before.
    """
    place = -1 if not answer else text.rfind(answer) if start is None else start
    if think_end_token is None and place < 0:
        return 0
    part = answer_part(token_ids, _decoded(tokenizer), think_end_token)
    rest = token_ids[part.first :]
    last = max(len(token_ids) - 1, 0)
    return min(part.first + _token_at(tokenizer, rest, part.offset + max(place, 0)), last)


def answer_end(
    tokenizer: Tokenizer, token_ids: Sequence[int], text: str, until: Sequence[str], think_end_token: str
) -> int | None:
    """Return the place of the token that completes the text before which an answer was cut; None where it was not cut.

    Were there no thinking, an engine would end the output with that token.
    """
    part = answer_part(token_ids, _decoded(tokenizer), think_end_token)
    behind = part.text[len(text) :]
    ends = [len(end) for end in until if end and behind.startswith(end)]
    if not ends:
        return None
    place = part.offset + len(text) + min(ends) - 1
    return part.first + _token_at(tokenizer, token_ids[part.first :], place)


def thinking_tokens(tokenizer: Tokenizer, token_ids: Sequence[int], think_end_token: str) -> int:
    """Return how many tokens of an output come before its answer, with those that end thinking; 0 where it did not end."""
    part = answer_part(token_ids, _decoded(tokenizer), think_end_token)
    if not part.is_after:
        return 0
    if not part.text:
        return len(token_ids)
    return part.first + _token_at(tokenizer, token_ids[part.first :], part.offset)


def _decoded(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


def _token_at(tokenizer: Tokenizer, token_ids: Sequence[int], place: int) -> int:
    """Return which token a place of the text of some tokens is in."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    low, high = 0, len(token_ids) - 1  # the token is among these
    while low < high:
        middle = (low + high) // 2
        # What the first tokens settle of the text stays so, and the place can be halved towards. Their text may be longer
        # for a while: where a character takes several tokens, its first bytes are shown as characters of their own.
        if tokenizer.decode(token_ids[: middle + 1], skip_special_tokens=True)[: place + 1] == text[: place + 1]:
            high = middle
        else:
            low = middle + 1
    return low
