"""This module runs the command line in its process: it handles signals, exit statuses and unforeseen errors."""

import io
import os
import signal
import sys
from typing import NoReturn

import typer

from contract.errors import EXIT_FAILED, LambdasweepError
from lambdasweep.cli import app
from lambdasweep.held_signals import begin_command, end_command


def main() -> NoReturn:
    """Run the command line: one clear message on standard error and a meaningful exit status, never a traceback."""
    begin_command()
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no λ gets a ? instead
    try:
        _run()
    finally:  # whoever calls this from Python has handlers of its own
        for number, handler in before.items():
            signal.signal(number, handler)


def _run() -> NoReturn:
    try:
        app()
    except LambdasweepError as error:
        typer.echo(f"lambdasweep: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again while it ends
        sys.exit(EXIT_FAILED)
    except OSError as error:  # the disk, the permissions: nothing that a traceback would help with
        typer.echo(f"lambdasweep: {_said(error)}", err=True)
        sys.exit(EXIT_FAILED)
    except Exception as error:  # of some library: nobody is shown a traceback, and nobody loses it
        typer.echo(f"lambdasweep: {_logged(error)}", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def _said(error: OSError) -> str:
    """Return what an error of the system says: our sentence alone, else its words with the file that they are about."""
    return error.strerror if error.strerror and error.filename is None else str(error)


def _logged(error: Exception) -> str:
    """Write the traceback to a file, and return one line that says what happened and where that file is."""
    import tempfile
    import traceback

    words = (str(error).strip().splitlines() or ["no message"])[0]
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="replace", prefix="lambdasweep-", suffix=".log", delete=False
    ) as file:
        file.write(f"{' '.join(map(repr, sys.argv))}\n\n")
        traceback.print_exception(error, file=file)
    return (
        f"{type(error).__name__}: {words}. This was not foreseen; what is committed is kept. The full log is {file.name}: "
        "please report it to the project as an issue, with that file"
    )


def _interrupt(number: int, _: object) -> NoReturn:
    typer.echo("lambdasweep: interrupted", err=True)
    end_command(number)
