"""Seeded scenes with exact depth, ray cast in NumPy: what the demo depth model is trained on.

`render(seed)` draws one room, corridor, courtyard, street, office or staircase and returns its
picture and its depth; `render_cutout(seed)` draws one object with soft alpha. A picture depends on
its arguments alone.

Conventions. World and camera space: x right, y up, z forward, metres. Points and rays are (3, N)
float32; N runs over pixels row by row. A camera ray's direction has z = 1 in camera space, so the
ray parameter t of a hit *is* its z-depth (distance along the optical axis, not along the ray).
Depth is clipped to 0.1..10 m, the range of NYU Depth v2 that DenseDepth uses; the sky has 10 m.
Colours are linear RGB until `_develop`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# float32 everywhere; NumPy's own types promise no more than some float.
Array = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator
Point = tuple[float, float, float]
Colour = tuple[float, float, float]
Form = Literal["sphere", "box", "frustum"]

KINDS = ("room", "corridor", "courtyard", "street", "office", "stairs")
MIN_DEPTH_M = 0.1
MAX_DEPTH_M = 10.0

_EPSILON_M = 1e-3
# A block of scene seeds shares a library of cut-outs, so held-out blocks paste objects never
# trained on.
_SEEDS_PER_BLOCK = 100_000
CUTOUTS_PER_BLOCK = 160


# ---------------------------------------------------------------------------------------- materials


@dataclass(frozen=True)
class Material:
    """How a surface looks: two linear colours in a pattern, with grain, bumps, shine and glow."""

    base: Colour
    second: Colour = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    scale_m: float = 0.3
    grain: float = 0.12
    bump: float = 0.0
    shine: float = 0.0
    glow: float = 0.0
    seed: int = 0


def _vec(values: npt.ArrayLike) -> Array:
    """Any numbers as float32."""
    return np.asarray(values, np.float32)


@functools.cache
def _noise_tile() -> Array:
    """One periodic 512 x 512 field with 1/f amplitude, mean 0.5, mostly within 0..1."""
    rng = np.random.default_rng(20_190_311)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None, :])
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((512, 512)))
    field_ = np.fft.irfft2(white / np.maximum(frequency, 1 / 64) ** 1.15, s=(512, 512))
    tile: Array = (0.5 + 0.2 * field_ / field_.std()).clip(0, 1).astype(np.float32)
    return tile


def _noise(u: Array, v: Array, scale_m: float, seed: int) -> Array:
    """1/f noise in 0..1 at (u, v) metres; its coarsest blobs are about `scale_m` wide."""
    tile = _noise_tile()
    x = u * np.float32(64 / scale_m) + np.float32(seed * 37.7 % 512)
    y = v * np.float32(64 / scale_m) + np.float32(seed * 91.3 % 512)
    column, row = np.floor(x), np.floor(y)
    fx, fy = x - column, y - row
    c0, r0 = column.astype(np.int64) & 511, row.astype(np.int64) & 511
    c1, r1 = (c0 + 1) & 511, (r0 + 1) & 511
    top = tile[r0, c0] * (1 - fx) + tile[r0, c1] * fx
    bottom = tile[r1, c0] * (1 - fx) + tile[r1, c1] * fx
    mixed: Array = top * (1 - fy) + bottom * fy
    return mixed


def _cell_hash(column: Array, row: Array, seed: int) -> Array:
    """A fixed pseudo-random value in 0..1 per integer cell (integers: equal everywhere)."""
    key = (
        column.astype(np.int64) * 73_856_093 ^ row.astype(np.int64) * 19_349_663 ^ seed * 83_492_791
    )
    key = (key ^ (key >> 13)) * 1_274_126_177
    hashed: Array = ((key >> 8) & 0xFFFF).astype(np.float32) / np.float32(65535)
    return hashed


def _grid(
    u: Array, v: Array, width: float, height: float, joint: float, m: Material, shift: float
) -> Array:
    """Cells with joints: 0 in the joint, 0.55..1 inside a cell, each cell its own tone."""
    row = np.floor(v / height)
    x = u / width + shift * row
    column = np.floor(x)
    inside = ((x - column) * width > joint) & (v - row * height > joint)
    tone = 0.55 + 0.45 * _cell_hash(column, row, m.seed)
    return np.where(inside, tone, 0).astype(np.float32)


def _bricks(u: Array, v: Array, m: Material) -> Array:
    return _grid(u, v, m.scale_m, m.scale_m * 0.36, m.scale_m * 0.05, m, 0.5)


def _tiles(u: Array, v: Array, m: Material) -> Array:
    return _grid(u, v, m.scale_m, m.scale_m, m.scale_m * 0.03, m, 0.0)


def _planks(u: Array, v: Array, m: Material) -> Array:
    tone = _grid(v, u, m.scale_m * 9, m.scale_m, m.scale_m * 0.05, m, 0.37)
    return tone * (0.7 + 0.5 * _noise(u, v / 12, m.scale_m * 2, m.seed))


def _checker(u: Array, v: Array, m: Material) -> Array:
    return _vec((np.floor(u / m.scale_m) + np.floor(v / m.scale_m)) % 2)


def _stripes(u: Array, _v: Array, m: Material) -> Array:
    return _vec(np.floor(u / m.scale_m) % 2)


def _bands(_u: Array, v: Array, m: Material) -> Array:
    return _vec(np.floor(v / m.scale_m) % 2)


def _stone(u: Array, v: Array, m: Material) -> Array:
    return _noise(u, v, m.scale_m * 4, m.seed)


def _foliage(u: Array, v: Array, m: Material) -> Array:
    coarse, fine = _noise(u, v, m.scale_m * 3, m.seed), _noise(v, u, m.scale_m, m.seed + 5)
    return (2.2 * (0.5 * coarse + 0.5 * fine - 0.5) + 0.5).clip(0, 1)


def _cobbles(u: Array, v: Array, m: Material) -> Array:
    """Jittered cells: bright in the middle of the nearest stone, dark between stones."""
    x, y = u / m.scale_m, v / m.scale_m
    column, row = np.floor(x), np.floor(y)
    first = np.full_like(x, 9)
    second = np.full_like(x, 9)
    tone = np.zeros_like(x)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            c, r = column + dx, row + dy
            a, b = _cell_hash(c, r, m.seed), _cell_hash(c, r, m.seed + 1)
            distance = np.hypot(x - c - 0.2 - 0.6 * a, y - r - 0.2 - 0.6 * b)
            tone = np.where(distance < first, a, tone)
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    return ((second - first) * 4).clip(0, 1) * (0.55 + 0.45 * tone)


def _dots(u: Array, v: Array, m: Material) -> Array:
    x, y = u / m.scale_m, v / m.scale_m
    x = x + 0.5 * (np.floor(y) % 2)
    return _vec(np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.22)


def _facade(u: Array, v: Array, m: Material) -> Array:
    """A house front: 0 = glass, 0.25..0.45 = lit or curtained glass, 0.8 = wall, 1 = frame."""
    x, y = u / m.scale_m, v / (m.scale_m * 1.25)
    fx, fy = abs(x % 1 - 0.5), abs(y % 1 - 0.52)
    pane = (fx < 0.22) & (fy < 0.28) & (y > 0.1)
    frame = (fx < 0.26) & (fy < 0.32) & (y > 0.1)
    bar = (fx < 0.015) | (abs(fy - 0.08) < 0.012)
    glass = 0.4 * (_cell_hash(np.floor(x), np.floor(y), m.seed) > 0.6) + 0.15 * (y % 1)
    wall = 0.72 + 0.16 * _noise(u, v, 2.0, m.seed)
    return np.where(pane & ~bar, glass, np.where(frame, 1.0, wall)).astype(np.float32)


def _half(_u: Array, v: Array, m: Material) -> Array:
    return (v > m.scale_m).astype(np.float32)


_PATTERNS: dict[str, Callable[[Array, Array, Material], Array]] = {
    "plain": lambda u, _v, _m: np.ones_like(u),
    "bricks": _bricks,
    "tiles": _tiles,
    "planks": _planks,
    "checker": _checker,
    "stripes": _stripes,
    "bands": _bands,
    "stone": _stone,
    "foliage": _foliage,
    "cobbles": _cobbles,
    "dots": _dots,
    "facade": _facade,
    "half": _half,
}


def _albedo(m: Material, u: Array, v: Array, pixel_m: Array) -> Array:
    """Linear colour (3, N) at texture coordinates in metres; `pixel_m` is how wide a pixel is
    there.
    """
    mix = _PATTERNS[m.pattern](u, v, m)
    if m.pattern != "plain":
        # A pattern finer than a pixel must fade to its mean, or it would alias into moire.
        keep = (m.scale_m / (4 * pixel_m) - 0.4).clip(0, 1)
        mix = mix.mean() + (mix - mix.mean()) * keep
    grain = 1 + m.grain * 2 * (_noise(u, v, 0.9, m.seed + 11) - 0.5)
    base, second = _vec(m.base)[:, None], _vec(m.second)[:, None]
    colour: Array = ((second + (base - second) * mix) * grain).clip(0, None)
    return colour


# -------------------------------------------------------------------------------------- ray casting


@dataclass(frozen=True)
class Shape:
    """An affine image of a unit sphere, a unit box (|x|, |y|, |z| <= 1) or a unit frustum.

    The frustum has its axis along y, radius 1 at y = -1 and `taper` at y = +1. `rotation` (3, 3)
    turns local axes into world axes; `half_m` (3,) are the half extents before it.
    """

    form: Form
    centre: Array
    half_m: Array
    rotation: Array
    material: Material
    taper: float = 1.0
    occludes: bool = True

    @functools.cached_property
    def to_local(self) -> Array:
        """(3, 3) world offsets to unit local coordinates."""
        matrix: Array = (self.rotation / self.half_m[None, :]).T.astype(np.float32)
        return matrix

    @functools.cached_property
    def radius_m(self) -> float:
        """Radius of the bounding sphere."""
        if self.form == "sphere":
            return float(self.half_m.max()) * 1.001
        return float(np.linalg.norm(self.half_m)) * 1.001


def _dot(a: Array, b: Array) -> Array:
    """Dot product (N,) of vectors (3, N); several times faster than a sum over the short axis."""
    product: Array = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _first_positive(near: Array, far: Array) -> Array:
    """The smaller of two ordered ray parameters that lies ahead of the origin, else infinity."""
    t = np.where(near > _EPSILON_M, near, far)
    return np.where(t > _EPSILON_M, t, np.float32(np.inf))


def _hit_sphere(origin: Array, direction: Array) -> Array:
    a = _dot(direction, direction)
    middle = -_dot(origin, direction) / a
    # The closest approach keeps float32 exact where b^2 - 4ac would cancel.
    closest = origin + middle * direction
    under = (1 - _dot(closest, closest)) / a
    root = np.sqrt(np.maximum(under, 0))
    return np.where(under >= 0, _first_positive(middle - root, middle + root), np.float32(np.inf))


def _hit_box(origin: Array, direction: Array) -> Array:
    inverse = 1 / np.where(abs(direction) < 1e-9, np.float32(1e-9), direction)
    low, high = (-1 - origin) * inverse, (1 - origin) * inverse
    near, far = np.minimum(low, high).max(0), np.maximum(low, high).min(0)
    return np.where(near <= far, _first_positive(near, far), np.float32(np.inf))


def _hit_frustum(origin: Array, direction: Array, taper: float) -> Array:
    slope = np.float32((taper - 1) / 2)
    radius = np.float32((taper + 1) / 2) + slope * origin[1]
    x, y, z = origin
    dx, dy, dz = direction
    a = dx * dx + dz * dz - (slope * dy) ** 2
    a = np.where(abs(a) < 1e-9, np.float32(1e-9), a)
    b = x * dx + z * dz - radius * slope * dy
    c = x * x + z * z - radius * radius
    under = b * b - a * c
    root = np.sqrt(np.maximum(under, 0))
    best = np.full(under.shape, np.inf, np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        height = y + t * dy
        good = (under >= 0) & (abs(height) <= 1) & (t > _EPSILON_M) & (radius + slope * t * dy >= 0)
        best = np.where(good & (t < best), t, best)
    safe_dy = np.where(abs(dy) < 1e-9, np.float32(1e-9), dy)
    for cap, cap_radius in ((-1, 1.0), (1, taper)):
        t = (cap - y) / safe_dy
        inside = (x + t * dx) ** 2 + (z + t * dz) ** 2 <= cap_radius**2
        best = np.where(inside & (t > _EPSILON_M) & (t < best), t, best)
    return best


def intersect(shape: Shape, origin: Array, direction: Array) -> Array:
    """Ray parameter (N,) of the first hit ahead, infinity where there is none.

    `origin` is (3, N) or (3, 1), `direction` (3, N); a direction need not have unit length.
    """
    local_origin = shape.to_local @ (origin - shape.centre[:, None])
    local_direction = shape.to_local @ direction
    if shape.form == "sphere":
        return _hit_sphere(local_origin, local_direction)
    if shape.form == "box":
        return _hit_box(local_origin, local_direction)
    return _hit_frustum(local_origin, local_direction, shape.taper)


def _near_rays(
    shape: Shape, origin: Array, direction: Array, squared: Array
) -> npt.NDArray[np.intp]:
    """Indices of the rays that pass through the shape's bounding sphere; `squared` is
    |direction|^2.
    """
    offset = shape.centre[:, None] - origin
    along = _dot(offset, direction)
    away = _dot(offset, offset) - along * along / squared
    return np.flatnonzero((away < shape.radius_m**2) & (along > -shape.radius_m * np.sqrt(squared)))


def trace(
    shapes: Sequence[Shape], origin: Array, direction: Array
) -> tuple[Array, npt.NDArray[np.int32]]:
    """First hit of every ray: ray parameter (N,), infinity for none, and shape index (N,), -1 for
    none.
    """
    count = direction.shape[1]
    best = np.full(count, np.inf, np.float32)
    which = np.full(count, -1, np.int32)
    squared = _dot(direction, direction)
    for index, shape in enumerate(shapes):
        rays = _near_rays(shape, origin, direction, squared)
        if not rays.size:
            continue
        start = origin if origin.shape[1] == 1 else origin[:, rays]
        t = intersect(shape, start, direction[:, rays])
        closer = t < best[rays]
        best[rays[closer]] = t[closer]
        which[rays[closer]] = index
    return best, which


def _blocked(
    shapes: Sequence[Shape], origin: Array, direction: Array, distance_m: Array
) -> npt.NDArray[np.bool_]:
    """Whether something lies between each origin (3, N) and its light, `distance_m` along a unit
    direction.
    """
    blocked = np.zeros(origin.shape[1], np.bool_)
    squared = np.ones_like(distance_m)
    for shape in shapes:
        if shape.occludes:
            rays = _near_rays(shape, origin, direction, squared)
            rays = rays[~blocked[rays]]
            if rays.size:
                t = intersect(shape, origin[:, rays], direction[:, rays])
                blocked[rays] = t < distance_m[rays]
    return blocked


def _unit(vector: Array) -> Array:
    length = np.sqrt(_dot(vector, vector))
    return vector / np.maximum(length, np.float32(1e-9))


def _surface(shape: Shape, point: Array) -> tuple[Array, Array, Array]:
    """Outward unit normal (3, N) and texture coordinates u, v (N,) in metres at points on the
    shape.
    """
    local = shape.to_local @ (point - shape.centre[:, None])
    metres = (local + 1) * shape.half_m[:, None]
    if shape.form == "box":
        axis = abs(local).argmax(0)
        normal = np.where(np.arange(3)[:, None] == axis, np.sign(local), 0).astype(np.float32)
        u = np.where(axis == 0, metres[2], metres[0])
        v = np.where(axis == 1, metres[2], metres[1])
        return _unit(shape.to_local.T @ normal), u, v
    radial = float(max(shape.half_m[0], shape.half_m[2]))
    u = np.arctan2(local[0], local[2]) * np.float32(radial)
    v = metres[1]
    if shape.form == "sphere":
        return _unit(shape.to_local.T @ local), u, v
    ring = np.hypot(local[0], local[2])
    edge = np.float32((1 + shape.taper) / 2) + np.float32((shape.taper - 1) / 2) * local[1]
    cap = (abs(local[1]) > 0.999) & (ring < edge * np.float32(0.999))
    up = np.where(cap, np.sign(local[1]), np.float32((1 - shape.taper) / 2) * ring)
    normal = np.stack([np.where(cap, 0, local[0]), up, np.where(cap, 0, local[2])]).astype(
        np.float32
    )
    u = np.where(cap, metres[0], u)
    v = np.where(cap, metres[2], v)
    return _unit(shape.to_local.T @ normal), u, v


# ------------------------------------------------------------------------------------ camera, light


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: position in metres, angles and horizontal field of view in degrees."""

    position: Point = (0.0, 1.5, 0.0)
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    fov_deg: float = 60.0

    def rotation(self) -> Array:
        """(3, 3) camera axes to world axes; positive pitch looks up, positive yaw looks right."""
        yaw, pitch, roll = np.radians([self.yaw_deg, self.pitch_deg, self.roll_deg])
        return _turn(1, yaw) @ _turn(0, -pitch) @ _turn(2, roll)

    def rays(self, height: int, width: int) -> Array:
        """Directions (3, H*W) through the pixel centres, with camera-space z = 1."""
        focal_px = width / 2 / np.tan(np.radians(self.fov_deg) / 2)
        x = (np.arange(width) + 0.5 - width / 2) / focal_px
        y = (height / 2 - np.arange(height) - 0.5) / focal_px
        across, up = np.meshgrid(x, y)
        directions = np.stack([across.ravel(), up.ravel(), np.ones(height * width)]).astype(
            np.float32
        )
        turned: Array = self.rotation() @ directions
        return turned


