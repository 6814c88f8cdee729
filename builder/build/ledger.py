"""Which shards of a set are done, and what they hold."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

from builder.build.leases import Leases
from builder.build.machine import n_cores
from builder.build.shards import Commit, is_done, read_commit, stored_name
from builder.build.work import WorkFolder
from builder.errors import OutputError, is_hopeless
from builder.files import sha256_file
from builder.layout import (
    RECIPE_FILE,
    STATISTICS_FILE,
    DataFile,
    Figures,
    read_recipe,
    read_statistics,
    shard_file,
)
from builder.pinned import PinnedRecipe
from builder.record import Plan, SplitPlan, Statistics
from builder.remote import Place
from builder.tables import FileFormat


@dataclass(frozen=True)
class FinishedSplit:
    """The finished shards of a split: their files, and what they hold.

    `stored` are paths, relative to the work folder's shards, or whole.
    """

    stored: tuple[str, ...]
    figures: Figures


class Ledger:
    """Which shards of a set are done; each one's file is hashed once.

    A byte a shard is kept, and nothing of what is in them. The shards of a finished set in OUT
    that this one extends are done; they are not made again.
    """

    def __init__(self, work: WorkFolder, pinned: PinnedRecipe, file_format: FileFormat) -> None:
        self.plan = Plan(pinned)
        self.file_format = file_format
        self._folder, self._out = work.shards, work.out
        self._fingerprints = [pinned.at(n).fingerprint for n in range(len(pinned.stages) + 1)]
        self._done = bytearray(self.plan.n_shards)
        self._earlier: dict[str, Figures] = {}
        held = read_recipe(work.out) if (work.out / RECIPE_FILE).is_file() else None
        if held is not None and pinned.holds(held):
            self._earlier = read_statistics(work.out, Plan(held))

    def _n_earlier(self, split: str) -> int:
        return len(self._earlier[split].shards) if split in self._earlier else 0

    def name(self, number: int) -> str:
        """Return the name of a shard by its number among all, without extension."""
        split, shard = self.plan.shard(number)
        return split.shard_name(shard)

    def rows(self, numbers: Iterable[int]) -> int:
        """Return how many records some shards have."""
        rows = 0
        for split, shard in map(self.plan.shard, numbers):
            start, stop = split.shard_range(shard)
            rows += stop - start
        return rows

    def add(self, number: int) -> None:
        """Take a shard for done that this build has just made."""
        self._done[number] = True

    def check(self, number: int) -> bool:
        """Whether a shard is committed for this set and unharmed on disk.

        Raises:
            OutputError: one of the finished set that this one extends is damaged.
        """
        if not self._done[number]:
            split, shard = self.plan.shard(number)
            if shard < self._n_earlier(split.name):
                self._check_earlier(self._earlier[split.name].shards[shard])
                self._done[number] = True
            else:
                self._done[number] = is_done(
                    self._folder,
                    split.shard_name(shard),
                    self.file_format,
                    self._fingerprints[split.stage(shard)],
                )
        return bool(self._done[number])

    def _check_earlier(self, stated: DataFile) -> None:
        path = self._out / stated.file
        try:
            unharmed = sha256_file(path) == stated.sha256
        except OSError:
            unharmed = False
        if not unharmed:
            raise OutputError(
                f"{path} is damaged or gone: its sha256 is not that of {STATISTICS_FILE}. Mend the "
                "set before extending it, for example from where it was published."
            )

    def missing(self, numbers: Iterable[int]) -> array[int]:
        """Return those of some shards that are not done."""
        missing, rest = array("q"), iter(numbers)
        with ThreadPoolExecutor(n_cores()) as pool:  # hashing leaves Python's lock alone
            while some := list(islice(rest, 1024)):
                checked = pool.map(self.check, some)
                missing.extend(n for n, done in zip(some, checked, strict=True) if not done)
        return missing

    def uncommitted(self) -> list[int]:
        """Return the shards without a commit record; nothing is said of the others' files."""
        made = {path.stem for path in self._folder.glob("[!.]*.json")}
        return [
            number
            for number in range(self.plan.n_shards)
            if self.name(number) not in made and not self._is_earlier(number)
        ]

    def is_committed(self, number: int) -> bool:
        """Whether a shard has a commit record; nothing is said of its file."""
        return self._is_earlier(number) or self._record(number).is_file()

    def discard_damaged(self, numbers: Iterable[int], leases: Leases) -> dict[int, str]:
        """Delete the commit records of shards that are not as they say, so that all see it.

        Under the lease of each, and looked at once more: another may be making it again. Return
        those that could not be deleted, each with the reason.
        """
        stuck = {}
        for number in numbers:
            if self._record(number).exists() and leases.take(self.name(number)):
                try:
                    if not self.check(number):
                        self._record(number).unlink(missing_ok=True)
                except OSError as error:
                    if is_hopeless(error):
                        raise
                    stuck[number] = f"{type(error).__name__}: {error}"
                finally:
                    leases.give_back(self.name(number))
        return stuck

    def _record(self, number: int) -> Place:
        return self._folder / f"{self.name(number)}.json"

    def _is_earlier(self, number: int) -> bool:
        split, shard = self.plan.shard(number)
        return shard < self._n_earlier(split.name)

    def finished(self) -> dict[str, FinishedSplit]:
        """Return all splits of a set whose shards are all done; reads each commit record once."""
        return {split.name: self._finished(split) for split in self.plan.splits.values()}

    def _finished(self, split: SplitPlan) -> FinishedSplit:
        statistics = Statistics.of(self.plan.pinned.recipe)
        stored, shards = [], []
        if earlier := self._earlier.get(split.name):
            statistics.merge(earlier.statistics)
            for shard, stated in enumerate(earlier.shards):
                stored.append(str(self._out / stated.file))
                shards.append(replace(stated, file=shard_file(split, shard, self.file_format)))
        for shard in range(len(shards), split.n_shards):
            commit = self._commit(split.shard_name(shard))
            statistics.merge(Statistics.from_json(commit.statistics))
            stored.append(stored_name(commit.shard, commit.sha256, self.file_format))
            shards.append(
                DataFile(
                    file=shard_file(split, shard, self.file_format),
                    rows=commit.rows,
                    size_bytes=commit.size_bytes,
                    sha256=commit.sha256,
                )
            )
        return FinishedSplit(tuple(stored), Figures(tuple(shards), statistics))

    def _commit(self, name: str) -> Commit:
        commit = read_commit(self._folder, name)
        if commit is None:
            raise OutputError(
                f"the commit record of {name} in {self._folder} is gone or damaged; run the same "
                "command again."
            )
        return commit
