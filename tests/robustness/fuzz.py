"""`make fuzz`: mutated and hand-made hostile files against everything that reads a file.

    python -m robustness.fuzz --files 20000 --seed 0 --out build/fuzz.json      (in tests/)
    python -m robustness.fuzz --only 1234                                       one file of that run, with what is said
    python -m robustness.fuzz --only 1234 --write hostile.h5                    the file itself
    python -m robustness.fuzz --combine a.json b.json --out build/fuzz.json     parts of a run (--first 10000 --files 10000)

Every file ends in success or in one clear error; the process does not die, hang, take more than 512 MiB or open another
file. The exit code is 1 where one did. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
from robustness.cases import Cases
from robustness.workers import GROUPS, MEMORY_LIMIT, SECONDS_LIMIT, Report, fuzz

__all__ = ["combined", "main", "summary"]

_PACKAGES = ("rankkit", "h5py", "numpy", "xarray", "pyarrow", "torch")
_TOLD_EVERY = 250  # files


def summary(reports: Iterable[Report], *, seed: int, seconds: float) -> dict[str, Any]:
    """Everything that is known of a run, for JSON.

    Args:
        reports: of all files.
        seed: of the run.
        seconds: how long it took.
    """
    kinds: Counter[str] = Counter()
    outcomes: dict[str, Counter[str]] = {target: Counter() for group in GROUPS for target in group}
    hand_made: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    failures: list[dict[str, Any]] = []
    every = list(reports)
    for report in every:
        case = report.case
        kinds[case.kind] += 1
        for target, (verdict, _) in report.endings.items():
            outcomes.setdefault(target, Counter())[verdict] += 1
        if case.kind == "hand-made":
            hand_made[case.name][case.base] = {target: verdict for target, (verdict, _) in report.endings.items()}
        if report.failures:
            failures.append({"number": case.number, "kind": case.kind, "base": case.base, "name": case.name,
                             "what": list(report.failures)})  # fmt: skip
    slowest, largest = (max(every, key=lambda report: getattr(report, key)) for key in ("seconds", "memory"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": [seed],
        "files": {"total": len(every), "by_kind": dict(sorted(kinds.items()))},
        "outcomes": {target: dict(sorted(counts.items())) for target, counts in outcomes.items()},
        "hand_made": dict(hand_made),
        "failures": failures,
        "peak_memory_bytes": {"limit": MEMORY_LIMIT, "found": largest.memory, "number": largest.case.number},
        "slowest": {"limit": SECONDS_LIMIT, "seconds": round(slowest.seconds, 2), "number": slowest.case.number},
        "duration_seconds": round(seconds),
        "versions": _versions(),
    }


def combined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of several, of different files.

    Args:
        parts: from `summary`.
    """
    files = {"total": sum(part["files"]["total"] for part in parts)}
    last = max(parts, key=lambda part: part["date"])
    return {
        **last,
        "seeds": sorted({seed for part in parts for seed in part["seeds"]}),
        "files": {**files, "by_kind": _sums([part["files"]["by_kind"] for part in parts])},
        "outcomes": {target: _sums([part["outcomes"][target] for part in parts]) for target in last["outcomes"]},
        "hand_made": {name: ends for part in parts for name, ends in part["hand_made"].items()},
        "failures": [failure for part in parts for failure in part["failures"]],
        "peak_memory_bytes": max((part["peak_memory_bytes"] for part in parts), key=lambda peak: peak["found"]),
        "slowest": max((part["slowest"] for part in parts), key=lambda slow: slow["seconds"]),
        "duration_seconds": sum(part["duration_seconds"] for part in parts),
    }


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {**packages, "HDF5": h5py.version.hdf5_version, "Python": platform.python_version()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from robustness.bases import write_bases  # not above: worker processes import this module, and do without torch

    options = _parser().parse_args(arguments)
    if options.combine:
        found = combined([json.loads(part.read_text(encoding="utf-8")) for part in options.combine])
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return 1 if found["failures"] else 0
    with tempfile.TemporaryDirectory() as folder:
        bases = write_bases(Path(folder))
    if options.only is not None:
        return _one(options.only, options, bases)
    numbers, begun = range(options.first, options.first + options.files), time.monotonic()
    reports = []
    for report in fuzz(
        numbers,
        seed=options.seed,
        bases=bases,
        workers=options.workers,
        keep=options.out.parent / "fuzz",
        pause=options.pause_while,
    ):
        reports.append(report)
        _tell(report, len(reports), options.files, begun)
    found = summary(reports, seed=options.seed, seconds=time.monotonic() - begun)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{len(reports):,} files, {len(found['failures'])} failures: {options.out}")
    return 1 if found["failures"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000, help="how many (20000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (0)")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz.json"), help="the summary (build/fuzz.json)")
    parser.add_argument("--pause-while", type=Path, help="begin no file while this one exists")
    parser.add_argument("--combine", type=Path, nargs="+", help="summaries to put together; nothing is run")
    parser.add_argument("--only", type=int, help="number of a single file")
    parser.add_argument("--write", type=Path, help="with --only: write the file and do nothing else")
    return parser


def _tell(report: Report, done: int, total: int, begun: float) -> None:
    """Failures at once, and now and then how far it is."""
    for failure in report.failures:
        print(f"FAILED {report.case.number} ({report.case.kind}, {report.case.base}, {report.case.name}) {failure}")
    if done % _TOLD_EVERY == 0:
        left = (time.monotonic() - begun) / done * (total - done)
        print(f"{done:,} of {total:,}, {left / 60:.0f} minutes left", file=sys.stderr, flush=True)


def _one(number: int, options: argparse.Namespace, bases: Mapping[str, bytes]) -> int:
    """Write one file, or say what becomes of it."""
    if options.write is not None:
        print(Cases(options.seed, bases).make(number, options.write))
        return 0
    with contextlib.closing(fuzz([number], seed=options.seed, bases=bases)) as reports:
        report = next(reports)
    print(report.case)
    for target, (verdict, said) in report.endings.items():
        print(f"{target}: {verdict} {said}")
    for failure in report.failures:
        print(f"FAILED {failure}")
    print(f"{report.memory >> 20} MiB, {report.seconds:.2f} s")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
