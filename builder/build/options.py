"""How a build runs: everything that is not in the recipe, and so changes no record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from builder.depth import Backend, Device
from builder.sources import check_license_id

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs; nothing here is in the recipe.

    None of it changes a record, but for the rounding of depth by `device`, `backend` and
    `batch_size`, inside what the recipe's precision leaves open. `batch_size` None is 2 on a
    processor and 32 on a GPU; it is halved where memory does not reach. `license` is the Hub's
    identifier of the terms the set is given out under, for its card. `engine` is what runs the
    workers: processes of this machine, or a Ray cluster, at `address` or of this machine alone;
    `num_gpus_per_worker` None is 1 where there are GPUs and a depth model. `resume` is the command
    printed when a build fails. `claim_expiry_s` is how long, in seconds, another process may be
    silent before its shards are taken over.

    Raises:
        CardError: `license` is no identifier.
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
    claim_expiry_s: float = 60.0

    def __post_init__(self) -> None:
        if self.license is not None:
            check_license_id(self.license)
