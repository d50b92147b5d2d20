"""This is a real server of S3 on loopback, behind a proxy that counts requests and can answer some of them itself."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest

from contract import location
from tests.support.ports import free_ports
from tests.support.waiting import until

BUCKET = "bucket"
KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>said so</Message></Error>"
_CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}


class Store:
    """This is the server. `requests` are (method, path with query), and `refuse` may name a status to answer one with."""

    def __init__(self, port: int) -> None:
        self.moto = f"http://127.0.0.1:{port}"
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str = "s3") -> Any:
        return boto3.client(
            service,
            endpoint_url=self.moto,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return every object below a prefix, by the rest of its key, as another client sees it."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
            if not key.endswith("/")
        }

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()


@contextlib.contextmanager
def serve() -> Iterator[Store]:
    """Start a server with one empty bucket."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        until(listens)
        store = Store(port)
        store.client().create_bucket(Bucket=BUCKET)
        yield store
        store.close()
    finally:
        server.kill()
        server.wait()


def enter(store: Store, patch: pytest.MonkeyPatch) -> None:
    """Point this process at a server, as a user's environment would."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in store.environment.items():
        patch.setenv(name, value)
    location._store.cache_clear()


def _handler(store: Store, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.body()
            store.requests.append((self.command, self.path))
            if status := store.refuse(self.command, self.path):
                self.answer(status, [], _ERROR.format(code=_CODES[status]).encode())
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() == "expect":
                    continue  # the proxy answers this one itself
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            self.answer(reply.status, reply.getheaders(), reply.read())
            connection.close()

        def body(self) -> bytes:
            """Read the body as it came, chunks and all."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            raw = b""
            while True:
                line = self.rfile.readline()
                raw += line + self.rfile.read(int(line, 16) + 2)
                if not int(line, 16):
                    return raw

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length":
                    length = value  # the answer to a HEAD has the object's length
                elif name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            pass

    return Handler
