"""Attention matrices, and queries and keys, that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from measured_run import FAST

from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.masks import Causal, Cross, Mask, Prefix
from rankkit.operators import AttentionOperator
from rankkit.spectra import spectrum
from rankkit.store import describe, read_group, read_root
from rankkit.studies import MeasureConfig, Measured, measure_attention
from rankkit.studies.measuring.array_source import ArrayMask, array_source
from rankkit.studies.verify import verify_file

CPU = torch.device("cpu")
SHAPE = (3, 2, 4, 24, 8)
"""Sequences, layers, heads, positions, features."""
MEASURES = ("effective_rank", "stable_rank", "mean_ipr")


def random_rows(rows: int, columns: int) -> Any:
    """Rows that sum to 1."""
    values = np.random.default_rng(0).random((rows, columns))
    return values / values.sum(axis=-1, keepdims=True)


def factors(seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=SHAPE).astype(dtype) for name in ("queries", "keys")}


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    """In the format that the suffix says."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, next(iter(arrays.values())))
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def dense(arrays: dict[str, Any], mask: Mask) -> torch.Tensor:
    """ "sequence layer head query key", float64."""
    query, key = (torch.from_numpy(arrays[name]) for name in ("queries", "keys"))
    return AttentionOperator(query=query, key=key, mask=mask, scale=SHAPE[-1] ** -0.5).dense()


def measured(source: Path, path: Path, mask: str, scale: float | None = None, **config: Any) -> Measured:
    settings = MeasureConfig(**{"measures": MEASURES, "workers": 1, **config})
    with array_source(source, ArrayMask.parsed(mask), CPU, scale=scale) as opened:
        found = measure_attention(opened, settings, path, device=CPU, command="rankkit spectrum arrays")
    assert verify_file(path) == []
    return found


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(("text", "mask"), [("causal", Causal()), ("prefix:10", Prefix(10))])
def test_queries_and_keys_are_measured_as_attention_under_both_masks(
    suffix: str, text: str, mask: Mask, tmp_path: Path
) -> None:
    arrays = factors()
    found = measured(saved(tmp_path / f"a{suffix}", arrays), tmp_path / "s.h5", text, prefix_length=10)
    assert found.plan.applied == ("own", "swapped")
    assert found.plan.prefix_length == 10
    stored = read_group(tmp_path / "s.h5", "arrays")
    other = {"causal": Prefix(10), "prefix:10": Causal()}[text]
    for number, applied in enumerate((mask, other)):
        expected = np.linalg.svd(dense(arrays, applied).numpy(), compute_uv=False)
        np.testing.assert_allclose(stored["singular_values"][0, 0, 0, number], expected, atol=1e-7)
    block = np.linalg.svd(dense(arrays, mask).numpy()[..., :10, :10], compute_uv=False)
    np.testing.assert_allclose(stored["singular_values"][0, 0, 1, 0, ..., :10], block, atol=1e-7)


def test_a_scale_of_ones_own_is_the_scale_of_the_logits(tmp_path: Path) -> None:
    arrays = factors()
    path = saved(tmp_path / "a.npz", arrays)
    measured(path, tmp_path / "s.h5", "none", scale=0.0, regions=("full",))
    assert read_group(tmp_path / "s.h5", "arrays")["effective_rank"] == pytest.approx(1.0)  # equal logits: rank 1


def test_attention_matrices_are_measured_as_they_are(tmp_path: Path) -> None:
    matrices = dense(factors(), Causal()).numpy().astype(np.float32)
    found = measured(saved(tmp_path / "a.npy", {"": matrices}), tmp_path / "s.h5", "causal")
    assert (found.plan.regions, found.plan.applied) == (("full",), ("own",))
    stored = read_group(tmp_path / "s.h5", "arrays")
    expected = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(stored["singular_values"][0, 0, 0, 0], expected, atol=1e-7)
    (group,) = describe(tmp_path / "s.h5").groups
    assert group.rows_sum_to_one
    assert "arrays" in read_root(tmp_path / "s.h5").configuration


