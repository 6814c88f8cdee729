"""Every error a user can meet; each writes its own sentence and names the next step.

FgbgError                 exit code 2: the input is wrong, nothing was done
├── BadSourcesError       image files or credits that cannot be used, all of them at once
├── CutoutError           photographs that no cut-out can be made of; the others are made
├── CutoutModelError      the network for cut-outs cannot be loaded or used
├── RecipeError           a recipe field or recipe file that makes no sense
├── NewerVersionError     a file of a set that only a newer version of fgbg-dataset can read
├── RecipeMismatchError   OUT holds something made from another recipe
├── OutputError           OUT cannot be used or written (exit code 1)
├── NotABuildError        the folder is not a finished build
├── UnfinishedError       shards are missing that other builds were to make (exit code 1)
├── DepthModelError       the depth model cannot be loaded or used
├── TrainingError         a model, dataset, option or checkpoint that cannot be trained with
├── CardError             a README.md whose metadata cannot be read
├── PublishError          a set that may not, or cannot, be published so
├── PublishFailedError    the Hub could not be reached or kept refusing (exit code 1)
└── BuildFailedError      some shards failed; the rest is kept (exit code 1)
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# What to do about a write that fails, and would for every other file, by `OSError.errno`.
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "allow writing there",
    errno.EPERM: "allow writing there",
}


_MOST_SHARDS = 20  # listed by name
_MOST_FILES = 20  # listed by name for one and the same reason


def summarized(problems: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return files and reasons for people: of many files with one reason, some and their number.

    A folder of pictures may hold a sound file beside each; a thousand lines about them would hide
    the one picture that is damaged.
    """
    n_files = Counter(reason for _, reason in problems)
    shown: Counter[str] = Counter()
    lines = []
    for name, reason in problems:
        shown[reason] += 1
        if shown[reason] <= _MOST_FILES:
            lines.append((name, reason))
    more = {reason: n - _MOST_FILES for reason, n in n_files.items() if n > _MOST_FILES}
    return lines + [(f"{n} more {_files(n)}", reason) for reason, n in more.items()]


def _files(n: int) -> str:
    return "file" if n == 1 else "files"


class FgbgError(Exception):
    """Base of all errors that a user sees as one clear text, without a traceback."""

    exit_code = 2


class BadSourcesError(FgbgError):
    """Source files that cannot be used, listed together before any work starts.

    Args:
        problems: (file, reason) of each; the text summarizes where one reason has many files.
        skippable: whether the others can be used without them; credits cannot be left out.
    """

    def __init__(self, problems: Sequence[tuple[str, str]], *, skippable: bool = True) -> None:
        self.problems, self.skippable = list(problems), skippable
        files = "1 source" if len(problems) == 1 else f"{len(problems)} sources"
        lines = "\n".join(f"  {name}: {reason}" for name, reason in summarized(problems))
        remedy = (
            "Repair or remove these files, or go on without them with --skip-bad (skip_bad=True)."
            if skippable
            else "Repair them first: credits are never left out, or licenses would be lost."
        )
        super().__init__(f"{files} cannot be used:\n{lines}\n{remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), skippable=self.skippable), (self.problems,)


class CutoutError(FgbgError):
    """Photographs that no cut-out can be made of, listed together; all others are cut out.

    Args:
        refused: (photograph, reason) of each.
        out: the folder of cut-outs.
        n_made: how many it holds of the others.
    """

    def __init__(self, refused: Sequence[tuple[str, str]], out: str, n_made: int) -> None:
        self.refused, self.out, self.n_made = list(refused), out, n_made
        count = "1 photograph is" if len(refused) == 1 else f"{len(refused)} photographs are"
        others = "1 other is" if n_made == 1 else f"{n_made} others are"
        super().__init__(
            f"{count} refused:\n{self._lines()}\n{others} cut out in {out}. Mend these and run the "
            "same command again, or leave them out with --skip-bad (skip_bad=True)."
        )

    def _lines(self) -> str:
        """Return a line for each; what to do is said where it comes up first."""
        lines, said = [], set()
        for name, reason in summarized(self.refused):
            what, _, advice = reason.partition("; ")
            lines.append(f"  {name} {what if advice and advice in said else reason}.")
            said.add(advice)
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.refused, self.out, self.n_made)


class CutoutModelError(FgbgError):
    """The network that is to cut photographs out cannot be loaded or used."""


class RecipeError(FgbgError, ValueError):
    """A recipe field or a recipe file that makes no sense."""


class NewerVersionError(FgbgError):
    """A later version of fgbg-dataset made the set, or began the build."""

    @classmethod
    def of(cls, where: object, what: str) -> NewerVersionError:
        """Return the error about a file; `what` shows that it is newer."""
        return cls(
            f"{where} was made by a newer fgbg-dataset ({what}); upgrade this one: "
            "pip install -U fgbg-dataset."
        )


