"""Matrices whose answer is known, in float64 NumPy and by code of their own: the substrate of the numerical tests."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
MaskKind = Literal["causal", "prefix", "bidirectional", "backward"]

SCALES = tuple(10.0**power for power in range(-10, 11, 5))


def orthogonal(size: int, seed: int) -> Matrix:
    """A random orthogonal matrix, size x size."""
    rotation, triangle = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return rotation * np.sign(np.diagonal(triangle))


def prescribed(spectrum: NDArray[np.float64], rows: int, columns: int, *, seed: int = 0) -> Matrix:
    """A rows x columns matrix with the given singular values (at most min(rows, columns) of them; the rest are 0)."""
    left, right = orthogonal(rows, 2 * seed), orthogonal(columns, 2 * seed + 1)
    count = len(spectrum)
    return (left[:, :count] * spectrum) @ right[:, :count].T


def geometric(size: int, ratio: float, *, seed: int = 0) -> Matrix:
    """Singular values ratio^0, ratio^1, ..., ratio^(size - 1)."""
    return prescribed(ratio ** np.arange(size), size, size, seed=seed)


def rank_deficient(size: int, rank: int, *, seed: int = 0) -> Matrix:
    """Size x size of the given rank, its nonzero singular values between 1 and 2."""
    return prescribed(np.linspace(2, 1, rank), size, size, seed=seed)


def rank_one(rows: int, columns: int, *, seed: int = 0) -> Matrix:
    """An outer product of positive vectors; its one singular value is the product of their norms."""
    random = np.random.default_rng(seed)
    return np.outer(random.random(rows) + 0.1, random.random(columns) + 0.1)


def zero(rows: int, columns: int) -> Matrix:
    return np.zeros((rows, columns))


def one_by_one(value: float) -> Matrix:
    return np.array([[value]])


def permutation(size: int, *, seed: int = 0) -> Matrix:
    return np.eye(size)[np.random.default_rng(seed).permutation(size)]


def lower_ones(size: int) -> Matrix:
    """Lower-triangular ones; sigma_k = 1 / (2 sin((2k - 1) pi / (4n + 2)))."""
    return np.tril(np.ones((size, size)))


def gaussian(rows: int, columns: int, *, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def allowed(kind: MaskKind, size: int, prefix_length: int | None = None) -> NDArray[np.bool_]:
    """Who sees whom, size x size; the prefix is half the size unless given."""
    query, key = np.arange(size)[:, None], np.arange(size)[None, :]
    prefix = size // 2 if prefix_length is None else prefix_length
    masks = {
        "causal": key <= query,
        "prefix": (key < prefix) | (key <= query),
        "bidirectional": np.ones((size, size), dtype=bool),
        "backward": key >= query,
    }
    return masks[kind]


def softmax(logits: Matrix, visible: NDArray[np.bool_]) -> Matrix:
    """Masked row softmax of logits "... query key"."""
    shifted = np.where(visible, logits, -np.inf)
    weights = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def random_logits(rows: int, columns: int, *, std: float = 1.0, head_dim: int = 64, seed: int = 0) -> Matrix:
    """Q K^T / sqrt(head_dim) of independent normal Q and K, with entries of the given standard deviation."""
    random = np.random.default_rng(seed)
    queries = random.normal(size=(rows, head_dim)) * np.sqrt(std)
    keys = random.normal(size=(columns, head_dim)) * np.sqrt(std)
    return queries @ keys.T / np.sqrt(head_dim)


def attention(
    kind: MaskKind, size: int, *, std: float = 1.0, head_dim: int = 64, seed: int = 0, prefix_length: int | None = None
) -> Matrix:
    """Softmax of random logits under a mask."""
    logits = random_logits(size, size, std=std, head_dim=head_dim, seed=seed)
    return softmax(logits, allowed(kind, size, prefix_length))


def uniform(kind: MaskKind, size: int, prefix_length: int | None = None) -> Matrix:
    """All logits equal; `causal` is the Cesaro matrix, A_ij = 1 / i for j <= i."""
    return softmax(np.zeros((size, size)), allowed(kind, size, prefix_length))


def sink(
    kind: MaskKind, size: int, *, position: int = 0, strength: float = 8.0, std: float = 1.0, seed: int = 0
) -> Matrix:
    """Random logits with one column raised by `strength`."""
    logits = random_logits(size, size, std=std, seed=seed)
    logits[:, position] += strength
    return softmax(logits, allowed(kind, size))
