"""What the caller says about an arm before writing it, and one slab of results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.axes import AXES
from rankkit.store.consistency import contradictions
from rankkit.store.schema import (
    COMPARISON_AXES,
    GROUP_ATTRIBUTES,
    GROUP_VARIABLES,
    TOKEN_ATTRIBUTES,
    MeasureDescription,
)

__all__ = ["Attribute", "GroupLayout", "Slab", "check_attributes", "check_text"]

Attribute = str | int | float
"""What an attribute may be; booleans have no type in netCDF-4, so write 0 or 1."""

_MEASURE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESERVED = {variable.name for variable in GROUP_VARIABLES} | {*AXES, *COMPARISON_AXES}


def check_attributes(attributes: Mapping[str, object], required: Sequence[str], reserved: Sequence[str]) -> None:
    """Check that attributes are complete, new and of a type that every reader knows.

    Raises:
        ValueError: a required one is missing, a reserved one is given, or a text cannot be stored.
        TypeError: a value is neither text nor a number.
    """
    missing = [name for name in required if name not in attributes]
    if missing:
        raise ValueError(f"attributes must hold {', '.join(required)}, got none for {', '.join(missing)}. Add them.")
    taken = [name for name in reserved if name in attributes]
    if taken:
        raise ValueError(f"attributes must not hold {', '.join(taken)}, which the writer sets itself. Leave them out.")
    for name, value in attributes.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise TypeError(f"attribute {name} must be text or a number, got {value!r}. Write a flag as 0 or 1.")
        if isinstance(value, str):
            check_text(f"attribute {name}", value)


def check_text(name: str, text: str) -> None:
    """Check that a text can be stored as UTF-8.

    Raises:
        ValueError: it holds NUL, or half a character (bytes of a command line that are no UTF-8).
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} must be UTF-8 text without NUL, got {text[:40]!r}. Remove what is no text.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupLayout:
    """The axes of one arm's group and everything in it that does not depend on a matrix.

    Raises:
        ValueError: a label is repeated or unknown, a shape does not fit the axes, or a matrix is larger than the
            sequence.
        TypeError: an attribute is neither text nor a number.
    """

    mask: str
    """Name of the arm's own mask."""
    objective: str
    """What its loss covered."""
    kind: str
    """Kind of attention: self, cross, ..."""
    seeds: Sequence[int]
    """Training seeds."""
    steps: Sequence[int]
    """Training steps of the checkpoints."""
    regions: Sequence[str]
    """Parts of the matrices that this arm has; one it lacks is left out."""
    applied_masks: Sequence[str]
    """`own`, or `own` and `swapped`."""
    layers: Sequence[int]
    """Numbers of the layers."""
    heads: Sequence[int]
    """Numbers of the heads."""
    tokens: NDArray[np.integer]
    """"sequence key", token ids."""
    prefix_length: NDArray[np.integer]
    """"sequence", keys that every query sees."""
    valid_row: NDArray[np.integer]
    """"sequence query", 1 where the row counts, 0 for padding."""
    rows: NDArray[np.integer]
    """"region sequence", rows of the matrix measured."""
    columns: NDArray[np.integer]
    """"region sequence", columns of the matrix measured."""
    untrained: NDArray[np.integer]
    """"region layer", 1 where no loss reaches the block."""
    checkpoint_sha256: Sequence[Sequence[str]]
    """[seed][step], of the checkpoint measured."""
    measures: Mapping[str, MeasureDescription]
    """Measures by name."""
    attributes: Mapping[str, Attribute]
    """Token policy (schema.TOKEN_ATTRIBUTES) and anything else worth keeping."""

    def __post_init__(self) -> None:
        """Check everything that a later reader would trip over."""
        check_attributes(self.attributes, TOKEN_ATTRIBUTES, GROUP_ATTRIBUTES)
        for name in self.measures:
            if not _MEASURE_NAME.fullmatch(name) or name in _RESERVED:
                raise ValueError(
                    f"measure must have a name of lower-case letters, digits and underscores that is not taken, "
                    f"got {name!r}. Rename it."
                )
        self._check_shapes()
        labels = {axis: np.asarray(values) for axis, values in self.labels.items()}
        for problem in contradictions({**labels, **self.arrays}):
            raise ValueError(f"{problem}. Correct the layout.")

    def _check_shapes(self) -> None:
        sizes = {name: len(labels) for name, labels in self.labels.items()}
        shapes = {v.name: tuple(sizes[axis] for axis in v.dimensions) for v in GROUP_VARIABLES if v.name in self.arrays}
        for name, expected in shapes.items():
            found = self.arrays[name].shape
            if found != expected or 0 in found:
                raise ValueError(f"{name} must have shape {expected}, got {found}. Give one entry per label.")
            if self.arrays[name].dtype.kind not in "iubO":
                raise ValueError(f"{name} must hold whole numbers, got {self.arrays[name].dtype}. Convert it.")

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every variable that does not depend on a matrix, by name."""
        names = ("tokens", "prefix_length", "valid_row", "rows", "columns", "untrained")
        arrays: dict[str, NDArray[np.generic]] = {name: np.asarray(getattr(self, name)) for name in names}
        arrays["checkpoint_sha256"] = np.asarray(self.checkpoint_sha256, dtype=object)
        return arrays

    @property
    def rank_bound(self) -> NDArray[np.int64]:
        """min(rows, columns), "region sequence": how many singular values a matrix has."""
        bound: NDArray[np.int64] = np.minimum(self.rows, self.columns).astype(np.int64)
        return bound

    @property
    def labels(self) -> dict[str, Sequence[int] | Sequence[str]]:
        """The labels of every axis, by name, in storage order."""
        return {
            "seed": self.seeds,
            "step": self.steps,
            "region": self.regions,
            "applied_mask": self.applied_masks,
            "sequence": range(self.tokens.shape[0]),
            "layer": self.layers,
            "head": self.heads,
            "component": range(max(1, int(self.rank_bound.max()))),
            "query": range(self.valid_row.shape[1]),
            "key": range(self.tokens.shape[1]),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slab:
    """The results for one block of attention matrices; axes that the index fixes to one number are absent.

    Everything but the singular values may also be one number for the whole slab.
    """

    singular_values: NDArray[np.floating]
    """"... component", descending, nan past min(rows, columns); may be narrower than the group's component axis."""
    floor_arithmetic: ArrayLike
    """"...", noise floor of the method."""
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
