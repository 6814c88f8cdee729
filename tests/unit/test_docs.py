"""README and docs name every command, column, option and room, and nothing that is not there."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import scale
from builder.cli import main
from builder.recipe import Recipe
from docs import generate

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_TEXT = "\n".join(page.read_text() for page in PAGES)


def in_each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_in_the_readme_and_has_help(command):
    if not main.commands[command].hidden:
        assert re.search(rf"`fgbg {command} ", README)
    assert main.commands[command].help
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


@in_each(generate.PAGES)
def test_what_the_pages_repeat_is_what_the_code_says(page):
    text = page.read_text()
    assert generate.written(text) == text, "run `make docs`"


def test_every_part_that_repeats_the_code_is_on_a_page():
    on_pages = [name for page in generate.PAGES for name in generate.parts_of(page.read_text())]
    assert sorted(on_pages) == sorted(generate.PARTS)


def test_commands_and_options_in_the_pages_exist():
    known = {name: set(command.params) for name, command in main.commands.items()}
    for name, rest in re.findall(r"^(?:\. \S+ && )?fgbg ([a-z-]+)(.*)$", ALL_TEXT, re.MULTILINE):
        assert name in known, name
        flags = {flag for p in known[name] for flag in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[a-z][a-z-]*", rest.split("#")[0])) <= flags, (name, rest)


def test_every_recipe_field_is_an_option_of_build_and_estimate():
    for command in ("build", "estimate", "plan"):
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        for field in fields(Recipe):
            assert f"--{field.name.replace('_', '-')}" in result.output


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 220


@in_each(PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match("https?:", target):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked.read_text()), target


def test_every_page_is_linked_from_the_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README


def test_the_page_on_architecture_names_rooms_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    wings = {room.split(".")[0] for room in generate.ROOMS if "." in room}
    named = set(re.findall(rf"\b(?:{'|'.join(wings)})\.\w+", page))
    assert len(named) > 8
    assert named <= set(generate.ROOMS)
    assert set(re.findall(r"\b(\w+)/ ", page)) <= wings


def test_tests_the_page_on_reliability_names_exist():
    page = (ROOT / "docs" / "reliability.md").read_text()
    names = set(re.findall(r"`((?:tests|builder)/[\w/.]+)`", page))
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []
    tests = {f for path in (ROOT / "tests").rglob("test_*.py")
             for f in re.findall(r"def (test_\w+)", path.read_text())}  # fmt: skip
    for start in re.findall(r"`(test_\w+?)_?(?:\.\.\.)?`", page):
        assert any(test.startswith(start) for test in tests), start


@in_each(PAGES)
def test_python_in_the_pages_parses(page):
    for block in code_blocks(page.read_text(), "python"):
        compile(block, page.name, "exec")


def test_cannot_is_one_word():
    paths = [path for end in ("py", "md", "html", "toml") for path in ROOT.rglob(f"*.{end}")]
    ours = [p for p in paths if not {".venv", "out", "scratch"} & set(p.relative_to(ROOT).parts)]
    assert len(ours) > 100
    two_words = re.compile(r"\bcan\s+not\b", re.IGNORECASE)
    assert [path for path in ours if two_words.search(path.read_text(encoding="utf-8"))] == []


def test_the_tables_of_docs_scale_are_those_of_the_measured_figures():
    page = scale.PAGE.read_text()
    assert scale.with_tables(page, json.loads(scale.MEASURED.read_text())) == page


def test_the_arithmetic_of_scale():
    assert scale.shard_records(400_000) == 1000
    assert scale.shard_records(9_000_001) == 2000
    assert scale.shard_records(10**9) == 200_000
    measured = {
        "records_per_s": {"none": {"local": {"1": 1100.0, "2": 2000.0}}},
        "bytes_per_record": {"none": 20_000},
    }
    assert scale.derived_table(measured)[2:] == [
        "| 4e5 | none | 8 GB | 1,000 | 400 | 20 MB | 4 | 3.33 min | 4 s | 1 s |",
        "| 1e7 | none | 200 GB | 2,000 | 5,000 | 40 MB | 50 | 83.3 min | 100 s | 10 s |",
        "| 1e9 | none | 20 TB | 200,000 | 5,000 | 4 GB | 50 | 5.79 days | 2.78 h | 16.7 min |",
    ]


def test_version_and_usage():
    from builder import __version__

    assert CliRunner().invoke(main, ["--version"]).output == f"fgbg, version {__version__}\n"
