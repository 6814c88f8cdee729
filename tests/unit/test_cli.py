"""Help, defaults, exit codes and what is printed, without a build."""

from __future__ import annotations

import errno
import re
import subprocess

import click
import cloup
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from builder.cli import main
from builder.console import Command, Group, duration, python_text, quoted, size, table
from builder.errors import BadSourcesError, OutputError
from builder.recipe import Recipe
from builder.typed import checked_fields

ORDER = ("cutout", "estimate", "build", "extend", "finish", "status", "verify", "card", "preview",
         "push", "export", "convert-depth", "finetune")  # fmt: skip


def run(*arguments: object, **options: object):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="fgbg", **options)


def test_help_lists_the_commands_in_the_order_of_work_and_cuts_no_line():
    text = run("--help", terminal_width=80).output
    found = re.findall(r"^  ([a-z-]+) +[A-Z].*\.$", text, re.MULTILINE)
    assert tuple(name for name in found if name in ORDER) == ORDER
    assert "..." not in text.split("Make a set:")[1]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", ["build", "estimate", "extend", "push", "finetune"])
def test_options_stand_in_groups(command):
    groups = [group for group in main.commands[command].option_groups if group.options]
    assert len(groups) >= 3
    grouped = {option.name for group in groups for option in group.options}
    hidden = {p.name for p in main.commands[command].params if getattr(p, "hidden", False)}
    options = {p.name for p in main.commands[command].params if isinstance(p, click.Option)}
    assert options - grouped - hidden - {"help"} == set()


def test_click_shows_the_defaults_of_the_recipe():
    text = " ".join(run("build", "--help").output.split()).replace("- ", "-")  # broken lines
    for field in checked_fields(Recipe):
        value = getattr(Recipe(), field.name)
        if isinstance(value, bool):
            name = field.name.replace("_", "-")
            value = name if value else f"no-{name}"
        if type(None) not in field.types:
            flag = f"--{field.name.replace('_', '-')}"
            assert re.search(rf"{flag} [^[]*(\[[^]]*\] [^[]*)?\[default: \(?{value}[;\]]", text), (
                flag
            )


def test_plan_is_estimate():
    assert run("plan", "--help").output.replace("fgbg plan", "fgbg estimate") == (
        run("estimate", "--help").output
    )


def test_estimate_keeps_its_columns_apart_and_refuses_what_build_refuses():
    done = run("estimate", "--demo", "--depth-model", "none", "--placements", 6_000_000)
    assert done.exit_code == 0
    lines = [re.split(" {2,}", line) for line in done.output.splitlines()]
    assert lines[0] == ["split", "records", "files"]
    assert lines[5] == ["total", "1,728,000,000", "1,728,000"]
    assert [line[0] for line in lines[7:11]] == ["column", "fg_bg", "mask", "total"]
    assert {len(line) for line in lines[:6] + lines[7:10]} == {3}

    many = ("--demo", "--depth-model", "none", "--placements", 10_001, "--shard-records", 1)
    refused = run("estimate", *many)
    assert refused.exit_code == 2
    assert "raise shard_records" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("build", "a", "b"), "expected FOREGROUNDS BACKGROUNDS OUT, got 2 paths."),
        (("build", "--demo", "a", "b"), "expected OUT with --demo, got 2 paths."),
        (("estimate", "a"), "expected FOREGROUNDS BACKGROUNDS, got 1 path."),
        (("build", "a", "b", "c", "--address", "x"), "are for --engine ray."),
        (("build", "--extend", "--finish", "c"), "give neither --recipe nor --finish."),
        (("build", "--finish", "c", "--seed", "1"), "without --seed."),
        (("verify", "x", "--all", "--sample", "3"), "give either --all or --sample."),
        (("extend", "a", "b", "c", "--seed", "1"), "No such option"),
        (("finish",), "Missing argument 'OUT'"),
    ],
)
def test_wrong_usage_ends_with_2_before_any_work(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@cloup.group(cls=Group)
def failing() -> None:
    """Fails as it is told to."""


@failing.command(cls=Command)
@cloup.argument("out")
@cloup.argument("kind")
def fail(out: str, kind: str) -> None:
    raise {
        "named": OSError(errno.EACCES, "Permission denied", "/a/file"),
        "bytes": OSError(errno.EACCES, "Permission denied", b"/a/\xe9"),
        "unnamed": OSError(errno.ENOSPC, "No space left on device"),
        "bad": BadSourcesError([("caf\udce9.png", "is \x1b[2Jempty")]),
        "ours": OutputError("it failed"),
        "stopped": KeyboardInterrupt(),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        ("named", 1, "Error: /a/file: Permission denied\n"),
        ("bytes", 1, "Error: /a/\\udce9: Permission denied\n"),
        ("unnamed", 1, "Error: the/set: No space left on device\n"),
        ("bad", 2, "  caf\\udce9.png: is \\x1b[2Jempty\n"),
        ("ours", 1, "Error: it failed\n"),
        ("stopped", 130, "Error: interrupted.\n"),
    ],
)
def test_an_error_is_printed_once_with_its_path_and_exit_code(kind, code, text):
    done = CliRunner().invoke(failing, ["fail", "the/set", kind])
    assert done.exit_code == code
    assert text in done.stderr
    assert done.stderr.count("Error") == 1
    assert done.stdout == ""


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1
) | st.sampled_from(
    [
        "it's",
        'a "b" `c` $(d) $E',
        "caf\udce9",
        "back\\slash",
        "new\nline",
        "tab\t",
        "[a]*?{b}",
        "e\u0301",
    ]
)


@given(st.lists(NAMES, min_size=30, max_size=30))
def test_a_quoted_name_is_the_same_name_in_a_shell(names):
    line = " ".join(map(quoted, names))
    assert "\n" not in line
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [
        name.encode(errors="surrogateescape") for name in names
    ]


@given(NAMES)
def test_a_name_in_python_is_the_same_name(name):
    assert eval(python_text(name)) == name
    assert python_text(name).isprintable()


@given(st.lists(st.lists(st.text("ab1,", min_size=1), min_size=3, max_size=3), min_size=1))
def test_the_columns_of_a_table_never_touch(rows):
    lines = table(rows)
    assert [line.split() for line in lines] == rows
    assert len({len(line) for line in lines}) == 1


def test_sizes_and_times_are_read_at_a_glance():
    assert [size(n) for n in (0, 999, 1000, 999_600, 48.9e9, 2e13, 1.5e16)] == (
        ["0 B", "999 B", "1 kB", "1 MB", "48.9 GB", "20 TB", "1.5e+04 TB"]
    )
    assert [duration(s) for s in (0.4, 119, 120, 7200, 2e5)] == (
        ["0 seconds", "119 seconds", "2.0 minutes", "2.0 hours", "2.3 days"]
    )
