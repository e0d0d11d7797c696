"""Exact spectra against NumPy, against their own parts, and their promises: bits, memory, rules, failures."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Backward, Bidirectional, Causal, Mask, Prefix
from rankkit.operators import AttentionOperator
from rankkit.spectra import DEFAULT_MEASURES, MEASURES, Spectrum, exact, measurement, spectrum
from rankkit.spectra import METHODS as ALL_METHODS
from rankkit.spectra.floors import arithmetic_floor, model_floor, resolved

ALL = tuple(MEASURES)
METHODS = ("gram", "svd")
MASKS = (Causal(), Prefix(0), Prefix(5), Prefix(12), Bidirectional(), Backward())
GRAM, SVD = ALL_METHODS.index("gram"), ALL_METHODS.index("svd")


def operator(
    *shape: int, n: int = 12, head_dim: int = 4, mask: Mask | None = None, std: float = 1.5, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> AttentionOperator:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, *shape, n, head_dim, generator=generator, dtype=torch.float64).to(dtype).unbind(0)
    return AttentionOperator(query=std * query, key=key, mask=mask or Causal(), scale=head_dim**-0.5)


def rank_one(n: int = 12) -> AttentionOperator:
    """Every query attends alike, so A is 1 a^T, whose other singular values are 0."""
    key = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(1))
    return AttentionOperator(query=torch.ones(1, n, 4), key=key, mask=Bidirectional(), scale=0.5)


def by_numpy(given: AttentionOperator) -> NDArray[np.float64]:
    """Singular values of the softmax written out in NumPy."""
    query, key = given.query.double().numpy(), given.key.double().numpy()
    logits = given.scale * query @ np.swapaxes(key, -1, -2)
    return np.linalg.svd(matrices.softmax(logits, given.mask.allowed(given.size).numpy()), compute_uv=False)


def parts(found: Spectrum) -> dict[str, Tensor]:
    names = ("singular_values", "floor_arithmetic", "floor_model", "method", "status")
    errors = {f"{name}_error": error for name, error in found.errors.items()}
    return {name: getattr(found, name) for name in names} | dict(found.measures) | errors


def assert_same_bits(found: Spectrum, expected: Spectrum) -> None:
    for name, tensor in parts(expected).items():
        assert torch.equal(parts(found)[name].nan_to_num(-1.0), tensor.nan_to_num(-1.0)), name


# Values.


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("method", ["auto", "gram", "svd"])
def test_singular_values_are_those_of_the_dense_softmax_in_numpy(mask: Mask, method: Any) -> None:
    given = operator(3, 2, mask=mask)
    found, expected = spectrum(given, method=method), by_numpy(given)
    error = np.abs(found.singular_values.numpy() - expected).max(axis=-1)
    assert found.singular_values.dtype == torch.float64
    assert (error <= found.floor_arithmetic.numpy()).all()  # which is what the floor says
    assert np.array_equal(found.singular_values.numpy(), -np.sort(-found.singular_values.numpy(), axis=-1))


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 20), st.integers(0, 99))
def test_singular_values_agree_with_numpy_for_any_size_prefix_and_draw(n: int, d: int, p: int, seed: int) -> None:
    given = operator(2, n=n, head_dim=d, mask=Prefix(min(p, n)), seed=seed)
    found = spectrum(given, method="svd", measures=("stable_rank",))
    np.testing.assert_allclose(found.singular_values.numpy(), by_numpy(given), atol=1e-13 * n, rtol=0)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 2)])
def test_leading_axes_come_back_and_members_are_what_they_are_alone(shape: tuple[int, ...]) -> None:
    given = operator(*shape)
    found = spectrum(given, measures=ALL)
    assert found.singular_values.shape == (*shape, 12)
    assert {tuple(tensor.shape) for name, tensor in parts(found).items() if name != "singular_values"} == {shape}
    for index in np.ndindex(shape):
        alone = spectrum(replace(given, query=given.query[index], key=given.key[index]), measures=ALL)
        for name, tensor in parts(found).items():
            assert torch.equal(tensor[index].nan_to_num(-1.0), parts(alone)[name].nan_to_num(-1.0)), name


def test_no_matrices_have_an_empty_spectrum() -> None:
    found = spectrum(operator(2, 0), measures=ALL)
    assert found.singular_values.shape == (2, 0, 12)
    assert found.effective_rank.shape == (2, 0)


def test_one_key_has_one_singular_value_of_one() -> None:
    found = spectrum(operator(2, n=1), measures=ALL)
    assert torch.equal(found.singular_values, torch.ones(2, 1, dtype=torch.float64))
    assert torch.equal(found.effective_rank, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("mask", [Causal(), Prefix(5)], ids=str)
def test_measures_are_the_measure_functions_of_logits_attention_and_values(mask: Mask) -> None:
    given = operator(2, 3, mask=mask)
    found = spectrum(given, measures=ALL)
    attention, logits, allowed = given.dense(), given.logits(), given.allowed()
    assert set(found.measures) | set(found.unavailable) == set(MEASURES)
    for name, measure in ((name, MEASURES[name]) for name in found.measures):
        inputs = {
            "operator": (given,),
            "singular_values": (found.singular_values, 12, 12, found.floor_arithmetic),
            "attention": (attention, allowed),
            "logits": (logits, allowed),
        }
        torch.testing.assert_close(
            found.measures[name], measure.compute(*inputs[measure.needs]), rtol=1e-12, atol=1e-14, equal_nan=True
        )  # fmt: skip


def test_floors_are_those_of_the_floors_module_for_the_method_and_precision() -> None:
    given = operator(2, 3)
    for method in METHODS:
        for precision in (torch.float32, torch.bfloat16):
            found = spectrum(given, method=method, precision=precision)
            largest = found.singular_values[..., 0]
            model = model_floor(
                given.query, given.key, scale=given.scale, largest=largest, probabilities=precision
            )  # fmt: skip
            assert torch.equal(found.floor_arithmetic, arithmetic_floor(method, 12, 12, largest))
            assert torch.equal(found.floor_model, model)
            assert torch.equal(found.floor, torch.maximum(found.floor_arithmetic, found.floor_model))
            assert torch.equal(found.resolved, resolved(found.singular_values, found.floor_arithmetic))
            assert torch.equal(found.resolved_model, resolved(found.singular_values, found.floor_model))
            assert (found.method == METHODS.index(method)).all()


# Bits.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "count"), [(7, 40), (33, 24), (129, 9), (200, 6)])
def test_bits_depend_on_no_chunk_worker_thread_or_budget(n: int, count: int, dtype: torch.dtype) -> None:
    given = operator(count, n=n, head_dim=7, mask=Prefix(n // 2), dtype=dtype)
    expected = spectrum(given, measures=ALL, workers=1, method="exact")
    one = 6 * n * n * 8  # bytes that one matrix may take
    try:
        for workers, budget, threads in ((1, 1, 1), (2, 1, 2), (2, 5 * one, 1), (3, 8 * one, 2), (None, 1 << 29, 2)):
            torch.set_num_threads(threads)
            found = spectrum(given, measures=ALL, workers=workers, memory_budget=budget, method="exact")
            assert_same_bits(found, expected)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_bits_do_not_depend_on_where_the_factors_lie_in_memory() -> None:
    given = operator(4, 3, n=33)
    apart = replace(given, query=given.query.transpose(0, 1), key=given.key.transpose(0, 1))
    found, expected = spectrum(apart), spectrum(given)
    assert torch.equal(found.singular_values.transpose(0, 1), expected.singular_values)


def test_factors_are_not_changed() -> None:
    given = operator(3, dtype=torch.float64)
    query, key = given.query.clone(), given.key.clone()
    spectrum(given, measures=ALL)
    assert torch.equal(given.query, query)
    assert torch.equal(given.key, key)


# The rule of `auto`.


def with_threshold(monkeypatch: pytest.MonkeyPatch, threshold: float) -> str:
    """A measure that has to tell values from noise down to a threshold relative to sigma_1."""
    measure = replace(
        MEASURES["numerical_rank"], name="sharp_rank", relative_threshold=lambda rows, columns: torch.tensor(threshold)
    )
    monkeypatch.setattr(measurement, "MEASURES", MappingProxyType({**MEASURES, "sharp_rank": measure}))
    return "sharp_rank"


def gram_floor(n: int) -> float:
    return float(arithmetic_floor("gram", n, n, torch.ones(1, dtype=torch.float64)))


def both() -> AttentionOperator:
    """A matrix whose values all lie far above gram's floor, and one of rank one."""
    flat, one = operator(1, mask=Bidirectional(), std=3.0), rank_one()
    return replace(one, query=torch.cat([flat.query, one.query]), key=torch.cat([flat.key, one.key]))


