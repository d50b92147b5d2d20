"""Whether a Ray cluster answers at an address, found out in seconds and without Ray, whose own tries take minutes."""

import contextlib
import os
import socket
from pathlib import Path

from contract.errors import InputError

_SECONDS = 10.0
_NOTED = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes the cluster of this machine
# Ray speaks gRPC, that is HTTP/2: a client begins with these octets and a settings frame, and the server answers with a
# settings frame, whose kind is its fourth octet (RFC 9113, sections 3.4 and 4.1).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


def check_address(address: str, seconds: float = _SECONDS, noted: Path = _NOTED) -> None:
    """Refuse an address at which nothing listens, or something that does not speak as Ray does.

    Args:
        address: as `--address` has it: HOST:PORT, ray://HOST:PORT, or auto.
        seconds: how long to wait for an answer.
        noted: the file with the address of this machine's cluster.

    Raises:
        InputError: nothing answers; the message names the address, where it comes from, and what to do.
    """
    where, source, remedy = address, "--address", "check it"
    if address == "auto":
        where = os.environ.get("RAY_ADDRESS", "")
        source, remedy = "RAY_ADDRESS", "check it, or give the cluster as --address HOST:PORT"
        if not where:
            where = noted.read_text(encoding="utf-8").strip() if noted.is_file() else ""
            source = str(noted)
            remedy = "that cluster has ended, and `ray stop` removes the note; start one, or leave --address out"
        if not where:
            if _runs_here():
                return  # Ray finds it
            raise InputError(
                "--address auto: no Ray cluster runs on this machine: start one with `ray start --head`, give --address "
                "HOST:PORT, or leave --address out"
            )
    if "://" in where and not where.startswith("ray://"):
        return  # Ray may know this kind of address
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"{where!r} (of {source}) is no address of a Ray cluster: write it like HOST:6379, or auto")
    try:
        is_ray = _greets((host.strip("[]"), int(port)), seconds)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"no Ray cluster answers at {where} (of {source}): {reason}; {remedy}") from None
    if not is_ray:
        raise InputError(
            f"what answers at {where} (of {source}) is no Ray cluster: its port is 6379 unless `ray start --port` was given "
            "another one, 10001 for ray://, and 8265 is that of the dashboard, for `ray job submit`"
        )


def _greets(place: tuple[str, int], seconds: float) -> bool:
    """Tell whether a server greets as gRPC does. One that wants TLS does not, and is believed.

    Raises:
        OSError: nothing listens there, or it is silent.
    """
    with socket.create_connection(place, seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return True
        connection.sendall(_GREETING)
        connection.settimeout(seconds)
        answer = b""
        while len(answer) < 4:
            more = connection.recv(4 - len(answer))
            if not more:
                return False
            answer += more
        return answer[3] == _SETTINGS


def _runs_here() -> bool:
    """Tell whether a process on this machine is the head of a Ray cluster."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"gcs_server" in path.read_bytes().split(b"\0")[0]:
                return True
    return False
