"""This module makes all that a sweep needs of a `SweepConfig`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import InputError, PairError, join
from contract.points import order
from contract.records import Begun, Plan
from lambdasweep.config import SweepConfig
from lambdasweep.engine_defaults import cache_warnings, fit, how_long, model_warnings, rope_warnings, settle
from lambdasweep.flag_problems import given_of_written, no_answers
from lambdasweep.tasks.answers import AnswerSpec, Grader, answers_of
from lambdasweep.tasks.chat import ChatTemplate, read_template
from lambdasweep.tasks.documents import TaskFile, TaskSpec, read_documents
from lambdasweep.tasks.lm_eval_tasks.grade import LmEvalGrader
from lambdasweep.tasks.lm_eval_tasks.load import LmEvalTask, LmEvalTasks, load_lm_eval
from lambdasweep.tasks.lm_eval_tasks.requests import BuiltLmEvalTask, build_answers, build_instances
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.prompts import (
    BuiltPrompts,
    GenerateSpec,
    prompt_costs,
    prompt_shards,
    read_prompts,
    stop_tokens,
    tokenised,
)
from lambdasweep.tasks.requests import BuiltTask, common_prefix, requests_of, shards
from lambdasweep.tasks.tokens import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from merge.pair import Pair
    from serve.machine import Gpus
    from serve.settings import EngineSettings

T = TypeVar("T")

# A shard takes minutes on its hardware: large enough that what a unit computes once costs nothing, small enough that
# losing one does not matter.
SHARD_TOKENS = {"cpu": 16_384, "cuda": 262_144}


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task's requests, cut into shards; `costs` are tokens per shard."""

    spec: TaskSpec | LmEvalTask
    built: BuiltTask
    shards: tuple[tuple[int, int], ...]
    costs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreparedPrompts:
    """A generate task's prompts, cut into shards; `costs` are the most tokens per shard: prompts, samples and questions.

    Where the samples are answers to documents, `grader` grades them.
    """

    spec: GenerateSpec | AnswerSpec
    built: BuiltPrompts
    shards: tuple[tuple[int, int], ...]
    costs: tuple[int, ...]
    grader: Grader | None = None

    @property
    def output_costs(self) -> tuple[int, ...]:
        """The most tokens per shard of what is scored again: prompts and samples, and no questions."""
        asked = self.spec.samples * self.built.question_tokens
        return tuple(cost - asked * (end - first) for (first, end), cost in zip(self.shards, self.costs, strict=True))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sweep that is ready to be recorded and run."""

    config: SweepConfig
    pair: "Pair"
    settings: "EngineSettings"
    tasks: dict[str, PreparedTask]
    harnesses: tuple[tuple[LmEvalTasks, tuple[BuiltLmEvalTask, ...]], ...] = ()
    prompts: dict[str, PreparedPrompts] = field(default_factory=dict)
    engine_warnings: tuple[str, ...] = ()
    length: str = ""
    """Why engines take requests of `settings.max_model_len` tokens."""
    refined: tuple[str, ...] = ()
    """Canonical λs that were added to those of the config; nothing is sampled there."""

    def cut_as(self, plan: Plan) -> "Prepared":
        """Return it with the shards that a run was begun with, because committed tables are of these."""

        def cut(name: str, task: Any) -> Any:
            recorded = plan.get(name)
            if recorded is None or not recorded.shards:
                return task
            # A plan without costs has rows in their place: costs only balance the work.
            costs = recorded.costs or tuple(end - first for first, end in recorded.shards)
            return replace(task, shards=recorded.shards, costs=costs)

        return replace(
            self,
            tasks={name: cut(name, task) for name, task in self.tasks.items()},
            prompts={name: cut(name, task) for name, task in self.prompts.items()},
        )

    @property
    def everything(self) -> dict[str, PreparedTask | PreparedPrompts]:
        """All tasks, by name."""
        return {**self.tasks, **self.prompts}

    def lambdas(self, task: str) -> tuple[str, ...]:
        """Return the λs of a task, ascending."""
        return self.config.lambdas if task in self.prompts else self.scored_at

    @property
    def scored_at(self) -> tuple[str, ...]:
        """The λs of the tasks that are scored, ascending."""
        return tuple(sorted({*self.config.lambdas, *self.refined}, key=order))

    @property
    def warnings(self) -> list[str]:
        told = [text for harness, _ in self.harnesses for text in harness.warnings]
        of_tasks = [text for task in self.everything.values() for text in task.built.warnings]
        return [*self.config.warnings, *self.pair.warnings, *self.engine_warnings, *told, *of_tasks]


def prepare(config: SweepConfig, recorded: Mapping[str, Any] | None = None) -> Prepared:
    """Open the pair, read and tokenise the tasks, and settle the engine's settings.

    Each file is read once: what is built is what was checked.

    Args:
        config: what was asked for.
        recorded: `engine` of the run's sweep.json; what was left to lambdasweep then stays as it was settled then.

    Raises:
        InputError: with everything that is wrong with the pair and all of the tasks.
    """
    from merge.line import Line
    from merge.pair import open_pair
    from merge.text_part import only_text
    from serve.settings import installed_device

    failures = [InputError(problem) for problem in config.problems]

    def collect(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except InputError as error:
            failures.append(error)
            return None

    line = Line(config.method, config.lam_map, config.vocab)
    revisions = config.base_revision, config.aligned_revision
    pair = collect(lambda: open_pair(config.base, config.aligned, *revisions, line))
    if pair is not None:
        collect(lambda: only_text(pair))
    device = collect(installed_device)
    tokenizer = source = chat = stops = None
    if pair is not None:
        is_base = config.tokenizer == "base"
        parent, other = pair.parent(config.tokenizer), "aligned" if is_base else "base"
        tokenizer = collect(lambda: _load_tokenizer(parent.path, other))
        if any(spec.chat for spec in (*config.tasks, *config.generate)):
            source = collect(lambda: read_template((pair.aligned if is_base else parent).path))
    if tokenizer is not None and source is not None:
        chat = ChatTemplate(source, tokenizer)
    read: list[TaskFile | LmEvalTasks | None] = [
        collect(lambda spec=spec: _load(spec, chat))  # type: ignore[misc]
        for spec in config.tasks
    ]
    files = [collect(lambda spec=spec: read_prompts(spec)) for spec in config.generate]  # type: ignore[misc]
    if pair is not None and tokenizer is not None and (config.generate or any(_is_written(one) for one in read if one)):
        stops = collect(lambda: stop_tokens(parent.path, tokenizer))
    collect(lambda: _check_names([one for one in read if one], config.generate))
    if all(read) and not config.problems:  # a format that is misspelt may be one of written answers
        collect(lambda: _check_written(config, [one for one in read if one]))
        collect(lambda: _check_pmi(config, [one for one in read if one]))
    if failures or pair is None or device is None or tokenizer is None:
        raise join(failures)
    samples = bool(config.generate) or any(_is_written(one) for one in read if one)
    settings = settle(config, pair, device, recorded, samples)
    tasks: dict[str, PreparedTask] = {}
    prompts: dict[str, PreparedPrompts] = {}
    harnesses = []

    def sampled(spec: GenerateSpec | AnswerSpec, built: BuiltPrompts, grader: Grader | None = None) -> None:
        if spec.chat and (others := stop_tokens(pair.aligned.path, tokenizer)) != stops:
            text = (
                f"task {spec.name}: samples end at base's end tokens {list(stops or ())}, and the aligned model ends "
                f"its turns with {list(others)}: --tokenizer aligned takes those"
            )
            built = replace(built, warnings=(*built.warnings, text))
        costs = prompt_costs(spec.samples, spec.max_tokens + built.question_tokens, built.table)
        common = common_prefix(built.table["token_ids"]) if len(costs) else 0
        runs = tuple(prompt_shards([cost - common for cost in costs], spec.samples, SHARD_TOKENS[device]))
        sums = tuple(sum(costs[first:end]) for first, end in runs)
        prompts[spec.name] = PreparedPrompts(spec, built, runs, sums, grader)

    for one in read:
        found: list[tuple[str, TaskSpec | LmEvalTask, BuiltTask]] = []
        if isinstance(one, LmEvalTasks):
            # Its windows over whole texts are those of the model, however long the other requests are.
            instances: list[BuiltLmEvalTask] = []
            for task in one.tasks:
                if task.outputs is not None:
                    each, answering = build_answers(task, tokenizer, stops or ())
                    for part in each.parts.values():
                        if isinstance(part, BuiltPrompts):
                            sampled(answering, part, LmEvalGrader(task))
                else:
                    each = build_instances(task, tokenizer, settings.max_model_len)
                    found += [(name, task, part) for name, part in each.parts.items() if isinstance(part, BuiltTask)]
                instances.append(each)
            harnesses.append((one, tuple(instances)))
        elif one and one.kind == "answers":
            answers = collect(lambda one=one: answers_of(one, tokenizer, stops or (), chat))  # type: ignore[misc]
            if answers is not None:
                sampled(*answers)
        elif one:
            requests = collect(lambda one=one: requests_of(one, tokenizer, chat))  # type: ignore[misc]
            found = [(one.spec.name, one.spec, requests)] if requests is not None else []
        for name, spec, built in found:
            runs = tuple(shards(built.table, SHARD_TOKENS[device]))
            tasks[name] = PreparedTask(spec, built, runs, tuple(token_counts(built.table, runs)))
    for file in filter(None, files):
        texts = collect(lambda file=file: tokenised(file, tokenizer, stops or (), chat))  # type: ignore[misc]
        if texts is not None:
            sampled(file.spec, texts)
    if failures:
        raise join(failures)
    longest = _longest(tasks, prompts)
    settings = fit(settings, config, pair, recorded, longest, samples, _gpus(device))
    return Prepared(
        config=config,
        pair=pair,
        settings=settings,
        tasks=tasks,
        harnesses=tuple(harnesses),
        prompts=prompts,
        engine_warnings=(
            *model_warnings(settings, pair),
            *rope_warnings(settings, pair),
            *cache_warnings(settings, config, recorded, samples),
        ),
        length=how_long(settings, config, recorded, longest),
    )


def prepare_for(begun: Begun, config: SweepConfig) -> Prepared:
    """Prepare a sweep as its run directory was begun: with the engine's settings of sweep.json and the shards of plan.json.

    Args:
        begun: the records of the run directory.
        config: what was asked for.

    Raises:
        InputError: as `prepare` does.
    """
    return prepare(config) if begun.sweep is None else prepare(config, begun.sweep.engine).cut_as(begun.asked.plan)


def _gpus(device: str) -> "Gpus | None":
    from serve.machine import gpus

    return gpus() if device == "cuda" else None


def _longest(tasks: Mapping[str, PreparedTask], prompts: Mapping[str, PreparedPrompts]) -> int:
    """Return the tokens of the longest request, with what may be sampled after it; 0 where there is none."""
    scored = [_most(task.built.table) for task in tasks.values()]
    sampled = [_most(one.built.table) + one.spec.max_tokens + one.built.question_tokens for one in prompts.values()]
    return max([*scored, *sampled], default=0)


def _most(table: pa.Table) -> int:
    return int(pc.max(pc.list_value_length(table.column("token_ids"))).as_py() or 0)


def _load(spec: TaskSpec | LmEvalSpec, chat: ChatTemplate | None) -> TaskFile | LmEvalTasks:
    """Read a task, and check it as far as that goes without a tokenizer."""
    return load_lm_eval(spec, chat) if isinstance(spec, LmEvalSpec) else read_documents(spec)


def _check_names(read: list[TaskFile | LmEvalTasks], generate: tuple[GenerateSpec, ...]) -> None:
    names = [name for one in read for name in (one.names if isinstance(one, LmEvalTasks) else [one.spec.name])]
    names += [spec.name for spec in generate]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"tasks are named twice: {', '.join(twice)}: give each its own name, as NAME=lm-eval:TASK")


def _is_written(one: TaskFile | LmEvalTasks) -> bool:
    """Tell whether the model writes answers of a task, or of one of several; these alone need end tokens."""
    return any(task.outputs for task in one.tasks) if isinstance(one, LmEvalTasks) else one.kind == "answers"


def _check_written(config: SweepConfig, read: list[TaskFile | LmEvalTasks]) -> None:
    """Refuse settings of written answers where no answer is written."""
    given = given_of_written(config.tasks, bool(config.generate), bool(config.rescore))
    if not any(_is_written(one) for one in read):
        for problem in no_answers(given):
            raise InputError(problem)


def _check_pmi(config: SweepConfig, read: list[TaskFile | LmEvalTasks]) -> None:
    """Refuse an unconditional pass where no task has choices that it could be of."""
    asked = any(isinstance(spec, TaskSpec) and spec.pmi for spec in config.tasks)
    if asked and not any(isinstance(one, TaskFile) and one.kind == "choices" and one.spec.pmi for one in read):
        raise InputError("--pmi is about tasks with choices, and there is none with pmi: leave it out")


def _load_tokenizer(path: Path, other: str) -> Tokenizer:
    try:
        return load_tokenizer(path)
    except PairError:
        if (path / "tokenizer.json").exists():
            raise
        # What transformers says then is about converters.
        raise PairError(f"{path} has no tokenizer.json: put it there, or give --tokenizer {other}") from None


def token_counts(table: pa.Table, runs: tuple[tuple[int, int], ...]) -> list[int]:
    """Return the tokens of each run of rows."""
    lengths = pc.list_value_length(table.column("token_ids")).to_numpy()
    return [int(lengths[first:end].sum()) for first, end in runs]
