"""What cutting the rank costs, one group per arm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from store.rich_file import SEEDS, SEQUENCES, cut_losses, rich_layout
from store.spectra_file import edited, new_writer

from rankkit.errors import SpectrumFileError
from rankkit.store import CUTS, describe, read_group, verify
from rankkit.store.schema import FUNCTIONAL_VARIABLES

NAN = float("nan")


def test_losses_read_back_as_they_were_written(lean: Path) -> None:
    arrays, written = read_group(lean, "functional/gpt"), cut_losses()
    for name, values in written.arrays.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert arrays["kept_rank"].tolist() == [1, 2, 6]
    assert arrays["cut"].tolist() == list(CUTS)
    assert describe(lean).functional == ("gpt",)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_losses_open_in_xarray_with_the_axes_of_the_schema(lean: Path, engine: Any) -> None:
    with xarray.open_dataset(lean, engine=engine, group="functional/gpt") as dataset:
        assert set(dataset.data_vars) == {variable.name for variable in FUNCTIONAL_VARIABLES}
        for variable in FUNCTIONAL_VARIABLES:
            assert dataset[variable.name].dims == variable.dimensions
            assert dataset[variable.name].attrs["units"] == variable.units
        assert dataset["extra_loss_all"].attrs["units"] == "nat"
        assert "leading singular triplets" in dataset["extra_loss_all"].attrs["definition"]
        chosen = dataset["extra_loss_layer"].sel(seed=7, layer=1, kept_rank=2, cut="plain")
        assert chosen.item() == cut_losses().arrays["extra_loss_layer"][1, 1, 1, 1]
        assert dataset.attrs["step"] == 500


def test_only_what_was_measured_is_held_with_only_its_axes() -> None:
    absent = dict.fromkeys(("extra_loss_layer", "extra_loss_head", "removed_share", "cut_error", "document"))
    few = cut_losses(**absent, layers=(), heads=())
    assert set(few.arrays) == {"loss_uncut", "extra_loss_all"}
    assert set(few.labels) == {"seed", "sequence", "kept_rank", "cut"}
    layers = cut_losses(extra_loss_all=None, extra_loss_head=None, removed_share=None, cut_error=None, heads=())
    assert set(layers.labels) == {"seed", "sequence", "layer", "kept_rank", "cut"}


def test_losses_that_were_not_computed_are_nan() -> None:
    unknown = np.full((len(SEEDS), SEQUENCES, 3, 2), NAN)
    assert np.isnan(cut_losses(extra_loss_all=unknown).arrays["extra_loss_all"]).all()


INFINITE = np.full((len(SEEDS), SEQUENCES, 3, 2), np.inf)
BAD = [
    ({"extra_loss_all": np.zeros((2, 2, 3))}, "extra_loss_all must have shape .2, 2, 3, 2., got .2, 2, 3."),
    ({"loss_uncut": np.zeros(())}, r"loss_uncut must have shape .2, 0., got \(\)"),
    ({"layers": ()}, "extra_loss_layer must have shape .2, 0, 3, 2."),
    ({"kept_ranks": (0, 1, 2)}, "kept_rank must be at least 1, got 0. Check what was measured"),
    ({"kept_ranks": (1, 1, 2)}, "kept_rank must hold at least one label and none twice"),
    ({"cuts": ("plain", "half")}, "cut must be among remasked, plain, got 'half'"),
    (
        {"extra_loss_all": INFINITE},
        "extra_loss_all must be finite, or nan where it was not computed, got 24 that are not",
    ),
    (
        {"extra_loss_all": np.full((2, 2, 3, 2), -9.0)},
        "extra_loss_all must leave a loss of at least 0, got 24 that are not",
    ),
    ({"loss_uncut": np.full((2, 2), -1.0)}, "loss_uncut must be at least 0, got 4 that are not"),
    ({"removed_share": np.full((2, 2, 2, 3), 1.1)}, "removed_share must be at most 1, got 24 that are not"),
    ({"cut_error": np.full((2, 2, 2, 3, 2), -0.1)}, "cut_error must be at least 0, got 48 that are not"),
    ({"document": np.array([0.5, 1])}, "document must hold whole numbers, got float64"),
    ({"document": np.array([-1, 1])}, "document must be at least 0, got -1"),
    ({"attributes": {"mask": "causal"}}, "attributes must hold mask, objective, step, got none for objective, step"),
    (
        {"extra_loss_all": None, "extra_loss_layer": None, "extra_loss_head": None},
        "extra_loss must be known for all heads, for layers or for heads, got none",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_losses_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_losses(**change)


@pytest.mark.parametrize("arm", ["unilm", "functional/gpt", "baselines/init/gpt"])
def test_losses_belong_to_an_arm_of_the_file(tmp_path: Path, arm: str) -> None:
    def write() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            writer.group("gpt", rich_layout())
            writer.group("baselines/init/gpt", rich_layout())
            writer.functional(arm, cut_losses())

    with pytest.raises(ValueError, match=f"arm must be an arm of this file .* .gpt., got '{arm}'. Add its group first"):
        write()


def test_losses_of_an_arm_are_written_once(tmp_path: Path) -> None:
    def write() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            writer.group("gpt", rich_layout())
            writer.functional("gpt", cut_losses())
            writer.functional("gpt", cut_losses())

    with pytest.raises(ValueError, match=r"whose functional rank is not written yet \(\), got 'gpt'"):
        write()


@pytest.mark.parametrize("name", ["functional", "functional/gpt"])
def test_no_arm_may_be_called_functional(tmp_path: Path, name: str) -> None:
    def write() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            writer.group(name, rich_layout())

    with pytest.raises(ValueError, match="name must be new, of lower-case letters"):
        write()


def put(name: str, number: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file[f"functional/gpt/{name}"][...] = number

    return edit


def without_losses(file: h5py.File) -> None:
    del file["functional/gpt/loss_uncut"]


def without_layers(file: h5py.File) -> None:
    del file["functional/gpt/layer"]


def without_step(file: h5py.File) -> None:
    del file["functional/gpt"].attrs["step"]


def of_nobody(file: h5py.File) -> None:
    file.move("functional/gpt", "functional/bert")


FORGED = [
    (put("cut_error", -1.0), "functional/gpt: cut_error must be at least 0, got 48 that are not"),
    (put("kept_rank", -1), "functional/gpt: kept_rank must hold at least one label and none twice, got [-1, -1, -1]"),
    (without_losses, "functional/gpt/loss_uncut must exist, got nothing of that name"),
    (without_step, "functional/gpt must have the attribute step, got none"),
    (of_nobody, "functional/bert must be of an arm in this file, got none of that name"),
]


@pytest.mark.parametrize(("edit", "problem"), FORGED, ids=[problem for _, problem in FORGED])
def test_verification_finds_forged_losses(lean_copy: Path, edit: Callable[[h5py.File], None], problem: str) -> None:
    assert verify(edited(lean_copy, edit))[0] == problem


def test_a_label_that_is_gone_is_refused_at_the_door(lean_copy: Path) -> None:
    with pytest.raises(
        SpectrumFileError, match="extra_loss_layer must have its axes labelled by variables of the file"
    ):
        verify(edited(lean_copy, without_layers))
