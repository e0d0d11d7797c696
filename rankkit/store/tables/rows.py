"""Which rows make each tidy table of a file.

Texts from a file are checked to be plain words before they become cells, and so are the names of columns: a spreadsheet
runs a cell that begins with "=", "+", "-" or "@".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.door.hdf5 import attributes_of, datasets_in, h5py, has_all_chunks, read_array
from rankkit.store.door.library import refusal
from rankkit.store.groups.datasets import has_type
from rankkit.store.groups.tree import comparison_groups, contents_in, functional_groups, measure_groups
from rankkit.store.names import arm_of, baseline_of
from rankkit.store.tables.parts import Field, Part
from rankkit.store.variables import LAYER_OUTPUT, Variable

__all__ = ["COLUMNS", "TABLES", "Found"]

COLUMNS: Final[Mapping[str, Variable]] = {
    variable.name: variable
    for variable in (
        Variable("arm", (), "string", "arm, the name of its group", None),
        Variable("baseline", (), "string", "what the arm is held against; empty for the arm itself", None),
        Variable("quantity", (), "string", "which quantity the value is of", None),
        Variable("value", (), "float64", "value of the quantity", None),
        Variable("lower", (), "float64", "lower end of the value's 95% interval", None),
        Variable("upper", (), "float64", "upper end of the value's 95% interval", None),
        *schema.AXIS_VARIABLES.values(),
    )
}
"""Columns whose meaning does not depend on the file: labels, and the values of tables with a column `quantity`."""

Found = tuple[list[Part], Sequence[Variable]]
"""Every part of a table, and what the words in its column `quantity` mean."""

_WORD = re.compile(r"[a-z0-9][a-z0-9_./-]{0,255}")
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,127}")
_STEP_LIMIT = 1 << 62  # a step beyond does not fit the column's int64
_ROW_ORDER = ("seed", "step", "region", "applied_mask", "layer", "sequence", "head")
"""Layers before sequences: a chunk of a file holds one layer, and is read once."""


def _matrices(file: h5py.File) -> Found:
    """A row for every attention matrix, of arms and baselines."""

    def belongs(variable: Variable) -> bool:
        return set(variable.dimensions) <= set(SPECTRUM_AXES) and not variable.name.startswith(LAYER_OUTPUT)

    groups = measure_groups(file)
    return [_of_group(name, group, SPECTRUM_AXES, belongs) for name, group in groups.items()], ()


def _layer_outputs(file: h5py.File) -> Found:
    """A row for every layer's output, of those groups that have them."""

    def belongs(variable: Variable) -> bool:
        return set(variable.dimensions) <= set(LAYER_AXES)

    groups = {
        name: group for name, group in measure_groups(file).items() if contents_in(group).layer_measures is not None
    }
    return [_of_group(name, group, LAYER_AXES, belongs) for name, group in groups.items()], ()


def _of_group(name: str, group: h5py.Group, axes: Sequence[str], belongs: Callable[[Variable], bool]) -> Part:
    labels = {axis: _labels(group, axis) for axis in _ROW_ORDER if axis in axes}
    there = datasets_in(group)
    chosen = [v for v in contents_in(group).variables if v.dtype != "string" and belongs(v)]
    fields = [_field(group, v, labels) for v in chosen if not v.optional or v.name in there]
    return _part(group, {"arm": arm_of(name), "baseline": baseline_of(name) or ""}, labels, fields)


def _comparison(file: h5py.File) -> Found:
    """A row for every effect, by step where the file has several."""
    groups = comparison_groups(file)
    if schema.COMPARISON_BY_STEP in groups:
        return _melted(groups[schema.COMPARISON_BY_STEP], {}, schema.COMPARISON_BY_STEP_VARIABLES)
    return _melted(groups[schema.COMPARISON], {}, schema.COMPARISON_VARIABLES) if groups else ([], ())


def _functional(file: h5py.File) -> Found:
    """A row for every loss and share, of every arm."""
    found = [
        _melted(group, {"arm": arm}, schema.FUNCTIONAL_VARIABLES) for arm, group in functional_groups(file).items()
    ]
    return [part for parts, _ in found for part in parts], schema.FUNCTIONAL_VARIABLES


