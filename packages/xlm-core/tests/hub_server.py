"""A Hub in memory on the loopback interface: the part of its protocol that huggingface_hub's client uses.

Weights go through classic LFS, or with ``lfs=False`` inside the commit like every other file.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import override

TOKEN = "hf_test"
READ_ONLY_TOKEN = "hf_reader"
USER = "tester"
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Hash of git; an LFS file's is that of its pointer, which nobody compares."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()  # git's

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, path: str) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repo:
    private: bool
    commits: dict[str, tuple[str, dict[str, File]]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()  # looks like git's
        self.commits[sha] = (title, files)
        self.refs[branch] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.refs.get(revision, revision)][1]

    def titles(self) -> list[str]:
        return [title for title, _ in self.commits.values()]


@dataclass
class Hub:
    lfs: bool = True
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)
    """Requests (start of "METHOD /path") that get this status, each once."""
    breaks: list[tuple[str, str]] = field(default_factory=list)
    """Requests (start of "METHOD /path") in whose ``body`` or ``answer`` the connection is lost for good."""
    is_away: bool = False
    """Whether every connection is reset, as after one of the ``breaks``."""
    delay: float = 0.0
    """Seconds before each answer."""
    is_a_website: bool = False
    """Whether every answer is a page, as of a proxy that requires a login."""
    url: str = ""

    def create(self, name: str, *, private: bool = False, files: dict[str, bytes] | None = None) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit(
            "main", "initial commit", {key: File(value, False) for key, value in (files or {}).items()}
        )
        return repo


class Refusal(Exception):  # noqa: N818  # an answer, not an error of the server
    def __init__(self, status: int, code: str = "", message: str = "refused") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.hub.is_away:
            self.wfile.write(data[: len(data) // 2])
            self.reset()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def reset(self) -> None:
        """Drop the connection when the request is done with, without the closing that TCP has."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def dispatch(self) -> None:
        hub, request = self.hub, f"{self.command} {self.path}"
        hub.requests.append(request)
        length = int(self.headers.get("Content-Length") or 0)
        where = next((where for start, where in hub.breaks if request.startswith(start)), None)
        if hub.is_away or where == "body":
            hub.is_away = True
            self.rfile.read(length // 2)
            self.reset()
            return
        self.body = self.rfile.read(length)
        hub.is_away = where == "answer"
        time.sleep(hub.delay)
        if hub.is_a_website:
            self.answer(200, b"<html>Log in first</html>", {"Content-Type": "text/html"})
            return
        for failure in hub.failures:
            if request.startswith(failure[0]):
                hub.failures.remove(failure)
                self.answer(failure[1], {"error": "the server is on fire"})
                return
        try:
            self.route(unquote(urlsplit(self.path).path), urlsplit(self.path).path)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.answer(refusal.status, {"error": refusal.message}, headers if refusal.code else {})

    do_GET = do_HEAD = do_POST = do_PUT = dispatch  # noqa: N815  # names that http.server looks for

    def may(self, *, write: bool = False) -> bool:
        tokens = [TOKEN] if write else [TOKEN, READ_ONLY_TOKEN]
        return self.headers.get("Authorization") in [f"Bearer {token}" for token in tokens]

    def repo(self, name: str, *, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.may()):
            raise Refusal(404 if self.may() else 401, "RepoNotFound", "Repository not found")
        if write and not self.may(write=True):
            raise Refusal(403 if self.may() else 401, "", "You don't have the rights to write here")
        return repo

    @staticmethod
    def sha(repo: Repo, revision: str) -> str:
        revision = unquote(revision)
        if revision not in repo.refs and revision not in repo.commits:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return repo.refs.get(revision, revision)

    def route(self, path: str, raw: str) -> None:
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create()
        elif path.startswith("/lfs/"):
            self.lfs_object(path.removeprefix("/lfs/"))
        elif path.endswith("/info/lfs/objects/batch"):
            self.lfs_batch()
        elif match := API.fullmatch(raw):
            name, operation, revision, _ = match.groups()
            self.api(name, operation, unquote(revision or "main"))
        elif match := RESOLVE.fullmatch(raw):
            self.resolve(*match.groups())
        else:
            self.answer(404, {"error": f"no route {path}"})

    def create(self) -> None:
        content = json.loads(self.body)
        owner = content.get("organization") or USER
        name = f"{owner}/{content['name']}"
        if not self.may(write=True) or owner != USER:
            raise Refusal(403 if self.may() else 401, "", f"You don't have the rights to create in {owner}")
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            self.answer(409, {**answer, "error": "You already created this repo"})
            return
        private = content.get("visibility") == "private" or content.get("private") is True
        self.hub.create(name, private=private)
        self.answer(200, answer)

    def lfs_object(self, oid: str) -> None:
        if self.command == "PUT":
            self.hub.blobs[hashlib.sha256(self.body).hexdigest()] = self.body
        self.answer(200 if oid in self.hub.blobs else 400, {})

    def lfs_batch(self) -> None:
        answers: list[dict[str, Any]] = []
        for wanted in json.loads(self.body)["objects"]:
            place = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
            is_there = wanted["oid"] in self.hub.blobs
            answers.append(
                {"oid": wanted["oid"], "size": wanted["size"]}
                | ({} if is_there else {"actions": {"upload": place, "verify": place}})
            )
        self.answer(200, {"transfer": "basic", "objects": answers})

    def api(self, name: str, operation: str | None, revision: str) -> None:
        repo = self.repo(name, write=operation in {"commit", "branch"})
        routes: dict[str | None, Callable[[Repo, str, str], None]] = {
            None: self.info, "revision": self.info, "tree": self.tree, "preupload": self.preupload,
            "commit": self.commit, "branch": self.branch,
        }  # fmt: skip
        routes[operation](repo, name, revision)

    def info(self, repo: Repo, name: str, revision: str) -> None:
        sha = self.sha(repo, revision)
        siblings = [{"rfilename": path} for path in repo.files(sha)]
        self.answer(200, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, repo: Repo, _: str, revision: str) -> None:
        files = repo.files(self.sha(repo, revision))
        self.answer(200, [file.entry(path) for path, file in files.items()])

    def preupload(self, repo: Repo, _: str, revision: str) -> None:
        files = repo.files(self.sha(repo, revision))
        answers: list[dict[str, object]] = []
        for wanted in json.loads(self.body)["files"]:
            lfs = self.hub.lfs and wanted["path"].endswith(".safetensors")
            answer: dict[str, object] = {
                "path": wanted["path"],
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
            }
            old = files.get(wanted["path"])
            answers.append(answer | ({} if old is None else {"oid": old.sha256 if old.lfs else old.oid}))
        self.answer(200, {"files": answers})

    def commit(self, repo: Repo, name: str, revision: str) -> None:
        files, title = dict(repo.files(self.sha(repo, revision))), ""
        for line in self.body.splitlines():
            record = json.loads(line)
            value = record["value"]
            if record["key"] == "header":
                title = value["summary"]
            elif record["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif record["key"] == "lfsFile":
                files[value["path"]] = File(self.hub.blobs[value["oid"]], lfs=True)
            elif record["key"] == "deletedFile":
                del files[value["path"]]
        as_request = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        sha = repo.commit("refs/pr/1" if as_request else revision, title, files)
        answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}
        if as_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/1"
        self.answer(200, answer)

    def branch(self, repo: Repo, _: str, name: str) -> None:
        if name in repo.refs:
            raise Refusal(409, "", "Reference already exists")
        repo.refs[name] = repo.refs["main"]
        self.answer(200, {})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        sha = self.sha(repo, revision)
        file = repo.files(sha).get(unquote(path))
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        etag = file.sha256 if file.lfs else file.oid
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "X-Linked-Size": str(len(file.content))}
        self.answer(200, file.content, headers)


def serve(hub: Hub) -> Hub:
    """Serve on a free port until the process ends; ``hub.url`` is the address."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub
