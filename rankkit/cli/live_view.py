"""What is shown while something runs: some lines that a terminal renews, or now and then a line of a log file."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Final

from rankkit.cli.console import Output, size_words
from rankkit.cli.pace import clock
from rankkit.cli.resident_memory import resident_bytes

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["PLAIN_SECONDS", "LiveView", "bar_line", "footer"]

PLAIN_SECONDS: Final = 30.0
"""Between two lines where there is no terminal: a night's log has a thousand lines and not a million."""

_REFRESHED: Final = 4  # times a second
_SHORTEST_BAR: Final = 8  # letters


class LiveView(ABC):
    """Renewed in place on a terminal; else a line on stderr, at most one every `PLAIN_SECONDS`; nothing with --quiet.

    Args:
        output: where to.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = Lock()  # a terminal is renewed by a thread of its own
        self._said = monotonic()

    @abstractmethod
    def lines(self, width: int, *, ascii_only: bool) -> list[str]:
        """What stands on a terminal now.

        Args:
            width: letters of a line; longer ones are cut.
            ascii_only: whether the terminal has no blocks.
        """

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show it while the context lasts; its last state stays."""
        if not self._output.live:
            yield
            return
        from rich.live import Live

        with Live(self, console=self._output.err, refresh_per_second=_REFRESHED):
            yield

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        with self._lock:
            lines = self.lines(options.max_width, ascii_only=options.ascii_only)
        for line in lines:
            yield Text(line, no_wrap=True, overflow="ellipsis")

    def _is_due(self) -> bool:
        """Whether a line of a log file may be written again."""
        return not self._output.live and monotonic() - self._said >= PLAIN_SECONDS

    def _say(self, line: str) -> None:
        """Write a line of a log file, where nobody sees the lines of a terminal."""
        if not self._output.live:
            self._output.note(line)
            self._said = monotonic()


def bar_line(share: float, words: Sequence[str], width: int, *, ascii_only: bool) -> str:
    """A bar, how much of it is full, and the longest of some words that leaves room for it.

    Args:
        share: 0 to 1.
        words: from the longest to the shortest, which is taken whatever the room.
        width: letters of the line.
        ascii_only: whether there are only letters to draw with.
    """
    from rich.cells import cell_len

    percent = f"{min(share, 1):>4.0%}"
    room = width - len(percent) - 1
    chosen = next((text for text in words if room - cell_len(text) - 2 >= _SHORTEST_BAR), words[-1])
    length = max(_SHORTEST_BAR, min(room - cell_len(chosen) - 2, width // 2))
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    done = int(min(share, 1) * length)
    return f"{full * done}{empty * (length - done)} {percent}  {chosen}".rstrip()


def footer(rate: str, seconds_left: float | None, *, separator: str = "  ") -> str:
    """`12.3k tokens/s  412 MiB  2:31 left`, as far as it is known.

    Args:
        rate: in words; empty where it says nothing.
        seconds_left: None where nobody can tell.
        separator: between the parts.
    """
    memory = resident_bytes()
    parts = [
        rate,
        "" if memory is None else size_words(memory),
        "" if seconds_left is None else f"{clock(seconds_left)} left",
    ]
    return separator.join(part for part in parts if part)
