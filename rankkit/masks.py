"""Attention masks as values: who sees whom, how to compute it fused, and which theorems hold.

`allowed(n)` is the definition. Everything else about a mask (the fused plan, the transpose, the count of visible
pairs, the triangular rows) is tested against it. Adding a mask is one class here and its tests.

Shapes: n query positions, n key positions; A = softmax(scale Q K^T, masked) is n x n and row-stochastic.
Positions are 0-based.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit_kernels.attention import FusedCall, Group

__all__ = [
    "Backward",
    "Bidirectional",
    "Causal",
    "Cross",
    "Mask",
    "MaskKind",
    "Padded",
    "Prefix",
    "PrefixTransposed",
    "Window",
    "batch_groups",
]


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


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """GPT: j <= i. A is lower-triangular; det A = prod A_ii > 0 and rank A = n in exact arithmetic."""

    def allowed(self, n: int) -> Tensor:
        """True where j <= i."""
        return torch.ones(n, n, dtype=torch.bool).tril()

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One causal call."""
        return (FusedCall((0, n), (0, n), "past"),)

    def transposed(self) -> Mask:
        """Backward."""
        return Backward()

    def visible_pairs(self, n: int) -> int:
        """Entries of a triangle."""
        return n * (n + 1) // 2

    def triangular_rows(self, n: int) -> range:
        """All of them."""
        return range(n)

    def foreseeing_rows(self, n: int) -> range:
        """None."""
        return range(0)

    def leading(self, size: int) -> Mask:
        """Causal again."""
        return self


@dataclass(frozen=True, slots=True)
class Backward(Mask):
    """j >= i. A is upper-triangular, with the theorems of `Causal`."""

    def allowed(self, n: int) -> Tensor:
        """True where j >= i."""
        return torch.ones(n, n, dtype=torch.bool).triu()

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One causal call on the reversed sequence."""
        return (FusedCall((0, n), (0, n), "future"),)

    def transposed(self) -> Mask:
        """Causal."""
        return Causal()

    def visible_pairs(self, n: int) -> int:
        """Entries of a triangle."""
        return n * (n + 1) // 2

    def triangular_rows(self, n: int) -> range:
        """All of them."""
        return range(n)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position."""
        return range(n - 1)

    def leading(self, size: int) -> Mask:
        """Refused: the first rows see every later key."""
        raise _open_block(self, size)


@dataclass(frozen=True, slots=True)
class Bidirectional(Mask):
    """BERT, T5's encoder: everybody sees everybody. Full rank almost surely, but not triangular."""

    def allowed(self, n: int) -> Tensor:
        """True everywhere."""
        return torch.ones(n, n, dtype=torch.bool)

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One call without a mask."""
        return (FusedCall((0, n), (0, n), "all"),)

    def transposed(self) -> Mask:
        """Itself."""
        return self

    def visible_pairs(self, n: int) -> int:
        """All."""
        return n * n

    def triangular_rows(self, n: int) -> range:
        """None."""
        return range(0)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position."""
        return range(n - 1)

    def leading(self, size: int) -> Mask:
        """Refused: the first rows see every later key."""
        raise _open_block(self, size)


@dataclass(frozen=True, slots=True)
class Prefix(Mask):
    """UniLM: j < length, or j <= i. A = [[P, 0], [C, L]] with P full and L lower-triangular.

    rank A = rank P + (n - length), and log|det A| = log|det P| + sum over i >= length of log A_ii.
    """

    length: int
    """How many positions, from the first, are seen by everybody."""

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 0:
            raise ConfigurationError(
                f"prefix_length must be an integer of at least 0, got {self.length!r}. "
                "Choose a length within the sequence."
            )

    def _checked(self, n: int) -> int:
        if self.length > n:
            raise ConfigurationError(
                f"prefix_length must be between 0 and {n} (sequence_length), got {self.length}. "
                "Shorten the prefix or raise sequence_length."
            )
        return self.length

    def allowed(self, n: int) -> Tensor:
        """True where j < length or j <= i."""
        positions = torch.arange(n)
        return (positions < self._checked(n))[None, :] | (positions[None, :] <= positions[:, None])

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The prefix alone without a mask, then the suffix rows aligned to the lower right."""
        p = self._checked(n)
        prefix = (FusedCall((0, p), (0, p), "all"),) if p > 0 else ()
        suffix = (FusedCall((p, n), (0, n), "past"),) if p < n else ()
        return prefix + suffix

    def transposed(self) -> Mask:
        """`PrefixTransposed` of the same length."""
        return PrefixTransposed(self.length)

    def visible_pairs(self, n: int) -> int:
        """A triangle and the prefix's upper triangle."""
        p = self._checked(n)
        return n * (n + 1) // 2 + p * (p - 1) // 2

    def triangular_rows(self, n: int) -> range:
        """The suffix rows."""
        return range(self._checked(n), n)

    def foreseeing_rows(self, n: int) -> range:
        """Those inside the prefix, but for its last."""
        return range(max(self._checked(n) - 1, 0))

    def leading(self, size: int) -> Mask:
        """Prefix again; refused inside the prefix, whose rows see all of it."""
        if size < self.length:
            raise ConfigurationError(
                f"size must be at least {self.length} (prefix_length), got {size}. "
                "Rows of the prefix see all of it; take the whole prefix."
            )
        return self

    def without_first_key(self) -> Mask:
        """One position of the prefix less."""
        return Prefix(max(self.length - 1, 0))


