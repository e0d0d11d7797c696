"""Faults while runs and files are written: kills at every system call and at random moments, full and broken disks.

    make faults                                              every fault, into build/faults.json
    PYTHONPATH=tests python -m robustness.faults --sample 20 --seed 1

A command is run undisturbed once, and its system calls on files are counted. Then it is disturbed at each of them in
turn, in every way that the call can fail, and killed at random moments. After every fault: exit code 1 and one line that
says what to do, unless it was killed; whole files under final names; and the command that continues takes over everything
that was finished and ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Final

from robustness.fault_checks import Problem
from robustness.fault_command import import_all
from robustness.fault_exports import Making
from robustness.fault_injection import Fault, Injector, build_shim, why_no_shim
from robustness.fault_inputs import WORKLOADS, make_inputs
from robustness.fault_table import CATEGORIES, KINDS, fault_table
from robustness.fault_workloads import Workload

__all__ = ["main", "run"]

_BY_CALL: Final = {
    "write": ("kill", "torn", "full", "EIO"),
    "create": ("kill", "full", "EIO"),
    "fsync": ("kill", "ENOSPC", "EIO"),
    "rename": ("kill", "ENOSPC", "EIO"),
    "remove": ("kill", "EIO"),
    "other": ("kill", "EIO"),
}
"""How each kind of call fails on real machines."""
_MOMENTS: Final = 20  # random kills of each workload
_SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER


def faults_of(workload: Workload, seed: int) -> list[tuple[Fault, str]]:
    """Every fault of a workload: each call in turn in every way, and random moments."""
    at_calls = [
        (Fault(kind, call.number), call.kind)
        for call in workload.disturbed()
        for kind in (("kill",) if workload.is_repeated(call) else _BY_CALL[call.kind])
    ]
    if workload.fresh:
        at_calls += [(Fault("die", call.number), call.kind) for call in workload.disturbed()]
    dice = random.Random(f"{seed} {workload.name}")
    moments = [(Fault("moment", seconds=dice.uniform(0, workload.seconds)), "") for _ in range(_MOMENTS)]
    return at_calls + moments


def sample(faults: Sequence[tuple[Fault, str]], count: int, seed: int) -> list[tuple[Fault, str]]:
    """Some of them, as many of each kind as there can be."""
    dice = random.Random(seed)
    by_kind = {kind: [entry for entry in faults if entry[0].kind == kind] for kind in KINDS}
    for entries in by_kind.values():
        dice.shuffle(entries)
    chosen: list[tuple[Fault, str]] = []
    while len(chosen) < min(count, len(faults)):
        chosen += [entries.pop() for entries in by_kind.values() if entries]
    return chosen[:count]


def _work(
    number: int, faults: Sequence[tuple[Fault, str]], workload: Workload, injector: Injector, pause: Path | None
) -> None:
    """A worker: try faults one after the other; results go to a file, one JSON object a line."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    _pin(number)
    injector.place.mkdir(parents=True, exist_ok=True)
    with (injector.scratch / "results.jsonl").open("w", encoding="utf-8") as file:
        for fault, call in faults:
            while pause is not None and pause.exists():
                sleep(1)
            ended, problems = workload.try_fault(injector, fault)
            found = [[problem.category, problem.text] for problem in problems]
            line = {"fault": str(fault), "kind": fault.kind, "call": call, "fired": ended.fired, "problems": found}
            file.write(json.dumps(line) + "\n")
            file.flush()


@functools.cache
def _cores() -> list[int]:
    """Those of this process before it keeps to one."""
    return sorted(os.sched_getaffinity(0))


def _pin(number: int) -> None:
    """Stay on one core: how many there are decides the threads of a run, and threads its bits."""
    os.sched_setaffinity(0, {_cores()[number % len(_cores())]})


