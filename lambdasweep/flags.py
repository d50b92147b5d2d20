"""The flags of the command line, and the `SweepConfig` that those of `run` and `plan` make. Imports nothing heavy."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambdasweep.config import SweepConfig


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
Replicas = Annotated[
    int | None, typer.Option(help="vLLM engines at the same time; without it, as many as there is room for.")
]
Tp = Annotated[int | None, typer.Option(help="Tensor-parallel ranks of each engine.")]
Pp = Annotated[int | None, typer.Option(help="Pipeline stages of each engine, of --tp ranks each.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest request in tokens.")]
EngineOptions = Annotated[
    list[str] | None, typer.Option("--engine", metavar="KEY=VALUE", help="Further vLLM arguments.")
]
BaseRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
AlignedRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
TokenizerOption = Annotated[str | None, typer.Option("--tokenizer", help="Whose tokenizer: base or aligned.")]
Method = Annotated[
    str | None, typer.Option(help="From base to aligned: linear, or slerp along the arc of each tensor.")
]
LamMap = Annotated[
    str | None,
    typer.Option(
        "--lam-map", metavar="PATTERN=WEIGHT,…", help="Weights on λ by module: layers.0-9=0.3,layers.10-=0.8."
    ),
]
Vocab = Annotated[
    str | None,
    typer.Option(help="Where vocabularies differ: strict (refuse) or shared (take aligned's rows of other tokens)."),
]
ParentsOption = Annotated[
    str | None,
    typer.Option("--parents", help="Where ranks keep both parents: auto, device, pinned, mmap or reload (nowhere)."),
]
AcceleratorType = Annotated[str | None, typer.Option(help="Use only GPUs of this kind, by Ray's name: H100, say.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; without it one is started here.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file with these settings; flags win.")]
Lam = Annotated[str | None, typer.Option(help="The point, such as 0.62 or dpo=0.5,sft=0.25; of a run, λ* by default.")]
TakenRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run directory, in place of a pair.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory: path, s3:// or gs:// URL.")]


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
    replicas: Replicas = None,
    tp: Tp = None,
    pp: Pp = None,
    dtype: Dtype = None,
    max_model_len: MaxModelLen = None,
    engine: EngineOptions = None,
    base_revision: BaseRevision = None,
    aligned_revision: AlignedRevision = None,
    method: Method = None,
    lam_map: LamMap = None,
    vocab: Vocab = None,
    tokenizer: TokenizerOption = None,
    parents: ParentsOption = None,
    accelerator_type: AcceleratorType = None,
    address: Address = None,
    config: ConfigFile = None,
) -> Any:  # a SweepConfig; typer evaluates annotations, and its module is imported late
    """Make the `SweepConfig` of the flags that `run` and `plan` share."""
    flags = locals()
    from lambdasweep.config import load_config

    plain = {name: value for name, value in flags.items() if name not in ("task", "generate", "engine", "config")}
    return load_config(plain, task or [], generate or [], engine or [], config)


def takes_sweep(command: "Callable[[SweepConfig], None]") -> "Callable[..., None]":
    """Give a command the flags of `asked` and call it with the config that they make."""

    @functools.wraps(asked)
    def with_flags(**flags: Any) -> None:
        command(asked(**flags))

    with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
    return with_flags
