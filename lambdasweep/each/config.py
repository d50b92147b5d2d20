"""This module makes one checked `EachConfig` of the flags and the command that `lambdasweep each` is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import InputError
from contract.points import ONLY, parse_points
from lambdasweep.aligned_flags import parse_revisions
from lambdasweep.config import engine_problems, read_parents
from lambdasweep.each.command import Command, settle

if TYPE_CHECKING:
    from merge.line import Line

# These settings are flags of `vllm serve`; they stand under the names of its arguments.
_ARGUMENTS = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
}
_NEEDED = ("base", "aligned", "lambdas", "out")
_OF_SWEEPS = ("threads", "head_dtype")  # a sweep's engine takes these further arguments, and vLLM does not
_OURS = ("host", "port", "uds", "api_key", "served_model_name", "root_path", "ssl_keyfile", "ssl_certfile")


@dataclass(frozen=True, slots=True)
class EachConfig:
    """The config says which evaluation is asked for, and at which λs."""

    base: str
    aligned: Mapping[str, str]
    """Directory or hub id of each aligned checkpoint, by name; the name of an only one is ""."""
    base_revision: str | None
    aligned_revision: Mapping[str, str | None]
    line: "Line"
    lambdas: tuple[str, ...]
    """Canonical points, in order."""
    out: Path
    command: Command
    parents: str
    """The place where the server keeps the parents, as in a sweep."""
    arguments: Mapping[str, Any]
    """The arguments of vLLM that were asked for."""


def load_each_config(flags: Mapping[str, Any], engine: Sequence[str], words: Sequence[str], here: Path) -> EachConfig:
    """Check everything that can be checked without opening a checkpoint.

    Args:
        flags: the flags by their names with underscores; None where a flag was not given.
        engine: the `KEY=VALUE` of each `--engine`.
        words: the command.
        here: the directory that the user is in.

    Raises:
        InputError: with every problem.
    """
    from merge.line import Line
    from serve.settings import parse_extra

    values = {name: value for name, value in flags.items() if value is not None}
    problems = [f"--{name} is missing" for name in _NEEDED if not values.get(name)]
    settings = parse_extra(list(engine), problems)
    names: dict[str, str] = {ONLY: ""}
    lambdas: tuple[str, ...] = ()

    def collect(error: InputError) -> None:
        problems.extend([f"{error.title}: {problem}" for problem in error.problems] or [error.title])

    for name in _OF_SWEEPS:
        if name in settings:
            problems.append(f"--engine {name} is of a sweep's engines: vLLM's server has no such argument")
    problems += [f"--engine {name} is set by lambdasweep: leave it out" for name in _OURS if name in settings]
    try:
        if values.get("aligned"):
            names = read_parents(values)
        if values.get("lambdas"):
            lambdas = parse_points(values["lambdas"], names)
    except InputError as error:
        collect(error)
    out = str(values.get("out", ""))
    if "://" in out:
        problems.append(f"--out {out} is in an object store, and a command writes files: give a directory")
    problems += engine_problems(values, settings)
    command = settle(words, here, problems)
    if problems:
        raise InputError("the command cannot be run at every λ", problems)
    line = Line(values.get("method", "linear"), values.get("lam_map", ""), values.get("vocab", "strict"))
    given = values.get("aligned_revision")
    revisions = parse_revisions(given, names) if given else {}
    arguments = {
        known: values[name]
        for name, known in _ARGUMENTS.items()
        if name in values and values[name] not in (None, "auto")
    }
    return EachConfig(
        base=str(values["base"]),
        aligned=names,
        base_revision=values.get("base_revision"),
        aligned_revision={name: revisions.get(name) for name in names},
        line=line,
        lambdas=lambdas,
        out=Path(out).absolute(),
        command=command,
        parents=values.get("parents", "auto"),
        arguments=arguments | settings,
    )
