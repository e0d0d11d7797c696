"""The theorems that the measures rest on, each over random masks, sizes and logit scales.

The two sides of a claim never share code: what rankkit computes in float64 stands against elimination in many digits, exact
fractions, or LAPACK where that can be trusted. `test_mutations` breaks the masks and sees every theorem fail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import matrices
import mpmath
import multiprecision
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import model_config, widen

from rankkit.hooks import capture
from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, MaskKind, Prefix, PrefixTransposed, Window
from rankkit.models import Transformer
from rankkit.models.positions import rotate, rotation_angles
from rankkit.operators import AttentionOperator, OffsetBias
from rankkit.spectra import measures
from rankkit.spectra import spectrum as spectrum_of
from rankkit.spectra.determinant import log_abs_det
from rankkit.spectra.triangular import log10_smallest_singular_value
from rankkit_kernels.singular_values import singular_values

Claim = Callable[..., None]

CLAIMS: dict[int, list[tuple[Claim, dict[str, Any]]]] = {}
"""By theorem: its claims and what they are drawn from."""

SLACK = 1e-12  # a few hundred roundings of float64


def theorem(number: int, *, examples: int = 40, **drawn: Any) -> Callable[[Claim], Claim]:
    """A claim of a theorem, as a property of what is drawn or, if nothing is, as it stands."""

    def register(claim: Claim) -> Claim:
        CLAIMS.setdefault(number, []).append((claim, drawn))
        return settings(max_examples=examples)(given(**drawn)(claim)) if drawn else claim

    return register


def masks(n: int) -> st.SearchStrategy[Mask]:
    """Every mask of self-attention over n positions."""
    lengths = st.integers(0, n)
    plain = st.sampled_from([Causal(), Backward(), Bidirectional()])
    return st.one_of(plain, lengths.map(Prefix), lengths.map(PrefixTransposed))


@st.composite
def operators(
    draw: st.DrawFn,
    *,
    mask: st.SearchStrategy[Mask] | None = None,
    most: int = 9,
    features: int = 5,
    fewest_features: int = 1,
) -> AttentionOperator:
    """Random queries and keys of 1 to `most` positions; logits have a standard deviation between 0.1 and 6."""
    n, d = draw(st.integers(1, most)), draw(st.integers(fewest_features, features))
    random = np.random.default_rng(draw(st.integers(0, 9999)))
    query, key = torch.from_numpy(random.standard_normal((2, n, d)))
    scale = draw(st.floats(0.1, 6)) / math.sqrt(d)
    return AttentionOperator(query=query, key=key, mask=draw(masks(n) if mask is None else mask), scale=scale)


def triangular(most: int = 9) -> st.SearchStrategy[AttentionOperator]:
    return operators(mask=st.sampled_from([Causal(), Backward()]), most=most)


@st.composite
def prefixes(draw: st.DrawFn) -> AttentionOperator:
    """Under `Prefix(p)`; some of the prefix's positions may repeat others, so that its block is singular."""
    op = draw(operators())
    p = draw(st.integers(0, op.rows))
    if p:
        some = st.lists(st.integers(0, p - 1), min_size=p, max_size=p)
        kept = torch.tensor(draw(st.one_of(st.just(list(range(p))), some)))
        op.query[:p], op.key[:p] = op.query[kept], op.key[kept]
    return op.with_mask(Prefix(p))


@st.composite
def scored(draw: st.DrawFn, mask: st.SearchStrategy[Mask]) -> AttentionOperator:
    """With a cap, a bias by offset and a sink, or some of them."""
    op = draw(operators(mask=mask))
    random = np.random.default_rng(draw(st.integers(0, 9999)))
    bias = OffsetBias(values=torch.from_numpy(2 * random.standard_normal(2 * op.rows - 1)))
    return replace(
        op,
        softcap=draw(st.sampled_from([None, 1.0, 8.0])),
        bias=draw(st.sampled_from([None, bias])),
        sink=draw(st.sampled_from([None, torch.tensor(random.normal(scale=3), dtype=torch.float64)])),
    )


def windows() -> st.SearchStrategy[Mask]:
    """Those with one side: triangles."""
    return st.one_of(st.integers(0, 9).map(Window), st.integers(0, 9).map(lambda ahead: Window(0, ahead)))


