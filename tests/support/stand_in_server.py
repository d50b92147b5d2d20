"""This program stands in for `lambdasweep serve`: it moves nothing, and says where it is, as `/v1/lambda` does.

A file named by STAND_IN_LOG gets a line for each thing that happens to it. STAND_IN_REFUSES makes it end with status 2, as
the real one does where it is given something that it cannot use.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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


class Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def is_known(self) -> bool:
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"error": "Unauthorized"})
            return False
        return True

    def do_GET(self) -> None:
        if self.is_known():
            self.answer(200, where)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.is_known():
            return
        if self.path == "/die":
            os._exit(9)
        if self.path != "/v1/lambda":
            where["requests"] += 1
            self.answer(200, {"model": json.loads(body)["model"]})
            return
        lam = json.loads(body)["lam"]
        if lam == os.environ.get("STAND_IN_BREAKS_AT"):
            self.answer(503, {"error": {"message": f"the move to {lam} failed, restart the server"}})
            return
        if lam != where["lam"]:
            where["lam"] = lam
            where["moves"] += 1
            note(f"moved to {lam}")
        self.answer(200, {"lam": lam, "seconds": 0.0})

    def log_message(self, *_: object) -> None:
        pass


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
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
