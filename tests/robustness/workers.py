"""Worker processes that handle many files each, and what is said of a file that one does not survive."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import queue
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from robustness.cases import Case, Cases
from robustness.outside import PARTNER, Watch, write_outside

__all__ = ["GROUPS", "MEMORY_LIMIT", "NOT_MADE", "SECONDS_LIMIT", "Report", "fuzz"]

MEMORY_LIMIT = 512 << 20
"""Bytes of a worker that may be in memory, Python and its libraries included."""
SECONDS_LIMIT = 20.0
"""Of the processor, for one file and one target."""

NOT_MADE = "not made"
"""Kind of a file that h5py could not make."""
GROUPS = (("inspect --verify", "merge"), ("open_spectra", "export --to csv", "export --to parquet"))
"""Targets that share a process, so that its memory is about that of one of them: the first import torch, the others xarray
and pyarrow."""

_ASLEEP_LIMIT = 900.0  # seconds without a word: a deadlock; a busy machine, or one that was paused, takes long too
_ADDRESS_SPACE = 16 << 30  # bytes: protects the machine, far beyond MEMORY_LIMIT; torch alone maps some
_ROOM = 20 << 20  # bytes that a worker may keep from making files before it tidies up, which takes a while
_LOG_TAIL = 4000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of one file."""

    case: Case
    """Which file."""
    endings: Mapping[str, tuple[str, str]]
    """By target: verdict, and what was said."""
    failures: Sequence[str] = ()
    """What went wrong, each with its target."""
    memory: int = 0
    """Most bytes in memory at a time; 0 where the process was lost."""
    seconds: float = 0.0
    """Of the processor, for the slowest target."""


def fuzz(
    numbers: Sequence[int],
    *,
    seed: int,
    bases: Mapping[str, bytes],
    groups: Sequence[Sequence[str]] = GROUPS,
    workers: int = 1,
    keep: Path | None = None,
    pause: Path | None = None,
) -> Iterator[Report]:
    """Run targets on files, in worker processes.

    Args:
        numbers: of the files.
        seed: of the run.
        bases: bytes of finished files by name.
        groups: names of robustness.targets.TARGETS; those of one group share a process.
        workers: files at a time.
        keep: folder for files that something failed on; None keeps none.
        pause: no file is begun while this one exists.

    Yields:
        A report per file, in order.
    """
    idle: queue.Queue[list[_Worker]] = queue.Queue()

    def run(number: int) -> Report:
        crew = idle.get()
        while pause is not None and pause.exists():
            time.sleep(1)
        try:
            report = _united([worker.run(number) for worker in crew])
            if report.failures and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(crew[0].path, keep / f"seed-{seed}-file-{number}.h5")
            return report
        finally:
            idle.put(crew)

    with tempfile.TemporaryDirectory(prefix="rankkit-fuzz-") as place, ThreadPoolExecutor(workers) as pool:
        crews = [
            [_Worker(Path(place) / f"{number}-{part}", seed, bases, group) for part, group in enumerate(groups)]
            for number in range(workers)
        ]
        for crew in crews:
            idle.put(crew)
        try:
            yield from pool.map(run, numbers)
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in chain(*crews):
                worker.end()


def _united(reports: Sequence[Report]) -> Report:
    """What all groups of targets say of one file."""
    return Report(
        case=reports[0].case,
        endings={target: ending for report in reports for target, ending in report.endings.items()},
        failures=[failure for report in reports for failure in report.failures],
        memory=max(report.memory for report in reports),
        seconds=max(report.seconds for report in reports),
    )


