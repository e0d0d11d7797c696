"""Estimates are brackets, errors stand beside exact values, and neither is mistaken for the other."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from store.rich_file import ERRORS, ESTIMATED, LEADING, SHAPE, mixed_slab, rich_layout, spectra
from store.spectra_file import MEASURES, RECOMPUTE, edited, new_writer

from rankkit.errors import SpectrumFileError
from rankkit.store import METHODS, STATUSES, GroupLayout, MeasureDescription, Slab, describe, read_group, verify
from rankkit.store.groups.writing import create_group

ONE = {"seeds": [7], "steps": [500], "regions": ["full"], "applied_masks": ["own"], "layers": [0]}
ONE |= {"untrained": np.zeros((1, 1), dtype=np.int8), "layer_measures": {}, "output_components": None}
NAN = float("nan")


def one_slab() -> Slab:
    """Six by six, "sequence head": head 0 exact, head 1 estimated."""
    return mixed_slab(6, np.random.default_rng(0))


def layout_of(**changes: Any) -> GroupLayout:
    return rich_layout(**(ONE | changes))


def write_one(path: Path, values: Slab, **changes: Any) -> Path:
    with new_writer(path) as writer:
        group = writer.group("gpt", layout_of(**changes))
        group.write(dict.fromkeys(("seed", "step", "region", "applied_mask", "layer"), 0), values)
    return path


def test_an_estimate_is_a_bracket_and_its_measure_is_nan(rich: Path) -> None:
    arrays = read_group(rich, "gpt")
    estimated = arrays["status"] == STATUSES.index("estimated")
    assert 0 < estimated.sum() < estimated.size
    for name in ESTIMATED:
        lower, upper = arrays[f"{name}_lower"], arrays[f"{name}_upper"]
        np.testing.assert_array_equal(lower, np.where(estimated, 1.5, NAN))
        np.testing.assert_array_equal(upper, np.where(estimated, 2.5, NAN))
        np.testing.assert_array_equal(np.isnan(arrays[name]), estimated)
    np.testing.assert_array_equal(arrays["effective_rank_error"], np.where(estimated, NAN, 0.25))
    np.testing.assert_array_equal(arrays["attention_entropy_error"], np.full(estimated.shape, 1e-3))
    assert np.isnan(arrays["singular_values"][estimated][:, LEADING:]).all()
    assert not np.isnan(arrays["singular_values"][estimated][:, :LEADING]).any()


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_bracket_and_error_say_in_the_file_what_they_are(rich: Path, engine: Any) -> None:
    with xarray.open_dataset(rich, engine=engine, group="gpt") as dataset:
        for name in ("effective_rank_lower", "effective_rank_upper", "effective_rank_error"):
            assert dataset[name].dims == dataset["effective_rank"].dims
            assert {"long_name", "units", "definition", "source"} <= set(dataset[name].attrs)
        assert MEASURES["effective_rank"].definition in dataset["effective_rank_lower"].attrs["definition"]
        assert "95%" in dataset["effective_rank_upper"].attrs["long_name"]
        assert "floor" in dataset["effective_rank_error"].attrs["definition"]
        assert dataset.attrs["method_rule"] == rich_layout().method_rule


def test_description_names_measures_apart_from_their_brackets_and_errors(rich: Path) -> None:
    (gpt,) = describe(rich).groups
    assert gpt.measures == MEASURES
    assert (gpt.estimated, gpt.errors) == (tuple(sorted(ESTIMATED)), tuple(sorted(ERRORS)))
    assert gpt.statuses == {"ok": 128, "estimated": 128}


def test_a_whole_file_with_estimates_verifies_and_recomputes_only_what_is_exact(rich: Path) -> None:
    assert verify(rich, RECOMPUTE) == []


def test_slabs_of_several_steps_verify_and_read_back_step_by_step(rich: Path) -> None:
    arrays = read_group(rich, "gpt", ["step", "stable_rank", "checkpoint_sha256"])
    assert arrays["step"].tolist() == [100, 500]
    assert arrays["stable_rank"].shape[:3] == (2, 2, 4)
    first, last = np.moveaxis(arrays["stable_rank"][..., 0], 1, 0)
    assert (first != last).all()
    assert arrays["checkpoint_sha256"].shape == (2, 2)


def test_a_measure_named_like_a_companion_of_none_stays_a_measure(tmp_path: Path) -> None:
    text = MeasureDescription(long_name="decay", definition="slope", source="us")
    names = ("decay_exponent", "decay_exponent_standard_error", "decay_exponent_r_squared")
    values = replaced(one_slab(), measures=dict.fromkeys(names, NAN), brackets={}, errors={})
    described = dict.fromkeys(names, text)
    path = write_one(tmp_path / "a.h5", values, measures=described, estimated=(), errors=names[:1])
    (gpt,) = describe(path).groups
    assert set(gpt.measures) == set(names)
    assert gpt.errors == ("decay_exponent",)
    assert verify(path) == []


def replaced(values: Slab, **changes: Any) -> Slab:
    return replace(values, **changes)


def measured(changes: Mapping[str, Any], kind: str = "measures") -> Callable[[Slab], Slab]:
    """A slab with some of its measures, brackets or errors changed."""
    return lambda values: replace(values, **{kind: {**getattr(values, kind), **changes}})


def field(**changes: Any) -> Callable[[Slab], Slab]:
    return lambda values: replace(values, **changes)


def at_head(number: float, head: int) -> np.ndarray:
    array = np.full(SHAPE, NAN)
    array[:, head] = number
    return array


SWAPPED = (at_head(2.5, 1), at_head(1.5, 1))
CONTRADICTIONS = [
    (measured({"stable_rank": SWAPPED}, "brackets"), "stable_rank_lower must be at most stable_rank_upper"),
    (
        measured({"stable_rank": (at_head(0.5, 1), at_head(2, 1))}, "brackets"),
        "stable_rank_lower must be between 1 and r",
    ),
    (
        measured({"stable_rank": (at_head(2, 1), at_head(6.5, 1))}, "brackets"),
        "stable_rank_upper must be between 1 and r",
    ),
    (
        measured({"stable_rank": (at_head(2, 1), np.inf)}, "brackets"),
        "stable_rank_lower and stable_rank_upper must be known",
    ),
    (measured({"stable_rank": (1.5, 2.5)}, "brackets"), "stable_rank_lower must be nan where status is not estimated"),
    (measured({"stable_rank": 2.0}), "stable_rank must be nan where it is estimated"),
    (field(method=METHODS.index("svd")), "method must be krylov or quadrature where status is estimated"),
    (field(status=STATUSES.index("ok")), "singular_values must be complete where status is ok or degenerate"),
    (
        field(floor_arithmetic=at_head(0.02, 0), resolved=np.array([[6, 0]] * 2)),
        "floor_arithmetic must be the largest residual where status is estimated",
    ),
    (measured({"effective_rank": -0.1}, "errors"), "effective_rank_error must be at least 0 and finite"),
    (measured({"effective_rank": np.inf}, "errors"), "effective_rank_error must be at least 0 and finite"),
    (measured({"effective_rank": 0.1}, "errors"), "effective_rank_error must be nan where effective_rank is"),
]


@pytest.mark.parametrize(("change", "claim"), CONTRADICTIONS, ids=[claim for _, claim in CONTRADICTIONS])
def test_an_estimate_or_error_that_contradicts_itself_is_refused_at_once(
    tmp_path: Path, change: Callable[[Slab], Slab], claim: str
) -> None:
    with pytest.raises(SpectrumFileError, match=claim):
        write_one(tmp_path / "a.h5", change(one_slab()))


NO_FIT = [
    (
        measured({"attention_entropy": (0.1, 0.2)}, "brackets"),
        "brackets must be effective_rank, stable_rank, got att.* or fewer",
    ),
    (measured({"stable_rank": 0.1}, "errors"), "errors must be attention_entropy, effective_rank, got .*stable_rank"),
    (
        measured({"stable_rank": (np.zeros(3), 1.0)}, "brackets"),
        "stable_rank_lower must have shape .2, 2. or be one number",
    ),
    (measured({"effective_rank": "much"}, "errors"), "effective_rank_error must be convertible to float64"),
]


@pytest.mark.parametrize(("change", "message"), NO_FIT)
def test_a_bracket_or_error_that_does_not_fit_the_layout_is_refused(
    tmp_path: Path, change: Callable[[Slab], Slab], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_one(tmp_path / "a.h5", change(one_slab()))


def test_brackets_and_errors_that_are_left_out_are_not_known(tmp_path: Path) -> None:
    arrays = read_group(write_one(tmp_path / "a.h5", replaced(one_slab(), brackets={}, errors={})), "gpt")
    for name in ("effective_rank_lower", "effective_rank_upper", "effective_rank_error", "stable_rank_lower"):
        assert np.isnan(arrays[name]).all()


def put(name: str, head: int, number: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["gpt"][name][0, 0, 0, 0, 1, 1, head] = number

    return edit


FORGED = [
    (put("effective_rank_lower", 1, 2.6), "effective_rank_lower must be at most effective_rank_upper"),
    (put("effective_rank_upper", 1, 6.1), "effective_rank_upper must be between 1 and r"),
    (put("effective_rank_upper", 1, NAN), "effective_rank_lower and effective_rank_upper must be known together"),
    (put("effective_rank", 1, 2.0), "effective_rank must be nan where it is estimated"),
    (put("status", 1, 3), "effective_rank_lower must be nan where status is not estimated"),
    (put("method", 1, 0), "method must be krylov or quadrature where status is estimated"),
    (put("effective_rank_error", 0, -1.0), "effective_rank_error must be at least 0 and finite"),
    (put("effective_rank", 0, NAN), "effective_rank_error must be nan where effective_rank is"),
]


@pytest.mark.parametrize(("edit", "claim"), FORGED, ids=[claim for _, claim in FORGED])
def test_verification_finds_a_forged_estimate_or_error(
    lean_copy: Path, edit: Callable[[h5py.File], None], claim: str
) -> None:
    cell = "seed 7, step 500, region full, applied_mask own, sequence 1, layer 1, head"
    problems = [problem for problem in verify(edited(lean_copy, edit)) if claim in problem]
    assert len(problems) == 1
    assert problems[0].startswith(f"gpt: {claim}, got 1 matrices that break it, the first at {cell}")


def test_half_a_bracket_is_found(lean_copy: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["gpt/stable_rank_upper"]

    assert verify(edited(lean_copy, edit)) == ["gpt/stable_rank_upper must exist, got nothing of that name"]


def test_leading_singular_values_alone_take_no_more_room_than_they_need(tmp_path: Path) -> None:
    shape = (2, 2)
    leading = spectra(shape, LEADING, np.random.default_rng(0))
    values = Slab(
        singular_values=leading,
        floor_arithmetic=0.0,
        floor_model=0.0,
        resolved=LEADING,
        resolved_model=LEADING,
        method=METHODS.index("krylov"),
        status=STATUSES.index("estimated"),
        measures=dict.fromkeys(MEASURES, NAN),
        brackets={"effective_rank": (1.0, 6.0)},
    )
    path = write_one(tmp_path / "a.h5", values, components=LEADING)
    assert verify(path, RECOMPUTE) == []
    assert read_group(path, "gpt")["singular_values"].shape == (1, 1, 1, 1, 2, 1, 2, LEADING)
    assert describe(path).groups[0].dimensions["component"] == LEADING
    ok = replaced(values, status=STATUSES.index("ok"), brackets={})
    with pytest.raises(SpectrumFileError, match="singular_values must be complete where status is ok"):
        write_one(tmp_path / "b.h5", ok, components=LEADING)


def test_sixteen_thousand_keys_with_32_leading_values_allocate_32_components() -> None:
    n = 16384
    sizes = {"rows": np.full((1, 2), n), "columns": np.full((1, 2), n), "prefix_length": np.full(2, n // 2)}
    long = layout_of(
        **sizes, tokens=np.zeros((2, n), dtype=np.int32), valid_row=np.ones((2, n), dtype=np.int8), components=32
    )
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        assert create_group(file, "gpt", long)["singular_values"].shape[-1] == 32


INFINITE = {"log_abs_det": -np.inf, "log_abs_det_bound": np.inf, "spectral_ratio": np.inf}


def test_infinite_values_are_stored_exactly_where_they_are_defined(tmp_path: Path) -> None:
    measures = {name: MeasureDescription(long_name=name, definition=name, source="") for name in INFINITE}
    changes = {"measures": measures, "estimated": ("spectral_ratio",), "errors": ()}
    bracket = {"spectral_ratio": (at_head(2, 1), at_head(np.inf, 1))}
    own = INFINITE | {"spectral_ratio": at_head(np.inf, 0)}
    values = replaced(one_slab(), measures=own, brackets=bracket, errors={})
    path = write_one(tmp_path / "a.h5", values, **changes)
    assert verify(path) == []
    arrays = read_group(path, "gpt")
    assert (arrays["log_abs_det"] == -np.inf).all()
    assert (arrays["spectral_ratio_upper"][..., 1] == np.inf).all()
    for name, number in INFINITE.items():
        wrong = replaced(values, measures=own | {name: -number}, brackets={})
        with pytest.raises(SpectrumFileError, match=f"{name} must be between"):
            write_one(tmp_path / "b.h5", wrong, **changes)


TEXT = MEASURES["stable_rank"]
BAD_LAYOUTS = [
    ({"estimated": ["nuclear_norm"]}, "estimated must name measures of the group, got 'nuclear_norm'"),
    ({"errors": ["nuclear_norm"]}, "errors must name measures of the group, got 'nuclear_norm'"),
    ({"measures": MEASURES | {"stable_rank_lower": TEXT}}, "measure must have a name .* got 'stable_rank_lower'"),
    ({"measures": MEASURES | {"stable_rank_error": TEXT}}, "measure must have a name .* got 'stable_rank_error'"),
    ({"measures": MEASURES | {"layer_output_rank": TEXT}}, "measure must have a name .* got 'layer_output_rank'"),
    ({"measures": MEASURES | {"document": TEXT}}, "measure must have a name .* got 'document'"),
    ({"components": 7}, "component must have at most 6 entries, as the largest matrix, got 7"),
    ({"components": 0}, "component must hold at least one label"),
    ({"document": np.array([1, -1])}, "document must be at least 0, got -1"),
    ({"document": np.array([1])}, "document must have shape .2,., got .1,."),
    ({"method_rule": ""}, "method_rule must have 1 to 1000 characters, got 0"),
    ({"method_rule": "x" * 1001}, "method_rule must have 1 to 1000 characters, got 1001"),
    ({"method_rule": "a\0b"}, "method_rule must be UTF-8 text without NUL"),
    (
        {"attributes": {"bos": "", "packing": "", "truncation": "", "unavailable": "{}"}},
        "attributes must not hold unavail",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_LAYOUTS)
def test_a_layout_that_cannot_hold_is_refused(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(**change)


def test_every_field_of_a_slab_is_stored() -> None:
    stored = {variable.name for variable in layout_of().contents.variables}
    assert {f.name for f in fields(Slab)} - stored == {"measures", "brackets", "errors"}
