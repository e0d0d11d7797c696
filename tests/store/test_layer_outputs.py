"""A layer's output is a sum over heads: its spectrum has axes of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from store.rich_file import LAYER_MEASURES, SEQUENCES, WIDTH, layer_slab, positions, rich_layout, write_arm
from store.spectra_file import MEASURES, RECOMPUTE, edited, new_writer

from rankkit.axes import LAYER_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import SEQUENCES_PER_CHUNK, GroupLayout, LayerSlab, Slab, describe, read_group, verify
from rankkit.store.groups.writing import create_group

NAN = float("nan")
LEAN = {"seeds": [7], "steps": [500], "regions": ["full"], "applied_masks": ["own"]}


def slab() -> LayerSlab:
    return layer_slab(np.random.default_rng(0))


def write_layer(path: Path, values: LayerSlab, index: dict[str, Any] | None = None, **changes: Any) -> None:
    with new_writer(path) as writer:
        group = writer.group("gpt", rich_layout(**(LEAN | changes)))
        group.write_layer_output({"seed": 0, "step": 0, "layer": 1} if index is None else index, values)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_layer_outputs_open_in_xarray_with_their_own_axes_and_definitions(rich: Path, engine: Any) -> None:
    with xarray.open_dataset(rich, engine=engine, group="gpt") as dataset:
        assert dataset["layer_output_singular_values"].dims == (*LAYER_AXES, "output_component")
        rank = dataset["layer_output_effective_rank"]
        assert rank.dims == LAYER_AXES
        assert rank.attrs["definition"].startswith(MEASURES["effective_rank"].definition)
        assert "sum_h A_h X W_V^h W_O^h" in rank.attrs["definition"]
        assert "layer's output" in rank.attrs["long_name"]
        assert dataset["layer_output_floor_arithmetic"].attrs["units"] == "1"


def test_what_was_written_reads_back_in_its_place(tmp_path: Path) -> None:
    path, generator = tmp_path / "a.h5", np.random.default_rng(0)
    chosen = rich_layout(**LEAN)
    written = [layer_slab(generator) for _ in positions(chosen, "seed", "step", "layer")]
    with new_writer(path) as writer:
        write_arm(writer, "unilm", **LEAN, layer_measures={}, output_components=None)
        group = writer.group("gpt", rich_layout(**LEAN, measures={}, estimated=(), errors=()))
        write_empty(group, chosen)
        for index, values in zip(positions(chosen, "seed", "step", "layer"), written, strict=True):
            group.write_layer_output(index, values)
    arrays = read_group(path, "gpt")
    for layer, values in enumerate(written):
        np.testing.assert_array_equal(arrays["layer_output_singular_values"][0, 0, :, layer], values.singular_values)
        for name in LAYER_MEASURES:
            np.testing.assert_array_equal(arrays[f"layer_output_{name}"][0, 0, :, layer], values.measures[name])
    assert not any(name.startswith("layer_output") for name in read_group(path, "unilm"))
    assert verify(path, RECOMPUTE) == []


def test_the_order_of_a_callers_measures_changes_no_byte(tmp_path: Path) -> None:
    chosen = rich_layout(**LEAN)
    for name, order in (("a", list), ("b", reversed)):
        generator = np.random.default_rng(0)
        with new_writer(tmp_path / f"{name}.h5") as writer:
            group = writer.group("gpt", rich_layout(**LEAN, measures={}, estimated=(), errors=()))
            write_empty(group, chosen)
            for index in positions(chosen, "seed", "step", "layer"):
                values = layer_slab(generator)
                measures = {key: values.measures[key] for key in order(list(values.measures))}
                group.write_layer_output(index, replace(values, measures=measures))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def write_empty(group: Any, chosen: GroupLayout) -> None:
    shape = tuple(len(chosen.labels[axis]) for axis in ("seed", "step", "region", "applied_mask", "sequence"))
    nothing = np.full((*shape, len(chosen.layers), len(chosen.heads), 0), NAN)
    failed = {"floor_arithmetic": NAN, "floor_model": NAN, "resolved": 0, "resolved_model": 0, "method": 1, "status": 3}
    group.write({}, Slab(singular_values=nothing, **failed))


def test_chunks_of_layer_outputs_hold_one_layer_of_one_step() -> None:
    many = {"tokens": np.zeros((20, 6), dtype=int), "valid_row": np.ones((20, 6), dtype=int)}
    many |= {"rows": np.full((4, 20), 3), "columns": np.full((4, 20), 3)}
    many |= {"prefix_length": np.zeros(20, dtype=int), "document": np.zeros(20, dtype=int)}
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        waiting = create_group(file, "gpt", rich_layout(**many))
        assert waiting["layer_output_singular_values"].chunks == (1, 1, SEQUENCES_PER_CHUNK, 1, WIDTH)
        assert waiting["layer_output_effective_rank"].chunks == (1, 1, 20, 1)
        assert waiting["effective_rank_lower"].chunks == waiting["effective_rank"].chunks == (1, 1, 1, 1, 20, 1, 2)


def test_description_names_the_measures_of_layer_outputs(rich: Path) -> None:
    (gpt,) = describe(rich).groups
    assert set(gpt.layer_measures) == set(LAYER_MEASURES)
    assert gpt.dimensions["output_component"] == WIDTH
    assert not set(gpt.measures) & {f"layer_output_{name}" for name in LAYER_MEASURES}


def test_a_layer_that_could_not_be_computed_is_nan_throughout(tmp_path: Path) -> None:
    nothing = LayerSlab(
        singular_values=np.full((SEQUENCES, 0), NAN), floor_arithmetic=NAN, measures=dict.fromkeys(LAYER_MEASURES, NAN)
    )
    with pytest.raises(SpectrumFileError, match="must be written whole"):  # the slab itself was taken
        write_layer(tmp_path / "a.h5", nothing)


def test_an_unwritten_layer_output_is_named_and_refused(tmp_path: Path) -> None:
    def forget() -> None:
        chosen = rich_layout(**LEAN, measures={}, estimated=(), errors=())
        with new_writer(tmp_path / "a.h5") as writer:
            group = writer.group("gpt", chosen)
            write_empty(group, chosen)
            group.write_layer_output({"layer": 0, "seed": 0, "step": 0}, slab())

    with pytest.raises(
        SpectrumFileError, match="nothing for the layer output of seed 7, step 500, sequence 0, layer 1"
    ):
        forget()


def changed(**changes: Any) -> Callable[[LayerSlab], LayerSlab]:
    return lambda values: replace(values, **changes)


def short(values: LayerSlab) -> LayerSlab:
    return replace(values, singular_values=values.singular_values[:, :-1])


def rising(values: LayerSlab) -> LayerSlab:
    return replace(values, singular_values=values.singular_values[:, ::-1])


def negative(values: LayerSlab) -> LayerSlab:
    return replace(values, singular_values=-values.singular_values[:, ::-1])


RANKS = {"effective_rank": 2.0, "stable_rank": 1.5}
CONTRADICTIONS = [
    (short, "layer_output_singular_values must be complete or all nan, got 2 layer outputs that break it"),
    (rising, "layer_output_singular_values must not increase along component"),
    (negative, "layer_output_singular_values must be finite and not negative"),
    (changed(floor_arithmetic=-1.0), "layer_output_floor_arithmetic must not be negative or infinite"),
    (changed(floor_arithmetic=NAN), "layer_output_floor_arithmetic must be known where singular values are"),
    (changed(measures=RANKS | {"effective_rank": 4.1}), "layer_output_effective_rank must be between 1 and r"),
    (changed(measures=RANKS | {"stable_rank": 2.1}), "layer_output_stable_rank must be at most effective_rank"),
]


@pytest.mark.parametrize(("change", "claim"), CONTRADICTIONS, ids=[claim for _, claim in CONTRADICTIONS])
def test_a_layer_output_that_contradicts_itself_is_refused_at_once(
    tmp_path: Path, change: Callable[[LayerSlab], LayerSlab], claim: str
) -> None:
    with pytest.raises(SpectrumFileError, match=claim):
        write_layer(tmp_path / "a.h5", change(slab()))


NO_FIT = [
    (changed(singular_values=np.ones((3, WIDTH))), {}, "singular_values must have shape .2,. and at most 4 components"),
    (changed(measures={}), {}, "layer measures must be effective_rank, stable_rank, got . Give the group's layer meas"),
    (
        changed(),
        {"layer_measures": {}, "output_components": None},
        "gpt must have layer outputs in its layout, got none",
    ),
]


@pytest.mark.parametrize(("change", "layout", "message"), NO_FIT)
def test_a_layer_output_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[LayerSlab], LayerSlab], layout: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_layer(tmp_path / "a.h5", change(slab()), **layout)


def test_a_layer_output_is_written_once_and_by_its_own_axes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="index must name axes among seed, step, sequence, layer, got 'region'"):
        write_layer(tmp_path / "a.h5", slab(), {"seed": 0, "step": 0, "layer": 0, "region": 0})

    def twice() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            group = writer.group("gpt", rich_layout(**LEAN))
            for _ in range(2):
                group.write_layer_output({"seed": 0, "step": 0, "layer": 0}, slab())

    with pytest.raises(ValueError, match="index must name cells that are not written yet"):
        twice()


def test_layer_measures_without_their_number_of_singular_values_are_refused() -> None:
    with pytest.raises(ValueError, match="output_components must be given with layer_measures, got None"):
        rich_layout(output_components=None)
    with pytest.raises(ValueError, match="output_component must have at most 6 entries, one per position, got 7"):
        rich_layout(output_components=7)


def put(name: str, number: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["gpt"][name][0, 0, 1, 1] = number

    return edit


FORGED = [
    ("layer_output_effective_rank", 3.9, "layer_output_effective_rank must be what its singular values give"),
    ("layer_output_effective_rank", 0.5, "layer_output_effective_rank must be between 1 and r"),
    ("layer_output_singular_values", 1.0, "layer_output_effective_rank must be what its singular values give"),
    ("layer_output_floor_arithmetic", -1.0, "layer_output_floor_arithmetic must not be negative or infinite"),
]


@pytest.mark.parametrize(("name", "number", "claim"), FORGED)
def test_verification_finds_a_forged_layer_output(lean_copy: Path, name: str, number: float, claim: str) -> None:
    where = "got 1 layer outputs that break it, the first at seed 7, step 500, sequence 1, layer 1"
    assert f"gpt: {claim}, {where}" in verify(edited(lean_copy, put(name, number)), RECOMPUTE)
