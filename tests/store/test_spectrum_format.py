from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray
from store.spectra_file import LAYERS, MEASURES, SIZES, layout, slabs

from rankkit.axes import SPECTRUM_AXES
from rankkit.store import SEQUENCES_PER_CHUNK, schema
from rankkit.store.contents import GroupContents
from rankkit.store.groups.writing import create_group
from rankkit.store.schema import COMPARISON_VARIABLES

ENGINES = ["h5netcdf", "netcdf4"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_arm_opens_in_xarray_with_the_axes_of_the_schema(finished: Path, engine: Any) -> None:
    with xarray.open_dataset(finished, engine=engine, group="unilm") as dataset:
        assert dataset.attrs["mask"] == "prefix"
        variables = [variable for variable in GroupContents(measures=MEASURES).variables if not variable.optional]
        assert set(dataset.data_vars) == {variable.name for variable in variables}
        for variable in variables:
            assert dataset[variable.name].dims == variable.dimensions
            assert dataset[variable.name].attrs["long_name"] == variable.long_name
        assert dataset["seed"].values.tolist() == [0, 7]
        assert dataset["checkpoint_sha256"].sel(seed=7, step=500).item() == "cd" * 32


@pytest.mark.parametrize("engine", ENGINES)
def test_values_selected_by_label_in_xarray_are_those_that_were_written(finished: Path, engine: Any) -> None:
    with xarray.open_dataset(finished, engine=engine, group="gpt") as dataset:
        for index, slab in slabs("gpt"):
            names = {"region": list(SIZES), "applied_mask": ["own", "swapped"], "seed": [0, 7], "step": [500]}
            labels = {axis: names.get(axis, range(LAYERS))[position] for axis, position in index.items()}
            found = dataset.sel(labels)
            width = slab.singular_values.shape[-1]
            np.testing.assert_array_equal(found["singular_values"].values[..., :width], slab.singular_values)
            assert np.isnan(found["singular_values"].values[..., width:]).all()
            np.testing.assert_array_equal(found["stable_rank"].values, slab.measures["stable_rank"])
            np.testing.assert_array_equal(found["resolved"].values, slab.resolved)


@pytest.mark.parametrize("engine", ENGINES)
def test_root_comparison_and_whole_tree_open_in_xarray(finished: Path, engine: Any) -> None:
    with xarray.open_dataset(finished, engine=engine) as root:
        assert root.attrs["Conventions"] == "CF-1.11"
        assert root.attrs["cpu"] == "Ünïcode CPU"
        assert root["configuration"].item() == "seed = 0\n# größer\n"
    with xarray.open_dataset(finished, engine=engine, group="comparison") as comparison:
        assert set(comparison.data_vars) == {v.name for v in COMPARISON_VARIABLES if not v.optional}
        assert all(comparison[name].dims == schema.COMPARISON_AXES for name in comparison.data_vars)
        assert comparison["gap"].sel(measure="stable_rank", region="full", layer=1, bound="upper").item() == 0.75
    with xarray.open_datatree(finished, engine=engine) as tree:
        assert {"gpt", "unilm", "comparison"} <= set(tree.children)


def test_netcdf4_names_the_meaning_of_every_code(finished: Path) -> None:
    with netCDF4.Dataset(finished) as dataset:
        method = dataset["gpt"]["method"]
        meanings = dict(zip(np.atleast_1d(method.flag_values).tolist(), method.flag_meanings.split(), strict=True))
        assert meanings[int(method[...].max())] == "gram"
        assert dataset["gpt"]["status"].flag_meanings == "ok estimated degenerate failed"


def test_plain_h5py_sees_a_name_and_a_label_for_every_axis(finished: Path) -> None:
    with h5py.File(finished) as file:
        values = file["gpt/singular_values"]
        assert [axis.keys()[0] for axis in values.dims] == [*SPECTRUM_AXES, "component"]
        assert values.dims[2][0].asstr()[...].tolist() == ["full", "prefix_block"]
        assert file["comparison/gap"].dims[3][0].asstr()[...].tolist() == ["mean", "lower", "upper"]
        assert file.attrs["complete"] == 1


def test_every_type_and_filter_is_one_that_every_hdf5_tool_has(finished: Path) -> None:
    datasets: list[h5py.Dataset] = []
    with h5py.File(finished) as file:
        file.visititems(lambda _, entry: datasets.append(entry) if isinstance(entry, h5py.Dataset) else None)
        assert datasets
        for dataset in datasets:
            if h5py.check_string_dtype(dataset.dtype):
                assert dataset.chunks is None
                continue
            assert dataset.dtype.str in ("<f8", "<i8", "<i4", "|i1")
            assert (dataset.compression, dataset.shuffle, dataset.fletcher32) == ("gzip", True, True)


def test_the_file_has_the_format_of_hdf5_1_10_whose_indices_carry_checksums(finished: Path) -> None:
    data = finished.read_bytes()
    assert (data[:8], data[8]) == (b"\x89HDF\r\n\x1a\n", 3)  # superblock 3; the 1.8 format has 2
    assert b"TREE" not in data  # the index of chunks of the 1.8 format, without checksum


@pytest.mark.parametrize(("sequences", "length"), [(3, 6), (32, 512), (100, 4096), (2, 300_000)])
def test_chunks_hold_one_layer_of_one_arm_and_at_most_a_mebibyte(sequences: int, length: int) -> None:
    sizes = np.full((1, sequences), length)
    large = layout(
        regions=["full"],
        layers=range(3),
        heads=range(5),
        tokens=np.zeros((sequences, length), dtype=np.int32),
        valid_row=np.ones((sequences, length), dtype=np.int8),
        prefix_length=np.zeros(sequences, dtype=np.int32),
        rows=sizes,
        columns=sizes,
        untrained=np.zeros((1, 3), dtype=np.int8),
    )
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        waiting = create_group(file, "gpt", large)
        for name, dataset in waiting.items():
            chunk = dict(zip((*SPECTRUM_AXES, "component"), dataset.chunks, strict=False))
            assert all(chunk[axis] == 1 for axis in ("seed", "step", "region", "applied_mask", "layer"))
            assert np.prod(dataset.chunks) * dataset.dtype.itemsize <= 1 << 20
            assert chunk["head"] == (1 if name == "singular_values" else 5)
            assert chunk["sequence"] <= (SEQUENCES_PER_CHUNK if name == "singular_values" else sequences)
            cache = dataset.id.get_access_plist().get_chunk_cache()[1]
            waiting_here = min(dataset.nbytes, 32 << 20) if name == "singular_values" else 1 << 20
            assert cache == max(waiting_here, 1 << 20)  # narrow slabs of spectra find their unfinished chunks in memory
            assert np.isnan(dataset.fillvalue) or dataset.fillvalue == -1  # a lost chunk does not look like data
        assert np.prod(file["gpt/tokens"].chunks) * 4 <= 1 << 20
