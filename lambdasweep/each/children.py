"""This module starts processes that end with this one, however it ends.

A process started here leads a session of its own, so that Ctrl-C in the terminal reaches it through us and in our order. A
keeper, a few lines of Python that do nothing but wait, is told of each session before the process becomes the command. When
this process is gone, even by SIGKILL, the pipe to the keeper closes, and the keeper ends what is left.

Processes that belong to a command are known by their session, because `timeout` and a shell with `set -m` make process
groups of their own.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lambdasweep.held_signals import held_signals

# Each line is the number of a start and its session, or the number with a minus when the session has ended.
_KEEPER = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sessions = {}
for line in sys.stdin:
    start, *session = map(int, line.split())
    if session:
        sessions[start] = session[0]
    else:
        sessions.pop(-start, None)
def left():
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) in sessions.values() and state not in "ZX":
            yield int(name)
for _ in range(500):
    found = list(left())
    if not found:
        break
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.01)
"""
_PASSES = 500  # a killed session is looked at so often, because it may start processes between two looks
_PAUSE = 0.01  # seconds between two looks


class Children:
    """This starts and ends processes. Those that are left when the block ends are ended, the last one first."""

    def __init__(self) -> None:
        self._running: dict[subprocess.Popen[bytes], int] = {}
        self._starts = itertools.count(1)

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _KEEPER], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held_signals():  # a second Ctrl-C finds everything ended
            for process in reversed([*self._running]):
                self.end(process)
            pipe = self._keeper.stdin
            assert pipe is not None
            pipe.close()
            self._keeper.wait()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], folder: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a command without input, whose output goes into `log`.

        Raises:
            OSError: it cannot be started.
        """
        pipe = self._keeper.stdin
        assert pipe is not None
        keeper, start = pipe.fileno(), next(self._starts)
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The child tells the keeper before it becomes the command, so that the keeper knows every session at
                # every moment.
                preexec_fn=lambda: os.write(keeper, b"%d %d\n" % (start, os.getpid())),
            )
        except OSError:  # the process' number is free again, and another process may get it
            self._forget(start)
            raise
        self._running[process] = start
        return process

    def end(self, process: "subprocess.Popen[bytes]", seconds: float = 10.0) -> None:
        """End a process and all of its session: by SIGTERM, and after so many seconds by SIGKILL.

        If the process has ended by itself, whatever it left behind is ended at once.
        """
        if process.poll() is None:
            for one in members(process.pid):
                _send(one, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        for _ in range(_PASSES):
            left = members(process.pid)
            if not left:
                break
            for one in left:
                _send(one, signal.SIGKILL)
            time.sleep(_PAUSE)
        process.wait()
        if process in self._running:
            self._forget(self._running.pop(process))

    def _forget(self, start: int) -> None:
        pipe = self._keeper.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe.fileno(), b"-%d\n" % start)


def members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                state, _, _, of = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue  # the process has just ended
            if int(of) == session and state not in "ZX":
                found.append(int(path.name))
    return found


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # the process has just ended
        os.kill(process, number)


def last_lines(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log that are not empty; long ones are cut."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16_384))
        text = file.read().decode(errors="replace")
    found = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return [line if len(line) <= 300 else f"{line[:299]}…" for line in found[-lines:]]
