"""The declaration of a study of random logits: families of matrices, what to measure, and what is expected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.spectra import MEASURES
from rankkit.studies.experiments.findings import Tolerance, half_last_digit

__all__ = [
    "LOGITS",
    "SECOND",
    "ClaimConfig",
    "CrossingsConfig",
    "ExpectedRow",
    "Family",
    "MatricesConfig",
    "RandomLogitsConfig",
    "ValuesConfig",
]

Family: TypeAlias = tuple[str, int, int]
"""Logits, n and head_dim: what tells one family of matrices from another."""

LOGITS: Final = {
    "dot-product": "std * Q K^T / sqrt(head_dim), Q and K independent standard normal: logits of rank head_dim",
    "independent": "every logit normal by itself, of that std",
    "elu": "A_ij proportional to f(q_i) . f(k_j), f(x) = elu(x) + 1, entries of Q and K of that std: linear attention",
}
"""Where logits come from."""

SECOND: Final = "second_singular_value"
"""A number of this study beside the registered measures: sigma_2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatricesConfig:
    """A family of matrices: every mask with every standard deviation."""

    logits: Literal["dot-product", "independent", "elu"] = "dot-product"
    """A key of `LOGITS`."""
    n: int = 0
    """Rows and columns; must be given."""
    head_dim: int = 64
    """d; independent logits have none."""
    prefix_length: int | None = None
    """Of the mask `prefix`; half of n by default."""
    masks: tuple[str, ...] = ("causal", "bidirectional")
    """Kinds of mask."""
    stds: tuple[float, ...] = (1.0,)
    """Standard deviations, ascending; 0 is uniform attention."""

    def __post_init__(self) -> None:
        if self.logits not in LOGITS:
            raise ConfigurationError(
                f"logits must be one of {', '.join(LOGITS)}, got {self.logits!r}. Choose one of them."
            )
        if self.n < 2 or self.head_dim < 1:
            raise ConfigurationError(
                f"n must be at least 2 and head_dim at least 1, got {self.n} and {self.head_dim}. Give every family both."
            )
        if not 0 <= self.prefix <= self.n:
            raise ConfigurationError(
                f"prefix_length must be between 0 and {self.n}, got {self.prefix_length}. Shorten the prefix."
            )
        _check_names("masks", self.masks, [str(kind) for kind in MaskKind if not kind.is_mixed])
        if not self.stds or min(self.stds) < 0 or list(self.stds) != sorted(set(self.stds)):
            raise ConfigurationError(
                f"stds must ascend from 0 or more, got {list(self.stds)}. Sort them and name each once."
            )

    @property
    def prefix(self) -> int:
        """Length of the prefix under the mask `prefix`."""
        return self.n // 2 if self.prefix_length is None else self.prefix_length

    @property
    def family(self) -> Family:
        """What tells it from the others."""
        return self.logits, self.n, self.head_dim

    @property
    def label(self) -> str:
        """In words."""
        size = f"n = {self.n}" if self.logits == "independent" else f"n = {self.n}, d = {self.head_dim}"
        return size if self.logits == "dot-product" else f"{self.logits}, {size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedRow:
    """Expectations of one family, or of one kind of matrix in it."""

    logits: Literal["dot-product", "independent", "elu"] = "dot-product"
    """Of the family."""
    n: int = 0
    """Of the family."""
    head_dim: int = 64
    """Of the family."""
    mask: str = ""
    """Which mask; left out for a crossing, which is between two."""
    std: float | None = None
    """Which standard deviation; left out for a crossing, which looks for it."""
    expected: tuple[str, ...] = ()
    """One number for each of the measures, as its source printed it."""

    @property
    def family(self) -> Family:
        """Whose expectations they are."""
        return self.logits, self.n, self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimConfig(ABC):
    """Numbers that somebody stated, and what counts as reproducing them."""

    measures: tuple[str, ...] = ()
    """Which measures."""
    seeds: tuple[int, ...] = ()
    """Over which the number is taken; the same over all seeds is shown beside it."""
    tolerance: Tolerance = field(default_factory=lambda: Tolerance(absolute=0.0))
    """How far off still counts as reproduced; not at all unless declared."""
    rows: tuple[ExpectedRow, ...] = ()
    """The numbers."""

    @abstractmethod
    def masks_of(self, row: ExpectedRow) -> tuple[str, ...]:
        """The masks that a row speaks of."""

    @abstractmethod
    def stds_of(self, row: ExpectedRow) -> tuple[float | None, ...]:
        """The standard deviations that a row speaks of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesConfig(ClaimConfig):
    """Expected means of measures."""

    def masks_of(self, row: ExpectedRow) -> tuple[str, ...]:
        """Its own."""
        return (row.mask,)

    def stds_of(self, row: ExpectedRow) -> tuple[float | None, ...]:
        """Its own."""
        return (row.std,)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossingsConfig(ClaimConfig):
    """Expected standard deviations at which one mask's mean falls below the other's.

    They are located in every family that has both masks; rows are needed for expectations alone.
    """

    first: str = "causal"
    """The mask that is higher below the crossing."""
    second: str = "bidirectional"
    """The mask that is higher above it."""

    def masks_of(self, row: ExpectedRow) -> tuple[str, ...]:
        """Both."""
        return self.first, self.second

    def stds_of(self, row: ExpectedRow) -> tuple[float | None, ...]:
        """None: that is what it looks for."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLogitsConfig:
    """The declaration of a study of random logits."""

    seeds: tuple[int, ...] = ()
    """Draws of every matrix."""
    generator: Literal["philox", "numpy"] = "philox"
    """`philox`: a function of seed and family alone. `numpy`: `default_rng(seed).standard_normal`, Q first, whose stream
    NumPy may change; it is here because published numbers of this kind were made with it."""
    measures: tuple[str, ...] = ()
    """Names from `rankkit.spectra.MEASURES`, and `second_singular_value`."""
    matrices: tuple[MatricesConfig, ...] = ()
    """Families."""
    crossings: tuple[CrossingsConfig, ...] = ()
    """Pairs of masks whose crossings are located."""
    values: tuple[ValuesConfig, ...] = ()
    """Means that are held against expectations."""

    def __post_init__(self) -> None:
        if self.generator not in ("philox", "numpy"):
            raise ConfigurationError(f"generator must be philox or numpy, got {self.generator!r}. Choose one of them.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigurationError(
                f"seeds must be different numbers of at least 0, got {list(self.seeds)}. Name each seed once."
            )
        families = [matrices.family for matrices in self.matrices]
        if not families or len(set(families)) < len(families):
            raise ConfigurationError(
                f"matrices must hold at least one family and none twice, got {families}. Join those that are the same."
            )
        _check_names("measures", self.measures, [*MEASURES, SECOND])
        for claim in (*self.crossings, *self.values):
            self._check_claim(claim)

    def _check_claim(self, claim: ClaimConfig) -> None:
        _check_names("measures of an expectation", claim.measures, self.measures)
        if not claim.seeds or len(set(claim.seeds)) < len(claim.seeds) or not set(claim.seeds) <= set(self.seeds):
            raise ConfigurationError(
                f"seeds of an expectation must be among {list(self.seeds)}, each once, got {list(claim.seeds)}. Name some."
            )
        if claim.tolerance.standard_errors is not None and len(claim.seeds) < 2:
            raise ConfigurationError(
                f"tolerance in standard errors must come with at least 2 seeds, got {list(claim.seeds)}. Name more seeds."
            )
        declared = {matrices.family: matrices for matrices in self.matrices}
        for row in claim.rows:
            family = declared.get(row.family)
            known = family is not None and {*claim.masks_of(row)} <= {*family.masks}
            if family is None or not known or not {*claim.stds_of(row)} <= {*family.stds}:
                raise ConfigurationError(
                    f"expectation must be of matrices that are declared, got {row}. Add them, or correct the row."
                )
            if len(row.expected) != len(claim.measures):
                raise ConfigurationError(
                    f"expected must hold {len(claim.measures)} numbers (one per measure), got {list(row.expected)}. "
                    "Count them."
                )
            for printed in row.expected:
                half_last_digit(printed)

    @property
    def total(self) -> int:
        """How many matrices."""
        return len(self.seeds) * sum(len(family.masks) * len(family.stds) for family in self.matrices)


def _check_names(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise ConfigurationError(
            f"{name} must be different ones of {', '.join(known)}, got {list(given)}. Name each once."
        )
