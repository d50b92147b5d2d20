"""This module shows what commands have to show at their end: tables, answers and the page."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.analyse import Analysis
    from contract.records import Asked, SweepRecord
    from contract.rundir import RunDir


def write_page(run_dir: "RunDir", analysis: "Analysis") -> None:
    """Write the page at the end of a sweep; the scores are safe, so whatever is wrong with it changes no exit status."""
    try:
        from calibration.report.write import write_report
        from lambdasweep.monitor.phase import phase

        with phase("writing report"):
            write_report(run_dir, analysis)
        typer.echo(f"report: {run_dir.index_html}")
    except Exception as error:  # the plotting library's included
        typer.echo(f"no report ({error}): lambdasweep report {run_dir.root} tries again", err=True)


def show_metrics(
    run_dir: "RunDir",
    margin: float | None = None,
    confidence: str = "sum",
    asked: "Asked | None" = None,
    sweep: "SweepRecord | None" = None,
) -> "Analysis":
    """Compute and commit the metrics of a run, print its tables and its answers; return what they were made of.

    Args:
        run_dir: the run.
        margin: the accuracy that λ* may give up, as a share of documents; without it, the run's.
        confidence: what λ* is chosen by, and the tables show, where a task has it.
        asked: the run's plan.json, if it was read already.
        sweep: the run's sweep.json, if it was read already.
    """
    from calibration.analyse import analyse, write_metrics
    from calibration.frontier.beside import notes
    from calibration.terminal.beside import beside_table
    from calibration.terminal.tables import render
    from contract.freed_memory import keep_freed_memory
    from lambdasweep.monitor.phase import phase

    keep_freed_memory(largest=32 << 20, of_threads=True)
    with phase("computing metrics"):
        analysis = analyse(run_dir, margin=margin, confidence=confidence, asked=asked, sweep=sweep)
    wide = 100 + max(0, max(map(len, analysis.parents.values())) - 4)  # columns that intervals take
    console = console_of(wide)
    metrics = write_metrics(run_dir, analysis)
    tables = render(metrics, confidence, console.width >= wide, analysis.parents, analysis.found.stars, analysis.apart)
    for table in tables:
        console.print(table)
    if not tables:
        typer.echo("no unit is committed yet, so there is nothing to report", err=True)
    if analysis.damaged:
        typer.echo("warning: damaged tables count as absent; the same sweep scores them again:", err=True)
        for line in analysis.damaged:
            typer.echo(f"  - {line}", err=True)
    found = *analysis.found.tasks, *analysis.found.pools
    for one in found:
        typer.echo(f"{one.task}: {one.answer}")
        if one.claim:
            typer.echo(f"  {one.claim.text}")
    for one in found:
        beside = beside_table(one, intervals=console.width >= wide)
        if beside is not None:
            console.print(beside)
    for line in notes(found):
        console.print(line, markup=False)
    return analysis


def console_of(wide: int = 100) -> "Console":
    """Return the terminal, or one of this width where the output goes elsewhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else wide, highlight=False)
