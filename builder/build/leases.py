"""Leases: who is at work on a set, which shard each worker makes, and on which shards one died.

owners/<owner>          what each process at work writes anew every few seconds
claims/<shard>.<n>      "that owner makes this shard"; created once, never changed

It takes what a shared folder and an object store have in common: create a file unless it exists,
replace, read and delete one. Clocks of two machines are never compared: an owner is given up when
its file has not changed for `expiry_s` on the clock of the one who looks, and at once when it ran
on this machine and its process is gone. A lease whose owner is given up is taken over by creating
its next number, which only one can do. So the number also counts the processes that died on a
shard, and everybody who looks knows it.

Leases save double work and nothing else. What two workers make at once, because one was stopped
and woke up, is right all the same: see `builder.build.shards`. The names of the folders are those
of version 0.1.0, so that builds of both versions can share a set.
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

from builder.files import create_bytes, open_regular, write_bytes
from builder.remote import Place, StorePath
from builder.untrusted import parse_json

if TYPE_CHECKING:
    from typing_extensions import Self

_BEATS_PER_EXPIRY = 6
_MOST_BYTES = 2**16
_BUILD_DIGITS = 12  # of an owner's 16; the others number the workers of one build


@dataclass(frozen=True)
class Owner:
    """A process at work: where it runs, and what it builds.

    `build` names the owner; its first 12 digits are those of all processes of one build.
    `machine` is one start of one machine, as far as processes can see each other there; empty
    where that is not known. `started` distinguishes the process from a later one of the same
    number. `since` is for people to read.
    """

    build: str
    fingerprint: str
    host: str
    machine: str
    pid: int
    started: str
    since: str

    @classmethod
    def here(cls, fingerprint: str, build: str | None = None) -> Owner:
        """Return what this process is."""
        return cls(
            build=build or f"{secrets.token_hex(_BUILD_DIGITS // 2)}0000",
            fingerprint=fingerprint,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """Read an owner's file or a lease; None when it is not whole, or not of our hand."""
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

    def is_here(self) -> bool:
        """Whether it runs, or ran, where this process could see it."""
        return self.machine != "" and self.machine == _machine()

    def is_gone(self) -> bool:
        """Whether the process is known to have ended."""
        return self.is_here() and _started(self.pid) != self.started

    def is_ancestor(self) -> bool:
        """Whether this process was started by it, directly or not."""
        pid = os.getpid()
        while self.is_here() and (fields := _stat(pid)):
            pid = int(fields[1])
            if pid == self.pid:
                return True
        return False

    def is_of_build(self, other: Owner) -> bool:
        """Whether two processes work for the same build."""
        return self.build[:_BUILD_DIGITS] == other.build[:_BUILD_DIGITS]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - not a path
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Return what /proc says of a living process, from its state on; nothing of a dead one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] in "ZX" else fields


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since the machine did; None when there is none."""
    fields = _stat(pid)
    return fields[19] if fields else None


@dataclass(frozen=True)
class Lease:
    """The state of one lease: the processes that died with it, and who holds it now.

    `owner` is None where nobody holds it, or its owner cannot be read.
    """

    deaths: int
    held: bool
    owner: Owner | None


class Leases:
    """One process among others in a work folder; made known while the `with` block runs.

    Args:
        folder: where owners and leases lie, shared by all builds of a set.
        fingerprint: of the set this process builds.
        expiry_s: how long another process may be silent, in seconds.
        name: of this owner; see `next_worker`. None is the first of a new build.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        folder: Place,
        fingerprint: str,
        expiry_s: float = 60.0,
        *,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = Owner.here(fingerprint, name)
        self._owners, self._claims = folder / "owners", folder / "claims"
        self._expiry_s, self._clock = expiry_s, clock
        self._seen: dict[Place, tuple[bytes, float]] = {}
        self._held: dict[str, int] = {}
        self._beats = self._workers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._owners.mkdir(exist_ok=True)
        self._claims.mkdir(exist_ok=True)
        self.beat()
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
            self.give_back(unit)
        self._delete(self._owners / self.owner.build)

    def _live(self) -> None:
        while not self._stop.wait(self._expiry_s / _BEATS_PER_EXPIRY):
            # A full disk, or a set that another build has finished: nothing to be done here.
            with suppress(OSError):
                self.beat()

    def beat(self) -> None:
        """Show the others that this process is alive."""
        self._beats += 1
        content = {**asdict(self.owner), "beat": self._beats}
        write_bytes(self._owners / self.owner.build, json.dumps(content).encode())

    def next_worker(self) -> str:
        """Return the name under which the next worker of this build holds leases."""
        self._workers += 1
        return f"{self.owner.build[:_BUILD_DIGITS]}{self._workers % 16**4:04x}"

    def others(self) -> list[Owner | None]:
        """Return who else is at work, None for one that cannot be read; drop who is gone."""
        others = []
        for path in self._owners.iterdir():
            if path.name == self.owner.build or path.name.startswith("."):
                continue
            if (content := self._read(path)) is None:
                continue
            owner = Owner.read(content)
            if (owner and owner.is_gone()) or self._is_silent(path, content):
                self._delete(path)
            else:
                others.append(owner)
        return others

    def take(self, unit: str) -> bool:
        """Take the lease of a piece of work; False while another holds it.

        What the piece of work yields may have appeared just before: look after taking it.
        """
        content = json.dumps(asdict(self.owner)).encode()
        for number in count():
            path = self._claims / f"{unit}.{number}"
            while not create_bytes(path, content):
                held = self._read(path)
                if held is None:  # given back since
                    continue
                if not self._is_given_up(path, held):
                    return False
                break
            else:
                self._held[unit] = number
                return True
        raise AssertionError

    def give_back(self, unit: str) -> None:
        """Give a lease back, the work done or not; the deaths before are forgotten."""
        for number in range(self._held.pop(unit), -1, -1):
            self._delete(self._claims / f"{unit}.{number}")

    def taken(self) -> set[str]:
        """Return the pieces of work that somebody holds, or has held until he died."""
        names = (path.name for path in self._claims.iterdir())
        return {name.rpartition(".")[0] for name in names if not name.startswith(".")}

    def look(self, unit: str) -> Lease:
        """Return who holds a piece of work, and how many died before."""
        for number in count():
            path = self._claims / f"{unit}.{number}"
            if (content := self._read(path)) is None:
                return Lease(number, held=False, owner=None)
            if not self._is_given_up(path, content):
                return Lease(number, held=True, owner=Owner.read(content))
        raise AssertionError

    def bury(self, name: str) -> None:
        """Free at once what a worker held that is known to have died."""
        self._delete(self._owners / name)

    def withdraw(self, name: str) -> None:
        """Give back what a worker held that was ended on purpose: nothing is to blame for that."""
        held = []
        for path in self._claims.iterdir():
            owner = Owner.read(self._read(path) or b"")
            if owner is not None and owner.build == name:
                held.append(path)
        for path in held:
            self._delete(path)
        self._delete(self._owners / name)

    def forget(self) -> None:
        """Drop what the dead held: a build that was killed as a whole says nothing of a shard."""
        for path in self._claims.iterdir():
            if self._is_given_up(path, self._read(path) or b""):
                self._delete(path)

    def _is_given_up(self, path: Place, content: bytes) -> bool:
        owner = Owner.read(content)
        if owner is None:  # died while writing it, on a file system without hard links
            return self._is_silent(path, content)
        if owner.is_gone():
            return True
        alive = self._owners / owner.build
        if (beat := self._read(alive)) is None:
            return True
        if self._is_silent(alive, beat):
            self._delete(alive)  # so that the others need not wait as well
            return True
        return False

    def _is_silent(self, path: Place, content: bytes) -> bool:
        """Whether a file has kept its content for longer than an owner may be silent."""
        now = self._clock()
        before, since = self._seen.get(path, (None, now))
        if before != content:
            self._seen[path] = content, now
            return False
        return now - since >= self._expiry_s

    @staticmethod
    def _read(path: Place) -> bytes | None:
        try:
            with open_regular(path) as file:
                return file.read(_MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError:
            if isinstance(path, StorePath):
                raise
            return b""  # a pipe or folder in the way, of another hand

    @staticmethod
    def _delete(path: Place) -> None:
        with suppress(OSError):  # deleted already, or the next one will see it
            path.unlink()
