"""This module is the command line. It imports nothing heavy, so `lambdasweep --help` answers at once."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from contract.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError
from lambdasweep.flags import (
    Aligned,
    Base,
    Lam,
    Lambdas,
    Margin,
    Out,
    RunArgument,
    TakenRun,
    takes_settings,
    takes_sweep,
)
from lambdasweep.help import EachCommand, ForwardingCommand, Group, PanelCommand, flag
from lambdasweep.output import console_of, show_metrics, write_page
from lambdasweep.settings import PAIR

if TYPE_CHECKING:
    from contract.rundir import RunDir
    from lambdasweep.config import SweepConfig

app = typer.Typer(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# The groups that `--help` shows commands in.
_SWEEP, _RESULTS, _TAKE_HOME, _BATCH = "Sweep a pair", "Look at results", "Take a point home", "Score with one model"
_INPUT = "Input and output"

# The settings that say which pair it is, and which way between its parents.
_OF_LINE = ("base_revision", "aligned_revision", "method", "lam_map", "vocab")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"lambdasweep {version('lambdasweep')}")
        raise typer.Exit


@app.callback()
def lambdasweep(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Score every model on the line between a language model before and after alignment, live in vLLM.

    lambdasweep demo sweeps the pair that comes with it; lambdasweep COMMAND --help has an example of each command.
    """


@app.command(cls=PanelCommand, rich_help_panel=_SWEEP)
@takes_sweep
def run(config: "SweepConfig") -> None:
    """Score the pair at every λ. The same command again goes on where it stopped."""
    sweep(config)


@app.command(cls=PanelCommand, rich_help_panel=_SWEEP)
@takes_sweep
def plan(config: "SweepConfig") -> None:
    """Check everything that run would use and print what it would cost; start nothing."""
    from lambdasweep.plan import describe

    for line in describe(config):
        typer.echo(line)


@app.command(cls=EachCommand, rich_help_panel=_SWEEP)
@takes_settings(*_OF_LINE, "parents", "tp", "pp", "dtype", "max_model_len", "engine")
def each(
    context: typer.Context,
    base: Base = None,
    aligned: Aligned = None,
    lambdas: Lambdas = None,
    out: Out = None,
    **settings: Any,
) -> None:
    """Run a command of yours, which follows after --, at every λ of one live server, and collect what it measured.

    It has OPENAI_BASE_URL, OPENAI_API_KEY, LAMBDASWEEP_MODEL, LAMBDASWEEP_LAM and LAMBDASWEEP_OUT: its directory at this λ,
    which it runs in. There it leaves metrics.json ({"task": {"metric": value}}), results of lm-eval or logs of Inspect.
    The same command again goes on where it stopped.
    """
    from lambdasweep.each.config import load_each_config
    from lambdasweep.each.run import run_each

    engine = settings.pop("engine") or []
    plain = {"base": base, "aligned": aligned, "lambdas": lambdas, "out": out, **settings}
    config = load_each_config(plain, engine, context.args, Path.cwd())
    try:
        result = run_each(config, os.environ, lambda line: typer.echo(line, err=True))
    except SystemExit:
        typer.echo("stopped; what is measured is kept, and the same command goes on from there", err=True)
        raise
    if result.run.all_measured():
        write_page(result.run, show_metrics(result.run))
    typer.echo(f"run directory: {result.run.root}")
    if result.run.damaged:
        _put_aside_at_the_end(result.run, "measures")
    if result.failed:
        typer.echo(
            f"nothing was measured at λ = {', '.join(result.failed)}: the same command tries there again", err=True
        )
    raise typer.Exit(result.exit_code)


