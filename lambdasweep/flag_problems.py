"""This module finds settings of tasks and samples that are out of range, or about something that nobody asked for.

They are found before any file is opened, so that all of them are told at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambdasweep.settings import SamplingSettings, TaskSettings, as_flag, names_of, problems_of
from lambdasweep.tasks.documents import WRITTEN, TaskSpec, temperature_problems
from lambdasweep.tasks.format_names import FORMATS, GENERATE
from lambdasweep.tasks.lm_eval_tasks.spec import PREFIX, LmEvalSpec

_GROUPS = {"task": TaskSettings, "generate": SamplingSettings}


def out_of_range(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting of all tasks and samples that is out of range."""
    found = [line for group in _GROUPS.values() for line in problems_of(values, group)]
    return list(dict.fromkeys(found + temperature_problems(values.get("temperature"), as_flag("temperature"))))


def rows_out_of_range(values: Mapping[str, Any], given: Collection[str], file: Path | None) -> Iterator[str]:
    """Yield a line for each setting of a [[task]] or a [[generate]] that is out of range, and that no flag replaces."""
    for table, group in _GROUPS.items():
        for index, row in enumerate(values.get(table, [])):
            own = {name: value for name, value in row.items() if name not in given}
            for line in problems_of(own, group, str) + temperature_problems(own.get("temperature")):
                yield f"{file}: [[{table}]] {index + 1} ({row['name']}): {line}"


def about_other_formats(values: dict[str, Any], given: dict[str, Any], file: Path | None) -> Iterator[str]:
    """Yield a line for each [[task]] that says how answers are written, and whose format has none.

    What is said of all tasks at once is not about such a task, and is no mistake.
    """
    for index, row in enumerate(values.get("task", [])):
        own = [name for name in WRITTEN if name in row]
        form = given.get("format") or row.get("format") or values.get("format") or TaskSettings().format
        if own and form != GENERATE and not str(row["file"]).startswith(PREFIX):
            which = f"[[task]] {index + 1} ({row['name']})"
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
