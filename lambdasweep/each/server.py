"""The server that commands ask: `lambdasweep serve` in a process of its own, at the λ that it itself says it is at."""

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import EXIT_BAD_INPUT, EngineError, InputError
from lambdasweep.each.children import Children, last_lines

if TYPE_CHECKING:
    import subprocess

_LINES = 12  # of the server's log that are shown where it fails
_LOOK = 0.5  # seconds between two looks at a server that starts
_START = 3600.0  # seconds that an engine may take to start
_ANSWER = 3600.0  # seconds that a move may take: it waits for requests that are in flight


@dataclass(frozen=True, slots=True)
class Position:
    """Where a server says that it is."""

    lam: str  # canonical point
    moves: int  # how often it has moved: one that moved away and back is at the same λ, and has moved twice
    requests: int  # how many requests it has admitted, moves aside


class Server:
    """A server of one pair that runs as a child of this process."""

    def __init__(self, children: Children, process: "subprocess.Popen[bytes]", log: Path, port: int, key: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.key = key
        self.log = log
        self._children, self._process = children, process
        # A proxy of the environment is for other hosts.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def start(cls, children: Children, pair: Sequence[str], flags: Sequence[str], models: Sequence[str]) -> "Server":
        """Start a server and wait until it answers.

        Args:
            children: what it is a child of.
            pair: flags of `lambdasweep serve` that say which pair and λ.
            flags: flags of `vllm serve`.
            models: the names that it serves the model under; it calls itself by the first one.

        Raises:
            InputError: it refuses what it was given.
            EngineError: it ended, or did not come up.
        """
        port, key = _free_port(), secrets.token_hex(16)
        descriptor, name = tempfile.mkstemp(prefix="lambdasweep-server-", suffix=".log")
        command = [*serve_command(), *pair, "--", *flags, "--port", str(port), "--served-model-name", *models]
        # The key goes through the environment: everybody on the machine sees the words of a command.
        environment = os.environ | {"VLLM_API_KEY": key, "PYTHONUNBUFFERED": "1"}
        with open(descriptor, "wb") as stream:
            process = children.start(command, environment, stream)
        server = cls(children, process, Path(name), port, key)
        try:
            server._wait()
        except SystemExit:
            server.log.unlink()
            raise
        return server

    def _wait(self) -> None:
        until = time.monotonic() + _START
        while True:
            if self._process.poll() is not None:
                raise self._refusal()
            try:
                self.position()
                return
            except OSError:
                if time.monotonic() > until:
                    raise EngineError(f"the server did not answer in {_START:.0f} s; its log is {self.log}") from None
            time.sleep(_LOOK)

    def position(self) -> Position:
        """Ask where the server is.

        Raises:
            OSError: it does not answer, or not as our server does.
            EngineError: a move of it failed, so that nothing is answered.
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
        # Our own message is the last thing that it says; where vLLM's parser of flags refuses, its line is.
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
