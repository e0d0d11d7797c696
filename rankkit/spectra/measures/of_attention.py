"""Functions of the attention matrix and of its logits, from "... query key" to "...".

Attention is non-negative; its rows sum to 1, or less beside a learned sink.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError

__all__ = [
    "attention_entropy",
    "attention_entropy_relative",
    "diagonal_mass",
    "logit_std",
    "mean_ipr",
    "previous_key_mass",
    "rank_one_residual",
    "sink_mass",
    "sink_position",
]


def attention_entropy(attention: Tensor, /) -> Tensor:
    """Mean over the rows that see something of -sum_j A_ij log A_ij, in nats.

    Args:
        attention: "... query key".

    Returns:
        "...", float64, in [0, log m] for m keys; 0 where every row sees one key.

    Raises:
        ConfigurationError: fewer than two axes, or a negative entry.

    Source: Zhai et al. (2023), Stabilizing Transformer training by preventing attention entropy collapse.
    """
    matrix, _, count = attention_rows(attention)
    return _row_entropy(matrix).sum(dim=-1) / count


def attention_entropy_relative(attention: Tensor, /, *, allowed: Tensor) -> Tensor:
    """Mean of H_i / log(number of visible keys), over the rows that see at least two.

    Args:
        attention: "... query key".
        allowed: "... query key" or "query key", bool, True where the row may see the key.

    Returns:
        "...", float64, in [0, 1] for rows that sum to 1; nan where no row sees two keys (n = 1 among them).

    Raises:
        ConfigurationError: as `attention_entropy`; a mask that is not boolean or has another shape.
    """
    matrix, valid, count = attention_rows(attention)
    visible = checked_mask(allowed, matrix).sum(dim=-1).to(torch.float64)
    used = valid & (visible >= 2)
    share = (_row_entropy(matrix) / visible.log()).where(used, 0.0)
    return share.sum(dim=-1) / used.sum(dim=-1).where(count > 0, torch.nan)


def mean_ipr(attention: Tensor, /) -> Tensor:
    """Mean inverse participation ratio of the rows, ||A||_F^2 / n: "..." in [1/m, 1] for rows that sum to 1."""
    matrix, _, count = attention_rows(attention)
    return matrix.square().sum(dim=(-2, -1)) / count


def rank_one_residual(attention: Tensor, /) -> Tensor:
    """Distance of A from the nearest matrix with all rows equal, ||A - 1 a^T||_F / ||A||_F with a the mean row.

    Returns:
        "...", float64, in [0, 1): 0 where every query attends alike, sqrt(1 - 1/n) for the identity.

    Source: after Dong et al. (2021), Attention is not all you need: pure attention loses rank doubly exponentially.
    """
    matrix, valid, count = attention_rows(attention)
    mean = matrix.sum(dim=-2) / count.unsqueeze(-1)
    distance = (matrix - rearrange(mean, "... key -> ... 1 key")).square().sum(dim=-1).where(valid, 0.0)
    return (distance.sum(dim=-1) / matrix.square().sum(dim=(-2, -1))).sqrt()


def sink_position(attention: Tensor, /) -> Tensor:
    """Key with the largest column sum, the first of several: "...", float64, a whole number in 0..m-1, or nan."""
    matrix, _, count = attention_rows(attention)
    return matrix.sum(dim=-2).argmax(dim=-1).to(torch.float64).where(count > 0, torch.nan)


def sink_mass(attention: Tensor, /) -> Tensor:
    """Mean attention that the rows pay to `sink_position`: "..." in [1/m, 1] for rows that sum to 1."""
    matrix, _, count = attention_rows(attention)
    return matrix.sum(dim=-2).amax(dim=-1) / count


def diagonal_mass(attention: Tensor, /) -> Tensor:
    """Mean over the rows of A_ii, attention to oneself: "..." in [0, 1]; nan where A is not square."""
    matrix, _, count = attention_rows(attention)
    return _square_only(matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / count, matrix)


def previous_key_mass(attention: Tensor, /) -> Tensor:
    """Mean over the rows after the first of A_{i,i-1}: "..." in [0, 1]; nan where A is not square, and for n = 1."""
    matrix, valid, count = attention_rows(attention)
    followers = valid[..., 1:].sum(dim=-1).where(count > 0, torch.nan)
    return _square_only(matrix.diagonal(offset=-1, dim1=-2, dim2=-1).sum(dim=-1) / followers, matrix)


def _row_entropy(matrix: Tensor) -> Tensor:
    summands: Tensor = torch.special.entr(matrix)  # -A log A, 0 at 0
    return summands.sum(dim=-1)


def attention_rows(attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix in float64, which rows see something, and their number: nan where no mean can be taken."""
    matrix = attention.to(torch.float64)
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ConfigurationError(
            f"attention must have at least one row and one column on its last two axes, got shape "
            f"{tuple(matrix.shape)!r}. Pass an array of shape (..., query, key)."
        )
    if matrix.numel() and bool((least := matrix.amin()) < 0):  # nan passes, and is told from the row sums
        raise ConfigurationError(f"attention must be at least 0, got {float(least)!r}. Pass it after the softmax.")
    sums = matrix.sum(dim=-1)
    valid = sums != 0
    usable = sums.isfinite().all(dim=-1) & valid.any(dim=-1)
    return matrix, valid, valid.sum(dim=-1).to(torch.float64).where(usable, torch.nan)


def checked_mask(allowed: Tensor, matrix: Tensor) -> Tensor:
    """The mask, if it is one of this matrix."""
    if allowed.dtype != torch.bool or allowed.shape[-2:] != matrix.shape[-2:]:
        raise ConfigurationError(
            f"allowed must be a boolean mask of shape (..., {matrix.shape[-2]}, {matrix.shape[-1]}), got "
            f"{allowed.dtype} {tuple(allowed.shape)!r}. Pass the mask that the softmax was taken under."
        )
    return allowed


def _square_only(value: Tensor, matrix: Tensor) -> Tensor:
    return value if matrix.shape[-2] == matrix.shape[-1] else torch.full_like(value, torch.nan)


# Functions of the logits, "... query key".


def logit_std(logits: Tensor, /, *, allowed: Tensor) -> Tensor:
    """Standard deviation of the row-centred logits over visible entries.

    sqrt(sum (s_ij - mean_j s_ij)^2 / number of visible entries): the softmax does not see a shift of a row.

    Args:
        logits: "... query key", scaled and with any bias, as they enter the softmax; hidden entries may hold anything.
        allowed: "... query key" or "query key", bool, True where the row may see the key.

    Returns:
        "...", float64, at least 0; 0 where every row sees one key; nan where nothing is visible or something visible
        is not finite.

    Raises:
        ConfigurationError: a mask that is not boolean or has another shape.
    """
    scores = logits.to(torch.float64)
    visible = checked_mask(allowed, scores)
    per_row = visible.sum(dim=-1, keepdim=True)
    mean = scores.where(visible, 0.0).sum(dim=-1, keepdim=True) / per_row
    spread = (scores - mean).where(visible, 0.0).square().sum(dim=(-2, -1))
    return (spread / per_row.sum(dim=(-2, -1))).sqrt()
