"""Records become rows of bytes, and what a consumer will decode is counted."""

from __future__ import annotations

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
from builder.record.stats import Statistics
from builder.schema import IMAGE_COLUMNS


class Encoder:
    """Turns records of a set into rows of bytes, and counts what a consumer will decode."""

    def __init__(self, pinned: PinnedRecipe) -> None:
        self._recipe = pinned.recipe
        self._codec = DepthCodec(pinned.recipe, pinned.depth) if pinned.depth else None

    def row(self, record: Record, *, with_depth: bool = True) -> dict[str, Any]:
        """Encode one record; images become `{"bytes": ..., "path": None}`."""
        images = {
            "fg_bg": encode_image(record.fg_bg, self._recipe),
            "mask": encode_mask(record.mask),
        }
        if record.scene is not None and record.scene.objects is not None:
            images["instances"] = encode_instances(record.scene.instances)
        if self._codec and record.depth is not None and with_depth:
            images["depth"] = self._codec.encode(record.depth)
        return {
            "record_id": record.record_id,
            **{column: {"bytes": data, "path": None} for column, data in images.items()},
            **record.described(),
            "pixel_hash": record.pixel_hash,
        }

    def count(self, record: Record, row: dict[str, Any], statistics: Statistics) -> None:
        """Add one record's pixels, as decoded from its row, to statistics."""
        depth = None
        if self._codec and record.depth is not None:
            depth = self._codec.as_decoded(record.depth, row["depth"]["bytes"])
        statistics.add(
            decode_image(row["fg_bg"]["bytes"], self._recipe),
            record.mask,
            depth,
            record.bbox,
            {column: len(row[column]["bytes"]) for column in IMAGE_COLUMNS if column in row},
            record.scene.objects if record.scene else None,
            record.scene.left_out if record.scene else 0,
        )
