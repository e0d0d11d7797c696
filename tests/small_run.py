"""Whole runs that train in half a second: made, trained, compared, and one arm of them sabotaged."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from tiny import CPU, arm, outcome

from rankkit.data import synthetic
from rankkit.data.stream import Batch, BatchStream
from rankkit.studies import Run, create_run, drive, open_run, train_units
from rankkit.training import ArmConfig, RunConfig, Trainer, train_unit
from rankkit.training import unit as unit_module

CORPUS = synthetic(0, 40)
PAIR = ("gpt", "unilm")
ALL_ARMS = ("gpt", "unilm", "gpt-full")

ChangeBatch = Callable[[Callable[[int], Batch], int], Batch]
"""From the true stream and a step counted from 0, the batch that the sabotaged arm reads."""


def run_config(arms: Sequence[str] = PAIR, seeds: Sequence[int] = (0, 1), **changes: Any) -> RunConfig:
    """A run of the tiny arm; `changes` go to `tiny.arm`."""
    return RunConfig(arms=tuple(arms), seeds=tuple(seeds), base=arm("gpt", **changes))


def new_run(path: Path, config: RunConfig | None = None, *, force: bool = False) -> Run:
    """A run that has not begun."""
    create_run(
        config or run_config(), path, device=CPU, threads=1, command="rankkit test", force=force, corpus=CORPUS
    )  # fmt: skip
    return open_run(path)


def trained_run(path: Path, config: RunConfig | None = None, *, workers: int = 1) -> Run:
    """A run that is complete."""
    run = new_run(path, config)
    assert train_units(run, device=CPU, workers=workers)
    return run


def train_unwatched(run: Run) -> None:
    """Train every unit to its end without anybody comparing arms."""
    for name, seed in run.config.units:
        list(train_unit(run.directory, name, run.config.arm(name), seed, device=CPU, stop=lambda: False))


def copy_of(run: Run, path: Path) -> Run:
    """The same files elsewhere, to be damaged."""
    shutil.copytree(run.directory.path, path)
    return open_run(path)


def assert_same_runs(found: Run, expected: Run) -> None:
    """Two runs ended in the very same bits, seconds and the checkpoints of an interruption aside."""
    assert found.config == expected.config
    for name, seed in expected.config.units:
        first, second = (
            outcome(run.directory, name, seed=seed, steps=run.config.base.train.steps) for run in (found, expected)
        )
        for what, value in second.items():
            assert first[what] == value, (name, seed, what)
    assert json.loads(found.directory.certificate.read_text())["matched"] is True


def steps_of(run: Run) -> dict[tuple[str, int], list[int]]:
    """Every unit's checkpoints."""
    return {unit: run.directory.checkpoint_steps(*unit) for unit in run.config.units}


def children(parent: int | None = None) -> list[psutil.Process]:
    """The workers of a process, by default of this one: those that multiprocessing spawned."""
    found = []
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [child] if any("spawn_main" in word for word in child.cmdline()) else []
    return found


# Sabotage: what a bug could do to the one arm with a prefix mask.


def swapped_batches(batch: Callable[[int], Batch], step: int) -> Batch:
    """Batches 5 and 6 in each other's place."""
    return batch({5: 6, 6: 5}.get(step, step))


def swapped_prefix_lengths(batch: Callable[[int], Batch], step: int) -> Batch:
    """The tokens of every batch, with the prefix lengths of batches 5 and 6 exchanged."""
    return Batch(batch(step).tokens, swapped_batches(batch, step).prefix_lengths)


def one_changed_token(batch: Callable[[int], Batch], step: int) -> Batch:
    """One token of batch 5 is another one, inside every prefix, so that no target changes."""
    tokens = batch(step).tokens.copy()
    if step == 5:
        tokens[0, 0] ^= 1
    return Batch(tokens, batch(step).prefix_lengths)


def _is_sabotaged(config: ArmConfig) -> bool:
    return str(config.model.mask) == "prefix"


class OtherBatches(Trainer):
    """A trainer whose prefix arm reads what `change` makes of the stream."""

    change: ChangeBatch

    @staticmethod
    def stream_of(config: ArmConfig, *, seed: int, tokens: Any) -> BatchStream:
        stream = Trainer.stream_of(config, seed=seed, tokens=tokens)
        if _is_sabotaged(config):
            true, change = stream.batch, OtherBatches.change
            stream.batch = lambda step: change(true, step)  # type: ignore[method-assign]
        return stream


class OtherInitialWeight(Trainer):
    """A trainer whose prefix arm begins with one other weight."""

    def __init__(self, config: ArmConfig, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        if _is_sabotaged(config):
            with torch.no_grad():
                self.model.blocks[1].mlp.input.weight[3, 2] += 1e-7


class OtherSetting(Trainer):
    """A trainer whose prefix arm has a weight decay of its own."""

    def __init__(self, config: ArmConfig, **arguments: Any) -> None:
        if _is_sabotaged(config):
            config = replace(config, train=replace(config.train, weight_decay=0.0))
        super().__init__(config, **arguments)


@contextlib.contextmanager
def trained_by(trainer: type[Trainer], change: ChangeBatch | None = None) -> Iterator[None]:
    """Units in this process are trained by that class."""
    before = unit_module.Trainer
    unit_module.Trainer = trainer  # type: ignore[misc]
    OtherBatches.change = staticmethod(change)  # type: ignore[assignment, arg-type]
    try:
        yield
    finally:
        unit_module.Trainer = before  # type: ignore[misc]


def work_on_swapped_batches(*arguments: Any) -> None:
    """A worker process in which the prefix arm reads swapped batches."""
    with trained_by(OtherBatches, swapped_batches):
        drive._work(*arguments)
