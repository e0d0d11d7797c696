"""The README's table of a run of `make faults`, from its summary.

python tests/robustness/fault_table.py experiments/robustness/faults.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["CATEGORIES", "KINDS", "fault_table"]

KINDS: Final = {
    "kill": "killed before a system call",
    "torn": "killed in the middle of a write",
    "die": "one of the processes killed",
    "moment": "killed at a random moment",
    "full": "disk full after half a write",
    "ENOSPC": "no space for one call",
    "EIO": "input/output error of one call",
}
"""Faults, and what they are."""
CATEGORIES: Final = {
    "lost": "something that was finished before the fault is gone, or was computed again",
    "unreadable": "a file under its final name is not whole",
    "wrong": "after resuming, bytes differ from those of an undisturbed run",
    "unclear": "not one clear line and exit code 1",
    "hang": "the command did not end",
    "left behind": "a refused write, or any fault after resuming, left a temporary file",
    "not resumed": "the command could not be completed afterwards",
    "unsynced": "a name was given to bytes that were not on the disk yet",
}
"""What must not happen."""
_COLUMNS: Final = {
    "killed": ("kill", "torn", "die", "moment"),
    "no space": ("full", "ENOSPC"),
    "input/output error": ("EIO",),
    "lost work": ("lost",),
    "broken files": ("unreadable",),
    "wrong bytes after resuming": ("wrong", "not resumed"),
    "anything else": ("unclear", "hang", "left behind", "unsynced"),
}


def fault_table(summary: Mapping[str, Any]) -> str:
    """A table with a row for each command, and a line on what was done.

    Args:
        summary: from `robustness.faults.run`.

    Returns:
        Markdown, ending in a newline.
    """
    counts = {f"`{name}`": Counter(each["faults"] | each["problems"]) for name, each in summary["workloads"].items()}
    counts["all"] = sum(counts.values(), Counter())
    rows = [
        (name, *(f"{sum(found[kind] for kind in kinds):,}" for kinds in _COLUMNS.values()))
        for name, found in counts.items()
    ]
    heading, rule = ("command", *_COLUMNS), ("---", *["---:"] * len(_COLUMNS))
    kinds = ", ".join(f"{counts['all'][kind]:,} {meaning}" for kind, meaning in KINDS.items())
    lines = ["| " + " | ".join(row) + " |" for row in (heading, rule, *rows)]
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items() if name != "rankkit")
    lines += [
        "",
        f"{summary['faults']:,} faults ({kinds}; seed {summary['seed']}), {summary['date']}: "
        f"{sum(summary['problems'].values())} failures in {summary['seconds'] / 60:.0f} minutes. {versions}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(fault_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
