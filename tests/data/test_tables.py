"""Parquet files and save_to_disk folders through pyarrow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rankkit.data import DataConfig, read_documents
from rankkit.errors import ConfigurationError, DataError

pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")


def texts(path: Path, key: str = "text") -> list[str]:
    return [document.text for document in read_documents(DataConfig(text=(str(path),), text_key=key))]


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_arrow(path: Path, rows: list[str]) -> None:
    table = pyarrow.table({"text": rows})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def save_dataset(folder: Path, *shards: list[str]) -> Path:
    """What `datasets.Dataset.save_to_disk` leaves: Arrow streams and state.json."""
    folder.mkdir()
    files = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for file, rows in zip(files, shards, strict=True):
        write_arrow(folder / file, rows)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in files]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_parquet_gives_one_document_per_row(tmp_path: Path) -> None:
    rows = [f"row {number} €" for number in range(600)]  # more than one batch
    path = write_parquet(tmp_path / "a.parquet", body=rows, id=list(range(600)))
    assert texts(path, "body") == rows
    assert texts(tmp_path, "body") == rows


def test_saved_dataset_is_read_in_its_own_order_without_cache_files(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "set", ["one", "two"], ["three"])
    write_arrow(folder / "cache-123.arrow", ["stale"])
    assert texts(folder) == ["one", "two", "three"]


def test_folder_with_another_state_file_is_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "a.txt").write_text("text")
    assert texts(tmp_path) == ["text"]


def test_missing_column_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["x"])
    with pytest.raises(DataError, match=r"a.parquet must have one column 'text', got the columns \['body'\]"):
        texts(path)


@pytest.mark.parametrize(("rows", "kind"), [(["x", None], "NoneType"), ([1, 2], "int")])
def test_row_without_text_is_named(tmp_path: Path, rows: list[Any], kind: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=rows)
    with pytest.raises(DataError, match=f"row [01] must hold a string in column 'text', got {kind}"):
        texts(path)


@pytest.mark.parametrize("content", [b"PAR1 no PAR1", b"x"])
def test_damaged_parquet_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet must be a Parquet file, got damage"):
        texts(tmp_path / "a.parquet")


def test_truncated_arrow_is_one_error(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "set", ["text " * 1000])
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"arrow must be"):
        texts(folder)


def test_dictionary_of_splits_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(
        DataError, match=r"must be one split of a dataset, got a dictionary of splits. Name one, as in .*train"
    ):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "state.json must list the data files of a dataset, got damage"),
        ("[]", "state.json must list the data files"),
        ('{"_data_files": [{}]}', "state.json must list the data files"),
        ('{"_data_files": []}', "must hold the data files of state.json"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"\['gone.arrow'\] missing"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', r"\['../a.arrow'\] missing"),
    ],
)
def test_damaged_dataset_folder_is_one_error(tmp_path: Path, state: str, message: str) -> None:
    (tmp_path / "state.json").write_text(state)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=message):
        texts(tmp_path)


def test_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rankkit\[data\]'"):
        texts(path)
