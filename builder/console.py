"""What a terminal gets: help, errors once, results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click
import cloup
from tqdm import tqdm

from builder.errors import FgbgError, OutputError
from builder.untrusted import printable

# The loggers of the product; what they say is printed on stderr, a line each.
_LOGGERS = ("builder", "fgbg_dataset")

# Where a command leaves, in `ctx.meta`, the sentence on how to go on after an interruption.
RESUME = "resume"


class _Terminated(BaseException):
    """SIGTERM."""


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


class Command(cloup.Command):
    """A command whose failed reads and writes are reported with the path they concern."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _logs_printed(logging.WARNING if ctx.params.get("quiet") else logging.INFO):
                return super().invoke(ctx)
        except OSError as error:
            raise OutputError(_failure(error, ctx.params)) from error


def _failure(error: OSError, parameters: dict[str, Any]) -> str:
    """Return one sentence about a failed read or write."""
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same and says less
    except OSError:
        return "the current folder is gone; change to one that exists and try again."
    paths = parameters.get("paths") or ()
    out = parameters.get("out") or parameters.get("target") or (paths[-1] if paths else None)
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{path or out or 'input or output'}: {error.strerror or error}"


class Group(cloup.Group):
    """Turns our errors into one clear text on stderr and their exit code, in this one place."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line."""
        _open_missing_streams()
        for stream in (sys.stdout, sys.stderr):
            # A name that the terminal's encoding cannot say must not end a finished build.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of work, as they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and end with the exit code of its error."""
        # As an exception, so that worker processes are ended and leases given back.
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except FgbgError as error:
            message, code = str(error), error.exit_code
        except KeyboardInterrupt:
            message, code = f"interrupted. {ctx.meta.get(RESUME, '')}".rstrip(), 130
        except _Terminated:
            message, code = f"terminated. {ctx.meta.get(RESUME, '')}".rstrip(), 143
        finally:
            signal.signal(signal.SIGTERM, before)
        _echo_error(click.style("Error: ", fg="red") + printable_lines(message))
        return ctx.exit(code)


def _open_missing_streams() -> None:
    """Open /dev/null for standard streams that are closed.

    A daemon may start us without them. The next file opened would then take their number, and
    what some library writes to stderr would end up in it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


class _Lines(logging.Handler):
    """Prints what the library logs, without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        with suppress(OSError):  # as in `say`
            tqdm.write(printable_lines(record.getMessage()), file=sys.stderr)


@contextmanager
def _logs_printed(level: int) -> Iterator[None]:
    """Print what the library logs, from a level on."""
    handler, loggers = _Lines(), [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


def say(text: str) -> None:
    """Print what is not a result, on stderr."""
    _echo_error(printable_lines(text))


def _echo_error(text: str) -> None:
    with suppress(OSError):  # a log on a full disk, or a reader that is gone, ends no build
        click.echo(text, err=True)


def silent(_text: str) -> None:
    """Print nothing, in place of `say`."""


def show(result: Any, lines: str | Sequence[str], as_json: bool) -> None:
    """Print a result on stdout, as JSON or as lines.

    Raises:
        OutputError: it cannot be printed; what it is about is done.
    """
    text = printable_lines(lines if isinstance(lines, str) else "\n".join(lines))
    try:
        click.echo(json.dumps(result) if as_json else text)
    except OSError as error:
        raise OutputError(f"done, but the result cannot be printed: {error.strerror}.") from None


def bar(unit: str, title: str, quiet: bool, total: int | None = None) -> Any:
    """Return a progress bar on stderr; none where nobody would see it."""
    return tqdm(unit=f" {unit}", desc=title, total=total, disable=True if quiet else None)


def printable_lines(text: str) -> str:
    """Return lines without what would steer the terminal; names and texts of others hold it."""
    return "\n".join(map(printable, text.split("\n")))


def quoted(path: object) -> str:
    """Return a path as a shell reads it, also where it holds what no terminal shows."""
    text = str(path)
    if printable(text) == text:
        return shlex.quote(text)
    escape = {"\\": "\\\\", "'": "\\'"}
    return f"$'{''.join(escape.get(c) or _shell_escape(c) for c in text)}'"


def _shell_escape(character: str) -> str:
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def python_text(text: str) -> str:
    """Return a text as Python reads it, in double quotes where that is plain."""
    plain = printable(text) == text and not {'"', "\\"} & set(text)
    return f'"{text}"' if plain else repr(text)


def command_line(arguments: Sequence[str]) -> str:
    """Return a command as it is typed, or pasted, into a shell."""
    return " ".join(map(quoted, arguments))


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return rows as lines: the first column to the left, the others to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    ]


def size(size_bytes: float) -> str:
    """Return a number of bytes in its largest unit, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.4g} TB"


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


Say = Callable[[str], None]
