"""A stand-in for the Hugging Face hub on loopback: the responses that the client really reads.

It serves repositories from folders, with commits, gating and missing repositories, so that the
course's hub code runs unchanged against it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A model on the stand-in. `sizes` overrides what the listing says of a file's size."""

    folder: Path
    commit: str = "0" * 40
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    fails_downloading: bool = False

    def files(self) -> list[Path]:
        """The files of the repository."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


class HubStandIn:
    """The server. `requests` keeps the paths asked for; `hang` makes every answer wait."""

    def __init__(self, port: int):
        self.repositories: dict[str, Repository] = {}
        self.accepted_tokens: set[str] = set()
        self.requests: list[str] = []
        self.hang = False
        self.release = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            # A connection for each request: one kept open would outlive its server.
            protocol_version = "HTTP/1.0"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                stand_in.answer(self)

            def do_GET(self) -> None:
                stand_in.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving; whoever still waits is let go."""
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        """Send an answer; a HEAD request gets its headers only."""
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def error(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        """An error as the hub sends it: the client reads the code from a header."""
        body = json.dumps({"error": code}).encode()
        self.send(request, status, body, {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        if self.hang:
            self.release.wait(60)
            return
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/models":
            self.send(request, 200, b"[]", {"Content-Type": "application/json"})
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/auth-check|/tree/.+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        repository = self.repositories.get(match[1]) if match else None
        if repository is None:
            self.error(request, 404, "RepoNotFound")
        elif repository.gated and token not in self.accepted_tokens and not (api and not api[2]):
            listing = bool(api and api[2].startswith("/revision"))
            if listing:  # the hub lists a gated repository's files to everybody
                self.info(request, match[1], repository)
            else:
                self.error(request, 403 if token else 401, "GatedRepo")
        elif api and api[2] == "/auth-check":
            self.send(request, 200, b"{}", {"Content-Type": "application/json"})
        elif api and (api[2] or "").startswith("/tree"):
            self.tree(request, repository)
        elif api:
            self.info(request, match[1], repository)
        elif repository.fails_downloading:
            self.error(request, 400, "BadRequest")  # not a 5xx: the client would retry for long
        else:
            self.file(request, repository, file[3])

    @staticmethod
    def _size(repository: Repository, path: Path) -> int:
        return repository.sizes.get(path.name, path.stat().st_size)

    def info(self, request: BaseHTTPRequestHandler, name: str, repository: Repository) -> None:
        """What `model_info` reads."""
        body = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": False,
            "gated": "manual" if repository.gated else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [
                {"rfilename": path.name, "size": self._size(repository, path), "blobId": "0"}
                for path in repository.files()
            ],
        }
        self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def tree(self, request: BaseHTTPRequestHandler, repository: Repository) -> None:
        """What `list_repo_tree` reads."""
        body = [
            {"type": "file", "path": path.name, "size": self._size(repository, path), "oid": "0"}
            for path in repository.files()
        ]
        self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def file(self, request: BaseHTTPRequestHandler, repository: Repository, name: str) -> None:
        """A file, with the headers from which the client fills its cache."""
        path = repository.folder / name
        if not path.is_file():
            self.error(request, 404, "EntryNotFound")
            return
        body = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Content-Type": "application/octet-stream",
        }
        self.send(request, 200, body, headers)