def _turn(axis: int, angle: float) -> Array:
    """(3, 3) rotation about one axis by an angle in radians; about y it takes z towards x."""
    c, s = np.cos(angle), np.sin(angle)
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(3, dtype=np.float32)
    matrix[first, first] = matrix[second, second] = c
    matrix[second, first], matrix[first, second] = s, -s
    return matrix


@dataclass(frozen=True)
class Light:
    """One main light (a far sun, or a lamp at a point in metres) over a soft ambient dome."""

    position: Point
    colour: Colour
    is_sun: bool
    size_m: float = 0.15
    ambient_up: Colour = (0.4, 0.45, 0.55)
    ambient_down: Colour = (0.2, 0.18, 0.15)


@dataclass
class Scene:
    """All that a picture is made of; `planes` (K, 4) are big surfaces that darken their corners."""

    camera: Camera
    light: Light
    shapes: list[Shape] = field(default_factory=list)
    planes: list[tuple[float, float, float, float]] = field(default_factory=list)
    sky_low: Colour = (0.75, 0.82, 0.9)
    sky_high: Colour = (0.25, 0.42, 0.75)
    clouds: float = 0.5
    fog_m: float = 1e4
    seed: int = 0


def _sky(scene: Scene, direction: Array) -> Array:
    """Sky colour (3, N): a gradient from the horizon up, with clouds of 1/f noise."""
    unit = _unit(direction)
    height = unit[1].clip(0, 1)
    low, high = _vec(scene.sky_low)[:, None], _vec(scene.sky_high)[:, None]
    colour = low + (high - low) * np.sqrt(height)
    above = np.maximum(unit[1], np.float32(0.06)) + np.float32(0.12)
    cloud = _noise(unit[0] / above, unit[2] / above, 3.0, scene.seed)
    weight = ((cloud - 1 + 0.6 * scene.clouds) * 4).clip(0, 1) * (height * 6).clip(0, 1) * 0.85
    bright = np.float32(1.05) * low.mean() + np.float32(0.1)
    sky: Array = colour + (bright - colour) * weight
    return sky


def _openness(scene: Scene, point: Array, normal: Array) -> Array:
    """Ambient occlusion (N,) in 0..1 by nearby shapes, taken as spheres, and the big planes."""
    light = np.ones(point.shape[1], np.float32)
    for shape in scene.shapes:
        if not shape.occludes or shape.radius_m > 2.5:
            continue
        radius = float(np.sort(shape.half_m)[1])
        offset = shape.centre[:, None] - point
        squared = _dot(offset, offset)
        close = np.flatnonzero(squared < (5 * radius) ** 2)
        if close.size:
            near, offset = squared[close], offset[:, close]
            facing = _dot(offset, normal[:, close]) / np.sqrt(near + 1e-6)
            amount = facing.clip(0, 1) * radius**2 / np.maximum(near, radius**2)
            light[close] *= 1 - 0.75 * amount
    for a, b, c, d in scene.planes:
        same = (normal[0] * a + normal[1] * b + normal[2] * c) > 0.9
        distance = point[0] * a + point[1] * b + point[2] * c - d
        light *= np.where(same, 1, 1 - 0.4 * np.exp(-distance.clip(0, 8) / 0.35)).astype(np.float32)
    return light


def _texture(
    scene: Scene, which: npt.NDArray[np.int32], point: Array, toward: Array, pixel_m: Array
) -> tuple[Array, Array, Array, Array]:
    """Albedo (3, N), bumped normal (3, N), shine (N,) and glow (N,) of every hit point."""
    albedo = np.zeros_like(point)
    normal = np.zeros_like(point)
    shine = np.zeros(point.shape[1], np.float32)
    glow = np.zeros(point.shape[1], np.float32)
    for index in np.unique(which):
        hit = np.flatnonzero(which == index)
        shape = scene.shapes[index]
        m = shape.material
        n, u, v = _surface(shape, point[:, hit])
        n = n * np.where(_dot(n, toward[:, hit]) < 0, -1, 1).astype(np.float32)
        albedo[:, hit] = _albedo(m, u, v, pixel_m[hit])
        if m.bump:
            x, y, z = point[:, hit]
            scale = m.scale_m * 1.5
            wobble = np.stack([_noise(x + z, y, scale, m.seed + k) - 0.5 for k in (1, 2, 3)])
            n = _unit(n + m.bump * 2 * wobble)
        normal[:, hit] = n
        shine[hit] = m.shine
        glow[hit] = m.glow
    return albedo, normal, shine, glow


def _shade(
    scene: Scene, which: npt.NDArray[np.int32], point: Array, pixel_m: Array, rng: Rng
) -> Array:
    """Linear colour (3, N) of hit points: occluded ambient, one shadowed light, a highlight."""
    eye = _vec(scene.camera.position)[:, None]
    toward = _unit(eye - point)
    albedo, normal, shine, glow = _texture(scene, which, point, toward, pixel_m)
    light = scene.light
    # One jittered light ray per sample: penumbras are soft once samples are averaged or blurred.
    jitter = rng.uniform(-1, 1, point.shape).astype(np.float32) * np.float32(light.size_m)
    to_light = _vec(light.position)[:, None] + jitter - (0 if light.is_sun else point)
    distance = np.sqrt(_dot(to_light, to_light))
    to_light = to_light / distance
    facing = _dot(to_light, normal).clip(0, None)
    lit = np.flatnonzero(facing > 0)
    start = point[:, lit] + normal[:, lit] * np.float32(4e-3)
    facing[lit] *= ~_blocked(
        scene.shapes, start, to_light[:, lit], distance[lit] - np.float32(0.02)
    )
    if not light.is_sun:
        facing = facing * (9 / (3 + distance**2))
    up = (0.5 + 0.5 * normal[1])[None]
    dome_up, dome_down = (
        _vec(light.ambient_up)[:, None],
        _vec(light.ambient_down)[:, None],
    )
    ambient = (dome_down + (dome_up - dome_down) * up) * _openness(scene, point, normal)
    half = _unit(to_light + toward)
    gloss = shine * _dot(half, normal).clip(0, 1) ** 40 * (facing > 0)
    colour = _vec(light.colour)[:, None]
    shaded: Array = albedo * (ambient + colour * facing + glow) + colour * gloss * np.float32(0.8)
    return shaded


