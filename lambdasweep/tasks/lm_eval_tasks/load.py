"""This module finds the task objects of lm-evaluation-harness for the task that a user names.

Documents, prompts, examples and targets are those of lm-eval's objects, which are set up as its `simple_evaluate` sets them
up; with a chat template that is done as with `apply_chat_template=True`. lm-eval is imported where it is used, because it
is an optional extra.
"""

import contextlib
import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from contract.errors import InputError, TaskError
from lambdasweep.settings import TaskSettings, problems_of
from lambdasweep.tasks.answers import greedy_warnings
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import check_name, system_problems, temperature_problems
from lambdasweep.tasks.lm_eval_tasks.outputs import (
    AskedDocument,
    Outputs,
    generation_kwargs,
    outputs_of,
)
from lambdasweep.tasks.lm_eval_tasks.process_state import quiet, seeded
from lambdasweep.tasks.lm_eval_tasks.right_outputs import metric_warnings
from lambdasweep.tasks.lm_eval_tasks.spec import (
    GENERATE_UNTIL,
    PREFIX,
    ROLLING,
    VERSION,
    LmEvalSpec,
    first_line,
    task_error,
)

_GROUP = re.compile(r"^group\s*:\s*([\"']?)([^\"'#\n]+?)\1\s*(?:#.*)?$", re.MULTILINE)
_SCORED = {"loglikelihood", ROLLING, "multiple_choice", GENERATE_UNTIL}


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """One task of lm-eval; `task` is lm-eval's object, and `name` is the task's name here."""

    name: str
    task: Any
    asked: tuple[AskedDocument, ...]
    source: str
    shots: int
    limit: int | None
    seed: int
    format: str = "lm-eval"
    chat: ChatTemplate | None = None
    system_prompt: str | None = None
    as_turns: bool = False  # whether its examples are turns of their own
    groups: tuple[str, ...] = ()  # the names here of the groups that it belongs to, directly or through another group
    outputs: Outputs | None = None  # how its answers are written; None where log-likelihoods are scored


@dataclass(frozen=True, slots=True)
class LmEvalTasks:
    """Everything that one `LmEvalSpec` stands for: a task, or several with the groups that put their metrics together.

    `groups` holds lm-eval's group objects by the names that they have here.
    """

    name: str
    tasks: tuple[LmEvalTask, ...]
    groups: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """Return all names that results of this harness have."""
        return {self.name, *self.groups, *(task.name for task in self.tasks)}


def load_lm_eval(spec: LmEvalSpec, chat: ChatTemplate | None = None) -> LmEvalTasks:
    """Load lm-eval's tasks and their data sets, which may download the data sets, and let lm-eval build its instances.

    `chat` is needed, and used, only if `spec.chat` is set.

    Raises:
        InputError: lm-eval is not installed, or another version of it is.
        TaskError: lm-eval does not know the task, cannot load or build it, or it asks for what is not done here; the
            error lists every problem.
    """
    _check_installed()
    chat = chat.asked(spec.system_prompt) if spec.chat and chat else None
    problems = problems_of(asdict(spec), TaskSettings, str) + temperature_problems(spec.temperature)
    problems += system_problems(spec.system_prompt, spec.chat)
    problems += chat.check_system(spec.system_prompt) if chat else []
    if spec.name is not None:
        problems += check_name(spec.name)
    if problems:
        raise task_error(spec, problems)
    with quiet(), seeded():
        try:
            loaded = _load(spec)
        except TaskError:
            raise
        except Exception as error:  # lm-eval's task files and the data sets' library may raise anything
            raise task_error(spec, [f"{type(error).__name__}: {first_line(error)}"]) from error
        tasks, groups = loaded["tasks"], loaded.get("groups") or {}
        problems = [problem for name, task in tasks.items() for problem in _unfit(name, task)]
        if not tasks:
            problems.append("it holds no task")
        if problems:
            raise task_error(spec, problems)
        warnings = [warning for name, task in tasks.items() for warning in _set_up(name, task, spec, chat)]
        asked = {name: _ask(name, task, spec, chat) for name, task in tasks.items()}
        outputs: dict[str, Outputs | None] = {}
        for name, task in tasks.items():
            try:
                outputs[name] = outputs_of(name, task, asked[name], spec)
            except TaskError as error:
                problems += error.problems
        if problems:
            raise task_error(spec, problems)
        warnings += [
            warning
            for name, one in outputs.items()
            if one
            for warning in (*greedy_warnings(name, one.repeats, one.temperature), *metric_warnings(name, one.metric))
        ]
    top = next(iter(groups), None)  # the group that was asked for comes first
    names = _names(spec, [*tasks, *groups], next(iter(tasks)) if len(tasks) == 1 and not groups else top)
    members = tuple(
        LmEvalTask(
            name=names[name],
            task=task,
            asked=asked[name],
            source=PREFIX + _known_as(spec),
            shots=task.config.num_fewshot,
            limit=spec.limit,
            seed=spec.seed,
            chat=None if task.OUTPUT_TYPE == ROLLING else chat,
            system_prompt=None if task.OUTPUT_TYPE == ROLLING else spec.system_prompt,
            as_turns=spec.template == "chat-turns" and task.OUTPUT_TYPE != ROLLING,
            groups=tuple(names[group] for group, one in groups.items() if task in one.get_all_tasks()),
            outputs=outputs[name],
        )
        for name, task in tasks.items()
    )
    name = spec.name or (names[top] if top else members[0].name if len(members) == 1 else _safe(spec.source))
    return LmEvalTasks(name, members, {names[group]: groups[group] for group in groups}, tuple(warnings))