@dataclass(frozen=True, slots=True)
class PrefixTransposed(Mask):
    """The transpose of `Prefix`: rows before `length` see all, later ones what does not come before them."""

    length: int
    """The prefix length of the mask that this one transposes."""

    def allowed(self, n: int) -> Tensor:
        """True where i < length or j >= i."""
        positions = torch.arange(n)
        return (positions < Prefix(self.length)._checked(n))[:, None] | (positions[None, :] >= positions[:, None])

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The first rows without a mask, the others as a reversed causal call among themselves."""
        p = Prefix(self.length)._checked(n)
        first = (FusedCall((0, p), (0, n), "all"),) if p > 0 else ()
        later = (FusedCall((p, n), (p, n), "future"),) if p < n else ()
        return first + later

    def transposed(self) -> Mask:
        """`Prefix` of the same length."""
        return Prefix(self.length)

    def visible_pairs(self, n: int) -> int:
        """As many as the transpose has."""
        return Prefix(self.length).visible_pairs(n)

    def triangular_rows(self, n: int) -> range:
        """Those from `length` on."""
        return Prefix(self.length).triangular_rows(n)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position."""
        return range(n - 1)

    def leading(self, size: int) -> Mask:
        """Refused: the first rows see every later key."""
        raise _open_block(self, size)

    def without_first_key(self) -> Mask:
        """One position of the prefix less."""
        return PrefixTransposed(max(self.length - 1, 0))


@dataclass(frozen=True, slots=True)
class Window(Mask):
    """Sliding window: i - behind <= j <= i + ahead. Mistral's `sliding_window=w` is `Window(w - 1)`.

    Without `ahead` A is lower-triangular with a positive diagonal, and the theorems of `Causal` hold; without `behind` those
    of `Backward`. A window ahead and behind has no theorem.
    """

    behind: int
    """How many positions before its own a row sees."""
    ahead: int = 0
    """How many after it."""

    def __post_init__(self) -> None:
        for name, length in (("behind", self.behind), ("ahead", self.ahead)):
            if isinstance(length, bool) or not isinstance(length, int) or length < 0:
                raise ConfigurationError(
                    f"{name} must be an integer of at least 0, got {length!r}. A row sees itself; count the others."
                )

    def allowed(self, n: int) -> Tensor:
        """True where i - behind <= j <= i + ahead."""
        positions = torch.arange(n)
        offset = positions[None, :] - positions[:, None]
        return (offset >= -self.behind) & (offset <= self.ahead)

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One call on a band; that of `Causal`, `Backward` or `Bidirectional` where the window reaches the ends."""
        behind, ahead = min(self.behind, n - 1), min(self.ahead, n - 1)
        if behind == n - 1 and ahead in (0, n - 1):
            return Causal().fused_plan(n) if ahead < behind else Bidirectional().fused_plan(n)
        if behind == 0 and ahead == n - 1:
            return Backward().fused_plan(n)
        return (FusedCall((0, n), (0, n), "band", behind, ahead),)

    def transposed(self) -> Mask:
        """Behind and ahead exchanged."""
        return Window(self.ahead, self.behind)

    def visible_pairs(self, n: int) -> int:
        """The diagonals of the band."""
        sides = (min(self.behind, n - 1), min(self.ahead, n - 1))
        return n + sum(side * n - side * (side + 1) // 2 for side in sides)

    def triangular_rows(self, n: int) -> range:
        """All of them where the window has one side, else none."""
        return range(n) if self.behind == 0 or self.ahead == 0 else range(0)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position, where the window has any ahead."""
        return range(n - 1) if self.ahead else range(0)

    def leading(self, size: int) -> Mask:
        """The window again; refused where rows see ahead."""
        if self.ahead:
            raise _open_block(self, size)
        return self


