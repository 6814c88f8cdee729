"""Which files of a folder are sources, which are the same one, and what they are called."""

from __future__ import annotations

import logging
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.build.work import WorkFolder
from builder.errors import BadSourcesError, FgbgError, OutputError
from builder.pinned import SourceEntry
from builder.recipe import Recipe
from builder.sources.prepare import PreparedFolder, prepare
from builder.sources.scan import ids_of, name_key, refuse_overlap, same_sources, scan
from tests.pictures import ADOBE_RGB, blob, encoded, scene

SMALL = Recipe(size=32, foreground_size=16)


def folder_of(path: Path, names: list[str]) -> Path:
    """A folder of different small pictures."""
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encoded(scene(number, 24, 24), "PNG"))
    return path


def entries(prepared: PreparedFolder) -> list[SourceEntry]:
    return [source.entry for source in prepared.sources]


def backgrounds(folder: Path, **options: Any) -> PreparedFolder:
    return prepare(folder, "background", SMALL, **options)


# --- what is left out -----------------------------------------------------------------------

LEFT = [
    ".DS_Store", "._a.png", "Thumbs.db", "sub/desktop.ini", "@eaDir/a.png/SYNO_THUMB.png",
    "#recycle/old.png", "__MACOSX/._a.png", "sub/@eaDir/b.png",
]  # fmt: skip


def test_what_systems_leave_is_no_source_and_listed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png", "sub/b.png", *LEFT])
    with caplog.at_level(logging.INFO):
        prepared = backgrounds(folder)
    assert [entry.file for entry in entries(prepared)] == ["a.png", "sub/b.png"]
    assert prepared.skipped == ()
    (line,) = caplog.messages
    assert line.startswith("bg: ignored (system files): ")
    assert line.endswith(" and 3 more")
    assert {name for name, _ in scan(folder).left_out} == {
        ".DS_Store", "._a.png", "Thumbs.db", "sub/desktop.ini", "@eaDir", "#recycle", "__MACOSX",
        "sub/@eaDir",
    }  # fmt: skip


def test_a_set_that_was_made_of_thumbnails_finds_them_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png", "@eaDir/a2.png", "@eaDir/b.png"])
    (old,) = entries(backgrounds(folder_of(tmp_path / "old", ["b.png"])))
    like = [SourceEntry(**{**vars(old), "id": "a2", "file": "@eaDir/a2.png"})]
    found = scan(folder, wanted=[entry.file for entry in like])
    assert [file.file for file in found.files] == ["@eaDir/a2.png", "@eaDir/b.png", "a.png"]


def test_the_other_source_folder_is_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png", "cut/b.png", "deep/cut/c.png"])
    for apart in ("cut", "deep/cut"):
        found = scan(folder, apart=[folder / apart])
        assert found.left_out == ((apart, "the other source folder"),)
        assert len(found.files) == 2
    assert len(scan(folder / "cut", apart=[folder]).files) == 1


def test_a_finished_set_is_not_searched(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png", "set/assets/samples.png", "mine/b.png"])
    (folder / "set" / "recipe.json").write_text('{\n "format": 1,\n "fingerprint": "00"')
    (folder / "mine" / "recipe.json").write_text('{"flour": "500 g"}')
    found = scan(folder)
    assert [file.file for file in found.files] == ["a.png", "mine/b.png", "mine/recipe.json"]
    assert found.left_out == (("set", "a finished set"),)
    with pytest.raises(FgbgError, match="is a finished set; give the folder"):
        scan(folder / "set")
    os.mkfifo(folder / "sub" if (folder / "sub").exists() else folder / "recipe.json")
    assert len(scan(folder).files) == 4  # a pipe of that name is not waited for


@pytest.mark.parametrize("out", ["bg", "bg/out", "fg/deep/out", "link/out"])
def test_an_output_folder_among_sources_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "fg").mkdir()
    (tmp_path / "bg").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bg")
    with pytest.raises(FgbgError, match="whose files are sources; choose an output folder outside"):
        refuse_overlap(tmp_path / "fg", tmp_path / "bg", tmp_path / out)
    refuse_overlap(tmp_path / "fg", tmp_path / "bg", tmp_path / "bg2")


