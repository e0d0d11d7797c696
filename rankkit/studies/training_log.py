"""What training tells a user's function while it runs: the units' own log under flat names, and paired differences.

    rankkit.train_pair(base, out="runs/mine", log=lambda values, step: print(step, values))

Names, which stay the same between versions:

    gpt/seed-0/loss                       mean over the tokens that this step predicts, nats per token
    gpt/seed-0/gradient_norm              and learning_rate, tokens, loss_tokens, seconds: as in metrics.jsonl
    gpt/seed-0/tokens_per_second          tokens of the step by its seconds
    gpt/seed-0/validation_loss            nats per predicted token
    unilm-gpt/seed-0/difference           loss of the later arm minus loss of the earlier one, on the same batch
    unilm-gpt/seed-0/validation_difference

A step is that of one unit: steps begin anew with every seed. Where a tool wants them to rise, give it its own count:
`log=lambda values, step: wandb.log({**values, "step": step})`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

from rankkit.errors import RunError
from rankkit.files import read_json_lines
from rankkit.studies.run import Run
from rankkit.training.unit import Evaluated, Message, Ready, Stepped, is_logged

if TYPE_CHECKING:
    from rankkit.studies.monitoring.monitor import Log

__all__ = ["TrainingLog"]

_PREFIXES: Final = {"train": "", "evaluation": "validation_"}
"""Of `loss` and `difference`, by kind of log line."""


class TrainingLog:
    """Calls a function with what every unit logs; a listener for `train_units`.

    It is called in the process that drives the workers, once for each line of a unit's `metrics.jsonl` with the numbers of
    that line. A run that is resumed goes on behind what it had saved: after an interruption no step is told twice; after a
    kill, those since the last checkpoint are, because they are trained again.

    Args:
        run: that is trained.
        log: called with values by name and the step. What it raises ends the run after every unit has saved; it is not
            called again, and what it missed is in the units' logs.
    """

    def __init__(self, run: Run, log: Log) -> None:
        self._run, self._log, self._has_failed = run, log, False
        self._tokens_per_step = run.config.base.train.batch_size * run.config.base.model.sequence_length
        pairs = [(later, earlier) for earlier, later in combinations(run.config.arms, 2)]
        arms = {name: run.config.arm(name) for name in run.config.arms}
        # Losses over different targets have no paired difference.
        self._pairs = {
            "train": [pair for pair in pairs if len({arms[arm].train.objective for arm in pair}) == 1],
            "evaluation": [pair for pair in pairs if len({arms[arm].task.evaluated_as for arm in pair}) == 1],
        }
        self._losses: dict[tuple[str, str, int, int], float] = {}  # by kind, arm, seed and step
        self._untold: dict[tuple[str, int], list[dict[str, Any]]] = {}  # the evaluation before the first step
        for arm, seed in run.config.units:
            if run.finished(arm, seed):
                self._remember(arm, seed)

    def __call__(self, message: Message) -> None:
        """Take one message.

        Raises:
            RunError: the function raised.
        """
        if isinstance(message, Ready):
            if message.step == 0:
                self._untold[message.arm, message.seed] = self._lines(message.arm, message.seed)
            else:
                self._remember(message.arm, message.seed)
        elif isinstance(message, Stepped):
            # Only now: a unit that is stopped before its first step begins anew.
            for line in self._untold.pop((message.arm, message.seed), ()):
                self._tell(message.arm, message.seed, line)
            if is_logged(self._run.config.base.train, message.record.step):
                self._tell(message.arm, message.seed, message.line)
        elif isinstance(message, Evaluated):
            self._tell(message.arm, message.seed, message.line)

    def _remember(self, arm: str, seed: int) -> None:
        """Take what a unit has logged before, for differences to what comes."""
        self._losses |= {(line["kind"], arm, seed, line["step"]): line["loss"] for line in self._lines(arm, seed)}

    def _lines(self, arm: str, seed: int) -> list[dict[str, Any]]:
        path = self._run.directory.metrics(arm, seed)
        lines = read_json_lines(path)
        for line in lines:
            if missing := {"kind", "step", "loss"} - line.keys():
                raise RunError(
                    f"{path} must hold lines with kind, step and loss, got one without {min(missing)}. Restore it."
                )
        return lines

    def _tell(self, arm: str, seed: int, line: Mapping[str, Any]) -> None:
        kind, step, loss = line["kind"], line["step"], line["loss"]
        self._losses[kind, arm, seed, step] = loss
        values = {f"{arm}/seed-{seed}/{_PREFIXES[kind]}loss": loss}
        if kind == "train":
            more = {key: float(value) for key, value in line.items() if key not in ("kind", "step", "loss")}
            more["tokens_per_second"] = self._tokens_per_step / line["seconds"]
            values |= {f"{arm}/seed-{seed}/{key}": value for key, value in more.items()}
        for later, earlier in self._pairs[kind]:
            found = [self._losses.get((kind, name, seed, step)) for name in (later, earlier)]
            if arm in (later, earlier) and found[0] is not None and found[1] is not None:
                values[f"{later}-{earlier}/seed-{seed}/{_PREFIXES[kind]}difference"] = found[0] - found[1]
        self._call(values, step)

    def _call(self, values: dict[str, float], step: int) -> None:
        if self._has_failed:
            return
        try:
            self._log(values, step)
        except Exception as error:
            self._has_failed = True
            name = getattr(self._log, "__qualname__", type(self._log).__qualname__)
            raise RunError(
                f"log must take values and a step, but {name} raised {type(error).__name__} at step {step}: {error}. "
                "Every finished step is saved: mend it, then continue with rankkit train-pair --resume "
                f"{self._run.directory.path}."
            ) from error
