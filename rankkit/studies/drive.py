"""Running many units side by side: in turn in this process, or one worker process each.

On two cores two single-threaded workers train a pair faster than two threads train its arms in turn, so that is what
`train-pair` does on the CPU; a single GPU takes the units in turn. Either way the same messages arrive, and either way
the arms of a seed advance together, because units are ordered by seed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from rankkit.errors import ConfigurationError, RankkitError, RunError
from rankkit.studies.run import Run, open_run
from rankkit.training.environment import prepare_device
from rankkit.training.unit import Message, Ready, train_unit

__all__ = ["Unit", "drive", "interruption"]

Unit = tuple[str, int]
_STOP = "stop"  # the parent tells a worker to save its unit and end; "go" lets a unit take its first step
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.2  # how long a Ctrl-C may go unnoticed while every worker is inside a step


class Interruption:
    """Becomes true at the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.requested


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the process as usual.

    Outside the main thread, where signals cannot be caught, the request never comes.
    """
    request = Interruption()
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, _: Any) -> None:
        request.requested = True
        signal.signal(number, previous[signal.Signals(number)])

    with contextlib.suppress(ValueError):
        for number in _SIGNALS:
            previous[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def drive(
    run: Run,
    units: Sequence[Unit],
    *,
    device: torch.device,
    workers: int,
    on_message: Callable[[Message], None],
    stop: Callable[[], bool],
) -> None:
    """Train units to their end, or until asked to stop.

    Args:
        run: whose units they are.
        units: in the order in which they should be done.
        device: for all of them.
        workers: processes, at least 1; 1 trains in this process, the arms of a seed in turn.
        on_message: called in this process with every message, in the order of each unit. What it raises stops all units,
            after they have saved, and is raised again.
        stop: asked often; once true, all units save and end.

    Raises:
        ConfigurationError: no workers.
        RankkitError: the first error of a unit or of `on_message`.
    """
    if workers < 1:
        raise ConfigurationError(f"workers must be at least 1, got {workers}. Leave it out for one per core.")
    if workers == 1:
        _drive_in_turn(run, units, device, on_message, stop)
    else:
        _Pool(run, units, device, min(workers, len(units)), on_message, stop).drive()


def _drive_in_turn(
    run: Run,
    units: Sequence[Unit],
    device: torch.device,
    on_message: Callable[[Message], None],
    stop: Callable[[], bool],
) -> None:
    prepare_device(device, run.threads)
    failed: list[RankkitError] = []
    for _, group in groupby(units, key=lambda unit: unit[1]):
        generators = [
            train_unit(
                run.directory,
                arm,
                run.config.arm(arm),
                seed,
                device=device,
                stop=lambda: stop() or bool(failed),
                beginning=run.beginning(seed),
            )
            for arm, seed in group
        ]
        ready: set[Iterator[Message]] = set()  # those that have not taken a step
        while generators:
            for generator in list(generators):
                if failed and generator in ready:
                    generators.remove(generator)
                    continue
                ready.discard(generator)
                try:
                    message = next(generator)
                    if isinstance(message, Ready):
                        ready.add(generator)
                    on_message(message)
                except StopIteration:
                    generators.remove(generator)
                except RankkitError as error:
                    failed.append(error)
        if failed:
            raise failed[0]
        if stop():
            return


@dataclass(slots=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: Connection
    unit: Unit | None = None


class _Pool:
    """Worker processes that each train one unit at a time."""

    def __init__(
        self,
        run: Run,
        units: Sequence[Unit],
        device: torch.device,
        workers: int,
        on_message: Callable[[Message], None],
        stop: Callable[[], bool],
    ) -> None:
        self._run, self._waiting, self._on_message, self._stop = run, list(units), on_message, stop
        self._error: RankkitError | None = None
        self._told_to_stop = False
        context = multiprocessing.get_context("spawn")  # a fork after torch has started threads may hang
        resource_tracker.ensure_running()  # its own start would unblock the signals again
        self._workers = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, run.directory.path, str(device), run.threads)
            process = context.Process(target=_work, args=arguments, daemon=True)
            with _thread_environment(run.threads), _signals_blocked():
                process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))

    def drive(self) -> None:
        try:
            for worker in self._workers:
                self._next_unit(worker)
            while busy := [worker for worker in self._workers if worker.unit is not None]:
                if (self._stop() or self._error) and not self._told_to_stop:
                    self._tell_to_stop(busy)
                for connection in wait([worker.connection for worker in busy], timeout=_POLL_SECONDS):
                    self._receive(next(worker for worker in busy if worker.connection is connection))
        finally:
            for worker in self._workers:
                worker.connection.close()  # an idle worker ends when its connection does
            for worker in self._workers:
                worker.process.join(timeout=10)  # seconds; it has nothing left to do
                if worker.process.is_alive():
                    worker.process.kill()
        if self._error:
            raise self._error

    def _tell_to_stop(self, busy: Sequence[_Worker]) -> None:
        self._told_to_stop = True
        self._waiting.clear()
        for worker in busy:
            self._send(worker, _STOP)

    def _next_unit(self, worker: _Worker) -> None:
        worker.unit = self._waiting.pop(0) if self._waiting else None
        if worker.unit is not None:
            self._send(worker, worker.unit)

    def _send(self, worker: _Worker, order: str | Unit) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead, which the next `wait` will see
            worker.connection.send(order)

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            arm, seed = worker.unit or ("", 0)
            worker.unit = None
            self._error = self._error or RunError(
                f"worker of {arm}, seed {seed} must live until its unit is done, but it was killed. "
                "The last checkpoints are kept; --resume continues from them."
            )
            return
        if message is None:  # the unit is over
            self._next_unit(worker)
        elif isinstance(message, RankkitError):
            self._error = self._error or message
        else:
            self._handle(worker, message)

    def _handle(self, worker: _Worker, message: Message) -> None:
        try:
            self._on_message(message)
        except RankkitError as error:
            self._error = self._error or error
        if isinstance(message, Ready) and not self._told_to_stop:
            self._send(worker, _STOP if self._error else "go")


@contextlib.contextmanager
def _thread_environment(threads: int) -> Iterator[None]:
    """Environment in which a new process starts its libraries with that many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process started now does not hear Ctrl-C before it can ignore it; this one hears it a moment later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, path: Path, device_name: str, threads: int) -> None:
    """A worker process: train units until told to stop, or until the parent is gone.

    A parent that was killed is noticed at the next message; its successor may already hold the run, so nothing is saved.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent hears of it and tells us to save
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    device = torch.device(device_name)
    prepare_device(device, threads)
    run = open_run(path)

    def told_to_stop() -> bool:
        return bool(connection.poll() and connection.recv() == _STOP)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (unit := connection.recv()) != _STOP:  # which comes here when the unit ended before it was heard
            arm, seed = unit
            _train(connection, run, arm, seed, device, told_to_stop)
            connection.send(None)


def _train(
    connection: Connection, run: Run, arm: str, seed: int, device: torch.device, stop: Callable[[], bool]
) -> None:
    """One unit; whatever it raises is sent to the parent, which decides."""
    try:
        config, beginning = run.config.arm(arm), run.beginning(seed)
        for message in train_unit(run.directory, arm, config, seed, device=device, stop=stop, beginning=beginning):
            connection.send(message)
            if isinstance(message, Ready) and connection.recv() == _STOP:
                return
    except RankkitError as error:
        connection.send(error)