def in_digits(op: AttentionOperator) -> multiprecision.Rows:
    """Its matrix by mpmath, in the digits of the context."""
    scores, allowed = multiprecision.logits(op.query.numpy(), op.key.numpy(), op.scale), op.allowed().numpy()
    if op.softcap is not None:
        scores = [[op.softcap * mpmath.tanh(s / op.softcap) for s in row] for row in scores]
    if op.bias is not None:
        assert isinstance(op.bias, OffsetBias)
        values = op.bias.values.tolist()
        scores = [[s + values[j - i + op.rows - 1] for j, s in enumerate(row)] for i, row in enumerate(scores)]
    if op.sink is None:
        return multiprecision.softmax(scores, allowed)
    joined = multiprecision.softmax(
        [[*row, mpmath.mpf(float(op.sink))] for row in scores], np.pad(allowed, ((0, 0), (0, 1)), constant_values=True)
    )
    return [row[:-1] for row in joined]


def spectrum(op: AttentionOperator) -> torch.Tensor:
    return singular_values(op.dense(), method="svd", workers=1).values


# 1. Causal determinant.


@theorem(1, op=triangular())
def test_1_the_determinant_of_a_triangle_is_positive_and_comes_from_its_logits(op: AttentionOperator) -> None:
    with mpmath.workdps(60):
        determinant = mpmath.det(mpmath.matrix(in_digits(op)))
        assert determinant > 0
        found = log_abs_det(op)
        assert abs(mpmath.mpf(float(found.value)) - mpmath.log(determinant)) <= float(found.bound) + SLACK
        assert float(found.bound) < 1e-9


@theorem(1, op=triangular())
def test_1_a_triangle_has_full_rank(op: AttentionOperator) -> None:
    with mpmath.workdps(150):
        assert multiprecision.rank(in_digits(op), digits=100) == op.rows


@theorem(1, op=triangular(most=6).filter(lambda op: op.rows > 1))
def test_1_the_eigenvalues_of_a_triangle_are_its_diagonal(op: AttentionOperator) -> None:
    with mpmath.workdps(60):
        found = mpmath.eig(mpmath.matrix(in_digits(op)), left=False, right=False)
        diagonal = (op.row_statistics.diagonal_logit - op.row_statistics.log_sum_exp).exp()
    eigenvalues = np.sort([float(mpmath.re(value)) for value in found])
    np.testing.assert_allclose(
        eigenvalues, np.sort(diagonal.numpy()), rtol=0, atol=1e-7
    )  # those close together lose digits


@theorem(1, op=operators(mask=windows()))
def test_1_a_window_with_one_side_has_full_rank_and_the_determinant_of_its_logits(op: AttentionOperator) -> None:
    with mpmath.workdps(150):
        rows = in_digits(op)
        assert multiprecision.rank(rows, digits=100) == op.rows
        found, exact = log_abs_det(op), multiprecision.log_abs_det(rows)
    assert abs(float(found.value) - exact) <= float(found.bound) + SLACK < 1e-9


@theorem(1, op=scored(st.one_of(st.sampled_from([Causal(), Backward()]), windows())))
def test_1_caps_and_biases_and_sinks_keep_a_triangle_of_full_rank_with_the_determinant_of_its_logits(
    op: AttentionOperator,
) -> None:
    """A sink scales the rows: s_ii less a log-sum-exp that it is part of."""
    with mpmath.workdps(150):
        rows = in_digits(op)
        assert multiprecision.rank(rows, digits=100) == op.rows
        exact = multiprecision.log_abs_det(rows)
    found = spectrum_of(op, measures=("log_abs_det", "log_abs_det_bound", "log10_smallest_singular_value"))
    assert abs(float(found.log_abs_det) - exact) <= float(found.log_abs_det_bound) + SLACK < 1e-9
    with mpmath.workdps(60):
        smallest = mpmath.log10(multiprecision.singular_values(rows)[-1])
    assert abs(float(found.log10_smallest_singular_value) - smallest) < 1e-10


# 2. Prefix.


@theorem(2, op=scored(st.integers(0, 9).map(Prefix)).filter(lambda op: op.mask.length <= op.rows))
def test_2_caps_and_biases_and_sinks_keep_the_determinant_of_the_block_times_the_diagonal(
    op: AttentionOperator,
) -> None:
    found = log_abs_det(op)
    with mpmath.workdps(100):
        exact = multiprecision.log_abs_det(in_digits(op))
    if float(found.bound) < 1e-3:
        assert abs(float(found.value) - exact) <= float(found.bound) + SLACK
    else:
        assert bool(found.value.isnan())


@theorem(2, op=prefixes())
def test_2_only_the_prefix_block_can_lose_rank(op: AttentionOperator) -> None:
    assert isinstance(op.mask, Prefix)
    p = op.mask.length
    with mpmath.workdps(150):
        rows = in_digits(op)
        rank, block = multiprecision.rank(rows, 100), multiprecision.rank([row[:p] for row in rows[:p]], 100)
    assert rank == block + op.rows - p
    assert (block < p) == (float(log_abs_det(op).value) == -math.inf)


