"""Files of schemas 1.0 and 1.1, as their own writers left them, and files newer than this version."""

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from store.rich_file import ERRORS, ESTIMATED, LAYER_MEASURES, UNAVAILABLE
from store.spectra_file import MEASURES, RECOMPUTE, slabs

from rankkit.store import SCHEMA_VERSION, describe, kept_in, read_group, read_root, verify
from rankkit.store.door.hdf5 import sha256_of_attributes


def unpacked(name: str, folder: Path) -> Path:
    path = folder / "old.h5"
    path.write_bytes(gzip.decompress(Path(__file__).with_name(name).read_bytes()))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Written by the writer of schema 1.0 from the slabs of `spectra_file`."""
    return unpacked("spectrum_1_0.h5.gz", tmp_path)


@pytest.fixture
def old_1_1(tmp_path: Path) -> Path:
    """Written by the writer of schema 1.1 as `write_lean` of `rich_file` does, without what is kept."""
    return unpacked("spectrum_1_1.h5.gz", tmp_path)


def test_a_file_of_schema_1_0_opens_verifies_and_holds_what_it_held(old: Path) -> None:
    assert read_root(old).attributes["rankkit_schema"] == "1.0"
    assert verify(old, RECOMPUTE) == []
    arrays = read_group(old, "gpt")
    for index, values in slabs("gpt"):
        at = (index["seed"], 0, index["region"], index["applied_mask"], slice(None), index["layer"])
        np.testing.assert_array_equal(arrays["effective_rank"][at], values.measures["effective_rank"])
    assert read_group(old, "comparison")["gap"].shape == (3, 2, 2, 3)


def test_a_file_of_schema_1_0_is_described_as_one_without_what_came_later(old: Path) -> None:
    description = describe(old)
    (gpt,) = description.groups
    assert (gpt.name, gpt.arm, gpt.baseline) == ("gpt", "gpt", None)
    assert gpt.measures == MEASURES
    assert (gpt.estimated, gpt.errors, gpt.layer_measures, gpt.unavailable) == ((), (), {}, {})
    assert gpt.rows_sum_to_one
    assert (description.baselines, description.functional) == ((), ())
    assert description.comparison is not None
    assert description.comparison.steps == ()


def test_a_file_of_this_schema_differs_from_one_of_1_0_by_additions_alone(old: Path, one_arm: Path) -> None:
    for name in ("gpt", "comparison"):
        ours, theirs = read_group(one_arm, name), read_group(old, name)
        np.testing.assert_equal(ours, theirs)
    with h5py.File(old) as first, h5py.File(one_arm) as second:
        for path in ("/", "gpt", "gpt/stable_rank", "gpt/status", "comparison/gap"):
            kept = set(first[path].attrs) - {"DIMENSION_LIST", "REFERENCE_LIST"}
            assert kept <= set(second[path].attrs)


def test_a_file_of_schema_1_1_opens_verifies_and_is_described_as_what_it_is(old_1_1: Path) -> None:
    assert read_root(old_1_1).attributes["rankkit_schema"] == "1.1"
    assert verify(old_1_1, RECOMPUTE) == []
    description = describe(old_1_1)
    (gpt,) = description.groups
    assert (gpt.measures, gpt.unavailable) == (MEASURES, UNAVAILABLE)
    assert (gpt.estimated, gpt.errors) == (tuple(sorted(ESTIMATED)), tuple(sorted(ERRORS)))
    assert set(gpt.layer_measures) == set(LAYER_MEASURES)
    assert description.functional == ("gpt",)
    assert description.comparison is not None
    assert description.comparison.steps == (100, 500)
    assert kept_in(old_1_1, "gpt") == ()


def test_a_file_of_this_schema_differs_from_one_of_1_1_by_what_is_kept_alone(old_1_1: Path, lean: Path) -> None:
    for name in ("gpt", "comparison", "comparison/by_step", "functional/gpt"):
        ours, theirs = read_group(lean, name), read_group(old_1_1, name)
        assert set(ours) - set(theirs) == ({"feature"} if name == "gpt" else set())
        np.testing.assert_equal({key: ours[key] for key in theirs}, theirs)
    with h5py.File(old_1_1) as first, h5py.File(lean) as second:
        assert set(second["gpt"]) - set(first["gpt"]) == {"feature", "queries", "keys", "attention"}
        for path in ("/", "gpt", "gpt/stable_rank_lower", "comparison/by_step", "functional/gpt/cut_error"):
            kept = set(first[path].attrs) - {"DIMENSION_LIST", "REFERENCE_LIST"}
            assert kept <= set(second[path].attrs)


def unknown_variable(file: h5py.File) -> None:
    file["gpt"].create_dataset("something_new", data=np.arange(3), chunks=(3,), fletcher32=True)


def unknown_group(file: h5py.File) -> None:
    file.create_group("something/new").create_dataset("numbers", data=np.arange(3), chunks=(3,), fletcher32=True)


def unknown_comparison(file: h5py.File) -> None:
    file["comparison"].create_dataset("something_new", data=np.arange(3), chunks=(3,), fletcher32=True)


@pytest.mark.parametrize("add", [unknown_variable, unknown_group, unknown_comparison])
def test_only_what_a_newer_minor_schema_added_is_left_alone(copy: Path, add: Callable[[h5py.File], None]) -> None:
    def edit(version: str) -> None:
        with h5py.File(copy, "r+", libver=("v110", "v110")) as file:
            if version == "1.9":
                add(file)
            file.attrs["rankkit_schema"] = version
            file.attrs["attributes_sha256"] = sha256_of_attributes(file)

    edit("1.9")
    assert verify(copy, RECOMPUTE) == []
    assert [group.name for group in describe(copy).groups] == ["gpt"]
    edit(SCHEMA_VERSION)
    assert verify(copy) != []


def test_a_newer_minor_schema_must_still_hold_what_this_one_knows(copy: Path) -> None:
    with h5py.File(copy, "r+", libver=("v110", "v110")) as file:
        del file["gpt/floor_model"]
        file.attrs["rankkit_schema"] = "1.9"
        file.attrs["attributes_sha256"] = sha256_of_attributes(file)
    assert verify(copy) == ["gpt/floor_model must exist, got nothing of that name"]
