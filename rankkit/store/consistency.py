"""What must hold between the numbers of a file, whatever made them.

Pure functions of arrays: the writer asks them about every layout and slab before it is stored, the verification about
every stored one, so a file that was written is a file that verifies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import REGIONS, SPECTRUM_AXES
from rankkit.store.ranges import ROUNDING, excluded, measure_range
from rankkit.store.schema import (
    APPLIED_MASKS,
    AXIS_VARIABLES,
    BOUNDS,
    CUTS,
    MEASURE_ORDER,
    METHODS,
    METHODS_OF_ESTIMATES,
    SHAPE_DEPENDENT,
    STATUSES,
)
from rankkit.store.variables import LAYER_OUTPUT

__all__ = [
    "Cells",
    "Recompute",
    "Spectra",
    "Violation",
    "cell_name",
    "contradictions",
    "layer_violations",
    "violations",
]

_EXACT = [STATUSES.index("ok"), STATUSES.index("degenerate")]
_ESTIMATED = STATUSES.index("estimated")
_FAILED = STATUSES.index("failed")
_METHODS_OF_ESTIMATES = [METHODS.index(name) for name in METHODS_OF_ESTIMATES]
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "region": REGIONS,
    "applied_mask": APPLIED_MASKS,
    "bound": BOUNDS,
    "cut": CUTS,
    "valid_row": (0, 1),
    "untrained": (0, 1),
}
_AT_MOST = {"prefix_length": "key", "columns": "key", "rows": "query"}  # sizes, and the axis they are counted along
_AT_LEAST = {"document": 0, "kept_rank": 1, "sequence": 0}
_RISING = ("sequence",)

Recompute = Mapping[str, Callable[["Spectra"], NDArray[np.float64]]]
"""Measures of a spectrum by name: from whole spectra of one length, "matrix component" without nan, to "matrix".

