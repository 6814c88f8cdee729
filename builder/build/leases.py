"""Several builds at work on one set: which are alive, and which shard each is making.

owners/<build>          what a build at work writes anew every few seconds
claims/<shard>.<n>      "that build makes this shard"; created once, never changed

It takes what a shared folder and an object store have alike: create unless it exists, replace,
read, delete. Clocks of two machines are never compared: a build is given up when its file has not
changed for `expiry_s` on the clock of the one who looks, and at once when it ran on this machine
and its process is gone. Whoever gives it up deletes its file. A claim of a build without a file
is taken over by creating the claim's next number, which only one can.

Claims save double work and nothing else. What two builds make at once, because one was stopped
and woke up, is right all the same: see `builder.build.shards`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from builder.files import create_bytes, write_bytes
from builder.remote import Place
from builder.untrusted import parse_json

if TYPE_CHECKING:
    from typing_extensions import Self

_BEATS_PER_EXPIRY = 6
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Owner:
    """A build at work: where it runs, and what it builds.

    `machine` is one start of one machine, as far as processes can see each other there; empty
    where that cannot be told. `started` tells the process from a later one of the same number.
    `since` is for people to read.
    """

    build: str
    fingerprint: str
    host: str
    machine: str
    pid: int
    started: str
    since: str

    @classmethod
    def here(cls, fingerprint: str) -> Owner:
        """Return what this process is."""
        return cls(
            build=secrets.token_hex(8),
            fingerprint=fingerprint,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """Read an owner's file or a claim; None when it is not whole, or not of our hand."""
        try:
            fields = parse_json(content.decode())
            fields.pop("beat", None)
            owner = cls(**fields)
        except (ValueError, TypeError, AttributeError):
            return None
        texts = {**vars(owner), "pid": ""}
        if type(owner.pid) is not int or not all(isinstance(text, str) for text in texts.values()):
            return None
        return owner if re.fullmatch("[0-9a-f]{16}", owner.build) else None

    def is_gone(self) -> bool:
        """Whether the process is known to have ended."""
        here = self.machine != "" and self.machine == _machine()
        return here and _started(self.pid) != self.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - it is no path
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since the machine did; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = fields.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


class Presence:
    """One build among others in a work folder; made known while the `with` block runs.

    Args:
        folder: where owners and claims lie, shared by all builds of a set.
        fingerprint: of the set this one builds.
        expiry_s: how long another build may be silent, in seconds.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        folder: Place,
        fingerprint: str,
        expiry_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = Owner.here(fingerprint)
        self._owners, self._claims = folder / "owners", folder / "claims"
        self._expiry_s, self._clock = expiry_s, clock
        self._seen: dict[Place, tuple[bytes, float]] = {}
        self._held: dict[str, int] = {}
        self._beats = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._owners.mkdir(exist_ok=True)
        self._claims.mkdir(exist_ok=True)
        self.beat()
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for unit in list(self._held):
            self.release(unit)
        self._delete(self._path)

    @property
    def _path(self) -> Place:
        return self._owners / self.owner.build

    def _live(self) -> None:
        while not self._stop.wait(self._expiry_s / _BEATS_PER_EXPIRY):
            # A full disk, or a set that another build has finished: nothing to be done here.
            with suppress(OSError):
                self.beat()
                self.look()

    def beat(self) -> None:
        """Say that this build is alive."""
        self._beats += 1
        content = {**asdict(self.owner), "beat": self._beats}
        write_bytes(self._path, json.dumps(content).encode())

    def look(self) -> list[Owner | None]:
        """Give up the builds that are gone; return the others, None for one that can't be read."""
        others = []
        for path in self._owners.iterdir():
            content = self._read(path)
            if path == self._path or path.name.startswith(".") or content is None:
                continue
            owner = Owner.read(content)
            if (owner and owner.is_gone()) or self._is_silent(path, content):
                self._delete(path)
            else:
                others.append(owner)
        return others

    def take(self, unit: str) -> bool:
        """Claim a piece of work; False while another build is at it.

        What the piece of work yields may have appeared just before: look after taking it.
        """
        content = json.dumps(asdict(self.owner)).encode()
        for number in count():
            path = self._claims / f"{unit}.{number}"
            while not create_bytes(path, content):
                held = self._read(path)
                if held is None:  # released since
                    continue
                if not self._is_given_up(path, held):
                    return False
                break
            else:
                self._held[unit] = number
                return True
        raise AssertionError

    def release(self, unit: str) -> None:
        """Give a piece of work back, done or not."""
        for number in range(self._held.pop(unit), -1, -1):
            self._delete(self._claims / f"{unit}.{number}")

    def holder(self, unit: str) -> Owner | None:
        """Return who has claimed a piece of work last, as far as can be told."""
        found = None
        for number in count():
            content = self._read(self._claims / f"{unit}.{number}")
            if content is None:
                return found
            found = Owner.read(content)
        raise AssertionError

    def _is_given_up(self, path: Place, content: bytes) -> bool:
        owner = Owner.read(content)
        if owner is None:  # died while writing it, on a file system without hard links
            return self._is_silent(path, content)
        return owner.is_gone() or not (self._owners / owner.build).exists()

    def _is_silent(self, path: Place, content: bytes) -> bool:
        """Whether a file has kept its content for longer than a build may be silent."""
        now = self._clock()
        with self._lock:
            before, since = self._seen.get(path, (None, now))
            if before != content:
                self._seen[path] = content, now
                return False
        return now - since >= self._expiry_s

    @staticmethod
    def _read(path: Place) -> bytes | None:
        try:
            with path.open("rb") as file:
                return file.read(_MOST_BYTES)
        except FileNotFoundError:
            return None

    @staticmethod
    def _delete(path: Place) -> None:
        with suppress(OSError):  # deleted already, or the next one will see it
            path.unlink()
