"""This waits for processes, on machines that may be busy with something else."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT


def until(condition: Callable[[], Any], seconds: float = 240.0, shows: Callable[[], Any] = lambda: None) -> Any:
    """Wait until a condition holds, and return what it returned.

    Args:
        condition: the condition that must come true.
        seconds: how long that may take on a quiet machine. Where more processes want to run than there are cores, a second
            counts as the share of it that one process gets.
        shows: a function whose result changes as the work goes on, such as the length of a log; `seconds` then count from
            its last change.
    """
    left, seen, before = seconds, shows(), time.monotonic()
    while not (value := condition()):
        time.sleep(0.02)
        now = time.monotonic()
        left -= (now - before) * share_of_a_core()
        before = now
        if (shown := shows()) != seen:
            left, seen = seconds, shown
        if left < 0:
            raise AssertionError(f"nothing came of waiting for {seconds:g} s, and this was seen last: {seen}")
    return value


def patiently(start: Callable[[], Any]) -> Any:
    """Start a node of Ray, which gives it 30 s. A busy machine may exceed them, and then it is tried again."""
    for _ in range(3):
        with contextlib.suppress(Exception):  # Ray raises a bare Exception
            return start()
    return start()


def share_of_a_core() -> float:
    """Return the share of a core that a process gets now if all that want to run get equal shares, at most 1."""
    one_minute, _, _, running, _ = Path("/proc/loadavg").read_text().split()
    wanted = max(float(one_minute), float(running.partition("/")[0]))
    return min(1.0, len(os.sched_getaffinity(0)) / max(wanted, 1.0))


def finish(process: "subprocess.Popen[Any]", log: Path, shows: Callable[[], Any] = lambda: None) -> int:
    """Wait for a process to end, as `until` does, and return its status; what it writes to `log` is progress, too."""
    try:
        until(lambda: process.poll() is not None, shows=lambda: (log.stat().st_size, shows()))
    except AssertionError as error:
        process.kill()
        process.wait()
        raise AssertionError(f"{error}\n{log.read_text()[-6000:]}") from None
    return int(process.returncode)


def run(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command in this tree and return what it printed, as `subprocess.run` does, for as long as it goes on."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        with open(out, "wb") as one, open(err, "wb") as other:
            process = subprocess.Popen(command, stdout=one, stderr=other, **{"cwd": ROOT} | options)
        try:
            until(lambda: process.poll() is not None, 900, lambda: (out.stat().st_size, err.stat().st_size))
        except AssertionError as error:
            process.kill()
            process.wait()
            raise AssertionError(f"{error}\n{out.read_text()}\n{err.read_text()[-6000:]}") from None
        return subprocess.CompletedProcess(command, process.returncode, out.read_text(), err.read_text())