def _cast(scene: Scene, height: int, width: int, rng: Rng) -> tuple[Array, Array]:
    """Linear picture (H, W, 3) and unclipped z-depth (H, W), infinite in the sky."""
    direction = scene.camera.rays(height, width)
    origin = _vec(scene.camera.position)[:, None]
    t, which = trace(scene.shapes, origin, direction)
    colour = _sky(scene, direction)
    hit = np.flatnonzero(which >= 0)
    # Shadow rays go in slices that stay in the cache, several times faster on large pictures.
    for part in np.array_split(hit, max(1, hit.size // 60_000)):
        point = origin + t[part] * direction[:, part]
        pixel_m = t[part] * np.float32(2 * np.tan(np.radians(scene.camera.fov_deg) / 2) / width)
        shaded = _shade(scene, which[part], point, pixel_m, rng)
        veil = np.exp(-t[part] / np.float32(scene.fog_m))
        fog = _vec(scene.sky_low)[:, None]
        colour[:, part] = fog + (shaded - fog) * veil
    return np.ascontiguousarray(colour.T).reshape(height, width, 3), t.reshape(height, width)


# ------------------------------------------------------------------------------- building and props


def _pick(rng: Rng, options: Sequence[Colour], spread: float = 0.12) -> Colour:
    """One of the sRGB colours, moved a little, as linear RGB."""
    colour = np.array(options[int(rng.integers(len(options)))]) + rng.normal(0, spread / 3, 3)
    colour = (0.85 * colour + 0.15 * colour.mean()) * rng.uniform(1 - spread, 1 + spread)
    r, g, b = (float(c) for c in colour.clip(0.02, 0.98) ** 2.2)
    return r, g, b


_WALLS: list[Colour] = [
    (0.93, 0.9, 0.84), (0.85, 0.87, 0.88), (0.8, 0.84, 0.78), (0.9, 0.82, 0.72), (0.72, 0.8, 0.86),
    (0.62, 0.68, 0.62), (0.87, 0.72, 0.66), (0.95, 0.94, 0.92), (0.55, 0.6, 0.68),
    (0.9, 0.86, 0.66),
]  # fmt: skip
_WOODS: list[Colour] = [
    (0.65, 0.47, 0.3), (0.5, 0.34, 0.2), (0.78, 0.62, 0.44), (0.38, 0.25, 0.16), (0.72, 0.54, 0.36),
]  # fmt: skip
_STONES: list[Colour] = [
    (0.6, 0.58, 0.54), (0.7, 0.66, 0.58), (0.5, 0.5, 0.5), (0.66, 0.6, 0.52), (0.45, 0.46, 0.48),
]  # fmt: skip
_BRICKS: list[Colour] = [
    (0.66, 0.36, 0.27), (0.74, 0.5, 0.36), (0.55, 0.3, 0.26), (0.78, 0.66, 0.5), (0.6, 0.56, 0.5),
]  # fmt: skip
_GREENS: list[Colour] = [
    (0.3, 0.45, 0.2), (0.4, 0.55, 0.25), (0.25, 0.38, 0.22), (0.5, 0.56, 0.26), (0.35, 0.5, 0.32),
]  # fmt: skip
_CLOTHS: list[Colour] = [
    (0.75, 0.25, 0.22), (0.2, 0.35, 0.6), (0.85, 0.7, 0.3), (0.2, 0.22, 0.26), (0.85, 0.84, 0.8),
    (0.3, 0.5, 0.42), (0.55, 0.35, 0.5), (0.85, 0.5, 0.3), (0.4, 0.55, 0.7), (0.5, 0.45, 0.38),
]  # fmt: skip
_SKINS: list[Colour] = [(0.88, 0.7, 0.58), (0.72, 0.52, 0.4), (0.5, 0.34, 0.25), (0.94, 0.78, 0.68)]


def _finish(
    rng: Rng, colours: Sequence[Colour], pattern: str = "plain", **fields: float
) -> Material:
    """A material with a seeded colour; its second colour is a darker tone of the first."""
    base = _pick(rng, colours)
    dark = float(rng.uniform(0.35, 0.8))
    second = (base[0] * dark, base[1] * dark, base[2] * dark)
    made = Material(base, second, pattern, seed=int(rng.integers(4096)))
    return replace(made, **fields)  # type: ignore[arg-type]


class _Kit:
    """Collects shapes in a local frame: a point on the floor and a heading."""

    def __init__(
        self, shapes: list[Shape], x: float = 0, z: float = 0, yaw_deg: float = 0, y: float = 0
    ) -> None:
        self.shapes = shapes
        self.place: Array = np.array([x, y, z], np.float32)
        self.turn: Array = _turn(1, float(np.radians(yaw_deg)))

    def at(self, x: float, z: float, yaw_deg: float = 0, y: float = 0) -> _Kit:
        """A kit for the same shapes whose frame is placed inside this one."""
        kit = _Kit(self.shapes)
        kit.place = self.place + self.turn @ _vec([x, y, z])
        kit.turn = self.turn @ _turn(1, float(np.radians(yaw_deg)))
        return kit

    def add(
        self,
        form: Form,
        centre: Point,
        half_m: Point,
        material: Material,
        *,
        taper: float = 1.0,
        turn: Array | None = None,
        occludes: bool = True,
    ) -> None:
        where = (self.place + self.turn @ _vec(centre)).astype(np.float32)
        rotation = (self.turn if turn is None else self.turn @ turn).astype(np.float32)
        half = np.maximum(_vec(half_m), np.float32(1e-3))
        self.shapes.append(Shape(form, where, half, rotation, material, taper, occludes))

    def box(self, centre: Point, size: Point, material: Material, yaw_deg: float = 0) -> None:
        turn = _turn(1, float(np.radians(yaw_deg)))
        self.add("box", centre, (size[0] / 2, size[1] / 2, size[2] / 2), material, turn=turn)

    def ball(self, centre: Point, half_m: Point | float, material: Material) -> None:
        half = half_m if isinstance(half_m, tuple) else (half_m, half_m, half_m)
        self.add("sphere", centre, half, material)

    def post(
        self, x: float, y: float, z: float, height: float, low: float, high: float, m: Material
    ) -> None:
        """An upright frustum standing at (x, y, z) with the given radii below and above."""
        wide = max(low, 1e-3)
        self.add("frustum", (x, y + height / 2, z), (wide, height / 2, wide), m, taper=high / wide)

    def rod(self, start: Point, end: Point, radius: float, m: Material, taper: float = 1.0) -> None:
        """A cylinder between two points with round ends: a capsule."""
        a, b = np.array(start), np.array(end)
        axis = (b - a) / np.linalg.norm(b - a)
        side = np.cross(axis, [0.31, 0.17, 0.94])
        side /= np.linalg.norm(side)
        turn = np.stack([side, axis, np.cross(side, axis)], axis=1).astype(np.float32)
        half = float(np.linalg.norm(b - a) / 2)
        middle = (a + b) / 2
        centre = (float(middle[0]), float(middle[1]), float(middle[2]))
        self.add("frustum", centre, (radius, half, radius), m, taper=taper, turn=turn)
        self.ball(start, radius, m)
        self.ball(end, radius * taper, m)


def _table(kit: _Kit, rng: Rng, width: float, depth: float, height: float) -> None:
    wood = _finish(rng, _WOODS, "planks", scale_m=0.12, shine=0.15)
    leg = replace(wood, pattern="plain")
    kit.box((0, height - 0.02, 0), (width, 0.04, depth), wood)
    for x in (-width / 2 + 0.06, width / 2 - 0.06):
        for z in (-depth / 2 + 0.06, depth / 2 - 0.06):
            kit.box((x, height / 2 - 0.02, z), (0.06, height - 0.04, 0.06), leg)


def _tabletop(kit: _Kit, rng: Rng, width: float, depth: float, height: float) -> None:
    """A few small things on a surface: vases, books, bowls, balls."""
    for _ in range(int(rng.integers(1, 5))):
        x, z = rng.uniform(-0.4, 0.4) * width, rng.uniform(-0.35, 0.35) * depth
        m = _finish(rng, _CLOTHS, shine=0.4)
        what = rng.integers(4)
        if what == 0:
            kit.post(
                x,
                height,
                z,
                rng.uniform(0.1, 0.3),
                rng.uniform(0.04, 0.08),
                rng.uniform(0.03, 0.09),
                m,
            )
        elif what == 1:
            for k in range(int(rng.integers(1, 4))):
                cover = _finish(rng, _CLOTHS)
                kit.box(
                    (x, height + 0.02 + 0.04 * k, z), (0.2, 0.04, 0.15), cover, rng.uniform(-30, 30)
                )
        elif what == 2:
            radius = float(rng.uniform(0.04, 0.12))
            kit.ball((x, height + radius, z), radius, m)
        else:
            kit.post(x, height, z, 0.08, 0.05, 0.12, m)


def _chair(kit: _Kit, rng: Rng) -> None:
    seat = _finish(rng, _CLOTHS if rng.random() < 0.4 else _WOODS)
    leg = _finish(rng, _WOODS)
    for x in (-0.18, 0.18):
        for z in (-0.18, 0.18):
            kit.box((x, 0.22, z), (0.04, 0.44, 0.04), leg)
    kit.box((0, 0.46, 0), (0.44, 0.05, 0.44), seat)
    kit.box((0, 0.75, 0.2), (0.42, 0.3, 0.04), seat)
    for x in (-0.18, 0.18):
        kit.box((x, 0.68, 0.2), (0.04, 0.44, 0.04), leg)


def _sofa(kit: _Kit, rng: Rng) -> None:
    width = float(rng.uniform(1.3, 2.2))
    cloth = _finish(
        rng, _CLOTHS, str(rng.choice(["plain", "plain", "stripes", "stone"])), scale_m=0.12
    )
    kit.box((0, 0.25, 0), (width, 0.36, 0.85), cloth)
    kit.box((0, 0.6, 0.34), (width, 0.5, 0.2), cloth)
    for x in (-width / 2, width / 2):
        kit.box((x, 0.34, 0), (0.18, 0.56, 0.85), cloth)
    pillow = _finish(rng, _CLOTHS, str(rng.choice(["plain", "stripes", "dots"])), scale_m=0.06)
    for _ in range(int(rng.integers(0, 3))):
        kit.ball((rng.uniform(-0.35, 0.35) * width, 0.56, 0.18), (0.22, 0.18, 0.1), pillow)


def _shelf(kit: _Kit, rng: Rng) -> None:
    width, height, depth = rng.uniform(0.7, 1.6), rng.uniform(1.0, 2.1), 0.32
    wood = _finish(rng, [*_WOODS, (0.9, 0.9, 0.88)], scale_m=0.1)
    kit.box((0, height / 2, depth / 2 - 0.02), (width, height, 0.03), wood)
    for x in (-width / 2, width / 2):
        kit.box((x, height / 2, 0), (0.04, height, depth), wood)
    boards = int(height / 0.36) + 1
    for y in np.linspace(0.05, height, boards):
        kit.box((0, float(y), 0), (width, 0.03, depth), wood)
    for y in np.linspace(0.05, height, boards)[:-1]:
        if rng.random() < 0.75:
            books = _finish(rng, _CLOTHS, "planks", scale_m=0.5)
            books = replace(books, pattern="stripes", scale_m=float(rng.uniform(0.03, 0.06)))
            wide = float(rng.uniform(0.3, 0.85) * width)
            tall = float(rng.uniform(0.18, 0.27))
            shift = float(rng.uniform(-0.5, 0.5) * (width - wide - 0.1))
            kit.box((shift, float(y) + tall / 2 + 0.015, 0.02), (wide, tall, 0.2), books)


def _cabinet(kit: _Kit, rng: Rng) -> None:
    width, height = float(rng.uniform(0.6, 1.8)), float(rng.uniform(0.5, 1.1))
    wood = _finish(rng, [*_WOODS, *_WALLS], shine=0.1)
    kit.box((0, height / 2, 0), (width, height, 0.45), wood)
    knob = _finish(rng, [(0.2, 0.2, 0.2), (0.8, 0.7, 0.4)], shine=0.5)
    for x in np.arange(-width / 2 + 0.25, width / 2, 0.45):
        front = replace(wood, base=wood.second)
        kit.box((float(x), height / 2, -0.225), (0.4, height - 0.1, 0.012), front)
        kit.ball((float(x) + 0.14, height * 0.6, -0.24), 0.02, knob)
    _tabletop(kit, rng, width, 0.4, height)


def _bed(kit: _Kit, rng: Rng) -> None:
    cloth = _finish(
        rng, [*_CLOTHS, *_WALLS], str(rng.choice(["plain", "stripes", "dots"])), scale_m=0.15
    )
    white = _finish(rng, [(0.92, 0.92, 0.9)])
    kit.box((0, 0.18, 0), (1.5, 0.36, 2.0), _finish(rng, _WOODS))
    kit.box((0, 0.42, 0), (1.46, 0.2, 1.96), cloth)
    for x in (-0.36, 0.36):
        kit.ball((x, 0.56, 0.75), (0.3, 0.1, 0.2), white)
    kit.box((0, 0.55, 1.02), (1.55, 1.0, 0.06), _finish(rng, _WOODS))


def _floor_lamp(kit: _Kit, rng: Rng) -> None:
    metal = _finish(rng, [(0.2, 0.2, 0.2), (0.7, 0.6, 0.4)], shine=0.4)
    shade = _finish(rng, [(0.95, 0.9, 0.78)], glow=0.8)
    height = float(rng.uniform(1.3, 1.7))
    kit.post(0, 0, 0, 0.03, 0.15, 0.13, metal)
    kit.post(0, 0, 0, height, 0.015, 0.015, metal)
    kit.post(0, height - 0.05, 0, 0.28, 0.2, 0.12, shade)


def _house_plant(kit: _Kit, rng: Rng) -> None:
    pot = _finish(rng, [(0.7, 0.4, 0.3), (0.85, 0.85, 0.82), (0.3, 0.35, 0.4)])
    leaf = _finish(rng, _GREENS, "foliage", scale_m=0.05, bump=0.5)
    kit.post(0, 0, 0, 0.3, 0.13, 0.18, pot)
    for _ in range(int(rng.integers(5, 10))):
        x, z, y = rng.normal(0, 0.13), rng.normal(0, 0.13), rng.uniform(0.4, 1.0)
        kit.ball((x, y, z), (0.12, 0.16, 0.12), leaf)


def _figure(kit: _Kit, rng: Rng) -> None:
    """A standing or walking person of 1.5-1.9 m, made of capsules and ellipsoids."""
    s = float(rng.uniform(1.5, 1.9)) / 1.75
    shirt, trousers = _finish(rng, _CLOTHS), _finish(rng, _CLOTHS[1:])
    skin, hair = (
        _finish(rng, _SKINS),
        _finish(rng, [(0.15, 0.1, 0.08), (0.5, 0.35, 0.2), (0.6, 0.6, 0.6)]),
    )
    shoe = _finish(rng, [(0.12, 0.12, 0.12), (0.8, 0.8, 0.8), (0.35, 0.22, 0.15)])
    step, swing = float(rng.uniform(-0.25, 0.25)), float(rng.uniform(0, 0.3))
    for side, forward in ((-1, step), (1, -step)):
        foot = (side * 0.1 * s, 0.06 * s, forward * s)
        kit.rod(
            (side * 0.09 * s, 0.9 * s, 0), (foot[0], 0.1 * s, foot[2]), 0.085 * s, trousers, 0.65
        )
        kit.ball((foot[0], 0.04 * s, foot[2] - 0.05 * s), (0.05 * s, 0.04 * s, 0.13 * s), shoe)
        elbow = (side * (0.25 + 0.3 * swing) * s, 1.12 * s, -forward * 0.4 * s)
        hand = (side * (0.24 + 0.2 * swing) * s, 0.88 * s, -forward * 0.9 * s - 0.08)
        kit.rod((side * 0.19 * s, 1.38 * s, 0), elbow, 0.055 * s, shirt, 0.85)
        kit.rod(elbow, hand, 0.045 * s, skin if rng.random() < 0.4 else shirt, 0.8)
        kit.ball(hand, 0.05 * s, skin)
    kit.ball((0, 1.16 * s, 0), (0.19 * s, 0.32 * s, 0.125 * s), shirt)
    kit.ball((0, 0.93 * s, 0), (0.17 * s, 0.14 * s, 0.12 * s), trousers)
    kit.rod((0, 1.4 * s, 0), (0, 1.5 * s, 0), 0.05 * s, skin)
    kit.ball((0, 1.61 * s, 0), (0.085 * s, 0.115 * s, 0.1 * s), skin)
    kit.ball((0, 1.655 * s, 0.025 * s), (0.095 * s, 0.09 * s, 0.105 * s), hair)


def _tree(kit: _Kit, rng: Rng) -> None:
    bark = _finish(rng, [(0.4, 0.3, 0.22), (0.5, 0.45, 0.4)], "bands", scale_m=0.05, bump=0.3)
    leaf = _finish(rng, _GREENS, "foliage", scale_m=0.16, bump=0.8)
    height = float(rng.uniform(2.5, 5.5))
    if rng.random() < 0.25:  # a conifer: stacked cones
        kit.post(0, 0, 0, height * 0.3, 0.12, 0.1, bark)
        for k in range(4):
            y = height * (0.18 + 0.2 * k)
            kit.post(0, y, 0, height * 0.34, height * (0.24 - 0.05 * k), 0.01, leaf)
        return
    kit.post(0, 0, 0, height * 0.6, 0.14, 0.08, bark)
    crown = height * 0.3
    kit.ball((0, height * 0.72, 0), (crown * 0.8, crown * 0.75, crown * 0.8), leaf)
    for _ in range(int(rng.integers(10, 20))):
        x, y, z = _unit(rng.standard_normal((3, 1)).astype(np.float32))[:, 0] * crown * 0.75
        r = float(crown * rng.uniform(0.25, 0.45))
        kit.ball((float(x), height * 0.72 + float(y) * 0.9, float(z)), (r, r * 0.85, r), leaf)


def _bush(kit: _Kit, rng: Rng) -> None:
    leaf = _finish(rng, _GREENS, "foliage", scale_m=0.07, bump=0.8)
    for _ in range(int(rng.integers(3, 7))):
        x, z = rng.normal(0, 0.3, 2)
        r = float(rng.uniform(0.2, 0.45))
        kit.ball((x, r * 0.7, z), (r, r, r), leaf)


def _car(kit: _Kit, rng: Rng) -> None:
    """A parked car, 4 m along its local z."""
    paint = _finish(rng, _CLOTHS, shine=0.8, grain=0.02)
    glass = Material((0.03, 0.04, 0.05), shine=1.0, grain=0.02)
    tyre = Material((0.02, 0.02, 0.02))
    hub = Material((0.5, 0.5, 0.52), shine=0.5)
    kit.box((0, 0.55, 0), (1.7, 0.5, 4.0), paint)
    kit.ball((0, 0.62, 0), (0.88, 0.32, 2.15), paint)
    kit.add("frustum", (0, 1.08, -0.15), (0.98, 0.3, 1.35), glass, taper=0.72)
    kit.box((0, 1.36, -0.15), (1.1, 0.05, 1.6), paint)
    lights = Material((0.8, 0.75, 0.6), shine=0.8, glow=0.3)
    for x in (-0.6, 0.6):
        kit.ball((x, 0.62, -2.02), (0.16, 0.09, 0.06), lights)
    for x in (-0.82, 0.82):
        for z in (-1.25, 1.25):
            across = _turn(2, float(np.pi / 2))
            kit.add("frustum", (x, 0.31, z), (0.31, 0.1, 0.31), tyre, turn=across)
            kit.add("frustum", (x, 0.31, z), (0.17, 0.11, 0.17), hub, turn=across)


def _bench(kit: _Kit, rng: Rng) -> None:
    wood = _finish(rng, _WOODS)
    iron = _finish(rng, [(0.2, 0.22, 0.22)])
    for z in (-0.16, 0, 0.16):
        kit.box((0, 0.45, z), (1.5, 0.04, 0.12), wood)
    for y in (0.62, 0.78):
        kit.box((0, y, 0.26), (1.5, 0.11, 0.03), wood)
    for x in (-0.6, 0.6):
        kit.box((x, 0.22, 0.02), (0.06, 0.44, 0.4), iron)
        kit.box((x, 0.6, 0.28), (0.06, 0.5, 0.03), iron)


def _crates(kit: _Kit, rng: Rng) -> None:
    """Boxes, barrels and balls: plain solids of every size."""
    for _ in range(int(rng.integers(1, 5))):
        x, z = rng.normal(0, 0.5, 2)
        size = float(rng.uniform(0.2, 0.8))
        pattern = str(
            rng.choice(["plain", "planks", "stone", "checker", "stripes", "dots", "tiles"])
        )
        m = _finish(
            rng, [*_CLOTHS, *_WOODS, *_STONES], pattern, scale_m=float(rng.uniform(0.06, 0.25))
        )
        m = replace(m, shine=float(rng.choice([0, 0.4])))
        what = rng.integers(4)
        if what == 0:
            kit.ball((x, size / 2, z), size / 2, m)
        elif what == 1:
            kit.post(
                x, 0, z, size * 1.3, size / 2, size / 2 * float(rng.choice([1, 1, 0.7, 0.02])), m
            )
        else:
            tall = size * float(rng.uniform(0.5, 1.8))
            kit.box(
                (x, tall / 2, z),
                (size, tall, size * float(rng.uniform(0.6, 1.4))),
                m,
                rng.uniform(0, 90),
            )


def _lamp_post(kit: _Kit, rng: Rng) -> None:
    iron = _finish(rng, [(0.16, 0.18, 0.18), (0.3, 0.32, 0.33)])
    kit.post(0, 0, 0, 0.4, 0.1, 0.07, iron)
    kit.post(0, 0, 0, 3.6, 0.05, 0.035, iron)
    kit.ball((0, 3.7, 0), 0.17, Material((0.9, 0.88, 0.8), glow=0.25))


def _planter(kit: _Kit, rng: Rng) -> None:
    pot = _finish(
        rng, [*_BRICKS, *_STONES], str(rng.choice(["plain", "stone", "bricks"])), scale_m=0.15
    )
    kit.box((0, 0.22, 0), (0.9, 0.44, 0.5), pot)
    _bush(kit.at(0, 0, y=0.3), rng)


PROPS: dict[str, Callable[[_Kit, Rng], None]] = {
    "chair": _chair,
    "sofa": _sofa,
    "lamp": _floor_lamp,
    "plant": _house_plant,
    "person": _figure,
    "bush": _bush,
    "car": _car,
    "bench": _bench,
    "planter": _planter,
}


def build_prop(name: str, seed: int, x: float, z: float, yaw_deg: float) -> list[Shape]:
    """The shapes of one of `PROPS` that stands on the floor at (x, 0, z)."""
    kit = _Kit([], x, z, yaw_deg)
    PROPS[name](kit, np.random.default_rng(seed))
    return kit.shapes


# --------------------------------------------------------------------------------------- four kinds


def _wall_finish(rng: Rng) -> Material:
    pattern = str(
        rng.choice(["plain", "plain", "stone", "stripes", "bricks", "dots", "half", "tiles"])
    )
    scale = {"stripes": 0.12, "bricks": 0.24, "dots": 0.14, "half": 1.0, "tiles": 0.3}.get(
        pattern, 0.4
    )
    return _finish(rng, _BRICKS if pattern == "bricks" else _WALLS, pattern, scale_m=scale)


def _floor_finish(rng: Rng) -> Material:
    pattern = str(rng.choice(["planks", "planks", "tiles", "checker", "stone", "plain"]))
    scale = {"planks": 0.14, "tiles": 0.4, "checker": 0.35}.get(pattern, 0.3)
    colours = _WOODS if pattern == "planks" else [*_STONES, *_WALLS, *_WOODS]
    return _finish(rng, colours, pattern, scale_m=float(scale * rng.uniform(0.7, 1.4)), shine=0.12)


def _shell(
    kit: _Kit, rng: Rng, left: float, right: float, near: float, far: float, high: float
) -> Material:
    """Floor, ceiling and the four walls of an interior, as slabs 0.2 m thick; returns the wall
    finish.
    """
    wall = _wall_finish(rng)
    other = wall if rng.random() < 0.6 else _wall_finish(rng)
    floor = _floor_finish(rng)
    ceiling = _finish(rng, [(0.94, 0.94, 0.92), (0.88, 0.88, 0.88), (0.8, 0.74, 0.66)])
    wide, deep, x, z = right - left, far - near, (left + right) / 2, (near + far) / 2
    kit.box((x, -0.1, z), (wide + 0.4, 0.2, deep + 0.4), floor)
    kit.box((x, high + 0.1, z), (wide + 0.4, 0.2, deep + 0.4), ceiling)
    kit.box((left - 0.1, high / 2, z), (0.2, high, deep), wall)
    kit.box((right + 0.1, high / 2, z), (0.2, high, deep), wall)
    kit.box((x, high / 2, far + 0.1), (wide + 0.4, high, 0.2), other)
    kit.box((x, high / 2, near - 0.1), (wide + 0.4, high, 0.2), wall)
    skirting = _finish(rng, [(0.92, 0.92, 0.9), (0.4, 0.28, 0.2)])
    for side in (left + 0.01, right - 0.01):
        kit.box((side, 0.05, z), (0.02, 0.1, deep), skirting)
    kit.box((x, 0.05, far - 0.01), (wide, 0.1, 0.02), skirting)
    return wall


def _door(kit: _Kit, rng: Rng) -> None:
    """A door or window on a wall whose inside faces local -z at z = 0."""
    if rng.random() < 0.5:
        leaf = _finish(rng, [*_WOODS, (0.9, 0.9, 0.9)])
        kit.box((0, 1.02, 0), (0.96, 2.08, 0.06), replace(leaf, base=leaf.second))
        kit.box((0, 1.0, -0.02), (0.84, 2.0, 0.06), leaf)
        kit.ball((0.34, 1.0, -0.08), 0.035, Material((0.5, 0.45, 0.3), shine=0.6))
        return
    width, height = float(rng.uniform(0.7, 1.6)), float(rng.uniform(0.8, 1.3))
    frame = _finish(rng, [(0.95, 0.95, 0.94), (0.45, 0.3, 0.2)])
    glass = Material((0.55, 0.68, 0.85), (0.8, 0.86, 0.9), "stone", 0.6, glow=0.9)
    kit.box((0, 1.5, 0), (width + 0.14, height + 0.14, 0.06), frame)
    kit.box((0, 1.5, -0.02), (width, height, 0.04), glass)
    kit.box((0, 1.5, -0.03), (0.05, height, 0.05), frame)
    if rng.random() < 0.6:
        cloth = _finish(rng, [*_CLOTHS, *_WALLS], "stripes", scale_m=0.05)
        for side in (-1, 1):
            kit.box((side * (width / 2 + 0.1), 1.4, -0.07), (0.3, height + 0.6, 0.05), cloth)


def _picture(kit: _Kit, rng: Rng) -> None:
    width, height = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.3, 0.8))
    frame = _finish(rng, [(0.15, 0.12, 0.1), (0.75, 0.6, 0.35), (0.95, 0.95, 0.95)])
    art = _finish(
        rng,
        _CLOTHS,
        str(rng.choice(["stone", "checker", "dots", "bands", "foliage"])),
        scale_m=0.12,
    )
    kit.box((0, 1.55, 0), (width + 0.08, height + 0.08, 0.04), frame)
    kit.box((0, 1.55, -0.01), (width, height, 0.04), replace(art, second=_pick(rng, _WALLS)))


