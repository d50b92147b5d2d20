"""lm-eval's own metrics are computed at each λ from committed scores, and kept in one table of the run directory.

The scores go back into lm-eval's instances, through its filters, its `process_results`, its aggregation and that of its
groups. The table depends on the committed tables and on lm-eval's version alone. It is written at the end of a run, where
lm-eval is installed, so that whoever reads the run directory later does not need lm-eval.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract import schemas
from contract.commit import commit_table, identity_of
from contract.errors import LambdasweepError
from contract.points import order
from contract.records import Plan
from contract.rundir import RunDir
from contract.whole_tables import read_or_problem
from lambdasweep.tasks.lm_eval_tasks.load import LmEvalTasks
from lambdasweep.tasks.lm_eval_tasks.outputs import AskedDocument
from lambdasweep.tasks.lm_eval_tasks.process_state import quiet
from lambdasweep.tasks.lm_eval_tasks.requests import BuiltLmEvalTask
from lambdasweep.tasks.lm_eval_tasks.spec import ROLLING, VERSION
from lambdasweep.tasks.prompts import BuiltPrompts
from lambdasweep.tasks.tokens import Ints

LEFT_OUT = "docs_left_out"

_Value = tuple[float, int]  # a metric's value, and the number of documents it was computed from
Answers = Mapping[str, "RequestScores | RequestTexts"]  # the engine's answers to each part, by the part's name
_Row = tuple[str, str, str, float | None, int]  # a row in the order of schemas.OUTCOMES, with a canonical point for λ


@dataclass(frozen=True, slots=True)
class RequestScores:
    """The engine's answers to the R requests of a table at one λ."""

    logprob: list[float]  # [R] the log-probability in nats, summed over the continuation; NaN where there is no score
    greedy: list[bool | None]  # [R] whether every token is the most likely one; None where that is not known


@dataclass(frozen=True, slots=True)
class RequestTexts:
    """The outputs of the R requests of a table at one λ."""

    texts: list[list[str]]  # [R] the texts of a request's samples; empty where there is none


def write_outcomes(
    run: RunDir,
    harness: LmEvalTasks,
    built: Sequence[BuiltLmEvalTask],
    identity: dict[str, Any],
    plan: Plan,
) -> pa.Table:
    """Commit RUN/lm_eval/task=<harness>.parquet and return it: `schemas.OUTCOMES`, sorted by task, λ and metric.

    It has the λs of the plan at which every unit of every task of the harness is committed; λs that it has already are kept
    as they are. A document with a request that could not be scored is in no metric; `docs_left_out` counts such documents.

    Args:
        run: the run.
        harness: the tasks and groups that were asked for.
        built: the harness's tasks, as they are recorded in the run's plan.
        identity: what every table of the run carries.
        plan: the tasks of the run's plan.json.

    Raises:
        LambdasweepError: one of lm-eval's functions failed, or a table is damaged.
    """
    path = run.outcomes(harness.name)
    parts = {name: part for task in built for name, part in task.parts.items()}
    identity = {
        **identity,
        "lm_eval": VERSION,
        "tasks": {name: [part.sha256, part.requests_sha256] for name, part in parts.items()},
    }
    rows: list[_Row] = []
    before = read_or_problem(path)[0] if path.is_file() else None
    if before is not None and identity_of(before.schema) == identity:
        rows = [
            (row["task"], schemas.point_of(row), row["metric"], row["value"], row["n"]) for row in before.to_pylist()
        ]
    known = {row[1] for row in rows}
    for lam in sorted(set.intersection(*(set(plan[name].lambdas) for name in parts)), key=order):
        if lam not in known and all(is_complete(run, plan, name, lam) for name in parts):
            damaged = len(run.damaged)
            answers: dict[str, RequestScores | RequestTexts] = {}
            for name, part in parts.items():
                if isinstance(part, BuiltPrompts):
                    answers[name] = read_texts(part.table, run.generations(name, lam))
                else:
                    answers[name] = read_scores(part.table, run.tokens(name, lam))
            if len(run.damaged) > damaged:
                continue  # its units are done again, and then it has metrics
            rows += _rows(harness, built, answers, lam)
    places = {name: place for place, name in enumerate([*(task.source.name for task in built), *harness.groups])}
    rows.sort(key=lambda row: (places[row[0]], order(row[1]), row[2]))
    table = schemas.table_of(schemas.OUTCOMES, rows)
    commit_table(path, table, identity)
    return table


