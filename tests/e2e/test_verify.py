"""`fgbg verify` finds no problem in clean sets and names each kind of planted fault."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from click.testing import CliRunner, Result
from PIL import Image

from builder import __version__
from builder.cli import main
from builder.errors import FgbgError, NotABuildError
from builder.files import sha256_file
from builder.layout import TABLE_FILE, state_files
from builder.pinned import PinnedRecipe
from builder.record.encoding import _grey_png, encode_mask
from builder.record.plan import Plan
from builder.release.card import write_card
from builder.release.preview import write_preview
from builder.release.verify import VerifyReport, verify
from builder.tables import write_table
from fgbg_dataset import FgbgDataset
from tests.e2e.hub import Hub
from tests.e2e.running import fgbg
from tests.edits import Rows, change

TRAIN = "data/train-00000-of-00002.parquet"
SECOND = "data/train-00001-of-00002.parquet"
BOTH = "data/unseen_both-00000-of-00001.parquet"
SOURCES = "train-00000-of-00001.parquet"


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    """A copy of the build, to be harmed."""
    return Path(shutil.copytree(built, tmp_path / "blobs"))


def restamp(path: Path, key: str, how: Callable[[dict[str, Any]], object]) -> None:
    """Change one key of a Parquet file's metadata."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    content = json.loads(metadata[key.encode()])
    how(content)
    metadata[key.encode()] = json.dumps(content).encode()
    write_table(path, "parquet", table.schema.with_metadata(metadata), table.to_pylist())


def forge(out: Path) -> None:
    """State sizes and sha256 as they are now, so that only the content can show it."""
    path = out / "assets" / "statistics.json"
    content = json.loads(path.read_text())
    for split in content["splits"].values():
        for shard in split["shards"]:
            file = out / shard["file"]
            shard.update(size_bytes=file.stat().st_size, sha256=sha256_file(file))
    path.write_text(json.dumps(content))
    state_files(out)
    write_card(out)


def forged(out: Path, name: str, how: Callable[[Rows], object], **options: Any) -> VerifyReport:
    """Change rows of a file, forge what is stated of it, and verify everything."""
    change(out / name, how)
    forge(out)
    return verify(out, **{"sample": None, **options})


def found(report: VerifyReport) -> set[tuple[str, str]]:
    """What was found, and where."""
    return {(problem.check, problem.where) for problem in report.problems}


def record(rows: Rows, number: int, name: str = TRAIN) -> str:
    return f"{name} record {rows[number]['record_id']}"


def rows_of(out: Path, name: str = TRAIN) -> Rows:
    return pq.read_table(out / name).to_pylist()


def run(*arguments: object, code: int = 0) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


# ---- clean sets


def test_a_clean_set_has_no_problem_and_the_report_says_what_was_checked(built):
    seen: list[int] = []
    report = verify(built, sample=None, progress=seen.append)
    assert report.problems == ()
    assert report.ok
    assert sum(seen) == report.records == report.records_checked == 120
    assert report.files == report.files_hashed == report.files_read == 5
    assert (report.sources, report.uncredited) == (9, 6)
    assert report.statistics == tuple(Plan(pinned_of(built)).splits)
    assert report.fingerprint == pinned_of(built).fingerprint
    assert report.notes == (
        "Depth was checked for size, range and grid and counted, not estimated again.",
    )


def pinned_of(out: Path) -> PinnedRecipe:
    return PinnedRecipe.from_json((out / "recipe.json").read_text())


def test_the_command_tells_it_in_words_and_in_json(built, out):
    done = fgbg("verify", built)
    assert done.stdout.startswith(f"{built}: 120 of 120 records checked.\n")
    assert done.stdout.endswith("All is well.\n")
    (out / TRAIN).unlink()
    (out / "data" / "notes.txt").write_text("hello")
    done = run("verify", out, "--all", code=1)
    assert f"  files: {TRAIN}: is missing\n" in done.stdout
    assert "  files: data/notes.txt: is not part of the set\n" in done.stdout
    assert done.stdout.endswith("2 problems found.\n")
    result = json.loads(run("verify", out, "--json", code=1).stdout)
    assert result["ok"] is False
    assert result["problems"][0] == {"check": "files", "where": TRAIN, "what": "is missing"}


def test_what_is_no_set_is_refused_in_one_sentence(tmp_path):
    done = run("verify", tmp_path, code=2)
    assert done.stderr == (
        f"Error: {tmp_path} is not a finished build of fgbg: it has no recipe.json.\n"
    )
    done = run("verify", tmp_path / "nothing", code=2)
    assert "is neither a folder nor the id of a set on the Hub" in done.stderr
    done = run("verify", tmp_path, "--all", "--sample", "3", code=2)
    assert "give either --all or --sample" in done.stderr
    with pytest.raises(NotABuildError, match="is neither a folder"):
        verify(tmp_path / "ann" / "nothing")
    with pytest.raises(FgbgError, match="sample is 0; it must be at least 1"):
        verify(tmp_path, sample=0)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("parquet", {"image_format": "webp", "depth_format": "jpeg8"}),
        ("parquet", {"image_format": "png", "holdout": 0.0, "depth_kind": "relative-inverse"}),
        ("parquet", {"image_quality": 5, "depth_precision": 0.0, "background_fit": "stretch"}),
        ("arrow", {"flip": False, "size": 50}),
        ("parquet", {"depth_model": "none"}),
    ],
)
def test_sets_of_every_format_are_clean(sources, tiny_model, tmp_path, file_format, options):
    recipe = {"depth_model": str(tiny_model), "size": 64, "foreground_size": 30, "depth_input": 64}
    recipe |= {"placements": 1, "shard_records": 15, "holdout": 0.3, **options}
    dataset = FgbgDataset(*sources, **recipe)
    dataset.download_and_prepare(tmp_path / "out", file_format=file_format, num_proc=1)
    report = verify(tmp_path / "out", sample=None)
    assert report.problems == ()
    assert report.records_checked == report.records > 0
    assert set(report.statistics) == set(dataset.plan.splits)


