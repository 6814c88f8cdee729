"""Say beforehand what a build will make: records, files, bytes and time, from a small probe."""

from __future__ import annotations

import time
from dataclasses import dataclass

from builder.depth import DepthEstimator
from builder.engine import BuildOptions, default_workers, load_estimator
from builder.plan import TRAIN, Plan
from builder.render import Renderer
from builder.shards import Encoder
from builder.sources import SourceBank
from builder.stats import Statistics
from builder.work import Project

_PROBE_RECORDS = 48


@dataclass(frozen=True)
class Forecast:
    """What a build will make; `column_bytes` are the encoded images of all records."""

    records: int
    splits: dict[str, int]
    shards: dict[str, int]
    column_bytes: dict[str, int]
    seconds: float
    workers: int


def forecast(
    project: Project, *, workers: int | None = None, options: BuildOptions | None = None
) -> Forecast:
    """Estimate a build from a few records of its own, spread over the largest split.

    Args:
        workers: processes the build will use; None as in a build.
        options: as in a build.

    Raises:
        DepthModelError: the depth model can not be loaded.
    """
    options = options or BuildOptions()
    plan = Plan(project.pinned)
    workers = workers or default_workers(project.model, options.device)
    workers = min(workers, plan.n_shards)
    estimator = load_estimator(project.model, project.pinned.recipe, options)
    seconds, column_bytes = _probe(project, plan, estimator)
    return Forecast(
        records=plan.n_records,
        splits={split.name: split.n_records for split in plan.splits.values()},
        shards={split.name: split.n_shards for split in plan.splits.values()},
        column_bytes={k: round(v * plan.n_records) for k, v in column_bytes.items()},
        seconds=seconds * plan.n_records / workers,
        workers=workers,
    )


def _probe(
    project: Project, plan: Plan, estimator: DepthEstimator | None
) -> tuple[float, dict[str, float]]:
    """Return the seconds one process needs for a record, and its bytes by image column."""
    renderer = Renderer(plan, SourceBank(project.foregrounds, project.backgrounds), estimator)
    encoder = Encoder(project.pinned)
    split = plan.splits[TRAIN]
    batch = estimator.batch_size if estimator else _PROBE_RECORDS
    first = min(batch, split.n_records)
    last = min(max(2 * batch, _PROBE_RECORDS), split.n_records)

    def make(start: int, stop: int) -> Statistics:
        statistics = Statistics(project.pinned.recipe.size)
        for record in renderer.records(TRAIN, start, stop):
            encoder.count(record, encoder.row(record), statistics)
        return statistics

    make(0, first)  # pays for caches and kernels that a build pays for once
    began = time.perf_counter()
    statistics = make(first, last) if last > first else make(0, first)
    seconds = (time.perf_counter() - began) / statistics.rows
    return seconds, {c: size / statistics.rows for c, size in statistics.size_bytes.items()}
