"""This module writes the help of the command line: flags in groups, what holds without them, and an example of each command.

Help is drawn by rich, and an error in a command line stays one plain line.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from lambdasweep.settings import AUTO, Setting, as_flag, default_of

# What each command's help ends with; tests hold that each of them is taken.
EXAMPLES = {
    "run": """lambdasweep run --base org/model --aligned org/model-Instruct \\
    --lambdas 0:1.5:0.05 --task arc=arc.jsonl --format letters --shots 5 \\
    --out runs/model""",
    "plan": """lambdasweep plan --base org/model --aligned org/model-Instruct \\
    --lambdas 0:1.5:0.05 --task arc=arc.jsonl --format letters --shots 5 \\
    --out runs/model""",
    "score": """lambdasweep score --model org/model --requests 'prompts/*.parquet' \\
    --out scores""",
    "status": "lambdasweep status runs/model --watch",
    "report": "lambdasweep report runs/model",
    "compare": "lambdasweep compare runs/sft runs/dpo --out compare.html",
    "demo": "lambdasweep demo --out runs/demo",
    "export": "lambdasweep export runs/model --out checkpoints/best",
    "convert": "lambdasweep tasks convert hf:cais/mmlu:all:test --out mmlu.jsonl",
    "each": """lambdasweep each --base org/model --aligned org/model-Instruct \\
    --lambdas 0:1:0.1 --out runs/judged -- ./evaluate.sh""",
    "serve": "lambdasweep serve runs/model --parents auto -- --port 8123",
}


class PanelCommand(TyperCommand):
    """A command whose help is in panels and ends with its example."""

    def __init__(self, name: str | None, **given: Any) -> None:
        if example := EXAMPLES.get(name or ""):
            given["epilog"] = f"Example:\n\n  {_plain(example)}"
        super().__init__(name, **given | {"rich_markup_mode": "rich"})


class ForwardingCommand(PanelCommand):
    """A command that leaves what follows after `--` as it is, in `context.args`."""

    follows = "Flags of `vllm serve` follow after --, as in: serve RUN -- --port 8123"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        try:
            super().parse_args(ctx, args[:end])
        except Exception as error:
            if hasattr(error, "option_name"):  # an unknown option, which may be one of what follows
                error.message += f". {self.follows}"  # type: ignore[attr-defined]
            raise
        ctx.args = args[end + 1 :]
        return args[end + 1 :]


class EachCommand(ForwardingCommand):
    """A command that runs another one."""

    follows = "The command follows after --, as in: each … -- ./evaluate.sh"


class Group(TyperGroup):
    """All commands; its help is in panels, too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        before, self.rich_markup_mode = self.rich_markup_mode, "rich"
        try:
            super().format_help(ctx, formatter)
        finally:
            self.rich_markup_mode = before  # errors are plain, also after a help in the same process


def flag(
    help: str,
    panel: str,
    metavar: str | None = None,
    *,
    name: str | None = None,
    required: bool = False,
    default: str | None = None,
    parser: Callable[[str], Any] | None = None,
) -> Any:
    """Return what typer is told of a flag. None is its value where it is not given, so that a settings file can say it.

    Args:
        help: what it does.
        panel: the group that it is shown in.
        metavar: what stands for its value.
        name: with its dashes; None: the parameter's own.
        required: whether its help says that it is needed; a file may give it instead, so the parser does not insist.
        default: what holds where it is not given, in words.
        parser: makes its value of what was written; None: the parameter's kind does.
    """
    mark = "[required]" if required else f"[default: {default}]" if default is not None else ""
    style = "red" if required else "dim"
    text = _plain(help) + (f" [{style}]{_plain(mark)}[/]" if mark else "")
    return typer.Option(
        *([name] if name else []),
        help=text,
        metavar=metavar,
        rich_help_panel=panel,
        show_default=False,
        parser=parser,
    )


def flag_of(group: type, name: str, said: Setting) -> Any:
    """Return what typer is told of the flag of a setting."""
    metavar = f"[{'|'.join(said.one_of({}))}]" if said.one_of else said.metavar
    return flag(
        said.help,
        said.panel,
        metavar,
        name=as_flag(name),
        default=default_of(group, name),
        parser=_number_or_auto if said.auto else None,
    )


def _number_or_auto(text: str) -> int | str:
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor {AUTO}.") from None


def _plain(text: str) -> str:
    """Return text that rich shows as it is."""
    return text.replace("[", "\\[")
