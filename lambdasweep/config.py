"""This module makes one checked `SweepConfig` of the flags and of `--config sweep.toml`; flags win."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.grid import stops_short
from contract.location import Location, locate
from contract.points import ONLY, by_name, parse_points
from lambdasweep.aligned_flags import parse_aligned, parse_revisions
from lambdasweep.config_file import read_toml
from lambdasweep.flag_problems import (
    about_nothing,
    about_other_formats,
    about_written,
    no_answers,
    out_of_range,
    take_out_of_range,
    without,
)
from lambdasweep.settings import AUTO, PairSettings, SamplingSettings, TaskSettings, names_of, problems_of
from lambdasweep.settings import settings as settings_of
from lambdasweep.tasks.documents import WRITTEN, TaskSpec
from lambdasweep.tasks.format_names import FORMATS
from lambdasweep.tasks.lm_eval_tasks.spec import PREFIX, LmEvalSpec
from lambdasweep.tasks.prompts import GenerateSpec


@dataclass(frozen=True, slots=True)
class SweepConfig(PairSettings):
    """One sweep as asked for. None means: lambdasweep chooses, and records what it chose."""

    base: str
    """Directory or hub id of the checkpoint before alignment."""
    aligned: str | Mapping[str, str]
    """Directory or hub id of the checkpoint after alignment; several by name."""
    lambdas: tuple[str, ...]
    """Canonical λs, ascending; over several aligned checkpoints points, in order."""
    tasks: tuple[TaskSpec | LmEvalSpec, ...]
    out: Location
    """The run directory: a local path, or a prefix of an object store."""
    generate: tuple[GenerateSpec, ...] = ()
    """What is sampled at every λ."""
    refine: int = 0
    """How many λs may be added to these, where λ* may be."""
    rescore: tuple[str, ...] = ()
    """Canonical points under which what the model wrote is scored again."""
    margin: float = 1.0
    """The accuracy that λ* may give up for a lower NLL, in points."""
    warnings: tuple[str, ...] = ()
    """What was asked for and is taken, and probably means something else."""
    problems: tuple[str, ...] = ()
    """What is wrong with settings of tasks and samples, which is told together with what is wrong with their files."""


_ENGINE_NUMBERS = {"threads", "block_size", "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs"}
# Further arguments of which vLLM need not be asked: they are checked numbers, or lambdasweep's own.
CHECKED_ARGUMENTS = {"head_dtype", *_ENGINE_NUMBERS}
# What is asked of a pair and of its engines; further arguments of vLLM are read apart.
ENGINE_FIELDS = tuple(name for name in names_of(PairSettings) if name != "engine")


def load_config(
    flags: dict[str, Any], tasks: list[str], generate: list[str], engine: list[str], file: Path | None
) -> SweepConfig:
    """Merge flags over a TOML file and check every value that can be checked without opening anything.

    Args:
        flags: by name with underscores; None where a flag was not given.
        tasks: `NAME=FILE.jsonl`, `lm-eval:TASK` or `NAME=lm-eval:TASK` of each `--task`; any given replace the file's.
        generate: `NAME=PROMPTS.jsonl` of each `--generate`; any given replace the file's.
        engine: `KEY=VALUE` of each `--engine`; laid over the file's `[engine]`.
        file: TOML with the flags' names as keys, `[[task]]` tables (name, file and the fields of `TaskSettings`),
            `[[generate]]` tables (likewise, with `SamplingSettings`) and `[engine]`; relative paths in it start at its
            directory. `file = "lm-eval:TASK"` needs no name and takes no format.

    Raises:
        InputError: with every problem.
    """
    from serve.settings import parse_extra

    problems: list[str] = []
    values = read_toml(file, problems) if file else {}
    is_readable = not problems  # else what is missing may well be in the file
    given = {name: value for name, value in flags.items() if value is not None}
    problems += about_other_formats(values, given, file)
    late = [*take_out_of_range(values, given, file)]
    # Flags win.
    rows: list[dict[str, Any]] = [row | _of(TaskSettings, given) for row in values.pop("task", [])]
    prompts: list[dict[str, Any]] = [row | _of(SamplingSettings, given) for row in values.pop("generate", [])]
    settings: dict[str, Any] = values.pop("engine", {})
    values |= given

    def collect(make: Callable[[], Any], default: Any) -> Any:
        try:
            return make()
        except InputError as error:
            problems.extend(f"{error.title}: {problem}" for problem in error.problems)
            if not error.problems:
                problems.append(error.title)
            return default

    for name, flag in (("base", "--base"), ("aligned", "--aligned"), ("lambdas", "--lambdas"), ("out", "--out")):
        if not values.get(name) and is_readable:
            problems.append(f"{flag} is missing")
    parents = collect(lambda: read_parents(values), None) if values.get("aligned") else {ONLY: ""}
    lambdas = (
        collect(lambda: parse_points(str(values["lambdas"]), parents), ()) if parents and values.get("lambdas") else ()
    )
    rescored = values.get("rescore")
    rescore = collect(lambda: parse_points(str(rescored), parents), ()) if parents and rescored is not None else ()
    # What is said of a flag holds for the file's table too: some arguments are not the user's to set.
    written = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
    settings = parse_extra(written, problems) | parse_extra(engine, problems)
    out: Location = collect(lambda: locate(str(values["out"])), Path()) if values.get("out") else Path()
    specs = _tasks(tasks, rows, values, problems)
    sampled = generate_specs(generate, prompts, values, problems)
    if not (tasks or rows or generate or prompts) and is_readable:
        problems.append("--task is missing: give at least one NAME=FILE.jsonl or lm-eval:TASK, or a --generate")
    if values.get("pmi") and specs and not any(isinstance(spec, TaskSpec) for spec in specs):
        problems.append("--pmi is not about tasks of lm-eval, which may ask for acc_mutual_info: leave it out")
    problems += _repeated([*(spec.name for spec in specs), *(spec.name for spec in sampled)])
    if values.get("refine", 0) < 0:
        problems.append(f"--refine is {values['refine']}: give 0 or more")
    problems += margin_problems(values.get("margin"))
    problems += engine_problems(values, settings) + argument_problems(settings)
    if len(lambdas) == 1 and values.get("refine"):
        problems.append("--refine adds λs between others: give --lambdas two or more")
    idle = about_nothing(given, bool(tasks or rows), bool(generate or prompts))
    unwritten = [] if len(specs) < len(tasks or rows) else about_written(specs, bool(sampled), bool(rescored))
    wrong = out_of_range({name: value for name, value in values.items() if name not in (*idle, *unwritten)})
    problems += idle.values()
    late += [*no_answers(unwritten), *wrong.values()]
    if len(parents or ()) > 1 and values.get("refine"):
        problems.append("--refine goes along one λ: leave it out where there are several aligned checkpoints")
    if problems:
        raise InputError("the sweep cannot be set up", problems + late)
    left_out = {*wrong, *unwritten}
    return SweepConfig(
        base=str(values["base"]),
        aligned=values["aligned"],
        lambdas=lambdas,
        tasks=tuple(without(spec, left_out) for spec in specs),
        out=out,
        generate=tuple(without(spec, left_out) for spec in sampled),
        rescore=() if "rescore" in left_out else rescore,
        engine=settings,
        warnings=tuple(_warnings(values)),
        problems=tuple(late),
        **{name: values[name] for name in ("refine", "margin", *ENGINE_FIELDS) if name in values},
    )


def _warnings(values: dict[str, Any]) -> Iterator[str]:
    for part in str(values["lambdas"]).split(","):
        if (last := stops_short(part.rpartition("=")[2])) is not None:
            yield f"--lambdas {part} stops at {last}: no step lands on its end"
    aligned = values["aligned"]
    sources = [aligned] if isinstance(aligned, str) else list(aligned.values())
    same = [source for source in sources if _place(source) == _place(str(values["base"]))]
    if same and not (values.get("base_revision") or values.get("aligned_revision")):
        yield f"base and aligned are the same checkpoint ({same[0]}): every λ is the same model"


def _place(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def margin_problems(margin: float | None) -> list[str]:
    """Return what is wrong with a margin in points, if anything."""
    if margin is None or 0 <= margin <= 100:  # NaN is not
        return []
    return [f"--margin is {margin:g}: give points of accuracy between 0 and 100"]


def read_parents(values: dict[str, Any]) -> dict[str, str]:
    """Return the aligned checkpoints by name; writes them and their revisions into `values`.

    Raises:
        InputError: with everything that is wrong.
    """
    names = values["aligned"] = parse_aligned(values["aligned"])
    if values.get("aligned_revision"):
        values["aligned_revision"] = parse_revisions(values["aligned_revision"], names)
    return names


def argument_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return which further arguments of a sweep's engines vLLM does not know."""
    from serve.vllm_arguments import unknown_arguments

    return unknown_arguments(settings.keys() - CHECKED_ARGUMENTS)


