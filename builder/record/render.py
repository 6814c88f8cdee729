"""Make records: the one place where composition meets depth."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from builder.record.composition import Cutout, Pixels, cut_out, paste, pixel_hash
from builder.record.plan import Plan
from builder.sources import SourceBank


class Estimator(Protocol):
    """Gives the depth of composites, so many at a time; see `builder.depth.DepthEstimator`."""

    @property
    def batch_size(self) -> int:
        """How many composites it takes at once."""

    def __call__(self, images: Pixels) -> npt.NDArray[np.uint16]:
        """Return the depth (B, H, W) of composites (B, H, W, 3), in stored units."""


@dataclass(frozen=True)
class Record:
    """A record before encoding: composite (H, W, 3) uint8, mask (H, W) uint8 in {0, 255}, depth.

    `depth` is (H, W) uint16 in the stored unit (mm for a metric model, 0 = unknown), or None.
    """

    record_id: int
    fg_bg: Pixels
    mask: Pixels
    depth: npt.NDArray[np.uint16] | None
    background_id: str
    foreground_id: str
    flipped: bool
    bbox: tuple[int, int, int, int]
    coverage: float

    @property
    def pixel_hash(self) -> str:
        """XXH3-128 (hex) of the pixels."""
        return pixel_hash(self.fg_bg, self.mask)

    def described(self) -> dict[str, Any]:
        """Return what a row says of a record beside its id, pictures and hash."""
        return {
            "background_id": self.background_id,
            "foreground_id": self.foreground_id,
            "flipped": self.flipped,
            "bbox": list(self.bbox),
            "coverage": float(np.float32(self.coverage)),
        }


class Renderer:
    """Makes records of a plan from prepared sources.

    Args:
        plan: says what each record combines and where it is placed.
        bank: the prepared sources.
        estimator: gives the depth; None leaves it out.
    """

    def __init__(self, plan: Plan, bank: SourceBank, estimator: Estimator | None) -> None:
        self._plan, self._bank, self._estimator = plan, bank, estimator
        self._cutout = lru_cache(2048)(self._cut_out)

    def _cut_out(self, foreground: int, flipped: bool) -> Cutout:
        return cut_out(self._bank.foreground(foreground), flipped)

    def compose(self, record_id: int, epoch: int = 0) -> Record:
        """Make one record without depth, placed as in the stored set or, in epoch 1, 2, ..., anew.

        Raises:
            IndexError: there is no such record.
        """
        plan = self._plan
        what = plan.combination(record_id)
        left, top = plan.placement(record_id, what.foreground, epoch)
        composite = paste(
            self._bank.background(what.background),
            self._cutout(what.foreground, what.flipped),
            left,
            top,
        )
        return Record(
            record_id=record_id,
            fg_bg=composite.fg_bg,
            mask=composite.mask,
            depth=None,
            background_id=plan.pinned.backgrounds[what.background].id,
            foreground_id=plan.pinned.foregrounds[what.foreground].id,
            flipped=what.flipped,
            bbox=composite.bbox,
            coverage=composite.coverage,
        )

    def composites(self, split: str, start: int, stop: int, epoch: int = 0) -> Iterator[Record]:
        """Make the records at positions [start, stop) of a split, in order, without depth."""
        for record_id in self._plan.splits[split].record_ids(start, stop).tolist():
            yield self.compose(record_id, epoch)

    def records(self, split: str, start: int, stop: int, epoch: int = 0) -> Iterator[Record]:
        """Make the records at positions [start, stop) of a split, in order.

        The next batch is composed in a thread while the model works on this one.
        """
        if self._estimator is None or start == stop:  # a stream may resume at the end of a unit
            yield from self.composites(split, start, stop, epoch)
            return
        size = self._estimator.batch_size
        batches = [(at, min(at + size, stop)) for at in range(start, stop, size)]
        with ThreadPoolExecutor(1, thread_name_prefix="compose") as pool:

            def compose(start: int, stop: int) -> Future[list[Record]]:
                return pool.submit(lambda: list(self.composites(split, start, stop, epoch)))

            following = compose(*batches[0])
            for number in range(len(batches)):
                batch = following.result()
                if number + 1 < len(batches):
                    following = compose(*batches[number + 1])
                depths = self._estimator(np.stack([record.fg_bg for record in batch]))
                for record, depth in zip(batch, depths, strict=True):
                    yield replace(record, depth=depth)