def is_complete(run: RunDir, plan: Plan, task: str, lam: str) -> bool:
    """Tell whether every unit of a task is committed at a λ."""
    return len(run.committed(task, lam, plan[task].completion)) == len(plan[task].shards)


def read_texts(requests: pa.Table, generations: pa.Table) -> "RequestTexts":
    """Return the outputs of each request of a table, in the order of the samples; none where it is in quarantine."""
    found: list[list[str]] = [[] for _ in range(len(requests))]
    for request, text in zip(generations["request_id"].to_pylist(), generations["text"].to_pylist(), strict=True):
        found[request].append(text)
    return RequestTexts(found)


def read_scores(requests: pa.Table, tokens: pa.Table) -> RequestScores:
    """Sum up the scores of each request of a table.

    A token is the most likely one if it is the engine's top-1 token, which is what lm-eval goes by; where the engine named
    no top-1 token, it is the most likely one if its rank is 1.

    Args:
        requests: the requests, as schemas.REQUESTS.
        tokens: the committed rows at one λ, as schemas.TOKENS.

    Raises:
        LambdasweepError: a committed table has more or fewer scores than its requests have tokens.
    """
    count = len(requests)
    request = tokens["request_id"].to_numpy()
    lists = tokens["logprobs"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    owners = np.repeat(np.arange(len(request)), lengths)
    sums = np.bincount(owners, lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64), len(request))
    scored = _scored_tokens(requests, request)
    top1 = _flat(tokens["top1_ids"])
    rank = _flat(tokens["ranks"])
    if not len(scored) == len(owners) == len(top1) == len(rank):
        raise LambdasweepError(
            "a committed table has more or fewer scores than its requests have tokens: delete its file"
        )
    unknown = (top1 < 0) & (rank < 1)
    missed = np.where(top1 >= 0, top1 != scored, rank > 1)
    any_missed = np.bincount(owners, missed, len(request)) > 0
    any_unknown = np.bincount(owners, unknown, len(request)) > 0
    logprob = np.full(count, np.nan)
    logprob[request] = sums
    greedy: list[bool | None] = [None] * count
    for index, is_missed, is_unknown in zip(request.tolist(), any_missed.tolist(), any_unknown.tolist(), strict=True):
        greedy[index] = False if is_missed else None if is_unknown else True
    return RequestScores(logprob.tolist(), greedy)


