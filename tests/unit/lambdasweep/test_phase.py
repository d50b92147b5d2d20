"""A command says what it works on, and signals wait for the end of a start."""

import io
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from lambdasweep.held_signals import held_signals
from lambdasweep.monitor import phase as module
from lambdasweep.monitor.phase import phase


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
        assert stream.touched.wait(60)
    assert stream.getvalue() == "checking [weights]\n"
    monkeypatch.setattr(module, "PATIENCE", 1e6)
    threads = threading.active_count()
    with phase("writing report", Console(file=stream)):
        pass
    assert stream.getvalue() == "checking [weights]\n"
    while threading.active_count() > threads:  # the timer ends with the work, or a command would wait for it
        pass


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
