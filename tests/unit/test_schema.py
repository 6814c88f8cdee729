"""builder/schema: the table of columns and the features made from it."""

from __future__ import annotations

import pyarrow as pa
from datasets import Features, Image, List, Value

from builder.pinned import SourceEntry
from builder.recipe import Recipe
from builder.schema import (
    BACKDROP_COLUMNS,
    COLUMNS,
    FOREGROUND_COLUMNS,
    IMAGE_COLUMNS,
    LADDER_COLUMNS,
    RELIEF_COLUMNS,
    SOURCE_COLUMNS,
    features,
    record_columns,
)
from builder.typed import checked_fields


def test_features_of_a_record_are_exactly_these() -> None:
    assert features(COLUMNS) == Features(
        {
            "record_id": Value("int64"),
            "fg_bg": Image(),
            "mask": Image(mode="L"),
            "depth": Image(),
            "background_id": Value("string"),
            "foreground_id": Value("string"),
            "flipped": Value("bool"),
            "bbox": List(Value("int32"), length=4),
            "coverage": Value("float32"),
            "pixel_hash": Value("string"),
        }
    )


def test_without_a_depth_model_only_the_depth_column_goes() -> None:
    names = [column.name for column in record_columns(Recipe(depth_model="none"))]
    assert names == [column.name for column in COLUMNS if column.name != "depth"]
    assert record_columns(Recipe()) == COLUMNS


def test_image_columns_are_the_pictures_of_a_record() -> None:
    assert IMAGE_COLUMNS == ("fg_bg", "mask", "depth", "instances")


def test_source_columns_are_the_image_and_every_field_of_a_source_entry() -> None:
    tables = SOURCE_COLUMNS, FOREGROUND_COLUMNS, LADDER_COLUMNS, RELIEF_COLUMNS, BACKDROP_COLUMNS
    named = {column.name for table in tables for column in table}
    assert {"image", *(f.name for f in checked_fields(SourceEntry))} <= named
    known = [f for f in checked_fields(SourceEntry) if f.name in {c.name for c in SOURCE_COLUMNS}]
    assert [c.name for c in SOURCE_COLUMNS] == ["image", *(field.name for field in known)]
    wanted = {(str,): pa.string(), (int,): pa.int32(), (bool,): pa.bool_()}
    schema = features(SOURCE_COLUMNS).arrow_schema
    for field in known:
        assert schema.field(field.name).type == wanted[field.types]


def test_every_column_says_what_it_means_and_every_picture_its_unit() -> None:
    for column in (*COLUMNS, *SOURCE_COLUMNS):
        assert column.meaning
        assert not column.meaning.endswith(".")
        if column.feature.startswith("Image"):
            assert column.shape
            assert column.unit


def test_features_survive_the_arrow_schema_that_files_carry() -> None:
    for columns in (COLUMNS, SOURCE_COLUMNS):
        assert Features.from_arrow_schema(features(columns).arrow_schema) == features(columns)


def test_columns_of_scenes_say_which_object_they_are_of() -> None:
    meanings = {c.name: c.meaning for c in record_columns(Recipe(layout="scenes"))}
    for name in ("foreground_id", "flipped", "bbox", "coverage"):
        assert "first object" in meanings[name]
    assert "depth" in meanings["pixel_hash"]
    assert "depth" not in {c.name: c.meaning for c in record_columns(Recipe())}["pixel_hash"]
