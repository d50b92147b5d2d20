"""This module lets signals wait, because a library that is cut off while it starts may crash the process. A signal is not
forgotten either where a library swallowed the exception that it raised."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from contract.errors import EXIT_INTERRUPTED

_ended: list[int] = []  # the signals that this command was to be ended by


@contextmanager
def held_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the end of the block, and then do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), came[0])


def end_command(number: int) -> NoReturn:
    """End the command with EXIT_INTERRUPTED, now or at the next `end_if_asked`.

    Python runs a signal's handler between any two instructions of the main thread. Where these are a callback of a library
    that ignores exceptions, or a library's `except:`, SystemExit goes no further.
    """
    _ended.append(number)
    raise SystemExit(EXIT_INTERRUPTED)


def end_if_asked() -> None:
    """End the command if a signal was to end it, and it still runs."""
    if _ended:
        raise SystemExit(EXIT_INTERRUPTED)


def begin_command() -> None:
    """Forget the signals of an earlier command of this process."""
    _ended.clear()
