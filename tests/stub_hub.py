"""A small Hugging Face hub on this machine: repositories, commits of regular and large files, downloads by revision.

Speaks the HTTP that huggingface_hub speaks, as far as sharing and loading a model needs it, and remembers what it was
asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stub"
LICENCES = ["cc-by-4.0", "mit", "other"]


class StubHub(ThreadingHTTPServer):
    """Repositories by id: {branch: {path: content}}, and commits by their sha."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.private_by_default = False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.downloaded: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add files to a branch, and return the commit's sha."""
        self.repositories[repo][branch] = {**self.repositories[repo].get(branch, {}), **files}
        self.messages.append(message)
        return self.sha(self.repositories[repo][branch])

    def sha(self, files: dict[str, bytes]) -> str:
        """The name of a state of the files."""
        digest = hashlib.sha1(json.dumps([(n, hashlib.sha1(c).hexdigest()) for n, c in sorted(files.items())]).encode())
        self.commits[digest.hexdigest()] = files
        return digest.hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        return self.repositories.get(repo, {}).get(revision, self.commits.get(revision))


class _Handler(BaseHTTPRequestHandler):
    server: StubHub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append((method, path))
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        for pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return getattr(self, name)(method, body, *match.groups())
        self._send(404, {"error": f"no route {method} {path}"})

    def _send(
        self, status: int, value: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> None:
        content = json.dumps(value).encode() if raw is None else raw
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_let_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _missing(self, kind: str) -> None:
        self._send(404, {"error": "not found"}, {"X-Error-Code": f"{kind}NotFound"})

    # -- writing ----------------------------------------------------------------------------------------------

    def create(self, _: str, body: bytes) -> None:
        if not self._is_let_in():
            return self._send(401, {"error": "Invalid username or password."})
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if repo in self.server.repositories:
            return self._send(409, {"error": "exists", "url": f"{self.server.url}/{repo}"})
        self.server.repositories[repo] = {"main": {}}
        asks = "private" in asked or "visibility" in asked
        if (
            asked.get("private")
            or asked.get("visibility") == "private"
            or (self.server.private_by_default and not asks)
        ):
            self.server.private.add(repo)
        self._send(200, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def branch(self, _: str, __: bytes, repo: str, branch: str) -> None:
        branches = self.server.repositories[repo]
        if branch in branches:
            return self._send(409, {"error": "exists"})
        branches[branch] = dict(branches["main"])
        self._send(200, {})

    def validate(self, _: str, body: bytes) -> None:
        licence = re.search(r"^license: (.*)$", json.loads(body)["content"], re.MULTILINE)
        if licence is not None and licence[1] not in LICENCES:
            return self._send(400, {"warnings": [], "errors": [{"message": f'"license" must be one of {LICENCES}'}]})
        self._send(200, {"warnings": [], "errors": []})

    def preupload(self, _: str, body: bytes, *__: str) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular",
             "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": files})

    def batch(self, _: str, body: bytes, __: str) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.server.url}/large/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def put_large(self, _: str, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self._send(200, {})

    def commit(self, _: str, body: bytes, repo: str, branch: str) -> None:
        files, message = {}, ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        wants_pr = "create_pr=1" in self.path
        sha = self.server.commit(repo, "refs/pr/1" if wants_pr else branch, files, message)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"}
        if wants_pr:
            answer["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/1"
        self._send(200, answer)

    # -- reading ----------------------------------------------------------------------------------------------

    def info(self, _: str, __: bytes, repo: str, revision: str | None) -> None:
        if repo not in self.server.repositories or (repo in self.server.private and not self._is_let_in()):
            return self._missing("Repo")
        files = self.server.files(repo, (revision or "main").replace("%2F", "/"))
        if files is None:
            return self._missing("Revision")
        siblings = [{"rfilename": name} for name in files]
        answer = {"id": repo, "modelId": repo, "sha": self.server.sha(files), "siblings": siblings}
        self._send(200, {**answer, "private": repo in self.server.private})

    def tree(self, _: str, __: bytes, repo: str, revision: str) -> None:
        files = self.server.files(repo, revision.replace("%2F", "/"))
        if files is None:
            return self._missing("Revision")
        entries = [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()
        ]
        self._send(200, entries)

    def resolve(self, method: str, _: bytes, repo: str, revision: str, path: str) -> None:
        files = self.server.files(repo, revision.replace("%2F", "/"))
        if files is None or path not in files:
            return self._missing("Entry")
        if method == "GET":
            self.server.downloaded.append(path)
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self._send(200, headers={"ETag": etag, "X-Repo-Commit": self.server.sha(files)}, raw=files[path])


ROUTES = [
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate"),
    (r"/api/models/([^/]+/[^/]+)/branch/(.+)", "branch"),
    (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
    (r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
    (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
    (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "info"),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    (r"/large/([0-9a-f]+)", "put_large"),
    (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
]
