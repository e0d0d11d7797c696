from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from store.spectra_file import RECOMPUTE, edited

from rankkit.axes import SPECTRUM_AXES
from rankkit.store import Spectra, verify
from rankkit.store.door.hdf5 import h5py as same_h5py
from rankkit.store.door.hdf5 import sha256_of_strings

CELL = (1, 0, 0, 1, 2, 1, 0)
CELL_NAME = "seed 7, step 500, region full, applied_mask swapped, sequence 2, layer 1, head 0"


def test_a_finished_file_has_no_problems(finished: Path) -> None:
    assert verify(finished) == []
    assert verify(str(finished), RECOMPUTE) == []


def test_h5py_is_the_real_one() -> None:
    assert same_h5py is h5py


def cell(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        dataset = file["gpt"][name]
        dataset[CELL] = change(dataset[CELL])

    return edit


def nudged(values: np.ndarray) -> np.ndarray:
    """One singular value moved so little that its order and count stay."""
    values[2] *= 1 + 1e-6
    return values


def swapped(values: np.ndarray) -> np.ndarray:
    values[[2, 3]] = values[[3, 2]]
    return values


def gap_inside(values: np.ndarray) -> np.ndarray:
    values[2] = np.nan
    return values


def last_lost(values: np.ndarray) -> np.ndarray:
    values[-1] = np.nan
    return values


ORDER = "effective_rank must be what its singular values give"
TAMPERED = [
    ("stable_rank", lambda value: value * 1.001, "stable_rank must be what its singular values give"),
    ("effective_rank", lambda value: np.nan, ORDER),
    ("singular_values", nudged, ORDER),
    ("singular_values", swapped, "singular_values must not increase along component"),
    ("singular_values", gap_inside, "singular_values must have no gap of nan"),
    ("singular_values", last_lost, "singular_values must be complete where status is ok or degenerate"),
    ("singular_values", np.negative, "singular_values must be finite and not negative"),
    ("resolved", lambda value: value - 1, "resolved must be the number of singular values above floor_arithmetic"),
    (
        "floor_model",
        lambda value: value * 100,
        "resolved_model must be the number of singular values above floor_model",
    ),
    ("floor_arithmetic", lambda value: -value, "floor_arithmetic must not be negative or infinite"),
    ("floor_arithmetic", lambda value: np.nan, "floor_arithmetic must be known where status is ok or degenerate"),
    ("attention_entropy", lambda value: 1.8, "attention_entropy must be between 0 and log m"),
    ("attention_entropy", lambda value: -0.1, "attention_entropy must be between 0 and log m"),
    ("effective_rank", lambda value: 6.1, "effective_rank must be between 1 and r"),
    ("participation_ratio", lambda value: 5.99, "participation_ratio must be at most effective_rank"),
    ("status", lambda value: 3, "singular_values must be nan where status is failed"),
    ("method", lambda value: 4, "method must be a code from 0 to 3"),
]


@pytest.mark.parametrize(("name", "change", "claim"), TAMPERED)
def test_one_changed_number_is_found_and_named(
    copy: Path, name: str, change: Callable[[np.ndarray], np.ndarray], claim: str
) -> None:
    problems = verify(edited(copy, cell(name, change)), RECOMPUTE)
    assert f"gpt: {claim}, got 1 matrices that break it, the first at {CELL_NAME}" in problems
    assert all(CELL_NAME in problem and problem.startswith("gpt: ") for problem in problems)


def test_a_value_past_the_rank_of_a_smaller_region_is_found(copy: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["gpt/singular_values"][0, 0, 1, 0, 1, 0, 1, 4] = 0.0

    problems = verify(edited(copy, edit))
    assert problems == [
        "gpt: singular_values must be nan past min(rows, columns), got 1 matrices that break it, the first at "
        "seed 0, step 500, region prefix_block, applied_mask own, sequence 1, layer 0, head 1"
    ]


@pytest.mark.parametrize("value", [-1.0, np.inf])
def test_nothing_is_computed_again_of_a_spectrum_that_none_can_have(copy: Path, value: float) -> None:
    def recompute(spectra: Spectra) -> np.ndarray:
        assert ((spectra.singular_values >= 0) & np.isfinite(spectra.singular_values)).all()
        return RECOMPUTE["stable_rank"](spectra)

    def edit(file: h5py.File) -> None:
        file["gpt/singular_values"][0, 0, 0, 0, 1, 0, 1, 0] = value

    problems = verify(edited(copy, edit), {"stable_rank": recompute})
    assert any("singular_values must be finite and not negative" in problem for problem in problems)


def test_many_broken_matrices_are_one_problem(copy: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["gpt/stable_rank"][...] = 1.0

    problems = verify(edited(copy, edit), RECOMPUTE)
    assert len(problems) == 1
    assert "got 96 matrices that break it, the first at seed 0" in problems[0]


def without_variable(file: h5py.File) -> None:
    del file["gpt/floor_model"]


def unknown_variable(file: h5py.File) -> None:
    file["gpt/extra"] = np.arange(3)


def wrong_type(file: h5py.File) -> None:
    values = file["gpt/tokens"][...]
    del file["gpt/tokens"]
    tokens = file["gpt"].create_dataset("tokens", data=values.astype(np.int64))
    tokens.dims[0].attach_scale(file["gpt/sequence"])
    tokens.dims[1].attach_scale(file["gpt/key"])


def wrong_shape(file: h5py.File) -> None:
    del file["gpt/prefix_length"]
    file["gpt"].create_dataset("prefix_length", data=np.zeros(4, dtype=np.int32))


def without_scales(file: h5py.File) -> None:
    file["gpt/rows"].dims[0].detach_scale(file["gpt/region"])


def without_attribute(file: h5py.File) -> None:
    del file["gpt"].attrs["packing"]


def without_host(file: h5py.File) -> None:
    del file.attrs["cpu"]


def without_kind(file: h5py.File) -> None:
    del file["gpt"].attrs["kind"]


def without_arms(file: h5py.File) -> None:
    del file["gpt"]


def outside_interval(file: h5py.File) -> None:
    file["comparison/gap"][0, 0, 0, 1] = 9.0


def long_prefix(file: h5py.File) -> None:
    file["gpt/prefix_length"][0] = 7


def repeated_layer(file: h5py.File) -> None:
    file["gpt/layer"][...] = 0


def unknown_region(file: h5py.File) -> None:
    file["gpt/region"][1] = "middle"
    file["gpt/region"].attrs["sha256"] = sha256_of_strings(["full", "middle"])


def smaller_matrices(file: h5py.File) -> None:
    file["gpt/rows"][0] = 5


def other_certificate(file: h5py.File) -> None:
    file["certificate"][...] = '{"matched": false}'


EDITS = [
    (without_variable, "gpt/floor_model must exist, got nothing of that name"),
    (unknown_variable, "gpt/extra must be in the schema, got an unknown variable"),
    (wrong_type, "gpt/tokens must be of type int32, got int64"),
    (wrong_shape, "gpt/prefix_length must have shape (3,) (sequence), got (4,)"),
    (without_scales, "gpt/rows must have its axes labelled region, sequence, got other labels"),
    (without_attribute, "gpt must have the attribute packing, got none"),
    (without_host, "/ must have the attribute cpu, got none"),
    (without_kind, "gpt must have the attribute kind, got none"),
    (without_arms, "/ must hold the spectra of at least one arm, got none"),
    (outside_interval, "comparison: gap must lie inside its interval, got 1 outside"),
    (long_prefix, "gpt: prefix_length must be between 0 and 6 (key positions), got 4 to 7"),
    (repeated_layer, "gpt: layer must hold at least one label and none twice, got [0, 0]"),
    (
        unknown_region,
        "gpt: region must be among full, prefix_block, first_key_removed, prefix_block_first_key_removed, got 'middle'",
    ),
    (smaller_matrices, "gpt: component must have at most 5 entries, as the largest matrix, got 6"),
    (other_certificate, "certificate must match its checksum, got another text"),
]


@pytest.mark.parametrize(("edit", "problem"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_a_changed_structure_is_found(copy: Path, edit: Callable[[h5py.File], None], problem: str) -> None:
    assert verify(edited(copy, edit)) == [problem]


def test_a_changed_attribute_is_found(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file["gpt/stable_rank"].attrs["definition"] = "something else"
    assert verify(copy) == ["attributes must match their checksum, got other texts"]


def test_a_chunk_that_skips_its_checksum_is_found(copy: Path) -> None:
    with h5py.File(copy, "r+", libver=("v110", "v110")) as file:
        dataset = file["gpt/stable_rank"].id
        chunk = dataset.get_chunk_info(0)
        _, data = dataset.read_direct_chunk(chunk.chunk_offset)
        dataset.write_direct_chunk(chunk.chunk_offset, data[:-4], filter_mask=0b100)  # without fletcher32
    assert verify(copy)[0] == "gpt/stable_rank must have every chunk, got a lost or unchecked one"


def test_a_lost_chunk_is_found(copy: Path) -> None:
    def edit(file: h5py.File) -> None:
        old = file["gpt/stable_rank"]
        values, chunks, attributes = old[...], old.chunks, dict(old.attrs)
        del file["gpt/stable_rank"]
        new = file["gpt"].create_dataset("stable_rank", values.shape, "<f8", chunks=chunks, fillvalue=np.nan)
        new[1] = values[1]  # the chunks of the first seed are never stored, and read as nan
        for name in ("long_name", "units", "definition", "source"):
            new.attrs[name] = attributes[name]
        for axis, name in zip(new.dims, SPECTRUM_AXES, strict=True):
            axis.attach_scale(file["gpt"][name])

    assert verify(edited(copy, edit)) == ["gpt/stable_rank must have every chunk, got a lost or unchecked one"]


def test_names_that_the_writer_would_not_take_are_found(copy: Path) -> None:
    def rename(file: h5py.File) -> None:
        file["gpt"].move("stable_rank", "feature")
        file.move("gpt", "_gpt")

    found = verify(edited(copy, rename))
    assert "_gpt must have a name that an arm may have, got another" in found
    assert "_gpt/feature must have a name that a measure may have, got another" in found


@pytest.mark.parametrize("name", ["gpt/attention", "other/deep", "comparison/by_nothing"])
def test_a_group_that_is_none_of_ours_is_found(copy: Path, name: str) -> None:
    found = verify(edited(copy, lambda file: file.create_group(name)))
    assert f"{name} must be in the schema, got an unknown group" in found


def test_an_arm_inside_another_may_be_called_like_a_variable(copy: Path) -> None:
    found = verify(edited(copy, lambda file: file.copy("gpt", "gpt/attention")))
    assert not [problem for problem in found if "unknown group" in problem]
