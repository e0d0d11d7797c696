"""How far a measurement is: what is measured, the share that is done, matrices per second, memory, time left."""

from __future__ import annotations

from rankkit.cli.console import Output, Step, plural, visible
from rankkit.cli.live_view import LiveView, bar_line, footer
from rankkit.cli.pace import Pace

__all__ = ["ProgressView"]


class ProgressView(LiveView):
    """Follows the steps of one thing after another; each begins where the count begins anew or counts something else.

    Without a terminal it writes a line at a step, at most one every `PLAIN_SECONDS`.

    Args:
        output: where to show it.
        total: how much there is to do, until a step says otherwise.
    """

    def __init__(self, output: Output, total: int) -> None:
        super().__init__(output)
        self._done, self._total, self._label = 0.0, total, "starting"
        self._unit: str | None = None
        self._pace = Pace()

    def __call__(self, step: Step) -> None:
        """Take one step."""
        with self._lock:
            is_other = (step.total, step.unit) != (self._total, self._unit) or step.done < self._done
            if is_other and self._unit is not None:
                self._pace = Pace(step.done)
            self._done, self._total, self._unit = step.done, step.total, step.unit
            self._label = visible(step.label)
            self._pace.advance(step.done)
        if self._is_due():
            self._say(f"{self._share:.0%}: {self._label}; {self._footer(', ')}")

    def lines(self, width: int, *, ascii_only: bool) -> list[str]:
        """Bar and label, on a line of its own where there is no room beside; rate, memory and time left."""
        bar = bar_line(self._share, [self._label, ""], width, ascii_only=ascii_only)
        label = [] if bar.endswith(self._label) else [self._label]
        return [bar, *label, self._footer("  ")]

    @property
    def _share(self) -> float:
        return self._done / self._total if self._total else 1.0

    def _footer(self, separator: str) -> str:
        rate = rate_words(self._pace.rate, self._unit) if self._unit else ""
        return footer(rate, self._pace.seconds_left(self._total - self._done), separator=separator)


def rate_words(rate: float, unit: str) -> str:
    """`95 matrices/s`, or per minute where that is less than one."""
    if rate <= 0:
        return ""
    if rate < 1:
        return f"{60 * rate:.1f} {plural(unit)}/min"
    return f"{rate:,.{0 if rate >= 10 else 1}f} {plural(unit)}/s"
