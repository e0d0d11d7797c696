"""How fast something advances, and how long it will take."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Final

__all__ = ["Pace", "clock"]

_WINDOW: Final = 60.0  # seconds: long enough for a training's evaluations, short enough to follow a machine
_APART: Final = 0.5  # seconds between two marks that are kept


class Pace:
    """The rate of the last minute.

    Args:
        done: where it begins.
    """

    def __init__(self, done: float = 0.0) -> None:
        self._marks: deque[tuple[float, float]] = deque([(monotonic(), done)])

    def advance(self, done: float) -> None:
        """Take note that so much is done now."""
        now = monotonic()
        if len(self._marks) > 1 and now - self._marks[-2][0] < _APART:
            self._marks.pop()
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Per second; 0 before anything was done."""
        (first, before), (_, done) = self._marks[0], self._marks[-1]
        passed = monotonic() - first
        return (done - before) / passed if passed > 0 else 0.0

    def seconds_left(self, remaining: float) -> float | None:
        """At that rate; None where there is none."""
        rate = self.rate
        return remaining / rate if rate > 0 else None


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