@theorem(
    2,
    op=operators(mask=st.integers(0, 4).map(Prefix), features=8, fewest_features=4).filter(
        lambda op: op.rows >= op.mask.length
    ),
)
def test_2_the_determinant_is_that_of_the_block_times_the_diagonal(op: AttentionOperator) -> None:
    """Known to 1e-9 nats where cond(P) is up to 1e4, and in proportion beyond."""
    assert isinstance(op.mask, Prefix)
    p, found = op.mask.length, log_abs_det(op)
    with mpmath.workdps(100):
        rows = in_digits(op)
        expected = multiprecision.log_abs_det(rows)
        condition = float(mpmath.cond(mpmath.matrix([row[:p] for row in rows[:p]]))) if p else 1.0
        assert expected > -mpmath.inf
        limit = 1e-9 * max(1.0, condition / 1e4)
        if limit < 1e-3:
            assert float(found.bound) < limit
            assert abs(float(found.value) - expected) <= float(found.bound) + SLACK


@theorem(2, seed=st.integers(0, 9999), p=st.integers(1, 6))
def test_2_the_determinant_is_known_to_twelve_digits_where_the_block_is_well_conditioned(seed: int, p: int) -> None:
    """Each of the prefix looks at itself, e^2 times as much as at the others."""
    random = np.random.default_rng(seed)
    query, key = torch.from_numpy(random.standard_normal((2, 9, 6)))
    query[:p], key[:p] = 2 * torch.eye(p, 6), torch.eye(p, 6)
    op = AttentionOperator(query=query, key=key, mask=Prefix(p), scale=1.0)
    found = log_abs_det(op)
    with mpmath.workdps(60):
        assert float(found.bound) < 1e-12
        assert abs(float(found.value) - multiprecision.log_abs_det(in_digits(op))) <= float(found.bound)


@theorem(2, op=operators(mask=st.just(Bidirectional())), p=st.integers(0, 9))
def test_2_the_suffix_sees_the_prefix_but_is_not_seen(op: AttentionOperator, p: int) -> None:
    """A = [[P, 0], [C, L]], with P what the prefix alone would be."""
    p = min(p, op.rows)
    under = op.with_mask(Prefix(p))
    matrix = under.dense()
    assert not bool(matrix[:p, p:].any())
    assert not bool(matrix[p:, p:].triu(1).any())
    assert bool((matrix.diagonal() > 0).all())
    if p:
        torch.testing.assert_close(matrix[:p, :p], under.leading(p).dense(), rtol=SLACK, atol=0)


# 3. Algebraic rank is not numerical rank.


@theorem(3, examples=4, seed=st.integers(0, 99), mask=st.sampled_from([Causal(), Prefix(16)]))
def test_3_lapack_sees_neither_the_determinant_nor_the_smallest_singular_value(seed: int, mask: Mask) -> None:
    """n = 48, d = 16, entries N(0, 1.5^2): a matrix of full rank whose smallest values are noise in float64."""
    query, key = torch.from_numpy(1.5 * np.random.default_rng(seed).standard_normal((2, 48, 16)))
    op = AttentionOperator(query=query, key=key, mask=mask, scale=0.25)
    with mpmath.workdps(80):
        exact = float(multiprecision.log_abs_det(in_digits(op)))
    found = log_abs_det(op)
    assert abs(float(found.value) - exact) <= float(found.bound) < 1e-6
    values = np.linalg.svd(op.dense().numpy(), compute_uv=False)
    assert np.log(values).sum() > exact + 1
    assert values[-1] < 48 * 2.0**-52 * values[0]  # under the floor: unresolved, and the sum above with it


@theorem(3, examples=4, seed=st.integers(0, 99))
def test_3_a_triangle_of_full_rank_has_a_smallest_value_far_below_what_an_svd_returns(seed: int) -> None:
    query, key = torch.from_numpy(1.5 * np.random.default_rng(seed).standard_normal((2, 64, 16)))
    op = AttentionOperator(query=query, key=key, mask=Causal(), scale=0.25)
    values = np.linalg.svd(op.dense().numpy(), compute_uv=False)
    assert 1.5 < values[0] < 5
    assert float(log10_smallest_singular_value(op.dense())) < math.log10(values[-1]) - 6


# 4. Logits.


def logit_rank(logits: torch.Tensor) -> int:
    """By the gap that float64 leaves: what is not zero stands far above n eps sigma_1."""
    values = torch.linalg.svdvals(logits)
    return int((values > 64 * len(logits) * 2.0**-52 * values[0]).sum())