def disturb(
    workload: Workload, faults: Sequence[tuple[Fault, str]], shim: Path, scratch: Path, workers: int, pause: Path | None
) -> list[dict[str, Any]]:
    """Try all faults of a workload, several at a time; returns the results."""
    context = multiprocessing.get_context("fork")  # this process has imported everything, and has one thread
    processes, found = [], []
    injectors = [Injector(shim=shim, scratch=scratch / f"worker-{number}") for number in range(workers)]
    for number, injector in enumerate(injectors):
        arguments = (number, faults[number::workers], workload, injector, pause)
        injector.scratch.mkdir(exist_ok=True)
        processes.append(context.Process(target=_work, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode != 0 for process in processes):
        raise RuntimeError("a worker did not come to its end; see its traceback above")
    for injector in injectors:
        lines = (injector.scratch / "results.jsonl").read_text(encoding="utf-8").splitlines()
        found += [json.loads(line) for line in lines]
    return found


def summary_of(workload: Workload, results: Sequence[Mapping[str, Any]], begun: Sequence[Problem]) -> dict[str, Any]:
    """What came of a workload."""
    problems = [["undisturbed", problem.category, problem.text] for problem in begun]
    problems += [[result["fault"], *problem] for result in results for problem in result["problems"]]
    fired = [result for result in results if result["fired"]]
    return {
        "calls": dict(Counter(call.kind for call in workload.calls)),
        "faults": {kind: sum(result["kind"] == kind for result in fired) for kind in KINDS},
        "at": dict(Counter(result["call"] for result in fired if result["call"])),
        "not_reached": len(results) - len(fired),
        "problems": {category: sum(found[1] == category for found in problems) for category in CATEGORIES},
        "examples": problems[:20],
    }


def run(
    names: Sequence[str], *, count: int | None, seed: int, workers: int, pause: Path | None, scratch: Path
) -> dict[str, Any]:
    """Disturb the workloads of those names.

    Args:
        names: from WORKLOADS.
        count: faults of each; None for all.
        seed: of the moments, and of the choice.
        workers: faults tried at a time.
        pause: nothing is begun while this file exists.
        scratch: an empty folder.

    Returns:
        The summary.
    """
    started = perf_counter()
    _pin(0)
    import_all()
    shim = build_shim(scratch)
    first = Injector(shim=shim, scratch=scratch / "first")
    first.place.mkdir(parents=True)
    inputs = scratch / "inputs"
    workloads = [WORKLOADS[name](name, inputs) for name in names]
    make_inputs(first, inputs, shards=any(isinstance(workload, Making) for workload in workloads))
    found: dict[str, Any] = {}
    for workload in workloads:
        name = workload.name
        begun = workload.learn(first)
        faults = faults_of(workload, seed) if workload.calls else []
        most = min(each for each in (count, workload.at_most, len(faults)) if each is not None)
        chosen = faults if most == len(faults) else sample(faults, most, seed)
        results = disturb(workload, chosen, shim, scratch, workers, pause)
        found[name] = summary_of(workload, results, begun)
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(perf_counter() - started),
        "seed": seed,
        "versions": {name: version(name) for name in ("rankkit", "torch", "h5py", "numpy", "safetensors")},
        "platform": platform.platform(),
        "faults": sum(sum(each["faults"].values()) for each in found.values()),
        "problems": {category: sum(each["problems"][category] for each in found.values()) for category in CATEGORIES},
        "workloads": found,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m robustness.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/faults.json"), help="the summary")
    parser.add_argument("--sample", type=int, help="faults of each workload; all of them unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="faults tried at a time")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="all unless given")
    parser.add_argument("--pause-while", type=Path, help="begin nothing while this file exists")
    options = parser.parse_args(arguments)
    if reason := why_no_shim():
        print(f"Error: faults cannot be injected here: {reason}.", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="rankkit-faults-"))  # no context: every child would remove it at its end
    try:
        summary = run(
            options.workload or list(WORKLOADS), count=options.sample, seed=options.seed, workers=options.workers,
            pause=options.pause_while, scratch=folder.resolve(),
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(fault_table(summary), end="")
    return int(any(summary["problems"].values()))


if __name__ == "__main__":
    sys.exit(main())
