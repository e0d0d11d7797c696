"""What must hold between the numbers of a file, whatever made them.

Pure functions of arrays: the writer asks them about every layout and slab before it is stored, the verification about
every stored one, so a file that was written is a file that verifies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import REGIONS, SPECTRUM_AXES
from rankkit.store.schema import (
    APPLIED_MASKS,
    AXIS_VARIABLES,
    BOUNDS,
    MEASURE_ORDER,
    METHODS,
    STATUSES,
    measure_range,
)

__all__ = ["Cells", "Recompute", "cell_name", "contradictions", "violations"]

Recompute = Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]]
"""Measures that are functions of the singular values alone: "... component" to "...", by name."""

_ROUNDING = 1e-9  # relative; sums of at most 1e5 float64 values differ by less, whatever the order of summation
_EXACT = [STATUSES.index("ok"), STATUSES.index("degenerate")]
_FAILED = STATUSES.index("failed")
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "region": REGIONS,
    "applied_mask": APPLIED_MASKS,
    "bound": BOUNDS,
    "valid_row": (0, 1),
    "untrained": (0, 1),
}
_AT_MOST = {"prefix_length": "key", "columns": "key", "rows": "query"}  # sizes, and the axis they are counted along

Violation = tuple[str, NDArray[np.bool_]]
"""A claim in words, and the matrices "..." that break it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """The numbers of a block of attention matrices; every array but the first is "..."."""

    singular_values: NDArray[np.float64]
    """"... component"."""
    rank: NDArray[np.int64]
    """min(rows, columns)."""
    columns: NDArray[np.int64]
    """Columns of the matrix."""
    floor_arithmetic: NDArray[np.float64]
    """Noise floor of the method."""
    floor_model: NDArray[np.float64]
    """Noise floor of the model's arithmetic."""
    resolved: NDArray[np.int32]
    """Number of singular values above floor_arithmetic."""
    resolved_model: NDArray[np.int32]
    """Number of singular values above floor_model."""
    method: NDArray[np.int8]
    """Index into schema.METHODS."""
    status: NDArray[np.int8]
    """Index into schema.STATUSES."""
    measures: Mapping[str, NDArray[np.float64]]
    """By name."""

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Where all singular values are known."""
        return np.isin(self.status, _EXACT)


def cell_name(labels: Mapping[str, Sequence[object] | NDArray[Any]], index: Sequence[int]) -> str:
    """One attention matrix in words, such as "seed 0, step 500, region full, ..., head 1"."""
    return ", ".join(f"{axis} {labels[axis][i]}" for axis, i in zip(SPECTRUM_AXES, index, strict=True))


def contradictions(variables: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """What is wrong with a group's axes and with the variables that do not depend on a matrix.

    Args:
        variables: by name, with the axes that the schema says; those that are absent are not checked.

    Yields:
        One line for each problem, such as "region must hold different labels, got one twice".
    """
    axes = [name for name in variables if name in AXIS_VARIABLES]
    for axis in axes:
        if not 0 < variables[axis].size == len(np.unique(variables[axis])):
            yield f"{axis} must hold at least one label and none twice, got {variables[axis].tolist()[:8]}"
    if any(variables[axis].size == 0 for axis in axes):
        return
    for name in (name for name in _ALLOWED if name in variables):
        unknown = variables[name][~np.isin(variables[name], _ALLOWED[name])]
        if unknown.size:
            yield f"{name} must be among {', '.join(map(str, _ALLOWED[name]))}, got {unknown.tolist()[0]!r}"
    for name in (name for name in _AT_MOST if name in variables):
        least, greatest, limit = variables[name].min(), variables[name].max(), variables[_AT_MOST[name]].size
        if least < 0 or greatest > limit:
            yield f"{name} must be between 0 and {limit} ({_AT_MOST[name]} positions), got {least} to {greatest}"
    if "component" in variables:
        longest = max(1, np.minimum(variables["rows"], variables["columns"]).max())
        if variables["component"].size != longest:
            yield f"component must have {longest} entries, as the largest matrix, got {variables['component'].size}"


def violations(cells: Cells, recompute: Recompute) -> Iterator[Violation]:
    """Every claim about attention spectra that these numbers break, with the matrices that break it.

    Args:
        cells: a block of matrices.
        recompute: measures to compute again from the stored singular values; those the block lacks are skipped.

    Yields:
        The claim, and "...", bool, true where it fails; only claims that fail somewhere.
    """
    for claims in (_flags(cells), _spectrum(cells), _floors(cells), _ranges(cells), _order(cells)):
        yield from ((claim, broken) for claim, broken in claims if broken.any())
    yield from ((claim, broken) for claim, broken in _recomputed(cells, recompute) if broken.any())


def _flags(cells: Cells) -> Iterator[Violation]:
    yield f"method must be a code from 0 to {len(METHODS) - 1}", ~np.isin(cells.method, range(len(METHODS)))
    yield f"status must be a code from 0 to {len(STATUSES) - 1}", ~np.isin(cells.status, range(len(STATUSES)))


def _anywhere(broken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any component of each matrix is broken."""
    return np.asarray(broken.any(axis=-1))


