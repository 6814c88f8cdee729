"""Hostile text and data files are refused with a sentence and never obeyed."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from builder.build.finish import build_status
from builder.build.shards import is_done, sealed, stored_name
from builder.build.work import WorkFolder
from builder.errors import (
    BadSourcesError,
    NewerVersionError,
    NotABuildError,
    OutputError,
    RecipeError,
)
from builder.files import sha256_file
from builder.layout import STATISTICS_FILE, read_recipe
from builder.pinned import load_recipe
from builder.recipe import Recipe
from builder.release.card import write_card
from builder.release.preview import write_preview
from builder.sources.prepare import prepare
from builder.sources.stored import read_sources
from fgbg_dataset import FgbgDataset
from tests.edits import change
from tests.hostile.running import assert_sentence, table_rows
from tests.pictures import as_jpeg_of, blob, scene
from tests.strategies import pinned

CHOICES: dict[str, Any] = {"size": 32, "foreground_size": 16, "placements": 2, "holdout": 0.0}
HOSTILE_CREDITS = [
    "<script>alert(1)</script>",
    "</table><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "a | b | c\\| d",
    "![x](https://evil.example/x.png)",
    "`code` **bold** _it_",
    "=cmd|' /C calc'!A0",
    "<!-- fgbg:credits end -->",
    "javascript:alert(1)",
    "<javascript:alert(1)>",
    "&lt;script&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "https://example.org/a_b_c?x=1&y=2",
    "---\nlicense: mit\n---",
    "# heading",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished build whose credits hold everything that a card or page could obey."""
    root = tmp_path_factory.mktemp("hostile")
    for name in ("fg", "bg"):
        (root / name).mkdir()
    lines = ["file,author,license,url"]
    for number, text in enumerate(HOSTILE_CREDITS):
        blob(number, 30, 30).save(root / "fg" / f"f{number:02}.png")
        cell = '"' + text.replace('"', '""') + '"'
        lines.append(f"f{number:02}.png,{cell},{cell},{cell}")
    (root / "fg" / "credits.csv").write_text("\n".join(lines) + "\n")
    scene(0, 40, 40).save(root / "bg" / "b.png")
    builder = FgbgDataset(root / "fg", root / "bg", depth_model="none", **CHOICES)
    builder.download_and_prepare(root / "out", file_format="parquet", num_proc=1)
    return root / "out"


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """The build, to be spoilt."""
    return Path(shutil.copytree(built, tmp_path / "out"))


# --- recipe.json ----------------------------------------------------------------------------

TEXT = pinned(2, 2).to_json()


def source_with(**fields: Any) -> str:
    content = json.loads(TEXT)
    content["foregrounds"][1].update(fields)
    return json.dumps(content)


def recipe_with(**fields: Any) -> str:
    content = json.loads(TEXT)
    content["recipe"].update(fields)
    return json.dumps(content)


