"""What the user asks for: flags and `--config sweep.toml` → one checked `SweepConfig`. Flags win over the file."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.location import Location, locate
from contract.points import ONLY, by_name, parent_names, parse_points
from lambdasweep.aligned_flags import parse_aligned, parse_revisions, relative_to
from lambdasweep.generate import KEYS as GENERATE_KEYS
from lambdasweep.generate import SETTINGS as GENERATE_SETTINGS
from lambdasweep.generate import generate_specs
from lambdasweep.tasks.chat import TEMPLATES
from lambdasweep.tasks.documents import TaskSpec
from lambdasweep.tasks.lm_eval_tasks.load import PREFIX, HarnessSpec, resolved
from lambdasweep.tasks.prompts import GenerateSpec

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """One sweep as asked for. None means: lambdasweep chooses, and records what it chose."""

    base: str
    """Directory or hub id of the checkpoint before alignment."""
    aligned: str | Mapping[str, str]
    """Directory or hub id of the checkpoint after alignment; several by name."""
    lambdas: tuple[str, ...]
    """Canonical λs, ascending; over several aligned checkpoints points, in order."""
    tasks: tuple[TaskSpec | HarnessSpec, ...]
    out: Location
    """The run directory: a local path, or a prefix of an object store."""
    generate: tuple[GenerateSpec, ...] = ()
    """What is sampled at every λ."""
    refine: int = 0
    """How many λs may be added to these, where λ* may be."""
    replicas: int | None = None
    """Engines at the same time."""
    tp: int = 1
    """Tensor-parallel ranks of each engine."""
    pp: int = 1
    """Pipeline stages of each engine, of `tp` ranks each."""
    dtype: str = "auto"
    """What engines compute in; auto: float32 on a CPU, the checkpoint's on a GPU."""
    max_model_len: int | None = None
    """Longest request in tokens; None: what the model takes."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM."""
    base_revision: str | None = None
    aligned_revision: str | Mapping[str, str | None] | None = None
    method: str = "linear"
    """How θ(λ) goes from base to aligned: linear or slerp."""
    lam_map: str = ""
    """Weights on λ by module, as in `merge.lam_map`; empty: 1 everywhere."""
    vocab: str = "strict"
    """What token ids that stand for different strings in the parents are: strict: refused; shared: aligned's at every λ."""
    tokenizer: str = "base"
    """Whose tokenizer makes the requests: base, aligned or one of several by name; aligned where vocab is shared."""
    parents: str = "auto"
    """Where each rank keeps both parents: auto, device, pinned, mmap, or reload (nowhere). Changes no number."""
    accelerator_type: str | None = None
    """Ray's name for the kind of GPU that replicas may use, such as H100; None: any."""
    address: str | None = None
    """A running Ray cluster; None starts one on this machine."""


# Keys of sweep.toml, which are the flags' names; `[[task]]`, `[[generate]]` and `[engine]` are read apart.
_TEXT = {
    "base",
    "aligned",
    "lambdas",
    "out",
    "format",
    "dtype",
    "base_revision",
    "aligned_revision",
    "method",
    "lam_map",
    "vocab",
    "tokenizer",
    "parents",
    "accelerator_type",
    "address",
    "template",
}
_NUMBERS = {"shots", "limit", "seed", "refine", "replicas", "tp", "pp", "max_model_len", "samples", "max_tokens"}
_ENGINE_NUMBERS = {"threads", "block_size", "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs"}
# Fields of SweepConfig that are about its pair and its engines.
ENGINE_FIELDS = (
    "replicas",
    "tp",
    "pp",
    "dtype",
    "max_model_len",
    "base_revision",
    "aligned_revision",
    "method",
    "lam_map",
    "vocab",
    "tokenizer",
    "parents",
    "accelerator_type",
    "address",
)
_TABLE_KEYS = {"task": {"name", "file", "format", "shots", "limit", "seed", "template"}, "generate": GENERATE_KEYS}