@app.command(cls=PanelCommand, rich_help_panel=_BATCH)
@takes_settings()
def score(
    requests: Annotated[
        list[str] | None,
        flag("Parquet files, as path, glob, directory or URL; repeatable.", _INPUT, "FILES", required=True),
    ] = None,
    id: Annotated[str | None, flag("The id column.", _INPUT, "NAME", default="id")] = None,
    out: Annotated[
        str | None, flag("The output directory: path, s3:// or gs:// URL.", _INPUT, "DIRECTORY", required=True)
    ] = None,
    model: Annotated[
        str | None, flag("One checkpoint: directory or hub id. This, or a pair and --lam.", "Model", "CHECKPOINT")
    ] = None,
    base: Base = None,
    aligned: Aligned = None,
    lam: Annotated[str | None, flag("The point of the pair to score with.", PAIR, "λ")] = None,
    **settings: Any,
) -> None:
    """Score Parquet files of prompts, of any size, with one model. The same command again goes on where it stopped."""
    flags = locals() | settings
    from lambdasweep.batch.config import load_score_config
    from lambdasweep.batch.score import run_score
    from lambdasweep.monitor.wording import duration

    plain = {name: value for name, value in flags.items() if name not in ("requests", "engine", "settings")}
    began = time.monotonic()
    result = run_score(
        load_score_config(plain, requests or [], settings["engine"] or []), lambda line: typer.echo(line, err=True)
    )
    if result.exit_code == EXIT_INTERRUPTED:
        typer.echo("stopped; what is committed is kept, and the same command goes on from there", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    if result.units:
        seconds = result.seconds
        typer.echo(
            f"{result.units} units, {result.rows} rows, {result.tokens} tokens computed in "
            f"{duration(time.monotonic() - began)}; "
            f"replica time: {seconds['score']:.1f} s scoring, {seconds['commit']:.1f} s committing"
        )
    typer.echo(f"scores: {result.out.root / 'scores'}")
    if result.exit_code:
        typer.echo(f"some rows are quarantined: lambdasweep status {result.out.root} counts them", err=True)
        raise typer.Exit(result.exit_code)


@app.command(cls=PanelCommand, rich_help_panel=_RESULTS)
def status(
    run_dir: RunArgument,
    live: Annotated[bool, typer.Option("--watch", help="Show it live, until the run is done.")] = False,
) -> None:
    """Print what of a run, or of a batch, is done, what is left, what is quarantined, and how its driver does."""
    from lambdasweep.batch.scoredir import ScoreDir
    from lambdasweep.batch.status import describe as describe_score
    from lambdasweep.monitor.status import describe

    batch = ScoreDir(run_dir)
    batch.check_store()
    is_batch = batch.exists()
    counts = None
    if live:
        from rich.console import Console

        from contract.rundir import RunDir
        from lambdasweep.monitor.watch import watch

        if is_batch:
            raise InputError(f"{run_dir} is a batch, and --watch shows sweeps: leave it out")
        counts = watch(RunDir(run_dir), Console())
    for line in describe_score(batch) if is_batch else describe(run_dir, counts):
        typer.echo(line)


@app.command(cls=PanelCommand, rich_help_panel=_RESULTS)
def report(
    run_dir: RunArgument,
    margin: Margin = None,
    confidence: Annotated[
        str,
        typer.Option(
            help="The confidence that λ* is chosen by: sum, tokens or bytes of choices, and pmi where they were scored with "
            "--pmi; of written answers sum, tokens, lowest, first or votes, and where they were made p_true, verbalised, "
            "sum@λ or tokens@λ. A task without it takes sum.",
            metavar="NAME",
        ),
    ] = "sum",
    figures: Annotated[
        bool,
        typer.Option("--figures", help="Write the figures for a paper, too: RUN/report/figures, SVG, PNG and PDF."),
    ] = False,
    lm_eval: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the results and samples of each λ, as lm-eval writes them.", metavar="DIRECTORY"
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="A tracker to log the report and its figures to; repeatable.", metavar="[wandb|mlflow|trackio]"
        ),
    ] = None,
) -> None:
    """Recompute metrics.parquet from the tables, print it, and write RUN/report/index.html."""
    from calibration.report.write import write_report
    from contract.records import read_asked
    from contract.rundir import RunDir
    from contract.writable import check_writable
    from lambdasweep.config import margin_problems
    from lambdasweep.exchange.trackers import check_tracker, log_to
    from lambdasweep.monitor.phase import phase

    if problems := margin_problems(margin):
        raise InputError(*problems)
    run = RunDir(run_dir)
    asked = read_asked(run)
    if lm_eval is not None and asked.each is not None:
        raise InputError(
            f"{run_dir} is of `lambdasweep each`: files of lm-eval that its command wrote lie in {run_dir}/each; leave out "
            "--lm-eval"
        )
    for name in log or ():
        check_tracker(name)
    for place in (run.root, run.index_html.parent):
        check_writable(place, "copy the run directory to where you may write, and report on the copy")
    if lm_eval is not None:
        check_writable(lm_eval, "give another --lm-eval")
    analysis = show_metrics(run, None if margin is None else margin / 100, confidence, asked)
    with phase("writing report"):
        write_report(run, analysis, confidence=confidence, figures=figures or bool(log))
    typer.echo(f"report: {run.index_html}")
    if lm_eval is not None:
        from datetime import datetime

        from lambdasweep.exchange.lm_eval_files import write_lm_eval

        written = write_lm_eval(run, analysis, lm_eval, datetime.now(), lambda line: typer.echo(line, err=True))
        typer.echo(f"lm-eval's files of {len(written)} λs: {lm_eval}")
    for name in log or ():
        from lambdasweep.exchange.logged import gather_logged

        typer.echo(f"{name}: {log_to(name, gather_logged(run, analysis))}")


