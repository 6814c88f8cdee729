"""Workers on this machine: this process, or processes of their own that are replaced when they die.

The processes are started with a fresh interpreter that imports this package and nothing of the
caller. `multiprocessing` would import the caller's script in each of them, which then begins the
build once more wherever the script has no `if __name__ == "__main__":`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_executable
from typing import Any, NoReturn

from builder.build.crew import Crew
from builder.build.leases import Leases
from builder.build.machine import (
    available_bytes,
    gpu_of_worker,
    n_cores,
    peak_bytes,
    workers_that_fit,
)
from builder.build.work import WorkFolder
from builder.build.worker import Event, Job, Worker
from builder.depth import DepthModel, Device, pick_device
from builder.errors import FgbgError

_AMPLE_BYTES = 6 * 2**30  # more than a worker with a large depth model takes on a processor
# The path first: modules are found where the caller finds his, and never in the working folder.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from builder.build.local import serve; serve()"

_log = logging.getLogger(__name__)


def default_workers(model: DepthModel | None, device: Device) -> int:
    """Return how many processes a build uses by itself: one a core or, with depth, one a GPU."""
    return n_gpus(model, device) or n_cores()


def n_gpus(model: DepthModel | None, device: Device) -> int:
    """Return how many GPUs a build's workers share; 0 where depth is none or a processor's."""
    if model is None or (chosen := pick_device(device)) == "cpu":
        return 0
    import torch

    return torch.cuda.device_count() if chosen == "cuda" else 1


def run_local(crew: Crew, n_shards: int, workers: int | None) -> None:
    """Make shards until none is left to make.

    Args:
        n_shards: the most there may be.
        workers: processes; 1 works in this process, None is one a core, or one a GPU, as far as
            memory reaches.

    Raises:
        FgbgError: what no shard can be made without is missing or broken.
        OSError: the work folder cannot be read.
    """
    room_bytes = None if workers else available_bytes()
    workers = min(workers or default_workers(crew.job.model, crew.job.options.device), n_shards)
    if workers == 1:
        name = crew.leases.owner.build
        Worker(crew.job, crew.leases, lambda event: crew.hear(name, event), set()).run()
    else:
        _Processes(crew, workers, room_bytes).run()


class _Process:
    """A worker process and the channel to it.

    Both ends of the channel close with their process: this is how each learns of the other's end.
    """

    def __init__(self, job: Job, name: str, slot: int, environment: dict[str, str]) -> None:
        self.name, self.slot = name, slot
        self.channel, theirs = Pipe()
        with theirs, _ctrl_c_blocked():
            self._process = subprocess.Popen(  # noqa: S603 - of our own words
                [get_executable(), "-c", _PROGRAM, *sys.path],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # is for results, and what libraries print is none
                stderr=None if sys.stderr else subprocess.DEVNULL,
                env=environment,
            )
        self.tell(job)
        self.tell(name)

    def tell(self, message: Any) -> None:
        """Send the job, the name of its leases, and from then on shards that have failed."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died, as the next look shows
            self.channel.send(message)

    def heard(self) -> Event | BaseException | None:
        """Return what it reports next, or fails with; None where it has died."""
        try:
            message: Event | BaseException = self.channel.recv()
        except (EOFError, ConnectionResetError):
            return None
        return message

    def end(self) -> None:
        """Stop it if it still runs, though it be stopped: nothing of it is needed."""
        self._process.kill()
        self._process.wait()
        self.channel.close()


class _Processes:
    """Worker processes, as many as memory has room for; one that dies is replaced."""

    def __init__(self, crew: Crew, workers: int, room_bytes: int | None) -> None:
        self._crew, self._workers, self._room_bytes = crew, workers, room_bytes
        self._n_gpus = n_gpus(crew.job.model, crew.job.options.device)
        self._running: list[_Process] = []
        # Where memory may not reach for all, one is measured before the others start.
        self._allowed = workers
        if workers_that_fit(workers, room_bytes, _AMPLE_BYTES) < workers:
            self._allowed = 1

    def run(self) -> None:
        try:
            while self._listen():
                pass
        finally:
            for process in self._running:
                process.end()
                self._crew.leases.withdraw(process.name)

    def _listen(self) -> bool:
        """Have all workers running that may, and hear what they report; False at the end."""
        while len(self._running) < self._allowed:
            self._start()
        channels = {process.channel: process for process in self._running}
        for channel in wait(list(channels)):
            process = channels[channel]  # type: ignore[index]
            event = process.heard()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                process.end()
                self._running.remove(process)
                self._crew.bury(process.name)
                if self._crew.gives_up(self._workers):
                    return False
            elif event.kind == "ended":
                return False  # it found nothing left, and so do the others
            elif event.kind == "peak":
                self._allow_more(event.number)
            else:
                self._crew.hear(process.name, event)
                if event.kind == "failed":
                    for other in self._running:
                        other.tell(event.number)
        return True

    def _start(self) -> None:
        slots = set(range(self._workers)) - {process.slot for process in self._running}
        slot, environment = min(slots), dict(os.environ)
        if self._n_gpus > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(slot, visible, self._n_gpus)
        name = self._crew.leases.next_worker()
        self._running.append(_Process(self._crew.job, name, slot, environment))

    def _allow_more(self, peak_bytes: int) -> None:
        """Start as many workers as fit, once it is known what one needs."""
        if self._allowed < self._workers and peak_bytes:
            self._allowed = workers_that_fit(self._workers, self._room_bytes, peak_bytes)
            if self._allowed < self._workers:
                _log.warning(
                    "%d of %d processes: one takes %.2g GB, and %.2g GB of memory were free.",
                    self._allowed,
                    self._workers,
                    peak_bytes / 1e9,
                    (self._room_bytes or 0) / 1e9,
                )
            self._workers = self._allowed


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Keep Ctrl-C, which reaches all processes of a terminal, from those started meanwhile.

    They inherit it, and end with this process instead of each with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve() -> NoReturn:
    """Be a worker process: read the job from stdin, work, and report there too."""
    channel: Connection[Any, Any] = Connection(os.dup(0))
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    code = 0
    try:
        job, name = channel.recv(), channel.recv()
    except EOFError:  # interrupted before it had said what to do
        os._exit(1)
    try:
        _work(job, name, channel)
        channel.send(Event("ended"))
    except OSError as error:
        code = 1
        with suppress(OSError):
            channel.send(error)
    except FgbgError as error:
        code = 1
        channel.send(error)
    sys.exit(code)


def _work(job: Job, name: str, channel: Connection[Any, Any]) -> None:
    failed: set[int] = set()

    def report(event: Event) -> None:
        if event.kind == "made":
            channel.send(Event("peak", peak_bytes()))
        channel.send(event)

    threading.Thread(target=_listen, args=(channel, failed), daemon=True).start()
    folder = WorkFolder(job.out).path
    with Leases(folder, job.fingerprint, job.options.claim_expiry_s, name=name) as leases:
        Worker(job, leases, report, failed).run()


def _listen(channel: Connection[Any, Any], failed: set[int]) -> None:
    """Take note of shards that failed elsewhere, and end with the process that started this."""
    while True:
        try:
            failed.add(channel.recv())
        except (EOFError, OSError):
            os._exit(1)