def _furnish_wall(kit: _Kit, rng: Rng, length: float) -> None:
    """Fills a wall of a given length (along local x, the room towards local -z) with furniture."""
    x = -length / 2 + 0.5
    while x < length / 2 - 0.5:
        spot = kit.at(x, 0)
        what = rng.integers(10)
        if what == 0:
            _shelf(spot.at(0, -0.18), rng)
        elif what == 1:
            _cabinet(spot.at(0, -0.25), rng)
        elif what == 2:
            _sofa(spot.at(0.3, -0.45), rng)
        elif what in (3, 4):
            _door(spot, rng)
        elif what in (5, 6):
            _picture(spot, rng)
        elif what == 7:
            _house_plant(spot.at(0, -0.35), rng)
        elif what == 8:
            _floor_lamp(spot.at(0, -0.3), rng)
        x += float(rng.uniform(0.8, 1.9))


def _indoor_light(rng: Rng, x: float, z: float, high: float) -> Light:
    warm = float(rng.uniform(0, 1))
    power = float(rng.uniform(0.5, 1.1))
    colour = (power, power * (1 - 0.22 * warm), power * (1 - 0.5 * warm))
    level = float(rng.uniform(0.25, 0.6))
    up = (level, level, level * float(rng.uniform(0.85, 1.15)))
    down = (level * 0.75, level * 0.7, level * 0.62)
    return Light((x, high - 0.4, z), colour, is_sun=False, ambient_up=up, ambient_down=down)


def _indoor_camera(rng: Rng, x: float, z: float) -> Camera:
    return Camera(
        (x, float(rng.uniform(0.9, 1.9)), z),
        float(rng.normal(0, 14)),
        float(rng.uniform(-20, 4)),
        float(rng.normal(0, 1.5)),
        float(rng.uniform(55, 66)),
    )


def _room(rng: Rng) -> Scene:
    wide, deep, high = (
        float(rng.uniform(2.8, 6)),
        float(rng.uniform(3, 7.5)),
        float(rng.uniform(2.3, 3.1)),
    )
    camera = _indoor_camera(rng, float(rng.uniform(-0.22, 0.22)) * wide, 0.0)
    light = _indoor_light(rng, rng.uniform(-0.3, 0.3) * wide, rng.uniform(0.3, 0.8) * deep, high)
    scene = Scene(camera, light)
    kit = _Kit(scene.shapes)
    _shell(kit, rng, -wide / 2, wide / 2, -0.6, deep, high)
    scene.planes += [(0, 1, 0, 0), (0, -1, 0, -high), (1, 0, 0, -wide / 2)]
    scene.planes += [(-1, 0, 0, -wide / 2), (0, 0, -1, -deep)]
    _furnish_wall(kit.at(0, deep), rng, wide)
    _furnish_wall(kit.at(-wide / 2, deep / 2, -90), rng, deep)
    _furnish_wall(kit.at(wide / 2, deep / 2, 90), rng, deep)
    if rng.random() < 0.5:
        rug = _finish(
            rng, _CLOTHS, str(rng.choice(["stripes", "checker", "dots", "plain"])), scale_m=0.2
        )
        kit.box((0, 0.006, deep * 0.55), (wide * 0.5, 0.012, deep * 0.4), rug)
    for _ in range(int(rng.integers(1, 4))):
        spot = kit.at(
            rng.uniform(-0.35, 0.35) * wide,
            rng.uniform(1.3, max(1.5, deep - 0.8)),
            rng.uniform(-180, 180),
        )
        _middle_prop(spot, rng)
    return scene


def _middle_prop(spot: _Kit, rng: Rng) -> None:
    what = rng.integers(8)
    if what <= 1:
        width, depth, height = rng.uniform(0.8, 1.6), rng.uniform(0.6, 0.9), rng.uniform(0.4, 0.78)
        _table(spot, rng, width, depth, height)
        _tabletop(spot, rng, width, depth, height)
        _chair(spot.at(0, depth / 2 + 0.2), rng)
    elif what == 2:
        _chair(spot, rng)
    elif what == 3:
        _bed(spot, rng)
    elif what <= 5:
        _figure(spot, rng)
    else:
        _crates(spot, rng)


def _corridor(rng: Rng) -> Scene:
    wide, deep, high = (
        float(rng.uniform(1.6, 3)),
        float(rng.uniform(5, 16)),
        float(rng.uniform(2.3, 3.2)),
    )
    camera = _indoor_camera(rng, float(rng.uniform(-0.2, 0.2)) * wide, 0.0)
    camera = replace(camera, yaw_deg=camera.yaw_deg * 0.6)
    light = _indoor_light(rng, 0.0, float(rng.uniform(1.5, 5)), high)
    scene = Scene(camera, light)
    kit = _Kit(scene.shapes)
    _shell(kit, rng, -wide / 2, wide / 2, -0.5, deep, high)
    scene.planes += [(0, 1, 0, 0), (0, -1, 0, -high), (1, 0, 0, -wide / 2)]
    scene.planes += [(-1, 0, 0, -wide / 2), (0, 0, -1, -deep)]
    panel = Material((0.95, 0.93, 0.88), glow=0.9)
    for z in np.arange(1.5, deep, float(rng.uniform(1.8, 3))):
        kit.box((0, high - 0.01, float(z)), (0.5, 0.03, 0.9), panel)
    for side, yaw in ((-wide / 2, -90.0), (wide / 2, 90.0)):
        for z in np.arange(rng.uniform(0.8, 2), deep - 0.5, rng.uniform(1.4, 2.6)):
            spot = kit.at(side, float(z), yaw)
            what = rng.integers(6)
            if what <= 2:
                _door(spot, rng)
            elif what <= 4:
                _picture(spot, rng)
            else:
                _cabinet(spot.at(0, -0.25), rng) if rng.random() < 0.5 else _bench(
                    spot.at(0, -0.32), rng
                )
    _door(kit.at(0, deep), rng)
    for _ in range(int(rng.integers(0, 4))):
        spot = kit.at(
            rng.uniform(-0.3, 0.3) * wide, rng.uniform(1.6, min(deep, 9)), rng.uniform(-180, 180)
        )
        (_figure, _figure, _crates, _house_plant, _chair)[int(rng.integers(5))](spot, rng)
    return scene


def _desk(kit: _Kit, rng: Rng) -> None:
    """A desk with a screen, its chair in front, and sometimes a screen wall behind."""
    width, depth, height = float(rng.uniform(1.2, 1.7)), 0.75, 0.74
    _table(kit, rng, width, depth, height)
    dark = _finish(rng, [(0.1, 0.1, 0.11), (0.3, 0.3, 0.32), (0.85, 0.85, 0.85)])
    shown = _finish(rng, [*_CLOTHS, *_WALLS], str(rng.choice(["bands", "stone", "checker"])))
    x, tall = float(rng.uniform(-0.25, 0.25)) * width, float(rng.uniform(0.3, 0.42))
    kit.post(x, height, 0.18, 0.16, 0.1, 0.02, dark)
    kit.box((x, height + 0.14 + tall / 2, 0.18), (tall * 1.6, tall, 0.04), dark)
    glow = replace(shown, glow=0.6, scale_m=0.06)
    kit.box((x, height + 0.14 + tall / 2, 0.155), (tall * 1.5, tall * 0.9, 0.012), glow)
    if rng.random() < 0.5:
        _tabletop(kit, rng, width, depth, height)
    _chair(kit.at(0, -0.6, rng.uniform(120, 240)), rng)
    if rng.random() < 0.4:
        kit.box((0, 0.65, 0.42), (width + 0.1, 1.3, 0.05), _finish(rng, [*_CLOTHS, *_WALLS]))


