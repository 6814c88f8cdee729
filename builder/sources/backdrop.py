"""What is prepared of a background beside its picture: its depth and where objects stand."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.pictures import open_picture
from builder.sources.ground import Depth, Mask, NoGround, fit_ground, inverse_depth

DepthBy = Literal["", "estimated", "measured"]

N_EDGES = 7  # between eight bands of equal logarithmic distance
_MAX_PLANE = 2**48  # of a number of a plane of any hand: rho of every pixel fits in 64 bits


class Given(NamedTuple):
    """What a person put beside a background: measured depth in mm, where feet may stand."""

    depth: Depth | None = None
    ground: Mask | None = None


@dataclass(frozen=True)
class Backdrop:
    """Depth and ground of a background, as they are stored.

    `depth` (H, W) uint16 is in the set's stored units, 0 = unknown. Where there is a ground,
    `region` (H, W) bool is where a foot may stand, `plane` and `edges` are integers (see
    `builder.sources.ground` and `builder.record.scene`); else `why_free` says why there is none.
    """

    depth: Depth
    depth_by: DepthBy
    region: Mask | None = None
    plane: tuple[int, int, int] = (0, 0, 0)
    edges: tuple[int, ...] = ()
    support: float = 0.0
    horizon_px: float = 0.0
    roll_deg: float = 0.0
    why_free: str = ""

    @classmethod
    def of(
        cls, depth: Depth, depth_by: DepthBy, far: int, *, inverse: bool, region: Mask | None = None
    ) -> Backdrop:
        """Find the ground in a depth map.

        Args:
            far: the largest value that a metric map holds.
            inverse: whether the map holds inverse depth.
            region: where a person says that objects may stand; overrides what is found.
        """
        try:
            rho = inverse_depth(depth, far, inverse=inverse)
            if region is not None:
                rho = np.where(region, rho, np.nan)
            ground = fit_ground(rho, relative=inverse, painted=region is not None)
        except NoGround as reason:
            return cls(depth, depth_by, why_free=str(reason))
        stands = ground.region if region is None else region
        size = depth.shape[0]
        pixels = np.flatnonzero(stands)
        values = _rho(ground.plane, pixels, size)
        stands = stands.copy()
        stands.ravel()[pixels[values <= 0]] = False  # above the horizon nothing can stand
        values = values[values > 0]
        if not values.size:
            return cls(depth, depth_by, why_free="all of the given ground lies above its horizon")
        low, high = math.log(int(values.min())), math.log(int(values.max()))
        steps = (low + (high - low) * n / (N_EDGES + 1) for n in range(1, N_EDGES + 1))
        edges = tuple(round(math.exp(step)) for step in steps)
        return cls(
            depth,
            depth_by,
            stands,
            ground.plane,
            edges,
            round(ground.support, 4),
            round(ground.horizon_px, 2),
            round(ground.roll_deg, 2),
        )

    def row(self) -> dict[str, Any]:
        """Return the columns that hold it; see `builder.schema`."""
        depth = _png(Image.fromarray(self.depth))
        region = None if self.region is None else _png(Image.fromarray(self.region))
        return {
            "depth": {"bytes": depth, "path": None},
            "depth_by": self.depth_by,
            "ground": region and {"bytes": region, "path": None},
            "ground_plane": list(self.plane),
            "ground_edges": list(self.edges or (0,) * N_EDGES),
            "ground_support": self.support,
            "horizon_px": self.horizon_px,
            "roll_deg": self.roll_deg,
            "why_free": self.why_free,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any], size: int) -> Backdrop:
        """Read what `row` returned.

        Raises:
            ValueError: it is something else.
        """
        depth = _opened(row["depth"]["bytes"], size, "I;16").astype(np.uint16)
        ground = (row["ground"] or {}).get("bytes")
        region = None if ground is None else _opened(ground, size, "1")
        plane, edges = tuple(row["ground_plane"]), tuple(row["ground_edges"])
        numbers_fit = all(isinstance(n, int) and abs(n) < _MAX_PLANE for n in (*plane, *edges))
        if len(plane) != 3 or len(edges) != N_EDGES or not numbers_fit:
            raise ValueError("its ground is not three and seven whole numbers")
        if region is not None and not (region.any() and list(edges) == sorted(edges)):
            raise ValueError("its ground has no pixel, or its edges do not rise")
        if region is not None and _rho(plane, np.flatnonzero(region), size).min() <= 0:
            raise ValueError("some of its ground lies above its horizon")
        return cls(
            depth,
            row["depth_by"],
            region,
            plane,
            edges if region is not None else (),
            row["ground_support"],
            row["horizon_px"],
            row["roll_deg"],
            row["why_free"],
        )

    @property
    def sha256(self) -> str:
        """Sha256 (hex) over all of it: what records are made of, and what is said of it."""
        digest = hashlib.sha256(np.ascontiguousarray(self.depth, dtype="<u2").tobytes())
        if self.region is not None:
            digest.update(np.packbits(self.region).tobytes())
            digest.update(repr((self.plane, self.edges)).encode())
        figures = [round(100 * n) for n in (100 * self.support, self.horizon_px, self.roll_deg)]
        digest.update(repr((self.depth_by, figures, self.why_free)).encode())
        return digest.hexdigest()


def _rho(plane: tuple[int, ...], pixels: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Return twice the inverse depth of a plane at the centres of pixels, given as flat indexes."""
    a, b, c = plane
    return a * (2 * (pixels % size) + 1) + b * (2 * (pixels // size) + 1) + 2 * c


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _opened(stored: bytes, size: int, mode: str) -> Any:
    return np.asarray(open_picture(stored, (size, size), ("PNG",), (mode,)))
