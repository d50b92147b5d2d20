"""This module reads `sweep.toml` and gives each value the kind that its key wants."""

import difflib
import tomllib
from collections.abc import Collection, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from lambdasweep.aligned_flags import relative_to
from lambdasweep.settings import AUTO, PairSettings, SamplingSettings, TaskSettings, names_of, settings
from lambdasweep.tasks.datasets import PREFIX as DATASET
from lambdasweep.tasks.lm_eval_tasks.spec import PREFIX, LmEvalSpec, resolved

# The keys of the tables [[task]] and [[generate]].
TABLES = {
    "task": ("name", "file", *names_of(TaskSettings)),
    "generate": ("name", "file", *names_of(SamplingSettings)),
}
# What each key takes: those of settings follow from their fields.
_KINDS: dict[str, type] = {"base": str, "aligned": str, "lambdas": str, "out": str, "name": str, "file": str}
_KINDS |= {"refine": int, "rescore": str, "margin": float, "engine": dict, "task": list, "generate": list}
_KINDS |= {name: kind for group in (PairSettings, TaskSettings, SamplingSettings) for name, kind, _ in settings(group)}
_KEYS = sorted(_KINDS.keys() - {"name", "file"})
_MAY_BE_AUTO = {name for name, _, said in settings(PairSettings) if said.auto}
_GRIDS = ("lambdas", "rescore")
_WANTED = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def read_toml(file: Path, problems: list[str]) -> dict[str, Any]:
    """Return the values of a file by key, its relative paths from its directory; none where anything is wrong.

    Args:
        file: with the keys that `load_config` names.
        problems: gets what is wrong.
    """
    try:
        # λs are exact decimals, and no binary floats.
        values = tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        problems.append(f"--config {file} cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"--config {file} is not TOML: {error}")
        return {}
    before = len(problems)
    here = file.parent
    values |= {key: _grid(values[key]) for key in _GRIDS if key in values}
    values = {key: _with_floats(value) for key, value in values.items()}
    problems += [f"{file}: {problem}" for problem in _problems(values, _KEYS)]
    for table, keys in TABLES.items():
        rows = values.get(table)
        for index, row in enumerate(rows if isinstance(rows, list) else []):
            if isinstance(row, dict):
                which = f"[[{table}]] {index + 1}" + (f" ({row['name']})" if row.get("name") else "")
                problems += [f"{file}: {which}: {problem}" for problem in _row_problems(table, row, keys)]
                _settle_file(row, here)
    if len(problems) > before:
        return {}
    values |= {key: relative_to(values[key], here) for key in ("base", "aligned") if key in values}
    if "out" in values and "://" not in values["out"]:
        values["out"] = str(here / values["out"])
    return values


def _problems(values: dict[str, Any], keys: Collection[str]) -> Iterator[str]:
    for key, value in values.items():
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
            yield f"unknown key {key!r}: " + (f"did you mean {close[0]}?" if close else f"use {', '.join(keys)}")
        elif problem := _check(key, value):
            yield problem


def _row_problems(table: str, row: dict[str, Any], keys: Collection[str]) -> Iterator[str]:
    yield from _problems(row, keys)
    if table == "task" and _is_of_lm_eval(row):
        if "format" in row:
            yield "a task of lm-eval has its own format: remove format"
        if "pmi" in row:
            yield "a task of lm-eval has its own unconditional pass where it asks for acc_mutual_info: remove pmi"
    elif missing := [key for key in ("name", "file") if key not in row]:
        yield f"it needs {' and '.join(missing)}"


def _is_of_lm_eval(row: dict[str, Any]) -> bool:
    return str(row.get("file", "")).startswith(PREFIX)


def _settle_file(row: dict[str, Any], here: Path) -> None:
    """Let the file of a table start at the directory of the settings file."""
    if _is_of_lm_eval(row):
        row["file"] = PREFIX + resolved(LmEvalSpec(row["file"].removeprefix(PREFIX)), here).source
    elif "file" in row and not str(row["file"]).startswith(DATASET):
        row["file"] = here / str(row["file"])


def _check(key: str, value: Any) -> str | None:
    if key in ("aligned", "aligned_revision") and isinstance(value, dict):
        is_text = all(isinstance(one, str) for one in value.values())
        return None if is_text else f"{key} is {value!r}: give a string for each name"
    kind = _KINDS[key]
    if kind is dict:
        return None if isinstance(value, dict) else f"{key} is not a table: write [{key}]"
    if kind is list:
        is_rows = isinstance(value, list) and all(isinstance(row, dict) for row in value)
        return None if is_rows else f"{key} is not a list of tables: write [[{key}]]"
    if key in _MAY_BE_AUTO and value == AUTO:
        return None
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    wanted = (
        "a whole number or auto"
        if key in _MAY_BE_AUTO
        else 'a grid such as "0:1.5:0.1" or [0, 0.25, 1]'
        if key in _GRIDS
        else _WANTED[kind]
    )
    return None if fits else f"{key} is {value!r}: give {wanted}"


def _grid(value: Any) -> Any:
    """Return a grid as a flag would give it: of a number, of a list of numbers and ranges, or of a table of them by name."""
    if isinstance(value, dict):
        named = {name: _grid(one) for name, one in value.items()}
        is_whole = all(isinstance(part, str) for part in named.values())
        return ",".join(f"{name}={part}" for name, part in named.items()) if is_whole else value
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, (str, int, Decimal)) and not isinstance(part, bool) for part in parts):
        return value
    return ",".join(f"{part:f}" if isinstance(part, Decimal) else str(part) for part in parts)


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_floats(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_floats(one) for one in value]
    return float(value) if isinstance(value, Decimal) else value