def load_config(
    flags: dict[str, Any], tasks: list[str], generate: list[str], engine: list[str], file: Path | None
) -> SweepConfig:
    """Merge flags over a TOML file and check every value that can be checked without opening anything.

    Args:
        flags: by name with underscores; None where a flag was not given.
        tasks: `NAME=FILE.jsonl`, `lm-eval:TASK` or `NAME=lm-eval:TASK` of each `--task`; any given replace the file's.
        generate: `NAME=PROMPTS.jsonl` of each `--generate`; any given replace the file's.
        engine: `KEY=VALUE` of each `--engine`; laid over the file's `[engine]`.
        file: TOML with the flags' names as keys, `[[task]]` tables (name, file, format, shots, limit, seed, template),
            `[[generate]]` tables (name, file, samples, temperature, max_tokens, limit, template) and `[engine]`; relative
            paths in it start at its directory. `file = "lm-eval:TASK"` needs no name and takes no format.

    Raises:
        InputError: with every problem.
    """
    from serve.settings import parse_extra

    problems: list[str] = []
    values = _read_toml(file, problems) if file else {}
    is_readable = not problems  # else what is missing may well be in the file
    given = {name: value for name, value in flags.items() if value is not None}
    rows: list[dict[str, Any]] = [row | _common(given) for row in values.pop("task", [])]  # flags win
    wins = {key: given[key] for key in (*GENERATE_SETTINGS, "limit", "template") if key in given}
    prompts: list[dict[str, Any]] = [row | wins for row in values.pop("generate", [])]
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
    # What is said of a flag holds for the file's table too: some arguments are not the user's to set.
    written = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
    settings = collect(lambda: parse_extra(written), {}) | collect(lambda: parse_extra(engine), {})
    out: Location = collect(lambda: locate(str(values["out"])), Path()) if values.get("out") else Path()
    specs = _tasks(tasks, rows, values, problems)
    sampled = generate_specs(generate, prompts, values, problems)
    if not (tasks or rows or generate or prompts) and is_readable:
        problems.append("--task is missing: give at least one NAME=FILE.jsonl or lm-eval:TASK, or a --generate")
    problems += _repeated([*(spec.name for spec in specs), *(spec.name for spec in sampled)])
    if values.get("refine", 0) < 0:
        problems.append(f"--refine is {values['refine']}: give 0 or more")
    if values.get("template", "none") not in TEMPLATES:
        problems.append(f"--template is {values['template']!r}: use {', '.join(TEMPLATES)}")
    problems += engine_problems(values, settings)
    if len(parents or ()) > 1 and values.get("refine"):
        problems.append("--refine goes along one λ: leave it out where there are several aligned checkpoints")
    if problems:
        raise InputError("the sweep cannot be set up", problems)
    return SweepConfig(
        base=str(values["base"]),
        aligned=values["aligned"],
        lambdas=lambdas,
        tasks=specs,
        out=out,
        generate=sampled,
        engine=settings,
        **{name: values[name] for name in ("refine", *ENGINE_FIELDS) if name in values},
    )


def read_parents(values: dict[str, Any]) -> dict[str, str]:
    """Return the aligned checkpoints by name; writes them and their revisions into `values`.

    Raises:
        InputError: with everything that is wrong.
    """
    names = values["aligned"] = parse_aligned(values["aligned"])
    if values.get("aligned_revision"):
        values["aligned_revision"] = parse_revisions(values["aligned_revision"], names)
    return names


