"""A command says what it works on, and signals wait for the end of a start."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from lambdasweep.held_signals import held_signals
from lambdasweep.monitor import phase as module
from lambdasweep.monitor.phase import phase
from tests.support.command_line import Result
from tests.support.waiting import until


class Written(io.StringIO):
    """This stream tells when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.touched = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.touched.set()
        return count


def test_long_work_is_told_and_short_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Written()
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with phase("checking [weights]", Console(file=stream)):
        until(stream.touched.is_set)
    assert stream.getvalue() == "checking [weights]\n"
    monkeypatch.setattr(module, "PATIENCE", 1e6)
    threads = threading.active_count()
    with phase("writing report", Console(file=stream)):
        pass
    assert stream.getvalue() == "checking [weights]\n"
    until(lambda: threading.active_count() <= threads)  # the timer ends with the work, or a command would wait for it


def test_a_terminal_has_a_spinner() -> None:
    stream = io.StringIO()
    with phase("computing metrics", Console(file=stream, force_terminal=True, width=80)):
        pass
    assert "computing metrics" in stream.getvalue()


@pytest.fixture
def came() -> Iterator[list[int]]:
    """Return the signals that came through to a handler of ours."""
    got: list[int] = []
    before = {
        number: signal.signal(number, lambda one, _: got.append(one)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_start(came: list[int], number: int) -> None:
    with held_signals():
        os.kill(os.getpid(), number)
        assert came == []
    assert came == [number]
    os.kill(os.getpid(), number)
    assert came == [number, number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_a_library_swallows_ends_the_command_all_the_same(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    from lambdasweep import sweep

    prepare = sweep.prepare_for

    def swallow(*arguments: Any) -> Any:
        with contextlib.suppress(BaseException):  # as an import does that tries what a machine has
            os.kill(os.getpid(), number)
            pytest.fail("the handler did not raise")
        return prepare(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "prepare_for", swallow)
        result = lambdasweep("run", *flags())
    assert (result.code, result.err.count("lambdasweep: interrupted")) == (130, 1)
    assert not handed
    assert lambdasweep("run", *flags()).code == 0  # it is no concern of the next command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_that_is_still_being_imported(number: signal.Signals) -> None:
    code = f"""
import builtins, os
from lambdasweep.__main__ import main
real = builtins.__import__
def interrupted(name, *given):
    if name == "typer":
        try:
            os.kill(os.getpid(), {int(number)})
        except BaseException:  # as compiled code does that imports
            pass
    return real(name, *given)
builtins.__import__ = interrupted
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lambdasweep: interrupted\n")