@app.command(cls=PanelCommand, rich_help_panel=_RESULTS)
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Run directories: paths, s3:// or gs:// URLs.")],
    out: Annotated[str, typer.Option(help="The page to write.", metavar="FILE.html")] = "compare.html",
    margin: Margin = None,
) -> None:
    """Put runs side by side on the choice tasks that all of them have: print λ* of each, and write one page."""
    from calibration.comparison.gather import gather_runs
    from calibration.report.comparison_page import write_comparison
    from calibration.terminal.comparison import comparison_table
    from contract.location import locate
    from contract.writable import check_file
    from lambdasweep.config import margin_problems
    from lambdasweep.monitor.phase import phase

    if problems := margin_problems(margin):
        raise InputError(*problems)
    page = locate(out)
    check_file(page)
    with phase("computing metrics"):
        found = gather_runs(runs, None if margin is None else margin / 100)
    console_of().print(comparison_table(found, found.titles[0]))
    for notice in found.notices:
        typer.echo(notice)
    write_comparison(found, page)
    typer.echo(f"comparison: {out}")


@app.command(cls=PanelCommand, rich_help_panel=_SWEEP)
def demo(out: Annotated[str, typer.Option(help="The run directory.", metavar="DIRECTORY")] = "runs/demo") -> None:
    """Sweep the pair that comes with lambdasweep: two small models, two tasks, λ from 0 to 1.5."""
    from contract.grid import parse_grid
    from contract.location import locate
    from lambdasweep.config import SweepConfig
    from lambdasweep.demo import ALIGNED, BASE, CLOZE, LETTERS
    from lambdasweep.tasks.documents import TaskSpec

    sweep(
        SweepConfig(
            base=str(BASE),
            aligned=str(ALIGNED),
            lambdas=parse_grid("0:1.5:0.1"),
            tasks=(TaskSpec("letters", LETTERS, format="letters"), TaskSpec("cloze", CLOZE, format="cloze")),
            out=locate(out),
        )
    )


@app.command(cls=PanelCommand, rich_help_panel=_TAKE_HOME)
@takes_settings(*_OF_LINE)
def export(
    out: Annotated[Path, typer.Option(help="The directory to write; it must not exist.", metavar="DIRECTORY")],
    run_dir: TakenRun = None,
    base: Base = None,
    aligned: Aligned = None,
    lam: Lam = None,
    like: Annotated[
        str,
        typer.Option(
            help="Whose config, tokenizer and chat template to take; one of several aligned ones by name.",
            metavar="[base|aligned|NAME]",
        ),
    ] = "aligned",
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file.", metavar="SIZE")] = "5GB",
    push_to: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="A repository of the model hub to push the checkpoint to.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see that repository.")] = False,
    **settings: Any,
) -> None:
    """Write θ(λ) as a checkpoint that transformers and vLLM load: of RUN (λ* by default), or of a pair."""
    from lambdasweep.exchange.hub import check_hub, push
    from lambdasweep.monitor.wording import size
    from lambdasweep.takehome.export import export_point
    from lambdasweep.takehome.point import from_flags

    began = time.monotonic()
    if public and push_to is None:
        raise InputError("--public says who may see the repository of --push-to: give --push-to ORG/NAME, too")
    source = from_flags(run_dir, base, aligned, lam=lam, **settings)
    if push_to is not None:
        check_hub(push_to, public)
    nbytes = export_point(source, out, like, max_shard_size, lambda line: typer.echo(line, err=True))
    typer.echo(f"θ({source.lam}): {size(nbytes)} in {time.monotonic() - began:.1f} s in {out}")
    if push_to is not None:
        typer.echo(f"pushed: {push(out, push_to, public, lambda line: typer.echo(line, err=True))}")


