"""One slab of results: the numbers of a block of attention matrices or of layer outputs, or what they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["KeptSlab", "LayerSlab", "Slab"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slab:
    """The results for one block of attention matrices; axes that the index fixes to one number are absent.

    Everything but the singular values may also be one number for the whole slab.
    """

    singular_values: NDArray[np.floating]
    """"... component", descending, nan past min(rows, columns), and past the leading ones where status is estimated;
    may be narrower than the group's component axis."""
    floor_arithmetic: ArrayLike
    """"...", noise floor of the method; of leading singular values, the largest certified residual."""
    floor_model: ArrayLike
    """"...", noise floor of the model's arithmetic."""
    resolved: ArrayLike
    """"...", number of singular values above floor_arithmetic."""
    resolved_model: ArrayLike
    """"...", number of singular values above floor_model."""
    method: ArrayLike
    """"...", index into schema.METHODS."""
    status: ArrayLike
    """"...", index into schema.STATUSES."""
    measures: Mapping[str, ArrayLike] = field(default_factory=dict)
    """"..." by name: exactly the group's measures; nan where one was not computed exactly."""
    brackets: Mapping[str, tuple[ArrayLike, ArrayLike]] = field(default_factory=dict)
    """Lower and upper end, each "...", by name: of measures that the group lists as estimated; one left out, and nan,
    is no estimate."""
    errors: Mapping[str, ArrayLike] = field(default_factory=dict)
    """"..." by name: of measures that the group lists with errors; one left out, and nan, is not known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerSlab:
    """The results for one block of layer outputs; axes that the index fixes to one number are absent.

    A layer that could not be computed is nan throughout.
    """

    singular_values: NDArray[np.floating]
    """"... output_component", descending."""
    floor_arithmetic: ArrayLike
    """"..." or one number, noise floor of the method."""
    measures: Mapping[str, ArrayLike] = field(default_factory=dict)
    """"..." by name, or one number: exactly the group's layer measures."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptSlab:
    """What a block of spectra came from; axes that the index fixes to one number are absent.

    Exactly what the group keeps; every array of a type that float32 holds without loss.
    """

    queries: NDArray[np.floating] | None = None
    """"... query feature", as the attention kernel got them, position encoding applied."""
    keys: NDArray[np.floating] | None = None
    """"... key feature", as the attention kernel got them, position encoding applied; one for each head of queries."""
    attention: NDArray[np.floating] | None = None
    """"... query key", the matrix under the arm's own mask."""