@theorem(4, examples=9, position=st.sampled_from(["none", "learned", "rope"]), seed=st.integers(0, 99))
def test_4_logits_of_a_model_have_at_most_the_rank_of_its_heads(position: Any, seed: int) -> None:
    model = widen(Transformer(model_config(position=position, vocab_size=40)), seed=seed)
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, 40, (1, 24)))
    with torch.no_grad(), capture(model) as found:
        model(tokens, 12)
    for op in found:
        for head in op.flattened().logits():
            assert logit_rank(head) == model.config.head_dim


@theorem(4, pairs=st.integers(1, 3), n=st.integers(8, 12), seed=st.integers(0, 999))
def test_4_rotary_positions_keep_the_rank_of_logits(pairs: int, n: int, seed: int) -> None:
    """s_ij is a function of j - i, the real part of sum_k q_ik conj(k_jk) e^(i (i - j) w_k), and yet of rank d."""
    random, d = np.random.default_rng(seed), 2 * pairs
    query, key = random.standard_normal((2, n, d))
    with mpmath.workdps(40):
        speeds = [mpmath.mpf(10000) ** (-mpmath.mpf(2 * k) / d) for k in range(pairs)]
        left, right = (
            [[mpmath.mpc(row[k], row[k + pairs]) for k in range(pairs)] for row in side.tolist()]
            for side in (query, key)
        )
        scores = [
            [
                mpmath.re(
                    mpmath.fsum(
                        left[i][k] * mpmath.conj(right[j][k]) * mpmath.expj((i - j) * speeds[k]) for k in range(pairs)
                    )
                )
                for j in range(n)
            ]
            for i in range(n)
        ]
        assert multiprecision.rank(scores, 25) == d
    angles = rotation_angles(torch.arange(n), d, 10000.0, torch.float64)
    turned = [rotate(torch.from_numpy(side), *angles) for side in (query, key)]
    op = AttentionOperator(query=turned[0], key=turned[1], mask=Causal(), scale=1.0)
    np.testing.assert_allclose(op.logits().numpy(), multiprecision.floats(scores), rtol=0, atol=1e-11)


@theorem(4, d=st.integers(1, 4), n=st.integers(10, 24), seed=st.integers(0, 999), slope=st.floats(0.1, 2))
def test_4_a_linear_bias_adds_two_to_the_rank_and_a_distance_makes_it_full(
    d: int, n: int, seed: int, slope: float
) -> None:
    query, key = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, n, d)))
    logits = AttentionOperator(query=query, key=key, mask=Causal(), scale=1.0).logits()
    assert logit_rank(logits) == d
    offset = torch.arange(1 - n, n, dtype=torch.float64)
    op = AttentionOperator(query=query, key=key, mask=Causal(), scale=1.0, bias=OffsetBias(values=slope * offset))
    assert logit_rank(op.logits()) == d + 2
    assert logit_rank(replace(op, bias=OffsetBias(values=-slope * offset.abs())).logits()) == n


@theorem(4, op=operators(features=2).filter(lambda op: op.rows > 3), kind=st.sampled_from([Causal(), Bidirectional()]))
def test_4_softmax_lifts_the_rank_of_logits_to_all(op: AttentionOperator, kind: Mask) -> None:
    with mpmath.workdps(250):
        assert multiprecision.rank(multiprecision.logits(op.query.numpy(), op.key.numpy(), op.scale), 100) <= 2
        assert multiprecision.rank(in_digits(op.with_mask(kind)), 200) == op.rows


# 5. Full rank, and off-diagonal blocks.


@theorem(5, op=operators(mask=st.just(Bidirectional()), features=1, most=7))
def test_5_bidirectional_attention_has_full_rank_at_head_size_one(op: AttentionOperator) -> None:
    """Strictly totally positive for distinct queries and keys, though no tolerance of float64 would say so."""
    with mpmath.workdps(250):
        assert multiprecision.rank(in_digits(op), 200) == op.rows


def linear_attention(n: int, state: int, seed: int) -> Any:
    """phi(Q) phi(K)^T under the causal mask, rows over their sums, phi positive: exact fractions."""
    random = np.random.default_rng(seed)
    left, right = (random.integers(1, 99, size=(n, state)).tolist() for _ in range(2))
    allowed = Causal().allowed(n).tolist()
    rows = []
    for i in range(n):
        weights = [sum(a * b for a, b in zip(left[i], right[j], strict=True)) if allowed[i][j] else 0 for j in range(n)]
        rows.append([Fraction(weight, sum(weights) or 1) for weight in weights])
    return rows


