"""Source folders with things that are not pictures, and with odd names."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from markdown_it import MarkdownIt

from builder.errors import BadSourcesError
from builder.recipe import Recipe
from builder.sources.prepare import prepare
from tests.hostile.running import assert_sentence, fgbg, prepared, table_rows
from tests.pictures import blob, encoded, scene

SMALL = Recipe(size=32, foreground_size=16)
PICTURE = encoded(scene(0, 40, 40), "PNG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(PICTURE)
    return tmp_path / "in"


def problems(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder, "background", SMALL)
    return caught.value.problems


# --- what is no picture file ----------------------------------------------------------------


def listen(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()  # its name stays


def outside(path: Path, make: Callable[[Path], object]) -> None:
    target = path.parent.parent / "outside"
    make(target)
    path.symlink_to(target)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)


OUT = "is a link that leads out of the folder; put the file itself there (cp -RL"
SPECIAL = "is a pipe, socket or device and not a file; remove it"
NO_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, SPECIAL),
    "socket": (listen, SPECIAL),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), OUT),
    "link to a pipe outside": (lambda path: outside(path, os.mkfifo), OUT),
    "link to endless data outside": (lambda path: outside(path, sparse), OUT),
    "link to a folder outside": (lambda path: outside(path, Path.mkdir), OUT),
    "link to the folder above": (lambda path: path.symlink_to("."), "is a link to a folder"),
    "endless file": (sparse, "has 4,398,046,511,104 bytes; too large to be an image"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_file_is_told_without_being_opened(folder: Path, name: str) -> None:
    make, why = NO_PICTURES[name]
    make(folder / "x.png")
    result = prepared(folder, "background")
    ((label, told),) = result["refused"]
    assert label == "in/x.png"
    assert told.startswith(why)
    assert result["used"] == ["good.png"]
    assert result["peak_mib"] < 200


def test_a_folder_named_as_a_picture_is_a_folder(folder: Path) -> None:
    (folder / "x.png").mkdir()
    shutil.move(folder / "good.png", folder / "x.png" / "good.png")
    (source,) = prepare(folder, "background", SMALL).sources
    assert source.entry.file == "x.png/good.png"


def test_a_linked_source_folder_is_followed_and_links_inside_are_too(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "again.png").symlink_to("../good.png")
    prepared_ = prepare(link, "background", SMALL)
    assert [source.entry.file for source in prepared_.sources] == ["sub/again.png", "good.png"]
    assert prepared_.duplicates == (("again", "good"),)


# --- names ----------------------------------------------------------------------------------

NAMES = {
    "newline": b"a\nb.png",
    "emoji": "🐘.png".encode(),
    "joined emoji": "👩‍👩‍👧.png".encode(),
    "255 bytes": b"n" * 251 + b".png",
    "255 bytes of emoji": "🐘".encode() * 62 + b"abc.png",
    "escape": b"red\x1b[31m\x1b]0;title\x07.png",
    "erase": b"\x1b[2J\x1b[H\x9b1A.png",
    "back": b"safe\x08\x08\x08\x08evil\r.png",
    "direction": "photo\u202egnp.exe\u2066.png".encode(),
    "not utf-8": b"caf\xe9.png",
    "markup": b"<script>alert(1)<.script>.png",
    "table": b"a|b|c.png",
    "link": b"[x](javascript:alert(1)).png",
    "comment": b"<!-- fgbg:credits end -->.png",
    "template": b"{{ 7*7 }}.png",
    "quotes": b"'\"&amp;`$(touch ran)`.png",
    "option": b"--help.png",
    "percent": b"%s%n%x.png",
    "spaces": b"  two  spaces .png",
    "decomposed": unicodedata.normalize("NFD", "é").encode() + b"tude.png",
    "number": b"-1.png",
    "no name": b"png",
}
CLASHING = ("same/stem.png", "same/stem.webp", "CASE.png", "case.png")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A build over all these names, some files of which cannot be used; and what was printed."""
    root = tmp_path_factory.mktemp("names")
    for folder in ("fg/same", "bg"):
        (root / folder).mkdir(parents=True)
    lines = [b"file,author,license,url"]
    for number, name in enumerate(NAMES.values()):
        cut_out = encoded(blob(number, 30, 30), "PNG")
        write(root / "fg", name, cut_out)
        write(root / "bg", name, b"" if number % 2 else encoded(scene(number, 40, 40), "PNG"))
        if b"\n" not in name and b'"' not in name and b"\r" not in name:
            lines.append(b'"' + name + b'",Ann,CC0-1.0,https://example.org')
    for number, clash in enumerate(CLASHING):
        image = blob(100 + number, 30, 30)
        image.save(root / "fg" / clash, lossless=True)
    (root / "bg" / "credits.csv").write_bytes(b"file,author,license,url\n\x1b[2J,A,B,C\n")
    (root / "fg" / "credits.csv").write_bytes(printable_lines(lines))
    options = ("--depth-model", "none", "--size", "64", "--foreground-size", "32")
    counts = ("--placements", "1", "--holdout", "0", "--workers", "1")
    arguments = ("build", root / "fg", root / "bg", root / "out", *options, *counts)
    refused = fgbg(*arguments, code=2)
    done = fgbg(*arguments, "--skip-bad", code=0)
    return root / "out", refused.stderr + done.stdout + done.stderr


