"""This is a Python that has imported vLLM, torch, transformers and Ray: each command it is given is a fork of one process.

Importing them takes a process 15 to 25 s of processor time on a slow core, many times what a tiny engine takes to start, and
a sweep starts nine such processes: the command, Ray's own and each replica. `warm_python()` is the path of an executable
that does what `sys.executable` does with `-m MODULE …` and `SCRIPT …`, in a fork; whatever a fork starts by its own
`sys.executable` is one again: Ray's workers and agents, and what multiprocessing spawns. All else is handed to the real
Python. Tests that use `sys.executable` itself see that everything can be imported anew.

The executable is a process of its own that waits for the fork: it passes signals on and ends as the fork does, and if it is
killed, so is the fork. But a fork is no child of it, so `descendants` finds what psutil would look for in vain.
"""

import array
import contextlib
import fcntl
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.support.paths import ROOT
from tests.support.waiting import until

# The executable runs without the site module, so that it starts in milliseconds.
_EXECUTABLE = """#!{python} -IS
import array, json, os, signal, socket, sys

arguments = {before} + sys.argv[1:]
rest = arguments[:]
while rest[:1] in (["-B"], ["-u"]):
    del rest[0]
first = rest[0] if rest else ""
spawned = first == "-c" and "--multiprocessing-fork" in rest
if not (spawned or first == "-m" or first[:1] not in ("", "-")):
    os.execv("{python}", ["{python}", *arguments])
fds = [0, 1, 2]
if spawned:  # multiprocessing hands its pipes down
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            fds += [fd] if fd > 2 and os.fstat(fd) else []
        except OSError:
            pass  # that of the listing itself
server = socket.socket(socket.AF_UNIX)
server.connect("{folder}/socket")
asked = dict(arguments=rest, cwd=os.getcwd(), environment=dict(os.environ), asks=os.getpid(), fds=fds)
asked = json.dumps(asked).encode()
handed = array.array("i", fds)
server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
server.sendall(asked)
answers = server.makefile()
held = []
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: held.append(number))
fork = int(answers.readline())


def hand_on(number, frame=None):
    try:
        os.kill(fork, number)
    except OSError:
        pass


for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, hand_on)
for number in held:
    hand_on(number)
status = int(answers.readline() or -9)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def warm_python() -> str:
    """Return the path of the executable; beside it lie `lambdasweep` and `ray`, the commands, as in a `bin` folder."""
    return str(_folder() / "python")


def descendants(pid: int) -> list[psutil.Process]:
    """Return the descendants of a process, and those of each fork that one of them waits for, the forks included."""
    found: dict[int, psutil.Process] = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            children = psutil.Process(one).children()
            fork = _folder() / str(one)
            if fork.exists():
                children.append(psutil.Process(int(fork.read_text())))
            for child in children:
                if child.pid not in found:
                    found[child.pid] = child
                    waiting.append(child.pid)
    return list(found.values())


@functools.cache
def _folder() -> Path:
    """Return the folder of the process that forks; the first who asks in this test run starts it.

    It ends when the last process of the test run that asked has ended.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    # The path is short, because the names of sockets have a limit. A fork that asks finds the process that it comes from.
    folder = Path(os.environ.setdefault("LAMBDASWEEP_WARM", f"{tempfile.gettempdir()}/warm-{run[:16]}"))
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "socket").exists():
            _start(folder)
        _hold(folder)
    return folder


_held: list[socket.socket] = []


def _hold(folder: Path) -> None:
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(folder / "socket"))
    send_request(line, {"hold": True}, [])
    _held.append(line)


def send_request(line: socket.socket, asked: dict[str, Any], fds: list[int]) -> None:
    """Write what somebody asks for, for `read_request`."""
    text = json.dumps(asked).encode()
    handed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    line.sendmsg([len(text).to_bytes(4, "big")], handed)
    line.sendall(text)


def read_request(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read what somebody asks for: the length of a JSON text in four bytes, which carry file descriptors, and the text."""
    fds = array.array("i")
    head, ancillary, *_ = line.recvmsg(4, socket.CMSG_LEN(64 * fds.itemsize))
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    text = b""
    while head and (left := int.from_bytes(head, "big") - len(text)):
        part = line.recv(left)
        if not part:
            return {}, list(fds)
        text += part
    return (json.loads(text) if text else {}), list(fds)


def _start(folder: Path) -> None:
    from serve.start import process_environment
    from tests.support.engine_process import settings

    for name, before in (
        ("python", []),
        ("lambdasweep", ["-m", "lambdasweep"]),
        ("ray", ["-m", "ray.scripts.scripts"]),
    ):
        file = folder / name
        file.write_text(_EXECUTABLE.format(python=sys.executable, folder=folder, before=before))
        file.chmod(0o755)
    environment = os.environ | process_environment(settings(), [0])
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_server", str(folder)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def ready() -> bool:
        assert process.poll() is None, f"the process that forks has ended:\n{log.read_text()[-4000:]}"
        return (folder / "socket").exists()

    until(ready)