def _office(rng: Rng) -> Scene:
    wide, deep, high = (
        float(rng.uniform(4, 9)),
        float(rng.uniform(5, 13)),
        float(rng.uniform(2.4, 3.3)),
    )
    camera = _indoor_camera(rng, float(rng.uniform(-0.3, 0.3)) * wide, 0.0)
    light = _indoor_light(rng, rng.uniform(-0.3, 0.3) * wide, rng.uniform(0.3, 0.7) * deep, high)
    scene = Scene(camera, light)
    kit = _Kit(scene.shapes)
    _shell(kit, rng, -wide / 2, wide / 2, -0.6, deep, high)
    scene.planes += [(0, 1, 0, 0), (0, -1, 0, -high), (1, 0, 0, -wide / 2)]
    scene.planes += [(-1, 0, 0, -wide / 2), (0, 0, -1, -deep)]
    panel = Material((0.95, 0.95, 0.93), glow=0.9)
    for z in np.arange(1.2, deep, 2.4):
        for x in np.arange(-wide / 2 + 0.9, wide / 2 - 0.4, 2.2):
            kit.box((float(x), high - 0.01, float(z)), (0.6, 0.03, 1.2), panel)
    for yaw, length in ((-90, deep), (90, deep)):
        _furnish_wall(kit.at(np.sign(yaw) * wide / 2, deep / 2, yaw), rng, length)
    for x in np.arange(-wide / 2 + 1, wide / 2 - 0.8, 0.9):
        if rng.random() < 0.5:
            _door(kit.at(float(x), deep), rng)
    turn, pitch = float(rng.choice([0, 180, 90])), float(rng.uniform(1.8, 2.8))
    for z in np.arange(rng.uniform(1.6, 2.6), deep - 0.8, pitch):
        for x in np.arange(-wide / 2 + 1.1, wide / 2 - 0.8, rng.uniform(1.8, 2.3)):
            what = rng.random()
            spot = kit.at(float(x), float(z), turn + float(rng.normal(0, 4)))
            if what < 0.7:
                _desk(spot, rng)
            elif what < 0.8:
                (_figure, _house_plant, _cabinet, _crates)[int(rng.integers(4))](spot, rng)
    return scene


def _stairs(rng: Rng) -> Scene:
    """A hall with a flight of steps going up, away from the camera or across the picture."""
    wide, deep, high = (
        float(rng.uniform(3, 6)),
        float(rng.uniform(4.5, 9)),
        float(rng.uniform(3.2, 5)),
    )
    camera = _indoor_camera(rng, float(rng.uniform(-0.2, 0.2)) * wide, 0.0)
    camera = replace(camera, pitch_deg=camera.pitch_deg + float(rng.uniform(0, 14)))
    light = _indoor_light(rng, rng.uniform(-0.3, 0.3) * wide, rng.uniform(0.2, 0.7) * deep, high)
    scene = Scene(camera, light)
    kit = _Kit(scene.shapes)
    _shell(kit, rng, -wide / 2, wide / 2, -0.6, deep, high)
    scene.planes += [(0, 1, 0, 0), (0, -1, 0, -high), (1, 0, 0, -wide / 2)]
    scene.planes += [(-1, 0, 0, -wide / 2), (0, 0, -1, -deep)]
    step = _finish(rng, [*_WOODS, *_STONES], str(rng.choice(["plain", "planks", "stone"])))
    riser = replace(step, base=_pick(rng, [*_WALLS, *_WOODS]), pattern="plain")
    rise, run, flight = rng.uniform(0.15, 0.19), rng.uniform(0.25, 0.32), rng.uniform(1, 1.8)
    count = int(min((deep - 2.5) / run, (high - 0.6) / rise))
    yaw = float(rng.choice([0, 0, 0, 90, -90]))
    x = float(rng.uniform(-0.5, 0.5)) * (wide - flight)
    foot = kit.at(x, rng.uniform(1.6, 2.4), 0)
    if yaw:
        foot = kit.at(-np.sign(yaw) * count * run / 2, rng.uniform(2.6, deep - 1), yaw)
    rail = _finish(rng, [*_WOODS, (0.15, 0.15, 0.16), (0.8, 0.8, 0.8)])
    for k in range(count):
        top, z = float(rise * (k + 1)), float(run * (k + 0.5))
        foot.box((0, top / 2, z), (flight, top, run), riser)
        foot.box((0, top - 0.015, z - 0.01), (flight + 0.04, 0.03, run + 0.03), step)
        if k % 3 == 0:
            for side in (-flight / 2, flight / 2):
                foot.post(side, top, z, 0.9, 0.02, 0.02, rail)
    for side in (-flight / 2, flight / 2):
        start, end = (side, rise + 0.9, run / 2), (side, rise * count + 0.9, run * (count - 0.5))
        foot.rod(start, end, 0.03, rail)
    _furnish_wall(kit.at(-wide / 2, deep / 2, -90), rng, deep)
    _door(kit.at(rng.uniform(-0.4, 0.4) * wide, deep), rng)
    for _ in range(int(rng.integers(0, 3))):
        spot = kit.at(rng.uniform(-0.4, 0.4) * wide, rng.uniform(1.5, deep - 0.6), 0)
        _middle_prop(spot, rng)
    return scene


def _sunlight(rng: Rng) -> tuple[Light, Colour, Colour]:
    """A sun (high or low, or behind cloud) with its ambient dome, and the two sky colours."""
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 1.2)
    direction = (np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height))
    low_sun = float(np.clip(1 - height / 0.7, 0, 1))
    overcast = rng.random() < 0.25
    power = 0.15 if overcast else float(rng.uniform(0.9, 1.5))
    colour = (power, power * (0.94 - 0.25 * low_sun), power * (0.84 - 0.45 * low_sun))
    sky_low = (0.8, 0.84 - 0.14 * low_sun, 0.9 - 0.35 * low_sun)
    sky_high = (0.24, 0.42, 0.78)
    if overcast:
        sky_low, sky_high = (0.82, 0.84, 0.86), (0.62, 0.66, 0.72)
    level = float(rng.uniform(0.3, 0.5)) * (1.8 if overcast else 1.0)
    up = (level * 0.85, level * 0.95, level * 1.15)
    down = (level * 0.55, level * 0.5, level * 0.42)
    sun = (float(direction[0]) * 100, float(direction[1]) * 100, float(direction[2]) * 100)
    return Light(sun, colour, True, 1.2, up, down), sky_low, sky_high


def _outdoor_camera(rng: Rng) -> Camera:
    return Camera(
        (0.0, float(rng.uniform(0.9, 1.9)), 0.0),
        float(rng.normal(0, 16)),
        float(rng.uniform(-16, 3)),
        float(rng.normal(0, 1.5)),
        float(rng.uniform(55, 66)),
    )


def _ground(rng: Rng) -> Material:
    pattern = str(rng.choice(["cobbles", "tiles", "stone", "foliage", "bricks", "checker"]))
    scale = {"cobbles": 0.22, "tiles": 0.6, "foliage": 0.06, "bricks": 0.25, "checker": 0.5}.get(
        pattern, 0.5
    )
    colours = _GREENS if pattern == "foliage" else _STONES
    return _finish(rng, colours, pattern, scale_m=float(scale * rng.uniform(0.8, 1.4)), grain=0.25)


def _house(kit: _Kit, rng: Rng, width: float, high: float) -> None:
    """A house block whose front is the local plane z = 0, facing -z."""
    style = rng.random()
    if style < 0.6:
        wall = _finish(rng, [*_WALLS, *_BRICKS], "facade", scale_m=float(rng.uniform(1.6, 2.6)))
        wall = replace(wall, second=(0.03, 0.04, 0.06))
    else:
        wall = _finish(rng, _BRICKS, "bricks", scale_m=float(rng.uniform(0.25, 0.5)))
    kit.box((0, high / 2, 2.5), (width, high, 5), wall)
    roof = _finish(rng, [(0.5, 0.25, 0.2), (0.3, 0.3, 0.33), (0.6, 0.36, 0.25)])
    kit.box((0, high + 0.1, 2.4), (width + 0.3, 0.25, 5.4), roof)
    plinth = _finish(rng, _STONES, "stone")
    kit.box((0, 0.2, 2.48), (width + 0.02, 0.4, 5), plinth)
    if style >= 0.6:
        for x in np.arange(-width / 2 + 0.9, width / 2 - 0.6, 1.9):
            _door(kit.at(float(x), 0), rng)
    elif rng.random() < 0.7:
        leaf = _finish(rng, [*_WOODS, *_CLOTHS])
        kit.box((rng.uniform(-0.3, 0.3) * width, 1.05, 0), (1.0, 2.1, 0.1), leaf)


def _outdoor_prop(spot: _Kit, rng: Rng) -> None:
    props = (_tree, _bush, _figure, _figure, _bench, _crates, _planter, _lamp_post, _crates)
    props[int(rng.integers(len(props)))](spot, rng)


def _courtyard(rng: Rng) -> Scene:
    wide, deep = float(rng.uniform(4.5, 10)), float(rng.uniform(5, 12))
    light, low, high_sky = _sunlight(rng)
    scene = Scene(
        _outdoor_camera(rng), light, sky_low=low, sky_high=high_sky, seed=int(rng.integers(4096))
    )
    kit = _Kit(scene.shapes)
    kit.box((0, -0.5, 0), (200, 1, 200), _ground(rng))
    scene.planes += [(0, 1, 0, 0)]
    for x, z, yaw, length in (
        (0, deep, 0, wide),
        (-wide / 2, deep / 2, -90, deep),
        (wide / 2, deep / 2, 90, deep),
    ):
        side = kit.at(x, z, yaw)
        what = rng.random()
        if what < 0.6:
            _house(side, rng, length + 1, float(rng.uniform(2.6, 7)))
        elif what < 0.85:
            finish = _finish(
                rng, [*_BRICKS, *_STONES], str(rng.choice(["bricks", "stone"])), scale_m=0.3
            )
            side.box((0, 0.9, 0.15), (length + 0.3, rng.uniform(1.4, 2.2), 0.3), finish)
        else:
            for offset in np.arange(-length / 2, length / 2, 0.7):
                _bush(side.at(float(offset), 0), rng)
    if rng.random() < 0.4:
        lawn = _finish(rng, _GREENS, "foliage", scale_m=0.06)
        kit.box((0, 0.01, deep * 0.6), (wide * 0.5, 0.04, deep * 0.4), lawn)
    for _ in range(int(rng.integers(3, 8))):
        spot = kit.at(
            rng.uniform(-0.45, 0.45) * wide, rng.uniform(1.8, deep - 0.6), rng.uniform(-180, 180)
        )
        _outdoor_prop(spot, rng)
    return scene


def _street(rng: Rng) -> Scene:
    road, walk = float(rng.uniform(3.5, 6)), float(rng.uniform(1.2, 2.2))
    light, low, high_sky = _sunlight(rng)
    camera = replace(
        _outdoor_camera(rng),
        position=(float(rng.uniform(-0.5, 0.5)) * road, float(rng.uniform(1, 1.9)), 0),
    )
    scene = Scene(camera, light, sky_low=low, sky_high=high_sky, seed=int(rng.integers(4096)))
    scene.fog_m = float(rng.choice([40, 80, 200, 1e4]))
    kit = _Kit(scene.shapes)
    asphalt = _finish(rng, [(0.32, 0.32, 0.34), (0.42, 0.41, 0.4)], "stone", scale_m=0.2, grain=0.2)
    if rng.random() < 0.35:
        asphalt = _ground(rng)
    kit.box((0, -0.5, 0), (200, 1, 200), asphalt)
    scene.planes += [(0, 1, 0, 0)]
    paving = _finish(rng, _STONES, str(rng.choice(["tiles", "bricks", "stone"])), scale_m=0.4)
    if rng.random() < 0.6:
        paint = _finish(rng, [(0.85, 0.85, 0.82)])
        for z in np.arange(0.5, 40, 3.0):
            kit.box((0, 0.003, float(z)), (0.14, 0.006, 1.5), paint)
    for side in (-1, 1):
        kit.box((side * (road + walk) / 2, 0.06, 30), (walk, 0.12, 90), paving)
        z = -6.0
        while z < 40:
            width, gap = float(rng.uniform(4, 9)), float(rng.choice([0, 0, 0, 1.5, 4]))
            front = kit.at(side * (road / 2 + walk), z + width / 2, side * 90)
            _house(front.at(0, float(rng.uniform(0, 0.5))), rng, width, float(rng.uniform(3, 9)))
            z += width + gap
    for _ in range(int(rng.integers(3, 9))):
        edge = float(rng.choice([-1, 1]))
        z = float(rng.uniform(2.2, 16))
        if rng.random() < 0.3:
            _car(kit.at(edge * (road / 2 - 0.9), z + 2, 180 * (rng.random() < 0.5)), rng)
        else:
            _outdoor_prop(
                kit.at(edge * (road / 2 + rng.uniform(0.2, 0.8) * walk), z, rng.uniform(-180, 180)),
                rng,
            )
    if rng.random() < 0.5:
        _figure(
            kit.at(rng.uniform(-0.4, 0.4) * road, rng.uniform(2.2, 8), rng.uniform(-180, 180)), rng
        )
    return scene


_BUILDERS: dict[str, Callable[[Rng], Scene]] = {
    "room": _room,
    "corridor": _corridor,
    "courtyard": _courtyard,
    "street": _street,
    "office": _office,
    "stairs": _stairs,
}


def build_scene(seed: int, kind: str) -> Scene:
    """The scene of a seed, without anything that touches or covers the camera."""
    scene = _BUILDERS[kind](np.random.default_rng([seed, KINDS.index(kind)]))
    eye = _vec(scene.camera.position)
    kept = []
    for shape in scene.shapes:
        gap = float(np.linalg.norm(shape.centre - eye)) - shape.radius_m
        if gap > 0.25 or shape.radius_m > 1.8:
            kept.append(shape)
    scene.shapes = kept
    return scene


# ----------------------------------------------------------------------------------------- cut-outs


Distance = Callable[[Array], Array]


@dataclass(frozen=True)
class Part:
    """One solid of a cut-out: a signed distance in metres, its look, and how softly it melts into
    the rest.
    """

    distance: Distance
    material: Material
    blend_m: float = 0.0
    carve: bool = False


def _offset(p: Array, centre: Point) -> Array:
    return p - _vec(centre)[:, None]


def _length(*parts: Array) -> Array:
    total: Array = np.sqrt(sum(part * part for part in parts))
    return total


def _sdf_ellipsoid(centre: Point, half: Point, turn: Array | None = None) -> Distance:
    scale = _vec(half)[:, None]

    def distance(p: Array) -> Array:
        q = _offset(p, centre)
        q = q if turn is None else turn.T @ q
        k0, k1 = _length(*(q / scale)), _length(*(q / (scale * scale)))
        return k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6))

    return distance


def _sdf_ball(centre: Point, radius: float) -> Distance:
    return lambda p: _length(*_offset(p, centre)) - np.float32(radius)


def _sdf_box(centre: Point, half: Point, edge: float = 0.02, turn: Array | None = None) -> Distance:
    """A box with edges rounded at radius `edge`."""
    core = np.maximum(_vec(half) - np.float32(edge), 0)[:, None]

    def distance(p: Array) -> Array:
        q = _offset(p, centre)
        q = abs(q if turn is None else turn.T @ q) - core
        outside = _length(*np.maximum(q, 0))
        return _vec(outside + np.minimum(q.max(0), np.float32(0)) - np.float32(edge))

    return distance


