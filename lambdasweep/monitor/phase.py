"""What a command does before and after its engines run is told where it takes long enough to wonder about."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from lambdasweep.held_signals import end_if_asked

PATIENCE = 2.0  # seconds after which a line says what is done, where there is no terminal to spin on


@contextmanager
def phase(text: str, console: Console | None = None) -> Iterator[None]:
    """Show a spinner with a text on a terminal; elsewhere print the text, if the work takes longer than moments.

    Raises:
        SystemExit: a signal was to end the command before.
    """
    end_if_asked()
    console = console or Console(file=sys.stderr)
    if console.is_terminal:
        with console.status(text):
            yield
        return
    timer = threading.Timer(PATIENCE, console.print, [text], {"markup": False, "highlight": False, "soft_wrap": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
