"""Comparisons at one step and at several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from store.rich_file import COMPARISON, STEPS, comparison_arrays, rich_layout, write_arm
from store.spectra_file import edited, new_writer

from rankkit.errors import SpectrumFileError
from rankkit.store import describe, read_group, verify
from rankkit.store.schema import COMPARISON_BY_STEP_VARIABLES, COMPARISON_VARIABLES

LEAN = {"seeds": [7], "steps": [500], "regions": ["full"], "applied_masks": ["own"], "layers": [0]}
LEAN |= {"untrained": np.zeros((1, 1), dtype=np.int8), "layer_measures": {}, "output_components": None}


def write_comparison(path: Path, **changes: Any) -> Path:
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **LEAN)
        writer.comparison(**(COMPARISON | {"steps": STEPS} | comparison_arrays() | changes))
    return path


def test_the_comparison_is_that_of_the_last_step_and_all_steps_lie_inside_it(lean: Path) -> None:
    last, by_step, written = read_group(lean, "comparison"), read_group(lean, "comparison/by_step"), comparison_arrays()
    assert set(by_step) == {*last, "step"}
    assert by_step["step"].tolist() == list(STEPS)
    for name, values in written.items():
        np.testing.assert_array_equal(by_step[name], values)
        np.testing.assert_array_equal(last[name], values[-1])
    description = describe(lean).comparison
    assert description is not None
    assert (description.steps, description.attributes["step"]) == (STEPS, STEPS[-1])
    assert description.attributes["causal_arm"] == "gpt"


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_comparisons_open_in_xarray_with_the_axes_and_definitions_of_the_schema(lean: Path, engine: Any) -> None:
    groups = (("comparison", COMPARISON_VARIABLES), ("comparison/by_step", COMPARISON_BY_STEP_VARIABLES))
    for name, variables in groups:
        with xarray.open_dataset(lean, engine=engine, group=name) as dataset:
            assert set(dataset.data_vars) == {variable.name for variable in variables}
            for variable in variables:
                assert dataset[variable.name].dims == variable.dimensions
                assert dataset[variable.name].attrs["definition"] == variable.definition
    with xarray.open_dataset(lean, engine=engine, group="comparison/by_step") as dataset:
        chosen = dataset["mean_gap"].sel(step=100, measure="stable_rank", region="full", bound="upper")
        assert chosen.item() == comparison_arrays()["mean_gap"][0, 1, 0, 2]


def test_one_step_makes_no_group_of_steps(tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "a.h5", steps=[500], **comparison_arrays(steps=1))
    with pytest.raises(SpectrumFileError, match="must hold group 'comparison/by_step', got gpt, comparison"):
        read_group(path, "comparison/by_step")
    assert read_group(path, "comparison")["same_mask"].shape == (2, 4, 2)
    assert verify(path) == []


def test_without_steps_arrays_have_no_axis_for_them_and_optional_ones_may_be_left_out(tmp_path: Path) -> None:
    arrays = comparison_arrays(steps=None)
    kept = {name: arrays[name] for name in ("gap", "mask_effect", "learned_effect", "interaction")}
    with new_writer(tmp_path / "a.h5") as writer:
        write_arm(writer, "gpt", **LEAN)
        writer.comparison(**COMPARISON, **kept)
    found = read_group(tmp_path / "a.h5", "comparison")
    assert set(found) == {*kept, "measure", "region", "layer", "bound"}
    np.testing.assert_array_equal(found["gap"], arrays["gap"])
    description = describe(tmp_path / "a.h5").comparison
    assert description is not None
    assert description.steps == ()


BAD = [
    ({"steps": [500, 100]}, r"steps must rise, got \[500, 100\]. Sort them"),
    ({"steps": [100, 100]}, "step must hold at least one label and none twice"),
    ({"steps": []}, "step must hold at least one label and none twice, got "),
    ({"steps": [1, 2, 3]}, "gap must have shape .3, 2, 4, 2, 3., got .2, 2, 4, 2, 3."),
    ({"steps": None}, "gap must have shape .2, 4, 2, 3., got .2, 2, 4, 2, 3."),
    ({"mean_gap": np.zeros((2, 2, 4, 2, 3))}, "mean_gap must have shape .2, 2, 4, 3., got .2, 2, 4, 2, 3."),
    ({"same_mask": 0.5}, r"same_mask must have shape .2, 2, 4, 2., got \(\)"),
    ({"attributes": {"step": 3}}, "attributes must not hold step, which the writer sets itself"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_comparison_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_comparison(tmp_path / "a.h5", **change)


def test_a_mean_outside_its_interval_is_refused_before_the_file_gets_its_name(tmp_path: Path) -> None:
    arrays = comparison_arrays()
    arrays["mean_gap"][1, 0, 0, 0] = 99.0
    with pytest.raises(SpectrumFileError, match="comparison: mean_gap must lie inside its interval, got 1 outside"):
        write_comparison(tmp_path / "a.h5", mean_gap=arrays["mean_gap"])
    assert list(tmp_path.iterdir()) == []
    assert rich_layout(**LEAN).steps == [500]


def put(name: str, place: tuple[int, ...], number: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file[name][place] = number

    return edit


def without_gap(file: h5py.File) -> None:
    del file["comparison/by_step/gap"]


def without_mean(file: h5py.File) -> None:
    del file["comparison/mean_gap"]


LAST = "must be that of the last step in comparison/by_step, got another"
FORGED = [
    (
        put("comparison/by_step/gap", (0, 0, 0, 0, 1), 9.0),
        ["comparison/by_step: gap must lie inside its interval, got 1 outside"],
    ),
    (
        put("comparison/same_mask", (0, 0, 0), -1.0),
        ["comparison: same_mask must be at least 0, got 1 below", f"comparison: same_mask {LAST}"],
    ),
    (put("comparison/by_step/mean_gap", (1, 0, 0, 2), 9.0), [f"comparison: mean_gap {LAST}"]),
    (put("comparison/layer", (0,), 5), [f"comparison: layer {LAST}"]),
    (without_mean, [f"comparison: mean_gap {LAST}"]),
    (without_gap, ["comparison/by_step/gap must exist, got nothing of that name"]),
]


@pytest.mark.parametrize(("edit", "problems"), FORGED)
def test_verification_finds_a_forged_comparison(
    lean_copy: Path, edit: Callable[[h5py.File], None], problems: list[str]
) -> None:
    assert verify(edited(lean_copy, edit)) == problems