@dataclass(frozen=True, slots=True)
class Cross(Mask):
    """All queries of one sequence see all keys of another: A is queries x keys, rectangular."""

    queries: int
    """Rows."""
    keys: int
    """Columns."""

    def __post_init__(self) -> None:
        if self.queries < 1 or self.keys < 1:
            raise ConfigurationError(
                f"queries and keys must be at least 1, got {self.queries} and {self.keys}. Count the positions of both."
            )

    def _checked(self, n: int) -> int:
        if n != self.queries:
            raise ConfigurationError(
                f"n must be {self.queries} (queries of {self}), got {n}. Make the mask for n rows."
            )
        return n

    def columns(self, n: int) -> int:
        """The other sequence's length."""
        self._checked(n)
        return self.keys

    def allowed(self, n: int) -> Tensor:
        """True everywhere."""
        return torch.ones(self._checked(n), self.keys, dtype=torch.bool)

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One call without a mask."""
        return (FusedCall((0, self._checked(n)), (0, self.keys), "all"),)

    def transposed(self) -> Mask:
        """Queries and keys exchanged."""
        return Cross(self.keys, self.queries)

    def visible_pairs(self, n: int) -> int:
        """All."""
        return self._checked(n) * self.keys

    def triangular_rows(self, n: int) -> range:
        """None."""
        return range(0)

    def foreseeing_rows(self, n: int) -> range:
        """None: the keys are not what the queries predict."""
        return range(0)

    def leading(self, size: int) -> Mask:
        """Refused: no block of it is attention by itself."""
        raise _open_block(self, size)

    def without_first_key(self) -> Mask:
        """Refused: the first query does not belong to the first key."""
        raise ConfigurationError(f"mask must be one of self-attention, got {self}. Measure region `full`.")


@dataclass(frozen=True, slots=True)
class Padded(Mask):
    """Positions start .. start + length attend under another mask; padding around them sees nothing and is seen by none."""

    mask: Mask
    """Of the positions that are not padding."""
    length: int
    """How many they are."""
    start: int = 0
    """The first of them: above 0 where padding stands on the left."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.start < 0 or isinstance(self.mask, Cross | Padded):
            raise ConfigurationError(
                f"length must be at least 1, start at least 0 and mask one of self-attention, got {self.length}, "
                f"{self.start} and {self.mask}. Leave out sequences that are all padding."
            )

    def visible_positions(self, n: int) -> range:
        """Those between the padding."""
        if self.start + self.length > n:
            raise ConfigurationError(
                f"start + length must be between 1 and {n} (positions), got {self.start} + {self.length}. Count the "
                "positions that are not padding."
            )
        return range(self.start, self.start + self.length)

    def allowed(self, n: int) -> Tensor:
        """The other mask in the block of its positions, False elsewhere."""
        allowed = torch.zeros(n, n, dtype=torch.bool)
        inside = self.visible_positions(n)
        allowed[inside.start : inside.stop, inside.start : inside.stop] = self.mask.allowed(self.length)
        return allowed

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The other mask's, for the positions that are not padding alone."""
        return tuple(_moved(call, self.start) for call in self.mask.fused_plan(len(self.visible_positions(n))))

    def transposed(self) -> Mask:
        """The other mask's transpose, padded alike."""
        return Padded(self.mask.transposed(), self.length, self.start)

    def visible_pairs(self, n: int) -> int:
        """Those between the padding."""
        return self.mask.visible_pairs(len(self.visible_positions(n)))

    def triangular_rows(self, n: int) -> range:
        """None: empty rows make the determinant 0."""
        return range(0)

    def foreseeing_rows(self, n: int) -> range:
        """The other mask's, where they stand."""
        rows = self.mask.foreseeing_rows(len(self.visible_positions(n)))
        return range(rows.start + self.start, rows.stop + self.start)

    def leading(self, size: int) -> Mask:
        """The other mask's, without padding where the block has none.

        Raises:
            ConfigurationError: as the other mask's, and where the block is all padding.
        """
        length = min(size - self.start, self.length)
        if length < 1:
            raise ConfigurationError(
                f"size must be at least {self.start + 1} (padding before the first position), got {size}. Take a larger "
                "block."
            )
        inner = self.mask if length == self.length else self.mask.leading(length)
        return inner if length == size else Padded(inner, length, self.start)

    def without_first_key(self) -> Mask:
        """One position less between the padding; the first that was seen is padding where some stands on the left."""
        if self.length == 1:
            raise ConfigurationError("length must be at least 2, got 1. There is no other key.")
        return Padded(self.mask.without_first_key(), self.length - 1, self.start)


def _open_block(mask: Mask, size: int) -> ConfigurationError:
    return ConfigurationError(
        f"mask must close its first {size} positions off from later ones, got {mask}. Measure region `full`."
    )


def _moved(call: FusedCall, start: int) -> FusedCall:
    """A call as many positions later."""
    rows, columns = ((first + start, last + start) for first, last in (call.rows, call.columns))
    return replace(call, rows=rows, columns=columns)


class MaskKind(StrEnum):
    """What a configuration holds; `kind.at(prefix_length)` makes the value for one sequence."""

    CAUSAL = "causal"
    PREFIX = "prefix"
    BIDIRECTIONAL = "bidirectional"
    BACKWARD = "backward"

    def at(self, prefix_length: int) -> Mask:
        """The mask of a sequence with this prefix length; only `PREFIX` depends on it."""
        if self is MaskKind.PREFIX:
            return Prefix(prefix_length)
        return {MaskKind.CAUSAL: Causal(), MaskKind.BIDIRECTIONAL: Bidirectional(), MaskKind.BACKWARD: Backward()}[self]


def batch_groups(masks: Sequence[Mask], n: int) -> tuple[Group, ...]:
    """Runs of equal consecutive masks with their fused plans, for `rankkit_kernels.attention.attend_groups`.

    Args:
        masks: one per sequence of the batch; sort the batch so that equal ones stand together.
        n: sequence length.
    """
    return tuple(Group(len(list(run)), mask.fused_plan(n)) for mask, run in groupby(masks))
