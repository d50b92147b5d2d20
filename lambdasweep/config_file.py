"""`--config sweep.toml` → the values in it, each of the kind that its key wants."""

import tomllib
from pathlib import Path
from typing import Any

from lambdasweep.aligned_flags import relative_to
from lambdasweep.settings import names_of
from lambdasweep.tasks.chat import TEMPLATES
from lambdasweep.tasks.lm_eval_tasks.load import PREFIX, HarnessSpec, resolved

# Keys of sweep.toml, which are the flags' names; `[[task]]`, `[[generate]]` and `[engine]` are read apart.
_TEXT = {"base", "aligned", "lambdas", "out", "format", "template", *names_of(str)}
_NUMBERS = {"shots", "limit", "seed", "refine", "samples", "max_tokens", *names_of(int)}
# What is said of all generate tasks at once, or of one in its table; the flags' names.
GENERATE_SETTINGS = ("samples", "temperature", "max_tokens")
GENERATE_KEYS = frozenset({"name", "file", "limit", "template", *GENERATE_SETTINGS})
_TABLE_KEYS = {"task": {"name", "file", "format", "shots", "limit", "seed", "template"}, "generate": GENERATE_KEYS}


def read_toml(file: Path, problems: list[str]) -> dict[str, Any]:
    """Return the values of a file by key, its relative paths from its directory; none where anything is wrong.

    Args:
        file: with the keys that `load_config` names.
        problems: gets what is wrong.
    """
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