RECIPES: dict[str, tuple[str, str]] = {
    "huge number": (recipe_with(placements=10**400), "placements is 1000"),
    "number of 5000 digits": (TEXT.replace('"seed": 0', '"seed": ' + "9" * 5000), "is not JSON"),
    "beyond floats": (TEXT.replace('"seed": 0', '"seed": 1e999'), "seed is inf; it must be"),
    "nan": (TEXT.replace('"holdout": 0.1', '"holdout": NaN'), "NaN is not a number of JSON"),
    "infinity": (TEXT.replace('"holdout": 0.1', '"holdout": -Infinity'), "-Infinity is not"),
    "twice": (TEXT.replace('"seed": 0', '"seed": 1, "seed": 0'), "key 'seed' stands there twice"),
    "nested": ("[" * 200_000, "nested too deeply"),
    "nested objects": ('{"a":' * 200_000, "nested too deeply"),
    "many files": (recipe_with(placements=10**9, shard_records=1), "files are more than"),
    "many records": (recipe_with(placements=2**70), "it must lie between 1 and 1000000000"),
    "unknown with escapes": (recipe_with(**{"\x1b[2J": 1}), "it has a field '\\x1b[2J'"),
    "id with folders": (source_with(id="../../etc/passwd"), "it must be a name without folder"),
    "id with escapes": (source_with(id="\x1b]0;x\x07"), "control characters are not allowed"),
    "empty id": (source_with(id=""), "it must be a name without folder"),
    "file outside": (source_with(file="../../etc/passwd"), "it must be a path inside its folder"),
    "file from the root": (source_with(file="/etc/passwd"), "it must be a path inside its folder"),
    "long author": (source_with(author="x" * 10**7), "a cell of more than 2000 characters"),
    "long id": (source_with(id="x" * 10**6), "has 1000000 characters; at most 4096"),
    "no sha256": (source_with(sha256="x"), "it must be 64 hexadecimal digits"),
    "source of no size": (source_with(source_width=-(2**80)), "must lie between 1 and 2147483647"),
    "wide source": (source_with(width=10**6), "it must lie between 1 and 4096"),
    "other field": (source_with(__class__="x"), "it has a field '__class__'"),
    "depth is text": (TEXT.replace('"depth": null', '"depth": "x"'), "'x' stands where an object"),
    "sources are a number": (
        json.dumps({**json.loads(TEXT), "foregrounds": 10**9}), "is not a recipe.json of fgbg",
    ),
    "edited": (source_with(held_out=True), "its fingerprint does not fit its content"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(RECIPES[name][0])
    began = time.monotonic()
    with pytest.raises((RecipeError, NewerVersionError)) as caught:
        load_recipe(path)
    text = str(caught.value).removeprefix(str(path))
    assert RECIPES[name][1] in text
    assert_sentence(text)
    assert time.monotonic() - began < 20


def test_recipes_without_end_are_not_read(tmp_path: Path) -> None:
    large, pipe = tmp_path / "large.json", tmp_path / "pipe.json"
    with large.open("wb") as file:
        file.truncate(2**32)
    os.mkfifo(pipe)
    for path, why in (
        (large, "at most 268,435,456 are read"),
        (pipe, "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
    ):
        with pytest.raises(RecipeError, match=why):
            load_recipe(path)


def test_a_recipe_with_any_bytes_changed_is_read_or_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "recipe.json", TEXT.encode()
    for number in range(300):
        rng = np.random.default_rng(number)
        spoilt = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 5)).tolist():
            spoilt[at] = rng.integers(256)
        path.write_bytes(bytes(spoilt[: rng.integers(1, len(data) + 1)] if number % 3 else spoilt))
        try:
            load_recipe(path)
        except (RecipeError, NewerVersionError) as error:
            assert_sentence(str(error).removeprefix(str(path)))


# --- credits.csv ----------------------------------------------------------------------------

HEAD = b"file,author,license,url\n"
CREDITS: dict[str, tuple[bytes, str]] = {
    "nul": (HEAD + b"a.png,A\0B,MIT,u\n", "line 2 holds control characters"),
    "escape": (HEAD + b"a.png,\x1b[31mred,MIT,u\n", "line 2 holds control characters"),
    "direction": (HEAD + "a.png,\u202egnp,MIT,u\n".encode(), "line 2 holds control characters"),
    "half of utf-16": (HEAD.decode().encode("utf-16")[:-1], "is not in UTF-8; save it"),
    "utf-16 without mark": (HEAD.decode().encode("utf-16-le"), "has no column file, author,"),
    "huge cell": (HEAD + b"a.png," + b"x" * 100_000 + b",MIT,u\n", "a cell of more than 2000"),
    "endless cell": (HEAD + b"a.png," + b"x" * 10**6 + b",MIT,u\n", "field larger than"),
    "quotes": (HEAD + b'a.png,"Ann" Lee,MIT,u\n', "cannot be read as CSV ("),
    "open quote": (HEAD + b'a.png,"Ann,MIT,u\n', "cannot be read as CSV ("),
    "path": (HEAD + b"../../etc/passwd,A,MIT,u\n", "names '../../etc/passwd', which is not there"),
    "steering path": (HEAD + b"\x1b[2J.png,A,MIT,u\n", "names '\\x1b[2J.png', which is not there"),
}  # fmt: skip


def credits_problems(folder: Path) -> list[str]:
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder, "background", Recipe())
    for name, why in caught.value.problems:
        assert name == f"{folder.name}/credits.csv"
        assert_sentence(why)
    return [why for _, why in caught.value.problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    scene(0, 40, 40).save(tmp_path / "in" / "a.png")
    return tmp_path / "in"


@pytest.mark.parametrize("name", CREDITS)
def test_hostile_credits_are_refused_by_line(folder: Path, name: str) -> None:
    (folder / "credits.csv").write_bytes(CREDITS[name][0])
    (why,) = credits_problems(folder)
    assert CREDITS[name][1] in why


def test_a_hundred_thousand_wrong_lines_are_told_in_few(folder: Path) -> None:
    (folder / "credits.csv").write_bytes(HEAD + b"x,A,MIT,u\n" * 100_000 + b"\n" * 1_000_000)
    told = credits_problems(folder)
    assert len(told) == 21
    assert told[0] == "line 2 names 'x', which is not there"
    assert told[-1] == "and 99980 more lines of it are wrong"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: os.mkfifo(path), "is a pipe, socket or device"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link that leads out of the folder"),
        (lambda path: path.symlink_to(path), "cannot be read; check that it is there"),
        (lambda path: path.mkdir(), "cannot be read as CSV ("),
    ],
    ids=["pipe", "device", "circle", "folder"],
)
def test_credits_that_are_no_file(folder: Path, make: Callable[[Path], None], why: str) -> None:
    make(folder / "credits.csv")
    (told,) = credits_problems(folder)
    assert why in told


