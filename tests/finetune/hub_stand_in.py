"""A local stand-in for both hubs: enough of their APIs for the real client libraries to fetch a tiny repository."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_JSON = {"Content-Type": "application/json"}
Repositories = dict[str, dict[str, bytes]]


class StandIn:
    """What the server offers, how it refuses, and what it was asked for.

    `repositories` maps "models/owner/name" or "datasets/owner/name" to files; `refusals` maps the same names to the
    hub's error code (and status) for them.
    """

    def __init__(self, repositories: Repositories) -> None:
        self.repositories = repositories
        self.refusals: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for the path of a request."""
        self.asked.append(path)
        if path.startswith("/api/v1/"):
            return self._modelscope(path)
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            return self._describe("/".join(parts[1:4]), parts[4:])
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        return self._file(f"{kind}/{parts[0]}/{parts[1]}", "/".join(parts[4:]))

    def _modelscope(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """ModelScope's API: a list of files for a path ending in repo/files or repo/tree, a file for one in repo."""
        address = urlsplit(path)
        parts = address.path.strip("/").split("/")
        files = self.repositories.get("/".join(parts[2:5]))
        if files is None:
            return 404, _JSON, b'{"Code": 404, "Message": "no such repository"}'
        if parts[5:] in (["repo", "files"], ["repo", "tree"]):
            listed = [{"Path": name, "Type": "blob", "Size": len(body)} for name, body in files.items()]
            return 200, _JSON, json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode()
        if parts[5:] == ["repo"]:
            return 200, {}, files[parse_qs(address.query)["FilePath"][0]]
        return 200, _JSON, b'{"Code": 200, "Success": true, "Data": {}}'

    def _describe(self, name: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if name in self.refusals:
            status, code = self.refusals[name]
            return status, {"X-Error-Code": code, "X-Error-Message": "refused by the stand-in"}, b"{}"
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        files = self.repositories[name]
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(body), "oid": _etag(body)} for path, body in files.items()
            ]
            return 200, _JSON, json.dumps(tree).encode()
        about = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
        return 200, _JSON, json.dumps(about).encode()

    def _file(self, name: str, path: str) -> tuple[int, dict[str, str], bytes]:
        body = self.repositories.get(name, {}).get(path)
        if body is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": COMMIT}, body


def _etag(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


@contextmanager
def serve(repositories: Repositories) -> Iterator[StandIn]:
    """Runs the stand-in on a free port of this machine."""
    stand_in = StandIn(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def _reply(self, *, with_body: bool) -> None:
            status, headers, body = stand_in.answer(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
