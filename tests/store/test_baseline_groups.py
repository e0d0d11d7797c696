"""Baselines hold the same variables as an arm, under a name that says which they are."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from store.rich_file import UNAVAILABLE, rich_layout, write_arm
from store.spectra_file import RECOMPUTE, edited, new_writer

from rankkit.errors import SpectrumFileError
from rankkit.store import BASELINES, describe, read_group, verify
from rankkit.store.names import arm_of, baseline_of, baseline_problem

SMALL = {"seeds": [0], "steps": [500], "regions": ["full"], "applied_masks": ["own"]}
SMALL |= {"layer_measures": {}, "output_components": None}


def test_baselines_are_described_apart_from_arms(rich: Path) -> None:
    description = describe(rich)
    assert [group.name for group in description.groups] == ["gpt"]
    assert [(group.name, group.baseline, group.arm) for group in description.baselines] == [
        ("baselines/init/gpt", "init", "gpt"),
        ("baselines/logits/gpt", "logits", "gpt"),
    ]
    init, logits = description.baselines
    assert (init.rows_sum_to_one, logits.rows_sum_to_one) == (True, False)
    assert init.measures == description.groups[0].measures
    assert (init.unavailable, logits.unavailable) == ({}, UNAVAILABLE)


def test_a_baseline_reads_back_by_its_name(rich: Path) -> None:
    arrays = read_group(rich, "baselines/logits/gpt")
    assert np.isnan(arrays["attention_entropy"]).all()
    assert set(arrays) == set(read_group(rich, "baselines/init/gpt"))


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_the_whole_tree_opens_in_xarray(rich: Path, engine: Any) -> None:
    with xarray.open_datatree(rich, engine=engine) as tree:
        assert tree["baselines/logits/gpt"]["stable_rank"].dims == tree["gpt"]["stable_rank"].dims
        assert {"comparison/by_step", "functional/gpt"} <= {path.lstrip("/") for path in tree.to_dict()}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("arm", ["gpt", "t5/encoder"])
def test_a_name_tells_its_arm_and_its_baseline(name: str, arm: str) -> None:
    assert (baseline_of(f"baselines/{name}/{arm}"), arm_of(f"baselines/{name}/{arm}")) == (name, arm)
    assert (baseline_of(arm), arm_of(arm)) == (None, arm)
    assert baseline_problem(arm, rows_sum_to_one=True) is None
    assert (baseline_problem(f"baselines/{name}/{arm}", rows_sum_to_one=True) is None) is (name != "logits")
    assert baseline_problem(f"baselines/{name}/{arm}", rows_sum_to_one=False) is None


@pytest.mark.parametrize("name", ["baselines", "baselines/uniform", "baselines/other/gpt", "baselines/gpt/uniform"])
def test_a_baseline_of_another_form_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"{name} must be baselines/<name>/<arm> with a name among uniform, init, shuf"
    ):
        write_to(tmp_path / "a.h5", name)


def test_the_signed_baseline_needs_a_layout_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have rows_sum_to_one 0, for its matrices are signed, got 1"):
        write_to(tmp_path / "a.h5", "baselines/logits/gpt")


def write_to(path: Path, name: str) -> None:
    with new_writer(path) as writer:
        writer.group(name, rich_layout(**SMALL))


def test_ranges_of_attention_are_not_asked_of_a_matrix_that_is_none(tmp_path: Path) -> None:
    def put(path: Path, rows_sum_to_one: bool) -> list[str]:
        with new_writer(path) as writer:
            write_arm(writer, "gpt", **SMALL, rows_sum_to_one=rows_sum_to_one)

        def edit(file: h5py.File) -> None:
            file["gpt/attention_entropy"][0, 0, 0, 0, 0, 0, 0] = -1.0
            file["gpt/stable_rank"][0, 0, 0, 0, 0, 0, 0] = 5.9

        return verify(edited(path, edit), RECOMPUTE)

    attention, signed = put(tmp_path / "a.h5", True), put(tmp_path / "b.h5", False)
    entropy = "gpt: attention_entropy must be between 0 and log m, got 1 matrices"
    assert any(problem.startswith(entropy) for problem in attention)
    assert not any("attention_entropy" in problem for problem in signed)
    for problems in (attention, signed):  # what holds for every matrix is asked of both
        assert any("stable_rank must be at most participation_ratio" in problem for problem in problems)
        assert any("stable_rank must be what its singular values give" in problem for problem in problems)


def unknown_baseline(file: h5py.File) -> None:
    file.move("baselines/init", "baselines/other")


def signed_attention(file: h5py.File) -> None:
    file["baselines/logits/gpt"].attrs["rows_sum_to_one"] = np.int64(1)


def neither(file: h5py.File) -> None:
    file["gpt"].attrs["rows_sum_to_one"] = np.int64(2)


def hostile(text: Any) -> Any:
    def edit(file: h5py.File) -> None:
        file["gpt"].attrs["unavailable"] = text

    return edit


FORGED = [
    (unknown_baseline, "baselines/other/gpt must be baselines/<name>/<arm> with a name among uniform, init, shuffled"),
    (signed_attention, "baselines/logits/gpt must have rows_sum_to_one 0, for its matrices are signed, got 1"),
    (neither, "gpt must have rows_sum_to_one 0 or 1, got 2"),
    (hostile("[" * 10_000), "gpt: unavailable must be JSON, got '[[[["),
    (hostile(3.5), "gpt: unavailable must be a text of at most 16384 characters, got 3.5"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baselines") / "a.h5"
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **SMALL)
        write_arm(writer, "baselines/init/gpt", **SMALL)
        write_arm(writer, "baselines/logits/gpt", **SMALL, rows_sum_to_one=False)
    return path


@pytest.mark.parametrize(("edit", "problem"), FORGED)
def test_verification_finds_what_is_wrong_with_a_group_of_baselines(
    small: Path, tmp_path: Path, edit: Any, problem: str
) -> None:
    problems = verify(edited(Path(shutil.copy(small, tmp_path)), edit))
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_a_description_refuses_reasons_that_are_none(lean_copy: Path) -> None:
    with pytest.raises(SpectrumFileError, match="/gpt: unavailable must be JSON"):
        describe(edited(lean_copy, hostile("{")))
