"""A Hub on loopback that serves one model repository: info of a revision, and its files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def serve_model(repo_id: str, commits: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as commits of a model; the last one is `main`.

    Yields:
        The endpoint, on a port chosen by the kernel, and the list of paths asked for so far.
    """
    asked: list[str] = []
    main = list(commits)[-1]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            api, files = f"/api/models/{repo_id}", f"/{repo_id}/resolve/"
            if path == api or path.startswith(f"{api}/revision/"):
                self.info(path.removeprefix(api).removeprefix("/revision/") or "main")
            elif path.startswith(f"{api}/tree/"):
                self.tree(path.removeprefix(f"{api}/tree/"))
            elif path.startswith(files):
                self.file(*path.removeprefix(files).split("/", 1))
            else:
                self.refuse("RepoNotFound")

        def info(self, revision: str) -> None:
            sha = main if revision == "main" else revision
            if sha not in commits:
                self.refuse("RevisionNotFound")
                return
            self.json({"id": repo_id, "sha": sha, "siblings": [], "tags": [], "private": False})

        def tree(self, revision: str) -> None:
            if revision not in commits:
                self.refuse("RevisionNotFound")
                return
            paths = sorted(commits[revision].iterdir())
            self.json(
                [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                    for p in paths
                ]
            )

        def json(self, content: object) -> None:
            self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def file(self, revision: str, name: str) -> None:
            sha = main if revision == "main" else revision
            path = commits[sha] / name
            if not path.is_file():
                self.refuse("EntryNotFound")
                return
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            self.reply(200, body, {"ETag": tag, "X-Repo-Commit": sha})

        def refuse(self, code: str) -> None:
            self.reply(404, b"", {"X-Error-Code": code})

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
