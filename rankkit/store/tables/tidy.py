"""A file's numbers as tidy tables: a row for every matrix, a column for every label and measure.

The same table for every writer and for programs: `tidy_table` opens it, its `blocks` are columns of numbers as they are
stored.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.store.door.hdf5 import DEFAULT_LIMIT, attributes_of, h5py, opened
from rankkit.store.groups.tree import measure_groups
from rankkit.store.layout import Attribute
from rankkit.store.names import baseline_of
from rankkit.store.schema import AXIS_VARIABLES
from rankkit.store.tables.parts import Part
from rankkit.store.tables.rows import COLUMNS, TABLES
from rankkit.store.tables.selection import Select, Selection
from rankkit.store.variables import Variable

__all__ = ["TidyTable", "tidy_table"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TidyTable:
    """One table of an open file."""

    columns: tuple[Variable, ...]
    """Names, types and meanings, in order."""
    quantities: tuple[Variable, ...]
    """What the words of the column `quantity` mean; empty where there is no such column."""
    attributes: Mapping[str, Mapping[str, Attribute]]
    """What the file says beside the numbers: as a whole under "/", of every group in the table under its name."""
    left_out: tuple[str, ...]
    """Baselines that the file holds and the table does not, because none were asked for."""
    parts: tuple[Part, ...] = field(repr=False)
    """The rows."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(part.rows for part in self.parts)

    def blocks(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The rows, at most `BLOCK_ROWS` at a time.

        Yields:
            Arrays of one length by name of the column, numbers in the stored type, nan where one is not known, texts as
            NumPy strings. A column that these rows have no value for is left out.

        Raises:
            SpectrumFileError: a number cannot be read.
        """
        for part in self.parts:
            yield from part.blocks()


@contextlib.contextmanager
def tidy_table(
    path: str | Path,
    table: str = "matrices",
    *,
    select: Select | None = None,
    baselines: bool = False,
    limit: int = DEFAULT_LIMIT,
) -> Iterator[TidyTable]:
    """Open one table of a spectrum file.

    `matrices` has a row for every attention matrix, `layer_outputs` one for every layer's output, `comparison` one for
    every effect of the mask (measure, region, layer, step), and `functional` one for every loss with cut attention.

    Args:
        path: the file.
        table: one of TABLES.
        select: labels to take, by arm, baseline, quantity or axis, such as {"layer": range(3), "region": "full"}; see
            `rankkit.store.tables.selection`. Only the chunks of what is taken are read.
        baselines: whether baselines are in the table too. Those that `select` names are, and then arms are not.
        limit: bytes that one array of the file may take in memory.

    Yields:
        The table, which can be read while the context lasts.

    Raises:
        ConfigurationError: there is no such table, or the selection names what the file does not hold, or leaves nothing.
        SpectrumFileError: the file is missing, damaged, foreign, newer or hostile, or does not hold this table, or no
            baselines where they are asked for.
    """
    if table not in TABLES:
        raise ConfigurationError(f"table must be one of {', '.join(TABLES)}, got {table!r}. Choose one of them.")
    selection = Selection.of(select)
    with opened(path, limit=limit) as file:
        parts, quantities = TABLES[table](file)
        if not parts:
            raise SpectrumFileError(f"{path} must hold the table {table}, got none. Choose another table or file.")
        if baselines:
            _check_baselines(path, file)
        left_out = [] if baselines or "baseline" in selection.choices else _baselines(parts)
        parts = [part for part in parts if part.constants.get("baseline") not in left_out]
        selection.check(_labels(parts))
        chosen = tuple(part for part in (part.chosen(selection) for part in parts) if part is not None)
        if not chosen:
            raise ConfigurationError("select must leave at least one row, got none that all choices take. Choose less.")
        yield TidyTable(
            columns=_columns(chosen),
            quantities=tuple(v for v in quantities if v.name in {part.constants.get("quantity") for part in chosen}),
            attributes=_attributes(file, chosen),
            left_out=tuple(left_out),
            parts=chosen,
        )


def _check_baselines(path: str | Path, file: h5py.File) -> None:
    """Refuse to be asked for baselines where there are none."""
    if all(baseline_of(name) is None for name in measure_groups(file)):
        raise SpectrumFileError(
            f"{path} must hold baselines for --baselines, got none. Leave it out, or measure again with --baselines."
        )


def _baselines(parts: Iterable[Part]) -> list[str]:
    """The names of all baselines, in storage order."""
    return list(dict.fromkeys(str(name) for part in parts if (name := part.constants.get("baseline"))))


def _labels(parts: Sequence[Part]) -> dict[str, NDArray[Any]]:
    """Every label that can be chosen, by constant or axis, ascending."""
    found: dict[str, set[Any]] = {}
    for part in parts:
        for name, value in part.constants.items():
            found.setdefault(name, set()).update([value] if value != "" else [])
        for axis, labels in part.labels.items():
            found.setdefault(axis, set()).update(labels.tolist())
    return {name: np.array(sorted(labels)) for name, labels in found.items()}


def _columns(parts: Iterable[Part]) -> tuple[Variable, ...]:
    """The columns of all parts: constants, axes in their usual order, and the rest as it comes."""
    constants: dict[str, None] = {}
    axes: set[str] = set()
    others: dict[str, Variable] = {}
    for part in parts:
        constants |= dict.fromkeys(part.constants)
        axes |= set(part.labels)
        others |= {entry.column.name: entry.column for entry in part.fields if entry.column.name not in others}
    labels = [*constants, *sorted(axes, key=list(AXIS_VARIABLES).index)]
    return (*(COLUMNS[name] for name in labels), *others.values())


def _attributes(file: h5py.File, parts: Iterable[Part]) -> dict[str, dict[str, Attribute]]:
    groups = {"/": file} | {group.name.strip("/"): group for group in (part.fields[0].dataset.parent for part in parts)}
    return {
        name: {key: value for key, value in attributes_of(group).items() if _is_plain(value)}
        for name, group in groups.items()
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
