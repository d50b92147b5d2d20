"""This module asks vLLM about further arguments before an engine starts, in a process of its own, because vLLM is heavy."""

import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from contract.points import by_name
from merge.line import Line
from serve.settings import EngineSettings

_LINES = 6  # so many lines of what vLLM says are repeated


def argument_problems(
    base: Path, aligned: Path | Mapping[str, Path], settings: EngineSettings, parents: str, line: Line
) -> list[str]:
    """Return what is wrong with `settings.extra`, by vLLM's own configuration.

    On a machine without a GPU, vLLM for GPUs is only asked whether it knows the names.

    Args:
        base, aligned, settings, parents, line: the same as those of `serve.engine.Engine`.
    """
    asked = {
        "base": str(base),
        "aligned": {name: str(path) for name, path in by_name(aligned).items()},
        "settings": settings.to_json(),
        "parents": parents,
        "line": line.to_json(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "serve.vllm_arguments"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = ["vLLM cannot be asked: " + (done.stderr.strip().splitlines() or ["it said nothing"])[-1]]
    return found


def unknown_arguments(names: Iterable[str]) -> list[str]:
    """Return a line for each name of a further argument that vLLM does not know.

    vLLM's sources are read, because to import vLLM takes many seconds; where it is not installed, nothing is said.
    """
    known = _named_in_sources()
    return _unknown(sorted({*names} - known), known) if known else []


@functools.cache
def _named_in_sources() -> frozenset[str]:
    """Return the names of the arguments of vLLM's engine and of its class LLM; none where they are not found."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    folder = Path(spec.origin).parent
    fields = parameters = list[str]()
    for path, name in ((folder / "engine" / "arg_utils.py", "EngineArgs"), (folder / "entrypoints" / "llm.py", "LLM")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            return frozenset()
        body = [
            one for found in tree.body if isinstance(found, ast.ClassDef) and found.name == name for one in found.body
        ]
        if name == "LLM":
            made = [one.args for one in body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            parameters = [one.arg for all_of in made for one in (*all_of.args, *all_of.kwonlyargs)]
        else:
            targets = [one.target for one in body if isinstance(one, ast.AnnAssign)]
            fields = [one.id for one in targets if isinstance(one, ast.Name)]
    return frozenset((*fields, *parameters)) if fields and parameters else frozenset()


def _unknown(names: Iterable[str], known: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        found.append(f"--engine {name}: vLLM has no such argument{hint}")
    return found


def _ask(asked: dict[str, Any]) -> list[str]:
    from serve.settings import available_cores
    from serve.start import llm_arguments, process_environment

    settings = EngineSettings.from_json(asked["settings"])
    os.environ.update(process_environment(settings, available_cores()))
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)} | set(inspect.signature(LLM.__init__).parameters)
    if unknown := _unknown(sorted(settings.extra.keys() - known), known):
        return unknown
    if settings.device == "cuda" and not Path("/proc/driver/nvidia/gpus").is_dir():
        return []
    aligned = {name: Path(path) for name, path in asked["aligned"].items()}
    arguments = llm_arguments(Path(asked["base"]), aligned, settings, asked["parents"], None, Line(**asked["line"]))
    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    try:
        EngineArgs(**{name: value for name, value in arguments.items() if name in fields}).create_engine_config()
    except Exception as error:  # pydantic, vLLM and Python raise different classes
        return [f"--engine cannot be used; vLLM says: {first_lines(error)}"]
    return []


def first_lines(error: Exception) -> str:
    """Return the beginning of what an exception says, in one line; of pydantic's what was wrong alone."""
    from pydantic import ValidationError

    whole = "\n".join(one["msg"] for one in error.errors()) if isinstance(error, ValidationError) else str(error)
    lines = [line.strip().removeprefix("Value error, ") for line in whole.splitlines() if line.strip()]
    return " ".join(lines[:_LINES])


if __name__ == "__main__":
    print(json.dumps(_ask(json.load(sys.stdin))))
