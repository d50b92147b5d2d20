"""This module runs the server that commands ask: `lambdasweep serve`, in a process that says at which λ it is."""

import json
import os
import re
import secrets
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import EXIT_BAD_INPUT, EngineError, InputError
from lambdasweep.each.children import Children, last_lines
from lambdasweep.monitor import phase

if TYPE_CHECKING:
    import subprocess

_LINES = 12  # so many last lines of the server's log are shown where it fails
_LOOK = 0.5  # seconds between two looks at a server that starts
_START = 3600.0  # seconds that an engine may take to start
_ANSWER = 3600.0  # seconds that a move may take: it waits for requests that are in flight


@dataclass(frozen=True, slots=True)
class Position:
    """The position is where a server says that it is."""

    lam: str  # the canonical point
    moves: int  # how often it has moved, which tells of a move away and back
    requests: int  # how many requests it has admitted; moves do not count


class Server:
    """A server of one pair that runs as a child of this process."""

    def __init__(self, children: Children, process: "subprocess.Popen[bytes]", log: Path, port: int, key: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.key = key
        self.log = log
        self._children, self._process = children, process
        # A proxy that the environment names is meant for other hosts.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def start(
        cls,
        children: Children,
        pair: Sequence[str],
        flags: Sequence[str],
        models: Sequence[str],
        say: Callable[[str], None],
    ) -> "Server":
        """Start a server and wait until it answers.

        Args:
            children: the block at whose end the server ends at the latest.
            pair: the flags of `lambdasweep serve` that say which pair and λ.
            flags: flags of `vllm serve`.
            models: the names under which it serves the model; the first one is its own.
            say: a function that is told where its log is, if the start takes longer than moments.

        Raises:
            InputError: the server refuses what it was given.
            EngineError: the server ended, or did not come up.
        """
        port, key = _free_port(), secrets.token_hex(16)
        descriptor, name = tempfile.mkstemp(prefix="lambdasweep-server-", suffix=".log")
        command = [*serve_command(), *pair, "--", *flags, "--port", str(port), "--served-model-name", *models]
        # The key goes through the environment, because everybody on the machine can see the words of a command.
        environment = os.environ | {"VLLM_API_KEY": key, "PYTHONUNBUFFERED": "1"}
        with open(descriptor, "wb") as stream:
            process = children.start(command, environment, stream)
        server = cls(children, process, Path(name), port, key)
        try:
            server._wait(say)
        except SystemExit:
            server.log.unlink()
            raise
        return server

    def _wait(self, say: Callable[[str], None]) -> None:
        began = time.monotonic()
        until, is_told = began + _START, False
        while True:
            if self._process.poll() is not None:
                raise self._refusal()
            try:
                self.position()
                return
            except OSError:
                if time.monotonic() > until:
                    raise EngineError(f"the server did not answer in {_START:.0f} s; its log is {self.log}") from None
            if not is_told and time.monotonic() >= began + phase.PATIENCE:
                say(f"the server starts; its log is {self.log}")
                is_told = True
            time.sleep(_LOOK)

    def position(self) -> Position:
        """Ask where the server is.

        Raises:
            OSError: nobody answers, or another kind of server does.
            EngineError: a move has failed, so that the server answers nothing any more.
        """
        answer = self._ask()
        try:
            return Position(str(answer["lam"]), int(answer["moves"]), int(answer["requests"]))
        except (KeyError, TypeError, ValueError):
            raise OSError(f"{self.url} is no server of lambdasweep: it says {answer!r}") from None

    def move(self, lam: str) -> Position:
        """Move the server to a point and return where it then says that it is.

        Raises:
            EngineError: the move failed, or the server is somewhere else afterwards.
        """
        try:
            self._ask(json.dumps({"lam": lam}).encode())
            there = self.position()
        except OSError as error:
            raise self.failure(f"did not move to λ = {lam} ({error})") from None
        if there.lam != lam:
            raise self.failure(f"says that it is at λ = {there.lam} after a move to {lam}")
        return there

    def check(self) -> None:
        """Raise EngineError if the server has ended."""
        if self._process.poll() is not None:
            raise self.failure(f"ended with status {self._process.returncode}")

    def end(self) -> None:
        """End the server in order; its log goes with it."""
        self._children.end(self._process, 60.0)
        self.log.unlink(missing_ok=True)

    def failure(self, what: str) -> EngineError:
        """Return an error that says what the server did, with the last lines of its log."""
        lines = "".join(f"\n    {line}" for line in last_lines(self.log, _LINES))
        return EngineError(
            f"the server {what}; what is measured is kept, and the same command goes on. The server's log is {self.log} "
            f"and ends with{lines or ' nothing'}"
        )

    def _refusal(self) -> InputError | EngineError:
        if self._process.returncode != EXIT_BAD_INPUT:
            return self.failure(f"ended with status {self._process.returncode} while it started")
        lines = last_lines(self.log, 200)
        # The server's last words are our own message, or that of vLLM's parser where it refuses a flag.
        start = max((place for place, line in enumerate(lines) if line.startswith("lambdasweep: ")), default=-1)
        said = [re.sub(r"^(lambdasweep: |\s+- )", "", line) for line in lines[start:]]
        self.log.unlink(missing_ok=True)
        return InputError("the server refuses what it was given", said)

    def _ask(self, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"{self.url}/v1/lambda", data=body)
        request.add_header("Authorization", f"Bearer {self.key}")
        request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=_ANSWER) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                said = str(json.loads(text)["error"]["message"])
            except (ValueError, KeyError, TypeError):
                said = text
            if error.code == 503:
                raise self.failure(f"failed: {said}") from None
            raise OSError(f"status {error.code}: {said}") from None
        except ValueError as error:
            raise OSError(f"its answer is no JSON: {error}") from None


def serve_command() -> list[str]:
    """Return the words that start `lambdasweep serve`."""
    return [sys.executable, "-m", "lambdasweep", "serve"]


def server_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments of vLLM as flags of `vllm serve`: true and false as --flag and --no-flag, tables as JSON."""
    flags = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return flags


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
