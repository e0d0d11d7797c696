"""The worked notebooks run from the first cell to the last, and the files show what came of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from notebooks import NOTEBOOKS, executed, read, sources

MISSING = [name for name in ("nbclient", "ipykernel", "xarray") if importlib.util.find_spec(name) is None]
LARGEST = 200 << 10  # bytes: a page that loads at once


def shown(notebook: dict[str, Any]) -> list[list[str]]:
    """The kinds of what every cell of code showed."""
    return [
        [kind for output in cell["outputs"] for kind in output.get("data", {output["output_type"]: None})]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.timeout(600)  # 20 seconds on a free core, minutes on a busy one
@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install 'rankkit[dev]'")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_its_file_says(path: Path, tmp_path: Path) -> None:
    found = executed(path, tmp_path)
    assert shown(found) == shown(read(path))
    assert any("image/png" in kinds for kinds in shown(found))
    assert sum("text/html" in kinds for kinds in shown(found)) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_file_of_a_notebook_is_that_of_one_run_and_small(path: Path) -> None:
    notebook, text = read(path), path.read_text(encoding="utf-8")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert len(text) < LARGEST
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    shown_texts = json.dumps([cell["outputs"] for cell in code])
    assert str(Path.home()) not in shown_texts
    assert "/tmp" not in shown_texts


def test_there_is_a_notebook_that_says_what_it_does_not_show() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_look"]
    assert "does not show" in sources(read(NOTEBOOKS[0]))[0]
