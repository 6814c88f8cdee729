"""The loop that makes shards: lease one that is not done, make it, commit it, give the lease back.

Every process that makes shards runs this loop and nothing else: the build itself, the processes it
starts, the actors of a Ray cluster, each task of a job array, the same command in another
terminal. They agree through leases alone, so it does not matter how many there are, who started
them, or which of them dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from builder.build.leases import Leases
from builder.build.ledger import Ledger
from builder.build.options import BuildOptions
from builder.build.shards import write_shard
from builder.build.work import WorkFolder
from builder.depth import DepthEstimator, DepthModel
from builder.errors import FgbgError, OutputError, is_hopeless
from builder.layout import read_recipe
from builder.recipe import Recipe
from builder.record import Renderer
from builder.remote import Place
from builder.sources import SourceBank, read_sources
from builder.tables import FileFormat
from builder.untrusted import printable

MAX_DEATHS = 3  # of processes on one shard, before it is given up
_POLL_S = (0.05, 1.0)  # first and longest wait for shards that others are making


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a set."""

    out: Place
    fingerprint: str
    file_format: FileFormat
    model: DepthModel | None
    options: BuildOptions


@dataclass(frozen=True)
class Event:
    """What a worker reports: `number` rows or bytes, or a shard by its number, with a text."""

    kind: Literal["rows", "made", "failed", "waiting", "peak", "ended"]
    number: int = 0
    text: str = ""


def load_estimator(
    model: DepthModel | None, recipe: Recipe, options: BuildOptions
) -> DepthEstimator | None:
    """Load a depth model as a build's options say; None where none is needed.

    Raises:
        DepthModelError: the model cannot be loaded, or not be run so.
    """
    if model is None or recipe.composes_depth:
        return None
    return DepthEstimator(
        model,
        recipe,
        device=options.device,
        backend=options.backend,
        batch_size=options.batch_size,
    )


class Worker:
    """Makes shards of one set until none is left; holds the sources and the depth model.

    Args:
        leases: of this process, entered.
        report: called with each event, in the thread that calls `run`.
        failed: numbers of shards that failed in this build; grows here, and others may add theirs.
    """

    def __init__(
        self, job: Job, leases: Leases, report: Callable[[Event], object], failed: set[int]
    ) -> None:
        self._job, self._leases, self._report, self._failed = job, leases, report, failed
        self._work = WorkFolder(job.out)
        self._pinned = read_recipe(self._work.path)
        self._ledger = Ledger(self._work, self._pinned, job.file_format)
        self._renderer: Renderer | None = None

    def run(self) -> None:
        """Make shards until all are committed, have failed, or have killed too many processes.

        Raises:
            FgbgError: what no shard can be made without is missing or broken.
            OSError: the work folder cannot be read; another build may have finished the set.
        """
        wait_s = _POLL_S[0]
        while left := self._left():
            if self._pass(left):
                wait_s = _POLL_S[0]
            else:
                # Others are at all that is left. One of them may die, so this is not the end.
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _POLL_S[1])

    def _left(self) -> list[int]:
        """Return the shards to be made; none once another build has dropped the work folder."""
        if not self._work.recipe.is_file():
            return []
        return [n for n in self._ledger.uncommitted() if n not in self._failed]

    def _pass(self, left: list[int]) -> bool:
        """Make whatever can be leased; say whether anything was."""
        taken = self._leases.taken()
        # Workers begin at different places, or all would try to lease the same shards at once.
        place = int(self._leases.owner.build[::-1], 16) % len(left)
        fresh = [n for n in left[place:] + left[:place] if self._ledger.name(n) not in taken]
        made = [number for number in fresh if self._attempt(number)]
        if made:
            return True
        return self._try_suspect([n for n in left if self._ledger.name(n) in taken])

    def _try_suspect(self, numbers: list[int]) -> bool:
        """Make one shard on which a process died, alone on this machine; say whether it was made.

        Such shards come last. Memory may have been short, and then each is most likely to be made
        while no other is; and if one kills its process again, it delays nothing else.
        """
        suspects, holders = [], []
        for number in numbers:
            lease = self._leases.look(self._ledger.name(number))
            if lease.held:
                holders.append(lease.owner)
            elif lease.deaths >= MAX_DEATHS:
                self._fail(number, died(lease.deaths))
            elif lease.deaths:
                suspects.append(number)
        if not any(owner is not None and owner.is_here() for owner in holders):
            for number in suspects:
                if self._attempt(number):
                    return True
        mine = self._leases.owner
        if foreign := [o for o in holders if o is None or not o.is_of_build(mine)]:
            first = foreign[0]
            who = f"process {first.pid} on {printable(first.host)}" if first else "another build"
            self._report(Event("waiting", len(foreign), who))
        return False

    def _attempt(self, number: int) -> bool:
        """Lease and make a shard; False where another has it, or has made it."""
        if number in self._failed or not self._leases.take(self._ledger.name(number)):
            return False
        try:
            # It may have been committed, or all of the set finished, just before.
            if self._ledger.is_committed(number) or not self._work.recipe.is_file():
                return False
            self._make(number)
            return True
        finally:
            self._leases.give_back(self._ledger.name(number))

    def _make(self, number: int) -> None:
        made = 0

        def count(rows: int) -> None:
            nonlocal made
            made += rows
            self._report(Event("rows", rows))

        try:
            self._write(number, count)
        except Exception as error:  # noqa: BLE001 - one bad shard must not end the others
            self._report(Event("rows", -made))
            self._fail(number, cause_of(error, self._job))
        else:
            self._report(Event("made", number))

    def _write(self, number: int, progress: Callable[[int], object]) -> None:
        split, shard = self._ledger.plan.shard(number)
        # With the first shard and not before: a process that dies while it loads has a lease then,
        # and so its death is counted.
        self._renderer = renderer = self._renderer or self._load()
        records = renderer.records(split.name, *split.shard_range(shard))
        pinned, name = self._pinned.at(split.stage(shard)), split.shard_name(shard)
        write_shard(self._work.shards, name, self._job.file_format, pinned, records, progress)

    def _load(self) -> Renderer:
        foregrounds, backgrounds = (
            read_sources(self._work.sources(kind, self._pinned.fingerprint))
            for kind in ("foreground", "background")
        )
        estimator = load_estimator(self._job.model, self._pinned.recipe, self._job.options)
        return Renderer(self._ledger.plan, SourceBank(foregrounds, backgrounds), estimator)

    def _fail(self, number: int, cause: str) -> None:
        self._failed.add(number)
        self._report(Event("failed", number, cause))


def died(deaths: int) -> str:
    """Return what is said of a shard on which processes died."""
    return f"its process died {deaths} times (killed, or out of memory)"


def cause_of(error: BaseException, job: Job) -> str:
    """Return why a shard failed; raise when every other one would fail too."""
    if isinstance(error, FgbgError):
        raise error
    if isinstance(error, OSError) and is_hopeless(error):
        raise OutputError.of(error, job.out) from error
    return f"{type(error).__name__}: {error}"