def engine_problems(values: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return what is wrong with values of `ENGINE_FIELDS` and with further arguments of vLLM.

    Writes a map as the record has it, and the tokenizer that goes with shared vocabularies, into `values`.
    """
    from merge.lam_map import parse_map
    from merge.line import METHODS, VOCABULARIES, Line
    from serve.switch.tiers import CHOICES

    problems = [
        f"--engine {name} is {settings[name]!r}: give a whole number above 0"
        for name in sorted(_ENGINE_NUMBERS & settings.keys())
        if not (type(settings[name]) is int and settings[name] > 0)
    ]
    for name in ("replicas", "tp", "pp", "max_model_len"):
        value = values.get(name)
        if value is not None and value < 1:
            problems.append(f"--{name.replace('_', '-')} is {value}: give 1 or more")
    allowed = {
        "dtype": DTYPES,
        "method": METHODS,
        "vocab": VOCABULARIES,
        "tokenizer": parent_names(by_name(values.get("aligned", ""))),
        "parents": CHOICES,
    }
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            problems.append(f"--{name} is {values[name]!r}: use {', '.join(choices)}")
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
) -> tuple[TaskSpec | HarnessSpec, ...]:
    common = _common(values)
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
        specs.append(_spec({"name": name, "file": path, **common}))
    if not flags:
        specs = [_spec(common | row) for row in rows]
    return tuple(specs)


def _repeated(names: list[str | None]) -> list[str]:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    return [f"task {name!r} is named twice: give each its own name" for name in twice]


def _spec(row: dict[str, Any]) -> TaskSpec | HarnessSpec:
    file = str(row["file"])
    row["chat"] = row.pop("template", "none") == "chat"
    if not file.startswith(PREFIX):
        return TaskSpec(**(row | {"file": Path(file)}))
    settings = {key: row[key] for key in ("shots", "limit", "seed", "chat") if key in row}
    return HarnessSpec(file.removeprefix(PREFIX), name=row.get("name") or None, **settings)


def _common(values: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of all tasks at once."""
    return {key: values[key] for key in ("format", "shots", "limit", "seed", "template") if key in values}


def _read_toml(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"--config {file} cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"--config {file} is not TOML: {error}")
        return {}
    before = len(problems)
    here = file.parent
    for key, value in list(values.items()):
        key_problem = _check(key, value)
        if key_problem:
            problems.append(f"{file}: {key_problem}")
    for table, keys in _TABLE_KEYS.items():
        rows = values.get(table)
        for row in [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []:
            for key, value in row.items():
                if key not in keys:
                    problems.append(f"{file}: [[{table}]] has the unknown key {key!r}: use {', '.join(sorted(keys))}")
                elif key_problem := _check(key, value):
                    problems.append(f"{file}: [[{table}]]: {key_problem}")
            source = str(row.get("file", ""))
            if table == "task" and source.startswith(PREFIX):
                if "format" in row:
                    problems.append(f"{file}: a [[task]] of lm-eval has its own format: remove format")
                row["file"] = PREFIX + resolved(HarnessSpec(source.removeprefix(PREFIX)), here).source
            elif not {"name", "file"} <= row.keys():
                problems.append(f"{file}: a [[{table}]] needs name and file")
            else:
                row["file"] = here / source
    if len(problems) > before:
        return {}
    values |= {key: relative_to(values[key], here) for key in ("base", "aligned") if key in values}
    if "out" in values and "://" not in values["out"]:
        values["out"] = str(here / values["out"])
    return values


def _check(key: str, value: Any) -> str | None:
    if key == "template" and value not in TEMPLATES:
        return f"template is {value!r}: use {', '.join(TEMPLATES)}"
    if key in ("aligned", "aligned_revision") and isinstance(value, dict):
        is_text = all(isinstance(one, str) for one in value.values())
        return None if is_text else f"{key} is {value!r}: give a string for each name"
    if key in _TEXT | {"name", "file"}:
        return None if isinstance(value, str) else f"{key} is {value!r}: give a string"
    if key in _NUMBERS:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return None if is_number else f"{key} is {value!r}: give a whole number"
    if key == "temperature":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if is_number else f"temperature is {value!r}: give a number"
    if key == "engine":
        return None if isinstance(value, dict) else "engine is not a table: write [engine]"
    if key in _TABLE_KEYS:
        is_rows = isinstance(value, list) and all(isinstance(row, dict) for row in value)
        return None if is_rows else f"{key} is not a list of tables: write [[{key}]]"
    return f"unknown key {key!r}"