def _sdf_rod(start: Point, end: Point, low: float, high: float | None = None) -> Distance:
    """A capsule whose radius runs from `low` at the start to `high` at the end."""
    axis = _vec(end) - _vec(start)
    squared = float(axis @ axis)
    high = low if high is None else high

    def distance(p: Array) -> Array:
        q = _offset(p, start)
        h = (_dot(q, axis[:, None]) / np.float32(squared)).clip(0, 1)
        return _length(*(q - axis[:, None] * h)) - (low + (high - low) * h).astype(np.float32)

    return distance


def _sdf_path(points: Sequence[Point], low: float, high: float | None = None) -> Distance:
    """A bent tube along points (corners are cut round), its radius running from `low` to `high`."""
    high = low if high is None else high
    line = np.array(points, np.float64)
    for _ in range(2):  # Chaikin's corner cutting
        inner = np.stack(
            [0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]], axis=1
        )
        line = np.concatenate([line[:1], inner.reshape(-1, 3)[1:-1], line[-1:]])
    radii = np.linspace(low, high, len(line))
    knots: list[Point] = [(float(x), float(y), float(z)) for x, y, z in line]
    rods = [
        _sdf_rod(knots[k], knots[k + 1], float(radii[k]), float(radii[k + 1]))
        for k in range(len(knots) - 1)
    ]
    return lambda p: np.minimum.reduce([rod(p) for rod in rods])


def _sdf_ring(centre: Point, radius: float, tube: float, turn: Array | None = None) -> Distance:
    """A torus in the local x-y plane."""

    def distance(p: Array) -> Array:
        q = _offset(p, centre)
        q = q if turn is None else turn.T @ q
        return _length(_length(q[0], q[1]) - np.float32(radius), q[2]) - np.float32(tube)

    return distance


def _sdf_disc(
    centre: Point, radius: float, half: float, edge: float, turn: Array | None = None
) -> Distance:
    """A cylinder about the local y axis with rounded rims."""

    def distance(p: Array) -> Array:
        q = _offset(p, centre)
        q = q if turn is None else turn.T @ q
        side = _length(q[0], q[2]) - np.float32(radius - edge)
        cap = abs(q[1]) - np.float32(half - edge)
        outside = _length(np.maximum(side, 0), np.maximum(cap, 0))
        return _vec(outside + np.minimum(np.maximum(side, cap), 0) - np.float32(edge))

    return distance


def _sdf_lathe(
    centre: Point, outline: Sequence[tuple[float, float]], edge: float = 0.01
) -> Distance:
    """A solid of revolution; `outline` lists (radius, height) around the closed half section."""
    corners = _vec(outline)

    def distance(p: Array) -> Array:
        q = _offset(p, centre)
        x, y = _length(q[0], q[2]), q[1]
        nearest = np.full_like(x, np.inf)
        sign = np.ones_like(x)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
            h = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clip(0, 1)
            nearest = np.minimum(nearest, (wx - ex * h) ** 2 + (wy - ey * h) ** 2)
            left = ex * wy > ey * wx
            flip = ((y >= ay) & (y < by) & left) | ((y < ay) & (y >= by) & ~left)
            sign = np.where(flip, -sign, sign)
        return sign * np.sqrt(nearest) - np.float32(edge)

    return distance


def _field(parts: Sequence[Part], p: Array) -> Array:
    """Signed distance (N,) of the whole object, parts melted together."""
    total: Array = np.full(p.shape[1], np.float32(1e3))
    for part in parts:
        d = part.distance(p)
        if part.carve:
            total = np.maximum(total, -d)
        elif part.blend_m:
            h = np.maximum(part.blend_m - abs(total - d), 0) / np.float32(part.blend_m)
            total = np.minimum(total, d) - h * h * np.float32(part.blend_m / 4)
        else:
            total = np.minimum(total, d)
    return total.astype(np.float32)


def _part_albedo(parts: Sequence[Part], p: Array, pixel_m: float) -> tuple[Array, Array, Array]:
    """Colour (3, N), shine (N,) and glow (N,) of the nearest parts, mixed where they melt."""
    colour, shine, glow = (
        np.zeros_like(p),
        np.zeros(p.shape[1], np.float32),
        np.zeros(p.shape[1], np.float32),
    )
    weight = np.zeros(p.shape[1], np.float32)
    u, v = np.arctan2(p[0], p[2]) * np.float32(0.35), p[1]
    pixel = np.full_like(u, pixel_m)
    for part in parts:
        soft = np.float32(0.004 + part.blend_m * 0.25)
        w = np.exp(-(abs(part.distance(p)) / soft).clip(0, 30)) + np.float32(1e-12)
        colour += w * _albedo(part.material, u, v, pixel)
        shine += w * part.material.shine
        glow += w * part.material.glow
        weight += w
    return colour / weight, shine / weight, glow / weight


def _march(parts: Sequence[Part], origin: Array, direction: Array, reach_m: float) -> Array:
    """Ray parameter (N,) at the object's surface along unit directions, infinity where it is
    missed.
    """
    t = np.full(direction.shape[1], np.inf, np.float32)
    # Only the rays through the unit ball around (0, 0.5, 0) can hit: every object lies inside it.
    offset = origin - _vec([0, 0.5, 0])[:, None]
    along = _dot(offset, direction)
    under = along * along - _dot(offset, offset) + np.float32(1.1)
    alive = np.flatnonzero(under > 0)
    start = np.maximum(-along[alive] - np.sqrt(under[alive]), 0)
    stop = np.minimum(-along[alive] + np.sqrt(under[alive]), np.float32(reach_m))
    for _ in range(72):
        place = origin if origin.shape[1] == 1 else origin[:, alive]
        gap = _field(parts, place + start * direction[:, alive])
        done = gap < 8e-4
        t[alive[done]] = start[done]
        keep = ~done & (start < stop)
        start = (start + np.maximum(gap, np.float32(1e-3)) * np.float32(0.85))[keep]
        alive, stop = alive[keep], stop[keep]
        if not alive.size:
            break
    return t


def _object_light(parts: Sequence[Part], p: Array, n: Array, key: Array) -> tuple[Array, Array]:
    """Soft shadow (N,) towards the unit key light and ambient occlusion (N,), both 0..1."""
    shadow = np.ones(p.shape[1], np.float32)
    reach = np.full(p.shape[1], np.float32(0.03))
    for _ in range(14):
        gap = _field(parts, p + n * np.float32(0.004) + key * reach)
        shadow = np.minimum(shadow, (0.5 + 5 * gap / reach).clip(0, 1))
        reach = reach + gap.clip(0.025, 0.15)
    hidden = np.zeros(p.shape[1], np.float32)
    for step, weight in ((0.03, 3.0), (0.09, 1.6), (0.2, 0.8)):
        hidden += weight * (step - _field(parts, p + n * np.float32(step))).clip(0, None)
    return shadow, (1 - 1.1 * hidden).clip(0.25, 1)


