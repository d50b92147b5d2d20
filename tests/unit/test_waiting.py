"""Waits of the tests end when nothing goes on any more, and not before."""

import itertools
import sys
import time

import pytest

from tests.support import waiting


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a machine that nobody else uses."""
    monkeypatch.setattr(waiting, "share_of_a_core", lambda: 1.0)


def test_what_came_true_is_returned() -> None:
    answers = iter([0, "", "there"])
    assert waiting.until(lambda: next(answers), 5) == "there"


def test_where_nothing_goes_on_it_ends() -> None:
    with pytest.raises(AssertionError, match=r"waiting for 0\.2 s, and this was seen last: the log"):
        waiting.until(lambda: False, 0.2, lambda: "the log")


@pytest.mark.slow
def test_it_goes_on_as_long_as_something_does() -> None:
    end, shown = time.monotonic() + 1, itertools.count()
    assert waiting.until(lambda: time.monotonic() > end, 0.3, lambda: next(shown))


@pytest.mark.slow
def test_a_second_is_one_of_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "share_of_a_core", lambda: 0.1)
    end = time.monotonic() + 1
    assert waiting.until(lambda: time.monotonic() > end, 0.3)


def test_a_command_is_run_to_its_end() -> None:
    done = waiting.run([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
