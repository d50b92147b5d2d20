"""This module defines the flags, and makes the `SweepConfig` of `run` and `plan`. It imports nothing heavy."""

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lambdasweep.help import flag, flag_of
from lambdasweep.settings import (
    GRID,
    PAIR,
    RUN,
    SAMPLING,
    TASKS,
    PairSettings,
    SamplingSettings,
    TaskSettings,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambdasweep.config import SweepConfig


T = TypeVar("T")

_BASE = "Checkpoint before alignment: directory or hub id."
_ALIGNED = "Checkpoint after alignment: directory or hub id; several as NAME=CHECKPOINT,NAME=CHECKPOINT."
Base = Annotated[str | None, flag(_BASE, PAIR, "CHECKPOINT")]
Aligned = Annotated[str | None, flag(_ALIGNED, PAIR, "CHECKPOINT")]
Lambdas = Annotated[
    str | None,
    flag(
        "λs such as 0:1.5:0.1, or 0,0.25,1, or both joined by commas; of several aligned ones NAME=GRID,NAME=GRID.",
        GRID,
        "GRID",
        required=True,
    ),
]
Refine = Annotated[
    int | None,
    flag("Then score up to N λs more, between those of the grid, where λ* may be.", GRID, "N", default="0"),
]
Rescore = Annotated[
    str | None,
    flag("Then score what the model wrote again under these λs; 0 is base.", GRID, "GRID", default="none"),
]
Margin = Annotated[
    float | None,
    flag("The accuracy that λ* may give up for a lower NLL, in points.", GRID, "POINTS", default="1"),
]
Tasks = Annotated[
    list[str] | None,
    flag(
        "A task; FILE:letters has a format of its own; hf:ORG/DATASET[:CONFIG][:SPLIT] is a data set, lm-eval:TASK one of "
        "lm-eval's. Repeatable. This or --generate is needed.",
        TASKS,
        "NAME=FILE",
        name="--task",
    ),
]
Generates = Annotated[
    list[str] | None,
    flag("Prompts to sample from at every λ; repeatable.", SAMPLING, "NAME=PROMPTS.jsonl", name="--generate"),
]
Out = Annotated[str | None, flag("The run directory: path, s3:// or gs:// URL.", RUN, "DIRECTORY", required=True)]
ConfigFile = Annotated[
    Path | None,
    flag(
        "A TOML file with these settings, and with those too rare for a flag; flags win. examples/sweep.toml has every key.",
        RUN,
        "FILE",
        name="--config",
        default="none",
    ),
]
Lam = Annotated[str | None, flag("The point, such as 0.62 or dpo=0.5,sft=0.25.", PAIR, "λ", default="λ* of RUN")]
TakenRun = Annotated[str | None, typer.Argument(metavar="RUN", help="A run directory, in place of a pair.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory: path, s3:// or gs:// URL.")]


def takes_settings(
    *names: str, groups: tuple[type, ...] = (PairSettings,)
) -> "Callable[[Callable[..., T]], Callable[..., T]]":
    """Give a function, in the place of its keyword arguments `**settings`, the flags of settings.

    Args:
        names: of the settings; none: all of the groups.
        groups: classes of `lambdasweep.settings`.
    """

    def decorate(function: "Callable[..., T]") -> "Callable[..., T]":
        own = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
        made = {
            name: inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None,
                annotation=Annotated[(list[str] if kind is dict else kind) | None, flag_of(group, name, said)],
            )
            for group in groups
            for name, kind, said in settings(group)
            if said.flag and (name in names or not names)
        }

        @functools.wraps(function)
        def with_settings(*arguments: Any, **flags: Any) -> T:
            return function(*arguments, **flags)

        parameters = [*own, *made.values()]
        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_settings

    return decorate


@takes_settings(groups=(TaskSettings, SamplingSettings, PairSettings))
def asked(
    base: Annotated[str | None, flag(_BASE, PAIR, "CHECKPOINT", required=True)] = None,
    aligned: Annotated[str | None, flag(_ALIGNED, PAIR, "CHECKPOINT", required=True)] = None,
    lambdas: Lambdas = None,
    refine: Refine = None,
    rescore: Rescore = None,
    margin: Margin = None,
    task: Tasks = None,
    generate: Generates = None,
    out: Out = None,
    config: ConfigFile = None,
    **settings: Any,
) -> Any:  # a SweepConfig; typer evaluates annotations, and its module is imported late
    """Make the `SweepConfig` of the flags that `run` and `plan` share."""
    flags = locals() | settings
    from lambdasweep.config import load_config

    apart = ("task", "generate", "engine", "config", "settings")
    plain = {name: value for name, value in flags.items() if name not in apart}
    return load_config(plain, task or [], generate or [], settings["engine"] or [], config)


def takes_sweep(command: "Callable[[SweepConfig], None]") -> "Callable[..., None]":
    """Give a command the flags of `asked` and call it with the config that they make."""

    @functools.wraps(asked)
    def with_flags(**flags: Any) -> None:
        command(asked(**flags))

    with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
    return with_flags
