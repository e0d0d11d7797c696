"""What every mask says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit_kernels.attention import FusedCall

__all__ = ["Mask", "open_block"]


class Mask(ABC):
    """Who sees whom among n query positions and as many keys (only `Cross` has another number of keys)."""

    __slots__ = ()

    def columns(self, n: int) -> int:
        """How many keys n queries have."""
        return n

    def visible_positions(self, n: int) -> range:
        """The rows and columns that take part; the others, padding, see nothing and are seen by none."""
        return range(n)

    @abstractmethod
    def allowed(self, n: int) -> Tensor:
        """The definition: "query key", bool, True where query i may see key j. The reference; n^2 memory."""

    @abstractmethod
    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The calls that compute attention under this mask without an n x n mask, rows in order."""

    @abstractmethod
    def transposed(self) -> Mask:
        """The mask of A^T: key j is seen by query i here exactly if query j sees key i there."""

    @abstractmethod
    def visible_pairs(self, n: int) -> int:
        """How many (query, key) pairs are allowed."""

    @abstractmethod
    def triangular_rows(self, n: int) -> range:
        """Rows in which theorem 1 or 2 gives the determinant its diagonal factors A_ii.

        log|det A| = log|det P| + sum over these rows of log A_ii, with P the block of the other rows and columns
        (empty for a triangular mask: theorem 1; the prefix block for `Prefix`: theorem 2).
        """

    @abstractmethod
    def foreseeing_rows(self, n: int) -> range:
        """Rows t that see position t + 1: a next-token loss on them would be given the answer."""

    @abstractmethod
    def leading(self, size: int) -> Mask:
        """The mask of the leading size x size block as attention over the first `size` positions alone.

        Raises:
            ConfigurationError: those rows see keys beyond the block, so that the block is not attention by itself.
        """

    def without_first_key(self) -> Mask:
        """The mask of rows and columns 1 .. n - 1 without the first key that is seen: the sink-removed control.

        Raises:
            ConfigurationError: queries and keys are different sequences.
        """
        return self

    def attention_flops(self, n: int, head_dim: int) -> int:
        """Floating-point operations of one head's forward pass: 2 head_dim each for Q K^T and A V per visible pair."""
        return 4 * head_dim * self.visible_pairs(n)


def open_block(mask: Mask, size: int) -> ConfigurationError:
    """What `leading` raises where the first rows see keys beyond the block."""
    return ConfigurationError(
        f"mask must close its first {size} positions off from later ones, got {mask}. Measure region `full`."
    )