def test_auto_takes_svd_exactly_for_unresolved_matrices_under_a_threshold_below_grams_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = both()
    gram = spectrum(given, method="gram")
    assert (gram.resolved == 12).tolist() == [True, False]
    below, above = gram_floor(12) * 0.9, gram_floor(12) * 1.1
    sharp = with_threshold(monkeypatch, below)
    found = spectrum(given, measures=("stable_rank", sharp))
    assert found.method.tolist() == [GRAM, SVD]
    assert found.resolved.tolist() == [12, 1]
    exactly = spectrum(given, method="svd")
    assert torch.equal(found.singular_values[0], gram.singular_values[0])
    assert torch.equal(found.singular_values[1], exactly.singular_values[1])
    assert torch.equal(found.floor_arithmetic[1], exactly.floor_arithmetic[1])
    blunt = with_threshold(monkeypatch, above)
    assert spectrum(given, measures=(blunt,)).method.tolist() == [GRAM, GRAM]


def test_gram_serves_the_default_measures_and_those_of_the_tail_take_svd() -> None:
    """eps32 n, the threshold of the numerical rank, lies above gram's sqrt(eps64 n) at every size."""
    assert spectrum(rank_one()).method.tolist() == [GRAM]
    for n in (1, 2, 64, 8192):
        for name in DEFAULT_MEASURES:
            threshold = MEASURES[name].relative_threshold
            assert threshold is None or float(threshold(n, n)) > gram_floor(n)
    for name in ("spectral_ratio", "decay_exponent"):
        assert spectrum(both(), measures=(name,)).method.tolist() == [GRAM, SVD]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_was_asked_for_is_kept_whatever_it_resolves(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sharp = with_threshold(monkeypatch, 1e-12)
    assert spectrum(both(), measures=(sharp,), method=method).method.tolist() == [METHODS.index(method)] * 2


def test_a_rank_one_matrix_has_one_resolved_value_by_every_method() -> None:
    for method in METHODS:
        assert spectrum(rank_one(), method=method).resolved.tolist() == [1]


# Failures.


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_a_matrix_that_is_not_finite_is_flagged_and_leaves_its_neighbours_alone(wrong: float, method: Any) -> None:
    given = operator(2, 3)
    query = given.query.clone()
    query[1, 0, 4, 2] = wrong
    found = spectrum(replace(given, query=query), measures=ALL, method=method)
    expected = spectrum(given, measures=ALL, method=method)
    failed = torch.tensor([[False, False, False], [True, False, False]])
    assert torch.equal(found.failed, failed)
    assert not expected.failed.any()
    for name, tensor in parts(expected).items():
        if name not in ("status", "method"):
            kept = parts(found)[name][~failed].nan_to_num(-1.0)
            assert torch.equal(kept, tensor[~failed].nan_to_num(-1.0)), name
            assert parts(found)[name][failed].isnan().all(), name
    assert found.resolved[failed].tolist() == [0]


def test_torch_threads_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        assert torch.get_num_threads() == 1
        raise MemoryError

    monkeypatch.setattr(exact, "singular_values", broken)
    try:
        for workers in (1, 2):
            torch.set_num_threads(2)
            with pytest.raises(MemoryError):
                spectrum(operator(4), workers=workers)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_an_unknown_measure_or_method_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigurationError, match=r"measure must be one of numerical_rank, .*, got 'rank'\. Choose one"):
        spectrum(operator(1), measures=("stable_rank", "rank"))
    with pytest.raises(ConfigurationError, match="method must be one of auto, exact, gram, svd, matrix-free, got 'qr'"):
        spectrum(operator(1), method="qr")  # type: ignore[arg-type]


