"""What an experiment expected, held against what it found: one verdict for each number, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from rankkit.errors import ConfigurationError

__all__ = ["Finding", "Tolerance", "half_last_digit"]

_ROUNDING: Final = 1e-9  # relative: 0.55 - 0.52 is a hair above 0.03 in binary


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far from its expectation a number may lie; exactly one of the three."""

    absolute: float | None = None
    """So far, in the number's own units."""
    relative: float | None = None
    """So far, as a share of what is expected."""
    standard_errors: float | None = None
    """So many standard errors of what was found, over its seeds, and half a unit of the last digit that was printed."""

    def __post_init__(self) -> None:
        given = [value for value in (self.absolute, self.relative, self.standard_errors) if value is not None]
        if len(given) != 1 or given[0] < 0:
            raise ConfigurationError(
                f"tolerance must be one of absolute, relative and standard_errors, at least 0, got {self}. Name one."
            )

    def allowed(self, expected: str, standard_error: float) -> float:
        """In the number's own units; nan where the rule needs a standard error that one seed does not give."""
        if self.absolute is not None:
            return self.absolute
        if self.relative is not None:
            return self.relative * abs(float(expected))
        return float(self.standard_errors or 0.0) * standard_error + half_last_digit(expected)


def half_last_digit(printed: str, /) -> float:
    """Half a unit of the last digit of a number as it was printed: 0.005 for "1.09", 0.5 for "137".

    Raises:
        ConfigurationError: not a finite decimal number.
    """
    try:
        exponent = Decimal(printed).as_tuple().exponent
    except InvalidOperation:
        exponent = "F"
    if not isinstance(exponent, int):
        raise ConfigurationError(
            f"expected must hold numbers as they were printed, such as '1.09', got {printed!r}. Quote a finite number."
        )
    return float(Decimal(5).scaleb(exponent - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One expectation and what became of it."""

    where: str
    """What the number belongs to, in words."""
    what: str
    """Which number, in words."""
    expected: str
    """As printed by its source."""
    found: float
    """Over the seeds that the expectation names; nan where there is nothing to find."""
    standard_error: float
    """Of `found` over those seeds; nan for one seed."""
    seeds: int
    """How many they are."""
    allowed: float
    """Largest distance that counts as reproduced."""
    overall: float
    """The same number over all seeds of the experiment."""
    overall_error: float
    """Its standard error."""
    overall_seeds: int
    """How many they are."""

    @property
    def error(self) -> float:
        """Found minus expected."""
        return self.found - float(self.expected)

    @property
    def reproduced(self) -> bool:
        """Whether it lies within what is allowed; a nan on either side does not."""
        return abs(self.error) <= self.allowed * (1 + _ROUNDING) + math.ulp(abs(float(self.expected)))

    @property
    def verdict(self) -> str:
        """`reproduced` or `not reproduced`."""
        return "reproduced" if self.reproduced else "not reproduced"

    def sentence(self) -> str:
        """The verdict with its numbers, in one line."""
        found = (
            f"found {self.found:.4g} over {_seeds(self.seeds)} (off by {self.error:+.2g}, allowed {self.allowed:.2g})"
        )
        if math.isnan(self.found):
            found = "found none"
        if self.overall_seeds != self.seeds:
            found += f"; over {_seeds(self.overall_seeds)} {self.overall:.4g} ± {self.overall_error:.2g}"
        return f"{self.verdict}: {self.where}, {self.what}: expected {self.expected}, {found}"

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "where": self.where,
            "what": self.what,
            "expected": self.expected,
            "found": self.found,
            "standard_error": self.standard_error,
            "seeds": self.seeds,
            "allowed": self.allowed,
            "error": self.error,
            "overall": self.overall,
            "overall_standard_error": self.overall_error,
            "overall_seeds": self.overall_seeds,
            "reproduced": self.reproduced,
        }


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