def _check_installed() -> None:
    try:
        version = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise InputError(f"tasks named {PREFIX}… need lm-eval: install lambdasweep[lm-eval]") from None
    if version != VERSION:
        raise InputError(
            f"tasks named {PREFIX}… need lm-eval {VERSION}, and {version} is installed: install lambdasweep[lm-eval]"
        )


def _load(spec: LmEvalSpec) -> Any:
    from lm_eval.tasks import TaskManager

    if not spec.is_file:
        manager = TaskManager()
        if spec.source not in manager.all_tasks:
            close = difflib.get_close_matches(spec.source, manager.all_tasks, n=3)
            hint = f": did you mean {' or '.join(close)}?" if close else ": give a name that `lm-eval ls tasks` prints"
            raise task_error(spec, [f"lm-eval {VERSION} has no task of that name{hint}"])
        return manager.load(spec.source)
    path = Path(spec.source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror}): check the path and its permissions"
        raise task_error(spec, [problem]) from None
    if group := _GROUP.search(text):
        # The group is loaded by name, because lm-eval takes none by path; members may be in its folder, or lm-eval's own.
        manager = TaskManager(include_path=str(path.parent))
        there = manager.task_index[group[2]].yaml_path
        if there is None or Path(there).resolve() != path.resolve():
            raise task_error(spec, [f"{there} has a group of the same name: rename one of them"])
        return manager.load(group[2])
    return TaskManager(include_defaults=False).load(str(path))


def _unfit(name: str, task: Any) -> Iterator[str]:
    kind = task.OUTPUT_TYPE
    if kind not in _SCORED:
        yield f"{name} is a {kind} task: only {', '.join(sorted(_SCORED))} are scored here"
    if getattr(task, "MULTIMODAL", False):
        yield f"{name} has images or sound, and only text is scored here"
    if getattr(task, "UNSAFE_CODE", False):
        yield f"{name} runs code that a model wrote, which is not done here"


def _set_up(name: str, task: Any, spec: LmEvalSpec, chat: ChatTemplate | None) -> Iterator[str]:
    """Settle the number of examples and their seed as lm-eval's evaluator does; yield what the user should know."""
    default = task.get_config("num_fewshot")
    if spec.shots is not None and default == 0 and spec.shots != 0:
        yield f"task {name}: says itself that it takes 0 shots, so lm-eval does not give it {spec.shots}"
    elif spec.shots is not None:
        task.set_config(key="num_fewshot", value=spec.shots)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=spec.seed)
    if task.OUTPUT_TYPE == GENERATE_UNTIL:
        if spec.repeats is not None:
            task.set_config(key="repeats", value=spec.repeats)
        if changes := generation_kwargs(spec):
            task.set_config(key="generation_kwargs", value=changes, update=True)
    if chat and task.OUTPUT_TYPE == ROLLING:
        yield f"task {name}: lm-eval scores whole texts as they are, without a chat template"
    elif chat and task.get_config("description") and not chat.takes_system:
        yield f"task {name}: the chat template takes no system message, so lm-eval leaves its description out"


def _ask(name: str, task: Any, spec: LmEvalSpec, chat: ChatTemplate | None) -> tuple[AskedDocument, ...]:
    try:
        # lm-eval draws a progress bar while it builds requests.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            task.build_all_requests(
                limit=spec.limit,
                system_instruction=spec.system_prompt if chat is not None else None,
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=spec.template == "chat-turns",
                chat_template=chat,
            )
        documents = list(task.doc_iterator(limit=spec.limit))
    except Exception as error:  # the task's own functions may raise anything
        problem = f"{name}: lm-eval cannot build its requests ({type(error).__name__}: {first_line(error)})"
        raise task_error(spec, [problem]) from error
    kinds = {instance.request_type for instance in task.instances}
    if len(kinds) > 1 or not kinds <= {"loglikelihood", ROLLING, GENERATE_UNTIL}:
        raise task_error(spec, [f"{name} asks for {' and '.join(sorted(kinds))}: only one kind of request is done"])
    for instance in task.instances:
        for part in instance.args[:1] if kinds == {GENERATE_UNTIL} else instance.args:
            if not isinstance(part, str):
                problem = (
                    f"{name}: doc_to_text or doc_to_target of document {instance.doc_id} is a {type(part).__name__}"
                )
                raise task_error(spec, [f"{problem}, where a text is scored: let it give one text"])
    found = defaultdict(list)
    for instance in task.instances:
        found[instance.doc_id].append(instance)
    return tuple(
        AskedDocument(number, doc, tuple(sorted(found[number], key=lambda instance: instance.idx)))
        for number, doc in documents
    )


def _names(spec: LmEvalSpec, names: Sequence[str], top: str | None) -> dict[str, str]:
    """Return the name here of each of lm-eval's names: `top` has the user's name, others have that name in front."""
    found = {name: _safe(name) for name in names}
    if spec.name is not None:
        found = {name: spec.name if name == top else f"{spec.name}.{safe}" for name, safe in found.items()}
    problems = [problem for name in found.values() for problem in check_name(name)]
    twice = sorted({name for name in found.values() if list(found.values()).count(name) > 1})
    problems += [f"two of its tasks and groups would both be called {name!r} here" for name in twice]
    if problems:
        raise task_error(spec, problems)
    return found


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _known_as(spec: LmEvalSpec) -> str:
    return str(Path(spec.source).resolve()) if spec.is_file else spec.source
