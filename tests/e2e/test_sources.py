"""What a build makes of folders as people have them: renamed, copied, zipped, overlapping."""

from __future__ import annotations

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.pinned import PinnedRecipe
from builder.release.verify import verify
from builder.sources import read_sources
from tests.e2e.running import fgbg
from tests.pictures import ADOBE_RGB, blob, encoded, scene

SMALL = (
    *("--depth-model", "none", "--placements", "1", "--size", "32", "--foreground-size", "16"),
    *("--holdout", "0", "--workers", "1"),
)


def pinned_of(out: Path) -> PinnedRecipe:
    return PinnedRecipe.from_json((out / "recipe.json").read_text(encoding="utf-8"))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cut-outs and two photographs, one of them with a colour profile."""
    foregrounds, backgrounds = tmp_path / "fg", tmp_path / "bg"
    foregrounds.mkdir()
    backgrounds.mkdir()
    for number in range(2):
        blob(number, 24, 30).save(foregrounds / f"Ä{number}.png")
        scene(number, 40, 40).save(backgrounds / f"é{number}.png")
    scene(1, 40, 40).save(backgrounds / "é1.png", icc_profile=ADOBE_RGB)
    return foregrounds, backgrounds


def test_the_whole_set_is_in_srgb_and_says_so(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fgbg("build", *folders, out, *SMALL)
    plain, wide = read_sources(out / "backgrounds" / "train-00000-of-00001.parquet")
    assert (plain.entry.intake, wide.entry.intake) == (1, 2)
    assert b"iCCP" not in plain.png + wide.png
    shrunk = scene(1, 40, 40).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.abs(wide.pixels().astype(int) - np.asarray(shrunk)).max() > 10
    assert verify(out, sample=None).ok


def test_a_set_of_version_0_1_0_is_built_again_as_it_was(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its recipe does not say how pictures were read, so profiles are left aside as it did."""
    recipe = tmp_path / "old.json"
    fgbg("build", *folders, tmp_path / "new", *SMALL)
    made = pinned_of(tmp_path / "new")
    old = replace(made, backgrounds=tuple(replace(e, intake=1) for e in made.backgrounds))
    assert old.fingerprint != made.fingerprint
    assert "intake" not in old.to_json()
    recipe.write_text(old.to_json())
    fgbg("build", *folders, tmp_path / "again", "--recipe", recipe)
    assert pinned_of(tmp_path / "again").fingerprint == old.fingerprint
    _, wide = read_sources(tmp_path / "again" / "backgrounds" / "train-00000-of-00001.parquet")
    shrunk = scene(1, 40, 40).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(wide.pixels(), shrunk)
    fgbg("build", *folders, tmp_path / "again", *SMALL)  # finished, and so left as it is
    assert pinned_of(tmp_path / "again").fingerprint == old.fingerprint


def test_a_copy_with_other_accents_and_names_makes_the_same_set(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    fgbg("build", *folders, tmp_path / "out", *SMALL)
    for folder in folders:
        for path in list(folder.iterdir()):
            path.rename(folder / unicodedata.normalize("NFD", path.name))
    first = next(path for path in folders[1].iterdir() if path.stem.endswith("0"))
    first.rename(folders[1] / "renamed.png")
    recipe = tmp_path / "out" / "recipe.json"
    fgbg("build", *folders, tmp_path / "again", "--recipe", recipe)
    assert pinned_of(tmp_path / "again").fingerprint == pinned_of(tmp_path / "out").fingerprint


def test_an_extension_knows_pictures_under_other_names(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fgbg("build", *folders, out, *SMALL)
    before = pinned_of(out)
    (folders[0] / "Ä0.png").rename(folders[0] / "other.png")
    shutil.copy(folders[1] / "é0.png", folders[1] / "copy.png")
    told = fgbg("extend", *folders, out).stderr
    assert "copy.png is not added: it is é0 of the set" in told
    assert pinned_of(out).fingerprint == before.fingerprint
    (folders[1] / "new.png").write_bytes(encoded(scene(7, 40, 40), "PNG"))
    fgbg("extend", *folders, out)
    assert [entry.id for entry in pinned_of(out).backgrounds] == ["é0", "é1", "new"]
    assert verify(out, sample=None).ok


def test_folders_that_overlap_are_refused_or_left_out(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    foregrounds, backgrounds = folders
    inside = shutil.copytree(foregrounds, backgrounds / "cut")
    told = fgbg("build", inside, backgrounds, tmp_path / "out", *SMALL).stderr
    assert "bg: ignored (the other source folder): cut" in told
    assert len(pinned_of(tmp_path / "out").backgrounds) == 2
    shutil.copytree(tmp_path / "out", backgrounds / "set")
    told = fgbg("build", inside, backgrounds, tmp_path / "out2", *SMALL).stderr
    assert "bg: ignored (a finished set): set" in told
    for paths in ((foregrounds, backgrounds, backgrounds / "new"), (backgrounds, backgrounds, "x")):
        refused = fgbg("build", *paths, *SMALL, code=2)
        assert "Error: " in refused.stderr
        assert not (backgrounds / "new").exists()
        assert not list(backgrounds.glob(".new*"))
