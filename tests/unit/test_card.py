"""The card: blocks that a build decides are written anew, and what a person wrote stays."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.build.options import BuildOptions
from builder.errors import CardError, NotABuildError
from builder.layout import BACKGROUNDS_FILE
from builder.release.card import blocks_of, card_keys, card_text, records_config, write_card
from builder.sources.licenses import check_license_id
from fgbg_dataset import FgbgDataset

BLOCKS = ("summary", "use", "columns", "splits", "statistics", "making", "credits")


@pytest.fixture(scope="module")
def out(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    builder = FgbgDataset(*sources, placements=1, size=32, foreground_size=16, depth_model="none",
                          cache_dir=str(folder / "cache"))  # fmt: skip
    builder.download_and_prepare(folder / "blobs", file_format="parquet", num_proc=1,
                                 options=BuildOptions(progress=False))  # fmt: skip
    return folder / "blobs"


@pytest.fixture(scope="module")
def fresh(out: Path) -> str:
    return (out / "README.md").read_text()


def test_an_untouched_card_is_written_again_as_it_is(out: Path, fresh: str) -> None:
    assert card_text(out) == fresh
    assert card_text(out, old="") == fresh
    assert [m[1] for m in re.finditer(r"<!-- fgbg:(\w+) begin", fresh)] == list(BLOCKS)
    assert re.findall(r"<!-- fgbg:(\w+) end -->", fresh) == list(BLOCKS)


@settings(max_examples=25)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\x00<"), max_size=60),
        min_size=len(BLOCKS),
        max_size=len(BLOCKS),
    )
)
def test_text_between_the_blocks_stays_to_the_letter(
    out: Path, fresh: str, texts: list[str]
) -> None:
    edited = fresh
    for name, text in zip(BLOCKS, texts, strict=True):
        mark = f"<!-- fgbg:{name} end -->"
        edited = edited.replace(mark, f"{mark}\nperson {name}: {text}.\n")
    edited = edited.replace("## Splits", "## Other splits").replace("| `train` |", "| `tain` |")
    again = card_text(out, old=edited)
    for name, text in zip(BLOCKS, texts, strict=True):
        assert f"<!-- fgbg:{name} end -->\nperson {name}: {text}.\n" in again
    assert "## Other splits" not in again
    assert "| `tain` |" not in again
    assert card_text(out, old=again) == again


def test_blocks_that_were_deleted_come_back_at_the_end(out: Path, fresh: str) -> None:
    start, stop = fresh.index("<!-- fgbg:use begin"), fresh.index("<!-- fgbg:columns begin")
    again = card_text(out, old=fresh[:start] + fresh[stop:])
    assert again.endswith("<!-- fgbg:use end -->\n")
    assert again.index("## Limits") < again.index("## Use")


def test_a_mark_that_lost_its_partner_swallows_nothing(out: Path, fresh: str) -> None:
    broken = fresh.replace("<!-- fgbg:use end -->", "My own words.")
    again = card_text(out, old=broken)
    assert "My own words." in again
    for name in BLOCKS:
        assert f"<!-- fgbg:{name} end -->" in again
    assert "My own words." in card_text(out, old=again)


def test_keys_and_configs_of_others_stay(out: Path, fresh: str) -> None:
    keys = card_keys(fresh)
    keys |= {"license": "mit", "language": ["la"], "pretty_name": "Blöbs", "size_categories": "x"}
    keys["configs"] += [
        {"config_name": "extra", "data_files": "extra/*.csv", "default": True},
        {"config_name": "old", "data_files": [{"split": "train", "path": ["data/old-*"]}]},
    ]
    keys["dataset_info"] += [{"config_name": "extra", "features": []}, {"config_name": "old"}]
    text = fresh.split("\n---\n", 1)[1]
    old = f"---\n{yaml.safe_dump(keys, allow_unicode=True)}---\n{text}"
    new = card_keys(card_text(out, old=old))
    assert (new["license"], new["language"], new["pretty_name"]) == ("mit", ["la"], "Blöbs")
    assert new["size_categories"] == ["n<1K"]
    names = [config["config_name"] for config in new["configs"]]
    assert names == ["default", "foregrounds", "backgrounds", "preview", "extra", "old"]
    assert [config.get("default") for config in new["configs"]] == [True, *[None] * 5]
    assert sorted(info["config_name"] for info in new["dataset_info"]) == [
        "backgrounds", "default", "extra", "foregrounds", "old", "preview",
    ]  # fmt: skip


def test_location_and_config_are_remembered(out: Path) -> None:
    text = card_text(out, location="ann/blobs", config="small", title="Blobs", license="cc0-1.0")
    assert records_config(text) == "small"
    assert 'load_dataset("ann/blobs", split="train")' in text
    assert "\n# Blobs\n" in text
    assert '| `small` | `load_dataset("ann/blobs")`' in text
    assert card_text(out, old=text) == text
    renamed = card_text(out, old=text, config="default")
    assert [c["config_name"] for c in card_keys(renamed)["configs"]].count("small") == 0


def test_windows_line_ends_and_no_yaml_at_all(out: Path, fresh: str) -> None:
    assert card_text(out, old=fresh.replace("\n", "\r\n")) == fresh
    assert card_text(out, old="\ufeff" + fresh) == fresh
    text = card_text(out, old="Just words.\n")
    assert "Just words.\n\n<!-- fgbg:summary begin" in text
    assert card_keys(text) == card_keys(fresh)


@pytest.mark.parametrize(
    "yaml_text",
    [
        "a: [", "- a", "a: b: c", "a: 2020-13-45", "a: !!int abc", "a: &x [*x]",
        "a: &x b\nlicense: *x", "license: mit\nlicense: other", "a: [{b: 1, b: 1}]",
        "a: " + "[" * 60 + "]" * 60, "a: " + "{b: " * 9999,
    ],
)  # fmt: skip
def test_metadata_that_is_not_plain_yaml_is_refused(out: Path, yaml_text: str) -> None:
    with pytest.raises(CardError, match=r"the metadata at the top of README\.md "):
        card_text(out, old=f"---\n{yaml_text}\n---\ntext\n")


@pytest.mark.parametrize(
    "yaml_text",
    [
        "configs: default", "configs: [data/x]", "dataset_info: x", "on: true", "self: a",
        "a: !!omap [b: c]", "license: |\n  a\n  --- b\n", "configs: {config_name: [a]}",
    ],
)  # fmt: skip
def test_odd_metadata_is_kept_or_left_out_without_a_traceback(
    out: Path, fresh: str, yaml_text: str
) -> None:
    new = card_text(out, old=f"---\n{yaml_text}\n---\nMy text.\n")
    assert "My text." in new
    assert [c["config_name"] for c in card_keys(new)["configs"]][:4] == [
        "default", "foregrounds", "backgrounds", "preview",
    ]  # fmt: skip
    assert card_text(out, old=new) == new


def test_a_card_that_is_not_text_is_refused(out: Path, fresh: str) -> None:
    path = out / "README.md"
    for content in (b"Gr\xfc\xdfe", b"x" * (2**20 + 1)):
        path.write_bytes(content)
        with pytest.raises(CardError, match="cannot be read"):
            card_text(out)
    path.write_text(fresh)


def test_prepared_sources_that_are_none_are_named(out: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(out, tmp_path / "set")
    (damaged / BACKGROUNDS_FILE).write_bytes(b"\xe9")
    with pytest.raises(NotABuildError, match=r"backgrounds/.* cannot be read"):
        write_card(damaged)


def test_a_config_of_ones_own_over_our_data_stays_and_is_not_taken_for_ours(
    out: Path, fresh: str
) -> None:
    mine = [
        {"config_name": "mini", "data_files": [{"split": "train", "path": "data/train-00000*"}]},
        {"config_name": "all", "data_files": "data/*"},
        {"config_name": "seen", "data_files": [{"split": "train", "path": "data/train-*"}]},
    ]
    keys = card_keys(fresh)
    keys["configs"] = mine + keys["configs"]
    new = card_text(out, old=f"---\n{yaml.safe_dump(keys)}---\n{fresh.split('---', 2)[2]}")
    configs = card_keys(new)["configs"]
    assert configs[0] == {**card_keys(fresh)["configs"][0]}
    assert configs[4:] == mine
    assert records_config(new) == "default"


def test_prose_with_code_marks_and_other_sets_stays(out: Path, fresh: str) -> None:
    prose = (
        'Compare `load_dataset("imagenet-1k")`.\n\n```python\n# comment\nx = 1\n```\n\n'
        "What is between `<!-- fgbg:use begin -->` and `<!-- fgbg:use end -->` is not mine.\n"
    )
    old = fresh.replace("# blobs\n", f"{prose}\n# blobs\n")
    new = card_text(out, old=old, title="Round blobs")
    assert prose in new
    assert "\n# Round blobs\n" in new
    assert "\n# blobs\n" not in new
    assert new.count("imagenet-1k") == 1
    assert 'load_dataset("blobs", split="train")' in new


def test_a_folder_of_any_name_makes_neither_code_nor_markup(out: Path, tmp_path: Path) -> None:
    for name in ('x"); import os; ("', "<img src=x>", "a`b|c*d_e", "![x](y)", "-->"):
        text = card_text(out, old="", name=name)
        (line,) = [line for line in text.splitlines() if line.startswith("ds = ")]
        call = ast.parse(line, mode="exec").body[0].value  # type: ignore[attr-defined]
        assert call.func.id == "load_dataset"
        assert call.args[0].value == name
        (heading,) = re.findall(r"^# (.+)$", text.split("<!-- fgbg:summary")[0], re.MULTILINE)
        assert not re.search(r"(?<!\\)[<>`*_\[\]|]", heading)
        assert card_text(out, old=text) == text


def test_write_card_keeps_an_own_heading(out: Path, fresh: str) -> None:
    path = out / "README.md"
    path.write_text(fresh.replace("# blobs", "# Blobs of Ann"))
    write_card(out)
    assert "\n# Blobs of Ann\n" in path.read_text()
    path.write_text(fresh)


@pytest.mark.parametrize("text", ["foo bar", "CC BY 4.0", "", "mit\n", "-mit", "<b>", "x: y"])
def test_a_license_that_is_no_identifier_is_refused_before_and_after_a_build(
    out: Path, text: str
) -> None:
    before = (out / "README.md").read_bytes()
    with pytest.raises(CardError, match="is no license identifier of the Hub"):
        BuildOptions(license=text)
    if text:  # an empty one keeps what the card says
        with pytest.raises(CardError, match="is no license identifier of the Hub"):
            write_card(out, license=text)
    assert (out / "README.md").read_bytes() == before


@pytest.mark.parametrize("text", ["mit", "cc-by-sa-4.0", "cc0-1.0", "c-uda", "lgpl-lr"])
def test_identifiers_of_the_hub_are_licenses(text: str) -> None:
    check_license_id(text)


@pytest.mark.parametrize(
    "head",
    [
        "```\n```python\n# comment\n```\n\n# Blobs\n", "```x``` is code\n\n# Blobs\n",
        "~~~~\n~~~\n# comment\n~~~~\n\n# Blobs\n", "<!--\n# comment\n-->\n\n# Blobs\n",
        "<pre>\n# comment\n</pre>\n\n# Blobs\n", "Blobs\n=====\n",
        "  # Blobs #\n", "#\tBlobs\n", "",
    ],
)  # fmt: skip
def test_a_title_replaces_the_heading_that_markdown_shows(out: Path, fresh: str, head: str) -> None:
    new = card_text(out, old=fresh.replace("# blobs\n", head), title="Round blobs")
    assert re.findall(r"^#.*blobs.*$|^=+$", new, re.MULTILINE | re.IGNORECASE) == ["# Round blobs"]
    assert new.count("# comment") == head.count("# comment")


def test_a_title_is_one_line(out: Path, fresh: str) -> None:
    new = card_text(out, old=fresh, title="a\n<!-- fgbg:use begin -->")
    assert "\n# a\\n<!-- fgbg:use begin -->\n" in new
    assert [*blocks_of(new)] == list(BLOCKS)


def test_marks_that_a_person_shows_in_code_are_text(out: Path, fresh: str) -> None:
    shown = "```markdown\n<!-- fgbg:use begin -->\nours\n<!-- fgbg:use end -->\n```\n"
    for old in (f"{fresh}\n{shown}", fresh.replace("# blobs\n", f"# blobs\n\n{shown}")):
        assert card_text(out, old=old) == old


def test_a_fence_that_is_not_closed_swallows_no_mark_for_good(out: Path, fresh: str) -> None:
    new = card_text(out, old=fresh.replace("# blobs\n", "# blobs\n\n```\n"))
    assert card_text(out, old=new) == new
    assert sorted(blocks_of(new)) == sorted(BLOCKS)


def test_yaml_of_a_person_stays_as_it_was_written(out: Path, fresh: str) -> None:
    """YAML 1.1 reads Norwegian as false and a version as a number."""
    lines = "language: no\narxiv: 2401.10\nversion: 1.10\n'on': yes\ntime: 12:30:45\nbig: 1_000\n"
    old = fresh.replace("---\n\n# blobs", f"{lines}---\n\n# blobs")
    assert card_text(out, old=old) == old


@pytest.mark.parametrize("name", ["default", "foregrounds"])
def test_a_config_of_our_name_and_other_files_is_not_lost(out: Path, name: str) -> None:
    old = f"---\nconfigs:\n- config_name: {name}\n  data_files: mine/*.csv\n---\n\n# Mine\n"
    with pytest.raises(CardError, match=f"has a config '{name}' of files that are not of this set"):
        card_text(out, old=old)
    if name == "default":
        configs = card_keys(card_text(out, old=old, config="blobs"))["configs"]
        assert configs[0]["config_name"] == "blobs"
        assert configs[-1] == {"config_name": "default", "data_files": "mine/*.csv"}


def test_a_card_that_could_not_be_read_again_is_not_written(out: Path, fresh: str) -> None:
    path = out / "README.md"
    old = fresh.replace("## Use", "").ljust(2**20 - 1, "w")
    path.write_text(old)
    with pytest.raises(CardError, match="at most 1,048,576 are read; shorten"):
        write_card(out)
    assert path.read_text() == old
    path.write_text(fresh)
