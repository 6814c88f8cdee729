"""The README and the card tell of every command, column, option and room."""

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
from builder.schema import COLUMNS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_in_the_readme_and_has_help(command):
    assert re.search(rf"`fgbg {command} ", README)
    assert main.commands[command].help
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


def test_every_recipe_field_is_an_option_of_build_and_plan():
    for command in ("build", "plan"):
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        for field in fields(Recipe):
            assert f"--{field.name.replace('_', '-')}" in result.output


def test_every_column_is_in_the_readme():
    for column in COLUMNS:
        assert f"`{column.name}`" in README


def test_every_room_is_in_the_file_tree():
    tree = README.split("## What is where")[1]
    for path in (ROOT / "builder").iterdir():
        assert path.name in tree or path.name.startswith("__") or path.suffix == ".typed"


def test_files_the_readme_points_to_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_tests_the_page_on_reliability_names_exist():
    page = (ROOT / "docs" / "reliability.md").read_text()
    names = set(re.findall(r"`((?:tests|builder)/[\w/.]+)`", page))
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_python_in_the_readme_parses():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        compile(block, "README.md", "exec")


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
