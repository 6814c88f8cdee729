"""Records become rows of bytes, and what a consumer will decode is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from builder.pinned import PinnedRecipe
from builder.record.encoding import (
    DepthCodec,
    decode_image,
    encode_image,
    encode_instances,
    encode_mask,
)
from builder.record.render import Record
from builder.record.stats import Counts, Statistics, histogram


class Encoder:
    """Turns records of a set into rows of bytes, and counts what a consumer will decode."""

    def __init__(self, pinned: PinnedRecipe) -> None:
        self._recipe = pinned.recipe
        self._codec = DepthCodec(pinned.recipe, pinned.depth) if pinned.depth else None

    def row(
        self, record: Record, *, with_depth: bool = True, statistics: Statistics | None = None
    ) -> dict[str, Any]:
        """Encode one record; images become `{"bytes": ..., "path": None}`.

        Args:
            statistics: count its pixels there, as they are decoded from the row.
        """
        composite, count = self._composite(record)
        images = {"fg_bg": composite, "mask": encode_mask(record.mask)}
        if record.scene is not None and record.scene.objects is not None:
            images["instances"] = encode_instances(record.scene.instances)
        if self._codec and record.depth is not None and with_depth:
            images["depth"] = self._codec.encode(record.depth)
        if statistics is not None:
            self._count(record, count(), images, statistics)
        return {
            "record_id": record.record_id,
            **{column: {"bytes": data, "path": None} for column, data in images.items()},
            **record.described(),
            "pixel_hash": record.pixel_hash,
        }

    def _composite(self, record: Record) -> tuple[bytes, Callable[[], Counts]]:
        if record.canvas is not None:
            return record.canvas.encoded(record.fg_bg, record.changed)
        encoded = encode_image(record.fg_bg, self._recipe)
        return encoded, lambda: histogram(decode_image(encoded, self._recipe))

    def _count(
        self, record: Record, counts: Counts, images: dict[str, bytes], statistics: Statistics
    ) -> None:
        depth = None
        if "depth" in images and self._codec and record.depth is not None:
            depth = self._codec.as_decoded(record.depth, images["depth"])
        statistics.add(
            counts,
            record.mask,
            depth,
            record.bbox,
            {column: len(data) for column, data in images.items()},
            record.scene.objects if record.scene else None,
            record.scene.left_out if record.scene else 0,
        )
