"""Writes the table of `make faults` from its summary: run `make page`."""

from __future__ import annotations

import json
from pathlib import Path

from generated import written
from robustness.fault_table import fault_table

SUMMARIES = Path(__file__).parents[2] / "experiments" / "robustness"
PAGE = SUMMARIES / "README.md"


def tables() -> dict[str, str]:
    """Every generated part of the page by the name in its markers."""
    makers = {"faults": fault_table}
    return {
        name: make(json.loads((SUMMARIES / f"{name}.json").read_text(encoding="utf-8")))
        for name, make in makers.items()
    }


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