@theorem(5, n=st.integers(8, 16), state=st.integers(1, 3), seed=st.integers(0, 999))
def test_5_linear_attention_has_full_rank_and_off_diagonal_blocks_of_the_rank_of_its_state(
    n: int, state: int, seed: int
) -> None:
    rows = linear_attention(n, state, seed)
    determinant = math.prod((row[i] for i, row in enumerate(rows)), start=Fraction(1))
    assert determinant > 0
    matrix = np.array(rows, dtype=np.float64)
    assert np.linalg.matrix_rank(matrix) == n
    every = [np.linalg.matrix_rank(matrix[split:, :split], tol=1e-9) for split in range(1, n)]
    assert max(every) == state
    assert float(measures.off_diagonal_block_rank(torch.from_numpy(matrix), tolerance=1e-9)) == state


@theorem(5, op=operators(mask=st.just(Causal()), features=2, most=12).filter(lambda op: op.rows >= 4))
def test_5_softmax_has_off_diagonal_blocks_of_rank_half_of_n(op: AttentionOperator) -> None:
    half = op.rows // 2
    with mpmath.workdps(250):
        rows = in_digits(op)
        assert multiprecision.rank([row[:half] for row in rows[half:]], 200) == half
        assert multiprecision.rank(rows, 200) == op.rows
    found = float(measures.off_diagonal_block_rank(op.dense()))
    fewest, most = (
        block_rank(op, share) for share in (1.01, 0.99)
    )  # of the tolerance: the measure takes Gram matrices
    assert fewest <= found <= most


@theorem(5, n=st.sampled_from([8, 12, 16]), seed=st.integers(0, 199), mask=st.sampled_from([Causal(), Backward()]))
def test_5_float64_sees_off_diagonal_blocks_of_rank_half_of_n_where_they_are_well_conditioned(
    n: int, seed: int, mask: Mask
) -> None:
    """Logits of standard deviation 1, n features; these seeds all leave sigma_(n/2) above 1.5 times the tolerance."""
    query, key = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, n, n)))
    op = AttentionOperator(query=query, key=key, mask=mask, scale=n**-0.5)
    assert float(measures.off_diagonal_block_rank(op.dense())) == block_rank(op, 1.0) == n // 2


def block_rank(op: AttentionOperator, share: float) -> int:
    """By LAPACK, over all blocks beside the diagonal: values above that share of n eps32 sigma_1."""
    matrix, n = op.dense().numpy(), op.rows
    limit = share * n * 2.0**-23 * np.linalg.norm(matrix, 2)
    blocks = [block for i in range(1, n) for block in (matrix[i:, :i], matrix[:i, i:])]
    return max(int((np.linalg.svd(block, compute_uv=False) > limit).sum()) for block in blocks)


# 6. Full rank is not well conditioned.


@theorem(6, op=triangular(most=24), std=st.sampled_from([0.3, 1.0, 4.0]))
def test_6_the_smallest_singular_value_of_a_triangle_is_one_over_the_norm_of_its_inverse(
    op: AttentionOperator, std: float
) -> None:
    scaled = AttentionOperator(query=op.query * std, key=op.key, mask=op.mask, scale=op.scale)
    with mpmath.workdps(90):
        rows = multiprecision.numbers(scaled.dense().numpy())
        lower = [row[::-1] for row in rows[::-1]] if op.mask == Backward() else rows
        expected = multiprecision.log10_smallest_singular_value(lower)
    assert abs(float(log10_smallest_singular_value(scaled.dense())) - expected) < 1e-12


def log10_condition(mask: Mask, n: int, seed: int) -> float:
    """Of softmax of random logits, d = 64, logit std 1."""
    attention = matrices.softmax(matrices.random_logits(n, n, seed=seed), mask.allowed(n).numpy())
    if mask == Causal():
        return math.log10(np.linalg.norm(attention, 2)) - float(
            log10_smallest_singular_value(torch.from_numpy(attention))
        )
    return math.log10(np.linalg.cond(attention, 2))


