"""Processes that end with this one, however it ends.

A process started here leads a group of its own, so that Ctrl-C in the terminal reaches it through us and in our order. A
keeper, a few lines of Python that do nothing but wait, is told of each group before the process becomes the command. When
this process is gone, even by SIGKILL, the pipe to the keeper closes, and the keeper ends what is left.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lambdasweep.held_signals import held_signals

# Each line is the number of a group, or the same with a minus when the group has ended.
_KEEPER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    group = int(line)
    groups.add(group) if group > 0 else groups.discard(-group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Children:
    """Starts and ends processes; those that are left when the block ends are ended, the last one first."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _KEEPER], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held_signals():  # a second Ctrl-C finds everything ended
            for process in reversed(self._running[:]):
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
        keeper = pipe.fileno()
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # In the child, before it is the command: at no moment is there a group that the keeper does not know.
            preexec_fn=lambda: os.write(keeper, b"%d\n" % os.getpid()),
        )
        self._running.append(process)
        return process

    def end(self, process: "subprocess.Popen[bytes]", seconds: float = 10.0) -> None:
        """End a process and all of its group: by SIGTERM, and after so many seconds by SIGKILL.

        What a process that has ended by itself left behind is ended, too, at once.
        """
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process in self._running:
            self._running.remove(process)
            pipe = self._keeper.stdin
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe.fileno(), b"-%d\n" % process.pid)


def last_lines(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log that are not empty; long ones are cut."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16_384))
        text = file.read().decode(errors="replace")
    found = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return [line if len(line) <= 300 else f"{line[:299]}…" for line in found[-lines:]]
