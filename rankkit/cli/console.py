"""What every command shares: output on stdout, everything else on stderr, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "USAGE",
    "Output",
    "Step",
    "command_line",
    "common_options",
    "counted",
    "duration",
    "guarded",
    "integers",
    "names",
    "new_table",
    "plain",
    "plural",
    "shard_option",
    "size_words",
    "visible",
]

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: failed with one line that says what to do; wrong usage; interrupted, with the command that resumes."""

_WIDEST = 10_000  # letters: more than any table takes

F = TypeVar("F", bound=Callable[..., Any])


class Step(Protocol):
    """How far something is."""

    @property
    def done(self) -> float:
        """Of `total`."""

    @property
    def total(self) -> int:
        """How much there is to do; it may change on the way."""

    @property
    def unit(self) -> str:
        """What is counted, in the singular, for a rate; empty where that would say nothing."""

    @property
    def label(self) -> str:
        """What is being done."""


class Output:
    """Where a command writes.

    Args:
        as_json: one JSON object on stdout and nothing else.
        quiet: no progress.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        from rich.console import Console

        self.as_json, self.quiet = as_json, quiet
        # Tables keep their width in a pipe, so that a log reads like the terminal; a terminal decides for itself.
        # Texts from files are data: square brackets in them are no markup.
        self.out: Console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
        self.err: Console = Console(stderr=True, highlight=False, markup=False)

    @property
    def live(self) -> bool:
        """Whether lines can be renewed: stderr is a terminal that knows how, and nobody asked for quiet."""
        return not self.quiet and self.err.is_terminal and not self.err.is_dumb_terminal

    def note(self, text: str) -> None:
        """Something said on the way, on stderr."""
        if not self.quiet:
            click.echo(text, err=True)

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Callable[[Step], None]]:
        """How far it is, on stderr, while the context lasts: renewed on a terminal, else a line now and then.

        Args:
            total: how much there is to do, until a step says otherwise.

        Yields:
            What to tell every step.
        """
        if self.quiet:
            yield lambda step: None
            return
        from rankkit.cli.progress_view import ProgressView  # which is made of this module

        view = ProgressView(self, total)
        with view.showing():
            yield view

    def say(self, text: str = "") -> None:
        """A line of the result, on stdout unless that is for JSON."""
        if not self.as_json:
            click.echo(text)

    def table(self, table: Table) -> None:
        """A table of the result, whole however narrow the terminal: no number and no heading is ever cut."""
        if not self.as_json:
            from rich.measure import Measurement

            whole = self.out.options.update(width=_WIDEST)
            table.width = Measurement.get(self.out, whole, table).maximum
            self.out.print(table, crop=False)

    def result(self, value: Mapping[str, Any]) -> None:
        """The machine-readable result, printed only with --json; not-a-number becomes null."""
        if self.as_json:
            click.echo(json.dumps(plain(value), allow_nan=False))


def visible(text: object) -> str:
    """A text from a file in one line, in which a terminal finds nothing to obey: what is not printable is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text))


def plain(value: Any) -> Any:
    """The same for JSON: tuples as lists, keys as texts, and null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def counted(count: int, noun: str) -> str:
    """`1 matrix`, `1,024 matrices`: a number with what it counts.

    Args:
        count: at least 0.
        noun: in the singular, the word that changes last: "forward pass", "finished slab".
    """
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Of words that change last."""
    if noun.endswith("matrix"):
        return f"{noun.removesuffix('x')}ces"
    return f"{noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def duration(seconds: float) -> str:
    """In minutes, or in seconds below one; a second at least."""
    if seconds < 59.5:
        return counted(max(1, round(seconds)), "second")
    tenths = f"{seconds / 60:.1f}".removesuffix(".0")
    return f"{tenths} {'minute' if tenths == '1' else 'minutes'}"


def size_words(count: int) -> str:
    """Bytes in MiB or GiB, three digits."""
    size, unit = (count / 2**30, "GiB") if count >= 2**30 else (count / 2**20, "MiB")
    return f"{size:,.0f} {unit}" if size >= 99.5 else f"{size:.3g} {unit}"


def command_line(*, without: Collection[str] = ()) -> str:
    """The command as typed, quoted for a shell, but for some flags."""
    return shlex.join(["rankkit", *(word for word in sys.argv[1:] if word not in without)])


def integers(text: str | None, option: str) -> tuple[int, ...] | None:
    """`0,2,5-8` as numbers; None stays None.

    Raises:
        click.BadParameter: something else.
    """
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise click.BadParameter(f"must be numbers such as 0,2,5-8, got {text!r}", param_hint=option)
        numbers += range(int(first), int(last) + 1)
    return tuple(dict.fromkeys(numbers))


def shard_option(text: str) -> tuple[int, int]:
    """`i/n` as numbers.

    Raises:
        click.BadParameter: something else.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise click.BadParameter(f"must be i/n with 0 <= i < n, got {text!r}", param_hint="--shard")
    return int(index), int(count)


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def common_options(function: F) -> F:
    """--json, --quiet and --debug."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."),
        click.option("--quiet", is_flag=True, help="No progress and no remarks."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def guarded(function: F) -> F:
    """Turn errors into one line on stderr and an exit code, and hand the command its `Output`.

    Wrong configuration exits with 2, any other error of ours with 1, an interruption with 130.
    """

    @functools.wraps(function)
    def run(*args: Any, as_json: bool, quiet: bool, debug: bool, **kwargs: Any) -> None:
        from rankkit.errors import ConfigurationError, RankkitError

        try:
            function(*args, output=Output(as_json=as_json, quiet=quiet), **kwargs)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except RankkitError as error:
            if debug:
                raise
            click.echo(f"Error: {_one_line(error)}", err=True)
            raise click.exceptions.Exit(USAGE if isinstance(error, ConfigurationError) else FAILED) from None
        except Exception as error:
            if debug:
                raise
            what = f"{type(error).__name__}: {_one_line(error)}"
            click.echo(f"Error: unexpected {what}. Run again with --debug and report it.", err=True)
            raise click.exceptions.Exit(FAILED) from None

    return run  # type: ignore[return-value]


def _one_line(error: BaseException) -> str:
    return visible(" ".join(str(error).split()))


def device_option(function: F) -> F:
    """--device."""
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")(function)


def new_table(title: str, headings: Sequence[str]) -> Table:
    """A table whose first column is words and whose others are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def examples(*lines: Sequence[str] | str) -> str:
    """An epilog that click does not re-wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
