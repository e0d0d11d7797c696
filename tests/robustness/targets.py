"""What is done with every file, and how it may end."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from click.testing import CliRunner, Result
from robustness.outside import MARK, PARTNER

import rankkit
from rankkit.cli import main
from rankkit.errors import RankkitError

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


def export_csv(path: Path, folder: Path) -> Ending:
    return _made(folder / "table.csv", "export", path, "--to", "csv", "--baselines", "--force")


def export_parquet(path: Path, folder: Path) -> Ending:
    return _made(folder / "table.parquet", "export", path, "--to", "parquet", "--table", "comparison", "--force")


def merge(path: Path, folder: Path) -> Ending:
    """With the other half of the study where it is one half, else alone."""
    partner = folder / PARTNER
    with_partner = partner.exists() and _study(path) == _study(partner)
    return _made(folder / "merged.h5", "merge", path, *([partner] if with_partner else []), "--force", "--quiet")


def _study(path: Path) -> bytes | None:
    """The line of its configuration that tells a study apart, as far as the bytes show it."""
    found = re.search(rb"study = [0-9a-z ]+", path.read_bytes())
    return found and found.group()


def _made(out: Path, *arguments: str | Path) -> Ending:
    """A command's ending; what it makes is there if and only if it succeeds, and holds nothing from elsewhere."""
    out.unlink(missing_ok=True)
    ending = _command(*arguments, "--out", out)
    if ending.verdict != "failed" and out.exists() != (ending.verdict == "accepted"):
        return Ending(verdict="failed", said=f"{'left' if out.exists() else 'made no'} {out.name} and {ending.verdict}")
    if out.exists() and MARK.encode() in out.read_bytes():
        return Ending(verdict="failed", said=f"{out.name} holds the contents of another file")
    return ending


def open_spectra(path: Path, folder: Path) -> Ending:
    """Open, show and read every number, a variable at a time."""
    try:
        with rankkit.open_spectra(path) as tree:
            text = repr(tree)
            for node in tree.subtree:
                for variable in node.variables.values():
                    if variable.nbytes <= _READ and variable.dtype.kind == "f":
                        float(variable.max())
    except RankkitError as error:
        lines = [line for line in str(error).splitlines() if line]
        return _clear([f"Error: {line}" for line in lines], lines)
    except Exception as error:  # noqa: BLE001 - whatever else comes out of it is what is looked for
        return Ending(verdict="failed", said="".join(traceback.format_exception(error)))
    return Ending(verdict="failed", said="read another file") if MARK in text else Ending(verdict="accepted")


TARGETS: Mapping[str, Callable[[Path, Path], Ending]] = {
    "inspect --verify": inspect,
    "merge": merge,
    "open_spectra": open_spectra,
    "export --to csv": export_csv,
    "export --to parquet": export_parquet,
}
"""By name: takes the file and a folder for what is made of it."""