# The result.


def test_measures_are_attributes_and_others_are_named_as_not_measured() -> None:
    found = spectrum(operator(2), measures=("stable_rank", "sink_mass"))
    assert found.stable_rank is found.measures["stable_rank"]
    with pytest.raises(AttributeError, match=r"got 'effective_rank'\. Measured: stable_rank, sink_mass"):
        found.effective_rank  # noqa: B018


def test_a_spectrum_survives_pickling_and_copying() -> None:
    found = spectrum(operator(2), measures=ALL)
    for twin in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert_same_bits(twin, found)


# Memory.

MEASURED = """
import sys, torch
from rankkit.masks import Causal
from rankkit.operators import AttentionOperator
from rankkit.spectra import MEASURES, spectrum

def peak():  # not getrusage, whose maximum a process takes over from the one that started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

def measure(method, count, n, budget):
    query, key = torch.randn(2, count, n, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    operator = AttentionOperator(query=query, key=key, mask=Causal(), scale=0.25)
    before = peak()
    spectrum(operator, measures=tuple(MEASURES), method=method, workers=2, memory_budget=budget)
    return peak() - before

measure("gram", 64, 32, 4 * 6 * 32 * 32 * 8)  # libraries are loaded and have their threads
print(measure("gram", *map(int, sys.argv[1:])))
"""


@pytest.mark.parametrize(
    ("environment", "count", "n", "budget"),
    [
        # 250 MiB of dense matrices: results that are kept must not pin the memory of temporaries between them.
        ({}, 500, 256, 64 << 20),
        # Every block is returned at once, so that what is resident is what is in use: twice this without the budget.
        ({"MALLOC_MMAP_THRESHOLD_": "65536"}, 30, 360, 13 << 20),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of resident memory here")
def test_peak_memory_stays_within_the_budget(environment: dict[str, str], count: int, n: int, budget: int) -> None:
    command = [sys.executable, "-c", MEASURED, *map(str, (count, n, budget))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    assert int(done.stdout) <= 1.1 * budget
