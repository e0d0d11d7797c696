"""What the rank of an attention matrix is to be held against: the same matrix with something taken out of it.

Each baseline is an operator made from an operator, with its batch shape, so that the same code measures both. Random
ones draw from a counter-based generator keyed by a seed and the name of the matrix: neither the batch that a matrix is
part of nor the other baselines can change what it is held against.

A dense baseline (`shuffled`, `logits`) is a float64 matrix that no model applied: its model floor is float64's own.

`init` has no function here. It is the same model at its stored initialisation on the same tokens, and whoever has the
run captures it like any other checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Padded
from rankkit.operators import AttentionOperator, DenseOperator

__all__ = [
    "BASELINES",
    "BASELINE_DEFINITIONS",
    "baseline",
    "gaussian",
    "logits",
    "normal_numbers",
    "shuffled",
    "uniform",
]

BASELINE_DEFINITIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "uniform": "the same mask, all logits equal: what the mask alone makes",
        "init": "the same model at its stored initialisation, same tokens: what training did not do",
        "shuffled": "each row's visible probabilities permuted at random: the same row entropies, no structure",
        "gaussian": "random Q and K of the same n, d and logit std under the same mask: what the size of the logits makes",
        "logits": "scale * Q K^T itself, capped and biased as in the model, without a softmax: rank at most d if neither",
    }
)
"""Every baseline and what it is, in the order of tables."""

BASELINES: Final = tuple(BASELINE_DEFINITIONS)
"""Names of the baselines."""


def baseline(
    name: str, operator: AttentionOperator, /, *, seed: int, names: Sequence[str]
) -> AttentionOperator | DenseOperator:
    """The baseline of that name.

    Args:
        name: one of `BASELINES`, but `init`, which takes another checkpoint and not another operator.
        operator: what it is held against.
        seed: of the random ones.
        names: "matrix", of the operator's matrices in the order of `flattened`; only the random ones read them.

    Raises:
        ConfigurationError: another name; names that do not tell the matrices apart.
    """
    if name == "uniform":
        return uniform(operator)
    if name == "shuffled":
        return shuffled(operator, seed=seed, names=names)
    if name == "gaussian":
        return gaussian(operator, seed=seed, names=names)
    if name == "logits":
        return logits(operator)
    known = ", ".join(known for known in BASELINES if known != "init")
    raise ConfigurationError(
        f"baseline of an operator must be one of {known}, got {name!r}. Capture init from the first checkpoint."
    )


def uniform(operator: AttentionOperator, /) -> AttentionOperator:
    """Attention with all logits equal under the same mask: zero query, zero key, and neither bias nor sink.

    Under a causal mask it is the Cesaro matrix, A_ij = 1/i, and under none it has rank 1. Every matrix of the batch is
    the same one.
    """
    query, key = torch.zeros_like(operator.query), torch.zeros_like(operator.key)
    return replace(operator, query=query, key=key, softcap=None, bias=None, sink=None)


def shuffled(operator: AttentionOperator, /, *, seed: int, names: Sequence[str]) -> DenseOperator:
    """Each row's visible probabilities in a random order, uniform over all orders and independent between rows.

    Row sums (less what a sink takes), entropies and the Frobenius norm stay, and so does the mask; where the row looks
    does not.

    Args:
        operator: its matrices are formed in float64, all at once: pass a part of a large batch.
        seed: with a matrix's name it keys the generator.
        names: "matrix", of the operator's matrices in the order of `flattened`.

    Raises:
        ConfigurationError: names that do not tell the matrices apart.
    """
    attention, allowed = operator.dense(), operator.allowed()
    hidden = rearrange(~allowed, "row column -> 1 row column")
    visible_first = hidden.long().argsort(dim=-1, stable=True)
    flat = rearrange(attention, "... row column -> (...) row column")
    for matrix, name in zip(flat, _checked(names, operator), strict=True):
        bits = _bits(seed, f"shuffled {name}", allowed.shape) >> np.uint64(1)  # torch sorts no uint64
        keys = (
            torch.from_numpy(bits.astype(np.int64))
            .to(matrix.device)
            .masked_fill(~allowed, torch.iinfo(torch.int64).max)
        )
        order = keys.argsort(dim=-1, stable=True)
        matrix[:] = torch.zeros_like(matrix).scatter(-1, visible_first[0], matrix.gather(-1, order))
    return DenseOperator(matrix=flat.reshape(attention.shape), labels=operator.labels)


def gaussian(operator: AttentionOperator, /, *, seed: int, names: Sequence[str]) -> AttentionOperator:
    """Attention of random Q and K of the same shapes, under the same mask, with each matrix's own logit std.

    Entries are independent and normal; then Q is scaled so that the standard deviation of the row-centred logits over
    visible entries, of this very draw, is the original's (to rounding: the logits are linear in Q). The original's are
    those that enter its softmax, after cap and bias. The baseline has neither, and no sink: a bias is structure, and what a
    sink takes depends on the mean of the logits, which here is 0.

    Args:
        operator: its logits are summed by blocks of rows; no matrix is formed.
        seed: with a matrix's name it keys the generator.
        names: "matrix", of the operator's matrices in the order of `flattened`.

    Returns:
        Float64 factors; nan throughout a matrix whose logits are not finite; zero queries where the logits do not vary.

    Raises:
        ConfigurationError: names that do not tell the matrices apart.
    """
    flat = operator.flattened()
    query, key = (torch.empty_like(factor, dtype=torch.float64) for factor in (flat.query, flat.key))
    drawn = replace(flat, query=query, key=key, softcap=None, bias=None, sink=None)
    wanted = _logit_stds(flat)
    for index, name in enumerate(_checked(names, operator)):
        for factor, which in ((query, "query"), (key, "key")):
            factor[index] = normal_numbers(seed, f"gaussian {which} {name}", tuple(factor.shape[1:]))
    for index, (target, found) in enumerate(zip(wanted, _logit_stds(drawn), strict=True)):
        query[index] *= target / found if found > 0 else target  # a row that sees one key: both are 0
    query, key = query.reshape(operator.query.shape), key.reshape(operator.key.shape)
    return replace(operator, query=query, key=key, softcap=None, bias=None, sink=None)


def logits(operator: AttentionOperator, /) -> DenseOperator:
    """The logits themselves, before mask and softmax: scale * Q K^T, capped and biased as the model does; 0 for padding.

    Signed, rows summing to anything, and without cap and bias of rank at most d whatever the mask: what of a rank the
    softmax made.

    Args:
        operator: its logits are formed in float64, all at once: pass a part of a large batch.
    """
    matrix = operator.logits()
    if isinstance(operator.mask, Padded):
        inside = operator.mask.visible_positions(operator.rows)
        for padding in (slice(inside.start), slice(inside.stop, None)):
            matrix[..., padding, :] = 0
            matrix[..., padding] = 0
    return DenseOperator(matrix=matrix, labels=operator.labels)


def normal_numbers(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Independent standard normal numbers, a function of seed and name alone.

    The inverse distribution function of uniform numbers. Those have the same bits on every machine and under every
    library version; the function's last bits may differ between versions of SciPy.

    Args:
        seed: any integer.
        name: together with the seed it keys the generator (Philox, first 128 bits of a SHA-256).
        shape: of the result.

    Returns:
        float64 of that shape, on the CPU.
    """
    from scipy.special import ndtri

    middle = (_bits(seed, name, shape) >> np.uint64(12)).astype(
        np.float64
    ) + 0.5  # of 2^52 equal parts of (0, 1), exact
    return torch.from_numpy(np.asarray(ndtri(middle * 2.0**-52)))


def _bits(seed: int, name: str, shape: Sequence[int]) -> NDArray[np.uint64]:
    key = np.frombuffer(hashlib.sha256(f"rankkit baseline {seed} {name}".encode()).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key.astype(np.uint64)).random_raw(math.prod(shape)).reshape(shape)


def _logit_stds(flat: AttentionOperator) -> Iterator[Tensor]:
    """Of one matrix after the other, in O(n) memory."""
    for index in range(len(flat.query)):
        rows = flat[index : index + 1].row_statistics
        yield (rows.logit_squares.sum(dim=-1) / rows.visible.sum()).sqrt()[0]


def _checked(names: Sequence[str], operator: AttentionOperator) -> Sequence[str]:
    count = math.prod(operator.batch_shape)
    if isinstance(names, str) or len(names) != count or len(set(names)) < count:
        raise ConfigurationError(
            f"names must hold {count} different names (one for each matrix), got {names!r}. "
            "Name each by its place, such as 'layer 0 sequence 3 head 1'."
        )
    return names