def write(folder: Path, name: bytes, content: bytes) -> None:
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123
        file.write(content)


def printable_lines(lines: list[bytes]) -> bytes:
    """Lines of a credits file; those that are not UTF-8 cannot stand in one."""
    return b"\n".join(line for line in lines if b"\xe9" not in line and b"\x9b" not in line) + b"\n"


def recipe_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    return content


def test_nothing_printed_steers_the_terminal(build: tuple[Path, str]) -> None:
    _, printed = build
    assert "Error: " in printed
    assert "has the same name (without extension) as" in printed
    for character in printed.replace("\n", "").replace("\r", ""):  # tqdm's bar goes back by \r
        assert character.isprintable(), repr(character)


def test_every_name_is_used_or_told(build: tuple[Path, str]) -> None:
    out, printed = build
    recipe = recipe_of(out)
    assert len(recipe["foregrounds"]) == len(NAMES)
    assert len(recipe["backgrounds"]) == (len(NAMES) + 1) // 2
    assert len(recipe["skipped"]) == len(NAMES) // 2 + len(CLASHING) + 1
    for name, why in recipe["skipped"]:
        assert_sentence(name + why)
        assert name in printed
    ids = [entry["id"] for kind in ("foregrounds", "backgrounds") for entry in recipe[kind]]
    assert all(id_.isprintable() for id_ in ids)
    for wanted in (
        "a\\nb", "🐘", "caf\\udce9", "red\\x1b[31m\\x1b]0;title\\x07", "a|b|c", "--help", "n" * 251,
        "photo\\u202egnp.exe\\u2066", "🐘" * 62 + "abc", "  two  spaces ",
    ):  # fmt: skip
        assert wanted in ids


def test_names_survive_into_parquet(build: tuple[Path, str]) -> None:
    out, _ = build
    recipe = recipe_of(out)
    rows = load_dataset(str(out), split="train").select_columns(["foreground_id", "background_id"])
    for kind in ("foreground", "background"):
        held = load_dataset(str(out), f"{kind}s", split="train")
        wanted = [entry["id"] for entry in recipe[f"{kind}s"]]
        assert held["id"][:] == wanted
        assert held["file"][:] == [entry["file"] for entry in recipe[f"{kind}s"]]
        assert set(rows[f"{kind}_id"][:]) == set(wanted)


def test_names_are_text_in_the_card(build: tuple[Path, str]) -> None:
    out, _ = build
    card = (out / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card)
    flat = [part for token in tokens for part in (token, *(token.children or []))]
    raw = [token.content for token in flat if token.type in ("html_block", "html_inline")]
    assert all(re.fullmatch(r"(<!-- fgbg:\w+ (begin|end)[^<>]*-->\s*)+", text) for text in raw)
    links = {token.attrs["href"] for token in flat if token.type == "link_open"}
    assert links == {"recipe.json", "assets/statistics.json", "https://example.org"}
    credited = [e["id"] for e in recipe_of(out)["foregrounds"] if e["author"]]
    assert len(credited) > 12
    rows = {cells[0] for cells in table_rows(tokens) if cells[1:3] == ["foreground", "Ann"]}
    assert rows == {html.unescape(" ".join(name.split())) for name in credited}


def test_names_are_text_in_the_page(build: tuple[Path, str]) -> None:
    """What Chromium makes of such a page is tested in tests/browser."""
    out, _ = build
    page = (out / "assets" / "preview.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "\x1b" not in page
    assert not list(out.parent.rglob("ran"))


def test_status_and_errors_name_a_hostile_out_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "a\x1b[2Jb\udce9"
    done = fgbg("status", os.fsencode(out).decode(errors="surrogateescape"), code=2)
    assert "a\\x1b[2Jb\\udce9 is not a build of fgbg" in done.stderr
    assert "\x1b[2J" not in done.stderr
