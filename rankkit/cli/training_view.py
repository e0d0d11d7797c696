"""The view of training: progress, both losses and their paired difference with a curve each, tokens/s, memory, time left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rankkit.cli.console import Output, visible
from rankkit.cli.live_view import LiveView, bar_line, footer
from rankkit.cli.pace import Pace
from rankkit.cli.sparkline import ASCII, BLOCKS, curve_scale, sparkline
from rankkit.studies.run import Run
from rankkit.training.unit import Evaluated, Finished, Interrupted, Message, Ready, Stepped

__all__ = ["TrainingView"]

_SMOOTHING = 0.05  # weight of the newest step: the last 20 steps or so
_LOSS, _HELD_OUT, _CURVE = 7, 8, 8  # letters: "+0.0271", "held out", and of a curve at least
_THOUSANDS: Final = 10_000  # tokens per second from which they are counted in thousands

_Unit = tuple[str, int]


class _Row(NamedTuple):
    """An arm, or the difference of two."""

    name: str
    loss: str
    held_out: str
    curve: Sequence[float]
    scale: tuple[float, float]


class TrainingView(LiveView):
    """Follows the messages of all units.

    A terminal shows one seed, the first that is still training. Losses are means of the last 20 steps or so; curves are the
    same from the first step of this process to now, of the losses on one scale, of the difference around zero. Without a
    terminal there is a line where the last arm of a seed comes to an evaluation, at most one every `PLAIN_SECONDS`, and
    always one where a seed ends.

    Args:
        run: that is trained.
        output: where to show it.
        units: those trained here; None for all.
    """

    def __init__(self, run: Run, output: Output, units: Sequence[_Unit] | None = None) -> None:
        super().__init__(output)
        train, model = run.config.base.train, run.config.base.model
        self._arms, self._last_step = run.config.arms, train.steps
        self._tokens_per_step = train.batch_size * model.sequence_length
        self._steps = {unit: train.steps if run.finished(*unit) else 0 for unit in units or run.config.units}
        self._evaluated = dict(self._steps)  # steps that no evaluation is still to come of
        objectives = {run.config.arm(arm).train.objective for arm in self._arms[:2]}
        # Losses over different targets have no paired difference.
        self._pair = (self._arms[1], self._arms[0]) if len(self._arms) > 1 and len(objectives) == 1 else None
        self._curves: dict[_Unit, list[float]] = {}
        self._held_out: dict[_Unit, tuple[int, float]] = {}
        self._unpaired: dict[tuple[int, int], dict[str, float]] = {}  # losses of a step that not both have taken
        self._differences: dict[int, list[float]] = {}
        self._pace = Pace(self._done)
        self.interrupted = False
        """Whether a unit was stopped before its end."""

    def __call__(self, message: Message) -> None:
        """Take one message."""
        if isinstance(message, Interrupted):
            self.interrupted = True
        if self._output.quiet:
            return
        with self._lock:
            self._take(message)
        if isinstance(message, Evaluated):
            self._say_evaluation(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Ready):
            self._evaluated[message.arm, message.seed] = message.step
            if message.step != self._steps[message.arm, message.seed]:  # what was trained before is no speed
                self._steps[message.arm, message.seed] = message.step
                self._pace = Pace(self._done)
        elif isinstance(message, Stepped):
            self._steps[message.arm, message.seed] = message.record.step
            self._pace.advance(self._done)
            _smooth(self._curves.setdefault((message.arm, message.seed), []), message.record.loss)
            self._pair_up(message)
        elif isinstance(message, Evaluated):
            self._evaluated[message.arm, message.seed] = message.step
            self._held_out[message.arm, message.seed] = (message.step, message.loss)
        elif isinstance(message, Finished):
            self._steps[message.arm, message.seed] = self._last_step

    def _pair_up(self, message: Stepped) -> None:
        """The difference of two arms on the same batch, where both have taken it."""
        if self._pair is None or message.arm not in self._pair:
            return
        key = (message.seed, message.record.step)
        found = self._unpaired.setdefault(key, {})
        found[message.arm] = message.record.loss
        if len(found) == 2:
            later, earlier = self._pair
            _smooth(self._differences.setdefault(message.seed, []), found[later] - found[earlier])
            del self._unpaired[key]

    def lines(self, width: int, *, ascii_only: bool) -> list[str]:
        """Progress; a line for each arm and the difference; tokens per second, memory and time left."""
        seed, last = self._shown_seed(), self._last_step
        step = min(steps for (_, other), steps in self._steps.items() if other == seed)
        words = [f"seed {seed}, step {step} of {last}", f"seed {seed}, {step}/{last}", f"seed {seed}"]
        return [
            bar_line(self._share, words, width, ascii_only=ascii_only),
            *_table(list(self._rows(seed)), width, ASCII if ascii_only else BLOCKS),
            self._footer("  "),
        ]

    @property
    def _share(self) -> float:
        return self._done / self._total

    @property
    def _done(self) -> int:
        return sum(self._steps.values())

    @property
    def _total(self) -> int:
        return self._last_step * len(self._steps)

    def _shown_seed(self) -> int:
        """The first that has begun here and is still training; else the last that has; before that the first of all."""
        begun = [unit for unit in self._steps if unit in self._curves] or list(self._steps)[:1]
        training = [seed for arm, seed in begun if self._steps[arm, seed] < self._last_step]
        return next(iter(training), begun[-1][1])

    def _rows(self, seed: int) -> Iterator[_Row]:
        curves = {arm: self._curves.get((arm, seed), []) for arm in self._arms}
        scale = curve_scale(*curves.values())
        for arm, curve in curves.items():
            _, held_out = self._held_out.get((arm, seed), (0, math.nan))
            yield _Row(visible(arm), _number(curve), _number([held_out]), curve, scale)
        if self._pair is not None:
            later, earlier = self._pair
            curve = self._differences.get(seed, [])
            largest = max(map(abs, curve), default=0.0)
            name, held_out = f"{visible(later)} - {visible(earlier)}", self._held_out_difference(seed)
            yield _Row(name, _number(curve, "+"), _number([held_out], "+"), curve, (-largest, largest))

    def _held_out_difference(self, seed: int) -> float:
        """Where both were evaluated at one step, else nan."""
        found = [self._held_out.get((arm, seed)) for arm in self._pair or ()]
        if len(found) == 2 and found[0] is not None and found[1] is not None and found[0][0] == found[1][0]:
            return found[0][1] - found[1][1]
        return math.nan

    def _footer(self, separator: str) -> str:
        rate = self._pace.rate
        left = self._pace.seconds_left(self._total - self._done)
        return footer(_tokens(rate * self._tokens_per_step) if rate > 0 else "", left, separator=separator)

    def _say_evaluation(self, message: Evaluated) -> None:
        """A line of a log file, where the last arm of a seed has come to an evaluation."""
        steps = [step for (_, seed), step in self._evaluated.items() if seed == message.seed]
        if min(steps) < message.step or not (self._is_due() or message.step == self._last_step):
            return
        losses = []
        for arm in self._arms:
            step, loss = self._held_out.get((arm, message.seed), (None, math.nan))
            losses += [f"{visible(arm)} {loss:.4f}"] if step == message.step else []
        difference = self._held_out_difference(message.seed)
        if self._pair is not None and not math.isnan(difference):
            losses.append(f"{visible(self._pair[0])} - {visible(self._pair[1])} {difference:+.4f}")
        self._say(
            f"seed {message.seed}, step {message.step} of {self._last_step}: held-out loss {', '.join(losses)}; "
            f"{self._share:.0%}, {self._footer(', ')}"
        )


def _table(rows: Sequence[_Row], width: int, letters: str) -> list[str]:
    """Names, losses, and what is left of the width for curves; of a narrow terminal only that."""
    from rich.cells import cell_len, set_cell_size

    names = min(max(cell_len(row.name) for row in rows), width // 3)
    room = width - names - _LOSS - _HELD_OUT - 4
    has_held_out = room >= _CURVE
    if not has_held_out:
        room += _HELD_OUT + 1
    lines = [f"{'':{names}} {'loss':>{_LOSS}}" + f" {'held out':>{_HELD_OUT}}" * has_held_out]
    for row in rows:
        line = f"{set_cell_size(row.name, names)} {row.loss:>{_LOSS}}" + f" {row.held_out:>{_HELD_OUT}}" * has_held_out
        lines.append(f"{line}  {sparkline(row.curve, room, row.scale, letters=letters)}")
    return lines


def _smooth(curve: list[float], value: float) -> None:
    """Append the running mean, of all values as long as they are few."""
    weight = max(1 / (len(curve) + 1), _SMOOTHING)
    curve.append(weight * value + (1 - weight) * (curve[-1] if curve else value))


def _number(values: Sequence[float], sign: str = "") -> str:
    """The last one; a dash where there is none."""
    return f"{values[-1]:{sign}.4f}" if values and not math.isnan(values[-1]) else "-"


def _tokens(rate: float) -> str:
    return f"{rate / 1000:,.1f}k tokens/s" if rate >= _THOUSANDS else f"{rate:,.0f} tokens/s"
