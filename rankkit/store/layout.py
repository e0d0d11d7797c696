"""What the caller says about an arm before writing it, and one slab of its results."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankkit.store.consistency import contradictions
from rankkit.store.contents import GroupContents
from rankkit.store.door.hdf5 import DEFAULT_LIMIT
from rankkit.store.names import is_measure_name
from rankkit.store.reasons import reasons_text
from rankkit.store.schema import (
    DOCUMENT,
    GROUP_ATTRIBUTES,
    GROUP_VARIABLES,
    KEPT_VARIABLES,
    LOGIT_SCALE,
    METHOD_RULE,
    OPTIONAL_GROUP_ATTRIBUTES,
    ROWS_SUM_TO_ONE,
    TOKEN_ATTRIBUTES,
    UNAVAILABLE,
)
from rankkit.store.variables import MeasureDescription, Variable, bracket_variables, error_variable

__all__ = ["Attribute", "GroupLayout", "check_attributes", "check_shape", "check_text"]

Attribute = str | int | float
"""What an attribute may be; booleans have no type in netCDF-4, so write 0 or 1."""

_RULE_LIMIT = 1000  # characters of a method rule: a few sentences


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


def check_shape(name: str, values: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    """Check that an array has one entry per label, and at least one.

    Raises:
        ValueError: it has not.
    """
    if values.shape != expected or 0 in expected:
        raise ValueError(f"{name} must have shape {expected}, got {values.shape}. Give one entry per label.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupLayout:
    """The axes of one arm's group and everything in it that does not depend on a matrix.

    Raises:
        ValueError: a label is repeated or unknown, a shape does not fit the axes, a matrix is larger than the
            sequence, or a measure's name is taken.
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
    estimated: Collection[str] = ()
    """Measures that are bracketed where they are not computed exactly."""
    errors: Collection[str] = ()
    """Measures whose exact values come with a bound of their error."""
    components: int | None = None
    """Singular values kept of each matrix, where no matrix has its whole spectrum; None for all of them."""
    layer_measures: Mapping[str, MeasureDescription] = field(default_factory=dict)
    """Measures of layers' outputs by name."""
    output_components: int | None = None
    """Singular values of a layer's output, min(positions, d_model); None where outputs are not measured."""
    document: NDArray[np.integer] | None = None
    """"sequence", number of the document in which each starts; None where unknown."""
    method_rule: str | None = None
    """How the method was chosen for each matrix."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Measures and theorems that were switched off, each with the reason."""
    rows_sum_to_one: bool = True
    """Whether the matrices are attention: rows of entries >= 0 that sum to 1, or less beside a learned sink logit."""
    sequences: Sequence[int] | None = None
    """Numbers of the sequences, rising; None for 0, 1, ... A part of a measurement gives those that it has."""
    kept: Collection[str] = ()
    """What is kept of each matrix, from schema.KEPT_VARIABLES; queries and keys come together."""
    features: int | None = None
    """Length of a query and of a key, where they are kept."""
    logit_scale: float | None = None
    """What the products of queries and keys are multiplied by to give logits, where they are kept."""

    def __post_init__(self) -> None:
        """Check everything that a later reader would trip over."""
        check_attributes(self.attributes, TOKEN_ATTRIBUTES, (*GROUP_ATTRIBUTES, *OPTIONAL_GROUP_ATTRIBUTES))
        self._check_group_attributes()
        self._check_names()
        self._check_kept()
        self._check_shapes()
        labels = {axis: np.asarray(values) for axis, values in self.labels.items()}
        for problem in contradictions({**labels, **self.arrays}):
            raise ValueError(f"{problem}. Correct the layout.")
        self._check_sizes()

    def _check_group_attributes(self) -> None:
        for name, value in self.group_attributes.items():
            if isinstance(value, str):
                check_text(name, value)
        if self.method_rule is not None and not 0 < len(self.method_rule) <= _RULE_LIMIT:
            raise ValueError(
                f"method_rule must have 1 to {_RULE_LIMIT} characters, got {len(self.method_rule)}. Say it shorter."
            )

    def _check_names(self) -> None:
        companions = {
            variable.name
            for name, description in self.measures.items()
            for variable in (*bracket_variables(name, description), error_variable(name, description))
        }
        for name in (*self.measures, *self.layer_measures):
            if name in companions or not is_measure_name(name):
                raise ValueError(
                    f"measure must have a name of lower-case letters, digits and underscores that is not taken, "
                    f"got {name!r}. Rename it."
                )
        for field_name, names in (("estimated", self.estimated), ("errors", self.errors)):
            unknown = sorted(set(names) - set(self.measures))
            if unknown:
                raise ValueError(
                    f"{field_name} must name measures of the group, got {unknown[0]!r}. Add it to measures."
                )
        if self.layer_measures and self.output_components is None:
            raise ValueError(
                "output_components must be given with layer_measures, got None. Pass min(positions, d_model)."
            )

    def _check_kept(self) -> None:
        known = [variable.name for variable in KEPT_VARIABLES]
        unknown = sorted(set(self.kept) - set(known))
        if unknown:
            raise ValueError(f"kept must be among {', '.join(known)}, got {unknown[0]!r}. Correct it.")
        factors = {"queries", "keys"} & set(self.kept)
        if len(factors) == 1:
            raise ValueError(f"kept must hold queries and keys together, got {factors.pop()} alone. Name both.")
        for name, value in (("features", self.features), ("logit_scale", self.logit_scale)):
            if (value is not None) != bool(factors):
                raise ValueError(
                    f"{name} must be given exactly where queries and keys are kept, got {value}. Give both, or neither."
                )
        if self.logit_scale is not None and not math.isfinite(self.logit_scale):
            raise ValueError(
                f"logit_scale must be a finite number, got {self.logit_scale}. Give the factor of the logits."
            )

    def _check_sizes(self) -> None:
        for variable in self.variables:
            size = self._bytes(variable)
            if size > DEFAULT_LIMIT:
                raise ValueError(
                    f"{variable.name} must take at most {DEFAULT_LIMIT} bytes, or readers refuse it, got {size}. "
                    "Measure fewer sequences, steps or layers at a time."
                )

    def _check_shapes(self) -> None:
        sizes = {name: len(labels) for name, labels in self.labels.items()}
        shapes = {v.name: tuple(sizes[axis] for axis in v.dimensions) for v in GROUP_VARIABLES if v.name in self.arrays}
        for name, expected in shapes.items():
            check_shape(name, self.arrays[name], expected)
            if self.arrays[name].dtype.kind not in "iubO":
                raise ValueError(f"{name} must hold whole numbers, got {self.arrays[name].dtype}. Convert it.")

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every variable that does not depend on a matrix, by name."""
        names = ["tokens", "prefix_length", "valid_row", "rows", "columns", "untrained"]
        names += [DOCUMENT.name] if self.document is not None else []
        arrays: dict[str, NDArray[np.generic]] = {name: np.asarray(getattr(self, name)) for name in names}
        arrays["checkpoint_sha256"] = np.asarray(self.checkpoint_sha256, dtype=object)
        return arrays

    @property
    def contents(self) -> GroupContents:
        """Which variables the group has."""
        return GroupContents(
            measures=self.measures,
            estimated=self.estimated,
            errors=self.errors,
            layer_measures=None if self.output_components is None else self.layer_measures,
        )

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables of the group, coordinates aside, in the order in which they are written."""
        given = {*self.arrays, *self.kept}
        return tuple(v for v in self.contents.variables if not v.optional or v.name in given)

    @property
    def kept_bytes(self) -> int:
        """Bytes that queries, keys and attention take before compression."""
        return sum(self._bytes(variable) for variable in KEPT_VARIABLES if variable.name in self.kept)

    def _bytes(self, variable: Variable) -> int:
        itemsize = 0 if variable.dtype == "string" else np.dtype(variable.dtype).itemsize
        labels = self.labels
        return math.prod(len(labels[axis]) for axis in variable.dimensions) * itemsize

    @property
    def group_attributes(self) -> dict[str, Attribute]:
        """All attributes of the group."""
        optional: dict[str, Attribute] = {} if self.method_rule is None else {METHOD_RULE: self.method_rule}
        if self.unavailable:
            optional[UNAVAILABLE] = reasons_text(self.unavailable)
        optional[ROWS_SUM_TO_ONE] = int(self.rows_sum_to_one)
        if self.logit_scale is not None:
            optional[LOGIT_SCALE] = float(self.logit_scale)
        own = {"mask": self.mask, "objective": self.objective, "kind": self.kind}
        return own | optional | dict(self.attributes)

    @property
    def labels(self) -> dict[str, Sequence[int] | Sequence[str]]:
        """The labels of every axis, by name, in storage order."""
        longest = max(1, int(np.minimum(self.rows, self.columns).max()))
        outputs = {} if self.output_components is None else {"output_component": range(self.output_components)}
        features = {} if self.features is None else {"feature": range(self.features)}
        return {
            "seed": self.seeds,
            "step": self.steps,
            "region": self.regions,
            "applied_mask": self.applied_masks,
            "sequence": range(self.tokens.shape[0]) if self.sequences is None else self.sequences,
            "layer": self.layers,
            "head": self.heads,
            "component": range(longest if self.components is None else self.components),
            **outputs,
            "query": range(self.valid_row.shape[1]),
            "key": range(self.tokens.shape[1]),
            **features,
        }
