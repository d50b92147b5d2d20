"""This runs a function in a fork of the test's process, which can be killed without having imported everything anew."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

from tests.support.waiting import until


def fork(function: Callable[[], object], log: Path) -> ForkProcess:
    """Start `function` in a fork with a session of its own, whose standard streams end in the file `log`.

    It is killed at the end of this process at the latest. Its status is what `sys.exit` was given there, or 0 where the
    function returns.
    """

    def begin() -> None:
        os.setsid()
        with open(log, "ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        # Those of pytest keep what is printed.
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        try:
            function()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    process = multiprocessing.get_context("fork").Process(target=begin, daemon=True)
    process.start()
    return process


def joined(process: ForkProcess, log: Path) -> int:
    """Wait for a fork to end, for as long as its log grows now and then; return its status."""
    try:
        until(lambda: process.exitcode is not None, shows=lambda: log.stat().st_size if log.exists() else 0)
    finally:
        process.kill()
    assert process.exitcode is not None
    return process.exitcode


def run_script(script: Path, *arguments: str) -> None:
    """Run a script in this process as Python would run it with these arguments."""
    sys.argv, sys.path[:0] = [str(script), *arguments], [str(script.parent)]
    runpy.run_path(str(script), run_name="__main__")
