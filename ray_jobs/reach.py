"""Whether a Ray cluster answers at an address, found out in seconds and without Ray, whose own tries take minutes."""

import contextlib
import os
import socket
from pathlib import Path

from contract.errors import InputError

_SECONDS = 5.0
_NOTED = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes the cluster of this machine


def check_address(address: str, seconds: float = _SECONDS, noted: Path = _NOTED) -> None:
    """Refuse an address at which nothing listens.

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
        return  # of a kind that Ray may know
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"{where!r} (of {source}) is no address of a Ray cluster: write it like HOST:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"no Ray cluster answers at {where} (of {source}): {reason}; {remedy}") from None


def _runs_here() -> bool:
    """Tell whether a process on this machine is the head of a Ray cluster."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"gcs_server" in path.read_bytes().split(b"\0")[0]:
                return True
    return False
