"""Floors bound what they say they bound, and are not idle."""

from __future__ import annotations

import matrices
import mpmath
import multiprecision
import numpy as np
import pytest
import torch
from tiny import model_config, widen

from rankkit.errors import ConfigurationError
from rankkit.hooks import capture
from rankkit.masks import Causal, MaskKind
from rankkit.models import Transformer
from rankkit.operators import AttentionOperator, DenseOperator
from rankkit.spectra import MEASURES, Spectrum, spectrum
from rankkit.spectra.floors import UNIT_ROUNDOFF, arithmetic_floor, entry_error, model_floor, resolved
from rankkit_kernels.singular_values import singular_values


def test_arithmetic_floors_follow_their_formulas():
    largest = torch.tensor([2.0, 3.0])
    svd = arithmetic_floor("svd", 512, 100, largest)
    gram = arithmetic_floor("gram", 100, 512, largest)
    torch.testing.assert_close(svd, 512 * 2.0**-52 * largest.double(), rtol=1e-15, atol=0)
    torch.testing.assert_close(gram, (512 * 2.0**-52) ** 0.5 * largest.double(), rtol=1e-15, atol=0)


def test_arithmetic_floor_takes_one_size_per_matrix():
    floor = arithmetic_floor("svd", torch.tensor([4, 8]), torch.tensor([6, 2]), torch.ones(3, 2))
    torch.testing.assert_close(floor, (torch.tensor([6.0, 8.0]).double() * 2.0**-52).expand(3, 2))


def test_arithmetic_floor_of_a_failed_matrix_is_nan_and_resolves_nothing():
    floor = arithmetic_floor("gram", 4, 4, torch.tensor(torch.nan))
    assert bool(floor.isnan())
    assert int(resolved(torch.ones(4), floor)) == 0


def test_unknown_method_is_refused():
    with pytest.raises(ConfigurationError, match=r"method must be 'svd' or 'gram', got 'qr'\. Name the method"):
        arithmetic_floor("qr", 4, 4, torch.ones(()))


@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize("rank", [1, 5, 30])
def test_exactly_the_true_rank_is_resolved_in_a_rank_deficient_matrix(method, rank):
    sigma = singular_values(matrices.rank_deficient(128, rank), method=method, workers=1).values
    assert int(resolved(sigma, arithmetic_floor(method, 128, 128, sigma[0]))) == rank


@pytest.mark.parametrize("kind", ["uniform", "sink", "rank one"])
def test_gram_errs_by_less_than_its_floor_where_the_floor_of_the_svd_would_not_do(kind):
    matrix = {
        "uniform": matrices.uniform("bidirectional", 256),
        "sink": matrices.sink("causal", 256),
        "rank one": matrices.rank_one(256, 256),
    }[kind]
    exact = np.linalg.svd(matrix, compute_uv=False)
    error = np.abs(singular_values(matrix, method="gram", workers=1).values.numpy() - exact).max()
    assert error < float(arithmetic_floor("gram", 256, 256, torch.tensor(exact[0])))
    if kind != "sink":
        assert error > float(arithmetic_floor("svd", 256, 256, torch.tensor(exact[0])))


def test_resolved_counts_above_the_floor_and_never_nan():
    values = torch.tensor([[3.0, 2.0, 1.0, torch.nan], [1.0, 1e-9, 0.0, 0.0]])
    assert resolved(values, torch.tensor([1.0, 1e-8])).tolist() == [2, 1]


def test_unit_roundoff_is_half_the_spacing_of_every_dtype():
    assert {dtype: torch.finfo(dtype).eps / 2 for dtype in UNIT_ROUNDOFF} == dict(UNIT_ROUNDOFF)


def _applied(queries, keys, visible, scale, accumulation, probabilities):
    logits = (queries.to(accumulation) @ keys.to(accumulation).mT) * scale
    weights = torch.where(visible, logits, -torch.inf).softmax(dim=-1)
    return weights.to(probabilities).to(torch.float64)