# --- card and page --------------------------------------------------------------------------


def test_credits_are_text_in_the_card(built: Path) -> None:
    """Rendered with raw HTML allowed, so that anything that gets through is seen."""
    card = (built / "README.md").read_text().split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card)
    flat = [part for token in tokens for part in (token, *(token.children or []))]
    html = [token.content.strip() for token in flat if token.type in ("html_block", "html_inline")]
    assert all(re.fullmatch(r"(<!-- fgbg:\w+ (begin|end)[^<>]*-->\s*)+", text) for text in html)
    links = [token.attrs["href"] for token in flat if token.type == "link_open"]
    assert set(links) == {
        "recipe.json", "assets/statistics.json", "https://example.org/a_b_c?x=1&y=2"
    }  # fmt: skip
    assert [token.attrs["src"] for token in flat if token.type == "image"] == ["assets/samples.png"]
    assert "heading" not in [t.content for t in flat if t.level == 1 and t.type == "inline"]
    rows = [cells for cells in table_rows(tokens) if re.fullmatch(r"f\d\d", cells[0])]
    for cells, text in zip(rows, HOSTILE_CREDITS, strict=True):
        wanted = " ".join(text.replace("&lt;", "<").replace("&gt;", ">").split())
        assert cells[1:] == ["foreground", wanted, wanted, wanted]


def test_the_card_is_one_yaml_and_its_own_headings(built: Path) -> None:
    card = (built / "README.md").read_text()
    assert card.count("\n---\n") == 1
    assert "\n# heading" not in card
    assert "49" not in re.findall(r"\{\{.*?\}\}|\b49\b", card)


# --- a published folder ---------------------------------------------------------------------


