"""Train matched arms, prove the match, and say what the losses show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rankkit.errors import ConfigurationError, MatchError
from rankkit.studies.certificate import MatchWatch, certificate_problems, write_certificate
from rankkit.studies.drive import Unit, drive
from rankkit.studies.run import Run, create_run, open_run
from rankkit.training.config import RunConfig
from rankkit.training.unit import Message, Ready, Saved, Stepped

__all__ = ["shard_of", "train_units"]


def shard_of(units: Sequence[Unit], shard: tuple[int, int]) -> list[Unit]:
    """The units of shard i of n: every n-th, so that shards are of even size.

    Raises:
        ConfigurationError: i is not within 0..n-1.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ConfigurationError(f"shard must be i/n with 0 <= i < n, got {index}/{count}. Count shards from 0.")
    return list(units)[index::count]


def train_units(
    run: Run,
    *,
    device: torch.device,
    workers: int,
    shard: tuple[int, int] = (0, 1),
    on_message: Callable[[Message], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train every unfinished unit of a run, comparing the arms all the while.

    Args:
        run: new, or interrupted.
        device: where to train.
        workers: processes.
        shard: which part of the units to train here, of how many.
        on_message: told of everything that happens, after it was compared.
        stop: asked often; once true, all units save and end.

    Returns:
        Whether the whole run is finished.

    Raises:
        MatchError: two arms differ in something undeclared; the certificate then says so too.
        RankkitError: as the units raise.
    """
    watch = MatchWatch(run)

    def receive(message: Message) -> None:
        if isinstance(message, Ready):
            watch.started(message.initial)
        elif isinstance(message, Stepped):
            watch.stepped(message.arm, message.seed, message.record.step, message.record.chains)
        elif isinstance(message, Saved):
            watch.saved(message.facts)
        on_message(message)

    units = [unit for unit in shard_of(run.config.units, shard) if not run.finished(*unit)]
    try:
        if units:
            drive(run, units, device=device, workers=workers, on_message=receive, stop=stop)
    finally:
        certificate = write_certificate(run)
    problems = certificate_problems(certificate)
    if problems:
        raise MatchError(f"arms must match in all that is undeclared, but {problems[0]}. Do not compare these runs.")
    return not run.unfinished


def train_pair(
    config: RunConfig,
    path: Path,
    *,
    device: torch.device,
    workers: int,
    threads: int,
    command: str = "rankkit.train_pair",
    force: bool = False,
) -> Run:
    """Make a run and train all of it: `create_run`, then `train_units`.

    Raises:
        RankkitError: as those raise.
    """
    create_run(config, path, device=device, threads=threads, command=command, force=force)
    run = open_run(path)
    train_units(run, device=device, workers=workers)
    return run
