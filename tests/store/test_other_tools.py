"""The same file in every tool that can be had: the same variables, axes and numbers."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray
from store.rich_file import HEADS, LAYERS, SEQUENCES, mixed_slab, positions, rich_layout
from store.spectra_file import SEQUENCE_LENGTH, new_writer

from rankkit.store import KeptSlab, verify
from rankkit.store.labelled import open_spectra

ENGINES = ["h5netcdf", "netcdf4"]
FEATURES = 3
LEAN = {"seeds": [7], "steps": [500], "regions": ["full"], "applied_masks": ["own"]}
LEAN |= {"layer_measures": {}, "output_components": None}

Arrays = dict[str, dict[str, tuple[tuple[str, ...], NDArray[Any]]]]
"""By group and name: axes and values, texts as objects."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that keeps queries, keys and attention, of sequences 8 and 9."""
    path, wave = tmp_path_factory.mktemp("kept") / "spectrum.h5", np.random.default_rng(0)
    shape = (SEQUENCES, LAYERS, HEADS, SEQUENCE_LENGTH)
    uniform = np.full((*shape, SEQUENCE_LENGTH), 1 / SEQUENCE_LENGTH, dtype=np.float32)
    chosen = rich_layout(
        **LEAN, sequences=[8, 9], kept=("queries", "keys", "attention"), features=FEATURES, logit_scale=0.5
    )
    with new_writer(path) as writer:
        group = writer.group("gpt", chosen)
        for index in positions(chosen, "seed", "step", "region", "applied_mask", "layer"):
            group.write(index, mixed_slab(SEQUENCE_LENGTH, wave))
        factors = wave.normal(size=(2, *shape, FEATURES)).astype(np.float32)
        group.write_kept({"seed": 0, "step": 0}, KeptSlab(queries=factors[0], keys=factors[1], attention=uniform))
    return path


@pytest.fixture(params=["rich", "kept"])
def path(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.getfixturevalue(request.param)
    return chosen


def by_h5py(path: Path) -> Arrays:
    found: Arrays = {}

    def collect(name: str, entry: h5py.Group | h5py.Dataset) -> None:
        if isinstance(entry, h5py.Dataset):
            group, _, variable = name.rpartition("/")
            axes = (variable,) if entry.is_scale else tuple(axis.keys()[0] for axis in entry.dims)
            values = entry.asstr()[()] if h5py.check_string_dtype(entry.dtype) else entry[()]
            found.setdefault(group, {})[variable] = (axes, np.asarray(values))

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


def assert_same(found: xarray.Dataset, expected: dict[str, tuple[tuple[str, ...], NDArray[Any]]]) -> None:
    assert set(found.variables) == set(expected)
    for name, (axes, values) in expected.items():
        assert found[name].dims == axes, name
        np.testing.assert_array_equal(found[name].values, values, err_msg=name)
        if values.dtype.kind != "O":
            assert found[name].dtype == values.dtype, name


def test_the_files_are_whole_and_have_every_group(rich: Path, kept: Path) -> None:
    assert verify(kept) == []
    found = by_h5py(kept)["gpt"]
    assert {"queries", "keys", "attention", "feature"} <= set(found)
    assert found["sequence"][1].tolist() == [8, 9]
    groups = {"", "gpt", "baselines/init/gpt", "baselines/logits/gpt", "comparison", "comparison/by_step"}
    assert set(by_h5py(rich)) == {*groups, "functional/gpt"}


def test_what_is_kept_opens_with_rankkit(kept: Path) -> None:
    with open_spectra(kept) as tree:
        for group, expected in by_h5py(kept).items():
            assert_same(tree[group].to_dataset() if group else tree.to_dataset(), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_variable_opens_group_by_group_in_xarray(path: Path, engine: Any) -> None:
    for group, expected in by_h5py(path).items():
        with xarray.open_dataset(path, engine=engine, group=group or None) as dataset:
            assert_same(dataset, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_variable_opens_in_an_xarray_tree(path: Path, engine: Any) -> None:
    with xarray.open_datatree(path, engine=engine) as tree:
        for group, expected in by_h5py(path).items():
            assert_same(tree[group].to_dataset() if group else tree.to_dataset(), expected)


def test_every_variable_opens_in_netcdf4(path: Path) -> None:
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        for group, expected in by_h5py(path).items():
            variables = (file[group] if group else file).variables
            assert set(variables) == set(expected)
            for name, (axes, values) in expected.items():
                assert variables[name].dimensions == axes, name
                np.testing.assert_array_equal(variables[name][...], values, err_msg=name)


def test_the_stored_shape_and_bytes_have_the_last_axis_fastest(rich: Path) -> None:
    """What a column-major tool reverses: dataspace and storage, from the lowest level there is."""
    with h5py.File(rich) as file:
        dataset = file["gpt/tokens"]
        assert dataset.id.get_space().get_simple_extent_dims() == (SEQUENCES, SEQUENCE_LENGTH)
        raw = np.empty(dataset.size, dtype="<i4")
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw.reshape(dataset.shape))
        assert raw.tolist() == list(range(SEQUENCES * SEQUENCE_LENGTH))  # each sequence's keys stand together


# Command-line tools, where they are installed.


def output_of(tool: str, *arguments: str | Path) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_h5dump_shows_every_variable_with_its_shape(path: Path) -> None:
    place: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for line in output_of("h5dump", "-H", path).splitlines():
        depth = (len(line) - len(line.lstrip())) // 3
        if opened := re.match(r' *(GROUP|DATASET) "(.*)" {', line):
            place = [*place[:depth], opened[2]]
        elif (extent := re.match(r" *DATASPACE  (?:SCALAR|SIMPLE { \( ([\d, ]+) \))", line)) and "/".join(place[1:]):
            sizes = extent[1]
            shapes.setdefault("/".join(place[1:]), tuple(map(int, sizes.split(","))) if sizes else ())
    expected = {
        f"{group}/{name}".lstrip("/"): values.shape
        for group, variables in by_h5py(path).items()
        for name, (_, values) in variables.items()
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", ["singular_values", "effective_rank", "status", "tokens"])
def test_h5dump_writes_the_bytes_that_numpy_has(rich: Path, tmp_path: Path, name: str) -> None:
    output_of("h5dump", "-d", f"/gpt/{name}", "-b", "LE", "-o", tmp_path / "raw", rich)
    assert (tmp_path / "raw").read_bytes() == by_h5py(rich)["gpt"][name][1].tobytes()


def test_ncdump_shows_every_variable_with_its_axes(path: Path) -> None:
    group: list[str] = []
    found: dict[str, tuple[str, ...]] = {}
    for line in output_of("ncdump", "-h", path).splitlines():
        if opened := re.match(r" *group: (\S+) {", line):
            group.append(opened[1])
        elif re.match(r" *} // group (?!/)", line):
            group.pop()
        elif variable := re.match(r"\s*(?:byte|int|int64|float|double|string) (\w+)(?:\(([\w, ]+)\))? ;", line):
            axes = tuple(variable[2].split(", ")) if variable[2] else ()
            found["/".join([*group, variable[1]])] = axes
    expected = {
        f"{group}/{name}".lstrip("/"): axes
        for group, variables in by_h5py(path).items()
        for name, (axes, _) in variables.items()
    }
    assert found == expected
