"""A Hub on loopback: models and data sets, commits, branches, pull requests, LFS, and faults.

It speaks the part of the Hub's protocol that huggingface_hub, `datasets` and Transformers use
for plain LFS (set HF_HUB_DISABLE_XET=1). The kernel picks the port; nothing is held in memory
but names, so shards of any size go through.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Kind = Literal["models", "datasets"]
TOKEN = "hf_of_a_test"  # may write in the namespaces `ann` and `team`
READ_TOKEN = "hf_of_a_reader"

_LFS_SUFFIXES = (".parquet", ".safetensors", ".arrow", ".png", ".jpg", ".bin")
_LFS_FROM_BYTES = 10 * 2**20
_BLOCK = 2**20


@dataclass(frozen=True)
class Blob:
    """A file's content on the server."""

    path: Path
    size: int
    sha256: str
    git_oid: str
    lfs: bool

    @property
    def oid(self) -> str:
        """What the Hub compares a file by: sha256 of an LFS file, git's sha1 of another."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    """A repository: commits by id (path -> content), and which of them its refs name."""

    kind: Kind
    id: str
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)

    def find(self, revision: str) -> str | None:
        """Return the commit a revision names."""
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    """What to do instead of answering, to requests whose method and path fit.

    `what`: a status to answer with; `cut` breaks off in the middle of the body sent or received;
    `lost` does what is asked and then hangs up; `late` does it and never answers; `slow` answers
    piece by piece; `hang` takes the head alone and never answers; a function is called before the
    request is answered as ever. `reached` is set as soon as it happens.
    """

    method: str
    pattern: str
    what: int | Literal["cut", "lost", "late", "slow", "hang"] | Callable[[], object]
    times: int = 1
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    reached: threading.Event = field(default_factory=threading.Event)

    def fits(self, method: str, path: str) -> bool:
        """Whether it is this request's turn; counts."""
        if method != self.method or not re.search(self.pattern, path) or self.times <= 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        if self.what != "late":
            self.reached.set()
        return True


class Hub:
    """The server's content, the requests it got, and what it is to do wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = ""
        self.storage = ""  # where LFS files are sent to
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.received_bytes = 0
        self.created: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)

    @property
    def paths(self) -> list[str]:
        """The paths of all requests but those of file contents sent."""
        return [path for method, path in self.requests if method != "PUT"]

    @property
    def sent(self) -> list[str]:
        """The sha256 of every LFS file sent, in order."""
        return [path.removeprefix("/_lfs/") for method, path in self.requests if method == "PUT"]

    def fail(self, method: str, pattern: str, what: Any, **options: Any) -> Fault:
        """Do something wrong at the next request that fits."""
        fault = Fault(method, pattern, what, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Return what to do wrong at this request."""
        with self.lock:
            return next((fault for fault in self.faults if fault.fits(method, path)), None)

    def repo(self, repo_id: str, kind: Kind = "datasets") -> Repo:
        """Return a repository that is there."""
        return self.repos[kind, repo_id]

    def create(self, repo_id: str, kind: Kind = "datasets", private: bool = False) -> Repo:
        """Make an empty repository, as the Hub does: with one commit of a .gitattributes."""
        repo = Repo(kind, repo_id, private)
        self.repos[kind, repo_id] = repo
        blob = self.store(f"*.parquet filter=lfs {repo_id}\n".encode(), lfs=False)
        self.add_commit(repo, {".gitattributes": blob}, "initial commit")
        return repo

    def add_commit(
        self, repo: Repo, files: dict[str, Blob], message: str, ref: str = "main", oid: str = ""
    ) -> str:
        """Add a commit that a ref names from now on; its id goes by its content."""
        listed = sorted((path, blob.oid) for path, blob in files.items())
        content = [repo.id, repo.refs.get(ref), len(repo.commits), message, listed]
        oid = oid or hashlib.sha1(json.dumps(content).encode()).hexdigest()
        repo.commits[oid], repo.messages[oid], repo.refs[ref] = files, message, oid
        return oid

    def put_folder(
        self, repo_id: str, folder: Path, kind: Kind = "datasets", oid: str = ""
    ) -> None:
        """Make a commit of a folder's files, without copying them."""
        repo = self.repos.get((kind, repo_id)) or Repo(kind, repo_id)
        self.repos[kind, repo_id] = repo
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {
            path.relative_to(folder).as_posix(): describe(path, is_lfs(path.name, path))
            for path in paths
        }
        self.add_commit(repo, files, "from a folder", oid=oid)

    def store(self, content: bytes, lfs: bool) -> Blob:
        """Keep content under its sha256."""
        path = self.blobs / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        return describe(path, lfs)

    def write(self, repo_id: str, path: str, content: bytes, ref: str = "main") -> str:
        """Commit one file, as a person does in the browser."""
        with self.lock:
            repo = self.repo(repo_id)
            files = {**repo.commits[repo.refs[ref]], path: self.store(content, lfs=False)}
            return self.add_commit(repo, files, f"Update {path}", ref)

    def files(self, repo_id: str, revision: str = "main", kind: Kind = "datasets") -> dict:
        """Return the sha256 of every file of a revision by its path."""
        repo = self.repo(repo_id, kind)
        content = repo.commits[repo.find(revision) or ""]
        return {path: blob.sha256 for path, blob in content.items() if path != ".gitattributes"}

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Return a file's content."""
        repo = self.repo(repo_id)
        return repo.commits[repo.find(revision) or ""][path].path.read_bytes()


