"""A spectrum file as a tidy table that pandas, R or a spreadsheet opens: CSV or Parquet.

A number that is not known, nan in HDF5, is an empty cell in CSV and null in Parquet: what pandas, R, polars and SQL take
for missing (R reads "nan" as a word; SQL and polars average over nan). Infinity is `Inf` and `-Inf`. Floats have as many
digits as it takes to read back the very same number.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.files import check_output_file, write_atomically
from rankkit.store.tables.selection import Select
from rankkit.store.tables.tidy import TidyTable, tidy_table
from rankkit.store.variables import Variable

__all__ = ["FORMATS", "Exported", "Progress", "TableFormat", "column_facts", "export_table"]

TableFormat = Literal["csv", "parquet"]

Blocks = Iterator[dict[str, NDArray[Any]]]

FORMATS: Final[tuple[TableFormat, ...]] = get_args(TableFormat)
"""Kinds of files that can be written."""

_CSV_ROWS = 4096  # rows that are Python objects at a time: 60 columns of them take 16 MB
_INFINITE = {math.inf: "Inf", -math.inf: "-Inf"}  # as R spells it, the strictest of those who read CSV


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an export is."""

    done: int
    """Rows written."""
    total: int
    """Rows in all."""
    label: str
    """What is being done."""
    unit: str = "row"
    """What is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written."""

    path: Path
    """Where it is."""
    size: int
    """Bytes."""
    rows: int
    """Rows of the table."""
    columns: tuple[Variable, ...]
    """Its columns."""
    quantities: tuple[Variable, ...]
    """What the words of the column `quantity` mean; empty where there is no such column."""
    left_out: tuple[str, ...]
    """Baselines that the spectrum file holds and the table does not, because none were asked for."""


def export_table(
    path: str | Path,
    out: str | Path,
    *,
    to: TableFormat,
    table: str = "matrices",
    select: Select | None = None,
    baselines: bool = False,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Exported:
    """Write one table of a spectrum file, whole or not at all, in memory that does not grow with it.

    Args:
        path: the spectrum file.
        out: the file to make.
        to: its format.
        table: one of rankkit.store.TABLES.
        select: labels to take, by arm or axis, as for `rankkit.store.tidy_table`.
        baselines: whether baselines are in the table too.
        force: whether an existing file may be replaced.
        progress: called after every block of rows.

    Raises:
        ConfigurationError: there is no such format or table, the selection does not fit the file, pyarrow is missing for
            Parquet, or `out` is the spectrum file.
        SpectrumFileError: the spectrum file cannot be read.
        OutputExistsError: `out` exists and `force` is false, or it is a folder.
        StorageError: the file system refuses.
    """
    path, out = Path(path), Path(out)
    if to not in FORMATS:
        raise ConfigurationError(f"to must be one of {', '.join(FORMATS)}, got {to!r}. Choose one of them.")
    write = _write_csv if to == "csv" else _parquet_writer()
    if out.exists() and path.exists() and out.samefile(path):
        raise ConfigurationError(f"out must not be the file that is read, got {out}. Choose another name.")
    check_output_file(out, force=force)
    with tidy_table(path, table, select=select, baselines=baselines) as found:
        blocks = _watched(found, progress)
        write_atomically(out, lambda temporary: write(found, blocks, temporary))
        return Exported(
            path=out,
            size=out.stat().st_size,
            rows=found.rows,
            columns=found.columns,
            quantities=found.quantities,
            left_out=found.left_out,
        )


def _watched(table: TidyTable, progress: Callable[[Progress], None] | None) -> Blocks:
    """The blocks of a table, with a word after each when it was used."""
    total, done = table.rows, 0
    for block in table.blocks():
        yield block
        done += _rows(block)
        if progress is not None:
            progress(Progress(done=done, total=total, label=f"{done:,} of {total:,} rows"))


def _rows(block: Mapping[str, NDArray[Any]]) -> int:
    return next(iter(block.values())).size


def _write_csv(table: TidyTable, blocks: Blocks, path: Path) -> None:
    """RFC 4180 but for the line ends, which are a newline."""
    names = [column.name for column in table.columns]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for block in blocks:
            for start in range(0, _rows(block), _CSV_ROWS):
                chosen = {name: values[start : start + _CSV_ROWS] for name, values in block.items()}
                empty = [None] * _rows(chosen)
                writer.writerows(zip(*(_cells(chosen[n]) if n in chosen else empty for n in names), strict=True))


def _cells(values: NDArray[Any]) -> list[Any]:
    """What the csv module writes: numbers by their repr, None as an empty cell."""
    cells: list[Any] = values.tolist()
    if values.dtype.kind == "f":
        for place in np.flatnonzero(~np.isfinite(values)):
            cells[place] = _INFINITE.get(cells[place])
    return cells


def _parquet_writer() -> Callable[[TidyTable, Blocks, Path], None]:
    """What writes Parquet.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError(
            "to must be csv where pyarrow is not installed, got 'parquet'. Install it: pip install 'rankkit[data]'."
        ) from error

    def write(table: TidyTable, blocks: Blocks, path: Path) -> None:
        schema = _parquet_schema(pyarrow, table)
        with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
            for block in blocks:
                columns = [
                    _parquet_column(pyarrow, field.type, block.get(field.name), _rows(block)) for field in schema
                ]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))  # one row group

    return write


def _parquet_schema(pyarrow: ModuleType, table: TidyTable) -> Any:
    """Types as stored, texts by a dictionary; what every column and the file mean in the metadata."""
    fields = []
    for column in table.columns:
        text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        kind = text if column.dtype == "string" else pyarrow.from_numpy_dtype(np.dtype(column.dtype))
        fields.append(pyarrow.field(column.name, kind, metadata=column_facts(column)))
    facts = {
        "attributes": table.attributes,
        "quantities": {column.name: column_facts(column) for column in table.quantities},
    }
    return pyarrow.schema(fields, metadata={"rankkit": json.dumps(facts)})


def column_facts(column: Variable) -> dict[str, str]:
    """What a column means: long_name, units, definition and source, those it has."""
    return {key: text for key, text in column.attributes.items() if isinstance(text, str)}


def _parquet_column(pyarrow: ModuleType, kind: Any, values: NDArray[Any] | None, rows: int) -> Any:
    """A column in which nan, and no text, are null."""
    if values is None:
        return pyarrow.nulls(rows, kind)
    if values.dtype.kind == "U":
        return pyarrow.array(values, pyarrow.string(), mask=values == "").dictionary_encode()
    return pyarrow.array(values, kind, from_pandas=True)
