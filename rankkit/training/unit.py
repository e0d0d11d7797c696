"""A unit: one arm under one seed, trained alone, interruptible at every step, resumable to the same bits.

`train_unit` is a generator, so that whoever drives it decides what runs side by side: one process may step several
units in turn, or every unit may have a process of its own. It yields a message for everything that happens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from rankkit.data.tokens import open_tokens
from rankkit.errors import NonFiniteLossError, RunError
from rankkit.files import (
    RunDirectory,
    append_json_line,
    fsync_file,
    keep_json_lines,
    make_folder,
    remove_partial,
    storage_errors,
    write_json,
)
from rankkit.training.beginning import Beginning
from rankkit.training.checkpoints import (
    CheckpointFacts,
    keep_newest_state,
    latest_resumable_step,
    read_facts,
    restore,
    save,
)
from rankkit.training.config import ArmConfig, TrainConfig
from rankkit.training.evaluation import Evaluation
from rankkit.training.trainer import StepRecord, Trainer

__all__ = ["Evaluated", "Finished", "Interrupted", "Message", "Ready", "Saved", "Stepped", "is_logged", "train_unit"]


@dataclass(frozen=True, slots=True)
class Ready:
    """The unit is about to take its first or next step."""

    arm: str
    seed: int
    initial: CheckpointFacts
    """Of step 0: what it began with."""
    step: int
    """Where it stands; more than 0 when resumed."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer step is done."""

    arm: str
    seed: int
    record: StepRecord
    seconds: float
    """That the step took."""

    @property
    def line(self) -> dict[str, Any]:
        """Of the unit's log, where this step has one (`is_logged`)."""
        return {
            "kind": "train",
            "step": self.record.step,
            "loss": self.record.loss,
            "gradient_norm": self.record.gradient_norm,
            "learning_rate": self.record.learning_rate,
            "tokens": self.record.tokens,
            "loss_tokens": self.record.loss_tokens,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The held-out loss at a step."""

    arm: str
    seed: int
    step: int
    loss: float
    """Nats per predicted token."""

    @property
    def line(self) -> dict[str, Any]:
        """Of the unit's log."""
        return {"kind": "evaluation", "step": self.step, "loss": self.loss}


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is on the disk."""

    facts: CheckpointFacts


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The unit stopped as asked, after saving."""

    arm: str
    seed: int
    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The unit is complete: last checkpoint and evaluation are on the disk."""

    arm: str
    seed: int
    loss: float


Message = Ready | Stepped | Evaluated | Saved | Interrupted | Finished


def is_logged(train: TrainConfig, step: int) -> bool:
    """Whether a step has a line in the unit's log: every `log_interval`-th, and the last.

    Args:
        train: settings of the unit.
        step: finished steps, that one included.
    """
    return step % train.log_interval == 0 or step == train.steps


def train_unit(
    run: RunDirectory,
    arm: str,
    config: ArmConfig,
    seed: int,
    *,
    device: torch.device,
    stop: Callable[[], bool],
    beginning: Beginning | None = None,
) -> Iterator[Message]:
    """Train one arm under one seed, from its newest checkpoint or from the beginning.

    A unit that is complete yields `Finished` at once. The log keeps only lines up to the checkpoint that it continues
    from, so that an interrupted run ends with the log of an uninterrupted one.

    Args:
        run: where its files live; the token files must be there.
        arm: its name, for paths.
        config: everything about it.
        seed: of initial weights and batches.
        device: where to train.
        stop: asked after every step; once true, the unit saves, yields `Interrupted` and ends.
        beginning: trained weights to begin with, under a fresh optimizer; None draws them.

    Yields:
        What happens.

    Raises:
        RunError: damaged files in the run directory.
        NonFiniteLossError: training left the real numbers; the step before is saved.
        StorageError: the disk refused; the last checkpoint is kept.
    """
    if run.evaluation(arm, seed).is_file():
        yield Finished(arm, seed, _finished_loss(run, arm, seed))
        return
    first_batch = beginning.batches if beginning is not None else 0
    trainer = Trainer(config, seed=seed, tokens=open_tokens(run.tokens), device=device, first_batch=first_batch)
    initial = _begin(trainer, run, arm, beginning)
    yield Ready(arm, seed, initial, trainer.step)
    train = config.train
    while trainer.step < train.steps:
        started = perf_counter()
        try:
            record = trainer.train_step()
        except NonFiniteLossError:
            _save(run, arm, trainer)
            raise
        stepped = Stepped(arm, seed, record, perf_counter() - started)
        yield stepped
        last = trainer.step == train.steps
        if is_logged(train, trainer.step):
            append_json_line(run.metrics(arm, seed), stepped.line)
        if trainer.step % train.evaluation_interval == 0 or last:
            yield _evaluate(run, arm, trainer)
        interrupted = stop()
        if trainer.step % train.checkpoint_interval == 0 or last or interrupted:
            yield Saved(_save(run, arm, trainer))
        if interrupted and not last:
            yield Interrupted(arm, seed, trainer.step)
            return
    yield _finish(run, arm, trainer)


def _begin(trainer: Trainer, run: RunDirectory, arm: str, beginning: Beginning | None) -> CheckpointFacts:
    """Restore the newest checkpoint, or write the first one; returns the facts of step 0."""
    folder = run.unit(arm, trainer.seed)
    with storage_errors(folder):
        make_folder(folder)
        remove_partial(folder)
    step = latest_resumable_step(run, arm, trainer.seed)
    if step is None:
        if beginning is not None:
            trainer.model.load_state_dict(beginning.model(trainer.config.model).state_dict())
        keep_json_lines(run.metrics(arm, trainer.seed), lambda line: False)
        _evaluate(run, arm, trainer)
        return _save(run, arm, trainer)
    restore(trainer, run, arm, step)
    keep_newest_state(trainer, run, arm)  # in case it was killed between saving and this
    _keep_log_up_to(step, run.metrics(arm, trainer.seed))
    return read_facts(run.checkpoint(arm, trainer.seed, 0))


def _save(run: RunDirectory, arm: str, trainer: Trainer) -> CheckpointFacts:
    """Save a checkpoint, which says that the log is complete up to it: the log must be on the disk before."""
    log = run.metrics(arm, trainer.seed)
    with storage_errors(log):
        fsync_file(log)
    return save(trainer, run, arm)


def _keep_log_up_to(step: int, path: Path) -> None:
    try:
        keep_json_lines(path, lambda line: int(line["step"]) <= step)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} must hold log lines with a step, got damage: {error!r}. Restore the file.") from error


def _evaluate(run: RunDirectory, arm: str, trainer: Trainer) -> Evaluated:
    evaluated = Evaluated(arm, trainer.seed, trainer.step, trainer.evaluate().loss)
    append_json_line(run.metrics(arm, trainer.seed), evaluated.line)
    return evaluated


def _finish(run: RunDirectory, arm: str, trainer: Trainer) -> Finished:
    """Write the final evaluation, whose presence says that the unit is complete."""
    found, uniform = trainer.evaluate(), trainer.evaluate_without_attention()

    def listed(evaluation: Evaluation) -> dict[str, list[Any]]:
        by_position = [None if math.isnan(loss) else loss for loss in evaluation.by_position.tolist()]
        return {"by_sequence": evaluation.by_sequence.tolist(), "by_position": by_position}

    document = {
        "rankkit_evaluation": 1,
        "arm": arm,
        "seed": trainer.seed,
        "weights_sha256": read_facts(run.checkpoint(arm, trainer.seed, trainer.step)).weights_sha256,
        "evaluation_sha256": trainer.evaluation_sha256,
        "step": trainer.step,
        "task": trainer.config.task.evaluated_as,
        "prefix_length": trainer.prefix_length,
        "loss_tokens": trainer.loss_tokens,
        "loss": found.loss,
        "uniform_attention_loss": uniform.loss,
        "trained": listed(found),
        "uniform_attention": listed(uniform),
    }
    write_json(run.evaluation(arm, trainer.seed), document)
    return Finished(arm, trainer.seed, found.loss)


def _finished_loss(run: RunDirectory, arm: str, seed: int) -> float:
    path = run.evaluation(arm, seed)
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["loss"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} must hold a finished evaluation, got: {error}. Delete it and --resume.") from error