def test_one_folder_for_both_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "both")
    with pytest.raises(FgbgError, match="given for both foregrounds and backgrounds"):
        refuse_overlap(tmp_path / "both", tmp_path / "link", None)


def test_links_round_in_a_circle_are_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refuse_overlap(tmp_path / "fg", tmp_path / "bg", tmp_path / "loop")
    with pytest.raises(OutputError, match="circle"):
        WorkFolder(tmp_path / "loop").is_free()


def test_depth_of_a_picture_that_is_gone_is_no_background(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png", "a.depth.png", "b.depth.png", "b.ground.png"])
    with pytest.raises(BadSourcesError) as refused:
        backgrounds(folder)
    assert [file for file, _ in refused.value.problems] == ["bg/b.depth.png", "bg/b.ground.png"]
    made = entries(backgrounds(folder, skip_bad=True))
    assert [entry.file for entry in made] == ["a.png"]
    entry = replace(
        made[0], id="b.depth", file="b.depth.png"
    )  # of a set from before there were any
    again = entries(backgrounds(folder, skip_bad=True, like=[entry]))
    assert [entry.file for entry in again] == ["a.png", "b.depth.png"]


def test_a_class_written_over_two_lines_is_one_class(tmp_path: Path) -> None:
    (tmp_path / "fg").mkdir()
    (tmp_path / "fg" / "a.png").write_bytes(encoded(blob(1, 24, 24), "PNG"))
    text = 'file,author,license,url,category\na.png,,,,"red\n fox"\n'
    (tmp_path / "fg" / "credits.csv").write_text(text)
    (entry,) = entries(prepare(tmp_path / "fg", "foreground", SMALL))
    assert entry.category == "red fox"


# --- ids ------------------------------------------------------------------------------------


def test_classes_as_folders_may_number_their_pictures_alike(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["apple/1.png", "pear/1.png", "pear/2.png", "a/b/1.jpg"])
    for skip_bad in (False, True):
        made = entries(backgrounds(folder, skip_bad=skip_bad))
        assert {entry.file: entry.id for entry in made} == {
            "apple/1.png": "apple-1",
            "pear/1.png": "pear-1",
            "pear/2.png": "2",
            "a/b/1.jpg": "a-b-1",
        }


NAMES = st.text(st.sampled_from("aAbB1.-é́"), min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(st.lists(PATHS, max_size=8, unique=True), st.lists(NAMES, max_size=3))
def test_ids_are_apart_and_stems_where_they_can_be(files: list[str], taken: list[str]) -> None:
    ids, clashes = ids_of(files, taken)
    kept = [name for file, name in ids.items() if file not in dict(clashes)]
    keys = [*map(name_key, kept), *{name_key(name) for name in taken}]
    assert len(set(keys)) == len(keys)
    stems = [name_key(Path(file).stem) for file in files]
    for file in files:
        stem = Path(file).stem
        if stems.count(name_key(stem)) == 1 and name_key(stem) not in map(name_key, taken):
            assert ids[file] == stem  # as version 0.1.0 called it


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_names_are_the_same_whatever_wrote_their_accents(tmp_path: Path) -> None:
    names = ["é.png", "Übung/ô.png", "plain.png"]
    made = entries(backgrounds(folder_of(tmp_path / "nfc", names)))
    copy = folder_of(tmp_path / "nfd", [nfd(name) for name in names])
    again = entries(backgrounds(copy, like=made))
    assert again == made
    shouted = folder_of(tmp_path / "upper", [name.upper() for name in names])
    assert entries(backgrounds(shouted, like=made)) == made


def test_credits_are_found_whatever_wrote_their_accents(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", [nfd("Éa.png"), "Sub/b.png", "c.png"])
    rows = ["file,author,license,url", "Éa.png,Ann,CC0-1.0,", r"sub\B.png,Bob,MIT,"]
    (folder / "Credits.CSV").write_text("\n".join(rows))
    assert [entry.author for entry in entries(backgrounds(folder))] == ["Ann", "Bob", ""]


def test_a_credits_file_of_a_subfolder_counts_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["apple/1.png", "pear/1.png"])
    for name, author in (("apple", "Ann"), ("pear", "Bob")):
        text = f"file,author,license,url\n1.png,{author},MIT,\n"
        (folder / name / "credits.csv").write_text(text)
    assert [entry.author for entry in entries(backgrounds(folder))] == ["Ann", "Bob"]
    (folder / "credits.csv").write_text("file,author,license,url\npear/1.png,Eve,GPL,\n")
    with pytest.raises(BadSourcesError) as caught:
        backgrounds(folder)
    assert caught.value.problems == [
        ("bg/pear/credits.csv", "line 2 names 'pear/1.png' a second time")
    ]


@pytest.mark.parametrize(
    "text", ["file,author\na.png,Ann\n", "file,author,license,url\na.png,Ann,MIT\n", '"', "\x00"]
)
def test_credits_that_cannot_be_read_always_stop(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png"])
    (folder / "credits.csv").write_text(text)
    with pytest.raises(BadSourcesError) as caught:
        backgrounds(folder, skip_bad=True)
    assert not caught.value.skippable
    assert "--skip-bad" not in str(caught.value)
    (folder / "credits.csv").write_text("file,author,license,url\nb.png,Ann,MIT,\n")
    assert len(backgrounds(folder, skip_bad=True).skipped) == 1


# --- the same source ------------------------------------------------------------------------


def test_a_source_is_known_by_its_path_then_by_its_content(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["a.png", "b.png", "c.png"])
    made = entries(backgrounds(folder))
    (folder / "a.png").rename(folder / "z.png")  # another name
    (folder / "b.png").write_bytes(encoded(scene(9, 24, 24), "PNG"))  # another picture
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes())  # a copy
    found = same_sources(scan(folder).files, made)
    assert {file: entry.id for file, entry in found.items()} == {
        "b.png": "b", "c.png": "c", "z.png": "a",
    }  # fmt: skip
    again = {entry.id: entry for entry in entries(backgrounds(folder, like=made))}
    assert again["a"].file == "z.png"
    assert again["b"].sha256 != made[1].sha256
    assert again["d"].sha256 == again["c"].sha256


def test_ids_of_a_set_stay_when_its_names_meet_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", ["apple/1.png"])
    made = entries(backgrounds(folder))
    folder_of(folder, ["zero.png", "pear/1.png"])
    assert [entry.id for entry in entries(backgrounds(folder, like=made))] == [
        "1",
        "pear-1",
        "zero",
    ]


def test_pictures_of_a_set_of_version_0_1_0_stay_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "bg"
    folder.mkdir()
    scene(1, 32, 32).save(folder / "a.png", icc_profile=ADOBE_RGB)
    (right,) = backgrounds(folder).sources
    old = SourceEntry(**{**vars(right.entry), "intake": 1})
    (before,) = backgrounds(folder, like=[old]).sources
    assert (right.entry.intake, before.entry.intake) == (2, 1)
    assert (before.pixels() == scene(1, 32, 32)).all()
    assert (right.pixels() != before.pixels()).any()
    (again,) = backgrounds(folder, like=[right.entry]).sources
    assert (again.pixels() == right.pixels()).all()
    for source in (right, before):
        assert b"iCCP" not in source.png


# --- what is said ---------------------------------------------------------------------------


def test_cut_outs_that_are_enlarged_much_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "fg"
    folder.mkdir()
    for side in (6, 7, 8, 40):
        blob(side, side, side).save(folder / f"{side}.png")
    prepare(folder, "foreground", Recipe(size=64, foreground_size=16))
    assert caplog.messages == ["fg: enlarged more than 2x, to 16 px: 6.png, 7.png"]


def test_profiles_that_cannot_be_used_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bg"
    folder.mkdir()
    for number in range(7):
        scene(number, 24, 24).save(folder / f"{number}.png", icc_profile=b"none")
    backgrounds(folder)
    (line,) = caplog.messages
    assert line.startswith("bg: damaged colour profile, ignored: 0.png, 1.png, 2.png")
    assert line.endswith("4.png and 2 more")
