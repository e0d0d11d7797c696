"""The functional rank of one arm: what it costs the model to cut its attention matrices to a few singular triplets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.store import schema
from rankkit.store.consistency import contradictions
from rankkit.store.door.hdf5 import h5py
from rankkit.store.groups.datasets import create_axes, create_dataset, set_attributes
from rankkit.store.groups.writing import require_group
from rankkit.store.layout import Attribute, check_attributes, check_shape
from rankkit.store.ranges import ROUNDING
from rankkit.store.variables import Variable

__all__ = ["CutLosses", "functional_problems"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutLosses:
    """Losses of one arm with its attention matrices cut to their leading singular triplets, and without.

    Losses are means over the targets of a sequence, in nats; nan where one was not computed.

    Raises:
        ValueError: a label is repeated or unknown, a shape does not fit its labels, or numbers contradict one another.
        TypeError: an attribute is neither text nor a number.
    """

    seeds: Sequence[int]
    """Training seeds."""
    kept_ranks: Sequence[int]
    """Numbers of leading triplets kept, at least 1."""
    cuts: Sequence[str]
    """What happens to a cut matrix, from schema.CUTS."""
    loss_uncut: NDArray[np.floating]
    """"seed sequence", loss of the model as it is."""
    layers: Sequence[int] = ()
    """Numbers of the layers, where an array has that axis."""
    heads: Sequence[int] = ()
    """Numbers of the heads, where an array has that axis."""
    extra_loss_all: NDArray[np.floating] | None = None
    """"seed sequence kept_rank cut", loss with all heads cut, minus `loss_uncut`."""
    extra_loss_layer: NDArray[np.floating] | None = None
    """"seed layer kept_rank cut", the same with the heads of one layer cut, mean over sequences."""
    extra_loss_head: NDArray[np.floating] | None = None
    """"seed layer head kept_rank cut", the same with one head cut, mean over sequences."""
    removed_share: NDArray[np.floating] | None = None
    """"seed layer head kept_rank", share of the cut matrix's energy that masking it again removes, mean over
    sequences."""
    cut_error: NDArray[np.floating] | None = None
    """"seed layer head kept_rank cut", relative distance of the cut matrix from the uncut one, mean over sequences."""
    document: NDArray[np.integer] | None = None
    """"sequence", number of the document in which each starts."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """schema.FUNCTIONAL_ATTRIBUTES and anything else worth keeping."""

    def __post_init__(self) -> None:
        """Check everything that a later reader would trip over."""
        check_attributes(self.attributes, schema.FUNCTIONAL_ATTRIBUTES, ())
        if self.document is not None and np.asarray(self.document).dtype.kind not in "iu":
            raise ValueError(f"document must hold whole numbers, got {np.asarray(self.document).dtype}. Convert it.")
        labels = self.labels
        for variable in self.variables:
            check_shape(variable.name, self.arrays[variable.name], tuple(len(labels[a]) for a in variable.dimensions))
        for problem in functional_problems({a: np.asarray(values) for a, values in labels.items()} | self.arrays):
            raise ValueError(f"{problem}. Check what was measured.")

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every variable that was given, by name, in its stored type."""
        given = {variable: getattr(self, variable.name) for variable in schema.FUNCTIONAL_VARIABLES}
        return {v.name: np.asarray(values, dtype=v.dtype) for v, values in given.items() if values is not None}

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Those of schema.FUNCTIONAL_VARIABLES that were given."""
        return tuple(variable for variable in schema.FUNCTIONAL_VARIABLES if variable.name in self.arrays)

    @property
    def labels(self) -> dict[str, Sequence[object]]:
        """The labels of every axis in use, by name, in storage order."""
        every: dict[str, Sequence[object]] = {
            "seed": self.seeds,
            "sequence": range(np.shape(self.loss_uncut)[-1] if np.ndim(self.loss_uncut) else 0),
            "layer": self.layers,
            "head": self.heads,
            "kept_rank": self.kept_ranks,
            "cut": self.cuts,
        }
        used = {axis for variable in self.variables for axis in variable.dimensions}
        return {axis: values for axis, values in every.items() if axis in used}

    def write(self, file: h5py.File, arm: str) -> None:
        """Create the group of an arm and everything in it."""
        group = require_group(file, f"{schema.FUNCTIONAL}/{arm}")
        set_attributes(group, self.attributes)
        create_axes(group, self.labels)
        for variable in self.variables:
            create_dataset(group, variable, self.labels, self.arrays[variable.name])


def functional_problems(arrays: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """What is wrong with the numbers of one arm, one line each.

    Args:
        arrays: all its variables by name, axes included.
    """
    kinds = "iUO"  # labels and whole numbers
    static = {name: values for name, values in arrays.items() if values.dtype.kind in kinds}
    yield from contradictions(static)
    numbers = {name: values for name, values in arrays.items() if values.dtype.kind not in kinds}
    if not any(name.startswith("extra_loss_") for name in numbers):
        yield "extra_loss must be known for all heads, for layers or for heads, got none"
    with np.errstate(invalid="ignore"):
        for name, broken, claim in _claims(numbers):
            if broken.any():
                yield f"{name} must {claim}, got {int(broken.sum())} that are not"


def _claims(numbers: Mapping[str, NDArray[np.float64]]) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
    """What must hold, with where it does not; nan compares false, which is what is wanted."""
    for name, values in numbers.items():
        yield name, np.isinf(values), "be finite, or nan where it was not computed"
    uncut = numbers["loss_uncut"]
    for name in (name for name in ("loss_uncut", "removed_share", "cut_error") if name in numbers):
        yield name, numbers[name] < 0, "be at least 0"
    if "removed_share" in numbers:
        yield "removed_share", numbers["removed_share"] > 1 + ROUNDING, "be at most 1"
    if "extra_loss_all" in numbers:
        loss = numbers["extra_loss_all"] + uncut[..., np.newaxis, np.newaxis]
        yield "extra_loss_all", loss < -ROUNDING, "leave a loss of at least 0"