@pytest.mark.parametrize("probabilities", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("std", [1e-8, 1e-4, 1e-2, 1.0, 8.0])
@pytest.mark.parametrize("kind", ["causal", "prefix", "bidirectional"])
def test_the_model_floor_bounds_what_the_models_precision_moves(kind, std, probabilities):
    size, head_dim, scale = 64, 16, 0.25
    random = np.random.default_rng(11)
    shape = (6, size, head_dim)
    queries, keys = (torch.from_numpy(random.normal(size=shape) * std**0.5).float() for _ in range(2))
    visible = torch.from_numpy(matrices.allowed(kind, size))
    exact = np.linalg.svd(_applied(queries, keys, visible, scale, torch.float64, torch.float64), compute_uv=False)
    moved = np.linalg.svd(_applied(queries, keys, visible, scale, torch.float32, probabilities), compute_uv=False)
    floor = model_floor(queries, keys, scale=scale, largest=torch.from_numpy(exact[:, 0]), probabilities=probabilities)
    assert floor.shape == (6,)
    assert (np.abs(moved - exact).max(axis=-1) < floor.numpy()).all()
    assert (floor.numpy() / exact[:, 0] < 3 * UNIT_ROUNDOFF[probabilities] + 5e-6 * (1 + 20 * std)).all()


def test_the_model_floor_of_bfloat16_is_not_idle():
    size, std = 64, 1.0
    random = np.random.default_rng(3)
    queries, keys = (torch.from_numpy(random.normal(size=(size, 16)) * std).float() for _ in range(2))
    visible = torch.from_numpy(matrices.allowed("causal", size))
    exact = np.linalg.svd(_applied(queries, keys, visible, 0.25, torch.float64, torch.float64), compute_uv=False)
    moved = np.linalg.svd(_applied(queries, keys, visible, 0.25, torch.float32, torch.bfloat16), compute_uv=False)
    floor = model_floor(queries, keys, scale=0.25, largest=torch.tensor(exact[0]), probabilities=torch.bfloat16)
    assert np.abs(moved - exact).max() > float(floor) / 100


def test_the_model_floor_follows_its_formula():
    queries, keys = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    floor = model_floor(queries, keys, scale=0.5, largest=torch.tensor(2.0), probabilities=torch.bfloat16)
    eta = 2.0**-8 + 8 * 2.0**-24 + 2 * (2 + 2) * 2.0**-24 * 0.5 * 5 * 2
    assert float(floor) == pytest.approx(2 * eta, rel=1e-15)


def test_the_model_floor_of_a_float64_model_accumulates_in_float64_unless_told_otherwise():
    queries, common = torch.ones(3, 8, dtype=torch.float64), {"scale": 1.0, "largest": torch.ones(())}
    floor = model_floor(queries, queries, probabilities=torch.float64, **common)
    assert float(floor) == pytest.approx((1 + 8 + 2 * (8 + 2) * 8) * 2.0**-53, rel=1e-14)
    coarse = model_floor(queries, queries, probabilities=torch.float64, accumulation=torch.float32, **common)
    assert float(coarse) == pytest.approx((8 + 2 * (8 + 2) * 8) * 2.0**-24, rel=1e-8)


def test_a_dtype_without_a_roundoff_is_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ConfigurationError, match=r"dtype must be one of torch\.float64.*got torch\.int32\. Name"):
        model_floor(one, one, scale=1.0, largest=one, probabilities=torch.int32)


# The same weights in three precisions: what a model applied, against what its own Q and K say.

PRECISIONS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def captured(precision: torch.dtype, kind: MaskKind) -> list[AttentionOperator]:
    """Operators of a tiny model with large weights, run in that precision."""
    model = widen(Transformer(model_config(mask=kind, vocab_size=40))).to(precision)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 40, (2, 24)))
    with torch.no_grad(), capture(model) as operators:
        model(tokens, 9)
    assert all(operator.query.dtype == precision for operator in operators)
    return operators


def applied(operator: AttentionOperator) -> torch.Tensor:
    """The model's own fused attention in its own precision, with the columns of the identity for values."""
    identity = torch.eye(operator.rows, dtype=operator.query.dtype)
    return (operator @ identity.expand(*operator.batch_shape, operator.rows, operator.rows)).double()


def eager(operator: AttentionOperator) -> torch.Tensor:
    """softmax(scale Q K^T) written out, every operation rounding to the model's precision."""
    logits = (operator.query @ operator.key.mT) * operator.scale
    return torch.softmax(logits.masked_fill(~operator.allowed(), -torch.inf), dim=-1).double()


def moved(found: Spectrum, matrix: torch.Tensor) -> torch.Tensor:
    """How far the singular values of a matrix lie from those reported."""
    values = singular_values(matrix, method="svd", workers=1).values
    return (values - found.singular_values).abs().amax(dim=-1)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", [MaskKind.CAUSAL, MaskKind.PREFIX, MaskKind.BIDIRECTIONAL])
