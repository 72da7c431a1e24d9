"""A small server on loopback that answers `huggingface_hub` as the Hugging Face hub does.

    python -m tests.helpers.hub_server FOLDER [--port N]

serves `FOLDER/owner/repository/...` and prints the value for `HF_ENDPOINT`. Large files (`.safetensors`, `.pt`) are
redirected to another host, with their SHA-256 as ETag, and are sent in ranges; small ones are sent at once. A
repository has one content, which is served as the branch `main`, whose commit is derived from it, as every commit, and
as the given tags.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LARGE = (".safetensors", ".pt", ".pth", ".bin")
COMMIT = re.compile(r"[0-9a-f]{40}")
FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
CONTENT = re.compile(r"/content/(?P<file>.+)")
INFORMATION = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")


@dataclass
class Hub:
    """A running server, and what it does wrong."""

    folder: Path
    port: int
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    break_after: int = 0  # bytes after which the connection of the next large file is closed; 0: never
    damaged: bool = False  # large files are sent with another last byte
    commits: dict[str, str] = field(default_factory=dict)  # of repositories, in place of a hash of their content
    tags: tuple[str, ...] = ()  # further revisions of every repository

    @property
    def endpoint(self) -> str:
        """The value for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repository: str, revision: str = "main") -> str:
        """Return the commit of a revision."""
        if COMMIT.fullmatch(revision):
            return revision
        files = sorted(path for path in (self.folder / repository).rglob("*") if path.is_file())
        content = "".join(f"{path.name}{hashlib.sha1(path.read_bytes()).hexdigest()}" for path in files)
        return self.commits.get(repository) or hashlib.sha1(content.encode()).hexdigest()

    def downloads(self) -> list[tuple[str, str, str]]:
        """Return the requests that transferred content."""
        return [request for request in self.requests if request[0] == "GET"]


@contextlib.contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[Hub]:
    """Serve a folder in a thread; port 0 is a free one."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    Handler.hub = Hub(folder, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if match := FILE.fullmatch(path):
            self._file(body, **match.groupdict())
        elif match := CONTENT.fullmatch(path):
            self._content(body, match["file"])
        elif match := INFORMATION.fullmatch(path):
            self._information(body, match["repository"], match["revision"] or "main")
        else:
            self._send(404, {}, b"", body)

    def _file(self, body: bool, repository: str, revision: str, file: str) -> None:
        if not (self.hub.folder / repository).is_dir():
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", body)
        if revision not in ("main", *self.hub.tags) and not COMMIT.fullmatch(revision):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
        commit = {"X-Repo-Commit": self.hub.commit(repository, revision)}
        path = self.hub.folder / repository / file
        if not path.is_file():
            return self._send(404, {"X-Error-Code": "EntryNotFound", **commit}, b"", body)
        content = path.read_bytes()
        if not file.endswith(LARGE):
            return self._send(200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', **commit}, content, body)
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        location = f"http://localhost:{self.hub.port}/content/{repository}/{file}"  # another host than 127.0.0.1
        return self._send(302, {"Location": location, **linked, **commit}, b"", body)

    def _content(self, body: bool, file: str) -> None:
        content = (self.hub.folder / file).read_bytes()
        if self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(match[1]) if match else 0
        size = len(content)
        headers = {"Content-Range": f"bytes {first}-{size - 1}/{size}"} if match else {}
        broken, self.hub.break_after = self.hub.break_after, 0
        self._send(206 if match else 200, headers, content[first:], body, broken)

    def _information(self, body: bool, repository: str, revision: str) -> None:
        folder = self.hub.folder / repository
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        record = {
            "id": repository,
            "sha": self.hub.commit(repository, revision),
            "siblings": [{"rfilename": file} for file in files],
        }
        self._send(200 if files else 404, {"Content-Type": "application/json"}, json.dumps(record).encode(), body)

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool, broken: int = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: broken or None])
        if broken:
            self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve FOLDER/owner/repository/... as the Hugging Face hub does.")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    with serve(options.folder, options.port) as hub:
        print(hub.endpoint, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
