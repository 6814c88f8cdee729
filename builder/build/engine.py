"""Make every shard of a set that is not done yet, beside other builds of it; report what failed."""

from __future__ import annotations

import sys

from tqdm import tqdm

from builder.build.crew import Crew
from builder.build.leases import Leases
from builder.build.ledger import Ledger
from builder.build.local import run_local
from builder.build.on_ray import run_on_ray
from builder.build.options import BuildOptions
from builder.build.project import Project
from builder.build.work import WorkFolder
from builder.build.worker import Job
from builder.errors import BuildFailedError


def build_shards(
    project: Project,
    work: WorkFolder,
    leases: Leases,
    ledger: Ledger,
    workers: int | None,
    options: BuildOptions,
) -> None:
    """Make every shard that is not done yet; those that another build makes are waited for.

    Args:
        workers: as for the engine that the options name.

    Raises:
        BuildFailedError: some shards failed; the others are done and kept.
        OutputError: the output cannot be written.
    """
    plan, fingerprint = ledger.plan, project.pinned.fingerprint
    job = Job(work.out, fingerprint, ledger.file_format, project.model, options)
    missing = list(ledger.missing(range(plan.n_shards)))
    failed: dict[int, str] = {}
    with tqdm(
        total=plan.n_records,
        initial=plan.n_records - ledger.rows(missing),
        unit=" records",
        desc="records",
        disable=None if options.progress and sys.stderr else True,
    ) as bar:
        while missing:
            # Workers look at commit records alone. What was damaged on the disk loses its own.
            failed |= ledger.discard_damaged(missing, leases)
            crew = Crew(job, leases, ledger, bar.update)
            if options.engine == "ray":
                run_on_ray(crew, len(missing), workers)
            else:
                run_local(crew, len(missing), workers)
            # Shards of other builds are hashed here, as are those a worker died just after.
            missing = list(ledger.missing(missing))
            failed |= crew.failures(missing)
            missing = [number for number in missing if number not in failed]
            left = ledger.rows(missing) + ledger.rows(failed)
            bar.update(plan.n_records - left - bar.n)
    if failed:
        causes = {ledger.name(number): cause for number, cause in failed.items()}
        raise BuildFailedError(causes, plan.n_shards - len(failed), options.resume)