def test_the_attention_that_a_model_applied_lies_within_the_floor_of_what_is_reported(
    precision: torch.dtype, kind: MaskKind
) -> None:
    shares = []
    for operator in captured(precision, kind):
        found = spectrum(operator, measures=("stable_rank",), method="svd", precision=precision)
        distance = moved(found, applied(operator))
        assert bool((distance <= found.floor_model + found.floor_arithmetic).all())
        shares.append((distance / found.floor_model).max())
    assert (
        precision == torch.float64 or max(shares) > 1e-3
    )  # idle only where the matrix is formed in that precision too


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_eager_attention_lies_within_the_floor_of_its_accumulation(precision: torch.dtype) -> None:
    """Logits that are themselves rounded to bfloat16 move by (d + 2) of its roundings, not of float32's."""
    shares = []
    for operator in captured(precision, MaskKind.PREFIX):
        found = spectrum(operator, measures=("stable_rank",), method="svd", precision=precision)
        floor = model_floor(
            operator.query, operator.key, scale=operator.scale, largest=found.singular_values[..., 0],
            probabilities=precision, accumulation=precision,
        )  # fmt: skip
        distance = moved(found, eager(operator))
        assert bool((distance <= floor + found.floor_arithmetic).all())
        shares.append((distance / floor).max())
    assert precision == torch.float64 or max(shares) > 1e-3


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_every_measure_of_what_a_model_applied_lies_within_the_error_that_is_reported(
    precision: torch.dtype, kind: MaskKind
) -> None:
    names = tuple(name for name, entry in MEASURES.items() if entry.needs in ("singular_values", "attention"))
    for operator in captured(precision, kind):
        found = spectrum(operator, measures=names, precision=precision)
        matrix, allowed, n = applied(operator), operator.allowed(), operator.rows
        values = singular_values(matrix, method="svd", workers=1).values
        for name, value in found.measures.items():
            of_values = MEASURES[name].needs == "singular_values"
            given = (values, n, n, found.floor_arithmetic) if of_values else (matrix, allowed)
            distance, error = (MEASURES[name].compute(*given) - value).abs(), found.errors[name]
            assert bool(((distance <= error) | error.isnan() | distance.isnan()).all()), name


# The arithmetic floor, against many digits.


ZOO = {
    "causal": matrices.attention("causal", 14, std=2.0),
    "bidirectional": matrices.attention("bidirectional", 14, std=0.1),
    "prefix": matrices.attention("prefix", 14, std=1.0),
    "backward": matrices.attention("backward", 14, std=4.0),
    "sink": matrices.sink("causal", 14, position=4, strength=20.0),
    "uniform": matrices.uniform("bidirectional", 14),
    "rank one": matrices.rank_one(14, 9),
    "geometric": matrices.geometric(14, 1e-2),
    "tall": matrices.gaussian(17, 6),
    "tiny": 1e-200 * matrices.gaussian(8, 8),
}


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize("name", ZOO)
def test_the_arithmetic_floor_bounds_the_error_of_every_value_against_forty_digits(method: str, name: str) -> None:
    matrix = ZOO[name]
    with mpmath.workdps(40):
        exact = [float(value) for value in multiprecision.singular_values(multiprecision.numbers(matrix))]
    found = singular_values(matrix, method=method, workers=1).values
    floor = arithmetic_floor(method, *matrix.shape, torch.tensor(exact[0], dtype=torch.float64))
    assert float((found - torch.tensor(exact, dtype=torch.float64)).abs().max()) < float(floor)


@pytest.mark.parametrize("method", ["svd", "gram"])
def test_the_arithmetic_floors_are_not_idle(method: str) -> None:
    """The largest error over a few matrices comes within 1000 times of the floor."""
    shares = []
    for seed in range(3):
        graded = matrices.prescribed(np.geomspace(1, 1e-9, 24), 24, 24, seed=seed)
        for matrix in (matrices.rank_one(24, 24, seed=seed), graded):
            with mpmath.workdps(30):
                exact = [float(value) for value in multiprecision.singular_values(multiprecision.numbers(matrix))]
            found = singular_values(matrix, method=method, workers=1).values.numpy()
            floor = arithmetic_floor(method, 24, 24, torch.tensor(exact[0], dtype=torch.float64))
            shares.append(np.abs(found - exact).max() / float(floor))
    assert max(shares) > 1e-3


@pytest.mark.parametrize("factor", [2.0**-20, 1.0, 2.0**20])
def test_errors_of_ratios_do_not_depend_on_the_scale_of_a_matrix(factor):
    attention = random_attention()
    names = ("rank_one_residual", "effective_rank", "stable_rank")
    expected = spectrum(1.0 * attention, measures=names, precision=torch.bfloat16)
    found = spectrum(factor * attention, measures=names, precision=torch.bfloat16)
    for name in names:
        torch.testing.assert_close(found.errors[name], expected.errors[name], rtol=1e-6, atol=0)


def test_the_error_of_an_entry_is_that_of_the_worst_term_and_unknown_where_terms_cancel():
    attention = random_attention()
    one = entry_error(attention, probabilities=torch.bfloat16)
    other = DenseOperator(matrix=attention.dense().float())
    assert float(entry_error(other, probabilities=torch.bfloat16)) == UNIT_ROUNDOFF[torch.float32]
    assert torch.equal(entry_error(3 * attention + other, probabilities=torch.bfloat16), one)
    assert entry_error(attention - other, probabilities=torch.bfloat16).isnan().all()


def random_attention():
    query, key = torch.rand(2, 1, 24, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).unbind(0)
    return AttentionOperator(query=4 * query - 2, key=key, mask=Causal(), scale=0.5)
