"""The page of the format: its tables are those of the code, its snippets run, and its sentences with numbers hold."""

import hashlib
import re
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest
from generated import written
from store.format_page import _SECTIONS, PAGE, tables

from rankkit.axes import SPECTRUM_AXES
from rankkit.report.measured_arms import measured_arms
from rankkit.spectra import MEASURES
from rankkit.store import BASELINES, schema
from rankkit.store.contents import GroupContents
from rankkit.store.door import blueprint, hdf5
from rankkit.store.variables import MeasureDescription

TEXT = PAGE.read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
TEN_LINES = SNIPPETS[0]


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `runs/demo/spectrum.h5` in it, entered."""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    shutil.copy(finished, tmp_path / "runs" / "demo" / "spectrum.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Tables.


def test_the_tables_are_those_of_the_code() -> None:
    assert written(TEXT, tables()) == TEXT, "the schema or a measure has changed: run `make page`"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(
        ValueError, match="page must hold '<!-- variables: made by `make page` -->' and '<!-- end of var"
    ):
        written("# A page", tables())


def test_every_variable_of_the_schema_has_its_row() -> None:
    description = MeasureDescription(long_name="", definition="", source="")
    everything = GroupContents(
        measures={"M": description}, estimated=("M",), errors=("M",), layer_measures={"M": description}
    )
    shown = {(variable.name, variable.dimensions) for _, variables in _SECTIONS for variable in variables}
    every = chain(
        schema.ROOT_STRINGS,
        schema.AXIS_VARIABLES.values(),
        everything.variables,
        schema.COMPARISON_VARIABLES,
        schema.COMPARISON_BY_STEP_VARIABLES,
        schema.FUNCTIONAL_VARIABLES,
    )
    assert {(variable.name, variable.dimensions) for variable in every} == shown
    rows = [line for line in tables()["variables"].splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(variables) for _, variables in _SECTIONS)
    assert len({line.count(" | ") for line in rows}) == 1


def test_every_variable_is_of_a_version_in_the_history() -> None:
    versions = re.findall(r"^- \*\*(\d+\.\d+)\*\* ", TEXT, flags=re.MULTILINE)
    assert versions == sorted(versions)
    assert versions[-1] == schema.SCHEMA_VERSION
    assert f"This page describes schema {schema.SCHEMA_VERSION};" in TEXT
    assert {variable.since for _, variables in _SECTIONS for variable in variables} <= set(versions)


def test_every_measure_has_its_row() -> None:
    assert re.findall(r"^\| `(\w+)`", tables()["measures"], flags=re.MULTILINE) == list(MEASURES)


def test_every_attribute_and_label_of_the_schema_is_explained() -> None:
    attributes = (
        *schema.ROOT_ATTRIBUTES,
        *schema.HOST_ATTRIBUTES,
        *schema.GROUP_ATTRIBUTES,
        *schema.TOKEN_ATTRIBUTES,
        *schema.OPTIONAL_GROUP_ATTRIBUTES,
        *schema.FUNCTIONAL_ATTRIBUTES,
    )
    listed = TEXT.partition("## Every attribute")[2]
    assert [name for name in attributes if f"`{name}`" not in listed] == []
    labels = (*schema.STATUSES, *schema.APPLIED_MASKS, *schema.BOUNDS, "full", "prefix_block", "first_key_removed")
    assert [name for name in labels if f"`{name}`" not in TEXT] == []
    assert [name for name in BASELINES if name not in TEXT.partition("## Axes")[0]] == []


# Snippets.


def test_ten_lines_of_h5py_give_the_numbers_of_the_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in TEN_LINES.splitlines() if line]) <= 10
    exec(compile(TEN_LINES, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    for arm in measured_arms(folder / "runs" / "demo" / "spectrum.h5", "effective_rank"):
        by_layer = arm.by_layer("prefix_block", "own")  # what the figure "effective rank by layer" draws
        assert by_layer is not None
        for place, layer in enumerate(arm.layers):
            mean, seeds = by_layer[:, place].mean().round(3), by_layer[:, place].round(3)
            flag = "not fully trained" if place in arm.untrained("prefix_block") else ""
            assert lines.pop(0) == f"{arm.name} layer {layer} {mean} {seeds} {flag}"
    assert lines == []


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_python_snippet_runs_and_prints(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet, str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_both_ways_through_xarray_print_the_same_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for snippet in SNIPPETS[1:]:
        exec(compile(snippet, str(PAGE), "exec"), {})
        printed.append(capsys.readouterr().out)
    assert len(printed) == 2
    assert printed[0].startswith(printed[1])
    (gpt, _) = measured_arms(folder / "runs" / "demo" / "spectrum.h5", "effective_rank")
    expected = gpt.by_layer("prefix_block", "own")
    assert expected is not None
    numbers = [[float(word) for word in line.split()[1:]] for line in printed[1].splitlines()[2:]]
    np.testing.assert_allclose(numbers, expected, atol=1e-5)


def test_the_snippet_in_r_gives_the_numbers_of_the_figure(folder: Path) -> None:
    installed = ["Rscript", "-e", "quit(status = !requireNamespace('rhdf5', quietly = TRUE))"]
    if shutil.which("Rscript") is None or subprocess.run(installed, check=False).returncode != 0:
        pytest.skip("R with rhdf5 is not installed")
    (snippet,) = re.findall(r"```r\n(.*?)```", TEXT, flags=re.DOTALL)
    path = shutil.copy(folder / "runs" / "demo" / "spectrum.h5", "spectrum.h5")
    Path("snippet.r").write_text(f"{snippet}cat(by_seed, '\\n')\n", encoding="utf-8")
    run = subprocess.run(["Rscript", "--vanilla", "snippet.r"], capture_output=True, text=True, check=True)
    expected = measured_arms(Path(path), "effective_rank")[0].by_layer("prefix_block", "own")
    assert expected is not None
    numbers = [float(word) for word in run.stdout.splitlines()[-1].split()]
    np.testing.assert_allclose(numbers, expected.ravel(), rtol=1e-6)  # columns, which are seeds, one after another


# Sentences.


def test_checksums_can_be_computed_from_the_page_alone(rich: Path) -> None:
    texts: dict[tuple[str, str], str] = {}
    bookkeeping = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"}

    def collect(name: str, entry: h5py.Group | h5py.Dataset) -> None:
        values = {key: entry.attrs[key] for key in entry.attrs if key not in bookkeeping}
        texts.update({(name, key): value for key, value in values.items() if isinstance(value, str)})
        if isinstance(entry, h5py.Dataset) and h5py.check_string_dtype(entry.dtype):
            joined = b"\0".join(np.ravel(entry[()]).tolist())
            assert hashlib.sha256(joined).hexdigest() == entry.attrs["sha256"], name

    with h5py.File(rich) as file:
        collect("/", file)
        file.visititems(collect)
        expected = texts.pop(("/", "attributes_sha256"))
    joined = "\0".join(f"{path} {key} {value}" for (path, key), value in sorted(texts.items()))
    assert hashlib.sha256(joined.encode()).hexdigest() == expected


def test_limits_in_the_text_are_those_of_the_code() -> None:
    limits = re.search(
        r"more than ([\d,]+) objects or (\d+) levels, and arrays above (\d+) GiB", " ".join(TEXT.split())
    )
    assert limits is not None
    objects, levels, size = (int(number.replace(",", "")) for number in limits.groups())
    assert (objects, levels, size << 30) == (blueprint._OBJECTS_LIMIT, blueprint._DEPTH_LIMIT, hdf5.DEFAULT_LIMIT)


def test_axes_of_column_major_tools_are_those_of_the_file_in_reverse() -> None:
    reversed_axes = ", ".join(reversed(SPECTRUM_AXES))
    assert TEXT.count(reversed_axes) == 4  # in the text, in MATLAB, Julia and R