@theorem(6)
def test_6_condition_numbers_are_those_of_the_table() -> None:
    """Mean and standard deviation over 20 seeds, of which some are drawn again here."""
    table = {
        Causal(): {32: (8.1, 1.2), 64: (17.7, 1.9), 128: (34.7, 4.1), 256: (68, 5), 512: (133, 9)},
        Bidirectional(): {32: (2.6, 0.4), 64: (3.2, 0.4), 128: (3.6, 0.3), 256: (4.2, 0.7), 512: (4.6, 0.5)},
    }
    for mask, row in table.items():
        for n, (mean, deviation) in row.items():
            seeds = min(20, 1024 // n)
            found = [log10_condition(mask, n, seed) for seed in range(seeds)]
            error = deviation * math.sqrt(1 / 20 + 1 / seeds)
            assert abs(np.mean(found) - mean) < 3 * error, (mask, n, np.mean(found))


# 7. Largest singular value.


@st.composite
def stochastic(draw: st.DrawFn) -> AttentionOperator:
    """Attention of any mask, rectangular under `Cross`."""
    op = draw(operators(most=16))
    if draw(st.booleans()):
        return op
    keys = draw(st.integers(1, 16))
    key = torch.from_numpy(np.random.default_rng(keys).standard_normal((keys, op.key.shape[-1])))
    return AttentionOperator(query=op.query, key=key, mask=Cross(op.rows, keys), scale=op.scale)


@theorem(7, examples=60, op=stochastic())
def test_7_the_largest_singular_value_stands_between_its_bounds(op: AttentionOperator) -> None:
    n, m, values, rows = op.rows, op.columns, spectrum(op), op.row_statistics
    bounds = [math.sqrt(n / m), float(values[0]), math.sqrt(float(rows.column_sums.max())), math.sqrt(n)]
    assert all(low <= high * (1 + SLACK) for low, high in itertools.pairwise(bounds)), bounds
    assert abs(float(rows.column_sums.sum()) - n) < SLACK * n


@theorem(7, examples=60, op=stochastic())
def test_7_the_frobenius_norm_bounds_the_stable_rank(op: AttentionOperator) -> None:
    n, m, values = op.rows, op.columns, spectrum(op)
    squared = float(op.row_statistics.squared_norm)
    assert abs(float(values.square().sum()) - squared) <= SLACK * squared
    assert n / m <= squared * (1 + SLACK)
    assert squared <= n * (1 + SLACK)
    assert float(measures.stable_rank(values)) <= squared * m / n * (1 + SLACK)


@theorem(7, op=operators(most=16))
def test_7_rows_of_a_matrix_of_attention_sum_to_one(op: AttentionOperator) -> None:
    sums = op.dense().sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=SLACK, atol=0)


@theorem(7, n=st.integers(1, 30), mask=st.sampled_from([Causal(), Bidirectional(), Prefix(0)]))
def test_7_a_full_sink_has_rank_one_and_the_largest_norm(n: int, mask: Mask) -> None:
    query, key = torch.ones(n, 1, dtype=torch.float64), torch.zeros(n, 1, dtype=torch.float64)
    key[0] = 800.0  # e^-800 is 0 in float64
    values = spectrum(AttentionOperator(query=query, key=key, mask=mask, scale=1.0))
    assert abs(float(values[0]) - math.sqrt(n)) < SLACK * n
    assert float(measures.numerical_rank(values, tolerance=1e-12)) == 1


@theorem(7, op=operators(mask=st.just(Bidirectional())))
def test_7_the_bounds_need_rows_that_sum_to_one(op: AttentionOperator) -> None:
    """A learned sink takes half of every row and is no column of A."""
    values = singular_values(op.dense() / 2, method="svd", workers=1).values
    uniform = AttentionOperator(query=op.query * 0, key=op.key, mask=op.mask, scale=1.0)
    assert float(spectrum(uniform)[0]) >= 1 - SLACK
    assert float(values[0]) == float(spectrum(op)[0]) / 2
    assert float(spectrum(uniform)[0]) / 2 < 1


# 8. Uniform causal attention.


def uniform(mask: Mask, n: int) -> AttentionOperator:
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    return AttentionOperator(query=zeros, key=zeros, mask=mask, scale=1.0)


@theorem(8, n=st.integers(1, 30))
def test_8_the_inverse_of_uniform_causal_attention_is_bidiagonal(n: int) -> None:
    """In fractions: (A^-1)_ii = i and (A^-1)_{i,i-1} = -(i - 1), counted from 1."""
    seen = Causal().allowed(n).int().tolist()
    cesaro = [[Fraction(entry, sum(row) or 1) for entry in row] for row in seen]
    np.testing.assert_allclose(uniform(Causal(), n).dense().numpy(), np.array(cesaro, dtype=np.float64), rtol=1e-15)
    for i, row in enumerate(cesaro):
        product = [row[j] * (j + 1) - (row[j + 1] * (j + 1) if j + 1 < n else 0) for j in range(n)]
        assert product == [int(i == j) for j in range(n)]


