"""An attention matrix as a lazy operator: its factors, its mask, and views of it.

Capture makes operators and spectra consume them; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Mask

__all__ = ["AttentionOperator"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionOperator:
    """softmax(scale Q K^T, masked) for any number of heads and sequences that share one mask, not yet computed.

    Every entry of the matrix is recomputed from the factors in the dtype asked for, float64 by default, so what is
    measured is the exact softmax of the logits that the model's own Q and K define.
    """

    query: Tensor
    """"... query feature", as the model used it: after the position encoding."""
    key: Tensor
    """"... key feature", same leading axes."""
    mask: Mask
    """Who sees whom."""
    scale: float
    """Factor of the logits; 1/sqrt(feature) in most models."""
    labels: Mapping[str, int | str] = field(default_factory=dict)
    """Where it comes from: `layer`, `kind`, `sequence`."""

    def __post_init__(self) -> None:
        if self.query.dim() < 2 or self.query.shape != self.key.shape:
            raise ConfigurationError(
                f"query and key must both be (..., position, feature), got {tuple(self.query.shape)} and "
                f"{tuple(self.key.shape)}. Expand grouped keys to one per query head first."
            )

    @property
    def size(self) -> int:
        """Rows and columns of each matrix."""
        return self.query.shape[-2]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes: one matrix for each of their entries."""
        return tuple(self.query.shape[:-2])

    def logits(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Scale Q K^T before the mask, "... query key"."""
        return self.scale * (self.query.to(dtype) @ self.key.to(dtype).transpose(-1, -2))

    def allowed(self) -> Tensor:
        """The mask's definition at this size, "query key", bool, on the factors' device."""
        return self.mask.allowed(self.size).to(self.query.device)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrices themselves.

        Args:
            dtype: of the whole computation, logits included.

        Returns:
            "... query key", rows summing to 1, zero where the mask forbids.
        """
        return torch.softmax(self.logits(dtype).masked_fill_(~self.allowed(), -torch.inf), dim=-1)

    def block(self, rows: slice, columns: slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Some rows and columns of the dense matrix, with memory for those rows only.

        Rows are normalised over all their columns, so this is a part of the matrix and not attention within the block;
        for that, see `leading`.

        Args:
            rows: which queries.
            columns: which keys.
            dtype: of the computation.

        Returns:
            "... query key" of the block.
        """
        allowed = self.allowed()[rows]
        logits = self.scale * (self.query[..., rows, :].to(dtype) @ self.key.to(dtype).transpose(-1, -2))
        return torch.softmax(logits.masked_fill_(~allowed, -torch.inf), dim=-1)[..., columns]

    def leading(self, size: int) -> AttentionOperator:
        """The leading size x size block as an operator of its own.

        Exact, because it is only granted where the first `size` rows see nothing beyond it: `prefix_block` is
        `leading(prefix_length)`.

        Raises:
            ConfigurationError: the mask lets those rows see further, or `size` is not within 1..n.
        """
        if not 1 <= size <= self.size:
            raise ConfigurationError(
                f"size must be between 1 and {self.size}, got {size}. Choose a block inside the matrix."
            )
        if size == self.size:
            return self
        return replace(self, query=self.query[..., :size, :], key=self.key[..., :size, :], mask=self.mask.leading(size))

    def with_mask(self, mask: Mask) -> AttentionOperator:
        """The same factors under another mask: the mask-swap control."""
        return replace(self, mask=mask)
