"""`rankkit export`: the tables that pandas and pyarrow read are the file's numbers, whole or absent."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from store.rich_file import write_rich
from store.spectra_file import edited, write_spectra

from rankkit.cli import main
from rankkit.cli.export import command
from rankkit.errors import ConfigurationError, StorageError
from rankkit.store import TABLES, export_table, read_group, tidy_table
from rankkit.store.tables.export import FORMATS, Progress

pandas = pytest.importorskip("pandas", reason="the extra `xarray` is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich(tmp_path_factory.mktemp("rich") / "spectrum.h5")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_spectra(tmp_path / "spectrum.h5")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def columns(path: Path, table: str, **options: Any) -> dict[str, np.ndarray]:
    with tidy_table(path, table, **options) as tidy:
        blocks = list(tidy.blocks())
        sizes = [len(next(iter(block.values()))) for block in blocks]
        return {
            c.name: np.concatenate([b.get(c.name, np.full(n, np.nan)) for b, n in zip(blocks, sizes, strict=True)])
            for c in tidy.columns
        }


def assert_equal_bits(found: Any, expected: np.ndarray) -> None:
    """The same numbers to the last bit, nan where nan; or the same words."""
    if expected.dtype.kind in "US":
        assert [word if isinstance(word, str) else "" for word in found] == [
            "" if word == "nan" else word for word in expected.tolist()
        ]
        return
    numbers, wanted = np.asarray(found, dtype=np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(numbers), np.isnan(wanted))
    known = ~np.isnan(wanted)
    assert numbers[known].tobytes() == wanted[known].tobytes()


@pytest.mark.parametrize("table", ["matrices", "layer_outputs", "comparison", "functional"])
def test_pandas_reads_the_numbers_of_the_file_from_csv(rich: Path, tmp_path: Path, table: str) -> None:
    result = invoke(rich, "--to", "csv", "--table", table, "--baselines", "--out", tmp_path / "a.csv")
    assert result.exit_code == 0, result.output
    frame = pandas.read_csv(tmp_path / "a.csv")
    expected = columns(rich, table, baselines=True)
    assert list(frame.columns) == list(expected)
    for name, values in expected.items():
        assert_equal_bits(frame[name], values)


def test_baselines_of_a_file_without_any_are_refused_by_name(small: Path, tmp_path: Path) -> None:
    result = invoke(small, "--to", "csv", "--baselines", "--out", tmp_path / "a.csv")
    assert result.exit_code == 1
    assert f"{small} must hold baselines for --baselines, got none." in result.stderr
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("table", ["matrices", "layer_outputs", "comparison", "functional"])
def test_pyarrow_reads_the_numbers_of_the_file_from_parquet(rich: Path, tmp_path: Path, table: str) -> None:
    result = invoke(rich, "--to", "parquet", "--table", table, "--baselines", "--out", tmp_path / "a.parquet")
    assert result.exit_code == 0, result.output
    found = parquet.read_table(tmp_path / "a.parquet")
    expected = columns(rich, table, baselines=True)
    assert found.column_names == list(expected)
    for name, values in expected.items():
        assert_equal_bits(found[name].to_pandas(), values)
        assert not any(value != value for value in found[name].to_pylist())  # what is not known is null, never nan


def test_parquet_keeps_types_and_says_what_columns_mean(rich: Path, tmp_path: Path) -> None:
    invoke(rich, "--to", "parquet", "--out", tmp_path / "a.parquet")
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    assert kinds["arm"] == kinds["status"] == "dictionary<values=string, indices=int32, ordered=0>"
    assert (kinds["seed"], kinds["rows"], kinds["untrained"]) == ("int64", "int32", "int8")
    assert kinds["effective_rank"] == kinds["effective_rank_lower"] == "double"
    facts = file.schema_arrow.field("attention_entropy").metadata
    assert facts[b"definition"].decode() == "the attention_entropy of é"
    assert set(facts) == {b"long_name", b"definition", b"source", b"units"}
    about = json.loads(file.schema_arrow.metadata[b"rankkit"])
    assert about["attributes"]["gpt"]["mask"] == "causal"
    assert about["attributes"]["/"]["rankkit_schema"].startswith("1.")
    invoke(rich, "--to", "parquet", "--table", "comparison", "--out", tmp_path / "b.parquet")
    about = json.loads(parquet.read_schema(tmp_path / "b.parquet").metadata[b"rankkit"])
    assert about["quantities"]["gap"]["definition"].startswith("y(c, own) - y(p, own)")


def test_each_block_of_rows_is_a_row_group(rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankkit.store.tables.parts.BLOCK_ROWS", 48)
    seen: list[Progress] = []
    found = export_table(rich, tmp_path / "a.parquet", to="parquet", progress=seen.append)
    metadata = parquet.ParquetFile(tmp_path / "a.parquet").metadata
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert max(sizes) <= 48
    assert sum(sizes) == found.rows == read_group(rich, "gpt", ["status"])["status"].size
    assert [(step.done, step.total) for step in seen] == [(sum(sizes[: n + 1]), found.rows) for n in range(len(sizes))]
    assert seen[-1].label == f"{found.rows:,} of {found.rows:,} rows"


def test_a_csv_cell_is_empty_where_nothing_is_known_and_inf_is_spelt_as_r_does(small: Path, tmp_path: Path) -> None:
    def edit(file: Any) -> None:
        file["gpt/stable_rank"][0, 0, 0, 0, 0, 0, 0] = np.inf
        file["gpt/stable_rank"][0, 0, 0, 0, 0, 0, 1] = -np.inf
        file["gpt/effective_rank"][0, 0, 0, 0, 0, 0, 0] = np.nan
        file["gpt/effective_rank"][0, 0, 0, 0, 0, 0, 1] = 0.1 + 0.2

    result = invoke(edited(small, edit), "--to", "csv", "--select", "seed=0", "layer=0", "region=full")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "spectrum.csv").read_bytes()
    assert b"\r" not in text
    assert text.endswith(b"\n")
    first, second, *_ = csv.DictReader(text.decode().splitlines())
    assert (first["stable_rank"], first["effective_rank"], first["baseline"]) == ("Inf", "", "")
    assert (second["stable_rank"], second["effective_rank"]) == ("-Inf", "0.30000000000000004")


def test_terms_may_follow_select_or_repeat_it_or_share_a_text(small: Path, tmp_path: Path) -> None:
    ways = (
        ("--select", "layer=0:1", "region=full"),
        ("--select", "layer=0:1", "--select", "region=full"),
        ("--select", "layer=0:1 region=full"),
    )
    texts = []
    for way in ways:
        assert invoke(small, "--to", "csv", *way, "--force").exit_code == 0
        texts.append((tmp_path / "spectrum.csv").read_text())
    assert len(set(texts)) == 1
    assert len(texts[0].splitlines()) == 1 + 2 * 2 * 3 * 2


def test_a_run_stands_for_its_spectrum_and_the_table_names_the_file(rich: Path, tmp_path: Path) -> None:
    shutil.copy(rich, tmp_path)
    assert invoke(tmp_path, "--to", "csv").exit_code == 0
    result = invoke(tmp_path, "--to", "parquet", "--table", "comparison")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"spectrum.h5", "spectrum.csv", "spectrum-comparison.parquet"}


def test_the_result_names_rows_columns_and_what_was_left_out(rich: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    result = invoke(rich, "--to", "csv", "--out", out)
    assert result.stderr == "left out: baselines init, logits. Add --baselines to have them too.\n"
    lines = out.read_text().splitlines()
    assert result.stdout.startswith(f"{out}: {len(lines) - 1:,} rows of {len(lines[0].split(','))} columns, ")
    found = json.loads(invoke(rich, "--to", "csv", "--out", out, "--force", "--json", "--quiet").stdout)
    assert (found["rows"], found["bytes"], found["format"]) == (len(lines) - 1, out.stat().st_size, "csv")
    assert found["columns"]["effective_rank"]["definition"] == "the effective_rank of é"
    assert found["baselines_left_out"] == ["init", "logits"]
    assert invoke(rich, "--to", "csv", "--out", out, "--force", "--quiet").stderr == ""


def one_line_error(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in result.output
    return line


def test_an_existing_file_is_replaced_only_with_force(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "spectrum.csv"
    out.write_text("mine")
    assert "must not exist yet. Add --force" in one_line_error(invoke(small, "--to", "csv"), 1)
    assert out.read_text() == "mine"
    assert invoke(small, "--to", "csv", "--force").exit_code == 0
    assert out.read_text().startswith("arm,baseline,seed,")


def test_the_spectrum_file_itself_is_never_replaced(small: Path, tmp_path: Path) -> None:
    before = small.read_bytes()
    (tmp_path / "link.csv").symlink_to(small)
    for out in (small, tmp_path / "link.csv"):
        line = one_line_error(invoke(small, "--to", "csv", "--out", out, "--force"), 2)
        assert "out must not be the file that is read" in line
    assert small.read_bytes() == before


def test_errors_are_one_line_and_leave_nothing(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.csv"
    cases = [
        ((small, "--to", "csv", "--select", "layer=9"), 2, "layer must be among 0, 1, got '9'"),
        ((small, "--to", "csv", "--select", "layer=0", "oops"), 2, "select must be AXIS=LABELS, got 'oops'"),
        ((small, "--to", "csv", "--table", "functional"), 1, "must hold the table functional, got none"),
        ((tmp_path / "none.h5", "--to", "csv"), 1, "must be an HDF5 file, got no such file"),
    ]
    for arguments, code, message in cases:
        assert message in one_line_error(invoke(*arguments, "--out", out), code)
    assert invoke(small).exit_code == 2  # --to is required
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spectrum.h5"]


def test_missing_pyarrow_names_what_to_install(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = one_line_error(invoke(small, "--to", "parquet"), 2)
    assert line.endswith("Install it: pip install 'rankkit[data]'.")
    assert invoke(small, "--to", "csv").exit_code == 0


def test_a_format_that_is_unknown_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="to must be one of csv, parquet, got 'xlsx'"):
        export_table(small, tmp_path / "a", to="xlsx")  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["csv", "parquet"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interruption_leaves_nothing_and_what_was_there_as_it_was(
    rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, after: int
) -> None:
    monkeypatch.setattr("rankkit.store.tables.parts.BLOCK_ROWS", 48)
    out, seen = tmp_path / "a", []
    out.write_text("mine")

    def interrupt(step: Progress) -> None:
        seen.append(step)
        if len(seen) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_table(rich, out, to=to, force=True, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert out.read_text() == "mine"


FULL_DISK = """
import resource, signal, sys
from rankkit.cli import main
from rankkit.cli.export import command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv[1:2] = []
main()
"""


@pytest.mark.parametrize("to", ["csv", "parquet"])
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(rich: Path, tmp_path: Path, to: str, size: int) -> None:
    out = tmp_path / f"a.{to}"
    arguments = [str(size), "export", str(rich), "--to", to, "--out", str(out), "--quiet"]
    process = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.splitlines() == [
        f"Error: {out} must be writable, got: {os.strerror(errno.EFBIG).lower()}. Choose another folder with --out, on a "
        "file system that takes files of that size. What was saved before is intact."
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_in_the_middle_is_a_storage_error(
    rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(step: Progress) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(StorageError, match="no space left on device"):
        export_table(rich, tmp_path / "a.csv", to="csv", progress=full)
    assert list(tmp_path.iterdir()) == []


def test_help_says_where_singular_values_are_and_how_to_read_the_same_numbers() -> None:
    text = " ".join(invoke("--help").stdout.split())
    assert "Singular values are not in it: they are arrays, which HDF5 is for." in text
    assert 'float_precision="round_trip"' in text
    assert "rankkit export runs/tiny/spectrum.h5 --to parquet --select layer=0:3 region=full" in text


def test_the_command_offers_every_format_and_table() -> None:
    choices = {option.name: option.type.choices for option in command.params if hasattr(option.type, "choices")}
    assert choices == {"to": (*FORMATS, "huggingface"), "table": tuple(TABLES)}