def _flat(column: pa.ChunkedArray) -> Ints:
    values: Ints = pc.fill_null(column.combine_chunks().flatten(), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _scored_tokens(requests: pa.Table, rows: Ints) -> Ints:
    """Return the tokens of these rows' continuations, one continuation after the other."""
    lists = requests["token_ids"].combine_chunks()
    flat = lists.flatten().to_numpy()
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths + requests["continuation_start"].to_numpy()
    runs = [flat[starts[row] : ends[row]] for row in rows.tolist()]
    found: Ints = np.concatenate(runs).astype(np.int64) if runs else np.empty(0, np.int64)
    return found


def _rows(harness: LmEvalTasks, built: Sequence[BuiltLmEvalTask], answers: Answers, lam: str) -> list[_Row]:
    found: dict[str, dict[str, _Value]] = {}
    left_out: dict[str, int] = {}
    totals: dict[str, int] = {}
    for task in built:
        source = task.source
        complete = []
        for asked, rows in zip(source.asked, task.rows, strict=True):
            results = responses(asked, rows, answers)
            complete += [] if results is None else [(asked, results)]
        with quiet():
            try:
                found[source.name] = evaluate(source.task, complete)
            except Exception as error:  # the task's own functions may raise anything
                raise LambdasweepError(
                    f"task {source.name} at λ = {lam}: lm-eval cannot make metrics of the scores "
                    f"({type(error).__name__}: {error}). The scores are committed; mend the task and run again"
                ) from error
        totals[source.name] = len(source.asked)
        left_out[source.name] = len(source.asked) - len(complete)
    names = {task.source.task.task_name: task.source.name for task in built}
    for name, group in harness.groups.items():
        members = [names[member.task_name] for member in group.get_all_tasks()]
        totals[name] = sum(totals[member] for member in members)
        left_out[name] = sum(left_out[member] for member in members)
        # If a member had no value, the group's metric would silently be the mean of the other members.
        is_whole = all(left_out[member] < totals[member] for member in members)
        found[name] = aggregate(group, {theirs: found[ours] for theirs, ours in names.items()}) if is_whole else {}
    made: list[_Row] = []
    for name, values in found.items():
        made.append((name, lam, LEFT_OUT, float(left_out[name]), totals[name]))
        made += [(name, lam, metric, None if math.isnan(value) else value, n) for metric, (value, n) in values.items()]
    return made


def responses(asked: AskedDocument, rows: Sequence[tuple[str, int, int]], answers: Answers) -> list[Any] | None:
    """Return what a model of lm-eval's would have answered to each instance of a document, or None if a score is missing.

    Args:
        asked: the document with its instances.
        rows: the document's entry in `BuiltLmEvalTask.rows`.
        answers: the engine's answers to each part, by the part's name.
    """
    found: list[Any] = []
    for instance, (part, first, end) in zip(asked.instances, rows, strict=True):
        given = answers[part]
        if isinstance(given, RequestTexts):
            if not given.texts[first]:
                return None
            found.append(given.texts[first])
            continue
        logprobs = given.logprob[first:end]
        greedy = given.greedy[first:end]
        is_rolling = instance.request_type == ROLLING
        if any(map(math.isnan, logprobs)) or (not is_rolling and None in greedy):
            return None
        # A text without tokens has no windows, so its log-likelihood is 0.
        found.append(sum(logprobs) if is_rolling else (logprobs[0], bool(greedy[0])))
    return found


def evaluate(task: Any, complete: Sequence[tuple[AskedDocument, list[Any]]]) -> dict[str, _Value]:
    """Compute lm-eval's metrics of a task, named `<metric>,<filter>`, from the answers to its complete documents."""
    if not complete:
        return {}
    for asked, results in complete:
        for instance, result in zip(asked.instances, results, strict=True):
            # A list is of several outputs; where there is one, all that lm-eval asks for would be the same.
            given = result if isinstance(result, list) and len(result) > 1 else None
            one = result[0] if isinstance(result, list) else result
            instance.resps, instance.filtered_resps = list(given or [one] * (instance.repeats or 1)), {}
    # lm-eval's filters go over all instances of the task, and must not meet one without an answer.
    task._instances = [instance for asked, _ in complete for instance in asked.instances]
    task.apply_filters()
    raw: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for filtered in task._instances[0].filtered_resps:
        for asked, _ in complete:
            results = [instance.filtered_resps[filtered] for instance in asked.instances]
            for metric, value in task.process_results(asked.doc, results).items():
                raw[metric, filtered].append(value)
    aggregation = task.aggregation()
    return {
        f"{metric},{filtered}": (_aggregated(aggregation.get(metric, _mean), items), len(items))
        for (metric, filtered), items in raw.items()
    }


def aggregate(group: Any, metrics: dict[str, dict[str, _Value]]) -> dict[str, _Value]:
    """Compute the metrics of a group of lm-eval from those of its tasks, whose names are lm-eval's."""
    flat = {
        name: {"sample_len": max((n for _, n in values.values()), default=0)}
        | {metric: value for metric, (value, _) in values.items()}
        for name, values in metrics.items()
    }
    with quiet():
        found = group.aggregate(flat)
    return {metric: (float(found[metric]), int(n)) for metric, n in found.get("sample_count", {}).items()}


def _mean(items: Sequence[float]) -> float:
    return sum(items) / len(items)


def _aggregated(function: Any, items: list[Any]) -> float:
    try:
        return float(function(items))
    except OverflowError:  # a perplexity can be beyond float64
        return math.nan
