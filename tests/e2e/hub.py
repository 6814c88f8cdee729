"""A Hub on loopback that serves one repository: its files, and uploads of new ones."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit


@contextmanager
def serve_model(
    repo_id: str,
    commits: dict[str, Path],
    uploads: Path | None = None,
    kind: Literal["models", "datasets"] = "models",
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as commits of a model, or of a data set; the last one is `main`.

    Args:
        commits: id of a commit -> folder of its files. Uploaded commits are added.
        uploads: where uploaded commits become folders; None takes no uploads. With a token alone
            is anything taken, and no large file while a file `refuse` lies in that folder.
        kind: of the repository; uploads are of models alone.

    Yields:
        The endpoint, on a port chosen by the kernel, and the list of paths asked for so far.
    """
    asked: list[str] = []
    blobs: dict[str, bytes] = {}

    def resolve(revision: str) -> str:
        return list(commits)[-1] if revision == "main" and commits else revision

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            api = f"/api/{kind}/{repo_id}"
            files = f"{'' if kind == 'models' else '/datasets'}/{repo_id}/resolve/"
            if path == api or path.startswith(f"{api}/revision/"):
                self.info(path.removeprefix(api).removeprefix("/revision/") or "main")
            elif path.startswith(f"{api}/tree/"):
                self.tree(path.removeprefix(f"{api}/tree/"))
            elif path.startswith(files):
                self.file(*path.removeprefix(files).split("/", 1))
            else:
                self.refuse("RepoNotFound")

        def do_PUT(self) -> None:
            body = self.body()
            oid = self.path.removeprefix("/_lfs/")
            if (uploads / "refuse").exists() or hashlib.sha256(body).hexdigest() != oid:
                self.reply(400, b"", {})
                return
            blobs[oid] = body
            self.reply(200, b"", {})

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            asked.append(path)
            if uploads is None or not self.headers.get("Authorization", "").startswith("Bearer "):
                self.reply(401, b"", {})
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif path == f"/api/models/{repo_id}/preupload/main":
                self.preupload(json.loads(body))
            elif path == f"/{repo_id}.git/info/lfs/objects/batch":
                self.batch(json.loads(body))
            elif path == "/_lfs/verify":
                wanted = json.loads(body)
                stored = len(blobs.get(wanted["oid"], b""))
                self.reply(200 if stored == wanted["size"] else 404, b"", {})
            elif path == f"/api/models/{repo_id}/commit/main":
                self.commit([json.loads(line) for line in body.splitlines()])
            else:
                self.refuse("RepoNotFound")

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def create(self, asked_for: dict[str, object]) -> None:
            if f"{asked_for.get('organization')}/{asked_for['name']}" != repo_id:
                self.reply(403, b"", {})
                return
            if not commits:
                empty = uploads / "empty"
                empty.mkdir()
                commits["0" * 40] = empty
            (uploads / "created.json").write_text(json.dumps(asked_for))
            self.json({"url": f"{endpoint}/{repo_id}", "name": repo_id, "id": repo_id})

        def preupload(self, asked_for: dict[str, list[dict[str, str]]]) -> None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in asked_for["files"]
            ]
            self.json({"files": files})

        def batch(self, asked_for: dict[str, list[dict[str, object]]]) -> None:
            objects = []
            for file in asked_for["objects"]:
                actions = {
                    "upload": {"href": f"{endpoint}/_lfs/{file['oid']}"},
                    "verify": {"href": f"{endpoint}/_lfs/verify"},
                }
                objects.append(file if file["oid"] in blobs else {**file, "actions": actions})
            self.json({"transfer": "basic", "objects": objects})

        def commit(self, lines: list[dict[str, dict[str, str]]]) -> None:
            oid = hashlib.sha1(json.dumps([resolve("main"), lines]).encode()).hexdigest()
            folder = uploads / oid
            shutil.copytree(commits[resolve("main")], folder)
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    (folder / value["path"]).write_bytes(blobs[value["oid"]])
            commits[oid] = folder
            url = f"{endpoint}/{repo_id}/commit/{oid}"
            self.json({"success": True, "commitOid": oid, "commitUrl": url})

        def info(self, revision: str) -> None:
            sha = resolve(revision)
            if sha not in commits:
                self.refuse("RevisionNotFound")
                return
            self.json({"id": repo_id, "sha": sha, "siblings": [], "tags": [], "private": False})

        def tree(self, place: str) -> None:
            revision, _, inside = place.partition("/")
            revision = resolve(revision)
            if revision not in commits:
                self.refuse("RevisionNotFound")
                return
            folder = commits[revision] / inside
            if not folder.is_dir():
                self.refuse("EntryNotFound")
                return
            recursive = "recursive=true" in self.path.lower()
            paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
            self.json(
                [
                    {
                        "type": "file" if path.is_file() else "directory",
                        "path": path.relative_to(commits[revision]).as_posix(),
                        "size": path.stat().st_size if path.is_file() else 0,
                        "oid": "0" * 40,
                    }
                    for path in paths
                ]
            )

        def json(self, content: object) -> None:
            self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def file(self, revision: str, name: str) -> None:
            sha = resolve(revision)
            if sha not in commits:
                self.refuse("RevisionNotFound")
                return
            path = commits[sha] / name
            if not path.is_file():
                self.refuse("EntryNotFound")
                return
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            headers = {"ETag": tag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted is None:
                self.reply(200, body, headers)
                return
            first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            self.reply(206, body[first : last + 1], headers)

        def refuse(self, code: str) -> None:
            self.reply(404, b"", {"X-Error-Code": code})

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
