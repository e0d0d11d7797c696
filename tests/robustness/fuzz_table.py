"""The README's table of a fuzz run, from its summary.

python tests/robustness/fuzz_table.py experiments/robustness/fuzz.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["fuzz_table"]

_VERDICTS = ("accepted", "problem", "refused", "failed")
_HEADINGS = ("command", "accepted", "problems listed", "one clear error", "anything else")


def fuzz_table(summary: Mapping[str, Any]) -> str:
    """A table with a row for each command, and a line on what it took.

    Args:
        summary: from `robustness.fuzz.summary`.

    Returns:
        Markdown, ending in a newline.
    """
    rows = [
        (f"`{target}`", *(f"{counts.get(verdict, 0):,}" for verdict in _VERDICTS))
        for target, counts in summary["outcomes"].items()
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (_HEADINGS, ("---", *["---:"] * len(_VERDICTS)), *rows)]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary["files"]["by_kind"].items())
    memory, slowest = summary["peak_memory_bytes"], summary["slowest"]
    versions = summary["versions"]
    seeds = ", ".join(map(str, summary["seeds"]))
    lines += [
        "",
        f"{summary['files']['total']:,} files ({kinds}; seed {seeds}), {summary['date'][:10]}: {len(summary['failures'])} "
        f"failures. At most {memory['found'] / 2**20:.0f} MiB in memory (limit {memory['limit'] >> 20}), Python and its "
        f"libraries included; the slowest command took {slowest['seconds']:.1f} s (limit {slowest['limit']:.0f}). "
        f"HDF5 {versions['HDF5']}, h5py {versions['h5py']}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(fuzz_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