@theorem(8, n=st.integers(1, 200))
def test_8_uniform_causal_attention_has_a_factorial_for_determinant_and_a_known_smallest_value(n: int) -> None:
    op = uniform(Causal(), n)
    assert abs(float(log_abs_det(op).value) + math.lgamma(n + 1)) < SLACK * max(1, math.lgamma(n + 1))
    inverse = np.diag(np.arange(1.0, n + 1)) - np.diag(np.arange(1.0, n), k=-1)
    found = 10 ** -float(log10_smallest_singular_value(op.dense()))
    np.testing.assert_allclose(found, np.linalg.norm(inverse, 2), rtol=1e-12)


@theorem(8)
def test_8_uniform_causal_attention_has_the_known_spectrum() -> None:
    known = {
        64: (1.5978545967061857, 0.00835142412421076, 21.1), 128: (None, None, 32.0), 256: (None, None, 47.8),
        512: (1.7202833149903822, 0.0009936936528424371, 70.5),
    }  # fmt: skip
    last = None
    for n, (largest, smallest, effective) in known.items():
        values = spectrum(uniform(Causal(), n))
        assert abs(float(measures.effective_rank(values)) - effective) < 0.05
        if largest is not None and smallest is not None:
            assert abs(float(values[0]) - largest) < n * 2.0**-52 * 2
            assert abs(10 ** float(log10_smallest_singular_value(uniform(Causal(), n).dense())) - smallest) < 1e-15
        ends = (float(values[0]), n * float(values[-1]))  # towards 2 and 1/2
        assert last is None or (last[0] < ends[0] < 2 and 0.5 < ends[1] < last[1])
        last = ends


@theorem(8, n=st.integers(1, 30), p=st.integers(1, 30))
def test_8_uniform_bidirectional_attention_has_rank_one_and_the_suffix_of_a_prefix_adds_its_length(
    n: int, p: int
) -> None:
    p = min(n, p)
    assert np.linalg.matrix_rank(uniform(Bidirectional(), n).dense().numpy()) == 1
    assert np.linalg.matrix_rank(uniform(Prefix(p), n).dense().numpy()) == 1 + n - p


# 9. Order of the measures.


@theorem(9, examples=60, op=operators(most=24))
def test_9_measures_stand_in_the_renyi_order(op: AttentionOperator) -> None:
    values = spectrum(op)
    ranks = [
        1.0,
        float(measures.stable_rank(values)),
        float(measures.participation_ratio(values)),
        float(measures.effective_rank_energy(values)),
        float(measures.effective_rank(values)),
        float((values > 0).sum()),
    ]
    assert all(low <= high * (1 + SLACK) for low, high in itertools.pairwise(ranks)), ranks


@theorem(9, values=st.lists(st.floats(1e-3, 1), min_size=1, max_size=8))
def test_9_measures_are_the_renyi_numbers_of_their_shares(values: list[float]) -> None:
    """exp of the Renyi entropies of order infinity, 2 and 1 of sigma^2, and of order 1 of sigma, in fifty digits."""
    sigma = torch.tensor(values, dtype=torch.float64)
    with mpmath.workdps(50):
        mass = [mpmath.mpf(value) for value in values]
        energy = [value**2 for value in mass]
        q, p = [e / mpmath.fsum(energy) for e in energy], [m / mpmath.fsum(mass) for m in mass]
        expected = {
            measures.stable_rank: 1 / max(q),
            measures.participation_ratio: 1 / mpmath.fsum(share**2 for share in q),
            measures.effective_rank_energy: mpmath.exp(-mpmath.fsum(share * mpmath.log(share) for share in q)),
            measures.effective_rank: mpmath.exp(-mpmath.fsum(share * mpmath.log(share) for share in p)),
        }
    for measure, value in expected.items():
        assert abs(float(measure(sigma)) - float(value)) <= SLACK * float(value)


# 10. Prefix language models without positions.