They may read rows, columns and floor_arithmetic too, "matrix" each; those of `Spectra` have no measures.
"""

Violation = tuple[str, NDArray[np.bool_]]
"""A claim in words, and the matrices "..." that break it."""


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots: what is computed once is remembered
class Spectra:
    """The singular values of a block of matrices and what was measured of them; every array but the first is "..."."""

    singular_values: NDArray[np.float64]
    """"... component"."""
    rows: NDArray[np.int64]
    """Rows of the matrix."""
    columns: NDArray[np.int64]
    """Columns of the matrix."""
    floor_arithmetic: NDArray[np.float64]
    """Noise floor of the method."""
    measures: Mapping[str, NDArray[np.float64]]
    """By name."""
    rows_sum_to_one: bool
    """Whether these are attention matrices, so that ranges of attention hold."""

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """min(rows, columns): how many singular values there are."""
        return np.minimum(self.rows, self.columns)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which singular values are known, "... component"."""
        return ~np.isnan(self.singular_values)

    @cached_property
    def count(self) -> NDArray[np.int64]:
        """How many singular values are known."""
        return np.asarray(np.count_nonzero(self.known, axis=-1))

    @cached_property
    def is_in_order(self) -> bool:
        """Whether all are descending, finite and not negative, with nan only at the end: nearly always, and told fast."""
        values = self.singular_values
        if values.shape[-1] == 0:
            return True
        with np.errstate(invalid="ignore"):  # nan compares false
            pairs = np.count_nonzero(values[..., 1:] <= values[..., :-1], axis=-1)
            last = self.component(self.count - 1)
            whole = (pairs == self.count - 1) & np.isfinite(values[..., 0]) & (last >= 0)
        return bool((whole | (self.count == 0)).all())

    def component(self, numbers: NDArray[np.integer]) -> NDArray[np.float64]:
        """One singular value of each matrix, "..."; the first or last where there is none of that number."""
        width = self.singular_values.shape[-1]
        places = np.arange(numbers.size) * width + np.minimum(np.maximum(numbers, 0), width - 1).ravel()
        return np.asarray(self.singular_values.reshape(-1)[places].reshape(numbers.shape))

    def spectra_of(self, chosen: NDArray[np.bool_], length: int) -> Spectra:
        """The first `length` singular values of the chosen matrices, "matrix component", without measures."""
        return Spectra(
            singular_values=np.ascontiguousarray(self.singular_values[chosen][:, :length]),
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            floor_arithmetic=self.floor_arithmetic[chosen],
            measures={},
            rows_sum_to_one=self.rows_sum_to_one,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells(Spectra):
    """The numbers of a block of attention matrices."""

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
    brackets: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    """Lower and upper ends by measure."""
    errors: Mapping[str, NDArray[np.float64]]
    """By measure."""

    @cached_property
    def exact(self) -> NDArray[np.bool_]:
        """Where all singular values are known."""
        return _among(self.status, _EXACT)


def cell_name(
    labels: Mapping[str, Sequence[object] | NDArray[Any]],
    index: Iterable[int],
    axes: Sequence[str] = SPECTRUM_AXES,
) -> str:
    """One attention matrix, or a cell of other axes, in words: "seed 0, step 500, region full, ..., head 1"."""
    return ", ".join(f"{axis} {labels[axis][i]}" for axis, i in zip(axes, index, strict=True))


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
    for name in (name for name in _AT_LEAST if name in variables):
        if variables[name].min() < _AT_LEAST[name]:
            yield f"{name} must be at least {_AT_LEAST[name]}, got {variables[name].min()}"
    for name in (name for name in _RISING if name in variables):
        if (variables[name][1:] < variables[name][:-1]).any():
            yield f"{name} must rise, got {variables[name].tolist()[:8]}"
    if "output_component" in variables and variables["output_component"].size > variables["query"].size:
        limit, size = variables["query"].size, variables["output_component"].size
        yield f"output_component must have at most {limit} entries, one per position, got {size}"
    if "component" in variables:
        longest = max(1, np.minimum(variables["rows"], variables["columns"]).max())
        if variables["component"].size > longest:
            yield f"component must have at most {longest} entries, as the largest matrix, got {variables['component'].size}"


def violations(cells: Cells, recompute: Recompute) -> Iterator[Violation]:
    """Every claim about attention spectra that these numbers break, with the matrices that break it.

    Args:
        cells: a block of matrices.
        recompute: measures to compute again from the stored spectra; those the block lacks are skipped.

    Yields:
        The claim, and "...", bool, true where it fails; only claims that fail somewhere.
    """
    groups = (_flags, _spectrum, _completeness, _floors, _ranges, _order, _brackets, _errors)
    for claims in groups:
        yield from _broken(claims(cells))
    yield from _broken(_recomputed(cells, cells.exact, recompute))


def _broken(claims: Iterable[Violation]) -> Iterator[Violation]:
    """Those that fail somewhere; counting takes a fifth of the time of any(), and nearly all claims hold."""
    return ((claim, broken) for claim, broken in claims if np.count_nonzero(broken))


def layer_violations(spectra: Spectra, recompute: Recompute) -> Iterator[Violation]:
    """The same for the outputs of layers, whose spectra are whole or, where they could not be computed, absent.

    Args:
        spectra: a block of layer outputs.
        recompute: as for `violations`.

    Yields:
        The claim, and "...", bool, true where it fails; only claims that fail somewhere.
    """
    known = spectra.count == spectra.rank
    known_shape = {name: function for name, function in recompute.items() if name not in SHAPE_DEPENDENT}
    floor = spectra.floor_arithmetic
    checks = (
        *_spectrum(spectra),
        ("singular_values must be complete or all nan", (spectra.count > 0) & ~known),
        ("floor_arithmetic must not be negative or infinite", (floor < 0) | np.isinf(floor)),
        ("floor_arithmetic must be known where singular values are", known & np.isnan(floor)),
        *_ranges(spectra),
        *_order(spectra),
        *_recomputed(spectra, known, known_shape),
    )
    yield from ((f"{LAYER_OUTPUT}{claim}", broken) for claim, broken in checks if broken.any())


def _among(codes: NDArray[np.int8], chosen: Sequence[int]) -> NDArray[np.bool_]:
    """Which codes are among a few; np.isin takes ten times as long for so few."""
    found = codes == chosen[0]
    for code in chosen[1:]:
        found |= codes == code
    return np.asarray(found)


def _flags(cells: Cells) -> Iterator[Violation]:
    for name, codes, meanings in (("method", cells.method, METHODS), ("status", cells.status, STATUSES)):
        yield f"{name} must be a code from 0 to {len(meanings) - 1}", (codes < 0) | (codes >= len(meanings))
    whole = (cells.status == _ESTIMATED) & ~_among(cells.method, _METHODS_OF_ESTIMATES)
    yield f"method must be {' or '.join(METHODS_OF_ESTIMATES)} where status is estimated", whole


def _anywhere(broken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any component of each matrix is broken."""
    return np.asarray(broken.any(axis=-1))


def _spectrum(spectra: Spectra) -> Iterator[Violation]:
    yield "singular_values must be nan past min(rows, columns)", spectra.count > spectra.rank
    if spectra.is_in_order:
        return
    values, known = spectra.singular_values, spectra.known
    with np.errstate(invalid="ignore"):  # nan compares false, which is what is wanted
        yield "singular_values must be finite and not negative", _anywhere((values < 0) | np.isinf(values))
        yield "singular_values must not increase along component", _anywhere(values[..., 1:] > values[..., :-1])
    yield "singular_values must have no gap of nan", _anywhere(known[..., 1:] & ~known[..., :-1])


def _completeness(cells: Cells) -> Iterator[Violation]:
    short = cells.exact & (cells.count < cells.rank)
    yield "singular_values must be complete where status is ok or degenerate", short
    yield "singular_values must be nan where status is failed", (cells.status == _FAILED) & (cells.count > 0)


def _floors(cells: Cells) -> Iterator[Violation]:
    pairs = (("floor_arithmetic", "resolved"), ("floor_model", "resolved_model"))
    for floor_name, count_name in pairs:
        floor, count = getattr(cells, floor_name), getattr(cells, count_name)
        with np.errstate(invalid="ignore"):
            yield f"{floor_name} must not be negative or infinite", (floor < 0) | np.isinf(floor)
        yield f"{floor_name} must be known where status is ok or degenerate", cells.exact & np.isnan(floor)
        yield f"{count_name} must be the number of singular values above {floor_name}", ~_counts(cells, floor, count)
    blind = (cells.status == _ESTIMATED) & (cells.count > 0) & np.isnan(cells.floor_arithmetic)
    yield "floor_arithmetic must be the largest residual where status is estimated", blind


def _counts(spectra: Spectra, floor: NDArray[np.float64], count: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether as many singular values lie above a floor; in descending ones two are enough to tell."""
    values, width = spectra.singular_values, spectra.singular_values.shape[-1]
    with np.errstate(invalid="ignore"):
        if not spectra.is_in_order or width == 0:
            return np.asarray(np.count_nonzero(values > floor[..., np.newaxis], axis=-1) == count)
        last_is_above = (count == 0) | (spectra.component(count - 1) > floor)
        next_is_not = (count == width) | ~(spectra.component(count) > floor)
    return np.asarray((count >= 0) & (count <= width) & last_is_above & next_is_not)


def _ranges(spectra: Spectra) -> Iterator[Violation]:
    yield from _within(spectra, [(name, name, values) for name, values in spectra.measures.items()])


def _within(spectra: Spectra, variables: Sequence[tuple[str, str, NDArray[np.float64]]]) -> Iterator[Violation]:
    """Range of variables, each with its name, that of the measure and its values; together, for each by itself is slow."""
    known = [variable for variable in variables if measure_range(variable[1]) is not None]
    if not known:
        return
    names, values = [measure for _, measure, _ in known], np.stack([values for _, _, values in known])

    def excluding(shifted: NDArray[np.float64]) -> NDArray[np.bool_]:
        return excluded(names, shifted, spectra.rank, spectra.columns, rows_sum_to_one=spectra.rows_sum_to_one)

    outside = excluding(values)
    if np.count_nonzero(outside) and isinstance(spectra, Cells):
        # A matrix of rounded entries may leave a range by as much as its measure may be off, and no more.
        unknown = np.zeros(values.shape[1:])
        errors = np.stack([spectra.errors.get(name, unknown) if name == m else unknown for name, m, _ in known])
        off = np.nan_to_num(errors)
        outside &= excluding(values - off) & excluding(values + off)
    if np.count_nonzero(outside):
        for (name, measure, _), broken in zip(known, outside, strict=True):
            yield f"{name} must be {measure_range(measure)}", broken


def _order(spectra: Spectra) -> Iterator[Violation]:
    present = [name for name in MEASURE_ORDER if name in spectra.measures]
    for smaller, larger in pairwise(present):
        with np.errstate(invalid="ignore"):
            broken = spectra.measures[smaller] > spectra.measures[larger] * (1 + ROUNDING)
        yield f"{smaller} must be at most {larger}", broken


def _brackets(cells: Cells) -> Iterator[Violation]:
    """An estimate is a bracket and nothing else; no order between measures is asked of ends that may miss, 1 in 20."""
    for name, (lower, upper) in cells.brackets.items():
        given = ~np.isnan(lower)
        yield f"{name}_lower and {name}_upper must be known together", given != ~np.isnan(upper)
        with np.errstate(invalid="ignore"):
            yield f"{name}_lower must be at most {name}_upper", lower > upper
        yield from _within(cells, [(f"{name}_lower", name, lower), (f"{name}_upper", name, upper)])
        yield f"{name}_lower must be nan where status is not estimated", given & (cells.status != _ESTIMATED)
        yield f"{name} must be nan where it is estimated", given & ~np.isnan(cells.measures[name])


def _errors(cells: Cells) -> Iterator[Violation]:
    if not cells.errors:
        return
    errors = np.stack(list(cells.errors.values()))
    unknown = np.isnan(np.stack([cells.measures[name] for name in cells.errors]))
    with np.errstate(invalid="ignore"):
        stray, blind = (errors < 0) | np.isinf(errors), ~np.isnan(errors) & unknown
    if np.count_nonzero(stray) or np.count_nonzero(blind):
        for number, name in enumerate(cells.errors):
            yield f"{name}_error must be at least 0 and finite", stray[number]
            yield f"{name}_error must be nan where {name} is", blind[number]


def _recomputed(spectra: Spectra, exact: NDArray[np.bool_], recompute: Recompute) -> Iterator[Violation]:
    names = sorted(set(recompute) & set(spectra.measures))
    if not names:
        return
    with np.errstate(invalid="ignore"):
        possible = np.isfinite(spectra.singular_values) & (
            spectra.singular_values >= 0
        )  # others are a claim of their own
    rank, whole = spectra.rank, exact & (possible.sum(axis=-1) == spectra.rank)
    for name in names:
        stored, broken = spectra.measures[name], np.zeros(rank.shape, dtype=np.bool_)
        for length in np.unique(rank[rank > 0]):
            chosen = whole & (rank == length)
            if chosen.any():
                again = recompute[name](spectra.spectra_of(chosen, length))
                broken[chosen] = ~np.isclose(stored[chosen], again, rtol=ROUNDING, atol=0, equal_nan=True)
        yield f"{name} must be what its singular values give", broken
