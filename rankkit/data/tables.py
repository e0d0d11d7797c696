"""Parquet files and Hugging Face `save_to_disk` folders, read through pyarrow alone (the extra `data`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rankkit.data.documents import Document
from rankkit.errors import ConfigurationError, DataError

__all__ = ["is_saved_dataset", "read_arrow", "read_parquet", "saved_files"]

_ROWS = 256  # documents decoded at a time: bounds memory even where each is a book


def is_saved_dataset(folder: Path, /) -> bool:
    """Whether Hugging Face datasets wrote this folder with `save_to_disk`."""
    is_one_split = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return is_one_split or (folder / "dataset_dict.json").is_file()


def saved_files(folder: Path, /) -> list[Path]:
    """The Arrow files of a `save_to_disk` folder, in its own order; left-over `cache-*.arrow` files are not among them.

    Raises:
        DataError: several splits, or a damaged `state.json`.
    """
    if (folder / "dataset_dict.json").is_file():
        raise DataError(
            f"{folder} must be one split of a dataset, got a dictionary of splits. Name one, as in {folder / 'train'}."
        )
    state = folder / "state.json"
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{state} must list the data files of a dataset, got damage. Save the dataset again."
        ) from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise DataError(f"{folder} must hold the data files of state.json, got {missing!r} missing. Save it again.")
    return [folder / name for name in names]


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigurationError(
            f"{path} must be read with pyarrow, got no such package. Install it: pip install 'rankkit[data]'."
        ) from error
    module: ModuleType = pyarrow
    return module


@contextlib.contextmanager
def _undamaged(pyarrow: ModuleType, path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} must be {kind}, got damage: {reason}. Write the file again.") from error


def read_parquet(path: Path, name: str, text_key: str, /) -> Iterator[Document]:
    """Read one document per row of a Parquet file, a few hundred rows at a time.

    Raises:
        DataError: damaged, no such column, or a row without text.
        ConfigurationError: pyarrow is not installed.
    """
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    with _undamaged(pyarrow, path, "a Parquet file"), parquet.ParquetFile(path) as file:
        _check_column(file.schema_arrow.names, path, text_key)
        yield from _rows(file.iter_batches(batch_size=_ROWS, columns=[text_key]), path, name, text_key)


def read_arrow(path: Path, name: str, text_key: str, /) -> Iterator[Document]:
    """Read one document per row of an Arrow stream file, as `save_to_disk` writes them.

    Raises:
        DataError: damaged, no such column, or a row without text.
        ConfigurationError: pyarrow is not installed.
    """
    pyarrow = _pyarrow(path)
    from pyarrow import ipc

    with (
        _undamaged(pyarrow, path, "an Arrow stream"),
        pyarrow.memory_map(str(path)) as file,
        ipc.open_stream(file) as reader,
    ):
        _check_column(reader.schema.names, path, text_key)
        yield from _rows(reader, path, name, text_key)


def _check_column(columns: list[str], path: Path, text_key: str) -> None:
    if columns.count(text_key) != 1:
        raise DataError(
            f"{path} must have one column {text_key!r}, got the columns {columns[:8]!r}. Name the column with text_key."
        )


def _rows(batches: Iterable[Any], path: Path, name: str, text_key: str) -> Iterator[Document]:
    number = 0
    for batch in batches:
        for value in batch.column(text_key):
            text = value.as_py()
            if not isinstance(text, str):
                raise DataError(
                    f"{path} row {number} must hold a string in column {text_key!r}, got {type(text).__name__}. "
                    "Repair the row or drop it."
                )
            yield Document(f"{name} row {number}", text)
            number += 1
