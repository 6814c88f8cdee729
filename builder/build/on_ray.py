"""Workers on a Ray cluster: actors that run the same loop as local processes do.

An actor leases its shards itself and holds the sources and the depth model; no pixel passes
through Ray, for a shard is written where it is made, on storage that every node sees. This is why
it stands on Ray core: Ray Data schedules blocks of rows between operators, and here are neither. A
worker or node that dies is replaced by Ray (`max_restarts`). Its loop is started again from here:
to Ray every vain attempt to reach a node that has just died is one more failure of the task, so
that its `max_task_retries` are used up by a single death.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from builder import __version__
from builder.build.crew import Crew
from builder.build.leases import Leases
from builder.build.work import WorkFolder
from builder.build.worker import Event, Job, Worker, cause_of
from builder.depth import DepthModel, locate_model
from builder.errors import DepthModelError, FgbgError, OutputError
from builder.recipe import Recipe

_POLL_SECONDS = 1.0
_MAX_RESTARTS = 100  # of one worker: many lost nodes, but an end where none can load the model
_SEEN_WITHIN_SECONDS = 60  # network file systems show a file of another node late


def run_on_ray(crew: Crew, n_shards: int, workers: int | None) -> None:
    """Make shards on a Ray cluster until none is left to make.

    Args:
        n_shards: the most there may be.
        workers: actors; None is as many as the cluster's processors, or GPUs, have room for.

    Raises:
        FgbgError: there is no Ray or no cluster, a node cannot take part, or what no shard can
            be made without is missing or broken.
        OutputError: shards made on another node are not seen here.
    """
    with _connected(crew.job.options.address) as ray:
        resources = _resources(ray, crew.job)
        count = min(workers or _room(ray, resources), n_shards)
        _Actors(ray, crew, count, resources).run()
    _await_commits(crew)


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
    """The actor: runs the loop, and says meanwhile what it has done."""

    def __init__(self, job: Job, version: str) -> None:
        self._job, self._version = job, version
        self._news: list[Event] = []
        self._failed: set[int] = set()

    def run(self, name: str) -> list[Event]:
        """Make shards until none is left; return what was not reported yet.

        Raises:
            FgbgError: this node cannot take part, or no shard can be made.
        """
        job = self._check_node()
        folder = WorkFolder(job.out).path
        with Leases(folder, job.fingerprint, job.options.claim_expiry_s, name=name) as leases:
            Worker(job, leases, self._news.append, self._failed).run()
        return self.news()

    def news(self) -> list[Event]:
        """Return what happened since this was last asked."""
        found = self._news[:]
        del self._news[: len(found)]  # and not what was added since
        return found

    def skip(self, shards: list[int]) -> None:
        """Leave out shards that have failed elsewhere."""
        self._failed.update(shards)

    def _check_node(self) -> Job:
        """Return the job as this node is to do it.

        Raises:
            FgbgError: it cannot.
        """
        import ray

        try:
            if self._version != __version__:
                raise FgbgError(
                    f"it has fgbg-dataset {__version__}, the build was started with "
                    f"{self._version}; install the same on all nodes."
                )
            return replace(self._job, model=self._find_model(self._find_recipe()))
        except FgbgError as error:
            node = ray.util.get_node_ip_address()
            raise FgbgError(f"Ray node {node} cannot take part: {error}") from None

    def _find_recipe(self) -> Recipe:
        work = WorkFolder(self._job.out)
        held = work.held()
        if held is None or held.fingerprint != self._job.fingerprint:
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


class _Actors:
    """The actors of one build, by number, and the loops they run."""

    def __init__(
        self, ray: ModuleType, crew: Crew, count: int, resources: dict[str, float]
    ) -> None:
        job = crew.job
        if job.model:
            job = replace(job, model=replace(job.model, folder=job.model.folder.absolute()))
        maker: Any = ray.remote(
            **resources,
            max_restarts=_MAX_RESTARTS,
            concurrency_groups={"news": 1},  # a thread beside the one that makes shards
            scheduling_strategy="SPREAD",
        )(_Maker)
        self._ray, self._crew = ray, crew
        self._actors = [maker.remote(job, __version__) for _ in range(count)]
        self._names = [""] * count  # under which each holds leases
        self._running: dict[Any, int] = {}  # by the reference to the result
        self._asked: dict[Any, int] = {}
        self._skipped: set[int] = set()

    def run(self) -> None:
        """Have every actor run the loop, again where it dies, until one finds nothing left."""
        try:
            for number in range(len(self._actors)):
                self._start(number)
            while self._wait():
                pass
        finally:
            for actor, name in zip(self._actors, self._names, strict=True):
                self._ray.kill(actor)
                self._crew.leases.withdraw(name)

    def _start(self, number: int) -> None:
        self._names[number] = self._crew.leases.next_worker()
        self._running[self._actors[number].run.remote(self._names[number])] = number

    def _wait(self) -> bool:
        """Hear what is new; False at the end."""
        done, _ = self._ray.wait(list(self._running), timeout=_POLL_SECONDS)
        self._ask()
        for reference in done:
            number = self._running.pop(reference)
            try:
                events = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                cause = cause_of(error.cause, self._crew.job)
                raise FgbgError(f"a Ray worker cannot go on: {cause}.") from None
            except self._ray.exceptions.RayError:  # its process or node died
                self._crew.bury(self._names[number])
                if self._crew.gives_up(_MAX_RESTARTS):
                    return False
                time.sleep(_POLL_SECONDS)  # or all attempts are made before Ray knows of a death
                self._start(number)
            else:
                self._hear(number, events)
                return False
        return True

    def _ask(self) -> None:
        """Ask actors for news, and hear those that have answered since the last time."""
        asked = list(self._asked)
        heard = self._ray.wait(asked, num_returns=len(asked), timeout=0)[0] if asked else []
        for reference in heard:
            number = self._asked.pop(reference)
            with suppress(self._ray.exceptions.RayError):  # its process has died; ask the next
                self._hear(number, self._ray.get(reference))
        for number in set(self._running.values()) - set(self._asked.values()):
            ask = self._actors[number].news.options(concurrency_group="news")
            self._asked[ask.remote()] = number
        if fresh := set(self._crew.failed) - self._skipped:
            self._skipped |= fresh
            for actor in self._actors:
                actor.skip.options(concurrency_group="news").remote(sorted(fresh))

    def _hear(self, number: int, events: list[Event]) -> None:
        for event in events:
            self._crew.hear(self._names[number], event)


def _await_commits(crew: Crew) -> None:
    """Check that the shards made elsewhere are to be seen here.

    Raises:
        OutputError: they are not.
    """
    patience, work = time.monotonic() + _SEEN_WITHIN_SECONDS, WorkFolder(crew.job.out)
    for number in crew.made:
        # Without a recipe the work folder has been dropped, by a build that finished the set.
        while not crew.ledger.is_committed(number) and work.recipe.is_file():
            if time.monotonic() > patience:
                raise OutputError(
                    f"shard {crew.ledger.name(number)} was made on another Ray node and is not in "
                    f"{work.shards} here; OUT must be on storage that all nodes share."
                )
            time.sleep(_POLL_SECONDS)
