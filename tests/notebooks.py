"""Runs the worked notebooks; as a program it writes what they showed back into them: `make page`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["FOLDER", "NOTEBOOKS", "executed", "read", "sources"]

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 240  # of one cell: a busy machine takes several times what a free one does


def read(path: Path) -> dict[str, Any]:
    """What a notebook's file holds."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def sources(notebook: dict[str, Any]) -> list[str]:
    """The text of every cell."""
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def executed(path: Path, folder: Path) -> dict[str, Any]:
    """The notebook with what a fresh kernel shows, run in another folder.

    Raises:
        CellExecutionError: a cell raised.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()
    found: dict[str, Any] = json.loads(nbformat.writes(notebook))
    return found


def _written(notebook: dict[str, Any]) -> str:
    """Without what differs between machines and says nothing."""
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in NOTEBOOKS:
        with TemporaryDirectory() as folder:
            name.write_text(_written(executed(name, Path(folder))), encoding="utf-8")
