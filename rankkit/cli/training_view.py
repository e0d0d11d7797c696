"""The live view of training: step, both losses, their paired difference, tokens per second, time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import monotonic

from rankkit.cli.console import Output
from rankkit.studies.run import Run
from rankkit.training.unit import Evaluated, Finished, Interrupted, Message, Ready, Saved, Stepped

__all__ = ["TrainingView"]

_SMOOTHING = 0.05  # weight of the newest step: the last 20 steps or so


class TrainingView:
    """Follows the messages of all units.

    Args:
        run: that is trained.
        output: where to show it; nothing is shown unless stderr is a terminal.
    """

    def __init__(self, run: Run, output: Output) -> None:
        self._run, self._output = run, output
        self._steps = dict.fromkeys(run.config.units, 0)
        for unit in run.config.units:
            if run.finished(*unit):
                self._steps[unit] = run.config.base.train.steps
        self._begun = sum(self._steps.values())
        self._losses: dict[str, float] = {}
        self._step_losses: dict[tuple[int, int], dict[str, float]] = {}
        self._difference: float | None = None
        self._tasks = {arm: run.config.arm(arm).task for arm in run.config.arms}
        objectives = {run.config.arm(arm).train.objective for arm in run.config.arms[:2]}
        self._comparable = len(objectives) == 1  # losses over different targets have no paired difference
        self._started = monotonic()
        self.interrupted = False
        """Whether a unit was stopped before its end."""

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show progress while the context lasts."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if not self._output.live:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"),
                   TimeRemainingColumn(elapsed_when_finished=True))  # fmt: skip
        total = len(self._steps) * self._run.config.base.train.steps
        with Progress(*columns, console=self._output.err, transient=False) as progress:
            self._progress = progress
            self._task = progress.add_task("starting", total=total, completed=self._begun)
            yield

    def __call__(self, message: Message) -> None:
        """Take one message."""
        if isinstance(message, Ready):
            self._steps[message.arm, message.seed] = message.step
        elif isinstance(message, Stepped):
            self._steps[message.arm, message.seed] = message.record.step
            self._learn(message)
        elif isinstance(message, Evaluated) and self._output.live:
            self._progress.console.print(
                f"seed {message.seed}  step {message.step:>6}  {message.arm:<12} "
                f"validation loss ({self._tasks[message.arm].evaluated_as}) {message.loss:.4f}"
            )
        elif isinstance(message, Finished):
            self._steps[message.arm, message.seed] = self._run.config.base.train.steps
        elif isinstance(message, Interrupted):
            self.interrupted = True
        if self._output.live:
            self._progress.update(
                self._task, completed=sum(self._steps.values()), description=self._description(message)
            )

    def _learn(self, message: Stepped) -> None:
        """Smooth the training losses, and the difference of two arms on the same batch."""
        arm, loss = message.arm, message.record.loss
        self._losses[arm] = loss + (1 - _SMOOTHING) * (self._losses.get(arm, loss) - loss)
        key = (message.seed, message.record.step)
        found = self._step_losses.setdefault(key, {})
        found[arm] = loss
        first, second = (*self._run.config.arms, None)[:2]
        if first in found and second in found and self._comparable:
            difference = found[second] - found[first]
            previous = difference if self._difference is None else self._difference
            self._difference = difference + (1 - _SMOOTHING) * (previous - difference)
            del self._step_losses[key]

    def _description(self, message: Message) -> str:
        train, n = self._run.config.base.train, self._run.config.base.model.sequence_length
        done = sum(self._steps.values()) - self._begun
        rate = done * train.batch_size * n / max(monotonic() - self._started, 1e-9)
        losses = "  ".join(f"{arm} {loss:.3f}" for arm, loss in sorted(self._losses.items()))
        difference = "" if self._difference is None else f"  difference {self._difference:+.3f}"
        arm, seed = (
            (message.facts.arm, message.facts.seed) if isinstance(message, Saved) else (message.arm, message.seed)
        )
        return f"seed {seed}  step {self._steps[arm, seed]}  {losses}{difference}  {rate / 1000:.1f}k tokens/s"
