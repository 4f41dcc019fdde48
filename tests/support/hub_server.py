"""A stand-in for the Hugging Face hub: what an upload asks of it, kept in memory.

It follows the hub's published interface: repositories, the metadata of a card, the way in which a
file is sent, Git LFS's batches, and commits.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_" + "t" * 34
LARGE = (".safetensors", ".gguf", ".pth")


@dataclass
class Repository:
    """One repository: the files of its last commit, and the number of commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*"})
    commits: int = 1

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


@dataclass
class Hub:
    """What the server holds.

    `fails`: a part of a path -> (status, message) that is answered there. `alter`: what becomes of
    a large file when it is received.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    fails: dict[str, tuple[int, str]] = field(default_factory=dict)
    alter: Any = staticmethod(lambda data: data)
    url: str = ""

    def sent(self, method: str) -> list[str]:
        """The paths that were asked for by a method."""
        return [line.split()[1] for line in self.requests if line.startswith(f"{method} ")]

    def info(self, name: str, blobs: bool) -> dict[str, Any]:
        repository = self.repositories[name]
        siblings = []
        for path, data in repository.files.items():
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                sibling["size"] = len(data)
                if path.endswith(LARGE):
                    digest = hashlib.sha256(data).hexdigest()
                    sibling["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 134}
            siblings.append(sibling)
        return {
            "id": name,
            "private": repository.private,
            "sha": repository.sha,
            "siblings": siblings,
        }

    def object_name(self, name: str, path: str) -> str | None:
        """Git's name of a file, or that of LFS; None if the repository has no such file."""
        data = self.repositories[name].files.get(path)
        if data is None:
            return None
        if path.endswith(LARGE):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        repository = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.objects[value["oid"]]
        repository.commits += 1
        url = f"{self.url}/{name}/commit/{repository.sha}"
        return {"commitUrl": url, "commitOid": repository.sha}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def reply(self, answer: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def fail(self, body: bytes) -> bool:
        """Answer a request that has to fail."""
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        if self.command != "PUT":  # the place of a large file has its own permission
            hub.tokens.add((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        for part, (status, message) in hub.fails.items():
            if part in self.path:
                self.reply({"error": message}, status)
                return True
        return False

    def do_GET(self) -> None:
        if self.fail(b""):
            return
        url = urlsplit(self.path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", url.path)
        if match is None or match[1] not in self.server.hub.repositories:
            return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        self.reply(self.server.hub.info(match[1], "blobs" in parse_qs(url.query)))

    def do_PUT(self) -> None:
        body = self.body()
        if not self.fail(body):
            self.server.hub.objects[self.path.rsplit("/", 1)[1]] = self.server.hub.alter(body)
            self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.fail(body):
            return
        hub = self.server.hub
        name = "/".join(self.path.removeprefix("/api/models").split("/")[1:3])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("visibility") == "private" or asked.get("private") is True
            hub.repositories[name] = Repository(private)
            self.reply({"url": f"{hub.url}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.reply({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": hub.object_name(name, file["path"]),
                }
                for file in json.loads(body)["files"]
            ]
            self.reply({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for wanted in objects:
                if wanted["oid"] not in hub.objects:
                    wanted["actions"] = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}
            self.reply({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.reply(hub.commit(name, [json.loads(line) for line in body.splitlines()]))
        else:
            self.reply({"error": f"{self.path} is not known here"}, 404)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """An HTTP server with one thread per request, in front of a `Hub`."""

    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        hub.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Hub]:
    """A running stand-in; its port is closed at the end."""
    server = Server(Hub())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
