"""What a rankkit HDF5 file holds: every group, variable, axis, flag and attribute, said once.

    /                 attributes ROOT_ATTRIBUTES and HOST_ATTRIBUTES; strings ROOT_STRINGS
    /gpt, /unilm ...  attributes GROUP_ATTRIBUTES and TOKEN_ATTRIBUTES; variables GROUP_VARIABLES and one per measure
    /comparison       COMPARISON_VARIABLES

The writer, the reader and the verification all read these tables; none of them knows a name of its own.
A change here is a change of the schema: raise SCHEMA_VERSION (the minor number where old readers still understand
the file) and say so in the CHANGELOG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES

__all__ = [
    "APPLIED_MASKS",
    "ATTRIBUTES_SUM",
    "AXIS_VARIABLES",
    "BOUNDS",
    "COMPARISON",
    "COMPARISON_AXES",
    "COMPARISON_VARIABLES",
    "CONVENTIONS",
    "GROUP_ATTRIBUTES",
    "GROUP_VARIABLES",
    "HOST_ATTRIBUTES",
    "MEASURE_ORDER",
    "METHODS",
    "ROOT_ATTRIBUTES",
    "ROOT_STRINGS",
    "SCHEMA_VERSION",
    "STATUSES",
    "TOKEN_ATTRIBUTES",
    "MeasureDescription",
    "Range",
    "Variable",
    "group_variables",
    "measure_range",
    "measure_variable",
]

SCHEMA_VERSION: Final = "1.0"
"""Major version: readers of another major refuse the file. Minor: older readers still understand it."""

CONVENTIONS: Final = "CF-1.11"

COMPARISON: Final = "comparison"
"""Name of the group that holds the differences between two arms."""

METHODS: Final = ("gram", "svd", "krylov", "quadrature")
"""How a spectrum was made; the stored code is the index."""

STATUSES: Final = ("ok", "estimated", "degenerate", "failed")
"""What a spectrum is worth; the stored code is the index.

`ok` exact; `estimated` a part or a bracket; `degenerate` exact, of a matrix without structure (zero, or one key);
`failed` no singular values.
"""

APPLIED_MASKS: Final = ("own", "swapped")
"""The mask put on the logits: the arm's own, or the other arm's (the mask-swap control)."""

BOUNDS: Final = ("mean", "lower", "upper")
"""A value and its 95% confidence interval."""

COMPARISON_AXES: Final = ("measure", "region", "layer", "bound")

ATTRIBUTES_SUM: Final = "attributes_sha256"
"""Root attribute: SHA-256 of all text attributes in the file, for they have no checksum in HDF5."""

ROOT_ATTRIBUTES: Final = (
    "Conventions",
    "rankkit_schema",
    "title",
    "rankkit_version",
    "created",
    ATTRIBUTES_SUM,
    "complete",
)
"""Root attributes that the writer sets; `complete` is 1 in every finished file."""

HOST_ATTRIBUTES: Final = ("torch_version", "cpu", "threads", "device", "kernel")
"""Root attributes that the caller must give: results differ in their last bits between these."""

GROUP_ATTRIBUTES: Final = ("mask", "objective", "kind")
"""Attributes of every arm's group: the mask's name, what the loss covers, and self, cross, ..."""

TOKEN_ATTRIBUTES: Final = ("bos", "packing", "truncation")
"""Attributes of every arm's group that state the token policy: sinks, and so every rank, depend on it."""

MEASURE_ORDER: Final = ("stable_rank", "participation_ratio", "effective_rank_energy", "effective_rank")
"""Measures in ascending order for every spectrum (Renyi order).

The last is at most the number of positive singular values; it may exceed `numerical_rank`, whose tolerance leaves out
small values that still carry mass.
"""

TypeName = Literal["float64", "int64", "int32", "int8", "string"]


