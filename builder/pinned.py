"""A recipe tied to the exact sources and depth weights of one set; its file is `recipe.json`.

Saved beside the data, it regenerates every record.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from builder.errors import RecipeError
from builder.files import read_text
from builder.hub import is_hub_id
from builder.recipe import (
    DEMO_DEPTH_MODEL,
    MAX_SIDE,
    MAX_TEXT,
    MEASURED_DEPTH,
    NO_DEPTH_MODEL,
    Recipe,
)
from builder.typed import (
    Between,
    Matching,
    Sha256,
    Text,
    check,
    decisive,
    read,
    refuse_newer,
    stored,
)
from builder.untrusted import parse_json, printable, shown

# Raised when recipe.json becomes something that earlier versions would misread.
RECIPE_FORMAT = 1
MAX_RECIPE_BYTES = 2**28  # of recipe.json: some 600,000 sources

Stance = Literal["ground", "free"]
CutAt = Literal["", "left", "right", "top", "bottom"]
DepthKind = Literal["metric", "relative"]
DepthQuantity = Literal["depth", "inverse_depth"]

NO_CATEGORY = "object"  # the class of foregrounds that have none

_MAX_CREDIT_CHARACTERS = 2000  # of an author, a license or a url
_MAX_RECORDS = 2**62
_MAX_STAGES = 999  # three digits in the names of files
_MAX_SHARDS = 2_000_000  # their names are held in memory; 10^9 records at 1000 each need half
_MAX_STORED = 65535  # 16 bits

_Side = Annotated[int, Between(1, MAX_SIDE)]
_SourceSide = Annotated[int, Between(1, 2**31 - 1)]
_MaybeSha256 = Annotated[str, Matching("([0-9a-f]{64})?", "64 hexadecimal digits, or empty")]
_Word = Matching(r"[\w./-]{0,200}", "a word")


def credit_fault(text: str) -> str | None:
    """Say why a text cannot be an author, license, url and the like; None if it can."""
    if len(text) > _MAX_CREDIT_CHARACTERS:
        return f"has a cell of more than {_MAX_CREDIT_CHARACTERS} characters"
    if any(printable(word) != word for word in text.split()):
        return "holds control characters"
    return None


def _credit(text: str, entry: SourceEntry) -> str | None:
    fault = credit_fault(text)
    return fault and f"of {shown(entry.id)} {fault}"


def _name(text: str, _entry: Any) -> str | None:
    fine = text and "/" not in text
    return None if fine else f"is {shown(text)}; it must be a name without folder"


def _inside(text: str, _entry: Any) -> str | None:
    path = PurePosixPath(text)
    fine = path.parts and not path.is_absolute() and ".." not in path.parts
    return None if fine else f"is {shown(text)}; it must be a path inside its folder"


_Credit = Annotated[str, _credit]


def _later(before: Any, *, pixels: bool = True) -> Any:
    """Return a field that came after 0.1.0, before which it was as if it had this value."""
    return field(default=before, metadata={"before": before, "pixels": pixels})


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """One prepared source image: who it is, what it was, what it became.

    `width`, `height` are in px after preparation, `source_width`, `source_height` in the file
    (after EXIF orientation, for foregrounds before trimming). `sha256` is of the file's bytes.
    `intake` is 2 where its own bits, alpha or colour profile made its pixels; 0.1.0 knew none.
    `halo` says how much of an old background was taken out of a cut-out's edge: 0 is nothing.
    `has_relief` says whether depth of its photograph gave a cut-out its relief.

    Raises:
        RecipeError: a field has the wrong type or a value that it cannot have.
    """

    id: Annotated[str, Text(MAX_TEXT), _name]
    # Characters of a path may be escaped, which makes it longer.
    file: Annotated[str, Text(8 * MAX_TEXT), _inside] = field(metadata={"pixels": False})
    sha256: Sha256
    # The size decides where a foreground can be placed.
    width: _Side
    height: _Side
    source_width: _SourceSide = field(metadata={"pixels": False})
    source_height: _SourceSide = field(metadata={"pixels": False})
    held_out: bool = False
    author: _Credit = field(default="", metadata={"pixels": False})
    license: _Credit = field(default="", metadata={"pixels": False, "was": "licence"})
    url: _Credit = field(default="", metadata={"pixels": False})
    intake: Annotated[int, Between(1, 2)] = field(default=1, metadata={"before": 1})
    # Whole quarters, which 32 bits hold: a column of the sources has them too.
    halo: Annotated[float, Between(0, 255)] = _later(0.0)
    # Of foregrounds; only composed records go by them, see `PinnedRecipe.fingerprint`.
    category: Annotated[str, Text(MAX_TEXT)] = _later("", pixels=False)
    height_m: Annotated[float, Between(0, 10_000)] = _later(0.0, pixels=False)
    stance: Stance = _later("ground", pixels=False)
    cut_at: CutAt = _later("", pixels=False)
    # What cut a foreground out of its photograph, by which network, and the terms of that.
    tool: _Credit = _later("", pixels=False)
    weights: _Credit = _later("", pixels=False)
    weights_license: _Credit = _later("", pixels=False)
    has_relief: bool = _later(False)
    # Over what was prepared beside the picture itself: smaller sizes, relief, depth, ground.
    prepared_sha256: _MaybeSha256 = _later("")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class DepthInfo:
    """What a depth model's output means and how it is stored, fixed for a whole set.

    Stored value v (uint16) = round(prediction * scale), 0 = unknown. For a metric model the
    prediction is in metres and scale is 1000, so v is in mm. `near`, `far` bound known values:
    what is nearer is `near`; what lies beyond `far` is stored as `far` or, where a metric model
    says more than 16 bits hold, as unknown.

    Raises:
        RecipeError: a field has the wrong type or a value that it cannot have.
    """

    # The same weights are the same wherever they lie.
    model: Annotated[str, Text(MAX_TEXT)] = field(metadata={"pixels": False})
    revision: Annotated[str | None, _Word] = field(metadata={"pixels": False})
    weights_sha256: Sha256
    model_type: Annotated[str, _Word]
    kind: DepthKind
    quantity: DepthQuantity
    unit: Annotated[str, Text(MAX_TEXT)]
    scale: Annotated[float, Between(1e-6, 1e6)]
    near: Annotated[int, Between(1, "far")]
    far: Annotated[int, Between(1, _MAX_STORED)]
    beyond: Literal["far", "unknown"] = field(default="far", metadata={"before": "far"})

    def __post_init__(self) -> None:
        check(self)


# What recipe.json holds.
_KEYS = (
    *("format", "fingerprint", "records", "recipe", "depth", "foregrounds", "backgrounds"),
    *("skipped", "stages"),
)


@dataclass(frozen=True, kw_only=True, repr=False)
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
        if self.n_possible > _MAX_RECORDS:  # for the sake of their ids
            raise RecipeError(
                f"{self.n_possible} records are more than the {_MAX_RECORDS} allowed."
            )

    def __repr__(self) -> str:
        """Return the recipe and how much it is tied to."""
        return (
            f"PinnedRecipe({self.recipe!r}, {len(self.foregrounds)} foregrounds, "
            f"{len(self.backgrounds)} backgrounds, {self.n_records} records)"
        )

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
    def n_possible(self) -> int:
        """Number of records that all pairs of sources give; every record id is below it."""
        return len(self.foregrounds) * len(self.backgrounds) * self.recipe.per_pair

    @property
    def n_records(self) -> int:
        """Number of records of all splits together."""
        return sum(self.stage_records)

    @cached_property
    def stage_records(self) -> tuple[int, ...]:
        """Number of records that the set began with, then those that each extension added.

        Where `records` asks for fewer than the first sources give, every extension adds the same
        share of what its sources give, and at least one record.
        """
        sizes = [(0, 0), *self.stages, (len(self.foregrounds), len(self.backgrounds))]
        group = self.recipe.n_siblings  # which are never parted
        layouts = [
            (after[0] * after[1] - before[0] * before[1]) * self.recipe.per_pair // group
            for before, after in itertools.pairwise(sizes)
        ]
        first = layouts[0]
        wanted = min(first, (self.recipe.records or first * group) // group)
        return tuple(group * max(1, (n * wanted + first // 2) // first) for n in layouts)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Names of the classes of foregrounds, sorted; those of an extension follow."""
        names: list[str] = []
        for stage in range(len(self.stages) + 1):
            there = {e.category or NO_CATEGORY for e in self.at(stage).foregrounds}
            names += sorted(there - set(names))
        return tuple(names)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) over everything that decides the data: recipe, sources, depth weights."""
        content = {
            "format": 1,  # of this text, in every fingerprint since 0.1.0
            "recipe": decisive(self.recipe),
            "foregrounds": [_source_content(s) for s in self.foregrounds],
            "backgrounds": [_source_content(s) for s in self.backgrounds],
            "depth": decisive(self.depth) if self.depth else None,
        }
        if self.stages:
            content["stages"] = self.stages
        if self.recipe.is_composed:
            content["scenes"] = [
                [s.category, s.height_m, s.stance, s.cut_at] for s in self.foregrounds
            ]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def check_files(self) -> None:
        """Refuse a set of more files than anybody builds, before a list of them is made.

        Raises:
            RecipeError: it has more.
        """
        if (shards := self.n_records // self.recipe.shard_records) > _MAX_SHARDS:
            raise RecipeError(
                f"{shards} files are more than the {_MAX_SHARDS} allowed; raise shard_records, or "
                "ask for fewer records."
            )

    def to_json(self) -> str:
        """Return the text of `recipe.json`.

        Raises:
            RecipeError: a set of so many files, or a file of so many sources, is not built.
        """
        self.check_files()
        content = {
            "format": RECIPE_FORMAT,
            "fingerprint": self.fingerprint,
            "records": self.n_records,
            "recipe": self.recipe.to_dict(),
            "depth": stored(self.depth) if self.depth else None,
            "foregrounds": [stored(source) for source in self.foregrounds],
            "backgrounds": [stored(source) for source in self.backgrounds],
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
        """Read what `to_json` wrote, of this version or an earlier one.

        Args:
            name: of the file, for errors.

        Raises:
            NewerVersionError: a newer version wrote it.
            RecipeError: the text is not such a file, or its fingerprint does not fit its content.
        """
        content = _json_object(text, name)
        try:
            refuse_newer(content, _KEYS, name, RECIPE_FORMAT)
            pinned = cls(
                recipe=read(Recipe, content["recipe"], name),
                foregrounds=tuple(read(SourceEntry, s, name) for s in content["foregrounds"]),
                backgrounds=tuple(read(SourceEntry, s, name) for s in content["backgrounds"]),
                depth=read(DepthInfo, content["depth"], name) if content["depth"] else None,
                skipped=tuple((printable(a), printable(b)) for a, b in content["skipped"]),
                stages=tuple((n_fg, n_bg) for n_fg, n_bg in content.get("stages", ())),
            )
            pinned.check_files()
            if content["fingerprint"] != pinned.fingerprint:
                raise RecipeError("its fingerprint does not fit its content; it was edited.")
            if content["records"] != pinned.n_records:
                raise RecipeError(f"its records are {pinned.n_records}, not what it says.")
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
        name = str(self.recipe.depth_model)
        on_hub = self.recipe.depth_revision and is_hub_id(name)
        if self.depth is None or name in (DEMO_DEPTH_MODEL, MEASURED_DEPTH) or on_hub:
            return self
        name = "./" + re.split(r"[\\/]", name.rstrip("\\/"))[-1]  # never mistaken for a Hub id
        return replace(
            self,
            recipe=replace(self.recipe, depth_model=name),
            depth=replace(self.depth, model=name),
        )

    def differences(self, other: PinnedRecipe) -> list[str]:
        """Name what differs in `other` (asked for) from this one (held), a line each."""
        mine, theirs = self.recipe, other.recipe
        names = {**decisive(mine), **decisive(theirs)}  # a later field may be in one alone
        lines = [
            f"{name} is {getattr(mine, name)!r}, asked for is {getattr(theirs, name)!r}"
            for name in names
            if getattr(mine, name) != getattr(theirs, name)
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
            lines += _prepared_otherwise(kind, getattr(self, kind), getattr(other, kind))
        held, asked = self.depth, other.depth
        if (held and held.weights_sha256) != (asked and asked.weights_sha256):
            names = [depth.model if depth else NO_DEPTH_MODEL for depth in (held, asked)]
            lines.append(f"depth is by {names[0]!r}, asked for are other weights, {names[1]!r}")
        return lines


def _prepared_otherwise(
    kind: str, held: Iterable[SourceEntry], asked: Iterable[SourceEntry]
) -> Iterator[str]:
    """Name the sources of equal files of which something else became."""
    before = {(s.id, s.sha256): s for s in held}
    for source in asked:
        old = before.get((source.id, source.sha256))
        if old is None:
            continue
        for name in ("category", "height_m", "stance", "cut_at", "halo", "has_relief"):
            was, now = getattr(old, name), getattr(source, name)
            if was != now:
                yield f"{kind}: {name} of {source.id} is {was!r}, now it is {now!r}"
        if old.prepared_sha256 != source.prepared_sha256:
            yield (
                f"{kind}: sizes, relief, depth or ground of {source.id} come out differently here, "
                "as by another processor; what the set was made of lies in its own folder"
            )


def _source_content(source: SourceEntry) -> list[Any]:
    """Return what a fingerprint covers of a source: five values since 0.1.0, then later fields."""
    content = decisive(source)
    first = [content.pop(name) for name in ("id", "sha256", "width", "height", "held_out")]
    return [*first, content] if content else first


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
