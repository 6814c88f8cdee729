"""worker: one loop; what others hold is left alone, and what killed processes is tried last."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from builder.build.crew import Crew
from builder.build.leases import Leases, Owner
from builder.build.ledger import Ledger
from builder.build.local import run_local
from builder.build.options import BuildOptions
from builder.build.work import WorkFolder
from builder.build.worker import Event, Job, Worker
from fgbg_dataset import FgbgDataset

RECIPE: dict[str, Any] = {
    "placements": 1,
    "size": 32,
    "foreground_size": 16,
    "holdout": 0.0,
    "depth_model": "none",
    "shard_records": 5,
}  # 8 shards


class Begun:
    """A build that has begun, with all that a worker of it needs."""

    def __init__(self, dataset: FgbgDataset, out: Path, leases: Leases) -> None:
        self.leases, self.work = leases, WorkFolder(out)
        pinned = dataset.project.pinned
        self.ledger = Ledger(self.work, pinned, "parquet")
        self.job = Job(out, pinned.fingerprint, "parquet", None, BuildOptions(progress=False))
        self.events: list[Event] = []

    def run(self) -> None:
        Worker(self.job, self.leases, self.events.append, set()).run()

    def plant(self, number: int, deaths: int) -> None:
        """Leave leases of processes that died on a shard."""
        for death in range(deaths):
            path = self.work.path / "claims" / f"{self.ledger.name(number)}.{death}"
            path.write_text(json.dumps(asdict(dead_owner())))

    def made(self) -> list[int]:
        return [event.number for event in self.events if event.kind == "made"]


def dead_owner() -> Owner:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    process.communicate(b"\n")
    return replace(Owner.here("f" * 64), pid=process.pid, started=stat[19])


@pytest.fixture
def begun(sources: tuple[Path, Path], tmp_path: Path) -> Iterator[Begun]:
    dataset, work = FgbgDataset(*sources, **RECIPE), WorkFolder(tmp_path / "set")
    project = dataset.prepare(work.out)
    with work.entered(project.pinned.fingerprint, 60) as leases:
        work.begin(project, leases)
        yield Begun(dataset, work.out, leases)


def test_a_worker_makes_every_shard_and_gives_all_leases_back(begun: Begun) -> None:
    begun.run()
    assert sorted(begun.made()) == list(range(8))
    assert sum(event.number for event in begun.events if event.kind == "rows") == 40
    assert list((begun.work.path / "claims").iterdir()) == []
    assert begun.ledger.uncommitted() == []


def test_a_shard_on_which_a_process_died_comes_last_and_after_three_never(begun: Begun) -> None:
    begun.plant(2, 1)
    begun.plant(5, 2)
    begun.plant(6, 3)
    begun.run()
    assert sorted(begun.made()[:5]) == [0, 1, 3, 4, 7]
    assert begun.made()[5:] == [2, 5]
    (failed,) = [event for event in begun.events if event.kind == "failed"]
    cause = "its process died 3 times (killed, or out of memory)"
    assert failed == Event("failed", 6, cause)
    assert begun.ledger.uncommitted() == [6]


def test_a_suspect_waits_until_this_machine_does_nothing_else(begun: Begun) -> None:
    """Memory may have been short; another machine's is not."""
    begun.plant(3, 1)
    with Leases(begun.work.path, "f" * 64) as other:
        assert other.take(begun.ledger.name(4))
        worker = Worker(begun.job, begun.leases, begun.events.append, set())
        left = [3, 4]
        assert worker._pass(left) is False
        assert begun.events == [Event("waiting", 1, f"process {other.owner.pid} on "
                                      f"{other.owner.host}")]  # fmt: skip
        other.give_back(begun.ledger.name(4))
        other.owner = replace(other.owner, machine="elsewhere")
        other.beat()
        assert other.take(begun.ledger.name(4))
        assert worker._pass(left) is True
        assert begun.made() == [3]


def test_a_lease_that_was_withdrawn_is_no_death_and_one_that_was_buried_is(begun: Begun) -> None:
    leases, name = begun.leases, begun.ledger.name(0)
    worker = Leases(begun.work.path, "f" * 64, name=leases.next_worker())
    worker.beat()
    assert worker.take(name)
    assert leases.look(name).held
    leases.withdraw(worker.owner.build)
    assert (leases.look(name).held, leases.look(name).deaths) == (False, 0)
    worker.beat()
    assert worker.take(name)
    leases.bury(worker.owner.build)
    assert (leases.look(name).held, leases.look(name).deaths) == (False, 1)


def test_workers_that_die_before_they_make_anything_are_not_started_for_ever(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a library ends the process when it is loaded."""
    monkeypatch.setattr("builder.build.local._PROGRAM", "import os; os._exit(3)")
    crew = Crew(begun.job, begun.leases, begun.ledger, lambda rows: None)
    run_local(crew, 8, 2)
    causes = crew.failures(list(range(8)))
    assert set(causes) == set(range(8))
    assert all("--workers 1 (num_proc=1) shows why" in cause for cause in causes.values())