class _Worker:
    """One worker process, started when it is needed."""

    def __init__(self, folder: Path, seed: int, bases: Mapping[str, bytes], targets: Sequence[str]) -> None:
        self.path = folder / "case.h5"
        self._log = folder / "faults.log"
        self._task = (folder, seed, bases, targets)
        self._process: multiprocessing.process.BaseProcess | None = None
        folder.mkdir()

    def run(self, number: int) -> Report:
        """What becomes of a file; a process that is lost is replaced next time."""
        process = self._started()
        self._pipe.send(number)
        case, target = Case(number=number, kind=NOT_MADE, base="", name=""), ""
        used, asleep = _seconds(process.pid), time.monotonic()
        while True:
            if not self._pipe.poll(1):
                if _seconds(process.pid) - used > SECONDS_LIMIT or time.monotonic() - asleep > _ASLEEP_LIMIT:
                    return self._lost(case, target, f"did not end in {SECONDS_LIMIT:g} seconds")
                continue
            try:
                message = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                return self._lost(case, target, f"the process died with exit code {process.exitcode}")
            if isinstance(message, Report):
                return message
            case, target = message
            used, asleep = _seconds(process.pid), time.monotonic()

    def _started(self) -> multiprocessing.process.BaseProcess:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs, *self._task), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()
        return self._process

    def _lost(self, case: Case, target: str, why: str) -> Report:
        """What is said of a file that the process did not survive; h5py does not survive making every file."""
        self.end()
        if not target:
            return Report(case=case, endings={})
        failure = f"{target}: {why}\n{self._log.read_text()[-_LOG_TAIL:]}"
        return Report(case=case, endings={target: ("failed", why)}, failures=[failure])

    def end(self) -> None:
        """Stop the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _seconds(pid: int | None) -> float:
    """Time of the processor that a process used; infinite for one that died, which is found out next."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _work(pipe: Connection, folder: Path, seed: int, bases: Mapping[str, bytes], names: Sequence[str]) -> None:
    """A worker's life: it takes numbers, makes their files, runs every target on each, and tells."""
    from robustness.targets import TARGETS  # in the worker alone: its imports take seconds

    with (folder / "faults.log").open("w") as log:
        _confine(folder)
        faulthandler.enable(log)
        write_outside(folder)
        (folder / PARTNER).write_bytes(bases["partner"])
        cases, watch, path = Cases(seed, bases), Watch(folder), folder / "case.h5"
        whole = bases["partner"]
        for name in names:  # what is imported late is imported before anything is watched
            path.write_bytes(whole)
            TARGETS[name](path, folder)
        pipe.send("ready")
        crowded = _memory("VmRSS") + _ROOM
        while True:
            case = cases.make(pipe.recv(), path)
            endings, failures, slowest = {}, [], 0.0
            crowded = _settled(crowded)
            for name in names:
                pipe.send((case, name))
                faulthandler.dump_traceback_later(SECONDS_LIMIT - 1, file=log)
                start = time.process_time()
                with watch.watching() as opened:
                    ending = TARGETS[name](path, folder)
                slowest = max(slowest, time.process_time() - start)
                faulthandler.cancel_dump_traceback_later()
                endings[name] = (ending.verdict, ending.said)
                failures += [f"{name}: {ending.said}"] if ending.verdict == "failed" else []
                failures += [f"{name}: read outside the file: {what}" for what in opened]
            memory = _memory("VmHWM")
            failures += [f"memory: {memory >> 20} MiB"] if memory > MEMORY_LIMIT else []
            pipe.send(Report(case=case, endings=endings, failures=failures, memory=memory, seconds=slowest))


def _confine(folder: Path) -> None:
    """What a file names without a folder is looked for in the worker's; no core files; every warning is an error."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    warnings.simplefilter("error")


def _settled(crowded: int) -> int:
    """Give back what making the file took, and let Linux begin its mark of the most memory anew (man 5 proc).

    Args:
        crowded: bytes from which on there is something to give back.

    Returns:
        The same for the next file; what cannot be given back is not tried again.
    """
    if _memory("VmRSS") > crowded:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        crowded = max(crowded, _memory("VmRSS") + _ROOM)
    Path("/proc/self/clear_refs").write_text("5")
    return crowded


def _memory(which: str) -> int:
    """Bytes in memory: now (VmRSS), or at most since the mark was set (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) << 10
