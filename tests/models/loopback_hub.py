"""A hub on this machine: repositories in memory, served as the Hugging Face hub serves them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Hub:
    """Repositories by name; each has revisions, and these have files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.token: str | None = None  # what a client must send, if anything
        self.is_gated = False
        self.broken: set[str] = set()  # files that cannot be read
        self.cut_after: int | None = None  # bytes of a file after which an answer breaks off, once
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.url = ""

    def files_asked_for(self) -> list[str]:
        """Paths of files, not of what only says how large they are."""
        return [
            path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path
        ]

    @contextmanager
    def running(self) -> Iterator[Hub]:
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def commit_of(repository: str, revision: str) -> str:
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.hub.is_gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if path == "/api/models":
            return self._list(parse_qs(url.query))
        if api := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/(.+))?", path):
            return self._tell(api[1], api[2], api[3] or "main")
        if file := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self._give(file[1], file[2], file[3])
        return self._send(404, b"{}")

    def _list(self, query: dict[str, list[str]]) -> None:
        [author], [search] = query.get("author", [""]), query.get("search", [""])
        found = [
            {"id": name}
            for name in self.hub.repositories
            if name.startswith(f"{author}/" if author else "") and search in name
        ]
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for name, files in self.hub.repositories.get(repository, {}).items():
            if revision in (name, commit_of(repository, name)):
                return commit_of(repository, name), files
        return None

    def _tell(self, repository: str, what: str | None, revision: str) -> None:
        found = self._files(repository, revision)
        if found is None:
            known = repository in self.hub.repositories
            code = "RevisionNotFound" if known else "RepoNotFound"
            return self._send(404, b"{}", {"X-Error-Code": code})
        commit, files = found
        content: object = {
            "id": repository,
            "sha": commit,
            "siblings": [{"rfilename": name} for name in files],
        }
        if what == "tree":
            content = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in files.items()
            ]
        return self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _give(self, repository: str, revision: str, name: str) -> None:
        found = self._files(repository, revision)
        if found is None or name not in found[1]:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if name in self.hub.broken and self.command == "GET":
            return self._send(500, b"{}")
        data = found[1][name]
        headers = {
            "ETag": f'"{_digest(data)}"',
            "X-Repo-Commit": found[0],
            "Accept-Ranges": "bytes",
        }
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        return self._send(status, data, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, is_file = self.hub.cut_after, "/resolve/" in self.path
        if cut is not None and is_file and len(data) > cut:
            self.hub.cut_after = None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)
