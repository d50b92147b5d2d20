"""This is the process that forks of `warm_python` come from: it imports everything once, and becomes whatever is asked for.

    python -m tests.support.warm_server FOLDER

It ends when nobody holds it any more. Ray reads the environment when it is imported. Its dashboard and its monitors, which
are always started in the same few environments, are forks of a fork that has imported Ray in that environment. Each node's
agents and workers have environments of their own, and import Ray themselves.
"""

import contextlib
import fcntl
import functools
import os
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from tests.support.warm_python import read_request, send_request

_IMPORTED = (
    "aiohttp.web",
    "aiohttp_cors",
    "altair",
    "calibration.report.page",
    "lambdasweep.entry",
    "lm_eval.evaluator",
    "msgpack",
    "opencensus.stats.stats",
    "pandas",
    "prometheus_client",
    "serve.engine",
    "serve.reference",
    "serve.sampling",
    "serve.scoring",
    "serve.switch.backend",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
    "transformers.models.llama.modeling_llama",
    "vllm.compilation.decorators",
    "vllm.entrypoints.llm",
    "vllm.entrypoints.openai.api_server",
    "vllm.model_executor.models.llama",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)

# All that Ray's dashboard and its monitors import.
_IMPORTED_BY_RAY = (
    "ray",
    "ray._private.log_monitor",
    "ray.autoscaler._private.monitor",
    "ray.autoscaler.v2.monitor",
    "ray.dashboard.head",
    "ray.dashboard.modules.job.job_head",
    "ray.dashboard.modules.metrics.metrics_head",
    "ray.dashboard.modules.reporter.reporter_head",
)

_HIGH = 1024  # a file descriptor above those of any process here


def _serve(folder: Path) -> None:
    """Import everything; then fork for each executable that asks, until nobody holds the process any more."""
    import gc
    import importlib.util
    import logging.config

    sys.modules["ray"] = None  # type: ignore[assignment]  # it reads the environment once, when it is imported: nobody may
    for module in _IMPORTED:
        importlib.import_module(module)
    del sys.modules["ray"]
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    from serve import start

    # vLLM asks an architecture's class in a process of its own, which imports vLLM anew. A fork is such a process.
    registry._run_in_subprocess = lambda ask: ask()

    # Each engine would do this again: it looks through every module for kernels to replace.
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)  # type: ignore[method-assign]
    gc.collect()
    gc.freeze()
    # Engines thaw at their end what was frozen, and collect it: seconds for objects that no fork has made.
    gc.unfreeze = lambda: None
    logging.config._handle_existing_loggers = _handle_existing_loggers
    start.process_environment = _with_threads(start.process_environment)
    # Ranks look for work without a pause for a second before they sleep, on cores that other tests want.
    shm_broadcast.sched_yield = lambda: time.sleep(2e-4)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "binding"))
    listener.listen(128)
    (folder / "binding").rename(folder / "socket")

    ray_package = os.path.dirname(importlib.util.find_spec("ray").origin) + os.sep  # type: ignore[union-attr,arg-type]
    forks = _Forks(folder)
    of_ray: dict[frozenset[tuple[str, str]], tuple[socket.socket, int]] = {}
    holders: list[socket.socket] = []
    begun = False
    while holders or forks or of_ray or not begun:
        for line in forks.readable(listener, *holders, at_most=0.02 if of_ray else None):
            if line in holders:
                holders.remove(line)
                continue
            asking, _ = listener.accept()
            asked, fds = read_request(asking)
            if "hold" in asked:
                holders.append(asking)
                begun = True
            elif (
                asked and asked["arguments"][0].startswith(ray_package) and "RAY_RAYLET_PID" not in asked["environment"]
            ):
                key = frozenset(one for one in asked["environment"].items() if one[0].startswith("RAY_"))
                if key not in of_ray:
                    of_ray[key] = _ray_server(folder, dict(key))
                with contextlib.suppress(OSError):  # it has ended, and so does the executable that asks
                    send_request(of_ray[key][0], asked, [asking.fileno(), *fds])
                asking.close()
            elif asked:
                forks.begin(asking, asked, fds)
            for fd in fds:
                os.close(fd)
        for key, (line, pid) in list(of_ray.items()):
            if begun and not holders and line.fileno() >= 0:
                line.close()  # it ends when its forks have ended
            if os.waitpid(pid, os.WNOHANG)[0]:
                line.close()
                del of_ray[key]
    shutil.rmtree(folder, ignore_errors=True)


def _ray_server(folder: Path, environment: dict[str, str]) -> tuple[socket.socket, int]:
    """Return the line to a fork that serves Ray's own processes in an environment, and its number."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        _serve_ray(folder, environment, theirs)
    theirs.close()
    return ours, pid


def _serve_ray(folder: Path, environment: dict[str, str], line: socket.socket) -> NoReturn:
    """Import Ray in an environment; then fork for each executable that is handed down, until nobody can hand one down."""
    import gc
    import importlib
    import traceback

    try:
        # Whatever else is open belongs to others, who wait until nobody has it open any more.
        away = fcntl.fcntl(line.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
        os.closerange(3, _HIGH)
        os.dup2(away, 3, inheritable=False)
        os.close(away)
        line = socket.socket(fileno=3)
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(environment)
        for module in _IMPORTED_BY_RAY:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()
        forks = _Forks(folder)
        is_open = True
        while is_open or forks:
            for _ in forks.readable(*[line] * is_open):
                asked, fds = read_request(line)
                is_open = bool(asked)
                if asked:
                    forks.begin(socket.socket(fileno=fds[0]), asked, fds[1:])
                for fd in fds[1:]:
                    os.close(fd)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class _Forks:
    """The forks of this process that run, each with the line to the executable that asked for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, tuple[socket.socket, int]] = {}
        self._gone: set[int] = set()  # forks whose executable was killed

    def __bool__(self) -> bool:
        return bool(self._running)

    def begin(self, asking: socket.socket, asked: dict[str, Any], fds: list[int]) -> None:
        """Fork, and be what is asked for there."""
        pid = os.fork()
        if not pid:
            _become(asked, fds)
        (self._folder / str(asked["asks"])).write_text(str(pid))
        with contextlib.suppress(OSError):
            asking.sendall(f"{pid}\n".encode())
        self._running[pid] = asking, asked["asks"]

    def readable(self, *others: socket.socket, at_most: float | None = None) -> list[socket.socket]:
        """Wait a little for some sockets, and return those with something to read; meanwhile forks and executables end.

        Without forks it waits for as many seconds, or until there is something.
        """
        lines = {line: pid for pid, (line, _) in self._running.items() if pid not in self._gone}
        found, _, _ = select.select([*others, *lines], [], [], 0.02 if self._running else at_most)
        for line in found:
            if line in lines:
                self._gone.add(lines[line])
                with contextlib.suppress(OSError):
                    os.kill(lines[line], signal.SIGKILL)
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                line, asks = self._running.pop(pid)
                self._gone.discard(pid)
                (self._folder / str(asks)).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                line.close()
        return [line for line in found if line in others]


def _with_threads(right: Any) -> Any:
    """Have torch take the number of threads that a replica sets in its environment, which torch reads once, at its import.

    Otherwise a replica with one core of two computes in two threads, which wait for each other on that core.
    """

    @functools.wraps(right)
    def process_environment(*arguments: Any, **named: Any) -> dict[str, str]:
        import torch

        found: dict[str, str] = right(*arguments, **named)
        torch.set_num_threads(int(found.get("OMP_NUM_THREADS", torch.get_num_threads())))
        return found

    return process_environment


def _handle_existing_loggers(existing: list[str], child_loggers: list[str], disable_existing: bool) -> None:
    """Do what logging does with loggers that a configuration does not name, where that changes one of them.

    Setting a level empties the caches of all loggers, and an engine configures vLLM's, of which there are a thousand.
    """
    import logging

    for name in existing:
        logger = logging.root.manager.loggerDict[name]
        if not isinstance(logger, logging.Logger):
            continue
        if name not in child_loggers:
            logger.disabled = disable_existing
        elif logger.level or logger.handlers or not logger.propagate:
            logger.setLevel(logging.NOTSET)
            logger.handlers = []
            logger.propagate = True


def _become(asked: dict[str, Any], fds: list[int]) -> NoReturn:
    """Be the process that somebody asked for."""
    import atexit
    import multiprocessing
    import runpy
    import threading
    import traceback

    status = 1
    try:
        os.setsid()
        away = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for fd in fds]  # no target lies here
        os.closerange(3, _HIGH)
        for fd, target in zip(away, asked["fds"], strict=True):
            os.dup2(fd, target)
            os.close(fd)
        _open_streams()
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        folder = Path(sys.argv[1])
        sys.executable = str(folder / "python")
        multiprocessing.set_executable(sys.executable)
        _read_environment()
        first, *rest = asked["arguments"]
        paths = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one and one not in sys.path]
        if first == "-c":
            sys.path[:1] = ["", *paths]
            sys.argv = ["-c", *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        elif first == "-m":
            sys.path[:1] = [os.getcwd(), *paths]
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[:1] = [os.path.dirname(os.path.abspath(first)), *paths]
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)


def _open_streams() -> None:
    """Make the standard streams anew, because those of the process that forks know what kind of file they were opened on.

    Loggers that were made by an import go on with the old ones, which write to the same file descriptors.
    """
    import io

    _before.extend((sys.stdin, sys.stdout, sys.stderr))
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        raw: Any = open(  # noqa: SIM115
            fd, "wb" if fd else "rb", buffering=-1 if fd < 2 else 0, closefd=False
        )
        stream = io.TextIOWrapper(raw, line_buffering=os.isatty(fd), write_through=fd == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


_before: list[Any] = []


def _read_environment() -> None:
    """Have torch read the environment as it would if it were imported now."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
