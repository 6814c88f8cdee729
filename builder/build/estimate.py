"""Say beforehand what a build will make and take: records, files, bytes, time and memory.

From a small probe: some records are made as a worker makes them. What a build does but once
(imports, preparing sources) is what this process has spent before that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from builder.build.local import default_workers
from builder.build.machine import peak_bytes
from builder.build.options import BuildOptions
from builder.build.project import Project
from builder.build.shards import write_shard
from builder.build.worker import load_estimator
from builder.record import TRAIN, Plan, Renderer, Statistics
from builder.sources import SourceBank

_PROBE_RECORDS = 48
# What putting a set together takes (preview, card, links); hardly depends on the records.
_FINISH_SECONDS, _FINISH_BYTES = 1.5, 40_000_000


@dataclass(frozen=True)
class Forecast:
    """What a build will make and take.

    `possible` records the sources give, of which `records` are made; about `copies` of those are
    copies of others, where foregrounds have few places. `column_bytes` are the encoded images of
    all records; `seconds` is time by the clock, with a core for each of the `workers`;
    `cpu_seconds` sums the processor time of all processes, and `memory_bytes` the most that each
    of them holds.
    """

    records: int
    possible: int
    copies: int
    splits: dict[str, int]
    shards: dict[str, int]
    column_bytes: dict[str, int]
    seconds: float
    cpu_seconds: float
    memory_bytes: int
    workers: int


def forecast(
    project: Project, *, workers: int | None = None, options: BuildOptions | None = None
) -> Forecast:
    """Estimate a build from a few records of its own, spread over the largest split.

    Args:
        workers: processes the build will use; None as in a build.
        options: as in a build.

    Raises:
        DepthModelError: the depth model cannot be loaded.
        RecipeError: no build makes so many files.
    """
    project.pinned.check_files()
    options = options or BuildOptions()
    plan = Plan(project.pinned)
    workers = workers or default_workers(project.model, options.device)
    workers = min(workers, plan.n_shards)
    before_seconds, before_bytes = time.process_time(), peak_bytes()
    probe = _probe(project, plan, options)
    # One worker is the build's own process; several start anew beside it.
    starts, beside_bytes = (0, 0) if workers == 1 else (workers, before_bytes)
    once = before_seconds + _FINISH_SECONDS
    return Forecast(
        records=plan.n_records,
        possible=project.pinned.n_possible,
        copies=plan.n_copies,
        splits={split.name: split.n_records for split in plan.splits.values()},
        shards={split.name: split.n_shards for split in plan.splits.values()},
        column_bytes={k: round(v * plan.n_records) for k, v in probe.column_bytes.items()},
        seconds=once
        + before_seconds * min(starts, 1)
        + probe.load_seconds
        + probe.seconds * plan.n_records / workers,
        cpu_seconds=once
        + before_seconds * starts
        + probe.load_cpu_seconds * workers
        + probe.cpu_seconds * plan.n_records,
        memory_bytes=beside_bytes + peak_bytes() * workers + _FINISH_BYTES,
        workers=workers,
    )


@dataclass(frozen=True)
class _Probe:
    """What one process needs to load, and for a record: time, processor time and bytes."""

    load_seconds: float
    load_cpu_seconds: float
    seconds: float
    cpu_seconds: float
    column_bytes: dict[str, float]


def _probe(project: Project, plan: Plan, options: BuildOptions) -> _Probe:
    began = (time.perf_counter(), time.process_time())
    estimator = load_estimator(project.model, project.pinned.recipe, options)
    renderer = Renderer(plan, SourceBank(project.foregrounds, project.backgrounds), estimator)
    n_records = plan.splits[TRAIN].n_records
    batch = estimator.batch_size if estimator else _PROBE_RECORDS
    first, last = min(batch, n_records), min(max(2 * batch, _PROBE_RECORDS), n_records)
    with TemporaryDirectory(prefix="fgbg-plan-") as folder:

        def make(start: int, stop: int) -> tuple[Statistics, float, float]:
            records = renderer.records(TRAIN, start, stop)
            commit = write_shard(Path(folder), "probe", "parquet", project.pinned, records)
            now = (time.perf_counter(), time.process_time())
            return Statistics.from_json(commit.statistics), *now

        made, *loaded = make(0, first)  # pays for caches and kernels, as a build does once
        if last > first:
            made, *ended = make(first, last)
        else:
            made, *ended = make(0, first)
    return _Probe(
        load_seconds=loaded[0] - began[0],
        load_cpu_seconds=loaded[1] - began[1],
        seconds=(ended[0] - loaded[0]) / made.rows,
        cpu_seconds=(ended[1] - loaded[1]) / made.rows,
        column_bytes={c: size / made.rows for c, size in made.size_bytes.items()},
    )
