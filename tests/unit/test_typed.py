"""builder/typed: types and rules of fields, and what a later version adds without harm."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pytest
from hypothesis import given

from builder.errors import NewerVersionError, RecipeError
from builder.pinned import DepthInfo, PinnedRecipe, SourceEntry
from builder.recipe import Recipe
from builder.typed import Between, check, checked_fields, decisive, read, refuse_newer
from tests.strategies import depth_info, entry, pinned, pinned_recipes

# The fields of version 0.1.0 that pixels depend on. Never change this: no set would be verified.
FIRST: dict[Any, set[str]] = {
    Recipe: {
        *("placements", "flip", "size", "foreground_size", "background_fit", "holdout", "seed"),
        *("depth_input", "precision", "image_format", "image_quality", "depth_format"),
        *("depth_precision", "shard_records"),
    },
    SourceEntry: {"id", "sha256", "width", "height", "held_out"},
    DepthInfo: {
        *("weights_sha256", "model_type", "kind", "quantity", "unit", "scale", "near", "far"),
    },
}


@dataclass(frozen=True, kw_only=True, repr=False)
class LaterRecipe(Recipe):
    """A recipe as some later version will have it."""

    shadows: float = field(default=0.0, metadata={"before": 0.0, "meaning": "their strength"})


@dataclass(frozen=True, kw_only=True)
class LaterEntry(SourceEntry):
    texture: str = field(default="plain", metadata={"before": "plain"})
    note: str = field(default="", metadata={"before": "", "pixels": False})


@dataclass(frozen=True, kw_only=True)
class LaterDepth(DepthInfo):
    smooth: bool = field(default=False, metadata={"before": False})


def later(held: PinnedRecipe, recipe: Any = None, source: Any = None, depth: Any = None) -> str:
    """The fingerprint of a set in a version whose classes have more fields."""
    found = held.depth and LaterDepth(**dataclasses.asdict(held.depth), **(depth or {}))
    return PinnedRecipe(
        recipe=LaterRecipe(**held.recipe.to_dict(), **(recipe or {})),
        foregrounds=tuple(
            LaterEntry(**dataclasses.asdict(s), **(source or {})) for s in held.foregrounds
        ),
        backgrounds=tuple(LaterEntry(**dataclasses.asdict(s)) for s in held.backgrounds),
        depth=found,
    ).fingerprint


@given(pinned_recipes())
def test_fields_of_later_versions_change_no_fingerprint_at_their_default(
    held: PinnedRecipe,
) -> None:
    assert later(held) == held.fingerprint


def test_fields_of_later_versions_count_where_they_differ() -> None:
    held = pinned(depth=depth_info())
    found = {
        later(held),
        later(held, recipe={"shadows": 0.5}),
        later(held, source={"texture": "rough"}),
        later(held, depth={"smooth": True}),
    }
    assert len(found) == 4
    assert later(held, source={"note": "no pixel depends on it"}) == held.fingerprint


@pytest.mark.parametrize("cls", FIRST, ids=lambda cls: cls.__name__)
def test_a_field_added_since_says_what_was_done_before_it(cls: Any) -> None:
    decide = [f for f in checked_fields(cls) if f.metadata.get("pixels", True)]
    assert {f.name for f in decide if "before" not in f.metadata} == FIRST[cls]


def test_what_a_stored_object_lacks_is_as_it_was_before() -> None:
    found = read(LaterEntry, dataclasses.asdict(entry("a")), "x.json")
    assert (found.id, found.texture) == ("a", "plain")


def test_what_an_earlier_version_called_otherwise_is_read() -> None:
    content = dataclasses.asdict(entry("a"))
    del content["license"]
    assert read(SourceEntry, {**content, "licence": "CC0-1.0"}, "x.json").license == "CC0-1.0"


def test_a_field_of_a_newer_version_is_no_type_error() -> None:
    content = json.loads(pinned().to_json())
    for place in (content, content["recipe"], content["foregrounds"][0]):
        place["shadows"] = 1
        with pytest.raises(NewerVersionError, match=r"newer fgbg-dataset .*'shadows'"):
            PinnedRecipe.from_json(json.dumps(content), "x/recipe.json")
        del place["shadows"]
    assert PinnedRecipe.from_json(json.dumps(content))


def test_a_newer_format_is_named() -> None:
    content = {**json.loads(pinned().to_json()), "format": 2}
    with pytest.raises(NewerVersionError) as caught:
        PinnedRecipe.from_json(json.dumps(content), "x/recipe.json")
    assert str(caught.value).startswith(
        "x/recipe.json was made by a newer fgbg-dataset (format 2); upgrade"
    )


@pytest.mark.parametrize("given", [True, 0, "1", None, 1.0])
def test_a_format_is_a_whole_number(given: Any) -> None:
    with pytest.raises(RecipeError, match="format is "):
        refuse_newer({"format": given}, ["format"], "x.json", 1)


@dataclass
class Box:
    low: int
    width: Annotated[int | None, Between(1, "most")]
    most: int = 9
    names: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"width": 10}, "width is 10; it must lie between 1 and most (9)."),
        ({"width": 10, "most": "9"}, "most is '9'; it must be of type int."),
        ({"width": "9"}, "width is '9'; it must be of type int | None."),
        ({"low": False}, "low is False; it must be of type int."),
        ({"names": []}, "names is []; it must be of type dict."),
    ],
)
def test_types_come_before_rules(fields: dict[str, Any], fault: str) -> None:
    check(Box(low=1, width=None))
    with pytest.raises(RecipeError) as caught:
        check(Box(**{"low": 1, "width": 2, **fields}))
    assert str(caught.value) == fault


@pytest.mark.parametrize("content", [None, [], "x", 5])
def test_what_is_no_object_is_refused(content: Any) -> None:
    with pytest.raises(RecipeError, match="stands where an object should"):
        read(Box, content, "x.json")


def test_what_is_required_is_missed_by_name() -> None:
    with pytest.raises(RecipeError, match=r"^width is missing\.$"):
        read(Box, {"low": 1}, "x.json")


def test_decisive_fields_are_those_pixels_depend_on() -> None:
    assert set(decisive(Recipe())) == FIRST[Recipe]
    assert set(decisive(entry("a"))) == FIRST[SourceEntry]
    assert set(decisive(depth_info())) == FIRST[DepthInfo]
    assert "file" not in decisive(replace(entry("a"), file="b/c.png"))
