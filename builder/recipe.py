"""The recipe: every choice that decides what a record holds, and nothing else.

`Recipe` is what a user chooses. `PinnedRecipe` is a recipe tied to the exact sources and depth
weights of one set; saved as `recipe.json` beside the data it regenerates every record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args

from builder.errors import RecipeError
from builder.files import read_text
from builder.untrusted import parse_json, printable, shown

# Raised whenever the same recipe would make other pixels than an earlier version did.
RECIPE_FORMAT = 1

DEMO_DEPTH_MODEL = "demo"
NO_DEPTH_MODEL = "none"

BackgroundFit = Literal["crop", "stretch"]
ImageFormat = Literal["jpeg", "webp", "png"]
DepthFormat = Literal["png16", "jpeg8"]
Precision = Literal["auto", "float32", "mixed", "bfloat16"]
DepthMeaning = Literal["auto", "metric", "relative-depth", "relative-inverse"]
DepthKind = Literal["metric", "relative"]
DepthQuantity = Literal["depth", "inverse_depth"]

# By the name of a field's type: the values it may have.
CHOICES: dict[str, tuple[str, ...]] = {
    "BackgroundFit": get_args(BackgroundFit),
    "ImageFormat": get_args(ImageFormat),
    "DepthFormat": get_args(DepthFormat),
    "Precision": get_args(Precision),
    "DepthMeaning": get_args(DepthMeaning),
    "DepthKind": get_args(DepthKind),
    "DepthQuantity": get_args(DepthQuantity),
}

MAX_RECIPE_BYTES = 2**28  # of recipe.json: some 600,000 sources
LICENCE = "licence"  # what version 0.1.0 calls `license`
MAX_CREDIT_CHARACTERS = 2000  # of an author, a license or a url

_MAX_RECORDS = 2**62
_MAX_STAGES = 999  # three digits in the names of files
_MAX_SHARDS = 2_000_000  # their names are held in memory; 10^9 records at 1000 each need half
_MAX_TEXT = 4096  # characters; also the longest path of most systems
_MAX_FILE_TEXT = 8 * _MAX_TEXT  # of a path some of whose characters are escaped
_SHA256 = re.compile("[0-9a-f]{64}")
_WORD = re.compile(r"[\w./-]{0,200}", re.ASCII)
_MAX_SIDE = 4096  # px of a record, so of a prepared source too
_MAX_SOURCE_SIDE = 2**31 - 1
_MAX_STORED = 65535  # 16 bits

_REPO_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The choices that decide the content of a set; equal recipes and sources give equal pixels.

    Raises:
        RecipeError: a field has the wrong type or lies outside its range.
    """

    placements: int = _option(20, "random places per foreground, background and flip")
    flip: bool = _option(True, "also make every record with the foreground mirrored")
    size: int = _option(224, "side of a record in px")
    foreground_size: int = _option(100, "longer side of a pasted foreground in px")
    background_fit: BackgroundFit = _option("crop", "how a background becomes square")
    holdout: float = _option(0.1, "share of backgrounds and of foregrounds kept out of train")
    seed: int = _option(0, "seed of every random choice")
    depth_model: str = _option(
        DEMO_DEPTH_MODEL,
        "Hub id or folder of a depth-estimation model, checkpoint of DenseDepth, 'demo' or 'none'",
    )
    depth_revision: str | None = _option(None, "revision of a depth model from the Hub")
    depth_kind: DepthMeaning = _option(
        "auto", "what the depth model predicts; 'auto' goes by the model's type"
    )
    depth_input: int | None = _option(
        None, "side in px of the composite shown to the depth model; 480, for 'demo' 256"
    )
    # Not "auto": what that leads to depends on the machine, and the same command should make the
    # same records everywhere unless somebody asks for speed.
    precision: Precision = _option(
        "float32", "arithmetic of the depth model; 'auto' is the fastest that shifts depth < 0.5 %"
    )
    image_format: ImageFormat = _option("jpeg", "encoding of fg_bg")
    image_quality: int = _option(90, "quality of fg_bg as JPEG or WebP")
    depth_format: DepthFormat = _option("png16", "encoding of depth")
    depth_precision: float = _option(
        0.005, "share by which storing may move a depth; 0 keeps every millimetre"
    )
    shard_records: int = _option(1000, "most records in one file")

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range("placements", self.placements, 1, 10**9)
        _check_range("size", self.size, 16, 4096)
        _check_range("foreground_size", self.foreground_size, 2, self.size, "size")
        _check_range("holdout", self.holdout, 0, 0.9)
        _check_range("seed", self.seed, 0, 2**64 - 1)
        _check_range("image_quality", self.image_quality, 1, 100)
        _check_range("depth_precision", self.depth_precision, 0, 0.1)
        _check_range("shard_records", self.shard_records, 1, 1_000_000)
        for name in ("holdout", "depth_precision"):
            # 0, 0.0 and -0.0 are one recipe, so they need one fingerprint
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)
        for name in ("depth_model", "depth_revision"):
            _check_text(name, getattr(self, name) or "", _MAX_TEXT)
        if not self.depth_model:
            raise RecipeError("depth_model is empty; give a folder, a Hub id, 'demo' or 'none'.")
        if self.depth_input is None:
            default = 256 if self.depth_model == DEMO_DEPTH_MODEL else 480
            object.__setattr__(self, "depth_input", default)
        _check_range("depth_input", cast("int", self.depth_input), 32, 4096)
        if cast("int", self.depth_input) % 32:
            raise RecipeError(
                f"depth_input is {self.depth_input}; it must be a multiple of 32, for example "
                f"{max(32, round(cast('int', self.depth_input) / 32) * 32)}."
            )

    @property
    def has_depth(self) -> bool:
        """Whether records carry a depth map."""
        return self.depth_model != NO_DEPTH_MODEL

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make a recipe from a JSON object.

        Raises:
            RecipeError: an unknown field, or a value that is not allowed.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            names = printable(", ".join(unknown))[:_MAX_TEXT]
            raise RecipeError(
                f"unknown recipe field {names}; known are {', '.join(sorted(known))}."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return dataclasses.asdict(self)


def meaning(name: str) -> str:
    """Return what a field of the recipe means, for tables and help texts."""
    text: str = next(f.metadata["meaning"] for f in fields(Recipe) if f.name == name)
    return text


def _check_types(values: Recipe | SourceEntry | DepthInfo) -> None:
    for f in fields(values):
        _check_type(f.name, getattr(values, f.name), str(f.type))


def _check_type(name: str, value: object, annotation: str) -> None:
    if annotation in CHOICES:
        allowed = CHOICES[annotation]
        if value not in allowed:
            raise RecipeError(f"{name} is {shown(value)}; it must be one of {', '.join(allowed)}.")
        return
    wanted: tuple[type, ...] = {
        "bool": (bool,),
        "int": (int,),
        "int | None": (int, type(None)),
        "float": (int, float),
        "str": (str,),
        "str | None": (str, type(None)),
    }[annotation]
    # bool is an int to Python, but `placements=True` is a mistake to everybody else.
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise RecipeError(f"{name} is {shown(value)}; it must be of type {annotation}.")


def _check_range(
    name: str, value: float, low: float, high: float, high_name: str | None = None
) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        upper = f"{high_name} ({high})" if high_name else f"{high}"
        raise RecipeError(f"{name} is {shown(value)}; it must lie between {low} and {upper}.")


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise RecipeError(f"{name} has {len(text)} characters; at most {most} are allowed.")
    if printable(text) != text:
        raise RecipeError(f"{name} is {shown(text)}; control characters are not allowed.")


def _check_sha256(name: str, text: str) -> None:
    if not _SHA256.fullmatch(text):
        raise RecipeError(f"{name} is {shown(text)}; it must be 64 hexadecimal digits.")


def credit_fault(text: str) -> str | None:
    """Say why a text cannot be an author, license or url; None if it can."""
    if len(text) > MAX_CREDIT_CHARACTERS:
        return f"has a cell of more than {MAX_CREDIT_CHARACTERS} characters"
    if any(printable(word) != word for word in text.split()):
        return "holds control characters"
    return None


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """One prepared source image: who it is, what it was, what it became.

    `width`, `height` are in px after preparation, `source_width`, `source_height` in the file
    (after EXIF orientation, for foregrounds before trimming). `sha256` is of the file's bytes.
    """

    id: str
    file: str
    sha256: str
    width: int
    height: int
    source_width: int
    source_height: int
    held_out: bool = False
    author: str = ""
    license: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_text("id", self.id, _MAX_TEXT)
        _check_text("file", self.file, _MAX_FILE_TEXT)
        if not self.id or "/" in self.id:
            raise RecipeError(f"id is {shown(self.id)}; it must be a name without folder.")
        path = PurePosixPath(self.file)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise RecipeError(f"file is {shown(self.file)}; it must be a path inside its folder.")
        _check_sha256("sha256", self.sha256)
        for name in ("author", "license", "url"):
            if fault := credit_fault(getattr(self, name)):
                raise RecipeError(f"{name} of {shown(self.id)} {fault}.")
        _check_range("width", self.width, 1, _MAX_SIDE)
        _check_range("height", self.height, 1, _MAX_SIDE)
        for name in ("source_width", "source_height"):
            _check_range(name, getattr(self, name), 1, _MAX_SOURCE_SIDE)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SourceEntry:
        """Make an entry from a JSON object or a row, as this or an earlier version wrote it."""
        if LICENCE not in values:
            return cls(**values)
        rest = {name: value for name, value in values.items() if name != LICENCE}
        return cls(**rest, license=values[LICENCE])


@dataclass(frozen=True, kw_only=True)
class DepthInfo:
    """What a depth model's output means and how it is stored, fixed for a whole set.

    Stored value v (uint16) = round(prediction * scale), 0 = unknown. For a metric model the
    prediction is in metres and scale is 1000, so v is in mm. `near`, `far` bound known values.
    """

    model: str
    revision: str | None
    weights_sha256: str
    model_type: str
    kind: DepthKind
    quantity: DepthQuantity
    unit: str
    scale: float
    near: int
    far: int

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("model", "unit"):
            _check_text(name, getattr(self, name), _MAX_TEXT)
        for name in ("revision", "model_type"):
            if not _WORD.fullmatch(getattr(self, name) or ""):
                raise RecipeError(f"{name} is {shown(getattr(self, name))}; that is no name.")
        _check_sha256("weights_sha256", self.weights_sha256)
        _check_range("scale", self.scale, 1e-6, 1e6)
        _check_range("far", self.far, 1, _MAX_STORED)
        _check_range("near", self.near, 1, self.far, "far")


@dataclass(frozen=True, kw_only=True)
class PinnedRecipe:
    """A recipe tied to its sources (in record order) and to the depth weights.

    `stages` of a set that was extended: how many foregrounds and backgrounds it had before each
    extension. The first so many sources are those it had.
    """

    recipe: Recipe
    foregrounds: tuple[SourceEntry, ...]
    backgrounds: tuple[SourceEntry, ...]
    depth: DepthInfo | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    stages: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for kind in ("foregrounds", "backgrounds"):
            if not getattr(self, kind):
                raise RecipeError(f"there are no {kind}; at least one image is needed.")
        self._check_stages()
        if self.n_records > _MAX_RECORDS:
            raise RecipeError(f"{self.n_records} records are more than the {_MAX_RECORDS} allowed.")

    def _check_stages(self) -> None:
        if len(self.stages) > _MAX_STAGES:
            raise RecipeError(f"a set is extended at most {_MAX_STAGES} times; build a new one.")
        if any(type(n) is not int or n < 1 for sizes in self.stages for n in sizes):
            raise RecipeError("its stages are not numbers of sources.")
        sizes = [*self.stages, (len(self.foregrounds), len(self.backgrounds))]
        for before, after in itertools.pairwise(sizes):
            if before == after or before[0] > after[0] or before[1] > after[1]:
                raise RecipeError("its stages are not numbers of sources that grow.")

    def at(self, stage: int) -> PinnedRecipe:
        """Return the set as it was before its extensions after `stage` (0: before all of them)."""
        if stage == len(self.stages):
            return self
        foregrounds, backgrounds = self.stages[stage]
        return replace(
            self,
            foregrounds=self.foregrounds[:foregrounds],
            backgrounds=self.backgrounds[:backgrounds],
            stages=self.stages[:stage],
        )

    @property
    def n_records(self) -> int:
        """Number of records of all splits together."""
        pairs = len(self.foregrounds) * len(self.backgrounds)
        return pairs * (2 if self.recipe.flip else 1) * self.recipe.placements

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) over everything that decides the data: recipe, sources, depth weights."""
        depth = dataclasses.asdict(self.depth) if self.depth else {}
        for name in ("model", "revision"):  # the same weights are the same wherever they lie
            depth.pop(name, None)
        content = {
            "format": RECIPE_FORMAT,
            "recipe": self._pixel_fields(),
            "foregrounds": [_source_content(s) for s in self.foregrounds],
            "backgrounds": [_source_content(s) for s in self.backgrounds],
            "depth": depth or None,
        }
        if self.stages:
            content["stages"] = self.stages
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _pixel_fields(self) -> dict[str, Any]:
        values = self.recipe.to_dict()
        for name in ("depth_model", "depth_revision", "depth_kind"):
            del values[name]  # what they lead to stands in `depth`: weights, kind, quantity
        return values

    def _check_files(self) -> None:
        """Refuse a set of more files than anybody builds, before a list of them is made."""
        if (shards := self.n_records // self.recipe.shard_records) > _MAX_SHARDS:
            raise RecipeError(
                f"{shards} files are more than the {_MAX_SHARDS} allowed; raise shard_records."
            )

    def to_json(self) -> str:
        """Return the text of `recipe.json`.

        Raises:
            RecipeError: a set of so many files, or a file of so many sources, is not built.
        """
        self._check_files()
        content = {
            "format": RECIPE_FORMAT,
            "fingerprint": self.fingerprint,
            "records": self.n_records,
            "recipe": self.recipe.to_dict(),
            "depth": dataclasses.asdict(self.depth) if self.depth else None,
            "foregrounds": [dataclasses.asdict(s) for s in self.foregrounds],
            "backgrounds": [dataclasses.asdict(s) for s in self.backgrounds],
            "skipped": [list(pair) for pair in self.skipped],
        }
        if self.stages:
            content["stages"] = [list(sizes) for sizes in self.stages]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if len(text.encode()) > MAX_RECIPE_BYTES:
            raise RecipeError(f"recipe.json would have more than {MAX_RECIPE_BYTES} bytes.")
        return text

    @classmethod
    def from_json(cls, text: str, name: str = "recipe.json") -> PinnedRecipe:
        """Read what `to_json` wrote.

        Raises:
            RecipeError: the text is not such a file, or its fingerprint does not fit its content.
        """
        content = _json_object(text, name)
        try:
            pinned = cls(
                recipe=Recipe.from_dict(content["recipe"]),
                foregrounds=tuple(map(SourceEntry.from_dict, content["foregrounds"])),
                backgrounds=tuple(map(SourceEntry.from_dict, content["backgrounds"])),
                depth=DepthInfo(**content["depth"]) if content["depth"] else None,
                skipped=tuple((printable(a), printable(b)) for a, b in content["skipped"]),
                stages=tuple((n_fg, n_bg) for n_fg, n_bg in content.get("stages", ())),
            )
            pinned._check_files()
            if content["fingerprint"] != pinned.fingerprint:
                raise RecipeError("its fingerprint does not fit its content; it was edited.")
        except RecipeError as error:
            raise RecipeError(f"{name}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecipeError(
                f"{name} is not a recipe.json of fgbg build "
                f"({type(error).__name__}: {printable(str(error))[:200]})."
            ) from None
        return pinned

    def holds(self, earlier: PinnedRecipe) -> bool:
        """Whether this is a set, or what an earlier set became by extensions."""
        stage = len(earlier.stages)
        return stage <= len(self.stages) and self.at(stage).fingerprint == earlier.fingerprint

    def public(self) -> PinnedRecipe:
        """Return it as others may see it: of a depth model on this machine only the name.

        The fingerprint, which does not depend on where the weights lie, stays the same.
        """
        name = self.recipe.depth_model
        on_hub = self.recipe.depth_revision and _REPO_ID.fullmatch(name)
        if self.depth is None or name == DEMO_DEPTH_MODEL or on_hub:
            return self
        name = "./" + re.split(r"[\\/]", name.rstrip("\\/"))[-1]  # never mistaken for a Hub id
        return replace(
            self,
            recipe=replace(self.recipe, depth_model=name),
            depth=replace(self.depth, model=name),
        )

    def differences(self, other: PinnedRecipe) -> list[str]:
        """Name what differs in `other` (asked for) from this one (held), a line each."""
        mine, theirs = self._pixel_fields(), other._pixel_fields()
        lines = [
            f"{name} is {mine[name]!r}, asked for is {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]
        lines += self.input_differences(other)
        if not lines and self.fingerprint != other.fingerprint:
            lines.append("the sources held out of train, or the stored depth range, differ")
        return lines

    def input_differences(self, other: PinnedRecipe) -> list[str]:
        """Name the sources and depth weights that differ in `other`, a line each."""
        lines = []
        for kind in ("foregrounds", "backgrounds"):
            old = {s.id: s.sha256 for s in getattr(self, kind)}
            new = {s.id: s.sha256 for s in getattr(other, kind)}
            lines += [f"{kind}: {name} is gone" for name in old if name not in new]
            lines += [f"{kind}: {name} is new" for name in new if name not in old]
            lines += [
                f"{kind}: the file of {name} has changed"
                for name in old
                if name in new and old[name] != new[name]
            ]
        held, asked = self.depth, other.depth
        if (held and held.weights_sha256) != (asked and asked.weights_sha256):
            names = [depth.model if depth else NO_DEPTH_MODEL for depth in (held, asked)]
            lines.append(f"depth is by {names[0]!r}, asked for are other weights, {names[1]!r}")
        return lines


def _source_content(source: SourceEntry) -> list[str | int | bool]:
    # The size decides where a foreground can be placed.
    return [source.id, source.sha256, source.width, source.height, source.held_out]


def load_recipe(path: Path) -> tuple[Recipe, PinnedRecipe | None]:
    """Read a recipe to repeat: a `recipe.json` of a build, or a bare JSON object of fields.

    Returns:
        The recipe, and the pinned recipe when the file names its sources.

    Raises:
        RecipeError: the file is missing, is not JSON or is not a recipe.
    """
    try:
        text = read_text(path, MAX_RECIPE_BYTES)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    content = _json_object(text, str(path))
    if "recipe" in content:
        pinned = PinnedRecipe.from_json(text, str(path))
        return pinned.recipe, pinned
    try:
        return Recipe.from_dict(content), None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _json_object(text: str, name: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise RecipeError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{name} is not a recipe: it holds no JSON object.")
    return content


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
