"""Labelled datasets: what the file holds, read when used, and every refusal in one line."""

import copy as copies
import gzip
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from store.rich_file import cut_losses, write_arm
from store.spectra_file import MEASURES, edited, new_writer, write_spectra

from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.store import describe, labelled, read_group, read_root, schema
from rankkit.store.labelled import open_spectra

VARIABLES = {v.name: v for v in (*schema.GROUP_VARIABLES, *schema.LAYER_VARIABLES, *schema.AXIS_VARIABLES.values())}


def group_names(path: Path) -> list[str]:
    description = describe(path)
    arms = [group.name for group in (*description.groups, *description.baselines)]
    comparisons = [] if description.comparison is None else [schema.COMPARISON]
    by_step = [schema.COMPARISON_BY_STEP] if description.comparison and description.comparison.steps else []
    return [*arms, *comparisons, *by_step, *(f"{schema.FUNCTIONAL}/{arm}" for arm in description.functional)]


def flip_in_chunk(path: Path, name: str, number: int = 0) -> None:
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(number)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        byte = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte[0] ^ 1]))


@pytest.fixture(scope="module")
def tree(rich: Path) -> Iterator[xarray.DataTree]:
    with open_spectra(rich) as found:
        yield found


# What is in it.


def test_every_variable_of_every_group_is_what_the_reader_reads(rich: Path, tree: xarray.DataTree) -> None:
    names = group_names(rich)
    assert len(names) == 6
    with h5py.File(rich) as file:
        for group in names:
            arrays = read_group(
                rich, group, [name for name, entry in file[group].items() if isinstance(entry, h5py.Dataset)]
            )
            dataset = tree[group].to_dataset()
            assert set(dataset.variables) == set(arrays)
            for name, values in arrays.items():
                np.testing.assert_array_equal(dataset[name].values, values)
                assert dataset[name].dtype.kind == values.dtype.kind
                assert dataset[name].attrs["long_name"] == file[group][name].attrs["long_name"]


def test_axes_are_those_of_the_schema(tree: xarray.DataTree) -> None:
    found = tree["gpt"].to_dataset()
    for name in set(found.variables) & set(VARIABLES):
        assert found[name].dims == VARIABLES[name].dimensions
    assert found["effective_rank"].dims == found["status"].dims
    assert found["effective_rank"].attrs["definition"] == MEASURES["effective_rank"].definition


def test_root_attributes_and_texts_are_at_the_root(rich: Path, tree: xarray.DataTree) -> None:
    root = read_root(rich)
    assert tree.attrs == root.attributes
    for variable in schema.ROOT_STRINGS:
        assert tree[variable.name].item() == getattr(root, variable.name)
    assert tree["gpt"].attrs["mask"] == "causal"
    assert tree["baselines/logits/gpt"].attrs["rows_sum_to_one"] == 0


def test_labels_select_in_every_group(rich: Path, tree: xarray.DataTree) -> None:
    arrays = read_group(rich, "gpt")
    rank = tree["gpt"]["effective_rank"].sel(region="prefix_block", applied_mask="own", seed=7, layer=1)
    np.testing.assert_array_equal(rank.values, arrays["effective_rank"][1, :, 1, 0, :, 1])
    loss = tree["functional/gpt"]["extra_loss_layer"].sel(seed=7, layer=1, kept_rank=2, cut="plain")
    assert loss.item() == cut_losses().arrays["extra_loss_layer"][1, 1, 1, 1]
    gap = tree["comparison/by_step"]["gap"].sel(step=100, measure="stable_rank", region="full", bound="lower")
    assert gap.dims == ("layer",)


def test_flags_stay_codes_that_their_attributes_explain(tree: xarray.DataTree) -> None:
    status = tree["gpt"]["status"]
    assert status.dtype == np.int8
    meanings = dict(zip(status.attrs["flag_values"].tolist(), status.attrs["flag_meanings"].split(), strict=True))
    assert meanings == dict(enumerate(schema.STATUSES))


