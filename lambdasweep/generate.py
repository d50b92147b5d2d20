"""`--generate` and `[[generate]]`: what the user asks to have sampled → `GenerateSpec`s. Flags win over the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambdasweep.tasks.prompts import GenerateSpec

# The flags' names: said of all generate tasks at once, or of one in its table.
SETTINGS = ("samples", "temperature", "max_tokens")
KEYS = frozenset({"name", "file", "limit", "template", *SETTINGS})


def generate_specs(
    flags: Sequence[str], rows: Sequence[dict[str, Any]], values: dict[str, Any], problems: list[str]
) -> tuple[GenerateSpec, ...]:
    """Return the generate tasks of `NAME=PROMPTS.jsonl` flags, or without any those of a file's tables.

    Args:
        flags: of each `--generate`.
        rows: checked tables.
        values: settings by name; those of SETTINGS, `limit` and `template` hold for every task.
        problems: gets what is wrong with the flags.
    """
    common = {key: values[key] for key in (*SETTINGS, "limit", "template") if key in values}
    if not flags:
        return tuple(_spec(common | row) for row in rows)
    specs = []
    for flag in flags:
        name, _, path = flag.partition("=")
        if name and path:
            specs.append(_spec({"name": name, "file": path, **common}))
        else:
            problems.append(f"--generate {flag!r} is not NAME=PROMPTS.jsonl")
    return tuple(specs)


def _spec(row: dict[str, Any]) -> GenerateSpec:
    chat = row.pop("template", "none") == "chat"
    return GenerateSpec(**(row | {"file": Path(row["file"])}), chat=chat)