def engine_problems(values: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return what is wrong with values of `ENGINE_FIELDS` and with further arguments of vLLM.

    Writes a map as the record has it, None for auto, and the tokenizer that goes with shared vocabularies, into `values`.
    """
    from merge.lam_map import parse_map
    from merge.line import Line

    problems = [
        f"--engine {name} is {settings[name]!r}: give a whole number above 0"
        for name in sorted(_ENGINE_NUMBERS & settings.keys())
        if not (type(settings[name]) is int and settings[name] > 0)
    ]
    if (head_dtype := settings.get("head_dtype", AUTO)) not in ("float32", AUTO):
        problems.append(f"--engine head_dtype={head_dtype}: it is float32, or auto for the engine's dtype")
    problems += problems_of(values, PairSettings)
    values |= {name: None for name, _, said in settings_of(PairSettings) if said.auto and values.get(name) == AUTO}
    if values.get("lam_map"):
        try:
            values["lam_map"] = ",".join(sorted(rule.text for rule in parse_map(values["lam_map"])))
        except InputError as error:
            problems += [f"{error.title}: {problem}" for problem in error.problems] or [error.title]
    if len(by_name(values.get("aligned", ""))) > 1:
        return problems + Line(values.get("method", ""), vocab=values.get("vocab", "")).two_parents_only()
    if values.get("vocab") == "shared" and values.setdefault("tokenizer", "aligned") == "base":
        problems.append("--tokenizer base does not go with --vocab shared: the model then has aligned's vocabulary")
    return problems


def _tasks(
    flags: list[str], rows: list[dict[str, Any]], values: dict[str, Any], problems: list[str]
) -> tuple[TaskSpec | LmEvalSpec, ...]:
    common = _of(TaskSettings, values)
    specs = []
    for flag in flags:
        name, _, path = flag.partition("=")
        if flag.startswith(PREFIX):
            name, path = "", flag
        elif not name:
            path = ""
        if not path.removeprefix(PREFIX):
            problems.append(f"--task {flag!r} is not NAME=FILE.jsonl, lm-eval:TASK or NAME=lm-eval:TASK")
            continue
        path, form = _with_format(path)
        specs.append(_spec({"name": name, "file": path, **common, **form}))
    if not flags:
        specs = [_spec(common | row) for row in rows]
    return tuple(specs)


def _with_format(path: str) -> tuple[str, dict[str, str]]:
    """Take the format off FILE:letters; a data set's own parts and a file of that very name stay as they are."""
    file, _, form = path.rpartition(":")
    is_format = form in FORMATS and file and not path.startswith(PREFIX) and not Path(path).exists()
    return (file, {"format": form}) if is_format else (path, {})


def generate_specs(
    flags: Sequence[str], rows: Sequence[dict[str, Any]], values: dict[str, Any], problems: list[str]
) -> tuple[GenerateSpec, ...]:
    """Return the generate tasks of `NAME=PROMPTS.jsonl` flags, or without any those of a file's tables.

    Args:
        flags: of each `--generate`.
        rows: checked tables.
        values: settings by name; those of `SamplingSettings` hold for every task.
        problems: gets what is wrong with the flags.
    """
    common = _of(SamplingSettings, values)
    if not flags:
        return tuple(_generate_spec(common | row) for row in rows)
    specs = []
    for flag in flags:
        name, _, path = flag.partition("=")
        if name and path:
            specs.append(_generate_spec({"name": name, "file": path, **common}))
        else:
            problems.append(f"--generate {flag!r} is not NAME=PROMPTS.jsonl")
    return tuple(specs)


def _generate_spec(row: dict[str, Any]) -> GenerateSpec:
    return GenerateSpec(**(row | {"file": Path(row["file"])}))


def _repeated(names: list[str | None]) -> list[str]:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    return [f"task {name!r} is named twice: give each its own name" for name in twice]


def _spec(row: dict[str, Any]) -> TaskSpec | LmEvalSpec:
    file = str(row["file"])
    if not file.startswith(PREFIX):
        return TaskSpec(**(row | {"file": Path(file)}))
    known = ("shots", "limit", "seed", "template", "system_prompt", *WRITTEN)
    settings = {key: row[key] for key in known if key in row}
    return LmEvalSpec(file.removeprefix(PREFIX), name=row.get("name") or None, **settings)


def _of(group: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of all tasks at once: the settings of a group that are given."""
    return {key: values[key] for key in names_of(group) if key in values}