def test_a_sample_is_the_same_each_time_and_covers_every_split(built, out):
    first, second = verify(built, sample=30), verify(built, sample=30)
    assert first == second
    # In blocks of 25: one of train's two, and of the others, which have no two, everything.
    assert first.records_checked in (25 + 36 + 18 + 12, 29 + 36 + 18 + 12)
    # A fault in every record of the set is met by any sample, in each split.
    for path in sorted((out / "data").iterdir()):
        change(path, lambda rows: [row.update(bbox=[0, 0, 1, 1]) for row in rows])
    forge(out)
    report = verify(out, sample=30)
    assert report.problems and {problem.check for problem in report.problems} == {"bbox"}
    assert len(report.problems) == first.records_checked
    assert len({problem.where.split("-0")[0] for problem in report.problems}) == 4
    assert report.statistics == ()  # what has faults is not counted


# ---- files


def test_a_flipped_bit_is_found_by_the_sha256(out):
    content = bytearray((out / TRAIN).read_bytes())
    content[len(content) // 2] ^= 1
    (out / TRAIN).write_bytes(content)
    report = verify(out, sample=1)
    assert ("files", TRAIN) in found(report)
    assert any("sha256" in problem.what for problem in report.problems)


def test_a_flipped_bit_is_found_by_the_pixels_when_all_else_is_forged(out):
    rows = rows_of(out)

    def flip(rows: Rows) -> None:
        encoded = bytearray(rows[7]["fg_bg"]["bytes"])
        encoded[len(encoded) * 2 // 3] ^= 0x20
        rows[7]["fg_bg"]["bytes"] = bytes(encoded)

    assert found(forged(out, TRAIN, flip)) == {("fg_bg", record(rows, 7))}


def test_truncated_and_foreign_files_are_told_without_a_traceback(out):
    content = (out / TRAIN).read_bytes()
    (out / TRAIN).write_bytes(content[:-100])
    (out / SECOND).write_bytes(b"PAR1 but not really PAR1")
    (out / BOTH).write_bytes(b"")
    whats = {p.where: p.what for p in verify(out).problems if "read" in p.what}
    assert whats.keys() == {TRAIN, SECOND, BOTH}
    assert all(what.startswith("cannot be read as Parquet (") for what in whats.values())


def test_other_columns_or_another_fingerprint_in_a_file_are_told(out):
    table = pq.read_table(out / TRAIN)
    pq.write_table(table.drop_columns("coverage"), out / TRAIN, compression="none")
    restamp(out / SECOND, "fgbg", lambda content: content.update(fingerprint="00"))
    forge(out)
    problems = {p.where: (p.check, p.what) for p in verify(out, sample=None).problems}
    assert problems == {
        TRAIN: ("files", "has not the columns of the recipe (see coverage)"),
        SECOND: ("recipe", "is of another fingerprint by its metadata"),
    }


# ---- ids


def test_a_dropped_row_is_found(out):
    rows = rows_of(out)
    report = forged(out, TRAIN, lambda rows: rows.pop(5))
    assert {p.what for p in report.problems if p.check == "ids"} == {
        f"lacks record {rows[5]['record_id']}"
    }
    assert {p.check for p in report.problems} == {"ids"}


def test_a_doubled_row_is_found(out):
    rows = rows_of(out)
    report = forged(out, TRAIN, lambda rows: rows.__setitem__(3, rows[9]))
    assert [(p.check, p.where, p.what) for p in report.problems] == [
        ("ids", TRAIN, f"holds record {rows[9]['record_id']} 2 times"),
        ("ids", TRAIN, f"lacks record {rows[3]['record_id']}"),
        ("statistics", "assets/statistics.json train", report.problems[-1].what),
    ]


def test_rows_in_another_order_are_found(out):
    rows = rows_of(out)
    report = forged(out, TRAIN, lambda rows: rows.reverse())
    (problem,) = report.problems
    assert (problem.check, problem.where) == ("ids", TRAIN)
    assert problem.what == (
        f"row 0 is record {rows[-1]['record_id']}, by the plan {rows[0]['record_id']}"
    )


def test_a_record_in_another_split_is_a_leak(out):
    foreign = rows_of(out, BOTH)[4]
    report = forged(out, TRAIN, lambda rows: rows.__setitem__(2, foreign))
    leaks = [(p.where, p.what) for p in report.problems if p.check == "splits"]
    assert leaks == [(TRAIN, f"holds record {foreign['record_id']}, which is of unseen_both")]


def test_copies_of_one_file_on_both_sides_of_the_split_are_a_leak(out):
    pinned = pinned_of(out)
    held = next(e for e in pinned.backgrounds if e.held_out)
    seen = next(e for e in pinned.backgrounds if not e.held_out)
    entries = [replace(e, sha256=seen.sha256) if e == held else e for e in pinned.backgrounds]
    (out / "recipe.json").write_text(replace(pinned, backgrounds=tuple(entries)).to_json())
    problems = [p for p in verify(out).problems if p.check == "splits"]
    assert len(problems) == 1
    assert {problems[0].where, problems[0].what.split(",")[0]} in (
        {f"backgrounds/{held.id}", f"is a copy of {seen.id}"},
        {f"backgrounds/{seen.id}", f"is a copy of {held.id}"},
    )


# ---- records


@pytest.mark.parametrize("column", ["mask", "fg_bg"])
def test_two_swapped_images_are_found(out, column):
    rows = rows_of(out)

    def swap(rows: Rows) -> None:
        rows[1][column], rows[8][column] = rows[8][column], rows[1][column]

    expected = {(column, record(rows, 1)), (column, record(rows, 8))}
    assert found(forged(out, TRAIN, swap)) == expected


@pytest.mark.parametrize(
    ("changes", "check", "what"),
    [
        ({"bbox": [1, 2, 3, 4]}, "bbox", "bbox is [1, 2, 3, 4], that of the mask is ["),
        ({"bbox": [2**31 - 1] * 4}, "bbox", "bbox is [2147483647,"),
        ({"coverage": 0.5}, "coverage", "coverage is 0.5, that of the mask is 0."),
        ({"pixel_hash": "00"}, "pixel_hash", "pixel_hash is 00, composed again it is "),
        ({"background_id": "x\x1b[31m"}, "combination", "background_id is 'x\\x1b[31m', by "),
        ({"foreground_id": None}, "combination", "foreground_id is None, by the record's id it"),
        ({"mask": None}, "mask", "mask holds no image"),
        ({"fg_bg": {"bytes": b"", "path": None}}, "fg_bg", "fg_bg is damaged ("),
    ],
)
def test_a_wrong_value_is_found(out, changes, check, what):
    rows = rows_of(out)
    report = forged(out, TRAIN, lambda rows: rows[6].update(changes))
    assert found(report) == {(check, record(rows, 6))}
    assert report.problems[0].what.startswith(what)


def test_a_mirrored_flag_is_found(out):
    rows = rows_of(out)
    report = forged(out, TRAIN, lambda rows: rows[6].update(flipped=not rows[6]["flipped"]))
    assert found(report) == {("combination", record(rows, 6))}


def image(pixels: np.ndarray, **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def test_a_mask_with_grey_is_found_and_an_8_bit_one_is_none_the_worse(out):
    rows = rows_of(out)
    mask = np.asarray(Image.open(io.BytesIO(rows[0]["mask"]["bytes"])).convert("L")).copy()
    report = forged(out, TRAIN, lambda rows: rows[0].update(mask=image(mask, format="PNG")))
    assert not [p for p in report.problems if p.check == "mask"]
    mask[3:5, 7] = 100
    report = forged(out, TRAIN, lambda rows: rows[0].update(mask=image(mask, format="PNG")))
    (problem,) = report.problems
    assert (problem.check, problem.where) == ("mask", record(rows, 0))
    assert problem.what == "mask holds 2 pixels that are neither 0 nor 255"


@pytest.mark.parametrize(
    ("value", "size", "what"),
    [
        (60000, 64, "depth of 1 pixels cannot be: 60000 is outside of 100 to 10000"),
        (99, 64, "depth of 1 pixels cannot be: 99 is outside of 100 to 10000"),
        (9999, 64, "depth of 1 pixels cannot be: 9999 is not on the grid of the recipe's "),
        (0, 64, None),
        (0, 63, "depth is 63x63 px, not 64x64 px"),
    ],
)
def test_depth_that_can_not_be_is_found(out, value, size, what):
    rows = rows_of(out)
    depth = np.full((size, size), 10000, ">u2")
    depth[5, 9] = value
    png = {"bytes": _grey_png(depth.view(np.uint8), size, bit_depth=16), "path": None}
    report = forged(out, TRAIN, lambda rows: rows[4].update(depth=png))
    problem, *others = sorted(report.problems, key=lambda problem: problem.check == "preview")
    assert [(p.check, p.what) for p in others] == [("preview", "has other depth than the set")]
    if what is None:  # possible, so only the statistics tell
        assert (problem.check, problem.where) == ("statistics", "assets/statistics.json train")
        assert problem.what == "size_bytes, depth: not what the records hold"
    else:
        assert (problem.check, problem.where) == ("depth", record(rows, 4))
        assert problem.what.startswith(what)


def composite(row: dict[str, Any]) -> np.ndarray:
    return simplejpeg.decode_jpeg(row["fg_bg"]["bytes"])


def test_another_encoder_is_no_fault_and_an_altered_composite_is(out):
    """Composed exactly, encoded by Pillow, progressive; then with a small square put in."""
    pinned = pinned_of(out)
    exact = {}
    from builder.record.render import Renderer
    from builder.sources.prepare import SourceBank
    from builder.sources.stored import read_sources

    bank = SourceBank(*(read_sources(out / k / SOURCES) for k in ("foregrounds", "backgrounds")))
    renderer = Renderer(Plan(pinned), bank, None)
    for row in rows_of(out):
        exact[row["record_id"]] = renderer.compose(row["record_id"]).fg_bg
    options = {"format": "JPEG", "quality": 90, "subsampling": 0, "progressive": True}

    def encode(rows: Rows) -> None:
        for row in rows:
            row["fg_bg"] = image(exact[row["record_id"]], **options)

    def alter(rows: Rows) -> None:
        pixels = exact[rows[2]["record_id"]].copy()
        pixels[30:36, 20:26] = 255 - pixels[30:36, 20:26]
        rows[2]["fg_bg"] = image(pixels, **options)

    report = forged(out, TRAIN, encode)
    assert {p.check for p in report.problems} <= {"statistics"}  # other bytes, other sizes
    report = forged(out, TRAIN, alter)
    assert found(report) == {("fg_bg", record(rows_of(out), 2))}
    assert " px tile at x 16, y " in report.problems[0].what


def test_a_decompression_bomb_is_refused_by_its_header(out):
    header = b"\x00\x00\xff\xff\x00\x00\xff\xff\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    bomb = {"bytes": png + b"\x00\x00\x00\x00IEND\xaeB`\x82", "path": None}
    square = np.zeros((2000, 2000), np.uint8)
    wide = {"bytes": encode_mask(square), "path": None}
    rows = rows_of(out)
    report = forged(out, TRAIN, lambda rows: (rows[0].update(mask=bomb), rows[1].update(mask=wide)))
    assert found(report) == {("mask", record(rows, 0)), ("mask", record(rows, 1))}
    assert "DecompressionBombError" in report.problems[0].what
    assert report.problems[1].what == "mask is 2000x2000 px, not 64x64 px"


# ---- recipe, sources, statistics, card


def test_an_edited_recipe_is_found(out):
    path = out / "recipe.json"
    path.write_text(path.read_text().replace('"placements": 3', '"placements": 4'))
    (problem,) = verify(out).problems
    assert (problem.check, problem.where) == ("recipe", "recipe.json")
    assert problem.what == "its fingerprint does not fit its content; it was edited."


def test_a_changed_source_image_is_found_and_named(out):
    def paint(rows: Rows) -> None:
        with Image.open(io.BytesIO(rows[2]["image"]["bytes"])) as old:
            pixels = np.array(old)
        pixels[10, 10] ^= 1
        rows[2]["image"] = image(pixels, format="PNG")

    report = forged(out, f"backgrounds/{SOURCES}", paint)
    blamed = [p for p in report.problems if p.check == "sources"]
    assert [p.where for p in blamed] == ["backgrounds/scene2"]
    assert {p.check for p in report.problems} == {"sources", "pixel_hash"}
    misfits = [p for p in report.problems if p.where.startswith("data/")]
    assert len(misfits) > 12
    assert blamed[0].what == (
        f"{len(misfits)} of its 24 records checked were composed of another image"
    )


def test_a_source_of_another_size_or_format_is_found(out):
    def spoil(rows: Rows) -> None:
        rows[0]["image"] = image(np.zeros((64, 64, 3), np.uint8), format="BMP")
        rows[1]["image"] = image(np.zeros((64, 65, 3), np.uint8), format="PNG")
        rows[2]["sha256"] = "0" * 64
        rows[3]["held_out"] = not rows[3]["held_out"]

    change(out / f"backgrounds/{SOURCES}", spoil)
    report = verify(out)
    assert ("files", f"backgrounds/{SOURCES}") in found(report)  # its sha256
    whats = {p.where.removeprefix("backgrounds/"): p.what for p in report.problems}
    assert whats["scene0"].startswith("its image is damaged (UnidentifiedImageError")
    assert whats["scene1"] == "its image is 65x64 px, not 64x64 px"
    assert whats["scene2"].startswith("its sha256 is '0000")
    assert whats["scene3"].startswith("its held_out is ")
    assert {p.check for p in report.problems} == {"files", "sources"}
    assert "Nothing was composed again" in report.notes[0]


@pytest.mark.parametrize("name", ["tool", "weights", "weights_license"])
def test_what_is_falsely_said_to_have_made_a_cut_out_is_found(out, name):
    report = forged(out, f"foregrounds/{SOURCES}", lambda rows: rows[1].update({name: "other"}))
    (problem,) = report.problems
    assert (problem.check, problem.where) == ("credits", "foregrounds/blob1")
    assert problem.what == f"its {name} is 'other', in the recipe ''"


def test_a_removed_credit_is_found_by_the_recipe_or_by_the_card(out):
    report = forged(out, f"foregrounds/{SOURCES}", lambda rows: rows[1].update(author=""))
    (problem,) = report.problems
    assert (problem.check, problem.where) == ("credits", "foregrounds/blob1")
    assert problem.what == "its author is '', in the recipe 'Ann'"
    pinned = pinned_of(out)
    entries = [replace(e, author="") if e.id == "blob1" else e for e in pinned.foregrounds]
    (out / "recipe.json").write_text(replace(pinned, foregrounds=tuple(entries)).to_json())
    state_files(out)
    problems = verify(out).problems
    assert {p.check for p in problems} == {"card"}
    assert any("| blob1 | foreground | Ann | CC0-1.0 |" in p.what for p in problems)


def test_an_edited_number_in_the_card_is_found_with_its_line(out):
    path = out / "README.md"
    lines = path.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith("| mask |"))
    lines[number] = lines[number].replace("0.", "0.9", 1)
    path.write_text("\n".join(lines) + "\n")
    (problem,) = verify(out).problems
    assert (problem.check, problem.where) == ("card", f"README.md line {number + 1}")
    assert problem.what.startswith("says '| mask | 120 | 64x64 | 0.9")
    assert ", by the data it is '| mask | 120 | 64x64 | 0." in problem.what


def test_what_killed_writers_left_in_a_set_is_told_and_cleared_by_the_next(out):
    names = ("README.md", "assets/preview.html", "assets/samples.png", TABLE_FILE)
    left = [out / name for name in names]
    left = [path.with_name(f".{path.name}.{'0' * 16}.tmp") for path in left]
    for path in left:
        path.write_text("half")
        os.utime(path, (0, 0))
    report = verify(out)
    assert report.ok
    said = "Left by a system or a killed command, and ignored: "
    assert sum(note.startswith(said) for note in report.notes) == 1
    write_card(out)
    write_preview(out)
    assert not any(path.exists() for path in left)
    assert verify(out).ok


def test_a_number_in_the_yaml_of_the_card_is_found(out):
    path = out / "README.md"
    assert "num_examples: 54" in path.read_text()
    path.write_text(path.read_text().replace("num_examples: 54", "num_examples: 55"))
    (problem,) = verify(out).problems
    assert problem.check == "card"
    assert problem.where == "README.md dataset_info[default].splits[train].num_examples"
    assert problem.what == "is 55, by the data it is 54"


def test_what_a_person_sets_in_the_card_is_no_fault(out):
    write_card(out, license="cc-by-4.0", title="A set of blobs")
    assert verify(out).ok
    path = out / "README.md"
    text = path.read_text().replace("license: cc-by-4.0\n", "")
    text = text.replace("---\n", "---\nlanguage: [en]\nlicense: mit\n", 1)  # before our keys
    path.write_text(
        text.replace("## Limits", "Made for our course.\n\n## Limits") + "\n\nThanks!\n"
    )
    assert verify(out).problems == ()


def test_a_block_that_was_cut_from_the_card_is_told_once(out):
    path = out / "README.md"
    lines = path.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if "fgbg:statistics begin" in line)
    end = next(i for i, line in enumerate(lines) if "fgbg:statistics end" in line)
    path.write_text("\n".join(lines[:begin] + lines[end + 1 :]))
    (problem,) = verify(out).problems
    assert problem.check == "card"
    assert "fgbg:statistics" in problem.what


def test_yaml_that_names_one_value_in_a_billion_places_is_refused_at_once(out):
    laughs = ["a0: &a0 [ha, ha]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    path = out / "README.md"
    path.write_text(path.read_text().replace("---\n", "---\n" + "\n".join(laughs) + "\n", 1))
    (problem,) = verify(out).problems
    assert (problem.check, problem.where) == ("card", "README.md")
    assert "uses *a0; write the value out" in problem.what


def test_a_preview_that_shows_other_records_is_found(out):
    def spoil(rows: Rows) -> None:
        rows[0]["mask"] = rows[1]["mask"]
        rows[2]["record_split"] = "test"

    rows = rows_of(out, TABLE_FILE)
    assert found(forged(out, TABLE_FILE, spoil)) == {
        ("mask", record(rows, 0, TABLE_FILE)),
        ("preview", record(rows, 2, TABLE_FILE)),
    }
    (out / TABLE_FILE).unlink()
    assert ("preview", TABLE_FILE) in found(verify(out))


def test_wrong_statistics_are_found(out):
    path = out / "assets" / "statistics.json"
    content = json.loads(path.read_text())
    counts = content["splits"]["train"]["statistics"]["tallies"]["fg_bg"]["channels"][1]["counts"]
    counts[0] += 1
    path.write_text(json.dumps(content))
    write_card(out)
    (problem,) = verify(out, sample=None).problems
    assert (problem.check, problem.where) == ("statistics", "assets/statistics.json train")
    assert problem.what == "fg_bg: not what the records hold"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(splits=[]),
        lambda c: c["splits"].pop("train"),
        lambda c: c["splits"]["train"]["shards"].pop(),
        lambda c: c["splits"]["train"]["shards"][0].pop("sha256"),
        lambda c: c["splits"]["train"]["shards"].__setitem__(0, None),
        lambda c: c["splits"]["train"]["statistics"]["tallies"]["depth"].update(levels=10**15),
        lambda c: c["splits"]["train"]["statistics"]["tallies"].pop("mask"),
        lambda c: c["splits"]["train"]["statistics"]["tallies"]["mask"]["channels"][0].update(
            counts=[10**40] * 2
        ),
    ],
)
def test_statistics_of_another_shape_are_told(out, spoil):
    path = out / "assets" / "statistics.json"
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    assert {("statistics", "assets/statistics.json")} == found(verify(out))


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 99, b"[" * 10**6, b"{}", b"null", None])
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("recipe.json", "recipe"),
        ("assets/statistics.json", "statistics"),
        (f"foregrounds/{SOURCES}", "sources"),
        (TABLE_FILE, "preview"),
        ("README.md", "card"),
    ],
)
def test_garbage_is_told_without_a_traceback(out, name, check, content):
    if content is None:
        (out / name).unlink()
        if name == "recipe.json":
            return  # no set at all, tested above
    else:
        (out / name).write_bytes(content)
    report = verify(out)
    assert check in {p.check for p in report.problems}
    assert report.to_json()["ok"] is False


def test_a_recipe_of_a_hundred_thousand_times_the_files_is_not_walked_through(out):
    pinned = pinned_of(out)
    recipe = replace(pinned.recipe, placements=10**4, shard_records=1)
    (out / "recipe.json").write_text(replace(pinned, recipe=recipe).to_json())
    assert ("files", "data") in found(verify(out))


# ---- plantings: what makes a set load otherwise than it was checked, or is not of it

PAGE, SHEET, STATED = "assets/preview.html", "assets/samples.png", "assets/statistics.json"


def card(out: Path, old: str, new: str) -> None:
    text = (out / "README.md").read_text()
    assert old in text
    (out / "README.md").write_text(text.replace(old, new, 1))


def recipe(out: Path, **changes: Any) -> None:
    content = json.loads((out / "recipe.json").read_text())
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (out / "recipe.json").write_text(json.dumps(content, indent=1) + "\n")


def linked(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target.rename(path.parents[2] / "elsewhere"))


def piped(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def repeat(rows: Rows) -> None:
    rows[:] = [rows[0]] * 100


def beside(rows: Rows) -> None:
    for row in rows:
        column = "image" if "image" in row else "fg_bg"
        row[column] = {**row[column], "path": "x.png"}


def exchange(rows: Rows) -> None:
    for one, other in itertools.pairwise(rows):
        one["depth"], other["depth"] = other["depth"], one["depth"]


def blank(rows: Rows) -> None:
    for row in rows:
        row["depth_colour"] = {"bytes": b"no picture", "path": None}


def white_png() -> str:
    """A picture that no page of a set shows."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "white").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def stain(rows: Rows) -> None:
    for row in rows:
        row["depth_colour"] = row["fg_bg"]


# What is planted, where it is to be found, and whether all that is stated is forged to fit it.
PLANTINGS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    ".huggingface.yaml": (
        lambda out: (out / ".huggingface.yaml").write_text("configs: []\n"),
        ".huggingface.yaml", False,
    ),
    "module": (lambda out: (out / "blobs.py").write_text(""), "blobs.py", False),
    "infos": (lambda out: (out / "dataset_infos.json").write_text("{}"), "dataset_infos", False),
    "stray on top": (lambda out: shutil.copy(out / TRAIN, out / "a.parquet"), "a.parquet", False),
    "stray shard": (
        lambda out: shutil.copy(out / TRAIN, out / "data/train-x.parquet"), "data/train-x", False
    ),
    "stray, and stated": (
        lambda out: shutil.copy(out / TRAIN, out / "a.parquet"), "a.parquet", True
    ),
    "stray preview, and stated": (
        lambda out: (out / "preview/a.txt").write_text("a"), "preview/a.txt", True
    ),
    "infos, stated": (lambda out: (out / "dataset_infos.json").write_text("{}"), "dataset_i", True),
    "stray source": (
        lambda out: shutil.copy(out / TRAIN, out / "foregrounds/a.parquet"), "foregrounds/a", False
    ),
    "stray preview": (lambda out: (out / "preview/a.txt").write_text("a"), "preview/a.txt", False),
    "data_dir": (
        lambda out: card(out, "- config_name: default\n  data_files:",
                         "- config_name: default\n  data_dir: evil\n  data_files:"),
        "README.md configs[default].data_dir", False,
    ),
    "columns": (
        lambda out: card(out, "  default: true", "  default: true\n  columns: [mask]"),
        "README.md configs[default].columns", False,
    ),
    "filters": (
        lambda out: card(out, "  default: true",
                         "  default: true\n  filters: [[flipped, ==, true]]"),
        "README.md configs[default].filters", False,
    ),
    "other files": (
        lambda out: card(out, "path: data/train-*", "path: evil/train-*"), "README.md", False
    ),
    "preview elsewhere": (
        lambda out: card(out, "data_files: preview/train-", "data_files: backgrounds/train-"),
        "README.md configs[preview].data_files", False,
    ),
    "twice": (
        lambda out: card(out, "configs:\n",
                         "configs:\n- config_name: preview\n  data_files: a.csv\n"),
        "README.md cannot be written again (CardError: README.md has a config 'preview'", False,
    ),
    "other default": (
        lambda out: card(out, "configs:\n",
                         "configs:\n- config_name: a\n  data_files: a.csv\n  default: true\n"),
        "README.md configs['a']", False,
    ),
    "a feature more": (
        lambda out: card(out, "  - name: coverage\n", "  - name: evil\n    dtype: bool\n"
                              "  - name: coverage\n"),
        "README.md dataset_info[default].features", False,
    ),
    "page": (lambda out: (out / PAGE).write_text("<script>evil()</script>"), PAGE, False),
    "script in the page": (
        lambda out: (out / PAGE).write_text(
            (out / PAGE).read_text().replace("</body>", "<script>evil()</script></body>")
        ),
        PAGE, True,
    ),
    "another page": (
        lambda out: (out / PAGE).write_text(
            (out / PAGE).read_text().replace("base64,", f"base64,{white_png()}", 1)
        ),
        PAGE, True,
    ),
    "another sheet": (
        lambda out: (out / SHEET).write_bytes(base64.b64decode(white_png())), SHEET, True
    ),
    "hint of FiftyOne": (lambda out: (out / "fiftyone.yml").write_text("format: x"), "fift", True),
    "preview cut": (lambda out: change(out / TABLE_FILE, list.pop), TABLE_FILE, True),
    "path of depth_colour": (
        lambda out: change(out / TABLE_FILE, lambda rows: rows[3]["depth_colour"].update(path="x")),
        TABLE_FILE, True,
    ),
    "no page": (lambda out: (out / PAGE).unlink(), PAGE, False),
    "page elsewhere": (lambda out: linked(out / PAGE), PAGE, False),
    "sheet": (lambda out: (out / SHEET).write_bytes(b"\x89PNG"), SHEET, False),
    "no sheet": (lambda out: (out / SHEET).unlink(), SHEET, False),
    "sheet elsewhere": (lambda out: linked(out / SHEET), SHEET, False),
    "preview of nothing": (lambda out: change(out / TABLE_FILE, list.clear), TABLE_FILE, True),
    "preview of one": (lambda out: change(out / TABLE_FILE, repeat), TABLE_FILE, True),
    "preview of other depth": (lambda out: change(out / TABLE_FILE, exchange), TABLE_FILE, True),
    "no depth_colour": (lambda out: change(out / TABLE_FILE, blank), TABLE_FILE, True),
    "other depth_colour": (lambda out: change(out / TABLE_FILE, stain), TABLE_FILE, True),
    "path in a record": (lambda out: change(out / TRAIN, beside), TRAIN, True),
    "path in a source": (
        lambda out: change(out / f"backgrounds/{SOURCES}", beside), "backgrounds/scene", True
    ),
    "path in the preview": (lambda out: change(out / TABLE_FILE, beside), TABLE_FILE, True),
    "same values, other bytes": (
        lambda out: pq.write_table(pq.read_table(out / TABLE_FILE), out / TABLE_FILE,
                                   compression="none"),
        TABLE_FILE, False,
    ),
    "sources, other bytes": (
        lambda out: pq.write_table(pq.read_table(out / f"foregrounds/{SOURCES}"),
                                   out / f"foregrounds/{SOURCES}", compression="none"),
        f"foregrounds/{SOURCES}", False,
    ),
    "features of a shard": (
        lambda out: restamp(out / TRAIN, "huggingface",
                            lambda c: c["info"]["features"]["mask"].pop("mode")),
        TRAIN, True,
    ),
    "more in a shard's features": (
        lambda out: restamp(out / TRAIN, "huggingface", lambda c: c.update(evil=1)), TRAIN, True
    ),
    "features of the preview": (
        lambda out: restamp(out / TABLE_FILE, "huggingface",
                            lambda c: c["info"]["features"]["mask"].pop("mode")),
        TABLE_FILE, True,
    ),
    "recipe of a shard": (
        lambda out: restamp(out / TRAIN, "fgbg", lambda c: c["recipe"].update(placements=4)),
        TRAIN, True,
    ),
    "depth of a shard": (
        lambda out: restamp(out / TRAIN, "fgbg", lambda c: c["depth"].update(far=999)), TRAIN, True
    ),
    "dataset_info": (
        lambda out: (out / "dataset_info.json").write_text("?"), "dataset_info.json", False
    ),
    "forged dataset_info": (
        lambda out: (out / "dataset_info.json").write_text("{}"), "dataset_info.json", True
    ),
    "dataset_info of others": (
        lambda out: (out / "dataset_info.json").write_text(
            (out / "dataset_info.json").read_text().replace('"coverage"', '"cover"')
        ),
        "dataset_info.json", True,
    ),
    "records": (lambda out: recipe(out, records=1), "recipe.json", False),
    "depth model": (lambda out: recipe(out, depth={"model": "x/y"}), "recipe.json", False),
    "forged depth model": (
        lambda out: recipe(out, depth={"model": "./y"}, recipe={"depth_model": "./y"}), TRAIN, True
    ),
    "no load": (
        lambda out: card(out, "configs:\n", "configs:\n- data_files: evil/*\n"), "README.md", False
    ),
    "a block gone from another version": (
        lambda out: (card(out, f"By fgbg-dataset {__version__}", "By fgbg-dataset 9.9"),
                     card(out, "<!-- fgbg:credits begin -->", "")),
        "README.md", False,
    ),
    "unstated": (
        lambda out: (out / STATED).write_text(
            json.dumps({**json.loads((out / STATED).read_text()), "files": {}})
        ),
        "recipe.json", False,
    ),
    "figures of another version": (
        lambda out: (card(out, f"By fgbg-dataset {__version__}", "By fgbg-dataset 9.9"),
                     card(out, "| mask | 120 |", "| mask | 121 |")),
        "README.md line ", False,
    ),
    "pipe for a shard": (lambda out: piped(out / TRAIN), TRAIN, False),
    "pipe for a source": (lambda out: piped(out / f"foregrounds/{SOURCES}"), "foregrounds/", False),
    "pipe for the preview": (lambda out: piped(out / TABLE_FILE), TABLE_FILE, False),
    "pipe for dataset_info": (lambda out: piped(out / "dataset_info.json"), "dataset_info", False),
    "pipe beside": (lambda out: piped(out / "assets/a"), "assets/a", False),
    "endless shard": (lambda out: endless(out / TRAIN), TRAIN, False),
    "linked statistics": (lambda out: linked(out / STATED), STATED, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTINGS)
def test_what_is_planted_is_found_and_named(out, name):
    plant, where, is_forged = PLANTINGS[name]
    plant(out)
    if is_forged:
        forge(out)
    problems = verify(out, sample=30).problems
    assert [each for each in problems if f"{each.where} {each.what}".startswith(where)], problems


def test_what_systems_leave_is_ignored_and_what_is_a_persons_own_is_named(out):
    for name in (".DS_Store", "data/._x", "Thumbs.db", "preview/desktop.ini"):
        (out / name).write_bytes(b"x")
    for name in ("@eaDir", "#recycle", "foregrounds/__MACOSX"):
        (out / name).mkdir()
        (out / name / "train-00000-of-00001.parquet").write_bytes(b"x")
    (out / "README.md").with_name(".README.md.0123456789abcdef.tmp").write_text("x")
    (out / ".git").mkdir()
    (out / ".gitattributes").write_text("x")
    (out / "extra").mkdir()
    shutil.copy(out / f"foregrounds/{SOURCES}", out / "extra" / "a.parquet")
    card(out, "configs:\n", "configs:\n- config_name: extra\n  data_files: extra/a.parquet\n")
    report = verify(out, sample=1)
    assert report.problems == ()
    left, own = report.notes[:2]
    assert left.startswith("Left by a system or a killed command, and ignored: ")
    assert left.endswith(" and 3 more.")
    assert own == "Not of the set: not checked, and not sent by a push: extra/a.parquet."


# ---- on the Hub


def asked_for(hub: Hub) -> Counter[str]:
    """How often each shard's content was asked for."""
    return Counter(
        path.split("/")[-1]
        for method, path in hub.requests
        if method == "GET" and "/data/" in path and "/resolve/" in path
    )


def test_a_published_set_is_checked_as_the_same_set_here(hub, built):
    hub.put_folder("ann/blobs", built)
    report = verify("ann/blobs", sample=None)
    local = verify(built, sample=None)
    assert report == replace(local, target="ann/blobs", revision=hub.repo("ann/blobs").refs["main"])
    assert asked_for(hub) == {path.name: 1 for path in (built / "data").iterdir()}


def test_of_a_published_set_no_more_is_fetched_than_is_sampled(hub, sources, tmp_path):
    dataset = FgbgDataset(*sources, depth_model="none", size=64, foreground_size=30, holdout=0.0,
                          shard_records=100, placements=10, image_format="png")  # fmt: skip
    dataset.download_and_prepare(tmp_path / "out", file_format="parquet", num_proc=1)
    hub.put_folder("ann/blobs", tmp_path / "out")
    report = verify("ann/blobs", sample=20)
    assert report.ok
    assert (report.records, report.records_checked) == (400, 25)
    assert (report.files, report.files_hashed, report.files_read) == (4, 4, len(asked_for(hub)))
    assert report.files_read <= 2
    local = verify(tmp_path / "out", sample=20)
    assert (local.records_checked, local.files_read) == (25, 4)


def test_faults_of_a_published_set_are_found(hub, out):
    hub.put_folder("ann/blobs", out)
    change(out / TRAIN, lambda rows: rows[0].update(bbox=[0, 0, 1, 1]))
    hub.write("ann/blobs", TRAIN, (out / TRAIN).read_bytes())
    hub.write("ann/blobs", "data/train-00002-of-00003.parquet", b"more")
    report = verify("ann/blobs", sample=None)
    assert found(report) == {
        ("files", "data/train-00002-of-00003.parquet"),
        ("files", TRAIN),
        ("bbox", record(rows_of(out), 0)),
    }
    whats = [p.what for p in report.problems if p.where == TRAIN]
    assert whats[-1] == "its sha256 is not that of assets/statistics.json"


def test_a_revision_is_checked_as_it_was(hub, built, out):
    hub.put_folder("ann/blobs", out)
    first = hub.repo("ann/blobs").refs["main"]
    hub.write("ann/blobs", "recipe.json", b"{}")
    assert found(verify("ann/blobs")) == {("recipe", "recipe.json")}
    report = verify("ann/blobs", revision=first)
    assert (report.ok, report.revision) == (True, first)


def test_what_is_no_set_on_the_hub_is_told_in_one_sentence(hub, built, tmp_path, monkeypatch):
    hub.create("ann/empty")
    done = run("verify", "ann/empty", code=2)
    assert done.stderr == "Error: ann/empty on the Hub is not a set of fgbg: no recipe.json.\n"
    done = run("verify", "ann/other", code=2)
    assert "ann/other is neither a folder here nor on the Hub, or it is private" in done.stderr
    done = run("verify", "ann/..", code=2)
    assert "ann/.. is neither" in done.stderr
    done = run("verify", "ann/empty", "--revision", "nowhere", code=2)
    assert "ann/empty has no revision 'nowhere' on the Hub" in done.stderr
    with pytest.raises(FgbgError, match="is a folder here; revision is for a set on the Hub"):
        verify(built, revision="main")


def test_a_connection_that_breaks_is_not_taken_for_a_fault_of_the_set(hub, built, monkeypatch):
    hub.put_folder("ann/blobs", built)
    hub.fail("GET", "/api/datasets/ann/blobs/tree", 403, times=99)
    with pytest.raises(FgbgError, match="ann/blobs cannot be had from the Hub"):
        verify("ann/blobs")
    hub.faults.clear()
    hub.fail("GET", f"/resolve/.*/{TRAIN}", 403, times=99)
    with pytest.raises(FgbgError, match="ann/blobs cannot be had from the Hub"):
        verify("ann/blobs", sample=None)
    with pytest.raises(FgbgError, match="ann/blobs cannot be had from the Hub"):
        verify("ann/blobs", sample=119)
