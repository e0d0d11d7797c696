"""Train matched arms, prove the match, and say what the losses show."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankkit.data.corpora import Corpus
from rankkit.errors import ConfigurationError, MatchError
from rankkit.files import exclusive, remove_abandoned
from rankkit.studies.certificate import MatchWatch, build_certificate, certificate_problems, write_certificate
from rankkit.studies.drive import Unit, drive, interruption
from rankkit.studies.initial_weights import open_source
from rankkit.studies.run import Run, create_run, open_run
from rankkit.studies.training_log import TrainingLog
from rankkit.training.config import ArmConfig, RunConfig
from rankkit.training.environment import choose_device
from rankkit.training.unit import Message, Ready, Saved, Stepped

if TYPE_CHECKING:
    from rankkit.studies.monitoring.monitor import Log

__all__ = ["default_workers", "shard_of", "train_pair", "train_units"]


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
        MatchError: two arms differ in something undeclared, before training or at any step; the certificate says so too.
        RunError: another process is training this run.
        RankkitError: as the units raise.
    """
    with exclusive(run.directory.path / ".lock", f"run {run.directory.path}"):
        remove_abandoned(run.directory.path.resolve())  # such as the run that this one replaced
        units = [unit for unit in shard_of(run.config.units, shard) if not run.finished(*unit)]
        mismatch = None
        try:
            _refuse_mismatch(build_certificate(run))
            if units:
                drive(run, units, device=device, workers=workers, on_message=_watched(run, on_message), stop=stop)
        except MatchError as error:
            mismatch = str(error)
            raise
        finally:
            certificate = write_certificate(run, mismatch)
        _refuse_mismatch(certificate)
    return not run.unfinished


def _watched(run: Run, on_message: Callable[[Message], None]) -> Callable[[Message], None]:
    """A listener that compares the arms before it passes a message on."""
    watch = MatchWatch(run)

    def receive(message: Message) -> None:
        if isinstance(message, Ready):
            watch.started(message.initial)
        elif isinstance(message, Stepped):
            watch.stepped(message.arm, message.seed, message.record.step, message.record.chains)
        elif isinstance(message, Saved):
            watch.saved(message.facts)
        on_message(message)

    return receive


def _refuse_mismatch(certificate: Mapping[str, Any]) -> None:
    problems = certificate_problems(certificate)
    if problems:
        raise MatchError(f"arms must match in all that is undeclared, but {problems[0]}. Do not compare these runs.")


def default_workers(device: torch.device, units: int) -> tuple[int, int]:
    """Workers and CPU threads of each, for this machine.

    One single-threaded worker per core up to the number of units: on two cores that trained a pair of the tiny preset
    1.2 times as fast as two threads in turn. A GPU takes the units in turn.

    Returns:
        (workers, threads).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type != "cpu":
        return 1, cores
    workers = max(1, min(cores, units))
    return workers, max(1, cores // workers)


def train_pair(
    base: ArmConfig,
    *,
    out: str | Path,
    text: Corpus | None = None,
    arms: Sequence[str] = ("gpt", "unilm"),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    workers: int | None = None,
    force: bool = False,
    init_from: str | None = None,
    log: Log | None = None,
) -> Run:
    """Train matched arms from Python: what `rankkit train-pair` does, without its display.

    Call it under `if __name__ == "__main__":`, because workers are new processes; or pass workers=1.

    Args:
        base: what all arms share, for example `rankkit.presets.tiny()`.
        out: the run directory to make.
        text: documents; None for those that `base.data` names.
        arms: names from `ARMS`.
        seeds: one seed gives no verdict.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        workers: processes; None for the cores of this machine.
        force: replace an existing run.
        init_from: RUN/ARM[@STEP], a trained arm whose weights all arms begin with, seed by seed, under a fresh optimizer.
        log: called in this process with values by name and the step of their unit, for every line of the units' logs: for
            names see `rankkit.studies.training_log`. `rankkit.studies.TensorBoardLog` is one. To go on telling in a resumed
            run, call `train_units` with `on_message=TrainingLog(run, log)`.

    Returns:
        The finished run; `rankkit.compare_losses(run)` says what it shows.

    Raises:
        KeyboardInterrupt: at SIGINT or SIGTERM, after every unit has saved; `rankkit train-pair --resume OUT` continues.
        RunError: `log` raised; every unit has saved, and the same command line continues.
        RankkitError: as `create_run` and `train_units` raise.
    """
    config = RunConfig(arms=tuple(arms), seeds=tuple(seeds), base=base)
    place = choose_device(device)
    default, threads = default_workers(place, len(config.units))
    create_run(
        config, Path(out), device=place, threads=threads, command="rankkit.train_pair", force=force, corpus=text,
        source=None if init_from is None else open_source(init_from),
    )  # fmt: skip
    run = open_run(Path(out))
    workers = default if workers is None else workers
    listener: Callable[[Message], None] = (lambda message: None) if log is None else TrainingLog(run, log)
    with interruption() as request:
        finished = train_units(run, device=place, workers=workers, on_message=listener, stop=request)
    if not finished:
        raise KeyboardInterrupt(f"every finished step is saved; continue with rankkit train-pair --resume {out}")
    return run