@app.command(cls=ForwardingCommand, rich_help_panel=_TAKE_HOME)
@takes_settings(*_OF_LINE, "parents")
def serve(
    context: typer.Context,
    run_dir: TakenRun = None,
    base: Base = None,
    aligned: Aligned = None,
    lam: Lam = None,
    **settings: Any,
) -> None:
    """Serve θ(λ) live through vLLM's OpenAI-compatible server, on 127.0.0.1. Flags of `vllm serve` follow after --.

    POST /v1/lambda {"lam": "0.7"} moves it, GET /v1/lambda tells where it is, as does X-Lambdasweep-Lambda in each response.
    """
    from lambdasweep.takehome.point import from_flags
    from lambdasweep.takehome.serve import serve_point

    parents = settings.pop("parents") or "auto"
    source = from_flags(run_dir, base, aligned, lam=lam, **settings)
    serve_point(source, parents, context.args, lambda line: typer.echo(line, err=True))


tasks = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help="Make task files.")
app.add_typer(tasks, name="tasks", rich_help_panel=_SWEEP)


@tasks.command(name="convert", cls=PanelCommand)
def convert_task(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A JSONL or Parquet file, or hf:ORG/DATASET[:CONFIG][:SPLIT]."),
    ],
    out: Annotated[Path, typer.Option(help="The task file to write; it must not exist.", metavar="FILE.jsonl")],
    columns: Annotated[
        str | None,
        typer.Option(
            help="Which column holds what, where it is not known; choices=A+B+C+D are columns of one choice each.",
            metavar="query=…,choices=…,gold=…",
        ),
    ] = None,
) -> None:
    """Write the task file of a data set with rows like those of ARC, MMLU or PIQA."""
    from lambdasweep.tasks.make_file import make_file

    typer.echo(f"{make_file(source, out, columns)} rows in {out}")


def sweep(config: "SweepConfig") -> None:
    """Run a sweep, print its tables and where they are, and end with the sweep's exit status."""
    from lambdasweep.monitor.wording import duration
    from lambdasweep.sweep import run_sweep

    began = time.monotonic()
    result = run_sweep(config, lambda line: typer.echo(line, err=True))
    if result.exit_code == EXIT_INTERRUPTED:
        typer.echo("stopped; what is committed is kept, and the same command goes on from there", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    write_page(result.run, show_metrics(result.run, asked=result.begun.asked, sweep=result.begun.sweep))
    if result.units:
        seconds = result.seconds
        typer.echo(
            f"{result.units} units, {result.requests} requests in {duration(time.monotonic() - began)}; replica time: "
            f"{seconds['score']:.1f} s scoring, {seconds['switch']:.1f} s switching λ, {seconds['commit']:.1f} s committing"
        )
    typer.echo(f"run directory: {result.run.root}")
    if result.run.damaged:
        _put_aside_at_the_end(result.run, "scores")
    if result.exit_code:
        typer.echo(f"some requests are quarantined: lambdasweep status {result.run.root} counts them", err=True)
        raise typer.Exit(result.exit_code)


def _put_aside_at_the_end(run_dir: "RunDir", does: str) -> NoReturn:
    from contract.damage import put_aside

    with run_dir.lock():
        put_aside(run_dir)
    typer.echo(f"damaged tables were found at the end: run the same command again, which {does} them anew", err=True)
    raise typer.Exit(EXIT_FAILED)
