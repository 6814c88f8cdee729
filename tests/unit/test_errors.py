"""builder/errors: the exact sentences, the exit codes, and errors that travel between processes."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from builder import errors
from builder.errors import (
    BadSourcesError,
    BuildFailedError,
    CardError,
    CutoutError,
    CutoutModelError,
    DepthModelError,
    FgbgError,
    NewerVersionError,
    NotABuildError,
    OutputError,
    PublishError,
    PublishFailedError,
    RecipeError,
    RecipeMismatchError,
    TrainingError,
    UnfinishedError,
    is_hopeless,
    summarized,
)

ONE_OF_EACH = [
    BadSourcesError([("fg/a.png", "is empty (0 bytes)")]),
    BuildFailedError({"train-00000-of-00002": "OSError: gone"}, 1, "fgbg build --out x"),
    CardError("no YAML"),
    CutoutError([("a.jpg", "shows nothing")], "cutouts", 3),
    CutoutModelError("no weights"),
    DepthModelError("no weights"),
    TrainingError("no depth column"),
    NewerVersionError.of("out/recipe.json", "format 2"),
    NotABuildError("not a build"),
    OutputError("cannot be written"),
    PublishError("forbidden"),
    PublishFailedError("no connection"),
    RecipeError("size is 1"),
    RecipeMismatchError(Path("out"), ["seed is 0, asked for is 1"]),
    UnfinishedError("out", ["train-00001-of-00002"], "fgbg build fg bg out"),
]


def test_one_bad_source_is_told_in_the_singular_with_the_next_step() -> None:
    assert str(BadSourcesError([("fg/a.png", "is empty (0 bytes)")])) == (
        "1 source cannot be used:\n"
        "  fg/a.png: is empty (0 bytes)\n"
        "Repair or remove these files, or go on without them with --skip-bad (skip_bad=True)."
    )


def test_several_bad_sources_are_listed_together_in_order() -> None:
    error = BadSourcesError([("fg/b.png", "is empty"), ("bg/a.jpg", "is not an image")])
    assert str(error).splitlines()[:3] == [
        "2 sources cannot be used:",
        "  fg/b.png: is empty",
        "  bg/a.jpg: is not an image",
    ]


def test_of_many_files_with_one_reason_some_are_listed_and_the_rest_is_counted() -> None:
    sounds = [(f"fg/{number:03}.ogg", "is not an image") for number in range(321)]
    problems = [*sounds[:200], ("fg/cat.png", "is empty"), *sounds[200:]]
    error = BadSourcesError(problems)
    assert error.problems == problems
    assert str(error).splitlines()[:-1] == [
        "322 sources cannot be used:",
        *(f"  fg/{number:03}.ogg: is not an image" for number in range(20)),
        "  fg/cat.png: is empty",
        "  301 more files: is not an image",
    ]
    assert summarized(sounds[:21])[-1] == ("1 more file", "is not an image")


def test_what_to_do_about_photographs_is_said_once() -> None:
    refused = [("a.jpg", "is grey (5%); try another"), ("b.jpg", "is grey (7%); try another")]
    said = str(CutoutError([*refused, ("c.jpg", "shows nothing")], "cutouts", 1))
    assert said.splitlines()[1:4] == [
        "  a.jpg is grey (5%); try another.",
        "  b.jpg is grey (7%).",
        "  c.jpg shows nothing.",
    ]
    assert "1 other is cut out in cutouts." in said


def test_an_unfinished_set_names_what_is_missing_and_what_makes_it() -> None:
    error = UnfinishedError("out", [f"train-{i:05d}-of-00020" for i in range(12)], "fgbg build x")
    listed = ", ".join(f"train-{i:05d}-of-00020" for i in range(10))
    assert str(error) == (
        f"out cannot be finished: 12 shards are missing or damaged: {listed} and 2 more.\n"
        "To make what is missing, and finish: fgbg build x"
    )


def test_a_mismatch_names_the_folder_the_differences_and_the_ways_out() -> None:
    assert str(RecipeMismatchError(Path("out"), ["seed is 0, asked for is 1", "x"])) == (
        "out holds a set made differently:\n"
        "  seed is 0, asked for is 1\n"
        "  x\n"
        "Choose another output folder, repeat the earlier recipe with --recipe, add new pictures "
        "to a finished set with fgbg extend, or delete the folder to start again."
    )


@pytest.mark.parametrize(
    ("failed", "head"),
    [({"a": "x"}, "1 shard failed, 7 finished and kept:"),
     ({"a": "x", "b": "y"}, "2 shards failed, 7 finished and kept:")],
)  # fmt: skip
def test_a_failed_build_counts_names_and_says_how_to_resume(
    failed: dict[str, str], head: str
) -> None:
    lines = [f"  {shard}: {cause}" for shard, cause in failed.items()]
    error = BuildFailedError(failed, 7, "fgbg build fg bg out")
    assert str(error).splitlines() == [head, *lines, "To resume: fgbg build fg bg out"]


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_errors_survive_the_way_back_from_a_worker_process(error: FgbgError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_exit_codes_tell_wrong_input_from_failed_work() -> None:
    codes = {type(error).__name__: error.exit_code for error in ONE_OF_EACH}
    assert {name for name, code in codes.items() if code == 1} == {
        "OutputError",
        "BuildFailedError",
        "PublishFailedError",
        "UnfinishedError",
    }
    assert set(codes.values()) == {1, 2}


def test_the_module_docstring_draws_every_error() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, FgbgError)]
    assert len(classes) == len(ONE_OF_EACH) + 1
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")


def test_a_failed_write_tells_path_cause_and_remedy_however_it_is_wrapped(tmp_path: Path) -> None:
    out = tmp_path / "set"
    hidden = tmp_path / ".set.fgbg" / "shards" / ".x.tmp"
    for number, remedy in (
        (errno.EDQUOT, "make room there, or have the quota raised"),
        (errno.EPERM, "allow writing there"),
    ):
        cause = OSError(number, os.strerror(number), str(hidden))
        wrapped = OSError("Cannot find data file.")
        wrapped.__context__ = cause  # as `datasets` raises it, from None
        for error in (cause, wrapped):
            assert is_hopeless(error)
            assert str(OutputError.of(error, out)) == (
                f"{out} cannot be written: {os.strerror(number)}. Finished shards are kept: "
                f"{remedy} and run the same command again."
            )
    elsewhere = OSError(errno.ENOSPC, "x", "/elsewhere/cache")
    assert str(OutputError.of(elsewhere, out)).startswith("/elsewhere/cache cannot be written: No")
    assert not is_hopeless(OSError(errno.EIO, "I/O error"))
    assert not is_hopeless(ValueError("No space left on device"))


def test_of_many_failed_shards_the_first_are_listed() -> None:
    failed = {f"train-{number:05d}-of-00500": "OSError: gone" for number in range(500)}
    error = BuildFailedError(failed, 0, "fgbg build fg bg out")
    lines = str(error).splitlines()
    assert lines[0] == "500 shards failed, 0 finished and kept:"
    assert len(lines) == 23
    assert lines[-2] == "  ... and 480 more"
    assert error.failed == failed
