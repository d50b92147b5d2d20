"""A lease lets one driver at a time write to an object store, as well as that can be done; its holder renews it.

pyarrow knows no conditional write, so two drivers that start within the same moments may both believe that they hold the
lease; the later write stands, and the driver that wrote first sees it at its next renewal and stops. The tables of both are
equal byte by byte; what can be lost is one driver's addition to plan.json, which the same command makes again. It is the
user's duty not to start two.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from contract.errors import RunMismatchError
from contract.location import ObjectPath, read_json

LEASE_SECONDS = 90.0  # a lease that was not renewed for so long belongs to nobody; clocks of drivers differ far less
RENEW_SECONDS = 20.0
_SETTLE_SECONDS = 1.0  # by then a driver that started at the same moment has written its lease too


@contextlib.contextmanager
def hold(path: ObjectPath) -> Iterator[None]:
    """Hold the lease at `path`; a driver that loses it is interrupted as if by Ctrl-C.

    Raises:
        RunMismatchError: another driver holds it, or took it over.
        OSError: the object store refuses or fails.
    """
    driver = uuid.uuid4().hex
    if (found := _read(path)) and _is_fresh(found):
        raise _refusal(path, found)
    _write(path, driver)
    time.sleep(_SETTLE_SECONDS)
    if (found := _read(path)) and found["driver"] != driver:
        raise _refusal(path, found)
    ended, taken = threading.Event(), list[dict[str, Any]]()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # the next renewal or the next commit meets a store that stays away
                if (found := _read(path)) and found["driver"] != driver:
                    taken.append(found)
                    signal.raise_signal(signal.SIGINT)
                    return
                _write(path, driver)

    renewer = threading.Thread(target=renew, name="lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        if taken:
            raise _refusal(path, taken[0])
        with contextlib.suppress(OSError):  # a lease that cannot be deleted runs out by itself
            if (found := _read(path)) and found["driver"] == driver:
                path.unlink(missing_ok=True)


def _write(path: ObjectPath, driver: str) -> None:
    lease = {"driver": driver, "host": _host(), "process": os.getpid(), "renewed": time.time()}
    path.write_bytes(json.dumps(lease).encode())


def _read(path: ObjectPath) -> dict[str, Any] | None:
    try:
        lease = read_json(path)
        return lease if {"driver", "host", "process", "renewed"} <= lease.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _is_fresh(lease: dict[str, Any]) -> bool:
    if time.time() - lease["renewed"] > LEASE_SECONDS:
        return False
    return lease["host"] != _host() or _lives(lease["process"])


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    """Name this machine and its process namespace: containers of one machine do not share their process numbers."""
    return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"


def _refusal(path: ObjectPath, lease: dict[str, Any]) -> RunMismatchError:
    host = str(lease["host"]).partition(" ")[0]
    return RunMismatchError(
        f"another lambdasweep process is writing to {path.parent} (process {lease['process']} on {host}): wait for it, "
        f"or stop it first. If it is gone already, its lease {path.name} runs out {LEASE_SECONDS:.0f} s after its last "
        "renewal"
    )