def _shade_object(
    parts: Sequence[Part], p: Array, toward: Array, pixel_m: float, warm: float
) -> Array:
    """Display colour (3, N) of points: key light with soft shadow, dome, highlight and rim."""
    h = np.float32(1.2e-3)
    corners = _vec([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    # The field's gradient from four corners of a tetrahedron, one evaluation fewer than by axes.
    n = _unit(sum(k[:, None] * _field(parts, p + k[:, None] * h) for k in corners))
    key = _unit(_vec([[-0.55], [0.8], [-0.6]]))
    albedo, shine, glow = _part_albedo(parts, p, pixel_m)
    shadow, open_ = _object_light(parts, p, n, key)
    facing = (_dot(n, key) * 0.85 + 0.15).clip(0, 1) * shadow
    dome = _vec([[0.34], [0.37], [0.42]]) * (0.75 + 0.35 * n[1]) * open_
    sun = _vec([[1.0], [0.97 - 0.08 * warm], [0.92 - 0.22 * warm]])
    lit = albedo * (dome + sun * facing * np.float32(1.05) + glow)
    half = _unit(key + toward)
    gloss = shine * (_dot(n, half).clip(0, 1) ** 60) * shadow
    rim = (1 - _dot(n, toward).clip(0, 1)) ** 4 * open_ * (0.05 + 0.15 * shine)
    lit = lit + sun * gloss * np.float32(0.75) + rim
    shown: Array = (lit * (1 + lit / 6) / (1 + lit * np.float32(0.55))).clip(0, 1) ** _vec(1 / 2.2)
    return shown


def _paint(r: float, g: float, b: float, pattern: str = "plain", **fields: float) -> Material:
    """A material from display (sRGB) colours, with a darker second tone."""
    base = (r**2.2, g**2.2, b**2.2)
    second = (base[0] * 0.45, base[1] * 0.45, base[2] * 0.45)
    return replace(Material(base, second, pattern, grain=0.06), **fields)  # type: ignore[arg-type]


def _vary(rng: Rng, colour: Colour, pattern: str = "plain", **fields: float) -> Material:
    """`_paint` with the colour turned at random between close and far from the given one."""
    away = float(rng.random()) ** 2
    other = _CLOTHS[int(rng.integers(len(_CLOTHS)))]
    r, g, b = (c + (o - c) * away for c, o in zip(colour, other, strict=True))
    return _paint(r, g, b, pattern, **fields)


def _mug(rng: Rng) -> list[Part]:
    glaze = _vary(rng, (0.18, 0.45, 0.55), shine=0.7)
    inside = _paint(0.95, 0.92, 0.86, shine=0.4)
    drink = _paint(0.3, 0.17, 0.09, shine=0.5)
    band = _paint(0.95, 0.92, 0.86, shine=0.6)
    cup = [(0, 0.08), (0.3, 0.08), (0.34, 0.14), (0.35, 0.86), (0.31, 0.86), (0.3, 0.2), (0, 0.2)]
    handle = _sdf_path(
        [
            (0.34, 0.7, 0),
            (0.52, 0.7, 0),
            (0.6, 0.58, 0),
            (0.58, 0.42, 0),
            (0.48, 0.3, 0),
            (0.34, 0.28, 0),
        ],
        0.05,
    )
    return [
        Part(_sdf_lathe((0, 0, 0), cup, 0.02), glaze),
        Part(handle, glaze, 0.06),
        Part(
            _sdf_lathe((0, 0, 0), [(0.345, 0.3), (0.363, 0.3), (0.363, 0.38), (0.345, 0.38)], 0.01),
            band,
        ),
        Part(_sdf_disc((0, 0.74, 0), 0.31, 0.02, 0.005), drink),
        Part(
            _sdf_lathe((0, 0, 0), [(0.325, 0.8), (0.33, 0.875), (0.31, 0.875), (0.3, 0.8)], 0.008),
            inside,
        ),
    ]


def _ball(rng: Rng) -> list[Part]:
    white = _paint(0.95, 0.94, 0.9, shine=0.5)
    red = _vary(rng, (0.85, 0.2, 0.18), shine=0.5)
    parts = [Part(_sdf_ball((0, 0.5, 0), 0.48), white)]
    for k in range(3):  # wedges as thin shells just above the white ball
        wedge = _wedge(k * np.pi / 3 + 0.2, np.pi / 12)
        parts.append(
            Part(
                wedge,
                red if k else replace(red, base=(0.9 * red.base[0], red.base[1], red.base[2])),
            )
        )
    parts.append(Part(_sdf_ball((0, 0.945, 0), 0.06), red))
    return parts


def _wedge(angle: float, half_angle: float) -> Distance:
    """Two opposite segments of a beach ball's skin."""
    c, s, width = (
        np.float32(f(a)) for f, a in ((np.cos, angle), (np.sin, angle), (np.sin, half_angle))
    )

    def distance(p: Array) -> Array:
        q = _offset(p, (0, 0.5, 0))
        shell = _length(*q) - np.float32(0.484)
        across = abs(q[0] * c + q[2] * s) - width * _length(q[0], q[2])
        return _vec(np.maximum(shell, across))

    return distance


def _potted_plant(rng: Rng) -> list[Part]:
    clay = _vary(rng, (0.76, 0.42, 0.3), shine=0.1)
    leaf = [
        _paint(0.25, 0.5, 0.22, shine=0.25),
        _paint(0.36, 0.6, 0.26, shine=0.25),
        _paint(0.2, 0.42, 0.24, shine=0.25),
    ]
    pot = [
        (0, 0),
        (0.2, 0),
        (0.27, 0.28),
        (0.3, 0.28),
        (0.3, 0.36),
        (0.25, 0.36),
        (0.24, 0.3),
        (0, 0.3),
    ]
    parts = [Part(_sdf_lathe((0, 0, 0), pot, 0.012), clay)]
    parts.append(Part(_sdf_disc((0, 0.31, 0), 0.25, 0.02, 0.005), _paint(0.2, 0.14, 0.1)))
    for k in range(15):
        around = k * 2.4 + float(rng.normal(0, 0.2))
        lean = 0.25 + 0.75 * ((k * 0.618) % 1)
        height = 0.95 - 0.42 * lean
        tip = (
            float(np.cos(around)) * 0.34 * lean,
            height * 0.93,
            float(np.sin(around)) * 0.34 * lean,
        )
        parts.append(Part(_sdf_rod((0, 0.3, 0), tip, 0.014, 0.01), leaf[2], 0.02))
        turn = _turn(1, -around + np.pi / 2) @ _turn(0, -0.5 - 0.6 * lean)
        centre = (tip[0] * 1.25, tip[1] + 0.04, tip[2] * 1.25)
        parts.append(
            Part(
                _sdf_ellipsoid(centre, (0.085, 0.022, 0.19), turn.astype(np.float32)),
                leaf[k % 3],
                0.012,
            )
        )
    return parts


def _desk_lamp(rng: Rng) -> list[Part]:
    metal = _vary(rng, (0.85, 0.62, 0.2), shine=0.7)
    steel = _paint(0.6, 0.6, 0.62, shine=0.8)
    turn = _turn(2, 0.75)
    shade = _tilted(
        _sdf_lathe((0, 0, 0), [(0.07, 0.3), (0.1, 0.3), (0.26, 0), (0.24, 0), (0.06, 0.27)], 0.01),
        (0.2, 0.62, 0),
        turn,
    )
    return [
        Part(_sdf_disc((-0.1, 0.03, 0), 0.24, 0.03, 0.015), metal),
        Part(_sdf_rod((-0.1, 0.05, 0), (-0.32, 0.5, 0), 0.022), steel),
        Part(_sdf_rod((-0.32, 0.5, 0), (0.06, 0.85, 0), 0.022), steel),
        Part(_sdf_ball((-0.32, 0.5, 0), 0.045), metal),
        Part(_sdf_ball((0.05, 0.84, 0), 0.05), metal, 0.03),
        Part(shade, metal),
        Part(_sdf_ball((0.21, 0.63, 0), 0.1), _paint(1.0, 0.95, 0.75, glow=1.0)),
    ]


def _tilted(inner: Distance, centre: Point, turn: Array) -> Distance:
    return lambda p: inner((turn.T @ _offset(p, centre)).astype(np.float32))


def _swollen(inner: Distance, by_m: float) -> Distance:
    return lambda p: inner(p) - np.float32(by_m)


def _both(first: Distance, second: Distance) -> Distance:
    """What lies inside both solids."""
    return lambda p: np.maximum(first(p), second(p))


def _wooden_chair(rng: Rng) -> list[Part]:
    wood = _vary(rng, (0.72, 0.48, 0.28), "planks", scale_m=0.2, shine=0.2)
    seat = _vary(rng, (0.82, 0.3, 0.25))
    parts = [Part(_sdf_box((0, 0.46, 0), (0.25, 0.025, 0.25), 0.02), wood)]
    parts.append(Part(_sdf_box((0, 0.5, 0), (0.22, 0.03, 0.22), 0.03), seat))
    for x in (-0.21, 0.21):
        parts.append(
            Part(_sdf_rod((x * 1.1, 0.0, -0.23), (x, 0.45, -0.2), 0.024, 0.03), wood, 0.02)
        )
        parts.append(
            Part(
                _sdf_path([(x * 1.1, 0.0, 0.25), (x, 0.45, 0.21), (x, 0.98, 0.28)], 0.024, 0.024),
                wood,
                0.02,
            )
        )
        parts.append(Part(_sdf_rod((x, 0.2, -0.21), (x, 0.2, 0.22), 0.015), wood))
    slats = [
        _sdf_box((0, y, 0.235 + 0.13 * (y - 0.45) - 0.01), (0.21, 0.035, 0.014), 0.012)
        for y in (0.66, 0.78, 0.9)
    ]
    return [*parts, *(Part(slat, wood) for slat in slats)]


def _toy_car(rng: Rng) -> list[Part]:
    paint = _vary(rng, (0.85, 0.16, 0.15), shine=0.9)
    glass = _paint(0.18, 0.26, 0.33, shine=1.0)
    tyre, hub = _paint(0.1, 0.1, 0.11), _paint(0.9, 0.88, 0.82, shine=0.6)
    lamp = _paint(1.0, 0.92, 0.65, shine=0.8, glow=0.3)
    cabin = _sdf_ellipsoid((-0.04, 0.42, 0), (0.4, 0.27, 0.25))
    panes = [
        _sdf_box((-0.18, 0.53, 0), (0.11, 0.065, 0.4), 0.03),
        _sdf_box((0.07, 0.53, 0), (0.11, 0.065, 0.4), 0.03),
        _sdf_box((0.3, 0.53, 0), (0.09, 0.065, 0.14), 0.03),
        _sdf_box((-0.38, 0.53, 0), (0.06, 0.065, 0.14), 0.03),
    ]
    parts = [
        Part(_sdf_box((0, 0.29, 0), (0.6, 0.12, 0.27), 0.1), paint),
        Part(cabin, paint, 0.05),
        *(Part(_both(_swollen(cabin, 0.006), pane), glass) for pane in panes),
        Part(_sdf_box((0, 0.2, 0), (0.62, 0.035, 0.25), 0.03), _paint(0.75, 0.75, 0.77, shine=0.8)),
    ]
    across = _turn(0, float(np.pi / 2))
    for x in (-0.36, 0.36):
        for z in (-0.25, 0.25):
            parts.append(Part(_sdf_disc((x, 0.15, z), 0.15, 0.055, 0.035, across), tyre))
            parts.append(Part(_sdf_disc((x, 0.15, z * 1.12), 0.085, 0.035, 0.02, across), hub))
    return [*parts, *(Part(_sdf_ball((0.58, 0.33, z), 0.05), lamp) for z in (-0.16, 0.16))]


def _person(rng: Rng) -> list[Part]:
    coat, trousers = _vary(rng, (0.86, 0.62, 0.2)), _vary(rng, (0.22, 0.3, 0.45))
    skin = _paint(*_SKINS[int(rng.integers(len(_SKINS)))])
    hair, shoe = _vary(rng, (0.2, 0.12, 0.08)), _paint(0.9, 0.9, 0.88)
    s, step = 0.56, float(rng.uniform(0.05, 0.17))
    parts = [Part(_sdf_ellipsoid((0, 1.2 * s, 0), (0.2 * s, 0.3 * s, 0.14 * s)), coat)]
    parts.append(Part(_sdf_ellipsoid((0, 0.98 * s, 0), (0.19 * s, 0.16 * s, 0.14 * s)), coat, 0.05))
    for side, forward in ((-1, -step), (1, step)):
        hip, knee = (side * 0.09 * s, 0.92 * s, 0.0), (side * 0.11 * s, 0.5 * s, forward * s - 0.02)
        ankle = (side * 0.11 * s, 0.1 * s, forward * 1.5 * s + 0.02)
        parts.append(Part(_sdf_rod(hip, knee, 0.095 * s, 0.07 * s), trousers, 0.03))
        parts.append(Part(_sdf_rod(knee, ankle, 0.07 * s, 0.05 * s), trousers, 0.02))
        parts.append(
            Part(
                _sdf_ellipsoid(
                    (ankle[0], 0.05 * s, ankle[2] - 0.06 * s), (0.06 * s, 0.05 * s, 0.14 * s)
                ),
                shoe,
            )
        )
        elbow = (side * 0.3 * s, 1.14 * s, -forward * 0.6 * s)
        hand = (side * 0.3 * s, 0.9 * s, -forward * 1.3 * s - 0.05)
        parts.append(
            Part(
                _sdf_path([(side * 0.19 * s, 1.41 * s, 0), elbow, hand], 0.068 * s, 0.05 * s),
                coat,
                0.03,
            )
        )
        parts.append(Part(_sdf_ball((hand[0], hand[1] - 0.03 * s, hand[2]), 0.055 * s), skin))
    parts.append(Part(_sdf_rod((0, 1.42 * s, 0), (0, 1.55 * s, 0), 0.055 * s), skin, 0.02))
    parts.append(
        Part(_sdf_ellipsoid((0, 1.66 * s, -0.01), (0.1 * s, 0.13 * s, 0.115 * s)), skin, 0.01)
    )
    parts.append(Part(_sdf_ellipsoid((0, 1.71 * s, 0.025), (0.118 * s, 0.115 * s, 0.12 * s)), hair))
    if rng.random() < 0.5:
        parts.append(
            Part(_sdf_ellipsoid((0, 1.55 * s, 0.06), (0.11 * s, 0.18 * s, 0.06 * s)), hair, 0.03)
        )
    return parts


def _dog(rng: Rng) -> list[Part]:
    fur = _vary(rng, (0.78, 0.55, 0.32))
    light = _paint(0.96, 0.9, 0.8)
    dark = _paint(0.08, 0.07, 0.07, shine=0.9)
    collar = _vary(rng, (0.8, 0.15, 0.2), shine=0.3)
    parts = [Part(_sdf_rod((-0.28, 0.42, 0), (0.2, 0.44, 0), 0.155, 0.175), fur)]
    parts.append(Part(_sdf_rod((0.22, 0.5, 0), (0.34, 0.7, 0), 0.12, 0.1), fur, 0.08))
    parts.append(Part(_sdf_ellipsoid((0.26, 0.42, 0), (0.12, 0.15, 0.12)), light, 0.05))
    parts.append(Part(_sdf_ball((0.38, 0.76, 0), 0.145), fur, 0.05))
    parts.append(Part(_sdf_rod((0.46, 0.72, 0), (0.6, 0.7, 0), 0.085, 0.065), light, 0.06))
    parts.append(Part(_sdf_ellipsoid((0.66, 0.725, 0), (0.03, 0.03, 0.04)), dark))
    for z in (-1, 1):
        parts.append(Part(_sdf_ball((0.505, 0.8, z * 0.065), 0.024), dark))
        ear = _turn(2, 0.25) @ _turn(0, z * 0.3)
        parts.append(
            Part(
                _sdf_ellipsoid((0.33, 0.75, z * 0.145), (0.06, 0.13, 0.03), ear),
                replace(fur, base=fur.second),
                0.02,
            )
        )
        parts.append(
            Part(_sdf_rod((0.2, 0.38, z * 0.1), (0.22, 0.06, z * 0.11), 0.075, 0.05), fur, 0.04)
        )
        parts.append(
            Part(
                _sdf_path(
                    [(-0.28, 0.38, z * 0.1), (-0.33, 0.2, z * 0.11), (-0.28, 0.06, z * 0.11)],
                    0.095,
                    0.05,
                ),
                fur,
                0.05,
            )
        )
        parts.append(Part(_sdf_ellipsoid((0.25, 0.04, z * 0.11), (0.08, 0.045, 0.06)), light, 0.02))
        parts.append(
            Part(_sdf_ellipsoid((-0.25, 0.04, z * 0.11), (0.08, 0.045, 0.06)), light, 0.02)
        )
    parts.append(
        Part(
            _sdf_path([(-0.42, 0.5, 0), (-0.54, 0.62, 0), (-0.57, 0.76, 0.02)], 0.05, 0.03),
            fur,
            0.05,
        )
    )
    parts.append(
        Part(
            _sdf_ring((0.295, 0.63, 0), 0.115, 0.022, _turn(2, -0.5) @ _turn(0, float(np.pi / 2))),
            collar,
        )
    )
    return parts


def _gift_box(rng: Rng) -> list[Part]:
    paper = _vary(
        rng, (0.3, 0.55, 0.62), str(rng.choice(["plain", "dots", "stripes"])), scale_m=0.09
    )
    paper = replace(paper, second=(0.85, 0.82, 0.75))
    ribbon = _vary(rng, (0.9, 0.25, 0.25), shine=0.5)
    parts = [
        Part(_sdf_box((0, 0.29, 0), (0.34, 0.29, 0.34), 0.015), paper),
        Part(_sdf_box((0, 0.62, 0), (0.37, 0.065, 0.37), 0.015), replace(paper, pattern="plain")),
        Part(_sdf_box((0, 0.345, 0), (0.06, 0.352, 0.377), 0.01), ribbon),
        Part(_sdf_box((0, 0.345, 0), (0.377, 0.352, 0.06), 0.01), ribbon),
    ]
    for side in (-1, 1):
        loop = _turn(2, side * 0.5) @ _turn(0, 0.5)
        parts.append(
            Part(
                _sdf_ring((side * 0.13, 0.77, 0), 0.1, 0.03, loop.astype(np.float32)), ribbon, 0.02
            )
        )
        parts.append(
            Part(_sdf_rod((0, 0.71, 0), (side * 0.22, 0.7, -0.2), 0.03, 0.02), ribbon, 0.02)
        )
    parts.append(Part(_sdf_ball((0, 0.74, 0), 0.055), ribbon, 0.02))
    return parts


def _bottle(rng: Rng) -> list[Part]:
    glass = _vary(rng, (0.12, 0.36, 0.2), shine=1.0, glow=0.1)
    label = _paint(0.95, 0.9, 0.76)
    stripe = _vary(rng, (0.7, 0.2, 0.2))
    outline = [
        (0, 0),
        (0.15, 0),
        (0.165, 0.03),
        (0.165, 0.55),
        (0.13, 0.66),
        (0.06, 0.74),
        (0.05, 0.93),
        (0, 0.93),
    ]
    return [
        Part(_sdf_lathe((0, 0, 0), outline, 0.012), glass),
        Part(
            _sdf_lathe((0, 0, 0), [(0.0, 0.2), (0.178, 0.2), (0.178, 0.47), (0, 0.47)], 0.002),
            label,
        ),
        Part(
            _sdf_lathe((0, 0, 0), [(0.0, 0.25), (0.181, 0.25), (0.181, 0.31), (0, 0.31)], 0.002),
            stripe,
        ),
        Part(_sdf_disc((0, 0.9, 0), 0.07, 0.025, 0.01), glass, 0.02),
        Part(
            _sdf_disc((0, 0.95, 0), 0.052, 0.05, 0.012),
            _paint(0.72, 0.52, 0.34, "stone", scale_m=0.03),
        ),
    ]


def _teapot(rng: Rng) -> list[Part]:
    glaze = _vary(rng, (0.55, 0.7, 0.78), shine=0.9)
    trim = _paint(0.95, 0.94, 0.9, shine=0.7)
    return [
        Part(_sdf_ellipsoid((0, 0.36, 0), (0.36, 0.29, 0.36)), glaze),
        Part(
            _sdf_path(
                [(0.28, 0.3, 0), (0.44, 0.36, 0), (0.53, 0.5, 0), (0.62, 0.58, 0)], 0.09, 0.042
            ),
            glaze,
            0.08,
        ),
        Part(
            _sdf_path(
                [
                    (-0.27, 0.52, 0),
                    (-0.46, 0.56, 0),
                    (-0.56, 0.46, 0),
                    (-0.54, 0.32, 0),
                    (-0.42, 0.22, 0),
                    (-0.3, 0.22, 0),
                ],
                0.042,
            ),
            trim,
            0.04,
        ),
        Part(_sdf_disc((0, 0.08, 0), 0.22, 0.045, 0.02), trim, 0.03),
        Part(_sdf_ellipsoid((0, 0.6, 0), (0.2, 0.085, 0.2)), trim),
        Part(_sdf_ring((0, 0.6, 0), 0.195, 0.018, _turn(0, float(np.pi / 2))), trim),
        Part(_sdf_ball((0, 0.72, 0), 0.058), trim, 0.04),
    ]


def _little_tree(rng: Rng) -> list[Part]:
    bark = _paint(0.42, 0.3, 0.2, "bands", scale_m=0.03)
    greens = [
        _paint(0.3, 0.48, 0.18, "foliage", scale_m=0.03),
        _paint(0.42, 0.58, 0.22, "foliage", scale_m=0.03),
    ]
    if rng.random() < 0.3:
        greens = [
            _paint(0.8, 0.5, 0.15, "foliage", scale_m=0.03),
            _paint(0.85, 0.38, 0.15, "foliage", scale_m=0.03),
        ]
    parts = [Part(_sdf_path([(0, 0, 0), (0.02, 0.25, 0), (0, 0.5, 0)], 0.065, 0.04), bark)]
    parts += [
        Part(_sdf_rod((0, 0.34, 0), (side * 0.16, 0.52, 0.04), 0.03, 0.02), bark, 0.04)
        for side in (-1, 1)
    ]
    for k in range(20):
        height = 1 - 2 * (k + 0.5) / 20
        ring, around = np.sqrt(1 - height**2), k * 2.4
        centre = (
            float(ring * np.cos(around)) * 0.27,
            0.68 + 0.2 * float(height),
            float(ring * np.sin(around)) * 0.27,
        )
        parts.append(Part(_sdf_ball(centre, float(rng.uniform(0.1, 0.14))), greens[k % 2], 0.035))
    parts.append(Part(_sdf_ball((0, 0.68, 0), 0.24), greens[0], 0.03))
    return parts


def _duck(rng: Rng) -> list[Part]:
    body = _vary(rng, (0.98, 0.8, 0.15), shine=0.6)
    beak = _paint(0.95, 0.45, 0.1, shine=0.5)
    eye = _paint(0.05, 0.05, 0.05, shine=1.0)
    parts = [
        Part(_sdf_ellipsoid((-0.05, 0.3, 0), (0.42, 0.27, 0.31)), body),
        Part(_sdf_rod((-0.36, 0.38, 0), (-0.5, 0.54, 0), 0.1, 0.02), body, 0.12),
        Part(_sdf_ball((0.2, 0.7, 0), 0.22), body, 0.08),
        Part(_sdf_ellipsoid((0.43, 0.67, 0), (0.12, 0.035, 0.11)), beak, 0.02),
        Part(_sdf_ellipsoid((0.41, 0.63, 0), (0.1, 0.025, 0.085)), beak, 0.01),
    ]
    for z in (-1, 1):
        parts.append(Part(_sdf_ball((0.34, 0.77, z * 0.13), 0.036), eye))
        wing = _turn(2, 0.25)
        parts.append(
            Part(_sdf_ellipsoid((-0.1, 0.34, z * 0.28), (0.24, 0.14, 0.07), wing), body, 0.03)
        )
    return parts


def _traffic_cone(rng: Rng) -> list[Part]:
    orange = _vary(rng, (0.95, 0.38, 0.1), shine=0.25)
    white = _paint(0.95, 0.95, 0.93, shine=0.3)
    cone = [(0, 0.05), (0.27, 0.05), (0.05, 0.95), (0, 0.95)]
    parts = [Part(_sdf_lathe((0, 0, 0), cone, 0.012), orange)]
    parts.append(Part(_sdf_box((0, 0.035, 0), (0.36, 0.035, 0.36), 0.03), orange))
    for low, high in ((0.34, 0.5), (0.64, 0.76)):
        a, b = 0.27 - 0.2444 * (low - 0.05) + 0.004, 0.27 - 0.2444 * (high - 0.05) + 0.004
        parts.append(
            Part(_sdf_lathe((0, 0, 0), [(0, low), (a, low), (b, high), (0, high)], 0.012), white)
        )
    return parts


# Per cut-out: its parts, and the heading in degrees from which it looks best.
CUTOUTS: dict[str, tuple[Callable[[Rng], list[Part]], float]] = {
    "mug": (_mug, -20),
    "ball": (_ball, 20),
    "plant": (_potted_plant, 10),
    "lamp": (_desk_lamp, -25),
    "chair": (_wooden_chair, 35),
    "car": (_toy_car, -35),
    "person": (_person, 25),
    "dog": (_dog, -35),
    "gift": (_gift_box, 32),
    "bottle": (_bottle, 0),
    "teapot": (_teapot, -15),
    "tree": (_little_tree, 0),
    "duck": (_duck, -35),
    "cone": (_traffic_cone, 30),
}


def render_cutout(seed: int, size: int = 192, name: str | None = None, samples: int = 3) -> Bytes:
    """One object cut out: (H, W, 4) uint8 RGBA, `size` px on the longer side, with soft alpha.

    Colour is not premultiplied. `name` is one of `CUTOUTS` (default: by seed, seen from a random
    side); `samples` x `samples` rays make a pixel, and alpha is the share of them that hit.
    """
    rng = np.random.default_rng([seed, 77])
    names = list(CUTOUTS)
    chosen = name or names[int(rng.integers(len(names)))]
    make, heading = CUTOUTS[chosen]
    yaw = heading if name else heading + float(rng.uniform(-50, 50))
    pitch = -14.0 if name else float(rng.uniform(-25, 3))
    parts = make(rng)
    eye_m = 3.6
    camera = Camera(yaw_deg=yaw, pitch_deg=pitch, fov_deg=34)
    back = camera.rotation()[:, 2:]
    origin = (_vec([0, 0.5, 0])[:, None] - back * np.float32(eye_m)).astype(np.float32)
    box = _extent(parts, camera, origin)
    direction, shape = _window(camera, box, size, samples)
    t = _march(parts, origin, direction, 6.0)
    hit = np.flatnonzero(np.isfinite(t))
    colour = np.zeros_like(direction)
    pixel_m = (box[2] - box[0]) * eye_m / shape[1]
    for part in np.array_split(hit, max(1, hit.size // 30_000)):
        point = origin + t[part] * direction[:, part]
        colour[:, part] = _shade_object(
            parts, point, -direction[:, part], pixel_m, float(rng.random())
        )
    return _coverage(colour, np.isfinite(t), shape, samples)


def _extent(
    parts: Sequence[Part], camera: Camera, origin: Array
) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of the object in the camera's plane z = 1, a hair wider."""
    count = 96
    reach = float(np.tan(np.radians(camera.fov_deg) / 2))
    seen = np.isfinite(_march(parts, origin, _unit(camera.rays(count, count)), 6.0)).reshape(
        count, count
    )
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    step = 2 * reach / count
    left, right = -reach + step * (columns[0] - 1), -reach + step * (columns[-1] + 2)
    top, bottom = reach - step * (rows[0] - 1), reach - step * (rows[-1] + 2)
    return float(left), float(bottom), float(right), float(top)


def _window(
    camera: Camera, box: tuple[float, float, float, float], size: int, samples: int
) -> tuple[Array, tuple[int, int]]:
    """Unit ray directions (3, N) over the box and the sampled (height, width), multiples of
    `samples`.
    """
    left, bottom, right, top = box
    pixel = max(right - left, top - bottom) / size
    width = max(1, round((right - left) / pixel)) * samples
    height = max(1, round((top - bottom) / pixel)) * samples
    x = left + (np.arange(width) + 0.5) * pixel / samples
    y = top - (np.arange(height) + 0.5) * pixel / samples
    across, up = np.meshgrid(x, y)
    rays = np.stack([across.ravel(), up.ravel(), np.ones(height * width)]).astype(np.float32)
    return _unit(camera.rotation() @ rays), (height, width)


def _coverage(
    colour: Array, hit: npt.NDArray[np.bool_], shape: tuple[int, int], samples: int
) -> Bytes:
    """Averages samples (3, N) into RGBA pixels; colour is averaged over the samples that hit."""
    height, width = shape[0] // samples, shape[1] // samples
    split = (height, samples, width, samples)
    count = hit.reshape(split).sum((1, 3)).astype(np.float32)
    total = (colour * hit).T.reshape(*split, 3).sum((1, 3))
    rgb = total / np.maximum(count, 1)[..., None]
    return _to_bytes(np.concatenate([rgb, count[..., None] / samples**2], axis=-1))


# ----------------------------------------------------------------------------------------- pictures


def _develop(linear: Array, exposure: float, tint: Array) -> Array:
    """Linear (H, W, 3) to display values in 0..1: exposure, colour cast, shoulder, gamma."""
    level = np.percentile(linear.mean(-1), 70) + 1e-3
    scaled = linear * tint * np.float32(exposure / level)
    # The shoulder keeps lamps and skies from clipping hard.
    rolled = scaled * (1 + scaled / 6) / (1 + scaled * np.float32(0.85))
    picture: Array = rolled.clip(0, 1) ** np.float32(1 / 2.2)
    return picture


def _blur(picture: Array, sigma_px: float) -> Array:
    """Separable Gaussian blur of (H, W, C), edges repeated."""
    reach = max(1, int(np.ceil(2.5 * sigma_px)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        wide = np.pad(picture, pad, mode="edge")
        size = picture.shape[axis]
        picture = sum(
            w * np.take(wide, np.arange(k, k + size), axis=axis) for k, w in enumerate(weights)
        )
    return picture


def _camera_faults(picture: Array, rng: Rng) -> Array:
    """What cheap cameras add to (H, W, 3) values in 0..1: blur, vignette and noise."""
    if rng.random() < 0.7:
        picture = _blur(picture, float(rng.uniform(0.35, 0.9)))
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    picture = picture * (1 - rng.uniform(0, 0.12) * (x * x + y * y)).astype(np.float32)[..., None]
    noise = rng.standard_normal(picture.shape).astype(np.float32) * np.float32(rng.uniform(0, 0.02))
    return picture + noise


def _to_bytes(picture: Array) -> Bytes:
    levels: Bytes = (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return levels


def _handheld(camera: Camera, seed: int) -> Camera:
    """Another lens, pointed with less care: 38 to 88 degrees wide, tilted and rolled."""
    rng = np.random.default_rng([seed, 3])
    x, y, z = camera.position
    return replace(
        camera,
        position=(x, y * float(rng.uniform(0.6, 1.15)), z),
        fov_deg=float(rng.uniform(38, 88)),
        pitch_deg=camera.pitch_deg + float(rng.uniform(-14, 10)),
        roll_deg=camera.roll_deg + float(rng.normal(0, 5)),
    )


def render(
    seed: int,
    size: tuple[int, int] = (288, 288),
    kind: str | None = None,
    *,
    pasted: bool | None = None,
    handheld: bool = False,
    fov_deg: float | None = None,
) -> tuple[Bytes, Array]:
    """A training picture and its exact depth.

    Returns (H, W, 3) uint8 RGB and (H, W) float32 z-depth in metres within 0.1..10. `size` is
    (height, width); `kind` defaults to `KINDS[seed % 6]`; `pasted` adds cut-outs as flat boards
    standing in the scene, as composites have them (default: six pictures in ten). The camera has a
    horizontal field of view of 55 to 66 degrees and is held about level, unless `handheld` varies
    it or `fov_deg` sets the field of view.
    """
    kind = kind or KINDS[seed % len(KINDS)]
    scene = build_scene(seed, kind)
    if handheld:
        scene.camera = _handheld(scene.camera, seed)
    if fov_deg is not None:
        scene.camera = replace(scene.camera, fov_deg=fov_deg)
    rng = np.random.default_rng([seed, KINDS.index(kind), 1])
    linear, depth = _cast(scene, *size, rng)
    tint = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    picture = _develop(linear, float(rng.uniform(0.55, 1.2)), tint)
    depth_m = depth.clip(MIN_DEPTH_M, MAX_DEPTH_M)
    chance = rng.random()
    if pasted or (pasted is None and chance < 0.6):
        picture, depth_m = _paste(picture, depth_m, seed, rng)
    return _to_bytes(_camera_faults(picture, rng)), depth_m


def render_scene(scene: Scene, size: int, seed: int) -> tuple[Bytes, Array]:
    """Picture (size, size, 3) uint8 of a scene and its z-depth (size, size) in m, inf in the sky.

    Without a camera's faults and unclipped, for measuring against.
    """
    colour, depth_m = _cast(scene, size, size, np.random.default_rng(seed))
    return _to_bytes(_develop(colour, 1.0, np.ones(3, np.float32))), depth_m


def render_background(seed: int, size: tuple[int, int], kind: str, samples: int = 4) -> Bytes:
    """A clean picture (H, W, 3) of a scene, `samples` x `samples` rays per pixel and no camera
    faults.
    """
    scene = build_scene(seed, kind)
    rng = np.random.default_rng([seed, KINDS.index(kind), 2])
    height, width = size
    # Every sample has its own jittered light ray, so shadows come out soft and edges smooth.
    fine, _ = _cast(scene, height * samples, width * samples, rng)
    shown = _develop(fine, 0.72, np.ones(3, np.float32))
    shown = shown + np.float32(0.35) * shown * (1 - shown) * (shown - np.float32(0.45))  # contrast
    mean = shown.reshape(height, samples, width, samples, 3).mean((1, 3))
    return _to_bytes(mean)


@functools.lru_cache(maxsize=4 * CUTOUTS_PER_BLOCK)
def library_cutout(seed: int) -> Bytes:
    """A small cut-out (h, w, 4) for pasting into pictures; kept once rendered."""
    return render_cutout(seed, 112, samples=2)


def _resize(rgba: Bytes, height: int, width: int) -> Array:
    """RGBA bytes to premultiplied float32 (height, width, 4) in 0..1, each pixel a box average."""
    values = rgba.astype(np.float32) / 255
    values[..., :3] *= values[..., 3:]
    for axis, size in ((0, height), (1, width)):
        edges = np.linspace(0, values.shape[axis], size + 1)
        zeros = np.zeros_like(np.take(values, [0], axis=axis))
        running = np.concatenate([zeros, np.cumsum(values, axis=axis, dtype=np.float32)], axis=axis)
        low = np.floor(edges).astype(np.int64).clip(0, values.shape[axis] - 1)
        share = (edges - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        at = (
            np.take(running, low, axis=axis) * (1 - share)
            + np.take(running, low + 1, axis=axis) * share
        )
        values = np.diff(at, axis=axis) / np.float32(edges[1])
    return values.clip(0, 1)


def paste(picture: Array, depth_m: Array, cutout: Bytes, rng: Rng) -> None:
    """Paste a cut-out somewhere as a flat board: where its foot meets the scene behind, or nearer.

    `picture` (H, W, 3) in 0..1 and `depth_m` (H, W) are changed; `cutout` is (h, w, 4) uint8 RGBA,
    colours not premultiplied. It becomes 16 to 46 % of the picture's longer side.
    """
    height, width = depth_m.shape
    scale = rng.uniform(0.16, 0.46) * max(height, width) / max(cutout.shape[:2])
    h = min(height - 2, max(8, round(cutout.shape[0] * scale)))
    w = min(width - 2, max(8, round(cutout.shape[1] * scale)))
    top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
    board = _resize(cutout[:, ::-1] if rng.random() < 0.5 else cutout, h, w)
    window = (slice(top, top + h), slice(left, left + w))
    mask = board[..., 3] >= 0.5
    if not mask.any():
        return
    foot = depth_m[window][-max(2, h // 10) :][mask[-max(2, h // 10) :]]
    # On the ground it stands where its foot is; before a wall or the sky it hangs well in front.
    behind = np.percentile(depth_m[window][mask], 10)
    stand = min(float(np.median(foot)) if foot.size else MAX_DEPTH_M, float(behind) * 1.1, 6.0)
    at_m = max(MIN_DEPTH_M, stand * float(rng.uniform(0.8, 0.95)))
    light = np.float32(rng.uniform(0.7, 1.1))
    picture[window] = picture[window] * (1 - board[..., 3:]) + board[..., :3] * light
    depth_m[window] = np.where(mask, np.minimum(depth_m[window], np.float32(at_m)), depth_m[window])


def _paste(picture: Array, depth_m: Array, seed: int, rng: Rng) -> tuple[Array, Array]:
    """Pastes one or two of the rendered cut-outs of the seed's block."""
    picture, depth_m = picture.copy(), depth_m.copy()
    block = (seed // _SEEDS_PER_BLOCK) * _SEEDS_PER_BLOCK
    for _ in range(1 + int(rng.random() < 0.25)):
        cutout = library_cutout(block + int(rng.integers(CUTOUTS_PER_BLOCK)))
        paste(picture, depth_m, cutout, rng)
    return picture, depth_m