class RecipeMismatchError(FgbgError):
    """The output folder holds (part of) a set made from another recipe or other sources."""

    def __init__(self, out: object, differences: Sequence[str]) -> None:
        self.out, self.differences = str(out), list(differences)
        lines = "\n".join(f"  {difference}" for difference in self.differences)
        super().__init__(
            f"{out} holds a set made differently:\n{lines}\n"
            "Choose another output folder, repeat the earlier recipe with --recipe, add new "
            "pictures to a finished set with fgbg extend, or delete the folder to start again."
        )

    def __reduce__(self) -> tuple[type[RecipeMismatchError], tuple[str, list[str]]]:
        return type(self), (self.out, self.differences)


class OutputError(FgbgError):
    """The output folder cannot be used or written."""

    exit_code = 1

    @classmethod
    def of(cls, error: OSError, out: object) -> OutputError:
        """Return what a failed write means: which path, what is wrong, what to do.

        Args:
            out: what is being built; the text names it unless the error names another place.
        """
        if not isinstance(out, Path):  # a store says in its error what it means
            return cls(
                f"{error.filename or out} cannot be written: {error.strerror or error}. Finished "
                "shards are kept: fix the cause and run the same command again."
            )
        found = _first_cause(error)
        number = found.errno
        if number is None and str(found).startswith("Not enough disk space"):
            number = errno.ENOSPC  # `datasets` measures the room itself, and words it so
        reason = os.strerror(number) if number in _REMEDIES else found.strerror or str(found)
        path = Path(os.fsdecode(found.filename)) if found.filename else out
        if path.is_relative_to(out.parent):
            path = out  # people know OUT, and not the hidden files beside it
        remedy = _REMEDIES.get(number or 0, "fix the cause")
        return cls(
            f"{path} cannot be written: {reason}. Finished shards are kept: {remedy} and run the "
            "same command again."
        )


def is_hopeless(error: BaseException | None) -> bool:
    """Whether a write failed for a reason that would make every other write fail, too."""
    return isinstance(error, OSError) and _first_cause(error).errno in _REMEDIES


def _first_cause(error: OSError) -> OSError:
    """Return the error whose number says what happened; libraries wrap it in one without."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _REMEDIES:
            return found
        found = found.__cause__ or found.__context__
    return error


class NotABuildError(FgbgError):
    """The folder given is not a finished build."""


class UnfinishedError(FgbgError):
    """A set cannot be put together, because shards of it are missing or damaged."""

    exit_code = 1

    def __init__(self, out: object, missing: Sequence[str], command: str) -> None:
        self.out, self.missing, self.command = str(out), list(missing), command
        count = "1 shard is" if len(missing) == 1 else f"{len(missing)} shards are"
        listed = ", ".join(self.missing[:10])
        if len(missing) > 10:
            listed += f" and {len(missing) - 10} more"
        super().__init__(
            f"{out} cannot be finished: {count} missing or damaged: {listed}.\n"
            f"To make what is missing, and finish: {command}"
        )

    def __reduce__(self) -> tuple[type[UnfinishedError], tuple[str, list[str], str]]:
        return type(self), (self.out, self.missing, self.command)


class DepthModelError(FgbgError):
    """The depth model cannot be found, loaded or used."""


class TrainingError(FgbgError):
    """Fine-tuning cannot begin or go on: an option, a dataset, a checkpoint is wrong."""


class CardError(FgbgError):
    """The metadata at the top of a README.md cannot be read, or may not stand there."""


class PublishError(FgbgError):
    """A set is not published: something about it, its license or the repository forbids it."""


class PublishFailedError(FgbgError):
    """The Hub could not be reached, or kept refusing; the files that were sent are kept."""

    exit_code = 1


class BuildFailedError(FgbgError):
    """Some shards could not be made; every finished shard is kept and a later run resumes."""

    exit_code = 1

    def __init__(self, failed: Mapping[str, str], done: int, resume: str) -> None:
        self.failed, self.done, self.resume = dict(failed), done, resume
        shown = [f"  {shard}: {cause}" for shard, cause in self.failed.items()]
        if len(shown) > _MOST_SHARDS:
            shown[_MOST_SHARDS:] = [f"  ... and {len(shown) - _MOST_SHARDS} more"]
        lines = "\n".join(shown)
        count = "1 shard" if len(self.failed) == 1 else f"{len(self.failed)} shards"
        super().__init__(f"{count} failed, {done} finished and kept:\n{lines}\nTo resume: {resume}")

    def __reduce__(self) -> tuple[type[BuildFailedError], tuple[dict[str, str], int, str]]:
        return type(self), (self.failed, self.done, self.resume)