def _spectrum(cells: Cells) -> Iterator[Violation]:
    values = cells.singular_values
    known = ~np.isnan(values)
    count = np.count_nonzero(known, axis=-1)
    with np.errstate(invalid="ignore"):  # nan compares false, which is what is wanted
        yield "singular_values must be finite and not negative", _anywhere((values < 0) | np.isinf(values))
        yield "singular_values must not increase along component", _anywhere(values[..., 1:] > values[..., :-1])
    yield "singular_values must have no gap of nan", _anywhere(known[..., 1:] & ~known[..., :-1])
    yield "singular_values must be nan past min(rows, columns)", count > cells.rank
    yield "singular_values must be complete where status is ok or degenerate", cells.exact & (count < cells.rank)
    yield "singular_values must be nan where status is failed", (cells.status == _FAILED) & (count > 0)


def _floors(cells: Cells) -> Iterator[Violation]:
    pairs = (("floor_arithmetic", "resolved"), ("floor_model", "resolved_model"))
    for floor_name, count_name in pairs:
        floor, count = getattr(cells, floor_name), getattr(cells, count_name)
        with np.errstate(invalid="ignore"):
            above = (cells.singular_values > floor[..., np.newaxis]).sum(axis=-1)
            yield f"{floor_name} must not be negative or infinite", (floor < 0) | np.isinf(floor)
        yield f"{floor_name} must be known where status is ok or degenerate", cells.exact & np.isnan(floor)
        yield f"{count_name} must be the number of singular values above {floor_name}", above != count


def _ranges(cells: Cells) -> Iterator[Violation]:
    for name, values in cells.measures.items():
        limits = measure_range(name)
        if limits is None:
            continue
        upper = limits.greatest(cells.rank, cells.columns)
        with np.errstate(invalid="ignore"):
            outside = (values < limits.lower - _ROUNDING) | (values > upper + _ROUNDING * np.maximum(upper, 1))
        yield f"{name} must be between {limits.lower:g} and {limits.upper}", outside


def _order(cells: Cells) -> Iterator[Violation]:
    present = [name for name in MEASURE_ORDER if name in cells.measures]
    for smaller, larger in pairwise(present):
        with np.errstate(invalid="ignore"):
            broken = cells.measures[smaller] > cells.measures[larger] * (1 + _ROUNDING)
        yield f"{smaller} must be at most {larger}", broken


def _recomputed(cells: Cells, recompute: Recompute) -> Iterator[Violation]:
    whole = cells.exact & (np.isfinite(cells.singular_values).sum(axis=-1) == cells.rank)
    for name in sorted(set(recompute) & set(cells.measures)):
        stored, broken = cells.measures[name], np.zeros(cells.rank.shape, dtype=np.bool_)
        for rank in np.unique(cells.rank[cells.rank > 0]):
            chosen = whole & (cells.rank == rank)
            if not chosen.any():
                continue
            again = recompute[name](np.ascontiguousarray(cells.singular_values[chosen][:, :rank]))
            broken[chosen] = ~np.isclose(stored[chosen], again, rtol=_ROUNDING, atol=0, equal_nan=True)
        yield f"{name} must be what its singular values give", broken