@pytest.mark.parametrize(("dtype", "least"), [(np.float16, 1e-5), (np.float32, 1e-9), (np.float64, 0.0)])
def test_the_noise_floor_is_that_of_the_stored_type(dtype: Any, least: float, tmp_path: Path) -> None:
    exact = dense(factors(dtype=np.float64), Causal()).numpy()
    measured(saved(tmp_path / "a.npy", {"": exact.astype(dtype)}), tmp_path / "s.h5", "causal")
    stored = read_group(tmp_path / "s.h5", "arrays")
    floor = stored["floor_model"][0, 0, 0, 0]
    moved = np.abs(stored["singular_values"][0, 0, 0, 0] - np.linalg.svd(exact, compute_uv=False)).max(axis=-1)
    assert (moved <= floor + stored["floor_arithmetic"][0, 0, 0, 0]).all()
    assert (floor >= least).all()
    assert (floor < 1e4 * np.finfo(dtype).eps).all()
    (group,) = describe(tmp_path / "s.h5").groups
    assert group.rows_sum_to_one, "rounding to half precision does not make attention something else"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rounded_rows_may_leave_a_range_by_their_error_alone(dtype: Any, tmp_path: Path) -> None:
    """Rows of three equal entries sum to a little more than 1, and have a little more entropy than three keys allow."""
    path = saved(tmp_path / "a.npy", {"": np.full((2, 3, 3), 1 / 3, dtype=dtype)})
    measured(path, tmp_path / "s.h5", "none", measures=("attention_entropy", "mean_ipr", "effective_rank"))
    stored = read_group(tmp_path / "s.h5", "arrays")
    assert (stored["attention_entropy"] - np.log(3) <= stored["attention_entropy_error"]).all()
    assert np.isfinite(stored["mean_ipr"]).all()


def test_matrices_that_are_not_attention_have_what_needs_it_switched_off_by_name(tmp_path: Path) -> None:
    matrices = np.random.default_rng(0).normal(size=(2, 16, 12))
    measured(saved(tmp_path / "a.npy", {"": matrices}), tmp_path / "s.h5", "none")
    (group,) = describe(tmp_path / "s.h5").groups
    assert not group.rows_sum_to_one
    assert set(group.unavailable) == {"mean_ipr"}
    stored = read_group(tmp_path / "s.h5", "arrays")
    assert np.isnan(stored["mean_ipr"]).all()
    np.testing.assert_allclose(
        stored["singular_values"].squeeze(), np.linalg.svd(matrices, compute_uv=False), rtol=1e-6
    )


ATTENTION = np.tril(np.ones((2, 6, 6))) / np.arange(1, 7)[:, None]
SIGNED = ATTENTION @ (np.eye(6) + np.tril(np.full((6, 6), -0.5), -1) + np.diag(np.arange(6) / 2))


@pytest.mark.parametrize(
    ("matrices", "mask"),
    [
        (ATTENTION, "causal"),
        (2 * ATTENTION, "causal"),
        (SIGNED, "causal"),
        (-3 * ATTENTION, "causal"),
        (random_rows(4, 7), "none"),
        (2 * random_rows(4, 7), "none"),
    ],
)
def test_a_file_lacks_what_the_same_array_lacks_for_the_same_reason(matrices: Any, mask: str, tmp_path: Path) -> None:
    measures = ("sink_mass", "mean_ipr", "attention_entropy", "effective_rank")
    measured(saved(tmp_path / "a.npy", {"": matrices}), tmp_path / "s.h5", mask, measures=measures)
    (group,) = describe(tmp_path / "s.h5").groups
    assert group.unavailable == spectrum(torch.from_numpy(matrices), measures=measures).unavailable


