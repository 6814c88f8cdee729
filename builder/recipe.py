"""The recipe: every choice that decides what a record holds, and nothing else.

Here is what a user chooses; what a choice became for one set of sources is in `builder.pinned`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Annotated, Any, Literal

from builder.errors import RecipeError
from builder.typed import Between, Text, check, stored
from builder.untrusted import printable

DEMO_DEPTH_MODEL = "demo"
NO_DEPTH_MODEL = "none"
MEASURED_DEPTH = "measured"  # no model: every background brings its own depth

BackgroundFit = Literal["crop", "stretch"]
ImageFormat = Literal["jpeg", "webp", "png"]
DepthFormat = Literal["png16", "jpeg8"]
Precision = Literal["auto", "float32", "mixed", "bfloat16"]
DepthMeaning = Literal["auto", "metric", "relative-depth", "relative-inverse"]
Layout = Literal["pairs", "scenes"]
Placement = Literal["uniform", "ground"]
DepthSource = Literal["network", "composed"]
Relief = Literal["board", "photo"]
Balance = Literal["none", "category"]
Blend = Literal["none", "feather1", "feather2", "box", "mixed"]

BLENDS = ("none", "feather1", "feather2", "box")  # what siblings are made under, in this order

MAX_SIDE = 4096  # px of a record, so of a prepared source too
MAX_TEXT = 4096  # characters; also the longest path of most systems


def _option(default: Any, meaning: str, **rules: Any) -> Any:
    """Return a field of the recipe; one that is added gives `before`, see `builder.typed`."""
    return field(default=default, metadata={"meaning": meaning, **rules})


# What a field is when it is not chosen, by layout.
_BY_LAYOUT: dict[str, dict[Layout, Any]] = {
    "placements": {"pairs": 20, "scenes": 1000},
    "records": {"pairs": None, "scenes": 20_000},
    "size": {"pairs": 224, "scenes": 512},
    "foreground_size": {"pairs": 100, "scenes": "0.4-1.1"},
    "objects": {"pairs": "1", "scenes": "1-4"},
    "placement": {"pairs": "uniform", "scenes": "ground"},
    "depth_source": {"pairs": "network", "scenes": "composed"},
    "scale_jitter": {"pairs": 0.0, "scenes": 0.5},
    "truncation": {"pairs": 0.0, "scenes": 0.25},
    "max_overlap": {"pairs": 0.4, "scenes": 0.4},
    "min_visible": {"pairs": 0.3, "scenes": 0.3},
    "blend": {"pairs": "none", "scenes": "mixed"},
    "background_flip": {"pairs": False, "scenes": True},
    "object_jitter": {"pairs": 0.0, "scenes": 0.3},
}
MAX_OBJECTS = 255  # numbers in 8 bits
LARGEST_SHARE = 1.1  # of the side of a record that a foreground of varying size may have


def layout_default(name: str, layout: Layout) -> Any:
    """Return what a field of the recipe is when it is not chosen; see `Recipe`."""
    by_layout = _BY_LAYOUT.get(name)
    return by_layout[layout] if by_layout else getattr(_DEFAULTS, name)


def _numbers(text: str, kind: type) -> tuple[Any, Any] | None:
    """Read "2" or "1-4"; None of anything else."""
    parts = text.split("-")
    try:
        values = [kind(part) for part in parts]
    except ValueError:
        return None
    return (values[0], values[-1]) if len(values) <= 2 and values[0] <= values[-1] else None


def _range(text: str, kind: type) -> tuple[Any, Any]:
    numbers = _numbers(text, kind)
    assert numbers is not None
    return numbers


def _as_text(low: float, high: float) -> str:
    """Write what `_numbers` reads, in one way."""
    texts = [f"{Decimal(repr(value)).normalize():f}" for value in (low, high)]
    return "-".join(dict.fromkeys(texts))


def _object_counts(value: str, recipe: Any) -> str | None:
    counts = _numbers(value, int)
    if counts is None or not 1 <= counts[0] <= counts[1] <= MAX_OBJECTS:
        return f"is {value!r}; it must be a number from 1 to {MAX_OBJECTS}, or a range such as 1-4"
    if recipe.layout == "pairs" and counts != (1, 1):
        return f"is {value!r}; several objects need layout scenes"
    return None


def _foreground_size(value: float | str, recipe: Any) -> str | None:
    if isinstance(value, int):
        return Between(2, "size")(value, recipe)
    sizes = (value, value) if isinstance(value, float) else _numbers(value, float)
    if sizes is None or not 0.02 <= sizes[0] <= sizes[1] <= LARGEST_SHARE:
        return (
            f"is {value!r}; it must be whole px, a share of the record's side from 0.02 to "
            f"{LARGEST_SHARE}, or a range of shares such as 0.2-0.8"
        )
    return None


def _shares(value: str, _recipe: Any) -> str | None:
    shares = _numbers(value, float)
    if shares is None or not 0 <= shares[0] <= shares[1] <= 1:
        return f"is {value!r}; it must be a share from 0 to 1, or a range such as 0-0.5"
    return None


def _qualities(value: str, _recipe: Any) -> str | None:
    qualities = _numbers(value, int)
    if value != "none" and (qualities is None or not 1 <= qualities[0] <= qualities[1] <= 100):
        return f"is {value!r}; it must be 'none', a quality from 1 to 100, or a range such as 40-95"
    return None


def _distractors(value: str, recipe: Any) -> str | None:
    counts, most = _numbers(value, int), MAX_OBJECTS - recipe.n_objects[1]
    if counts is None or not 0 <= counts[0] <= counts[1] <= most:
        return f"is {value!r}; it must be a number from 0 to {most}, or a range such as 0-2"
    return None


def _whole_groups(value: int | None, recipe: Any) -> str | None:
    if value is None or not recipe.siblings or value % len(BLENDS) == 0:
        return None
    return f"is {value}; with siblings it must be a multiple of {len(BLENDS)}"


def _multiple_of_32(value: int | None, _recipe: Any) -> str | None:
    if value is None or value % 32 == 0:
        return None
    nearest = max(32, round(value / 32) * 32)
    return f"is {value}; it must be a multiple of 32, for example {nearest}"


def _not_empty(value: str, _recipe: Any) -> str | None:
    return None if value else "is empty; give a folder, a Hub id, 'demo' or 'none'"


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """The choices that decide the content of a set; equal recipes and sources give equal pixels.

    Raises:
        RecipeError: a field has the wrong type or lies outside its range.
    """

    layout: Layout = _option(
        "pairs",
        "pairs: one object wholly inside, every foreground on every background; scenes: several "
        "that stand on the ground",
        before="pairs",
    )
    placements: Annotated[int, Between(1, 10**9)] = _option(
        None, "random places per foreground, background and flip"
    )
    flip: bool = _option(True, "also make every record with the foreground mirrored")
    records: Annotated[int | None, Between(1, 2**62), _whole_groups] = _option(
        None, "how many of all records to make, shared out over the splits", before=None
    )
    size: Annotated[int, Between(16, MAX_SIDE)] = _option(None, "side of a record in px")
    foreground_size: Annotated[int | float | str, _foreground_size] = _option(
        None,
        "longer side of a foreground: px, a share of the record's side, or a range of shares; on "
        "the ground, at its middle distance",
    )
    objects: Annotated[str, _object_counts] = _option(
        None, "objects in a record, such as 3 or 1-4", before="1"
    )
    placement: Placement = _option(
        None, "where objects stand: on the background's ground, or anywhere", before="uniform"
    )
    depth_source: DepthSource = _option(
        None,
        "network: the depth model sees each composite; composed: it sees each background once, and "
        "objects get the depth of where they stand",
        before="network",
    )
    relief: Relief = _option(
        "board",
        "depth inside objects: board, an upright one through the foot; photo: board with the "
        "relief of metric depth, NAME.depth.png beside a foreground",
        before="board",
    )
    scale_jitter: Annotated[float, Between(0, 2)] = _option(
        None, "octaves by which an object may be smaller or larger than its place asks", before=0.0
    )
    rotation: Annotated[float, Between(0, 180)] = _option(
        0.0, "degrees by which objects may be turned either way, in two steps", before=0.0
    )
    truncation: Annotated[float, Between(0, 0.9)] = _option(
        None, "share of an object that may lie outside of the record", before=0.0
    )
    max_overlap: Annotated[float, Between(0, 1)] = _option(
        None, "share of an object that another may hide", before=0.4
    )
    min_visible: Annotated[float, Between(0, 1)] = _option(
        None, "share of an object that must be seen, or it is left out", before=0.3
    )
    occlude: bool = _option(False, "let nearer parts of the background hide objects", before=False)
    balance: Balance = _option(
        "none", "category: draw objects evenly from the categories", before="none"
    )
    fov_deg: Annotated[float, Between(10, 150)] = _option(
        60.0, "horizontal field of view of the backgrounds' camera in degrees", before=60.0
    )
    blend: Blend = _option(
        None,
        "edge of objects: as cut out, alpha falling off over 1 or 2 px, blurred, or any of these",
        before="none",
    )
    siblings: bool = _option(
        False, "make each layout under every kind of edge, with one layout_id", before=False
    )
    match: Annotated[str, _shares] = _option(
        "0",
        "share by which an object's colours are led to those around it, such as 0-0.5",
        before="0",
    )
    shadow: Annotated[str, _shares] = _option(
        "0",
        "share by which an object's shadow darkens the ground it stands on, such as 0.1-0.4",
        before="0",
    )
    match_sharpness: bool = _option(
        False, "blur objects that are sharper than their background", before=False
    )
    match_noise: bool = _option(
        False, "add noise to objects that have less than their background", before=False
    )
    jpeg_history: Annotated[str, _qualities] = _option(
        "none", "quality at which a record was a JPEG once before, such as 40-95", before="none"
    )
    background_flip: bool = _option(None, "mirror half of the backgrounds", before=False)
    jitter: Annotated[float, Between(0, 1)] = _option(
        0.0, "share by which a record's brightness, contrast and tint vary", before=0.0
    )
    object_jitter: Annotated[float, Between(0, 1)] = _option(
        None, "share by which an object's brightness, contrast and tint vary", before=0.0
    )
    distractors: Annotated[str, _distractors] = _option(
        "0", "objects that are pasted and not labelled, such as 0-2", before="0"
    )
    background_fit: BackgroundFit = _option("crop", "how a background becomes square")
    holdout: Annotated[float, Between(0, 0.9)] = _option(
        0.1, "share of backgrounds and of foregrounds kept out of train"
    )
    seed: Annotated[int, Between(0, 2**64 - 1)] = _option(0, "seed of every random choice")
    # Of the three fields that lead to a depth model no pixel depends, for what they lead to stands
    # in `DepthInfo`: weights, kind, quantity.
    depth_model: Annotated[str | None, Text(MAX_TEXT), _not_empty] = _option(
        DEMO_DEPTH_MODEL,
        "Hub id or folder of a depth-estimation model, checkpoint of DenseDepth, 'demo', 'none'; "
        "'measured': every background has its NAME.depth.png",
        pixels=False,
    )
    depth_revision: Annotated[str | None, Text(MAX_TEXT)] = _option(
        None, "revision of a depth model from the Hub", pixels=False
    )
    depth_kind: DepthMeaning = _option(
        "auto", "what the depth model predicts; 'auto' goes by the model's type", pixels=False
    )
    depth_input: Annotated[int | None, Between(32, 4096), _multiple_of_32] = _option(
        None, "side in px of the composite shown to the depth model; 480, for 'demo' 256"
    )
    # Not "auto": what that leads to depends on the machine, and the same command should make the
    # same records everywhere unless somebody asks for speed.
    precision: Precision = _option(
        "float32", "arithmetic of the depth model; 'auto' is the fastest that shifts depth < 0.5 %"
    )
    image_format: ImageFormat = _option("jpeg", "encoding of fg_bg")
    image_quality: Annotated[int, Between(1, 100)] = _option(90, "quality of fg_bg as JPEG or WebP")
    depth_format: DepthFormat = _option("png16", "encoding of depth")
    depth_precision: Annotated[float, Between(0, 0.1)] = _option(
        0.005, "share by which storing may move a depth; 0 keeps every millimetre"
    )
    shard_records: Annotated[int, Between(1, 1_000_000)] = _option(1000, "most records in one file")

    def __post_init__(self) -> None:
        if self.depth_model is None:
            object.__setattr__(self, "depth_model", NO_DEPTH_MODEL)
        for name, by_layout in _BY_LAYOUT.items():
            if getattr(self, name) is None and self.layout in by_layout:
                object.__setattr__(self, name, by_layout[self.layout])
        check(self)
        for name in _FLOATS:
            # 0, 0.0 and -0.0 are one recipe, so they need one fingerprint
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)
        for name, kind in _RANGES.items():  # 0.5, 0.50 and 0.5-0.5 are one recipe, too
            value = getattr(self, name)
            if isinstance(value, str) and value != "none":
                low, high = _range(value, kind)
                one = name == "foreground_size" and low == high
                object.__setattr__(self, name, low if one else _as_text(low, high))
        if self.is_measured and self.depth_source != "composed":
            raise RecipeError(
                "depth_model is measured, which is the depth of backgrounds alone; use it with "
                "depth_source composed."
            )
        if self.has_relief and not (self.layout == "scenes" and self.composes_depth):
            raise RecipeError(
                "relief is photo, which shapes the composed depth of scenes; use it with layout "
                "scenes, depth_source composed and a depth_model."
            )
        if self.placement == "ground" and self.background_fit == "stretch":
            raise RecipeError(
                "background_fit is stretch, which bends the perspective that placement ground "
                "goes by; use crop."
            )
        if self.uses("shadow") and self.placement != "ground":
            raise RecipeError(
                f"shadow is {self.shadow!r}, which only objects on the ground throw; use it with "
                "placement ground."
            )
        if self.depth_input is None:
            default = 256 if self.depth_model == DEMO_DEPTH_MODEL else 480
            object.__setattr__(self, "depth_input", default)

    def __repr__(self) -> str:
        """Return the call that makes this recipe, without what is as by default."""
        default = Recipe(layout=self.layout, depth_model=self.depth_model)
        shown = {
            name: value
            for name, value in self.to_dict().items()
            if value != getattr(_DEFAULTS if name in ("layout", "depth_model") else default, name)
        }
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def has_depth(self) -> bool:
        """Whether records carry a depth map."""
        return self.depth_model != NO_DEPTH_MODEL

    @property
    def n_siblings(self) -> int:
        """Number of records that are made of one layout."""
        return len(BLENDS) if self.siblings else 1

    @property
    def per_pair(self) -> int:
        """Number of records that a foreground and a background give."""
        return (2 if self.flip else 1) * self.placements * self.n_siblings

    @property
    def is_measured(self) -> bool:
        """Whether every background brings its own depth, and no model is asked."""
        return self.depth_model == MEASURED_DEPTH

    @property
    def n_objects(self) -> tuple[int, int]:
        """Least and most objects of a record."""
        return _range(self.objects, int)

    @property
    def n_distractors(self) -> tuple[int, int]:
        """Least and most objects of a record that are not labelled."""
        return _range(self.distractors, int)

    @property
    def match_shares(self) -> tuple[float, float]:
        """Least and most share by which colours are matched."""
        return _range(self.match, float)

    @property
    def shadow_shares(self) -> tuple[float, float]:
        """Least and most share by which shadows darken."""
        return _range(self.shadow, float)

    @property
    def jpeg_qualities(self) -> tuple[int, int]:
        """Least and most quality of the JPEG that a record was before; 0: it was none."""
        return (0, 0) if self.jpeg_history == "none" else _range(self.jpeg_history, int)

    def uses(self, name: str) -> bool:
        """Whether a field that changes how things look asks for anything."""
        return getattr(self, name) not in (False, 0, "0", "none")

    @property
    def changes_looks(self) -> bool:
        """Whether anything is done to how objects or backgrounds look."""
        return any(map(self.uses, LOOK_FIELDS))

    @property
    def foreground_sides(self) -> tuple[int, int]:
        """Least and most px of a foreground's longer side (on the ground: at its middle)."""
        if isinstance(self.foreground_size, str):
            shares = _numbers(self.foreground_size, float)
            assert shares is not None
        elif isinstance(self.foreground_size, float):
            shares = self.foreground_size, self.foreground_size
        else:
            return self.foreground_size, self.foreground_size
        low, high = (max(2, round(share * self.size)) for share in shares)
        return low, high

    @property
    def has_ladder(self) -> bool:
        """Whether a foreground has several sizes in the set, and so is prepared at each."""
        low, high = self.foreground_sides
        varies = low != high or self.placement == "ground" or self.scale_jitter > 0
        return varies or self.rotation > 0 or self.has_relief

    @property
    def has_relief(self) -> bool:
        """Whether objects have the relief of their photographs where these have depth."""
        return self.relief == "photo"

    @property
    def turns_deg(self) -> tuple[float, ...]:
        """Angles that a foreground is prepared at, counter-clockwise; 0 is the first."""
        turn = self.rotation
        return (0.0, -turn, -turn / 2, turn / 2, turn) if turn else (0.0,)

    @property
    def largest_side(self) -> int:
        """Longer side in px that a foreground is prepared at, at most."""
        side = round(LARGEST_SHARE * self.size)
        return side if self.has_ladder else self.foreground_sides[1]

    @property
    def is_composed(self) -> bool:
        """Whether records are scenes in the making: anything but one object, placed as in 0.1.0."""
        return (
            self.layout == "scenes"
            or self.has_ladder
            or self.depth_source == "composed"
            or self.truncation > 0
            or self.changes_looks
        )

    @property
    def composes_depth(self) -> bool:
        """Whether the depth of a record is composed, and no model sees it."""
        return self.has_depth and self.depth_source == "composed"

    @property
    def needs_background_depth(self) -> bool:
        """Whether the depth of each background is prepared with it."""
        return self.composes_depth or self.placement == "ground"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make a recipe of fields that somebody has chosen.

        Raises:
            RecipeError: an unknown field, or a value that is not allowed.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            names = printable(", ".join(unknown))[:MAX_TEXT]
            raise RecipeError(
                f"unknown recipe field {names}; known are {', '.join(sorted(known))}."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object, later ones only where they say something."""
        return stored(self)


# The fields that change how objects and backgrounds look, and nothing else.
LOOK_FIELDS = (
    *("blend", "siblings", "match", "shadow", "match_sharpness", "match_noise", "jpeg_history"),
    *("background_flip", "jitter", "object_jitter", "distractors"),
)
_FLOATS = (
    *("holdout", "depth_precision", "scale_jitter", "truncation", "max_overlap", "min_visible"),
    *("fov_deg", "rotation", "jitter", "object_jitter"),
)
_RANGES = {
    "foreground_size": float,
    "objects": int,
    "match": float,
    "shadow": float,
    "jpeg_history": int,
    "distractors": int,
}
_DEFAULTS = Recipe()


def meaning(name: str) -> str:
    """Return what a field of the recipe means, for tables and help texts."""
    text: str = next(f.metadata["meaning"] for f in fields(Recipe) if f.name == name)
    return text


def depth_grid(precision: float, near: int, far: int) -> list[int]:
    """Return the depths from `near` to `far` (stored units, ascending) that records may hold.

    Each is about twice `precision` above the one before, so that the nearest one is within
    `precision` of any depth (and half a unit); 0, like any step below 1, gives every value.
    Computed in decimal arithmetic, so that it is the same on every machine.
    """
    if 2 * precision * far <= 1:
        return list(range(near, far + 1))
    grid, value = [near], Decimal(near)
    factor = 1 + 2 * Decimal(repr(precision))
    while (value := value * factor) < far:
        if round(value) > grid[-1]:
            grid.append(round(value))
    return [*grid, far] if grid[-1] < far else grid