@dataclass(frozen=True, slots=True)
class Variable:
    """One dataset: its axes, type and meaning."""

    name: str
    """Name inside its group."""
    dimensions: tuple[str, ...]
    """Names of its axes, in storage order; empty for a scalar."""
    dtype: TypeName
    """Stored little-endian; `string` is variable-length UTF-8."""
    long_name: str
    """What it is, for people."""
    units: str | None = "1"
    """"1" for a pure number; None for labels."""
    flags: tuple[str, ...] = ()
    """Meaning of the codes 0, 1, ... of a flag variable."""
    definition: str | None = None
    """Formula, for measures only."""
    source: str | None = None
    """Who defined it, for measures only."""

    @property
    def attributes(self) -> dict[str, str | NDArray[np.int8]]:
        """The attributes its dataset carries."""
        texts = {"long_name": self.long_name, "units": self.units, "definition": self.definition, "source": self.source}
        attributes: dict[str, str | NDArray[np.int8]] = {key: text for key, text in texts.items() if text is not None}
        if self.flags:
            attributes["flag_values"] = np.arange(len(self.flags), dtype=np.int8)
            attributes["flag_meanings"] = " ".join(self.flags)
        return attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureDescription:
    """What a measure is, written beside its values so that the file explains itself."""

    long_name: str
    """What it is, for people."""
    definition: str
    """Its formula in terms of the matrix or its singular values."""
    source: str
    """Who defined it, or the convention it follows."""
    units: str = "1"
    """Unit; "1" for a pure number, "nat" for an entropy."""


_PER_MATRIX = SPECTRUM_AXES
_PER_COMPONENT = (*SPECTRUM_AXES, "component")

ROOT_STRINGS: Final = (
    Variable("configuration", (), "string", "resolved configuration of the run", None),
    Variable("certificate", (), "string", "proof that the arms match", None),
    Variable("command", (), "string", "command line that made this file, the first one, without --resume", None),
)

GROUP_VARIABLES: Final = (
    Variable("tokens", ("sequence", "key"), "int32", "token ids"),
    Variable("prefix_length", ("sequence",), "int32", "keys that every query sees"),
    Variable("valid_row", ("sequence", "query"), "int8", "whether the row counts", "1", ("padding", "valid")),
    Variable("rows", ("region", "sequence"), "int32", "rows of the matrix measured"),
    Variable("columns", ("region", "sequence"), "int32", "columns of the matrix measured"),
    Variable(
        "untrained", ("region", "layer"), "int8", "whether no loss reaches this block", "1", ("trained", "untrained")
    ),
    Variable("checkpoint_sha256", ("seed", "step"), "string", "SHA-256 of the checkpoint measured", None),
    Variable("singular_values", _PER_COMPONENT, "float64", "singular values, descending; nan past min(rows, columns)"),
    Variable("floor_arithmetic", _PER_MATRIX, "float64", "noise floor of the method, in units of the singular values"),
    Variable("floor_model", _PER_MATRIX, "float64", "noise floor of the model's own arithmetic"),
    Variable("resolved", _PER_MATRIX, "int32", "number of singular values above floor_arithmetic"),
    Variable("resolved_model", _PER_MATRIX, "int32", "number of singular values above floor_model"),
    Variable("method", _PER_MATRIX, "int8", "how the singular values were made", "1", METHODS),
    Variable("status", _PER_MATRIX, "int8", "what the singular values are worth", "1", STATUSES),
)

COMPARISON_VARIABLES: Final = (
    Variable("gap", COMPARISON_AXES, "float64", "first arm minus second arm, each under its own mask"),
    Variable("mask_effect", COMPARISON_AXES, "float64", "part of the gap that the mask alone makes"),
    Variable("learned_effect", COMPARISON_AXES, "float64", "part of the gap that lies in the learned logits"),
    Variable("interaction", COMPARISON_AXES, "float64", "how far the split depends on the order of the two factors"),
)

