"""What is done with every file, and how it may end."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from click.testing import CliRunner, Result
from robustness.outside import MARK

from rankkit.cli import main

__all__ = ["TARGETS", "Ending", "Verdict"]

Verdict = Literal["accepted", "problem", "refused", "failed"]
"""Success; `inspect --verify` lists what is wrong; one clear error; or anything else, which is a fault of rankkit."""

_LINE = 2000  # characters of a clear error
_OUTPUT = 4 << 20  # characters that a command may print about a file of a few kilobytes
_READ = 1 << 24  # bytes of one variable that are read through xarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one thing ended."""

    verdict: Verdict
    said: str = ""
    """The error or the first problem; of a failure also where it comes from."""


def _command(*arguments: str | Path) -> Ending:
    """A command's ending; of a failure again with --debug, for the traceback."""
    result = _invoke(*arguments)
    ending = _judged(result)
    if ending.verdict == "failed":
        exception = _invoke(*arguments, "--debug").exc_info
        where = "".join(traceback.format_exception(*exception)) if exception else "no traceback"
        return Ending(verdict="failed", said=f"{ending.said}\n{where}")
    return ending


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _judged(result: Result) -> Ending:
    """What exit code and output say."""
    lines = [line for line in result.stderr.splitlines() if line]
    errors = [line for line in lines if line.startswith("Error: ")]
    strange = _strange(result.output)
    if strange:
        return Ending(verdict="failed", said=strange)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return Ending(verdict="failed", said=f"raised {result.exception!r:.200}")
    if result.exit_code == 0:
        return Ending(verdict="accepted") if not errors else Ending(verdict="failed", said=errors[0])
    if result.exit_code != 1:
        return Ending(verdict="failed", said=f"exit code {result.exit_code}: {lines[-1:]}")
    if not errors:
        problems = [line for line in result.stdout.splitlines() if line.startswith("PROBLEM ")]
        return (
            Ending(verdict="problem", said=problems[0]) if problems else Ending(verdict="failed", said="said nothing")
        )
    return _clear(errors, lines)


def _clear(errors: list[str], lines: list[str]) -> Ending:
    """Whether there is one error, in one line, on purpose and not for want of memory."""
    (error, *more) = errors
    if more or len(lines) > 1 or len(error) > _LINE:
        return Ending(verdict="failed", said=f"several or long errors: {lines!r:.400}")
    if error.startswith("Error: unexpected") or "MemoryError" in error or "Unable to allocate" in error:
        return Ending(verdict="failed", said=error)
    return Ending(verdict="refused", said=error.removeprefix("Error: "))


def _strange(text: str) -> str | None:
    """What no output may hold: what a terminal obeys, or the contents of another file."""
    odd = sorted({character for character in text if not character.isprintable() and character != "\n"})
    if odd:
        return f"printed {odd!r:.100}"
    if MARK in text:
        return "printed the contents of another file"
    return f"printed {len(text)} characters" if len(text) > _OUTPUT else None


def inspect(path: Path, folder: Path) -> Ending:
    return _command("inspect", path, "--verify")


TARGETS: Mapping[str, Callable[[Path, Path], Ending]] = {
    "inspect --verify": inspect,
}
"""By name: takes the file and a folder for what is made of it."""
