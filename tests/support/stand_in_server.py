"""This program stands in for `lambdasweep serve`: it moves nothing, and says where it is, as `/v1/lambda` does.

A file named by STAND_IN_LOG gets a line for each thing that happens to it. STAND_IN_REFUSES makes it end with status 2, as
the real one does where it is given something that it cannot use.
"""

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

KEY = os.environ.get("VLLM_API_KEY", "")
where: dict[str, Any] = {
    "lam": sys.argv[sys.argv.index("--lam") + 1],
    "moves": 1,
    "requests": 0,
    "route": "none",
    "fallback": "",
}


def note(what: str) -> None:
    if path := os.environ.get("STAND_IN_LOG"):
        with open(path, "a") as file:
            file.write(f"{what}\n")


def received(stream: BinaryIO) -> tuple[str, str, bytes]:
    """Read a request; return its path, its key with `Bearer ` before it, and its body."""
    path = stream.readline().split()[1].decode()
    headers = dict[bytes, bytes]()
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return path, headers.get(b"authorization", b"").decode(), stream.read(int(headers.get(b"content-length", b"0")))


def answered(path: str, key: str, body: bytes) -> tuple[int, object]:
    """Do what a request asks; return the status and the value of the answer."""
    if key != f"Bearer {KEY}":
        return 401, {"error": "Unauthorized"}
    if path == "/die":
        os._exit(9)
    if path != "/v1/lambda":
        where["requests"] += 1
        return 200, {"model": json.loads(body)["model"]}
    if not body:
        return 200, where
    lam = json.loads(body)["lam"]
    if lam == os.environ.get("STAND_IN_BREAKS_AT"):
        return 503, {"error": {"message": f"the move to {lam} failed, restart the server"}}
    if lam != where["lam"]:
        where["lam"] = lam
        where["moves"] += 1
        note(f"moved to {lam}")
    return 200, {"lam": lam, "seconds": 0.0}


def serve(port: int) -> NoReturn:
    """Answer one request after the other: `http.server` would take longer to import than a test takes."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            # A client may break off, which ends its connection and no other.
            with suppress(OSError, IndexError), connection, connection.makefile("rwb") as stream:
                status, value = answered(*received(stream))
                data = json.dumps(value).encode()
                stream.write(b"HTTP/1.0 %d -\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data))


def ended(*_: object) -> None:
    note("ended")
    os._exit(0)


if __name__ == "__main__":
    if said := os.environ.get("STAND_IN_REFUSES"):
        print("INFO a line of vLLM")
        print(said)
        sys.exit(2)
    signal.signal(signal.SIGTERM, ended)
    note(f"started with {' '.join(sys.argv[1:])}")
    note(f"process {os.getpid()}")
    time.sleep(float(os.environ.get("STAND_IN_WAITS", "0")))
    serve(int(sys.argv[sys.argv.index("--port") + 1]))
