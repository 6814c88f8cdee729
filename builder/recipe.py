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

BackgroundFit = Literal["crop", "stretch"]
ImageFormat = Literal["jpeg", "webp", "png"]
DepthFormat = Literal["png16", "jpeg8"]
Precision = Literal["auto", "float32", "mixed", "bfloat16"]
DepthMeaning = Literal["auto", "metric", "relative-depth", "relative-inverse"]

MAX_SIDE = 4096  # px of a record, so of a prepared source too
MAX_TEXT = 4096  # characters; also the longest path of most systems


def _option(default: Any, meaning: str, **rules: Any) -> Any:
    """Return a field of the recipe; one that is added gives `before`, see `builder.typed`."""
    return field(default=default, metadata={"meaning": meaning, **rules})


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

    placements: Annotated[int, Between(1, 10**9)] = _option(
        20, "random places per foreground, background and flip"
    )
    flip: bool = _option(True, "also make every record with the foreground mirrored")
    records: Annotated[int | None, Between(1, 2**62)] = _option(
        None, "how many of all records to make, shared out over the splits", before=None
    )
    size: Annotated[int, Between(16, MAX_SIDE)] = _option(224, "side of a record in px")
    foreground_size: Annotated[int, Between(2, "size")] = _option(
        100, "longer side of a pasted foreground in px"
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
        "Hub id or folder of a depth-estimation model, checkpoint of DenseDepth, 'demo' or 'none'",
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
        check(self)
        for name in ("holdout", "depth_precision"):
            # 0, 0.0 and -0.0 are one recipe, so they need one fingerprint
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)
        if self.depth_input is None:
            default = 256 if self.depth_model == DEMO_DEPTH_MODEL else 480
            object.__setattr__(self, "depth_input", default)

    def __repr__(self) -> str:
        """Return the call that makes this recipe, without what is as by default."""
        default = Recipe(depth_model=self.depth_model)  # which decides depth_input
        shown = {
            name: value
            for name, value in self.to_dict().items()
            if value != getattr(default if name == "depth_input" else _DEFAULTS, name)
        }
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def has_depth(self) -> bool:
        """Whether records carry a depth map."""
        return self.depth_model != NO_DEPTH_MODEL

    @property
    def per_pair(self) -> int:
        """Number of records that a foreground and a background give."""
        return (2 if self.flip else 1) * self.placements

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