def describe(path: Path, lfs: bool) -> Blob:
    """Hash a file block by block."""
    size = path.stat().st_size
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            sha1.update(block)
    return Blob(path, size, sha256.hexdigest(), sha1.hexdigest(), lfs)


def is_lfs(name: str, path: Path | None = None, size: int = 0) -> bool:
    """Whether the Hub keeps a file of this name and size in LFS."""
    size = path.stat().st_size if path else size
    return name.endswith(_LFS_SUFFIXES) or size > _LFS_FROM_BYTES


class _HangUp(Exception):
    """Close the connection without an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    slow = False
    lost: Fault | None = None

    # Requests

    def do_HEAD(self) -> None:
        self._serve()

    do_GET = do_POST = do_PUT = do_HEAD

    def _serve(self) -> None:
        hub = self.hub
        raw = urlsplit(self.path)
        self.parts = [unquote(part) for part in raw.path.strip("/").split("/")]
        self.query = {key: values[-1] for key, values in parse_qs(raw.query).items()}
        path = unquote(raw.path)
        with hub.lock:
            hub.requests.append((self.command, path))
        fault = hub.fault_for(self.command, path)
        what = fault.what if fault else None
        self.slow, self.cut = what == "slow", what == "cut"
        try:
            if what == "hang":
                self._wait_for_the_end()
            if callable(what):
                what()
            if isinstance(what, int):
                self._body()
                self._reply(what, b"{}", fault.headers if fault else {})
                return
            if self.cut and self.command in ("PUT", "POST"):
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                raise _HangUp
            if what in ("lost", "late"):
                self.lost = fault
            self._answer()
        except (_HangUp, ConnectionError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _wait_for_the_end(self) -> None:
        while self.rfile.read1(_BLOCK):
            pass
        raise _HangUp

    def _answer(self) -> None:
        parts = self.parts
        if self.command == "PUT" and parts[0] == "_lfs":
            self._take_lfs(parts[1])
        elif parts == ["_lfs", "verify"]:
            wanted = self._json_body()
            path = self.hub.blobs / wanted["oid"]
            there = path.is_file() and path.stat().st_size == wanted["size"]
            self._reply(200 if there else 404)
        elif parts[0] == "api":
            self._api(parts[1:])
        else:
            self._files(parts)

    def _files(self, parts: list[str]) -> None:
        kind: Kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            self._batch(kind, f"{parts[0]}/{parts[1].removesuffix('.git')}")
        elif len(parts) > 4 and parts[2] == "resolve":
            repo = self._readable(kind, "/".join(parts[:2]))
            if repo:
                self._resolve(repo, parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    def _api(self, parts: list[str]) -> None:
        if parts == ["whoami-v2"]:
            self._who_am_i()
        elif parts == ["validate-yaml"]:
            self._validate_yaml()
        elif parts == ["repos", "create"]:
            self._create(self._json_body())
        elif parts[0] in ("models", "datasets") and len(parts) >= 3:
            self._repo_api(parts[0], "/".join(parts[1:3]), parts[3:])  # type: ignore[arg-type]
        else:
            self._refuse(404, "RepoNotFound")

    def _repo_api(self, kind: Kind, repo_id: str, rest: list[str]) -> None:
        if self.command == "POST" and rest[0] != "paths-info":
            body = self._body()
            repo = self._writable(kind, repo_id)
            if repo:
                self._write_api(repo, rest, body)
            return
        body = self._body()
        repo = self._readable(kind, repo_id)
        if repo is None:
            return
        if rest == [] or rest[0] == "revision":
            self._info(repo, rest[1] if rest else "main")
        elif rest[0] == "tree":
            self._tree(repo, rest[1], "/".join(rest[2:]))
        elif rest[0] == "paths-info":
            self._paths_info(repo, rest[1], parse_qs(body.decode()).get("paths", []))
        elif rest[0] == "refs":
            self._refs(repo)
        elif rest[0] == "discussions":
            self._discussions(repo)
        else:
            self._refuse(404, "EntryNotFound")

    def _write_api(self, repo: Repo, rest: list[str], body: bytes) -> None:
        if rest[0] == "preupload":
            self._preupload(repo, rest[1], json.loads(body))
        elif rest[0] == "branch":
            if rest[1] in repo.refs:
                self._refuse(409)
            else:
                start = json.loads(body or b"{}").get("startingPoint", "main")
                repo.refs[rest[1]] = repo.find(start) or ""
                self._json({})
        elif rest[0] == "commit":
            self._commit(repo, rest[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "EntryNotFound")

    # Who may

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _writable(self, kind: Kind, repo_id: str) -> Repo | None:
        token = self._token()
        if token not in (TOKEN, READ_TOKEN):
            self._refuse(401)
        elif token == READ_TOKEN and "create_pr" not in self.query:
            self._refuse(403, message="pass `create_pr=1` as a query parameter to create one")
        elif (kind, repo_id) not in self.hub.repos:
            self._refuse(404, "RepoNotFound")
        else:
            return self.hub.repos[kind, repo_id]
        return None

    def _readable(self, kind: Kind, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and self._token() != TOKEN):
            self._refuse(404 if self._token() else 401, "RepoNotFound")
            return None
        return repo

    def _who_am_i(self) -> None:
        if self._token() not in (TOKEN, READ_TOKEN):
            self._refuse(401)
        else:
            self._json({"type": "user", "name": "ann", "orgs": [{"name": "team"}]})

    # What is there

    def _info(self, repo: Repo, revision: str) -> None:
        oid = repo.find(revision)
        if oid is None:
            self._refuse(404, "RevisionNotFound")
            return
        self._json(
            {
                "id": repo.id,
                "sha": oid,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in repo.commits[oid]],
                "lastModified": "2026-01-01T00:00:00.000Z",
            }
        )

    def _tree(self, repo: Repo, revision: str, inside: str) -> None:
        oid = repo.find(revision)
        if oid is None:
            self._refuse(404, "RevisionNotFound")
            return
        prefix = f"{inside}/" if inside else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(repo.commits[oid].items()):
            if not path.startswith(prefix):
                continue
            below = path[len(prefix) :].split("/")
            for depth in range(1, len(below)) if recursive else range(1, min(2, len(below))):
                folder = prefix + "/".join(below[:depth])
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if recursive or len(below) == 1:
                entries[path] = _entry(path, blob)
        if inside and not entries:
            self._refuse(404, "EntryNotFound")
        else:
            self._json(list(entries.values()))

    def _paths_info(self, repo: Repo, revision: str, paths: list[str]) -> None:
        files = repo.commits.get(repo.find(revision) or "")
        if files is None:
            self._refuse(404, "RevisionNotFound")
        else:
            self._json([_entry(path, files[path]) for path in paths if path in files])

    def _refs(self, repo: Repo) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repo.refs.items()
            if not name.startswith("refs/")
        ]
        self._json({"branches": branches, "converts": [], "tags": []})

    def _discussions(self, repo: Repo) -> None:
        self._json({"discussions": repo.pulls, "count": len(repo.pulls), "start": 0})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        oid = repo.find(revision)
        if oid is None:
            self._refuse(404, "RevisionNotFound")
            return
        blob = repo.commits[oid].get(path)
        if blob is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, blob.size - 1
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            if first > last:
                self._reply(416, b"", {"Content-Range": f"bytes */{blob.size}"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        self._send_head(206 if wanted else 200, last - first + 1, headers)
        if self.command != "HEAD":
            with blob.path.open("rb") as file:
                file.seek(first)
                self._send_file(file, last - first + 1)

    # What is sent

    def _create(self, asked: dict[str, Any]) -> None:
        if self._token() != TOKEN:
            self._refuse(403 if self._token() else 401)
            return
        repo_id = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        kind: Kind = "datasets" if asked.get("type") == "dataset" else "models"
        if repo_id.split("/")[0] not in ("ann", "team"):
            self._refuse(403)
            return
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
        if kind == "datasets":
            answer["url"] = f"{self.hub.endpoint}/datasets/{repo_id}"
        with self.hub.lock:
            there = (kind, repo_id) in self.hub.repos
            if not there:
                self.hub.create(repo_id, kind, asked.get("visibility") == "private")
                self.hub.created.append(asked)
        self._json(answer, 409 if there else 200)

    def _validate_yaml(self) -> None:
        text = self._json_body()["content"]
        try:
            content = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
            license = content.get("license", "mit")
            valid = re.fullmatch(
                r"(cc|mit|apache|odbl|odc|pddl|other|unknown|gpl|bsd)[\w.-]*", license
            )
            errors = (
                [] if valid else [{"message": f'"license" must be one of [..., not {license}]'}]
            )
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, repo: Repo, revision: str, asked: dict[str, Any]) -> None:
        oid = repo.find(revision)
        if oid is None:
            self._refuse(404, "RevisionNotFound")
            return
        held = repo.commits[oid]
        ignore = held[".gitignore"].path.read_text().split() if ".gitignore" in held else []
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_lfs(file["path"], size=file["size"]) else "regular",
                "shouldIgnore": any(file["path"].startswith(prefix) for prefix in ignore),
                "oid": held[file["path"]].oid if file["path"] in held else None,
            }
            for file in asked["files"]
        ]
        self._json({"files": files})

    def _batch(self, kind: Kind, repo_id: str) -> None:
        asked = self._json_body()
        if self._token() not in (TOKEN, READ_TOKEN):
            self._refuse(401)
            return
        objects = []
        for file in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.storage}/_lfs/{file['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/_lfs/verify"},
            }
            path = self.hub.blobs / file["oid"]
            there = path.is_file() and path.stat().st_size == file["size"]
            objects.append(file if there else {**file, "actions": actions})
        self._json({"transfer": "basic", "objects": objects})

    def _take_lfs(self, oid: str) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        with tempfile.NamedTemporaryFile(dir=self.hub.folder, delete=False) as file:
            while left:
                block = self.rfile.read(min(left, _BLOCK))
                if not block:
                    raise _HangUp  # the sender was killed
                digest.update(block)
                file.write(block)
                left -= len(block)
                self.hub.received_bytes += len(block)
        if digest.hexdigest() != oid:
            Path(file.name).unlink()
            self._refuse(400)
            return
        Path(file.name).replace(self.hub.blobs / oid)
        self._reply(200)

    def _commit(self, repo: Repo, revision: str, lines: list[dict[str, Any]]) -> None:
        header, operations = lines[0]["value"], lines[1:]
        with self.hub.lock:
            head = repo.find(revision)
            if head is None:
                self._refuse(404, "RevisionNotFound")
                return
            if header.get("parentCommit", head) != head:
                message = "A commit has happened since. Please refresh and try again."
                self._refuse(412, message=message)
                return
            files = dict(repo.commits[head])
            for operation in operations:
                if not self._apply(files, operation["key"], operation["value"]):
                    return
            answer: dict[str, Any] = {"success": True}
            ref, message = revision, header["summary"]
            if "create_pr" in self.query:
                number = len(repo.pulls) + 1
                ref = f"refs/pr/{number}"
                repo.pulls.append(_pull(repo, number, message))
                place = "datasets/" if repo.kind == "datasets" else ""
                url = f"{self.hub.endpoint}/{place}{repo.id}/discussions/{number}"
                answer["pullRequestUrl"] = url
            oid = self.hub.add_commit(repo, files, message, ref)
        answer |= {"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo.id}/commit/{oid}"}
        self._json(answer)

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> bool:
        path = value["path"]
        if key == "file":
            files[path] = self.hub.store(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile" and (self.hub.blobs / value["oid"]).is_file():
            files[path] = describe(self.hub.blobs / value["oid"], lfs=True)
        elif key == "deletedFile" and path in files:
            del files[path]
        else:
            self._refuse(400, message=f"{key} {path} cannot be done")
            return False
        return True

    # Answers

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json_body(self) -> Any:
        return json.loads(self._body())

    def _json(self, content: object, status: int = 200) -> None:
        self._reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._reply(status, b"", headers | ({"X-Error-Message": message} if message else {}))

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._send_head(status, len(body), headers or {})
        if self.command != "HEAD":
            self._send([body])

    def _send_head(self, status: int, size: int, headers: dict[str, str]) -> None:
        if self.lost:
            if self.lost.what == "late":
                self.lost.reached.set()
                self._wait_for_the_end()
            raise _HangUp
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _send_file(self, file: Any, size: int) -> None:
        if self.cut:
            self._send([file.read(size // 2)])
            raise _HangUp
        whole = min(size, _BLOCK) if not self.slow else max(1, size // 20)
        while size:
            block = file.read(min(size, whole))
            self._send([block])
            size -= len(block)

    def _send(self, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            self.wfile.write(block)
            if self.slow:
                self.wfile.flush()
                threading.Event().wait(0.01)

    def log_message(self, *_: object) -> None:
        pass


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.git_oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return entry


def _pull(repo: Repo, number: int, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "num": number,
        "author": {"name": "ann"},
        "createdAt": "2026-01-01T00:00:00.000Z",
        "status": "open",
        "repo": {"name": repo.id, "type": repo.kind.removesuffix("s")},
        "isPullRequest": True,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a request that hangs must not keep a test from ending

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the noise of connections that a killed client left out of the tests."""


@contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[Hub]:
    """Serve an empty Hub whose files lie in a folder of its own."""
    hub = Hub(folder)
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = hub.storage = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        shutil.rmtree(folder / "blobs", ignore_errors=True)