def statistics_with(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def commit_with(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        del content["sealed"]
        change(content)
        path.write_text(sealed(content))

    return spoil


def tally(content: Any, kind: str = "mask_px") -> Any:
    return content["splits"]["train"]["statistics"]["tallies"][kind]


def endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**32)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


STATISTICS: dict[str, Callable[[Path], None]] = {
    "levels": statistics_with(lambda c: tally(c).update(levels=10**13)),
    "levels below 0": statistics_with(lambda c: tally(c).update(levels=-1)),
    "levels are text": statistics_with(lambda c: tally(c).update(levels="9")),
    "channels": statistics_with(lambda c: tally(c).update(channels=tally(c)["channels"] * 10**3)),
    "value too high": statistics_with(lambda c: tally(c)["channels"][0].update(values=[10**9])),
    "value below 0": statistics_with(lambda c: tally(c)["channels"][0]["values"].insert(0, -1)),
    "count below 0": statistics_with(lambda c: tally(c)["channels"][0].update(counts=[-5])),
    "count beyond": statistics_with(lambda c: tally(c)["channels"][0].update(counts=[10**30])),
    "counts are text": statistics_with(lambda c: tally(c)["channels"][0].update(counts=["1"])),
    "counts are one": statistics_with(lambda c: tally(c, "mask")["channels"][0].update(counts=[1])),
    "no tallies": statistics_with(lambda c: c["splits"]["train"]["statistics"].update(tallies={})),
    "no statistics": statistics_with(lambda c: c["splits"]["train"].update(statistics=None)),
    "rows": statistics_with(lambda c: c["splits"]["train"]["shards"][0].update(rows="x")),
    "file outside": statistics_with(
        lambda c: c["splits"]["train"]["shards"][0].update(file="../../x.parquet")
    ),
    "other rows": statistics_with(lambda c: c["splits"]["train"]["shards"][0].update(rows=10**9)),
    "shards": statistics_with(lambda c: c["splits"]["train"].update(shards=7)),
    "splits": statistics_with(lambda c: c["splits"].update({"../../x": c["splits"]["train"]})),
    "other set": statistics_with(lambda c: c.update(fingerprint="0" * 64)),
    "list": lambda path: path.write_text("[]") and None,
    "nested": lambda path: path.write_text("[" * 10**5) and None,
    "endless": endless,
    "pipe": pipe,
}


@pytest.mark.parametrize("name", STATISTICS)
def test_hostile_statistics_make_no_card(copied: Path, name: str) -> None:
    before = (copied / "README.md").read_bytes()
    STATISTICS[name](copied / STATISTICS_FILE)
    with pytest.raises(NotABuildError) as caught:
        write_card(copied)
    assert_sentence(str(caught.value))
    assert STATISTICS_FILE in str(caught.value)
    assert (copied / "README.md").read_bytes() == before


def rewrite(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change the first row of a Parquet file."""
    change(path, lambda rows: how(rows[0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["fg_bg"].update(bytes=as_jpeg_of(20_000, 20_000)),
        lambda row: row["fg_bg"].update(bytes=as_jpeg_of(60_000, 2_000)),
        lambda row: row["mask"].update(bytes=b"\x89PNG\r\n\x1a\n"),
        lambda row: row["mask"].update(bytes=None),
        lambda row: row.update(bbox=None),
        lambda row: row.update(foreground_id=None),
        lambda row: row.update(record_id=2**62),
    ],
)
def test_a_hostile_record_makes_no_preview(
    copied: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    (path,) = (copied / "data").iterdir()
    rewrite(path, change)
    with pytest.raises(NotABuildError) as caught:
        write_preview(copied)
    assert_sentence(str(caught.value))


def flip_bits(path: Path, data: bytes, seed: int) -> None:
    spoilt = bytearray(data)
    rng = np.random.default_rng(seed)
    for bit in rng.integers(8 * len(data), size=rng.integers(1, 9)).tolist():
        spoilt[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(spoilt))


def test_prepared_sources_with_any_bits_flipped_are_read_or_refused(copied: Path) -> None:
    path = copied / "foregrounds" / "train-00000-of-00001.parquet"
    data, refused = path.read_bytes(), 0
    for seed in range(200):
        flip_bits(path, data, seed)
        try:
            for source in read_sources(path):
                assert max(source.entry.width, source.entry.height) <= 4096
        except (NotABuildError, NewerVersionError) as error:  # newer: the name of a column
            assert_sentence(str(error))
            refused += 1
    assert refused > 50


def test_a_prepared_source_of_another_size_is_refused(copied: Path) -> None:
    path = copied / "foregrounds" / "train-00000-of-00001.parquet"

    def enlarge(row: dict[str, Any]) -> None:
        png = bytearray(row["image"]["bytes"])
        struct.pack_into(">II", png, 16, 13_000, 13_000)
        row["image"]["bytes"] = bytes(png)

    rewrite(path, enlarge)
    with pytest.raises(NotABuildError, match="a picture of f00 of another size than its entry"):
        read_sources(path)


# --- a work folder --------------------------------------------------------------------------


@pytest.fixture
def work(copied: Path, tmp_path: Path) -> WorkFolder:
    """The work folder as it was before the build ended, with one shard and its commit record."""
    folder = WorkFolder(tmp_path / "new")
    folder.shards.mkdir(parents=True)
    held = read_recipe(copied)
    for kind in ("foreground", "background"):
        target = folder.sources(kind, held.fingerprint)
        target.parent.mkdir(parents=True)
        (copied / f"{kind}s" / target.name).rename(target)
    (copied / "recipe.json").rename(folder.recipe)
    (shard,) = (copied / "data").iterdir()
    sha256 = sha256_file(shard)
    stored = shard.rename(folder.shards / stored_name(shard.stem, sha256, "parquet"))
    content = json.loads((copied / STATISTICS_FILE).read_text())
    commit = {
        "shard": shard.stem,
        "rows": held.n_records,
        "size_bytes": stored.stat().st_size,
        "sha256": sha256,
        "fingerprint": held.fingerprint,
        "statistics": content["splits"]["train"]["statistics"],
    }
    (folder.shards / f"{shard.stem}.json").write_text(sealed(commit))
    return folder


COMMITS: dict[str, Callable[[Path], None]] = {
    "no statistics": commit_with(lambda c: c.update(statistics={})),
    "statistics are text": commit_with(lambda c: c.update(statistics="x")),
    "many levels": commit_with(lambda c: c["statistics"]["tallies"]["depth"].update(levels=10**13)),
    "other rows": commit_with(lambda c: c.update(rows=1)),
    "rows are text": commit_with(lambda c: c.update(rows="x")),
    "nested": lambda path: path.write_text("[" * 10**5) and None,
    "nan": lambda path: path.write_text('{"rows": NaN}') and None,
    "endless": endless,
    "pipe": pipe,
}


@pytest.mark.parametrize("name", COMMITS)
def test_a_shard_with_a_hostile_commit_record_is_not_done(work: WorkFolder, name: str) -> None:
    held = read_recipe(work.path)
    (path,) = work.shards.glob("*.json")
    assert is_done(work.shards, path.stem, "parquet", held.fingerprint)
    COMMITS[name](path)
    assert not is_done(work.shards, path.stem, "parquet", held.fingerprint)


def test_hostile_prepared_sources_of_a_work_folder_are_made_again(work: WorkFolder) -> None:
    held = read_recipe(work.path)
    recipe = held.recipe
    assert len(work.known_sources("foreground", recipe)) == len(HOSTILE_CREDITS)
    work.sources("foreground", held.fingerprint).write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    assert work.known_sources("foreground", recipe) == {}


def test_a_hostile_recipe_of_a_work_folder_is_refused(work: WorkFolder) -> None:
    work.recipe.write_text(RECIPES["many files"][0])
    for look in (work.held, lambda: build_status(work.out)):
        with pytest.raises(OutputError) as caught:
            look()
        first, second = str(caught.value).split("\n")
        assert "files are more than the 2000000 allowed" in first
        assert second == f"Delete {work.path} to start again."
