"""Baselines keep what they say they keep, lose what they say they lose, and do not depend on the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankkit.errors import ConfigurationError
from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Padded, Prefix
from rankkit.operators import AttentionOperator
from rankkit.spectra import baselines, measures
from rankkit.spectra.baselines import BASELINE_DEFINITIONS, BASELINES, baseline, gaussian, logits, shuffled, uniform
from rankkit_kernels.singular_values import singular_values

N, D = 12, 4
MASKS = (Causal(), Backward(), Bidirectional(), Prefix(5), Padded(Causal(), 9), Padded(Prefix(3), 7), Cross(N, 7))


def operator(mask: Mask = Causal(), *, n: int = N, d: int = D, batch: tuple[int, ...] = (2, 3), std: float = 1.5):  # noqa: B008
    random = np.random.default_rng(5)
    sizes = (n, mask.columns(n))
    query, key = (torch.from_numpy(random.normal(size=(*batch, size, d)) * math.sqrt(std)).float() for size in sizes)
    return AttentionOperator(query=query, key=key, mask=mask, scale=d**-0.5, labels={"layer": 3})


def names(count: int = 6) -> list[str]:
    return [f"sequence {index // 3} head {index % 3}" for index in range(count)]


def values(matrix: torch.Tensor) -> torch.Tensor:
    return singular_values(matrix, method="svd", workers=1).values


def std_of(found: AttentionOperator) -> torch.Tensor:
    return measures.logit_std(found.logits(), allowed=found.allowed())


# All of them.


def test_baselines_are_the_five_that_have_a_definition():
    assert BASELINES == ("uniform", "init", "shuffled", "gaussian", "logits")
    assert all("\n" not in text and text for text in BASELINE_DEFINITIONS.values())


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("name", [name for name in BASELINES if name != "init"])
def test_every_baseline_has_the_shape_the_labels_and_the_device_of_its_operator(name, mask):
    given = operator(mask)
    before = given.query.clone(), given.key.clone()
    found = baseline(name, given, seed=0, names=names())
    assert (found.batch_shape, found.rows, found.columns) == ((2, 3), given.rows, given.columns)
    assert found.labels == {"layer": 3}
    assert found.device == given.device
    assert found.dense().dtype == torch.float64
    assert torch.equal(given.query, before[0])
    assert torch.equal(given.key, before[1])


@pytest.mark.parametrize("name", ["shuffled", "gaussian"])
def test_a_random_baseline_does_not_depend_on_the_batch_and_does_on_seed_and_name(name):
    given = operator(Prefix(5))
    whole = baseline(name, given, seed=1, names=names()).flattened().dense()
    for index, one in enumerate(names()):
        alone = baseline(name, given.flattened()[index : index + 1], seed=1, names=[one]).dense()[0]
        torch.testing.assert_close(alone, whole[index], rtol=1e-14, atol=0)  # a product's last bits vary with its batch
    other_seed = baseline(name, given, seed=2, names=names()).flattened().dense()
    other_name = baseline(name, given, seed=1, names=[f"{one}'" for one in names()]).flattened().dense()
    for other in (other_seed, other_name):
        assert not torch.allclose(other, whole, rtol=1e-3)


@pytest.mark.parametrize("name", ["shuffled", "gaussian"])
@pytest.mark.parametrize("wrong", [names(5), ["a"] * 6, "abcdef"])
def test_names_that_do_not_tell_matrices_apart_are_refused(name, wrong):
    with pytest.raises(ConfigurationError, match=r"names must hold 6 different names .*\. Name each by its place"):
        baseline(name, operator(), seed=0, names=wrong)


@pytest.mark.parametrize("name", ["init", "unifrom"])
def test_a_baseline_that_is_no_function_of_an_operator_is_refused(name):
    with pytest.raises(
        ConfigurationError, match=f"one of uniform, shuffled, gaussian, logits, got '{name}'. Capture init"
    ):
        baseline(name, operator(), seed=0, names=names())


# Uniform.


def test_uniform_causal_attention_has_the_spectrum_of_the_cesaro_matrix():
    for n, largest, smallest in (
        (64, 1.5978545967061857, 0.00835142412421076),
        (512, 1.7202833149903822, 0.0009936936528424371),
    ):
        sigma = values(uniform(operator(n=n, batch=())).dense())
        assert float(sigma[0]) == pytest.approx(largest, rel=1e-13)
        assert float(sigma[-1]) == pytest.approx(smallest, rel=1e-9)
        assert float(sigma.log().sum()) == pytest.approx(-math.lgamma(n + 1), rel=1e-10)


@pytest.mark.parametrize(("n", "rank"), [(64, 21.1), (128, 32.0), (256, 47.8)])
def test_uniform_causal_attention_has_the_published_effective_rank(n, rank):
    sigma = values(uniform(operator(n=n, batch=())).dense())
    assert float(measures.effective_rank(sigma)) == pytest.approx(rank, abs=0.05)


def test_uniform_bidirectional_attention_has_rank_one():
    sigma = values(uniform(operator(Bidirectional())).dense())
    torch.testing.assert_close(sigma[..., 0], torch.ones(2, 3, dtype=torch.float64), rtol=1e-14, atol=0)
    assert float(sigma[..., 1].max()) < 1e-15


@pytest.mark.parametrize(("n", "p"), [(12, 5), (12, 0), (12, 12), (33, 1)])
def test_uniform_prefix_attention_is_its_block_formula(n, p):
    expected = np.zeros((n, n))
    expected[:p, :p] = 1 / max(p, 1)
    for i in range(p, n):
        expected[i, : i + 1] = 1 / (i + 1)
    found = uniform(operator(Prefix(p), n=n)).dense()
    np.testing.assert_allclose(found[1, 2].numpy(), expected, rtol=1e-14)


def test_uniform_prefix_attention_has_the_published_measures():
    sigma = values(uniform(operator(Prefix(256), n=512, batch=())).dense())
    assert float(measures.effective_rank(sigma)) == pytest.approx(20.4, abs=0.05)
    assert float(measures.stable_rank(sigma)) == pytest.approx(1.10, abs=0.005)
    assert float(measures.mass_rank(sigma, fraction=0.9)) == 88
    assert float(measures.energy_rank(sigma, fraction=0.99)) == 4
    assert float(measures.numerical_rank(sigma, tolerance=512 * 2.0**-23)) == 1 + 256  # the prefix block has rank one
    assert float(sigma[0]) == pytest.approx(1.241, abs=5e-4)


def test_uniform_forgets_logits_that_are_not_finite():
    broken = operator()
    broken.query[0, 0, 3, 1], broken.key[1, 0, 2, 0] = torch.nan, torch.inf
    assert torch.equal(uniform(broken).dense(), uniform(operator()).dense())


# Shuffled.


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_shuffled_rows_hold_the_very_same_probabilities_where_the_mask_allows(mask):
    given = operator(mask)
    before, after = given.dense(), shuffled(given, seed=0, names=names()).dense()
    assert torch.equal(after.sort(dim=-1).values, before.sort(dim=-1).values)
    assert not after.masked_fill(given.allowed(), 0.0).any()
    entropies = [measures.attention_entropy(matrix) for matrix in (before, after)]
    torch.testing.assert_close(entropies[1], entropies[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(after.square().sum(dim=(-2, -1)), before.square().sum(dim=(-2, -1)), rtol=1e-14, atol=0)


def test_shuffled_rows_have_lost_their_structure():
    positions = torch.arange(64.0, dtype=torch.float64)
    angle = positions * (math.pi / 128)
    circle = 8 * torch.stack([angle.cos(), angle.sin()], dim=-1)  # every position looks at its neighbours
    local = AttentionOperator(query=circle, key=circle, mask=Bidirectional(), scale=1.0)
    ranks = [
        float(measures.effective_rank(values(matrix)))
        for matrix in (local.dense(), shuffled(local, seed=0, names=["a"]).dense())
    ]
    assert ranks[0] < 12
    assert ranks[1] > 40


def test_every_visible_key_is_as_likely_as_any_other_after_shuffling():
    draws = 3000
    one = operator(Causal(), n=4, batch=(1,))
    many = AttentionOperator(
        query=one.query.expand(draws, -1, -1), key=one.key.expand(draws, -1, -1), mask=one.mask, scale=one.scale
    )
    rows = shuffled(many, seed=0, names=[str(index) for index in range(draws)]).dense()[:, 3]
    error = float(one.dense()[0, 3].std(correction=0)) / math.sqrt(draws)
    np.testing.assert_allclose(rows.mean(dim=0).numpy(), 0.25, atol=4.5 * error)  # 1 in 10^5 each
    together = (rows[:, 0] - 0.25) * (rows[:, 1] - 0.25)
    expected = -float(rows[0].var(correction=0)) / 3  # without replacement
    assert float(together.mean()) == pytest.approx(expected, abs=4.5 * float(together.std()) / math.sqrt(draws))


def test_rows_of_one_matrix_are_shuffled_apart():
    same = torch.zeros(1, 16, 2, dtype=torch.float64)
    key = torch.linspace(0, 3, 16, dtype=torch.float64)[None, :, None].expand(1, 16, 2)
    given = AttentionOperator(query=same + 1, key=key, mask=Bidirectional(), scale=1.0)
    found = shuffled(given, seed=0, names=["a"]).dense()[0]
    assert len({tuple(row.tolist()) for row in found}) == 16


# Gaussian.


@settings(max_examples=25)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 9),
    std=st.floats(1e-6, 30),
    kind=st.sampled_from(range(4)),
    seed=st.integers(0, 99),
)
def test_gaussian_has_the_logit_std_of_the_original(n, d, std, kind, seed):
    mask = (Causal(), Prefix(n // 2), Bidirectional(), Padded(Causal(), max(2, n - 3)))[kind]
    given = operator(mask, n=n, d=d, std=std)
    found = gaussian(given, seed=seed, names=names())
    torch.testing.assert_close(std_of(found), std_of(given), rtol=1e-12, atol=0)
    assert found.mask == mask
    assert found.query.dtype == torch.float64


def test_gaussian_is_of_rank_d_and_of_nothing_else_that_the_original_had():
    given = operator(n=40)
    found = gaussian(given, seed=0, names=names())
    assert float(values(found.logits())[..., D].max()) < 1e-12
    again = replace(given, query=given.query.flip(-2) * 2, key=-given.key / 3)
    rescaled = gaussian(again, seed=0, names=names())
    torch.testing.assert_close(
        rescaled.logits() / std_of(rescaled)[..., None, None], found.logits() / std_of(found)[..., None, None]
    )


def test_gaussian_of_equal_logits_is_uniform_and_of_one_position_is_one():
    given = operator()
    flat = replace(given, query=torch.zeros_like(given.query))
    torch.testing.assert_close(gaussian(flat, seed=0, names=names()).dense(), uniform(given).dense(), rtol=0, atol=0)
    assert torch.equal(
        gaussian(operator(n=1), seed=0, names=names()).dense(), torch.ones(2, 3, 1, 1, dtype=torch.float64)
    )


def test_gaussian_of_a_matrix_that_is_not_finite_is_nan_and_spares_its_neighbours():
    broken, whole = operator(), operator()
    broken.query[0, 1, 3, 1] = torch.nan
    found, expected = (gaussian(given, seed=0, names=names()).dense() for given in (broken, whole))
    assert bool(found[0, 1].tril().isnan().any(dim=-1).all())
    found[0, 1] = expected[0, 1]
    torch.testing.assert_close(found, expected)


# Logits.


@pytest.mark.parametrize("mask", [Causal(), Bidirectional(), Cross(40, 23)], ids=str)
def test_logits_are_the_scaled_products_and_have_rank_at_most_d(mask):
    given = operator(mask, n=40)
    found = logits(given).dense()
    expected = given.scale * np.einsum("bhid,bhjd->bhij", given.query.double().numpy(), given.key.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-13)
    sigma = values(found)
    assert float((sigma[..., D] / sigma[..., 0]).max()) < 1e-14
    assert float((sigma[..., D - 1] / sigma[..., 0]).min()) > 1e-3
    assert bool((found < 0).any())


def test_logits_of_padding_are_zero():
    found = logits(operator(Padded(Causal(), 9))).dense()
    assert not found[..., 9:, :].any()
    assert not found[..., 9:].any()
    torch.testing.assert_close(found[..., :9, :9], operator().logits()[..., :9, :9], rtol=0, atol=0)


# Numbers.


def test_normal_numbers_are_normal_and_independent():
    numbers = baselines.normal_numbers(0, "test", (4000,)).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / math.sqrt(4000)
    assert abs(np.corrcoef(numbers, baselines.normal_numbers(1, "test", (4000,)).numpy())[0, 1]) < 4 / math.sqrt(4000)


def test_normal_numbers_are_the_same_on_every_machine():
    found = baselines.normal_numbers(7, "anchor", (3,)).tolist()
    assert found == pytest.approx(ANCHOR, rel=1e-13)  # the last bits are SciPy's


ANCHOR = [-0.8096417629753636, 0.39077627690886424, -0.5157575130734583]


def test_baselines_of_matrices_with_known_attention_use_that_attention():
    given = operator(Causal(), batch=(1,))
    expected = matrices.softmax(given.logits()[0].numpy(), matrices.allowed("causal", N))
    found = shuffled(given, seed=0, names=["a"]).dense()[0].numpy()
    np.testing.assert_allclose(np.sort(found, axis=-1), np.sort(expected, axis=-1), rtol=1e-13)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in BASELINES if name != "init"])
def test_baselines_on_cuda_are_those_on_the_cpu(name):
    given = operator(Prefix(5))
    there = replace(given, query=given.query.cuda(), key=given.key.cuda())
    found = baseline(name, there, seed=0, names=names())
    assert found.device.type == "cuda"
    torch.testing.assert_close(
        found.dense().cpu(), baseline(name, given, seed=0, names=names()).dense(), rtol=1e-10, atol=0
    )
