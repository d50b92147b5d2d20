"""This module finds settings of tasks and samples that are out of range, or about something that nobody asked for.

They are found without the files of the tasks. So that each is told once, and together with what is wrong with the files, a
setting that is told of is then left out.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lambdasweep.settings import SamplingSettings, TaskSettings, as_flag, names_of, problems_of
from lambdasweep.tasks.documents import WRITTEN, TaskSpec, temperature_problems
from lambdasweep.tasks.format_names import FORMATS, GENERATE
from lambdasweep.tasks.lm_eval_tasks.spec import PREFIX, LmEvalSpec

T = TypeVar("T")

_GROUPS = {"task": TaskSettings, "generate": SamplingSettings}


def out_of_range(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each setting of all tasks and samples that is out of range, by its name."""
    return {name: line for group in _GROUPS.values() for name, line in _out_of_range(values, group, as_flag)}


def take_out_of_range(values: Mapping[str, Any], given: Collection[str], file: Path | None) -> Iterator[str]:
    """Yield a line for each setting of a [[task]] or a [[generate]] that is out of range, and leave it out there.

    Those that a flag replaces are no matter.
    """
    for table, group in _GROUPS.items():
        for index, row in enumerate(values.get(table, [])):
            for name, line in [*_out_of_range({name: row[name] for name in row if name not in given}, group, str)]:
                del row[name]
                yield f"{file}: {_which(table, index, row)}: {line}"


def _out_of_range(values: Mapping[str, Any], group: type, called: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    for name in names_of(group):
        found = problems_of({name: values.get(name)}, group, called)
        if name == "temperature":
            found += temperature_problems(values.get(name), called(name))
        yield from ((name, line) for line in found)


def without(spec: T, names: Collection[str]) -> T:
    """Return what is asked for without some settings."""
    fields = {one.name: one.default for one in dataclasses.fields(spec) if one.name in names}  # type: ignore[arg-type]
    return dataclasses.replace(spec, **fields)  # type: ignore[type-var]


def _which(table: str, index: int, row: Mapping[str, Any]) -> str:
    return f"[[{table}]] {index + 1} ({row.get('name') or row['file']})"


def about_other_formats(values: dict[str, Any], given: dict[str, Any], file: Path | None) -> Iterator[str]:
    """Yield a line for each [[task]] that says how answers are written, and whose format has none.

    What is said of all tasks at once is not about such a task, and is no mistake.
    """
    for index, row in enumerate(values.get("task", [])):
        own = [name for name in WRITTEN if name in row]
        form = given.get("format") or row.get("format") or values.get("format") or TaskSettings().format
        if own and form != GENERATE and not str(row["file"]).startswith(PREFIX):
            which = _which("task", index, row)
            yield (
                f"{file}: {which}: {', '.join(own)} {'is' if len(own) == 1 else 'are'} about answers that the model writes, "
                f"and its format is {form}: leave {'it' if len(own) == 1 else 'them'} out, or give format generate"
            )


def about_nothing(given: Collection[str], has_tasks: bool, has_prompts: bool) -> dict[str, str]:
    """Return a line for each flag that is about tasks or samples which nobody asked for, by its name."""
    if has_tasks is has_prompts:
        return {}
    of_others = set(names_of(SamplingSettings if has_tasks else TaskSettings))
    of_others -= set(names_of(TaskSettings if has_tasks else SamplingSettings))
    missing, what = ("--generate", "samples") if has_tasks else ("--task", "tasks that are scored")
    return {
        name: f"{as_flag(name)} is about {what}: give a {missing}, or leave it out"
        for name in sorted(of_others & set(given))
    }


def about_written(specs: Sequence[TaskSpec | LmEvalSpec], has_prompts: bool, rescores: bool) -> list[str]:
    """Return the settings of written answers that are given where no answer is written, as far as formats tell.

    What a task of lm-eval asks for is known when it is loaded.
    """
    if any(isinstance(spec, LmEvalSpec) or spec.format == GENERATE or spec.format not in FORMATS for spec in specs):
        return []
    return given_of_written(specs, has_prompts, rescores)


def given_of_written(specs: Sequence[TaskSpec | LmEvalSpec], has_prompts: bool, rescores: bool) -> list[str]:
    """Return the settings of written answers that tasks have; not those of samples, too, where there are any."""
    given = sorted({name for spec in specs for name in WRITTEN if getattr(spec, name, None) is not None})
    given = [name for name in given if not (has_prompts and name in names_of(SamplingSettings))]
    return given + (["rescore"] if rescores else [])


def no_answers(given: Sequence[str]) -> list[str]:
    """Return what is wrong with settings of written answers where no answer is written, if there are any."""
    if not given:
        return []
    flags, them = ", ".join(as_flag(name) for name in given), "it" if len(given) == 1 else "them"
    return [f"{flags}: no task has answers that the model writes: leave {them} out, or give --format {GENERATE}"]
