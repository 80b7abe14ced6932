"""A stand-in for the Hugging Face hub on loopback: the responses that the client really reads.

It serves repositories from folders, with commits, gating and missing repositories, so that the
course's hub code runs unchanged against it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What real repositories hold beside what the course fetches.
BESIDE = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    "LICENSE": b"Apache License\n",
    "pytorch_model.bin": b"\x80\x02not to be fetched",
    "tf_model.h5": b"not to be fetched",
    "onnx/model.onnx": b"not to be fetched",
    "onnx/config.json": b"{}",
}
LARGE = (".safetensors", ".bin", ".h5", ".onnx", ".parquet", ".model", "tokenizer.json")


@dataclass
class Repository:
    """A repository on the stand-in, with what real ones hold beside a model's files.

    Attributes:
        folder: its files.
        commit: the only one.
        gated: only for accepted tokens.
        sizes: what the listing says of a file's size, where that is not the truth.
        fails_downloading: the listing answers, the files do not.
        beside: other files, by name.
        spoil: what a file's bytes are turned into on the way; the hub's checksum stays.
    """

    folder: Path
    commit: str = "0" * 40
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    fails_downloading: bool = False
    beside: dict[str, bytes] = field(default_factory=lambda: dict(BESIDE))
    spoil: Callable[[str, bytes], bytes] | None = None

    def names(self) -> list[str]:
        """The files of the repository."""
        own = {path.name for path in self.folder.iterdir() if path.is_file()}
        return sorted(own | set(self.beside))

    def content(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is no such file."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else self.beside.get(name)

    def size(self, name: str) -> int:
        """What the listing says of a file's size."""
        return self.sizes.get(name, len(self.content(name) or b""))


def digest(name: str, body: bytes) -> str:
    """What the hub names a file by: SHA-256 of a large one, git's SHA-1 of others."""
    if name.endswith(LARGE):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class HubStandIn:
    """The server.

    Attributes:
        requests: the paths asked for.
        hang: every answer waits; with a pattern, those to paths that fit it.
        answers: by a pattern of the path, a status with headers and a body to answer with instead.
        trickle: files come a byte a second.
        uploaded: what was uploaded: by repository, the files by name.
        private: the repositories that were made private.
    """

    def __init__(self, port: int):
        self.repositories: dict[str, Repository] = {}
        self.accepted_tokens: set[str] = set()
        self.requests: list[str] = []
        self.hang: bool | str = False
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.trickle = False
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self._stored: dict[str, bytes] = {}
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

            def do_POST(self) -> None:
                stand_in.take(self)

            def do_PUT(self) -> None:
                stand_in.take(self)

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

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """Take an upload: a new repository, large files one by one, and the commit of all."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        answer: dict = {}
        if request.command == "PUT":
            self._stored[path.removeprefix("/large/")] = body
        elif path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.uploaded[name] = {}
            self.private |= {name} if told.get("visibility") == "private" else set()
            answer = {"url": f"http://{request.headers['Host']}/{name}"}
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            told = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            answer = {"files": told}
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                href = f"http://{request.headers['Host']}/large/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            answer = {"transfer": "basic", "objects": objects}
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for entry in map(json.loads, body.splitlines()):
                value, files = entry["value"], self.uploaded[found[1]]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self._stored[value["oid"]]
            url = f"http://{request.headers['Host']}/{found[1]}/commit/{'0' * 40}"
            answer = {"commitUrl": url, "commitOid": "0" * 40}
        else:
            self.error(request, 404, "RepoNotFound")
            return
        kind = {"Content-Type": "application/json"}
        self.send(request, 200, json.dumps(answer).encode(), kind)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        if self.hang and (self.hang is True or re.search(self.hang, path)):
            self.release.wait(60)
            return
        for pattern, (status, headers, body) in self.answers.items():
            if re.search(pattern, path):
                self.send(request, status, body, headers)
                return
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/models":
            self.send(request, 200, b"[]", {"Content-Type": "application/json"})
            return
        path = path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/", 1)
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
                {"rfilename": file, "size": repository.size(file), "blobId": "0"}
                for file in repository.names()
            ],
        }
        self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def tree(self, request: BaseHTTPRequestHandler, repository: Repository) -> None:
        """What `list_repo_tree` reads."""
        body = []
        for name in repository.names():
            content = repository.content(name) or b""
            size = repository.size(name)
            entry = {"type": "file", "path": name, "size": size, "oid": digest("", content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": digest(name, content), "size": size, "pointerSize": 134}
            body.append(entry)
        self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def file(self, request: BaseHTTPRequestHandler, repository: Repository, name: str) -> None:
        """A file, with the headers from which the client fills its cache."""
        body = repository.content(name)
        if body is None:
            self.error(request, 404, "EntryNotFound")
            return
        headers = {
            "ETag": f'"{digest(name, body)}"',
            "X-Linked-Etag": f'"{digest(name, body)}"',
            "X-Linked-Size": str(len(body)),
            "X-Repo-Commit": repository.commit,
            "Content-Type": "application/octet-stream",
        }
        if repository.spoil and request.command != "HEAD":
            body = repository.spoil(name, body)
        if self.trickle and request.command != "HEAD":
            request.send_response(200)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                request.send_header(key, value)
            request.end_headers()
            for byte in body:
                request.wfile.write(bytes([byte]))
                if self.release.wait(1):
                    return
            return
        self.send(request, 200, body, headers)
