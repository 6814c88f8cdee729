"""Make the shards of a set over local processes, beside other builds of it; report what failed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Literal

from tqdm import tqdm

from builder.build.leases import Owner, Presence
from builder.build.machine import (
    ShardRange,
    available_bytes,
    gpu_of_worker,
    n_cores,
    peak_bytes,
    workers_that_fit,
)
from builder.build.project import Project
from builder.build.shards import write_shard
from builder.build.work import Ledger, WorkFolder
from builder.depth import Backend, DepthEstimator, DepthModel, Device, pick_device
from builder.errors import BuildFailedError, FgbgError, OutputError, is_hopeless
from builder.layout import read_recipe
from builder.recipe import Recipe
from builder.record import Plan, Renderer
from builder.remote import Place
from builder.sources import SourceBank, read_sources
from builder.tables import FileFormat
from builder.untrusted import printable

MAX_DEATHS = 3
POLL_SECONDS = 0.2
_AMPLE_BYTES = 6 * 2**30  # more than a worker with a large depth model takes on a processor

EngineName = Literal["local", "ray"]
ENGINES: tuple[EngineName, ...] = ("local", "ray")

Task = tuple[str, int]  # split, shard
Progress = Callable[[int], object]


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs; nothing here is in the recipe.

    None of it changes a record, but for the rounding of depth by `device`, `backend` and
    `batch_size`, inside what the recipe's precision leaves open. `batch_size` None is 2 on a
    processor and 32 on a GPU; it is halved where memory does not reach. `license` is the Hub's
    identifier of the terms the set is given out under, for its card. `engine` is what runs the
    workers: processes of this machine, or a Ray cluster, at `address` or of this machine alone;
    `num_gpus_per_worker` None is 1 where there are GPUs and a depth model. `resume` is the command
    told to a user when a build fails. `shard_range` leaves the rest of the shards to other builds
    of the same set. `claim_expiry_s` is how long, in seconds, one of them may be silent before its
    shards are taken over.
    """

    device: Device = "auto"
    backend: Backend = "auto"
    batch_size: int | None = None
    progress: bool = True
    license: str | None = None
    engine: EngineName = "local"
    address: str | None = None
    num_gpus_per_worker: float | None = None
    resume: str = "call download_and_prepare again with the same arguments"
    shard_range: ShardRange | None = None
    claim_expiry_s: float = 60.0


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a set."""

    out: Place
    file_format: FileFormat
    model: DepthModel | None
    options: BuildOptions


# Makes shards; yields each with None, or with the cause of its failure.
Engine = Callable[
    [Job, Iterator[Task], int, "int | None", Progress], Iterator[tuple[Task, "str | None"]]
]


def load_estimator(
    model: DepthModel | None, recipe: Recipe, options: BuildOptions
) -> DepthEstimator | None:
    """Load a depth model as a build's options say; None where there is no depth.

    Raises:
        DepthModelError: the model cannot be loaded, or not be run so.
    """
    if model is None:
        return None
    return DepthEstimator(
        model,
        recipe,
        device=options.device,
        backend=options.backend,
        batch_size=options.batch_size,
    )


class Worker:
    """Makes shards of one set; holds the sources and the depth model."""

    def __init__(self, job: Job) -> None:
        work = WorkFolder(job.out)
        self._job, self._folder, self._pinned = job, work.shards, read_recipe(work.path)
        self._plan = Plan(self._pinned)
        bank = SourceBank(
            *(
                read_sources(work.sources(kind, self._pinned.fingerprint))
                for kind in ("foreground", "background")
            )
        )
        estimator = load_estimator(job.model, self._pinned.recipe, job.options)
        self._renderer = Renderer(self._plan, bank, estimator)

    def make(self, task: Task, progress: Progress) -> int:
        """Make one shard and commit it; return its rows."""
        split, shard = task
        plan = self._plan.splits[split]
        records = self._renderer.records(split, *plan.shard_range(shard))
        name, file_format = plan.shard_name(shard), self._job.file_format
        pinned = self._pinned.at(plan.stage(shard))
        return write_shard(self._folder, name, file_format, pinned, records, progress).rows


def build_shards(
    project: Project,
    work: WorkFolder,
    presence: Presence,
    ledger: Ledger,
    workers: int | None,
    options: BuildOptions,
    engine: Engine,
) -> None:
    """Make every shard that is not done yet, of all or of this build's range.

    A shard that another build is making is left to it, and waited for.

    Args:
        workers: as for the engine.
        engine: makes the shards.

    Raises:
        BuildFailedError: some shards failed; the others are done and kept.
        OutputError: the output cannot be written.
    """
    plan, chosen = ledger.plan, options.shard_range
    numbers = chosen.shards(plan.n_shards) if chosen else range(plan.n_shards)
    job = Job(work.out, ledger.file_format, project.model, options)
    total, missing = ledger.rows(numbers), ledger.missing(numbers)
    failed: dict[int, str] = {}
    told = False
    with tqdm(
        total=total,
        initial=total - ledger.rows(missing),
        unit=" records",
        desc="records",
        disable=None if options.progress else True,
    ) as bar:
        while missing:
            tasks = _claimed(missing, presence, ledger)
            if (first := next(tasks, None)) is None:  # others are at all of them
                if not told and options.progress:
                    _tell_wait(len(missing), presence.holder(ledger.name(missing[0])))
                    told = True
                time.sleep(POLL_SECONDS)
            else:
                tasks = chain([first], tasks)
                for (split, shard), cause in engine(job, tasks, len(missing), workers, bar.update):
                    number = plan.shard_number(split, shard)
                    presence.release(ledger.name(number))
                    if cause is None:
                        ledger.add(number)
                    else:
                        failed[number] = cause
            missing = ledger.missing(number for number in missing if number not in failed)
            bar.update(total - ledger.rows(missing) - ledger.rows(failed) - bar.n)
    if failed:
        causes = {ledger.name(number): cause for number, cause in failed.items()}
        raise BuildFailedError(causes, len(numbers) - len(failed), options.resume)


def _tell_wait(n_missing: int, owner: Owner | None) -> None:
    who = f"process {owner.pid} on {printable(owner.host)}" if owner else "another build"
    tqdm.write(f"Waiting for {n_missing} shards that {who}, or others, make.", file=sys.stderr)


def _claimed(numbers: Iterable[int], presence: Presence, ledger: Ledger) -> Iterator[Task]:
    """Give out, when the next is asked for, the shards that no other build has or has made."""
    for number in numbers:
        name = ledger.name(number)
        if not presence.take(name):
            continue
        if ledger.check(number):  # made by another since it was last looked at
            presence.release(name)
            continue
        split, shard = ledger.plan.shard(number)
        yield split.name, shard


def default_workers(model: DepthModel | None, device: Device) -> int:
    """Return how many processes a build uses by itself: one a core or, with depth, one a GPU."""
    return n_gpus(model, device) or n_cores()


def n_gpus(model: DepthModel | None, device: Device) -> int:
    """Return how many GPUs a build's workers share; 0 where depth is none or a processor's."""
    if model is None or (chosen := pick_device(device)) == "cpu":
        return 0
    import torch

    return torch.cuda.device_count() if chosen == "cuda" else 1


def map_shards(
    job: Job, tasks: Iterator[Task], n_tasks: int, workers: int | None, progress: Progress
) -> Iterator[tuple[Task, str | None]]:
    """Make shards here; yield each with None, or with the cause of its failure.

    Args:
        n_tasks: the most there may be.
        workers: processes; 1 works in this process, None is one a core, or one a GPU, as far as
            memory reaches.

    Raises:
        FgbgError: what no shard can be made without is missing or broken.
    """
    room_bytes = None if workers else available_bytes()
    workers = min(workers or default_workers(job.model, job.options.device), n_tasks)
    if workers == 1:
        yield from _map_here(job, tasks, progress)
    else:
        yield from _Pool(job, workers, progress, room_bytes).run(tasks)


def _map_here(
    job: Job, tasks: Iterator[Task], progress: Progress
) -> Iterator[tuple[Task, str | None]]:
    worker = Worker(job)
    for task in tasks:
        try:
            worker.make(task, progress)
        except Exception as error:  # noqa: BLE001 - one bad shard must not end the others
            yield task, cause_of(error, job)
        else:
            yield task, None


def cause_of(error: BaseException, job: Job) -> str:
    """Return why a shard failed; raise when every other one would fail too."""
    if isinstance(error, FgbgError):
        raise error
    if isinstance(error, OSError) and is_hopeless(error):
        raise OutputError.of(error, job.out) from error
    return f"{type(error).__name__}: {error}"


class _Pool:
    """Spawned processes that make shards; a process that dies is replaced."""

    def __init__(
        self, job: Job, workers: int, progress: Progress, room_bytes: int | None = None
    ) -> None:
        self._job, self._workers, self._progress = job, workers, progress
        self._spawn = multiprocessing.get_context("spawn")
        self._records, self._peak = self._spawn.Value("q", 0), self._spawn.Value("q", 0)
        self._n_gpus = n_gpus(job.model, job.options.device)
        # Where memory may not reach for all, one is measured before the others start.
        self._room_bytes = room_bytes
        self._allowed = workers_that_fit(workers, room_bytes, _AMPLE_BYTES)
        if self._allowed < workers:
            self._allowed = 1
        self._told = 0
        self._again: deque[Task] = deque()
        self._deaths: dict[Task, int] = defaultdict(int)

    def run(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, str | None]]:
        self._tasks = tasks
        died = True
        while died:
            died = yield from self._run_until_death()

    def _next(self, others_run: bool) -> Task | None:
        """Return the next shard; one during which a process died comes last, and alone.

        So it is certain that it was the one when it happens again.
        """
        if (task := next(self._tasks, None)) is not None:
            return task
        return self._again.popleft() if self._again and not others_run else None

    def _run_until_death(self) -> Generator[tuple[Task, str | None], None, bool]:
        """Make shards until a process dies (True) or all are made (False)."""
        # No more tasks than workers are given out, so those given out when a process dies are
        # the ones that may have killed it.
        running: dict[Future[int], Task] = {}
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            self._workers,
            self._spawn,
            _start_worker,
            (self._job, self._records, self._peak, self._spawn.Value("q", 0), self._n_gpus),
        )
        try:
            while True:
                while len(running) < self._allowed:
                    if (task := self._next(bool(running))) is None:
                        break
                    try:
                        with _undisturbed():
                            running[pool.submit(_make, task)] = task
                    except BrokenProcessPool:  # a process died since the last look
                        self._tasks = chain([task], self._tasks)
                        if not running:  # it was an idle one: nothing to bury
                            return True
                        break
                if not running:
                    return False
                done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                self._tell()
                for future in done:
                    task = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        yield from self._bury([task, *running.values()])
                        return True
                    self._allow_more()
                    yield task, cause_of(error, self._job) if error else None
        except BaseException:
            # Or leaving would wait until the shards under way are finished.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _allow_more(self) -> None:
        """Start as many workers as fit, once it is known what one needs."""
        if self._allowed < self._workers and self._peak.value:
            self._allowed = workers_that_fit(self._workers, self._room_bytes, self._peak.value)
            if self._allowed < self._workers and self._job.options.progress:
                need, room = self._peak.value / 1e9, (self._room_bytes or 0) / 1e9
                tqdm.write(
                    f"{self._allowed} of {self._workers} processes: one takes {need:.2g} GB, and "
                    f"{room:.2g} GB of memory were free.",
                    file=sys.stderr,
                )
            self._workers = self._allowed

    def _bury(self, tasks: list[Task]) -> Iterator[tuple[Task, str | None]]:
        for task in tasks:
            self._deaths[task] += 1
            if self._deaths[task] < MAX_DEATHS:
                self._again.append(task)
            else:
                yield task, f"its process died {MAX_DEATHS} times (killed, or out of memory)"

    def _tell(self) -> None:
        records = self._records.value
        self._progress(records - self._told)
        self._told = records


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM, and keep Ctrl-C from processes started meanwhile.

    An exception amid the start of a process leaves it without its work, of which it would complain
    below all that is told. And until it has set itself up, Ctrl-C would end it with a traceback.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one is interrupted
        for number in (signal.SIGINT, signal.SIGTERM):
            # None is a handler that is not Python's, and could not be put back.
            if (handler := signal.getsignal(number)) is not None:
                before[number] = handler
                signal.signal(number, lambda sent, _frame: came.append(sent))
    has_mask = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if has_mask else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for caught, handler in before.items():
            signal.signal(caught, handler)
        for caught in came:
            signal.raise_signal(caught)


_state: dict[str, Any] = {}


def _start_worker(job: Job, records: Any, peak: Any, started: Any, gpus: int) -> None:
    """Set a worker process up: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpus > 1:
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(number, visible, gpus)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _state.update(job=job, records=records, peak=peak)


def _end_with(sentinel: int) -> None:
    wait_for_any([sentinel])
    os._exit(1)


def _make(task: Task) -> int:
    # Loaded with the first shard and not on start, where a failure could not be told.
    if "worker" not in _state:
        _state["worker"] = Worker(_state["job"])
    made = 0

    def count(rows: int) -> None:
        nonlocal made
        made += rows
        with _state["records"].get_lock():
            _state["records"].value += rows

    try:
        rows = int(_state["worker"].make(task, count))
        with _state["peak"].get_lock():
            _state["peak"].value = max(_state["peak"].value, peak_bytes())
        return rows
    except BaseException:
        count(-made)
        raise
