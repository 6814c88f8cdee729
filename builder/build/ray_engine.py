"""Make all shards of a set on a Ray cluster: `map_shards` with the signature of the local one.

Actors hold the sources and the depth model and are given shard ids; no pixel passes through Ray,
for a shard is written where it is made, on storage that every node sees. This is why it stands
on Ray core: Ray Data schedules blocks of rows between operators, and here are neither. A worker
or node that dies is replaced by Ray (`max_restarts`). The shard it was at is given out again from
here: to Ray every vain attempt to reach a node that has just died is one more failure of the
task, so that its `max_task_retries` are used up by a single death.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from builder import __version__
from builder.build.engine import MAX_DEATHS, Job, Progress, Task, Worker, cause_of
from builder.build.shards import read_commit
from builder.build.work import WorkFolder
from builder.depth import DepthModel, locate_model
from builder.errors import DepthModelError, FgbgError, OutputError
from builder.layout import read_recipe
from builder.recipe import Recipe
from builder.record import Plan

_POLL_SECONDS = 1.0
_MAX_RESTARTS = 100  # of one worker: many lost nodes, but an end where none can load the model
_SEEN_WITHIN_SECONDS = 60  # network file systems show a file of another node late


def map_shards_on_ray(
    job: Job, tasks: Iterator[Task], n_tasks: int, workers: int | None, progress: Progress
) -> Iterator[tuple[Task, str | None]]:
    """Make shards on a Ray cluster; yield each with None, or with the cause of its failure.

    Args:
        tasks: each is taken when there is an actor for it.
        n_tasks: the most there may be.
        workers: actors; None is as many as the cluster's processors, or GPUs, have room for.

    Raises:
        FgbgError: there is no Ray or no cluster, a node cannot take part, or what no shard can
            be made without is missing or broken.
    """
    with _connected(job.options.address) as ray:
        resources = _resources(ray, job)
        count = min(workers or _room(ray, resources), n_tasks)
        yield from _Crew(ray, job, count, resources, progress).run(tasks)


@contextmanager
def _connected(address: str | None) -> Iterator[ModuleType]:
    """Connect to the cluster at an address; to the caller's when he has connected already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # or a dead cluster is tried for 14 min
    try:
        import ray
    except ImportError:
        raise FgbgError(
            "engine 'ray' needs Ray; run `pip install fgbg-dataset[ray]`, or build without "
            "--engine ray."
        ) from None
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(
                # Not Ray's own default, which is the last cluster started here, though it be dead.
                address or os.environ.get("RAY_ADDRESS") or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FgbgError(
                f"no Ray cluster can be used at {address or 'this machine'}: {error}. Start one "
                "with `ray start --head`, or leave --address out to use this machine alone."
            ) from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _resources(ray: ModuleType, job: Job) -> dict[str, float]:
    """Return what one worker takes of a node, as options of an actor."""
    gpus = job.options.num_gpus_per_worker
    if gpus is None:
        wanted = job.model is not None and job.options.device in ("auto", "cuda")
        gpus = 1 if wanted and ray.cluster_resources().get("GPU") else 0
    return {"num_cpus": 1, "num_gpus": gpus}


def _room(ray: ModuleType, resources: dict[str, float]) -> int:
    """Return how many workers the nodes have room for.

    Raises:
        FgbgError: there is no room for any.
    """
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            slots = [int(has.get("CPU", 0))]
            if resources["num_gpus"]:
                slots.append(int(has.get("GPU", 0) / resources["num_gpus"] + 1e-9))
            room += min(slots)
    if not room:
        raise FgbgError(
            f"no node of the Ray cluster has 1 processor and {resources['num_gpus']:g} GPUs for a "
            "worker; start such a node, lower --num-gpus-per-worker, or say with --workers how "
            "many an autoscaler shall make room for."
        )
    return room


class _Maker:
    """The actor: makes shards one after another and tells meanwhile how far it is."""

    def __init__(self, job: Job, fingerprint: str, version: str) -> None:
        self._job, self._fingerprint, self._version = job, fingerprint, version
        self._worker: Worker | None = None
        self._state: tuple[Task | None, int] = None, 0

    def load(self) -> None:
        """Load sources and model, before a shard is given out.

        Raises:
            FgbgError: this node cannot take part.
        """
        import ray

        try:
            if self._version != __version__:
                raise FgbgError(
                    f"it has fgbg-dataset {__version__}, the build was started with "
                    f"{self._version}; install the same on all nodes."
                )
            self._worker = Worker(replace(self._job, model=self._find_model(self._find_recipe())))
        except FgbgError as error:
            node = ray.util.get_node_ip_address()
            raise FgbgError(f"Ray node {node} cannot take part: {error}") from None

    def _find_recipe(self) -> Recipe:
        work = WorkFolder(self._job.out)
        held = work.held()
        if held is None or held.fingerprint != self._fingerprint:
            raise OutputError(
                f"it sees {'another build' if held else 'nothing'} in {work.path}; OUT must be on "
                "storage that all nodes share."
            )
        return held.recipe

    def _find_model(self, recipe: Recipe) -> DepthModel | None:
        """Return the depth model as found on this node: on shared storage, or of its own."""
        model = self._job.model
        if model is None:
            return None
        name = str(model.folder) if model.folder.is_dir() else recipe.depth_model
        _, found = locate_model(replace(recipe, depth_model=name))
        if found is None or found.info.weights_sha256 != model.info.weights_sha256:
            raise DepthModelError(f"depth model {name!r} has other weights there.")
        return replace(model, folder=found.folder)

    def make(self, task: Task) -> int:
        """Make one shard and commit it; return its rows."""
        self._state = task, 0
        if self._worker is None:  # the process that had loaded died before this shard came
            self.load()
        assert self._worker is not None
        return self._worker.make(task, self._count)

    def _count(self, rows: int) -> None:
        self._state = self._state[0], self._state[1] + rows

    def state(self) -> tuple[Task | None, int]:
        """Return the shard under way and its rows so far."""
        return self._state


class _Crew:
    """The actors of one build, by number, and what each is at."""

    def __init__(
        self,
        ray: ModuleType,
        job: Job,
        count: int,
        resources: dict[str, float],
        progress: Progress,
    ) -> None:
        work = WorkFolder(job.out)
        pinned = read_recipe(work.path)
        if job.model:
            job = replace(job, model=replace(job.model, folder=job.model.folder.absolute()))
        maker: Any = ray.remote(
            **resources,
            max_restarts=_MAX_RESTARTS,
            concurrency_groups={"state": 1},  # a thread beside the one that makes shards
            scheduling_strategy="SPREAD",
        )(_Maker)
        self._ray, self._job, self._work, self._plan = ray, job, work, Plan(pinned)
        self._actors = [maker.remote(job, pinned.fingerprint, __version__) for _ in range(count)]
        self._loading: dict[Any, int] = {}  # by the reference to the result, as all these
        self._running: dict[Any, tuple[int, Task]] = {}
        self._asked: dict[Any, int] = {}
        self._again: list[Task] = []
        self._deaths: dict[Task, int] = defaultdict(int)
        self._states: dict[int, tuple[Task | None, int]] = {}
        self._progress, self._made, self._told, self._more = progress, 0, 0, True

    def run(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, str | None]]:
        """Make shards, each by the first actor that is free."""
        for number in range(len(self._actors)):
            self._load(number)
        try:
            # Those that still load when a free one finds nothing to do are not waited for.
            while self._running or self._again or self._more:
                references = [*self._loading, *self._running]
                done, _ = self._ray.wait(references, timeout=_POLL_SECONDS)
                for reference in done:
                    if reference in self._loading:
                        self._loaded(reference)
                        self._next(self._loading.pop(reference), tasks)
                    else:
                        yield from self._finished(reference, tasks)
                self._tell()
        finally:
            for actor in self._actors:
                self._ray.kill(actor)

    def _load(self, number: int) -> None:
        """Wait for an actor; while there is no room for it a shard would only wait with it."""
        call = self._actors[number].load.options(max_task_retries=-1)
        self._loading[call.remote()] = number

    def _loaded(self, reference: Any) -> None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = cause_of(error.cause, self._job)
            raise FgbgError(f"a Ray worker cannot start: {cause}.") from None
        except self._ray.exceptions.RayError as error:
            raise FgbgError(f"a Ray worker cannot start: {error}") from None

    def _next(self, number: int, tasks: Iterator[Task]) -> None:
        """Give an actor its next shard, or its place to one that waits for a place."""
        task = self._again.pop() if self._again else next(tasks, None)
        if task is None:
            self._more = False
            self._ray.kill(self._actors[number])
        else:
            self._running[self._actors[number].make.remote(task)] = number, task

    def _finished(self, reference: Any, tasks: Iterator[Task]) -> Iterator[tuple[Task, str | None]]:
        number, task = self._running.pop(reference)
        cause = None
        try:
            self._made += self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = cause_of(error.cause, self._job)
        except self._ray.exceptions.RayError:  # its process or node died
            self._load(number)
            self._deaths[task] += 1
            if self._deaths[task] < MAX_DEATHS:
                self._again.append(task)
            else:
                yield task, f"its process died {MAX_DEATHS} times (killed, or out of memory)"
            return
        self._next(number, tasks)
        if cause is None:
            self._await_commit(task)
        yield task, cause

    def _await_commit(self, task: Task) -> None:
        """Check that a shard made elsewhere is to be seen here.

        Raises:
            OutputError: it is not.
        """
        name = self._plan.splits[task[0]].shard_name(task[1])
        patience = time.monotonic() + _SEEN_WITHIN_SECONDS
        while read_commit(self._work.shards, name) is None:
            if time.monotonic() > patience:
                raise OutputError(
                    f"shard {name} was made on another Ray node and is not in {self._work.shards} "
                    "here; OUT must be on storage that all nodes share."
                )
            time.sleep(_POLL_SECONDS)

    def _tell(self) -> None:
        """Report the rows made so far, of the shards under way as many as was last heard of."""
        asked = list(self._asked)
        heard = self._ray.wait(asked, num_returns=len(asked), timeout=0)[0] if asked else []
        for reference in heard:
            number = self._asked.pop(reference)
            with suppress(self._ray.exceptions.RayError):  # its process has died; ask the next
                self._states[number] = self._ray.get(reference)
        rows = self._made
        for number, task in self._running.values():
            at, made = self._states.get(number, (None, 0))
            rows += made if at == task else 0
            if number not in self._asked.values():
                ask = self._actors[number].state.options(concurrency_group="state")
                self._asked[ask.remote()] = number
        self._progress(rows - self._told)
        self._told = rows