@st.composite
def permuted(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Twelve different tokens, another order of the first p, which are two or more, and a seed of weights."""
    p = draw(st.integers(2, 10))
    order = draw(st.permutations(range(p)).filter(lambda order: order != list(range(p))))
    return draw(st.permutations(range(20)))[:12], order, draw(st.integers(0, 99))


def hidden_before_and_after(
    case: tuple[list[int], list[int], int], mask: MaskKind, position: Any, layers: int = 2
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Hidden states in both orders, prefix rows of the second put back where their tokens stood in the first; and p."""
    tokens, order, seed = case
    config = model_config(mask=mask, position=position, vocab_size=20, num_layers=layers)
    model, p = widen(Transformer(config), seed=seed), len(order)
    with torch.no_grad():
        before, after = (
            model(torch.tensor([row]), p)[0] for row in (tokens, [tokens[each] for each in order] + tokens[p:])
        )
    return before, torch.cat([after[torch.tensor(order).argsort()], after[p:]]), p


@theorem(10, examples=25, case=permuted())
def test_10_without_positions_the_prefix_is_a_set(case: tuple[list[int], list[int], int]) -> None:
    before, after, _ = hidden_before_and_after(case, MaskKind.PREFIX, "none")
    assert float((after - before).abs().max()) < SLACK


@theorem(10, examples=15, case=permuted())
def test_10_a_causal_model_knows_the_order_of_its_prefix_from_two_layers_on(
    case: tuple[list[int], list[int], int],
) -> None:
    """In one layer a suffix row sums over the same keys; a prefix row sees others."""
    before, after, p = hidden_before_and_after(case, MaskKind.CAUSAL, "none")
    assert float((after[p:] - before[p:]).abs().max()) > 1e-6
    assert float((after[:p] - before[:p]).abs().max()) > 1e-6
    before, after, p = hidden_before_and_after(case, MaskKind.CAUSAL, "none", layers=1)
    assert float((after[p:] - before[p:]).abs().max()) < SLACK


@theorem(10, examples=15, case=permuted(), position=st.sampled_from(["rope", "learned", "alibi"]))
def test_10_positions_tell_a_prefix_from_its_permutations(
    case: tuple[list[int], list[int], int], position: str
) -> None:
    """By later rows: to the prefix itself, symmetric distances are the same when it is read backwards."""
    before, after, p = hidden_before_and_after(case, MaskKind.PREFIX, position)
    assert float((after[p:] - before[p:]).abs().max()) > 1e-6


# 11. More closed forms.


def flat(values: torch.Tensor, n: int) -> None:
    for rank in (
        measures.effective_rank,
        measures.effective_rank_energy,
        measures.stable_rank,
        measures.participation_ratio,
    ):
        assert abs(float(rank(values)) - n) < SLACK * n
    assert float(measures.numerical_rank(values, tolerance=1e-6)) == n
    for percent in (80, 90, 95, 99):
        least = math.ceil(Fraction(percent * n, 100))
        assert float(measures.energy_rank(values, fraction=percent / 100)) == least
        assert float(measures.mass_rank(values, fraction=percent / 100)) == least


@theorem(11, n=st.integers(1, 60), seed=st.integers(0, 99))
def test_11_a_permutation_has_every_rank_n_and_the_identity_no_block(n: int, seed: int) -> None:
    flat(singular_values(matrices.permutation(n, seed=seed), method="svd", workers=1).values, n)
    assert float(measures.off_diagonal_block_rank(torch.eye(n))) == 0


@theorem(11, n=st.integers(1, 40))
def test_11_attention_to_oneself_is_the_identity(n: int) -> None:
    positions = torch.eye(n, dtype=torch.float64)
    op = AttentionOperator(query=800 * positions, key=positions, mask=Causal(), scale=1.0)
    flat(spectrum(op), n)
    assert abs(float(log_abs_det(op).value)) < SLACK


@theorem(11, ratio=st.floats(0.05, 0.95))
def test_11_a_geometric_spectrum_has_the_ranks_of_its_series(ratio: float) -> None:
    values = torch.from_numpy(ratio ** np.arange(1200.0))
    with mpmath.workdps(30):
        r = mpmath.mpf(ratio)
        effective = float(1 / ((1 - r) * r ** (r / (1 - r))))
    assert abs(float(measures.effective_rank(values)) - effective) < SLACK * effective
    assert abs(float(measures.stable_rank(values)) - 1 / (1 - ratio**2)) < SLACK / (1 - ratio**2)


@theorem(11, n=st.integers(1, 60))
def test_11_lower_triangular_ones_have_cosecant_singular_values(n: int) -> None:
    place = np.arange(1, n + 1)
    expected = 1 / (2 * np.sin((2 * place - 1) * np.pi / (4 * n + 2)))
    found = singular_values(Causal().allowed(n).double(), method="svd", workers=1).values.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=n * 2.0**-52 * expected[0])


@theorem(11)
def test_11_gaussian_matrices_have_the_shares_of_the_quarter_circle_law() -> None:
    values = singular_values(matrices.gaussian(512, 512, seed=11), method="gram", workers=1).values
    assert abs(float(measures.effective_rank(values)) / 512 - 0.8050) < 0.004
    assert abs(float(measures.stable_rank(values)) / 512 - 1 / 4) < 0.01  # sigma_1 moves by n^(-2/3)
    assert abs(float(measures.participation_ratio(values)) / 512 - 1 / 2) < 0.004
