"""The flags of the command line, and the `SweepConfig` that those of `run` and `plan` make. Imports nothing heavy."""

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from lambdasweep.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambdasweep.config import SweepConfig


T = TypeVar("T")


class TakesFlags(TyperCommand):
    """A command that leaves what follows after `--` as it is, in `context.args`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        super().parse_args(ctx, args[:end])
        ctx.args = args[end + 1 :]
        return args[end + 1 :]


Base = Annotated[str | None, typer.Option(help="Checkpoint before alignment: directory or hub id.")]
Aligned = Annotated[
    str | None,
    typer.Option(help="Checkpoint after alignment: directory or hub id; several as NAME=CHECKPOINT,NAME=CHECKPOINT."),
]
Lambdas = Annotated[
    str | None,
    typer.Option(
        help="The grid: 0:1.5:0.1, or 0,0.25,1, or both joined by commas; of several aligned ones NAME=GRID,NAME=GRID."
    ),
]
Refine = Annotated[
    int | None,
    typer.Option(metavar="N", help="Then score up to N λs more, between those of the grid, where λ* may be."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME=FILE.jsonl", help="A task, or lm-eval:TASK for one of lm-eval's; repeatable."),
]
Generates = Annotated[
    list[str] | None,
    typer.Option("--generate", metavar="NAME=PROMPTS.jsonl", help="Prompts to sample from at every λ; repeatable."),
]
Samples = Annotated[int | None, typer.Option(help="Samples of each prompt; 16 where not given.")]
Temperature = Annotated[float | None, typer.Option(help="To sample at; 1 where not given, 0 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens that a sample is cut at; 64 where not given.")]
Format = Annotated[str | None, typer.Option(help="cloze (score each choice's text) or letters (score A, B, C…).")]
Template = Annotated[
    str | None, typer.Option(help="none, or chat: contexts go through the aligned model's chat template, at every λ.")
]
Shots = Annotated[int | None, typer.Option(help="Solved examples in front of every document.")]
Limit = Annotated[int | None, typer.Option(help="Evaluate only the first so many documents.")]
Out = Annotated[str | None, typer.Option(help="The run directory: path, s3:// or gs:// URL.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file with these settings; flags win.")]
Lam = Annotated[str | None, typer.Option(help="The point, such as 0.62 or dpo=0.5,sft=0.25; of a run, λ* by default.")]
TakenRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run directory, in place of a pair.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory: path, s3:// or gs:// URL.")]


def takes_settings(*names: str, after: str | None = None) -> "Callable[[Callable[..., T]], Callable[..., T]]":
    """Give a function, in the place of its keyword arguments `**settings`, the flags of `settings.PairSettings`.

    Args:
        names: of the settings; none: all.
        after: the parameter that they follow; the last one where it is not given.
    """

    def decorate(function: "Callable[..., T]") -> "Callable[..., T]":
        own = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
        place = [one.name for one in own].index(after) + 1 if after else len(own)
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None,
                annotation=Annotated[
                    (list[str] if kind is dict else kind) | None,
                    typer.Option(f"--{name.replace('_', '-')}", help=said.help, metavar=said.metavar),
                ],
            )
            for name, kind, said in settings()
            if name in names or not names
        ]

        @functools.wraps(function)
        def with_settings(*arguments: Any, **flags: Any) -> T:
            return function(*arguments, **flags)

        parameters = [*own[:place], *made, *own[place:]]
        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_settings

    return decorate


@takes_settings(after="out")
def asked(
    base: Base = None,
    aligned: Aligned = None,
    lambdas: Lambdas = None,
    refine: Refine = None,
    task: Tasks = None,
    generate: Generates = None,
    samples: Samples = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    format: Format = None,
    template: Template = None,
    shots: Shots = None,
    limit: Limit = None,
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