def test_rectangular_factors_are_cross_attention(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {"q": generator.normal(size=(4, 10, 8)), "k": generator.normal(size=(2, 16, 8))}
    found = measured(saved(tmp_path / "a.npz", arrays), tmp_path / "s.h5", "none", baselines=("uniform",))
    assert found.plan.regions == ("full",)
    stored = read_group(tmp_path / "s.h5", "arrays")
    key = np.repeat(arrays["k"], 2, axis=0)
    operator = AttentionOperator(
        query=torch.from_numpy(arrays["q"]), key=torch.from_numpy(key), mask=Cross(10, 16), scale=8**-0.5
    )
    np.testing.assert_allclose(
        stored["effective_rank"].ravel(), spectrum(operator).measures["effective_rank"].numpy(), rtol=1e-9
    )
    assert describe(tmp_path / "s.h5").groups[0].attributes["kind"] == "cross"


def test_factors_beyond_the_budget_are_estimated(tmp_path: Path) -> None:
    found = measured(
        saved(tmp_path / "a.npz", factors()), tmp_path / "s.h5", "causal",
        method="matrix-free", matrix_free=FAST, regions=("full",), layers=(1,), heads=(3,), samples=1,
    )  # fmt: skip
    assert np.isfinite(found.values["arrays"].brackets["effective_rank"][0]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefix", "mask must be causal, prefix:P or none, got 'prefix'"),
        ("prefix:-1", "mask must be causal, prefix:P or none"),
        ("lower", "mask must be causal, prefix:P or none"),
    ],
)
def test_a_mask_is_one_of_three(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ArrayMask.parsed(text)


@pytest.mark.parametrize(
    ("arrays", "mask", "config", "message"),
    [
        ("attention", "causal", {"baselines": ("uniform",)}, "baselines must be among none for these arrays"),
        ("attention", "causal", {"regions": ("prefix_block",)}, "regions must be among full for these arrays"),
        ("attention", "causal", {"scale": 1.0}, "scale must stand with queries and keys"),
        ("attention", "causal", {"keep_qk": True}, "keep_qk must have queries and keys"),
        ("bidirectional", "causal", {}, "causal hides an entry of"),
        ("factors", "prefix:25", {}, "a prefix of at most 24"),
        ("factors", "prefix:8", {"prefix_length": 9}, "prefix_length must be 8"),
        ("factors", "none", {"regions": ("prefix_block",)}, "regions must be among full, first_key_removed"),
        ("factors", "causal", {"baselines": ("init",)}, "baselines must be among gaussian"),
        ("factors", "causal", {"layer_output": True}, "layer_output must have a model"),
        ("factors", "causal", {"sequence_length": 8}, "sequence_length must be 24"),
        ("factors", "causal", {"seeds": (1,)}, "seeds must be 0 for arrays"),
        ("factors", "causal", {"samples": 4}, "samples must be at most 3"),
        ("factors", "causal", {"heads": (4,)}, r"heads must be within 0\.\.3"),
    ],
)
def test_what_arrays_do_not_have_is_refused_by_name(
    arrays: str, mask: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {
        "attention": lambda: {"attention": dense(factors(), Causal()).numpy()},
        "bidirectional": lambda: {"attention": dense(factors(), Prefix(24)).numpy()},
        "factors": factors,
    }[arrays]()
    path = saved(tmp_path / "a.npz", given)
    with pytest.raises(ConfigurationError, match=message):
        measured(path, tmp_path / "s.h5", mask, **config)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_place_unless_it_is_left_out(value: float, tmp_path: Path) -> None:
    arrays = factors()
    arrays["keys"][2, 1, 3, 5, 7] = value
    path = saved(tmp_path / "a.npz", arrays)
    place = r"entry \(5, 7\) of keys, sequence 2, layer 1, head 3"
    with pytest.raises(SpectrumFileError, match=rf"must hold finite numbers, got {value} at {place}\. Leave it out"):
        measured(path, tmp_path / "s.h5", "causal")
    measured(path, tmp_path / "s.h5", "causal", layers=(0,), regions=("full",))


def test_a_square_mask_needs_square_matrices(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", {"": random_rows(3, 5)})
    with pytest.raises(ConfigurationError, match="mask must be none for 3 queries and 5 keys"):
        measured(path, tmp_path / "s.h5", "causal")
