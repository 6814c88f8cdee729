"""builder/recipe: checks, JSON, fingerprint, differences, the grid of depths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import NewerVersionError, RecipeError
from builder.pinned import DepthInfo, PinnedRecipe, SourceEntry, load_recipe
from builder.recipe import Recipe, depth_grid, meaning
from tests.strategies import depth_info, entry, pinned, pinned_recipes, recipes


def refusal(**fields: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe(**fields)
    return str(caught.value)


def test_classes_of_an_extension_follow_those_that_are_there() -> None:
    whole = pinned(4, 1)
    names = ("10", "2", "", "1")
    named = (replace(e, category=c) for e, c in zip(whole.foregrounds, names, strict=True))
    grown = replace(whole, foregrounds=tuple(named), stages=((2, 1),))
    assert grown.at(0).categories == ("10", "2")
    assert grown.categories == ("10", "2", "1", "object")


@pytest.mark.parametrize(
    ("name", "plain", "others"),
    [
        ("match", "0", ("0-0", "0.0", "00")),
        ("shadow", "0-0.5", ("0.0-0.50", " 0 - .5 ")),
        ("match", "0.00001", ("0.000010-0.00001",)),
        ("jpeg_history", "90", ("90-90", "090")),
        ("distractors", "0", ("0-0", "00")),
        ("objects", "2", ("2-2", "02")),
        ("foreground_size", 0.5, ("0.5", "0.50-0.5")),
        ("foreground_size", "0.4-1", ("0.40-1.0",)),
    ],
)
def test_a_range_written_in_two_ways_is_one_recipe(
    name: str, plain: Any, others: tuple[str, ...]
) -> None:
    due = Recipe(layout="scenes", **{name: plain})
    assert getattr(due, name) == plain
    for other in others:
        assert Recipe(layout="scenes", **{name: other}) == due


def test_defaults_are_the_reference_run() -> None:
    assert Recipe().to_dict() == {
        "placements": 20,
        "flip": True,
        "size": 224,
        "foreground_size": 100,
        "background_fit": "crop",
        "holdout": 0.1,
        "seed": 0,
        "depth_model": "demo",
        "depth_revision": None,
        "depth_kind": "auto",
        "depth_input": 256,
        "image_format": "jpeg",
        "image_quality": 90,
        "depth_format": "png16",
        "precision": "float32",
        "depth_precision": 0.005,
        "shard_records": 1000,
    }
    assert pinned(100, 100).n_records == 400_000
    assert Recipe(depth_model="some/model").depth_input == 480


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("placements", 1, 10**9),
        ("size", 100, 4096),
        ("foreground_size", 2, 224),
        ("seed", 0, 2**64 - 1),
        ("image_quality", 1, 100),
        ("shard_records", 1, 1_000_000),
    ],
)
def test_whole_numbers_have_an_inclusive_range(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(Recipe(**{name: value}), name) == value
    if name != "size":  # below 100 it is foreground_size that does not fit
        assert refusal(**{name: low - 1}).startswith(f"{name} is {low - 1}; it must lie between ")
    assert refusal(**{name: high + 1}).startswith(f"{name} is {high + 1}; it must lie between ")


@pytest.mark.parametrize(("name", "high"), [("holdout", 0.9), ("depth_precision", 0.1)])
def test_shares_have_a_range_and_nan_is_outside_of_it(name: str, high: float) -> None:
    for value in (0, 0.0, high):
        assert getattr(Recipe(**{name: value}), name) == value
    for value in (-1e-9, math.nextafter(high, 1), math.inf, -math.inf):
        assert refusal(**{name: value}) == f"{name} is {value}; it must lie between 0 and {high}."
    assert refusal(**{name: math.nan}) == f"{name} is nan; it must lie between 0 and {high}."


def test_a_number_too_large_for_a_float_is_refused_by_its_sentence() -> None:
    # float(10**400) once left as an OverflowError.
    assert refusal(holdout=10**400).endswith("; it must lie between 0 and 0.9.")


def test_the_foreground_is_no_larger_than_the_record() -> None:
    assert refusal(size=64, foreground_size=65) == (
        "foreground_size is 65; it must lie between 2 and size (64)."
    )
    assert refusal(size=15) == "size is 15; it must lie between 16 and 4096."


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"placements": True}, "placements is True; it must be of type int."),
        ({"placements": 5.0}, "placements is 5.0; it must be of type int."),
        ({"placements": "5"}, "placements is '5'; it must be of type int."),
        ({"flip": 1}, "flip is 1; it must be of type bool."),
        ({"holdout": False}, "holdout is False; it must be of type float."),
        ({"holdout": "0.1"}, "holdout is '0.1'; it must be of type float."),
        ({"depth_model": 5}, "depth_model is 5; it must be of type str | None."),
        ({"depth_revision": 3}, "depth_revision is 3; it must be of type str | None."),
        ({"depth_input": True}, "depth_input is True; it must be of type int | None."),
        ({"image_format": "gif"}, "image_format is 'gif'; it must be one of jpeg, webp, png."),
        ({"image_format": ["jpeg"]},
         "image_format is ['jpeg']; it must be one of jpeg, webp, png."),
        ({"background_fit": None},
         "background_fit is None; it must be one of crop, stretch."),
        ({"depth_kind": 1},
         "depth_kind is 1; it must be one of auto, metric, relative-depth, relative-inverse."),
        ({"depth_format": "PNG16"}, "depth_format is 'PNG16'; it must be one of png16, jpeg8."),
        ({"depth_model": ""},
         "depth_model is empty; give a folder, a Hub id, 'demo' or 'none'."),
        ({"depth_input": 250},
         "depth_input is 250; it must be a multiple of 32, for example 256."),
        ({"depth_input": 33}, "depth_input is 33; it must be a multiple of 32, for example 32."),
        ({"depth_input": 16}, "depth_input is 16; it must lie between 32 and 4096."),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_with_their_sentence(
    fields: dict[str, Any], sentence: str
) -> None:
    assert refusal(**fields) == sentence


def test_equal_numbers_make_equal_recipes() -> None:
    # -0.0 once gave another fingerprint than 0.
    for zero in (0, 0.0, -0.0):
        recipe = Recipe(holdout=zero, depth_precision=zero)
        assert json.dumps(recipe.to_dict()) == json.dumps(
            Recipe(holdout=0, depth_precision=0).to_dict()
        )
        assert math.copysign(1, recipe.holdout) == 1
        assert type(recipe.holdout) is float


def test_no_depth_model_is_the_model_none() -> None:
    assert Recipe(depth_model=None) == Recipe(depth_model="none")
    assert Recipe(depth_model=None).to_dict()["depth_model"] == "none"
    assert not Recipe(depth_model=None).has_depth


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(), "Recipe()"),
        (Recipe(seed=3, flip=False), "Recipe(flip=False, seed=3)"),
        (Recipe(depth_model="some/model"), "Recipe(depth_model='some/model')"),
        (Recipe(depth_input=480), "Recipe(depth_input=480)"),
    ],
)
def test_a_recipe_shows_what_is_not_as_by_default(recipe: Recipe, text: str) -> None:
    assert repr(recipe) == text


@given(recipes())
def test_what_a_recipe_shows_makes_it_again(recipe: Recipe) -> None:
    assert eval(repr(recipe)) == recipe


def test_a_pinned_recipe_shows_how_much_and_no_list() -> None:
    assert repr(pinned(100, 100, seed=3)) == (
        "PinnedRecipe(Recipe(seed=3, depth_model='none'), 100 foregrounds, 100 backgrounds, "
        "400000 records)"
    )


def test_every_field_says_what_it_means() -> None:
    for field in dataclasses.fields(Recipe):
        assert len(meaning(field.name)) > 10


def test_unknown_fields_are_named_beside_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"^unknown recipe field colour, sede; known are backgr"):
        Recipe.from_dict({"sede": 1, "colour": 2, "seed": 3})


@given(recipes())
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(pinned_recipes())
def test_a_pinned_recipe_survives_json(held: PinnedRecipe) -> None:
    again = PinnedRecipe.from_json(held.to_json())
    assert again == held
    assert again.fingerprint == held.fingerprint
    assert held.differences(again) == []


# What an edit can change: path into recipe.json, new value, whether records depend on it.
EDITS: list[tuple[tuple[Any, ...], Any, bool]] = [
    (("recipe", "seed"), 1, True),
    (("recipe", "placements"), 21, True),
    (("recipe", "flip"), False, True),
    (("recipe", "size"), 225, True),
    (("recipe", "foreground_size"), 99, True),
    (("recipe", "background_fit"), "stretch", True),
    (("recipe", "holdout"), 0.2, True),
    (("recipe", "depth_input"), 288, True),
    (("recipe", "image_format"), "png", True),
    (("recipe", "image_quality"), 91, True),
    (("recipe", "depth_format"), "jpeg8", True),
    (("recipe", "depth_precision"), 0.0, True),
    (("recipe", "shard_records"), 10, True),
    (("foregrounds", 0, "sha256"), "0" * 64, True),
    (("foregrounds", 0, "id"), "other", True),
    (("foregrounds", 0, "held_out"), True, True),
    # The size decides the placement; it was once not part of the fingerprint.
    (("foregrounds", 0, "width"), 9, True),
    (("foregrounds", 0, "height"), 9, True),
    (("backgrounds", 1, "sha256"), "0" * 64, True),
    (("depth", "weights_sha256"), "6" * 64, True),
    (("depth", "near"), 101, True),
    (("depth", "far"), 9_999, True),
    (("depth", "scale"), 999.0, True),
    (("depth", "kind"), "relative", True),
    (("recipe", "depth_model"), "/else/where", False),
    (("recipe", "depth_revision"), "abc", False),
    (("depth", "model"), "/else/where", False),
    (("depth", "revision"), "abc", False),
    (("foregrounds", 0, "author"), "Ann", False),
    (("foregrounds", 0, "url"), "https://example.org", False),
    (("foregrounds", 0, "file"), "moved/fg0.png", False),
    (("skipped",), [["fg/x", "is empty"]], False),
]


def edited(text: str, path: tuple[Any, ...], value: Any) -> str:
    content = json.loads(text)
    place = content
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(("path", "value", "matters"), EDITS, ids=lambda v: str(v)[:40])
def test_the_fingerprint_changes_exactly_when_records_can_change(
    path: tuple[Any, ...], value: Any, matters: bool
) -> None:
    held = pinned(depth=depth_info())
    text = edited(held.to_json(), path, value)
    if not matters:
        assert PinnedRecipe.from_json(text).fingerprint == held.fingerprint
        return
    with pytest.raises(RecipeError) as caught:
        PinnedRecipe.from_json(text, "x/recipe.json")
    assert str(caught.value) == (
        "x/recipe.json: its fingerprint does not fit its content; it was edited."
    )


def test_a_published_recipe_of_measured_depth_still_asks_for_no_model() -> None:
    recipe = Recipe(layout="scenes", depth_model="measured")
    held = replace(pinned(1, 1), recipe=recipe, depth=depth_info(model="measured"))
    assert held.public().recipe.is_measured
    assert held.public() == held


def test_the_fingerprint_depends_on_the_order_of_sources() -> None:
    held = pinned(2, 1)
    turned = dataclasses.replace(held, foregrounds=held.foregrounds[::-1])
    assert turned.fingerprint != held.fingerprint


def test_the_fingerprint_is_a_sha256_that_no_restart_changes() -> None:
    # Written down once; another value means that no earlier build can be resumed or verified.
    content = {
        "format": 1,
        "recipe": {
            k: v
            for k, v in Recipe(depth_model="none").to_dict().items()
            if k not in ("depth_model", "depth_revision", "depth_kind")
        },
        "foregrounds": [["fg0", entry("fg0").sha256, 10, 10, False]],
        "backgrounds": [["bg0", entry("bg0").sha256, 224, 224, False]],
        "depth": None,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert pinned(1, 1).fingerprint == hashlib.sha256(text.encode()).hexdigest()


HOSTILE = [
    ("", "recipe.json is not JSON: "),
    ("{", "recipe.json is not JSON: "),
    ("[" * 100_000, "recipe.json is not JSON: "),
    ("1" * 5000, "recipe.json is not JSON: "),
    ("\ufeff{}", "recipe.json is not JSON: "),
    ("[]", "recipe.json is not a recipe: it holds no JSON object."),
    ("null", "recipe.json is not a recipe: it holds no JSON object."),
    ("{}", "recipe.json is not a recipe.json of fgbg build (KeyError: 'recipe')."),
]


@pytest.mark.parametrize(("text", "start"), HOSTILE, ids=range(len(HOSTILE)))
def test_text_that_is_no_recipe_is_refused(text: str, start: str) -> None:
    with pytest.raises(RecipeError) as caught:
        PinnedRecipe.from_json(text)
    assert str(caught.value).startswith(start)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


WRONG_VALUES: list[Any] = [
    None, 5, -1, 0, 1e999, math.nan, "x", True, [], {}, [1], {"a": 1}, nested(5), nested(300),
    10**4000,
]  # fmt: skip
PLACES = [
    (*path[:-1], path[-1])
    for path in [
        ("recipe",),
        ("foregrounds",),
        ("backgrounds",),
        ("depth",),
        ("skipped",),
        ("fingerprint",),
        ("format",),
        ("foregrounds", 0),
        *(("recipe", f.name) for f in dataclasses.fields(Recipe)),
        *(("foregrounds", 0, f.name) for f in dataclasses.fields(SourceEntry)),
        *(("depth", f.name) for f in dataclasses.fields(DepthInfo)),
    ]
]


@pytest.mark.parametrize("path", PLACES, ids=str)
def test_any_wrong_value_anywhere_is_refused_with_a_sentence(path: tuple[Any, ...]) -> None:
    text, sentences = pinned(depth=depth_info()).to_json(), []
    for value in WRONG_VALUES:
        content = json.loads(text)
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        try:
            again = PinnedRecipe.from_json(json.dumps(content))
        except (RecipeError, NewerVersionError) as error:
            sentences.append(str(error))
        else:  # free text, a switched-off option or the same number
            assert again.fingerprint == content["fingerprint"]
    assert len(sentences) >= len(WRONG_VALUES) // 2
    assert all(sentence.startswith("recipe.json") for sentence in sentences)


@pytest.mark.parametrize(
    ("cls", "fields", "sentence"),
    [
        (entry, {"width": 0}, "width is 0; it must lie between 1 and 4096."),
        (entry, {"height": "9"}, "height is '9'; it must be of type int."),
        (entry, {"held_out": 1}, "held_out is 1; it must be of type bool."),
        (depth_info, {"near": 0}, "near is 0; it must lie between 1 and far (10000)."),
        (depth_info, {"far": 65536}, "far is 65536; it must lie between 1 and 65535."),
        (depth_info, {"kind": "odd"}, "kind is 'odd'; it must be one of metric, relative."),
    ],
)
def test_entries_and_depth_are_checked_too(cls: Any, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        cls("x", **fields) if cls is entry else cls(**fields)
    assert str(caught.value) == sentence


def test_a_set_needs_both_kinds_of_sources() -> None:
    for kind in ("foregrounds", "backgrounds"):
        with pytest.raises(RecipeError, match=f"^there are no {kind}; at least one image is need"):
            dataclasses.replace(pinned(1, 1), **{kind: ()})


def test_more_records_than_ids_are_refused() -> None:
    many = dict.fromkeys(("foregrounds", "backgrounds"), (entry("a"),) * 100_000)
    recipe = Recipe(placements=10**9, depth_model="none")
    with pytest.raises(RecipeError, match=rf"^{2 * 10**19} records are more than the {2**62} al"):
        PinnedRecipe(recipe=recipe, **many)


def test_differences_name_fields_sources_and_weights_a_line_each() -> None:
    held, other = pinned(2, 2, depth=depth_info()), pinned(2, 2, depth=depth_info(), seed=7)
    other = dataclasses.replace(
        other,
        foregrounds=(entry("fg0", sha256="0" * 64), entry("fg9")),
        depth=depth_info(model="else", weights_sha256="6" * 64),
    )
    assert held.differences(other) == [
        "seed is 0, asked for is 7",
        "foregrounds: fg1 is gone",
        "foregrounds: fg9 is new",
        "foregrounds: the file of fg0 has changed",
        "depth is by 'demo', asked for are other weights, 'else'",
    ]


def test_a_difference_is_never_silent() -> None:
    held = pinned(2, 2, depth=depth_info())
    far = dataclasses.replace(held, depth=depth_info(far=9000))
    assert far.fingerprint != held.fingerprint
    assert held.differences(far) == [
        "the sources held out of train, or the stored depth range, differ"
    ]
    without = dataclasses.replace(held, depth=None)
    assert held.differences(without) == ["depth is by 'demo', asked for are other weights, 'none'"]


def test_load_recipe_reads_a_build_and_a_bare_object(tmp_path: Path) -> None:
    held = pinned()
    build, bare = tmp_path / "recipe.json", tmp_path / "mine.json"
    build.write_text(held.to_json(), encoding="utf-8")
    bare.write_text('{"seed": 3, "holdout": 0}', encoding="utf-8")
    assert load_recipe(build) == (held.recipe, held)
    assert load_recipe(bare) == (Recipe(seed=3, holdout=0), None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "{path} cannot be read: "),
        (b"\xff\xfe", "{path} cannot be read: "),
        (b"[]", "{path} is not a recipe: it holds no JSON object."),
        (b'{"seed": -1}', f"{{path}}: seed is -1; it must lie between 0 and {2**64 - 1}."),
        (b'{"sed": 1}', "{path}: unknown recipe field sed; known are "),
        (b'{"recipe": {}}', "{path} is not a recipe.json of fgbg build (KeyError: 'foregrounds')."),
    ],
)
def test_load_recipe_refuses_by_path(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(sentence.format(path=path))


@given(st.floats(0, 0.1), st.integers(1, 60_000), st.integers(0, 60_000))
def test_the_grid_rises_from_near_to_far_in_steps_no_wider_than_asked(
    precision: float, near: int, more: int
) -> None:
    far = min(near + more, 65535)
    grid = depth_grid(precision, near, far)
    assert (grid[0], grid[-1]) == (near, far)
    for below, above in pairwise(grid):
        assert 0 < above - below <= below * 2 * precision + 2


def test_the_grid_is_the_rounded_geometric_series() -> None:
    series, i = [], 0
    while (value := 400 * Decimal("1.01") ** i) < 10_000:
        series.append(int(value.to_integral_value()))
        i += 1
    assert depth_grid(0.005, 400, 10_000) == [*dict.fromkeys(series), 10_000]
    assert len(series) == 324


def test_a_grid_of_steps_below_a_unit_is_every_unit_at_once() -> None:
    # A precision of 1e-9 once took hours: 10^10 steps of a series that fills every unit anyway.
    every = list(range(1, 65536))
    for precision in (0.0, 5e-324, 1e-9, 7.5e-6):
        assert depth_grid(precision, 1, 65535) == every
    # What the series itself says.
    value, rounded = Decimal(1), [1]
    while (value := value * (1 + Decimal("0.0025"))) < 400:
        rounded.append(round(value))
    assert [*dict.fromkeys(rounded), *([400] if rounded[-1] < 400 else [])] == list(range(1, 401))
    assert depth_grid(0.00125, 1, 400) == list(range(1, 401))


def test_a_grid_of_one_depth() -> None:
    assert depth_grid(0.005, 700, 700) == [700]
    assert depth_grid(0.0, 700, 700) == [700]