AXIS_VARIABLES: Final[Mapping[str, Variable]] = {
    variable.name: variable
    for variable in (
        Variable("seed", ("seed",), "int64", "training seed"),
        Variable("step", ("step",), "int64", "training step of the checkpoint"),
        Variable("region", ("region",), "string", "part of the attention matrix", None),
        Variable("applied_mask", ("applied_mask",), "string", "mask put on the logits", None),
        Variable("sequence", ("sequence",), "int64", "number of the token sequence"),
        Variable("layer", ("layer",), "int64", "number of the layer, from 0"),
        Variable("head", ("head",), "int64", "number of the head, from 0"),
        Variable("component", ("component",), "int64", "number of the singular value, from 0, the largest first"),
        Variable("query", ("query",), "int64", "query position, from 0"),
        Variable("key", ("key",), "int64", "key position, from 0"),
        Variable("measure", ("measure",), "string", "name of the measure", None),
        Variable("bound", ("bound",), "string", "mean, or lower or upper end of its 95% interval", None),
    )
}
"""The coordinate variable of every axis; a dimension scale in each group that uses the axis."""


def measure_variable(name: str, description: MeasureDescription) -> Variable:
    """The variable that holds one measure: one float64 per attention matrix, nan where it was not computed exactly."""
    return Variable(
        name,
        SPECTRUM_AXES,
        "float64",
        description.long_name,
        description.units,
        definition=description.definition,
        source=description.source,
    )


def group_variables(measures: Mapping[str, MeasureDescription]) -> tuple[Variable, ...]:
    """Every variable of an arm's group, coordinates aside, in the order in which they are written."""
    return (*GROUP_VARIABLES, *(measure_variable(name, measures[name]) for name in sorted(measures)))


@dataclass(frozen=True, slots=True)
class Range:
    """The values a measure can take, given the matrix's rank bound r = min(rows, columns) and its columns m."""

    lower: float
    """Least value, included."""
    upper: float | Literal["r", "m", "log m"]
    """Greatest value, included; inf admits infinity itself."""

    def greatest(self, rank: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.float64]:
        """The upper end for each matrix.

        Args:
            rank: "...", min(rows, columns).
            columns: "...", number of columns.

        Returns:
            "...", float64.
        """
        match self.upper:
            case "r":
                return rank.astype(np.float64)
            case "m":
                return columns.astype(np.float64)
            case "log m":
                logarithm: NDArray[np.float64] = np.log(np.maximum(columns, 1).astype(np.float64))
                return logarithm
            case number:
                return np.full(rank.shape, number)


_COUNT = Range(0, "r")
_RANK = Range(1, "r")
_SHARE = Range(0, 1)
_SIZE = Range(0, np.inf)
_RANGES: Final[Mapping[str, Range]] = {
    "attention_entropy": Range(0, "log m"),
    "attention_entropy_relative": _SHARE,
    "diagonal_mass": _SHARE,
    "effective_rank": _RANK,
    "effective_rank_energy": _RANK,
    "frobenius_norm": _SIZE,
    "logit_std": _SIZE,
    "mass_at_quarter": _SHARE,
    "mean_ipr": _SHARE,
    "nuclear_norm": _SIZE,
    "numerical_rank": _COUNT,
    "off_diagonal_block_rank": _COUNT,
    "participation_ratio": _RANK,
    "previous_key_mass": _SHARE,
    "rank_one_residual": _SHARE,
    "sink_mass": _SHARE,
    "sink_position": Range(0, "m"),
    "spectral_norm": _SIZE,
    "spectral_ratio": Range(1, np.inf),
    "stable_rank": _RANK,
}
_FAMILIES: Final[Mapping[str, Range]] = {"energy_rank_": _RANK, "mass_rank_": _RANK}  # followed by a percentage


def measure_range(name: str) -> Range | None:
    """The range of a measure, or None for one that may take any value or is not known here."""
    for family, values in _FAMILIES.items():
        if name.startswith(family) and name.removeprefix(family).isdigit():
            return values
    return _RANGES.get(name)
