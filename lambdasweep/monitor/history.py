"""RUN/history.json says by which commands a run was made, and on which kinds of hardware its units were done.

It is no result, and no result depends on it. The report shows it.
"""

import contextlib
import shlex
import sys

from contract.commit import commit_json
from contract.events import Listener
from contract.rundir import RunDir
from contract.units import Receipt


class History(Listener):
    """Keeps history.json: adds this command at once, and the hardware of a unit when it is the first of its kind.

    Args:
        run: the run, which this process holds the lock of.
        command: the command line; one that is there already is not added again.
    """

    def __init__(self, run: RunDir, command: str) -> None:
        self._run = run
        self._commands, self._hardware = run.history()
        if command not in self._commands:
            self._commands.append(command)
            self._write()

    def unit_done(self, receipt: Receipt) -> None:
        if receipt.hardware not in self._hardware:
            self._hardware.append(receipt.hardware)
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk stops the sweep at its next table, with a better message
            commit_json(self._run.history_json, {"commands": self._commands, "hardware": sorted(self._hardware)})


def command_line() -> str:
    """Return the command that this process was started with, as a shell takes it."""
    return shlex.join(["lambdasweep", *sys.argv[1:]])
