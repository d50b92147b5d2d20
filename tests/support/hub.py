"""This is a model hub on this machine: an HTTP server with as much of the hub's API as a push of a checkpoint needs."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

import pytest

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    private: bool
    # The content of a file, and whether it is a large one.
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    commits: int = 0


@dataclass
class Hub:
    """This is the state of the hub, and says what is wrong with it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # the content of large files by their SHA-256
    requests: list[str] = field(default_factory=list)
    fails: str = ""  # requests whose method and path match this answer with status 500
    loses: str = ""  # a file of this name does not get into a commit
    changes: str = ""  # a file of this name has a byte changed

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if self.fails and re.search(self.fails, f"{method} {path}"):
            return 403, {"error": "the hub is told to fail"}
        if token != TOKEN and not path.startswith("/large/"):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "tester", "orgs": []}
        if path == "/api/validate-yaml":  # the hub checks a model card's front matter
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if method == "PUT" and path.startswith("/large/"):
            self.large[path.removeprefix("/large/")] = body
            return 200, {}
        if re.fullmatch(r"/(.+/.+)\.git/info/lfs/objects/batch", path):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/.*)?", path)
        repository = self.repositories.get(found[1]) if found else None
        if repository is None:
            return 404, {"error": "Repository not found"}
        assert found
        return self._of_repository(found[1], repository, found[2], body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        return 200, {"url": f"{self.url}/{name}"}

    def _of_repository(self, name: str, repository: Repository, what: str | None, body: bytes) -> tuple[int, Any]:
        if what is None:
            siblings = [{"rfilename": file} for file in repository.files]
            return 200, {"id": name, "private": repository.private, "siblings": siblings, "sha": "0" * 40}
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = ["lfs" if one["path"].endswith(".safetensors") else "regular" for one in files]
            return 200, {
                "files": [
                    {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}
                    for one, mode in zip(files, modes, strict=True)
                ]
            }
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self._put(repository, value["path"], base64.b64decode(value["content"]), False)
                elif line["key"] == "lfsFile":
                    self._put(repository, value["path"], self.large[value["oid"]], True)
            repository.commits += 1
            oid = f"{repository.commits:040x}"
            return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}
        assert what == "tree", what
        return 200, [_entry(file, *content) for file, content in repository.files.items()]

    def _put(self, repository: Repository, file: str, content: bytes, is_large: bool) -> None:
        if file == self.changes:
            content = bytes([content[0] ^ 1]) + content[1:]
        if file != self.loses:
            repository.files[file] = content, is_large


def _entry(path: str, content: bytes, is_large: bool) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if is_large:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


@contextlib.contextmanager
def local_hub() -> Iterator[Hub]:
    """Start a hub, and let huggingface_hub of this process use it, without its own protocol for large files."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a client waits 40 ms for a body that comes after its head

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, value = hub.answer(self.command, urlparse(self.path).path, body, token)
            answer = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status in (401, 404):
                self.send_header("X-Error-Code", "RepoNotFound" if status == 404 else "Unauthorized")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)  # it ends within so many seconds
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
