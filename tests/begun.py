"""Builds that were begun and not finished, as a kill leaves them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from builder.build.ledger import Ledger
from builder.build.options import BuildOptions
from builder.build.work import WorkFolder
from builder.build.worker import Event, Job, Worker
from builder.remote import Place
from fgbg_dataset import FgbgDataset

# A small set, as keywords and as flags.
RECIPE: dict[str, Any] = {
    "placements": 1,
    "size": 32,
    "foreground_size": 16,
    "depth_model": "none",
    "shard_records": 20,
    "holdout": 0.0,
}
FLAGS = (
    *("--placements", "1", "--size", "32", "--foreground-size", "16", "--depth-model", "none"),
    *("--shard-records", "20", "--holdout", "0", "--workers", "1", "-q"),
)


class _Enough(Exception):
    """As many shards are there as wanted."""


def begin(dataset: FgbgDataset, out: Place, shards: int) -> WorkFolder:
    """Make some more shards of a set, or all of them, and leave them in its work folder."""
    project, work = dataset.prepare(out), WorkFolder(out.absolute())
    pinned = project.pinned
    with work.entered(pinned.fingerprint, 60) as leases:
        work.begin(project, leases)
        ledger = Ledger(work, pinned, "parquet")
        ledger.discard_damaged(ledger.missing(range(ledger.plan.n_shards)), leases)
        job = Job(work.out, pinned.fingerprint, "parquet", project.model, BuildOptions())
        made: list[int] = []

        def report(event: Event) -> None:
            if event.kind == "made":
                made.append(event.number)
                if len(made) == shards:
                    raise _Enough

        with suppress(_Enough):
            Worker(job, leases, report, set()).run()
    return work