def test_nodes_and_variables_come_in_storage_order(rich: Path, tree: xarray.DataTree) -> None:
    assert list(tree.children) == ["gpt", "baselines", "comparison", "functional"]
    assert list(tree["functional/gpt"].data_vars) == [variable.name for variable in schema.FUNCTIONAL_VARIABLES]


def test_a_file_of_schema_1_0_opens(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    path.write_bytes(gzip.decompress(Path(__file__).with_name("spectrum_1_0.h5.gz").read_bytes()))
    with open_spectra(path) as tree:
        assert tree.attrs["rankkit_schema"] == "1.0"
        assert tree["gpt"]["stable_rank"].sel(region="full", seed=7).shape == (1, 2, 3, 2, 2)


@pytest.fixture(scope="module")
def whole(rich: Path) -> NDArray[np.float64]:
    return read_group(rich, "gpt", ["singular_values"])["singular_values"]


SELECTIONS = st.lists(
    st.one_of(
        st.integers(-2, 1),
        st.lists(st.integers(-2, 1), max_size=4),
        st.builds(slice, st.none() | st.integers(-2, 2), st.none() | st.integers(-2, 2), st.sampled_from([1, 2, -1])),
    ),
    max_size=4,
)


@settings(max_examples=30)
@given(first=SELECTIONS, data=st.data())
def test_any_selection_is_that_of_the_whole_array(
    whole: NDArray[np.float64], tree: xarray.DataTree, first: list[Any], data: st.DataObject
) -> None:
    axes = VARIABLES["singular_values"].dimensions
    chosen = dict(zip(data.draw(st.permutations(axes)), first, strict=False))
    expected = xarray.DataArray(whole, dims=axes).isel(chosen)
    found = tree["gpt"]["singular_values"].isel(chosen)
    assert found.dims == expected.dims
    np.testing.assert_array_equal(found.values, expected.values)


def test_places_along_several_axes_at_once_select_single_cells(rich: Path, tree: xarray.DataTree) -> None:
    whole = read_group(rich, "gpt", ["stable_rank"])["stable_rank"]
    points = xarray.DataArray([1, 0, 1], dims="point")
    found = tree["gpt"]["stable_rank"].isel(layer=points, head=points)
    np.testing.assert_array_equal(
        found.transpose("point", ...).values, np.moveaxis(whole[..., [1, 0, 1], [1, 0, 1]], -1, 0)
    )


# When it is read.


def test_a_damaged_array_is_found_when_it_is_read_and_not_before(copy: Path) -> None:
    expected = read_group(copy, "gpt", ["singular_values", "floor_model"])
    flip_in_chunk(copy, "gpt/stable_rank")
    with open_spectra(copy) as tree:
        for name, values in expected.items():
            np.testing.assert_array_equal(tree["gpt"][name].values, values)
        with pytest.raises(SpectrumFileError, match=r"/gpt/stable_rank must be readable, got .*. The file is damaged"):
            tree["gpt"]["stable_rank"].load()


def test_a_selection_reads_its_own_chunks_alone(copy: Path) -> None:
    expected = read_group(copy, "gpt", ["effective_rank"])["effective_rank"]
    flip_in_chunk(copy, "gpt/effective_rank", number=1)  # the second layer of the first seed
    with open_spectra(copy) as tree:
        rank = tree["gpt"]["effective_rank"]
        np.testing.assert_array_equal(rank.isel(layer=0).values, expected[..., 0, :])
        np.testing.assert_array_equal(rank.isel(seed=1).values, expected[1])
        with pytest.raises(SpectrumFileError, match="/gpt/effective_rank must be readable"):
            rank.isel(layer=1).load()


def test_damaged_labels_are_found_at_once(copy: Path) -> None:
    flip_in_chunk(copy, "gpt/seed")
    with pytest.raises(SpectrumFileError, match=r"/gpt/seed must be readable, got .*. The file is damaged"):
        open_spectra(copy)


def test_numbers_that_were_read_are_kept_and_changing_them_leaves_the_file_alone(copy: Path) -> None:
    with open_spectra(copy) as tree:
        values = tree["gpt"]["stable_rank"]
        before = values.values.copy()
        values[{"seed": 0}] = 0.0
        assert (values.isel(seed=0) == 0).all()
    np.testing.assert_array_equal(read_group(copy, "gpt", ["stable_rank"])["stable_rank"], before)


# How long the file is open.


def test_what_was_loaded_stays_after_closing_and_the_rest_is_refused(rich: Path) -> None:
    tree = open_spectra(rich)
    loaded = tree["gpt"]["stable_rank"].load()
    rest = tree["gpt"]["effective_rank"]
    tree.close()
    np.testing.assert_array_equal(loaded.values, read_group(rich, "gpt", ["stable_rank"])["stable_rank"])
    with pytest.raises(
        ValueError, match=r"spectrum.h5 must be open to be read, got a closed file. Read or load\(\) bef"
    ):
        rest.load()
    tree.close()


def test_a_closed_or_refused_file_can_be_written_again(copy: Path) -> None:
    with open_spectra(copy):
        pass
    with h5py.File(copy, "r+") as file:
        del file["gpt/stable_rank"].attrs["DIMENSION_LIST"]
    with pytest.raises(SpectrumFileError):
        open_spectra(copy)
    with h5py.File(copy, "r+"):
        pass


def test_a_file_that_is_replaced_stays_the_one_that_was_opened(copy: Path, tmp_path: Path) -> None:
    expected = read_group(copy, "gpt", ["stable_rank"])["stable_rank"]
    other = write_spectra(tmp_path / "other.h5", arms=("unilm",))
    with open_spectra(copy) as tree:
        other.replace(copy)
        np.testing.assert_array_equal(tree["gpt"]["stable_rank"].values, expected)
    with open_spectra(copy) as tree:
        assert "gpt" not in tree.children


def test_a_tree_and_a_dataset_survive_pickling_and_copying(rich: Path, tree: xarray.DataTree) -> None:
    with pickle.loads(pickle.dumps(tree)) as again:
        assert again.identical(tree)
        again.close()
        tree["gpt"]["floor_model"].load()  # the first one is open still
    dataset = pickle.loads(pickle.dumps(tree["gpt"].to_dataset()))
    assert dataset.identical(tree["gpt"].to_dataset())
    assert copies.deepcopy(tree["gpt"].to_dataset()).identical(dataset)


def test_a_pickled_tree_is_refused_where_another_file_has_the_name(copy: Path, tmp_path: Path) -> None:
    with open_spectra(copy) as tree:
        data = pickle.dumps(tree)
    write_spectra(tmp_path / "other.h5", title="another").replace(copy)
    with pytest.raises(SpectrumFileError, match=r"copy.h5 must be the file that was opened, got another of that name"):
        pickle.loads(data)


def test_dask_computes_by_chunks_what_numpy_gives(rich: Path, tree: xarray.DataTree) -> None:
    pytest.importorskip("dask.array")
    values = tree["gpt"]["singular_values"]
    chunked = tree["gpt"].to_dataset().chunk({"layer": 1, "seed": 1})["singular_values"]
    assert chunked.chunks is not None
    np.testing.assert_allclose(chunked.mean().compute(scheduler="threads"), np.nanmean(values.values), rtol=1e-12)


# What is refused.


def test_what_the_reader_refuses_is_refused_with_the_same_line(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SpectrumFileError, match=r"must be an HDF5 file, got no such file. Check the path"):
        open_spectra(tmp_path / "none.h5")
    with pytest.raises(SpectrumFileError, match="must take at most 1000 bytes, in chunks of at most"):
        open_spectra(finished, limit=1000)


def test_without_xarray_the_error_says_how_to_get_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    message = r"must be opened with xarray, got no such package. Install it: pip install 'rankkit\[xarray\]'"
    with pytest.raises(ConfigurationError, match=message):
        open_spectra(finished)


def test_the_store_loads_xarray_when_a_file_is_opened_and_not_before(tmp_path: Path) -> None:
    code = "import sys, rankkit, rankkit.store; rankkit.open_spectra; print('xarray' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "False"


def without_labels(file: h5py.File) -> None:
    del file["gpt/stable_rank"].attrs["DIMENSION_LIST"]


def one_label_twice(file: h5py.File) -> None:
    file["gpt/valid_row"].dims[1].detach_scale(file["gpt/query"])
    file["gpt/valid_row"].dims[1].attach_scale(file["gpt/sequence"])


def two_labels(file: h5py.File) -> None:
    file["gpt/prefix_length"].dims[0].attach_scale(file["gpt/seed"])


def labels_of_another_length(file: h5py.File) -> None:
    file["gpt/prefix_length"].dims[0].detach_scale(file["gpt/sequence"])
    file["gpt/prefix_length"].dims[0].attach_scale(file["gpt/key"])


def labels_from_another_group(file: h5py.File) -> None:
    file["gpt/prefix_length"].dims[0].detach_scale(file["gpt/sequence"])
    file["gpt/prefix_length"].dims[0].attach_scale(file["comparison/measure"])


def labels_in_two_dimensions(file: h5py.File) -> None:
    file["gpt"].create_dataset("wide", data=np.zeros((3, 3), dtype="<i8"), chunks=(3, 3))
    file["gpt/wide"].make_scale("wide")
    file["gpt/prefix_length"].dims[0].detach_scale(file["gpt/sequence"])
    file["gpt/prefix_length"].dims[0].attach_scale(file["gpt/wide"])


MISLABELLED = [
    (without_labels, "stable_rank"),
    (one_label_twice, "valid_row"),
    (two_labels, "prefix_length"),
    (labels_of_another_length, "prefix_length"),
    (labels_from_another_group, "prefix_length"),
    (labels_in_two_dimensions, "prefix_length"),
]


@pytest.mark.parametrize(("edit", "name"), MISLABELLED)
def test_a_variable_whose_axes_are_not_labelled_is_refused(
    copy: Path, edit: Callable[[h5py.File], None], name: str
) -> None:
    message = f"/gpt/{name} must have one label for every place along every axis, got axes .* for shape .*. Do not use"
    with pytest.raises(SpectrumFileError, match=message) as caught:
        open_spectra(edited(copy, edit))
    assert "\n" not in str(caught.value)


def test_a_group_that_a_tree_takes_for_the_one_above_is_refused(copy: Path) -> None:
    def add(file: h5py.File) -> None:
        h5py.h5g.create(file.create_group("other").id, b"..")

    with pytest.raises(
        SpectrumFileError, match=r"/other must have plain names, got '[.][.]'. Do not use this file"
    ) as kept:
        open_spectra(edited(copy, add))
    other = Thread(target=h5py.is_hdf5, args=(copy,), daemon=True)
    other.start()
    other.join(timeout=60)
    assert not other.is_alive()  # the error, which is kept, does not hold the lock of h5py
    assert kept.tb is not None


def test_labels_that_would_fill_the_memory_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "_AT_ONCE_LIMIT", 500)
    with pytest.raises(
        SpectrumFileError, match=r"labels and texts must take at most 500 bytes together, got more with /"
    ):
        open_spectra(copy)


def test_groups_inside_one_another_with_other_labels_are_named(tmp_path: Path) -> None:
    small = {"seeds": [0], "steps": [500], "applied_masks": ["own"], "layer_measures": {}, "output_components": None}
    with new_writer(tmp_path / "a.h5") as writer:
        write_arm(writer, "t5", **small, regions=["full"])
        write_arm(writer, "t5/encoder", **small, regions=["prefix_block"])
    with pytest.raises(SpectrumFileError, match="must have the same labels in a group as in those inside it") as caught:
        open_spectra(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


def test_a_copy_elsewhere_is_the_same_file(lean: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(lean, tmp_path / "moved.h5"))
    with open_spectra(lean) as first, open_spectra(str(moved)) as second:
        assert second.identical(first)