def _melted(group: h5py.Group, constants: Mapping[str, str], variables: Iterable[Variable]) -> Found:
    """A part for every float variable of a group: its own axes, and its values in one column."""
    there, step = datasets_in(group), attributes_of(group).get("step")
    of_all: dict[str, str | int] = dict(constants)
    if isinstance(step, int) and 0 <= step < _STEP_LIMIT:
        of_all["step"] = step
    chosen = [v for v in variables if v.dtype == "float64" and (not v.optional or v.name in there)]
    parts = []
    for variable in chosen:
        labels = {axis: _labels(group, axis) for axis in variable.dimensions}
        fields = _values(group, variable, labels)
        if "sequence" in labels and schema.DOCUMENT.name in there:
            fields = [_field(group, schema.DOCUMENT, labels), *fields]
        rows = {axis: values for axis, values in labels.items() if axis != "bound"}
        parts.append(_part(group, {**of_all, "quantity": variable.name}, rows, fields))
    return parts, chosen


def _values(group: h5py.Group, variable: Variable, labels: Mapping[str, NDArray[Any]]) -> list[Field]:
    """The column of values and, where they have intervals, those of the two ends."""
    whole = _field(group, variable, labels)
    if "bound" not in labels:
        return [replace(whole, column=COLUMNS["value"])]
    if tuple(labels["bound"].tolist()) != schema.BOUNDS:
        raise _refusal(group, "bound", f"be {', '.join(schema.BOUNDS)}", labels["bound"].tolist()[:8])
    names = ("value", "lower", "upper")
    return [replace(whole, column=COLUMNS[name], fixed={"bound": place}) for place, name in enumerate(names)]


def _part(
    group: h5py.Group, constants: Mapping[str, str | int], labels: Mapping[str, NDArray[Any]], fields: Sequence[Field]
) -> Part:
    """A part whose cells and names of columns are safe to show."""
    for name, value in constants.items():
        if isinstance(value, str) and (value or name != "baseline"):
            _check_words(group, name, [value])
    names = [*constants, *labels, *(entry.column.name for entry in fields)]
    strange = [name for name in names if names.count(name) > 1 or not _COLUMN.fullmatch(name)]
    if strange:
        raise _refusal(group, "measures", "have new names of letters, digits and underscores", f"{strange[0]!r:.80}")
    places = {axis: np.arange(values.size) for axis, values in labels.items()}
    return Part(constants=constants, labels=labels, fields=fields, places=places)


def _field(group: h5py.Group, variable: Variable, labels: Mapping[str, NDArray[Any]]) -> Field:
    """A variable as a column: the codes of methods and statuses as words, those of yes and no as 1 and 0."""
    shape = tuple(labels[axis].size for axis in variable.dimensions)
    dataset = _dataset(group, variable)
    if dataset.shape != shape:
        raise _refusal(group, variable.name, f"have shape {shape} ({', '.join(variable.dimensions)})", dataset.shape)
    if variable.name not in ("method", "status"):
        return Field(column=replace(variable, flags=()), dataset=dataset, axes=variable.dimensions)
    column = replace(variable, dtype="string", flags=(), units=None)
    return Field(column=column, dataset=dataset, axes=variable.dimensions, words=variable.flags)


def _labels(group: h5py.Group, axis: str) -> NDArray[Any]:
    dataset = _dataset(group, schema.AXIS_VARIABLES[axis])
    if dataset.ndim != 1 or not dataset.size:
        raise _refusal(group, axis, "be a list of labels", f"shape {dataset.shape}")
    if dataset.chunks and not has_all_chunks(dataset):
        raise _refusal(group, axis, "have every chunk", "a lost or unchecked one")
    labels = read_array(dataset)
    if np.unique(labels).size < labels.size:
        raise _refusal(group, axis, "hold no label twice", labels.tolist()[:8])
    if labels.dtype.kind == "U":
        _check_words(group, axis, labels.tolist())
    return labels


def _dataset(group: h5py.Group, variable: Variable) -> h5py.Dataset:
    dataset = group.get(variable.name)
    if not isinstance(dataset, h5py.Dataset):
        raise _refusal(group, variable.name, "exist", "nothing of that name")
    if not has_type(dataset, variable):
        raise _refusal(group, variable.name, f"be of type {variable.dtype}", dataset.dtype)
    return dataset


def _check_words(group: h5py.Group, name: str, words: Iterable[str]) -> None:
    for word in words:
        if not _WORD.fullmatch(word):
            raise _refusal(group, name, "be of lower-case letters, digits and _ . - /", f"{word!r:.80}")


def _refusal(group: h5py.Group, name: str, must: str, found: object) -> SpectrumFileError:
    return refusal(group, f"{group.name}/{name}", must, found)


TABLES: Final[Mapping[str, Callable[[h5py.File], Found]]] = {
    "matrices": _matrices,
    "layer_outputs": _layer_outputs,
    "comparison": _comparison,
    "functional": _functional,
}
"""What a file can be read as; each makes its parts from an open file."""
