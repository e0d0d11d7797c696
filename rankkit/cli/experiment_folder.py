"""Where `rankkit run` leaves the results of an experiment, of whatever kind."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rankkit.cli.console import command_line, plain

if TYPE_CHECKING:
    import torch

    from rankkit.studies.experiments.experiment import Experiment

__all__ = ["check_folder", "write_results", "write_values"]

DECLARATION: Final = "experiment.toml"  # the copy beside the results, and what makes a folder ours to replace


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse to replace what is not an experiment's results, or is without `force`.

    Raises:
        OutputExistsError: something else has that name.
    """
    from rankkit.errors import OutputExistsError
    from rankkit.files import check_output_folder

    if force and folder.exists() and folder.resolve() != Path.cwd() and any(folder.iterdir()):
        if not (folder / DECLARATION).is_file():
            raise OutputExistsError(
                f"{folder} must hold an experiment's results to be replaced, got something without {DECLARATION}. "
                "Choose another --out."
            )
        return
    check_output_folder(folder, force=False)


def write_results(experiment: Experiment, folder: Path, found: Mapping[str, Any], device: torch.device) -> None:
    """The declaration and `results.json`, with the machine and the command."""
    import torch

    from rankkit.files import write_json, write_text
    from rankkit.training.environment import environment

    facts = {
        "command": command_line(),
        "assignments": list(experiment.assignments),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(device, torch.float64, torch.get_num_threads()),
    }
    write_text(folder / DECLARATION, experiment.text)
    write_json(folder / "results.json", plain({**facts, **found}))


def write_values(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`values.csv`: one line for every number."""
    table = list(rows)
    with (folder / "values.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
