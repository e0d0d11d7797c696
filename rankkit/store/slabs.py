"""One slab of results: the numbers of a block of attention matrices or of layer outputs, or what they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

    @classmethod
    def stacked(cls, slabs: Sequence[Slab], axes: tuple[int, ...]) -> Slab:
        """Slabs of equal shape as one with more axes in front; the narrower spectra are padded with nan.

        A group takes one large slab in a fraction of the time that it takes several small ones.

        Args:
            slabs: as many as the new axes have places, the last axis fastest; with the same measures.
            axes: lengths of the new axes.
        """
        shape = slabs[0].singular_values.shape[:-1]
        spectra = np.full((len(slabs), *shape, max(slab.singular_values.shape[-1] for slab in slabs)), np.nan)
        for padded, slab in zip(spectra, slabs, strict=True):
            padded[..., : slab.singular_values.shape[-1]] = slab.singular_values

        def stack(arrays: Sequence[ArrayLike]) -> NDArray[Any]:
            whole = np.empty((len(arrays), *shape), dtype=np.asarray(arrays[0]).dtype)
            for place, array in zip(whole, arrays, strict=True):
                np.copyto(place, array, casting="same_kind")
            return whole.reshape(*axes, *shape)

        unknown = np.nan, np.nan
        estimated = dict.fromkeys(name for slab in slabs for name in slab.brackets)
        bounded = dict.fromkeys(name for slab in slabs for name in slab.errors)
        ends = {name: [slab.brackets.get(name, unknown) for slab in slabs] for name in estimated}
        return cls(
            singular_values=spectra.reshape(*axes, *spectra.shape[1:]),
            floor_arithmetic=stack([slab.floor_arithmetic for slab in slabs]),
            floor_model=stack([slab.floor_model for slab in slabs]),
            resolved=stack([slab.resolved for slab in slabs]),
            resolved_model=stack([slab.resolved_model for slab in slabs]),
            method=stack([slab.method for slab in slabs]),
            status=stack([slab.status for slab in slabs]),
            measures={name: stack([slab.measures[name] for slab in slabs]) for name in slabs[0].measures},
            brackets={
                name: (stack([lower for lower, _ in both]), stack([upper for _, upper in both]))
                for name, both in ends.items()
            },
            errors={name: stack([slab.errors.get(name, np.nan) for slab in slabs]) for name in bounded},
        )


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
