"""Reading spectra back, and saying what is in a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.door.hdf5 import (
    DEFAULT_LIMIT,
    attributes_of,
    blocks_of,
    datasets_in,
    h5py,
    opened,
    read_array,
    read_strings,
)
from rankkit.store.groups.datasets import has_type
from rankkit.store.groups.tree import comparison_groups, contents_in, functional_groups, measure_groups
from rankkit.store.layout import Attribute
from rankkit.store.names import arm_of, baseline_of
from rankkit.store.reasons import read_reasons
from rankkit.store.variables import MeasureDescription, Variable

__all__ = [
    "ComparisonDescription",
    "FileDescription",
    "GroupDescription",
    "Root",
    "describe",
    "read_group",
    "read_root",
]

_KEPT = {variable.name for variable in schema.KEPT_VARIABLES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What a file says about itself as a whole."""

    attributes: Mapping[str, Attribute]
    """Schema, title, versions, time and host facts."""
    configuration: str
    """Resolved configuration of the run."""
    certificate: str
    """Proof that the arms match."""
    command: str
    """Command line that made the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription:
    """One arm of a file, in numbers."""

    name: str
    """Such as "gpt", "t5/encoder" or "baselines/uniform/gpt"."""
    arm: str
    """The arm it is about, such as "gpt" or "t5/encoder"."""
    baseline: str | None
    """Which baseline of the arm it is, from schema.BASELINES; None for the arm itself."""
    attributes: Mapping[str, Attribute]
    """Mask, objective, kind, token policy and the rule of the method."""
    unavailable: Mapping[str, str]
    """Measures and theorems that were switched off, each with the reason."""
    rows_sum_to_one: bool
    """Whether the matrices are attention."""
    dimensions: Mapping[str, int]
    """Length of every axis."""
    labels: Mapping[str, tuple[int | str, ...]]
    """Labels of the axes of an attention matrix (SPECTRUM_AXES)."""
    measures: Mapping[str, MeasureDescription]
    """Measures with their definitions."""
    estimated: tuple[str, ...]
    """Measures with a bracket where they were estimated, sorted."""
    errors: tuple[str, ...]
    """Measures whose exact values have an error, sorted."""
    layer_measures: Mapping[str, MeasureDescription]
    """Measures of layers' outputs, named without "layer_output_"."""
    matrices: int
    """Attention matrices measured."""
    methods: Mapping[str, int]
    """Matrices by method; methods that were not used are left out."""
    statuses: Mapping[str, int]
    """Matrices by status; those that do not occur are left out."""
    resolved_fraction: float
    """Singular values above the method's noise floor, out of all there are; nan where there are none."""
    resolved_model_fraction: float
    """The same above the noise floor of the model's own arithmetic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonDescription:
    """What the comparison of two arms covers."""

    attributes: Mapping[str, Attribute]
    """Which arms and what kind of interval."""
    measures: tuple[str, ...]
    """Labels of its first axis."""
    regions: tuple[str, ...]
    """Labels of its second axis."""
    layers: tuple[int, ...]
    """Labels of its third axis."""
    steps: tuple[int, ...]
    """Steps in /comparison/by_step; empty where there is no such group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDescription:
    """What is in a file, without its large arrays."""

    path: Path
    """Where it is."""
    size: int
    """Bytes on disk."""
    root: Root
    """What it says as a whole."""
    groups: tuple[GroupDescription, ...]
    """Its arms, in storage order."""
    baselines: tuple[GroupDescription, ...]
    """What the arms are held against, in storage order."""
    functional: tuple[str, ...]
    """Arms whose functional rank was measured: their groups are "functional/<arm>"."""
    comparison: ComparisonDescription | None
    """The comparison of two arms, where there is one."""


def read_root(path: str | Path, *, limit: int = DEFAULT_LIMIT) -> Root:
    """Read the root attributes and texts.

    Raises:
        SpectrumFileError: the file is missing, damaged, foreign, newer, or hostile.
    """
    with opened(path, limit=limit) as file:
        return _root(file)


def read_group(
    path: str | Path, name: str, variables: Iterable[str] | None = None, *, limit: int = DEFAULT_LIMIT
) -> dict[str, NDArray[Any]]:
    """Read the variables of one group, its axes included.

    Args:
        path: the file.
        name: such as "gpt", "t5/encoder", "baselines/uniform/gpt", "comparison", "comparison/by_step" or
            "functional/gpt".
        variables: names of those to read. The group's labels come under the names of its axes. Unless given, all but
            queries, keys and attention, which may be larger than everything else together.
        limit: bytes that all of them together may take in memory.

    Returns:
        Arrays by name, with the axes that the schema says; texts as NumPy strings.

    Raises:
        SpectrumFileError: the file is missing, damaged, foreign, newer or hostile, or does not hold what was asked for.
    """
    with opened(path, limit=limit) as file:
        functional = {f"{schema.FUNCTIONAL}/{arm}": group for arm, group in functional_groups(file).items()}
        known = {**measure_groups(file), **comparison_groups(file), **functional}
        if name not in known:
            raise SpectrumFileError(f"{path} must hold group {name!r}, got {', '.join(known)}. Choose one of them.")
        datasets = datasets_in(known[name])
        wanted = [each for each in datasets if each not in _KEPT] if variables is None else list(variables)
        unknown = [variable for variable in wanted if variable not in datasets]
        if unknown:
            raise SpectrumFileError(
                f"{path}: {name} must hold {unknown[0]!r}, got {', '.join(datasets)}. Choose among them."
            )
        size = sum(math.prod(datasets[variable].shape) * datasets[variable].dtype.itemsize for variable in wanted)
        if size > limit:
            raise SpectrumFileError(
                f"{path}: {name} must take at most {limit} bytes in memory, got {size}. "
                "Read fewer variables or raise limit."
            )
        return {variable: read_array(datasets[variable]) for variable in wanted}


def describe(path: str | Path, *, limit: int = DEFAULT_LIMIT) -> FileDescription:
    """Say what is in a file: arms, axes, measures with their definitions, and what the spectra are worth.

    Raises:
        SpectrumFileError: the file is missing, damaged, foreign, newer, or hostile.
    """
    path = Path(path)
    with opened(path, limit=limit) as file:
        groups = [_group(name, group) for name, group in measure_groups(file).items()]
        return FileDescription(
            path=path,
            size=path.stat().st_size,
            root=_root(file),
            groups=tuple(group for group in groups if group.baseline is None),
            baselines=tuple(group for group in groups if group.baseline is not None),
            functional=tuple(functional_groups(file)),
            comparison=_comparison(comparison_groups(file)),
        )


_KNOWN = {
    variable.name: variable
    for variable in (
        *schema.ROOT_STRINGS,
        *schema.GROUP_VARIABLES,
        *schema.COMPARISON_VARIABLES,
        *schema.AXIS_VARIABLES.values(),
    )
}
_ROOT_TEXTS = tuple(name for name in schema.ROOT_ATTRIBUTES if name != "complete")


def _root(file: h5py.File) -> Root:
    texts = {variable.name: read_strings(_dataset(file, variable.name))[0] for variable in schema.ROOT_STRINGS}
    return Root(attributes=_with_texts(file, _ROOT_TEXTS), **texts)


def _with_texts(entry: h5py.File | h5py.Group, names: Iterable[str]) -> dict[str, Attribute]:
    """The attributes of a file or group, some of which must be there and be texts."""
    attributes = attributes_of(entry)
    for name in names:
        if not isinstance(attributes.get(name), str):
            raise SpectrumFileError(
                f"{entry.file.filename}: {entry.name} must have the attribute {name}, a text, got "
                f"{str(attributes.get(name, 'none'))[:40]!r}. Restore a copy."
            )
    return attributes


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """A variable of a group, of the type and shape that the schema gives it."""
    found, variable = group.get(name), _KNOWN[name]
    if not isinstance(found, h5py.Dataset):
        raise SpectrumFileError(
            f"{group.file.filename}: {group.name} must hold {name}, got nothing of that name. Restore a copy."
        )
    if not has_type(found, variable) or not _has_shape(group, found, variable):
        raise SpectrumFileError(
            f"{group.file.filename}: {found.name} must be of type {variable.dtype} with axes "
            f"({', '.join(variable.dimensions)}), got {found.dtype} of shape {found.shape}. Restore a copy."
        )
    return found


def _has_shape(group: h5py.Group, dataset: h5py.Dataset, variable: Variable) -> bool:
    if variable.dimensions == (variable.name,):
        return bool(dataset.ndim == 1)
    return bool(dataset.shape == tuple(_dataset(group, axis).size for axis in variable.dimensions))


def _labels(group: h5py.Group, axis: str) -> tuple[Any, ...]:
    return tuple(read_array(_dataset(group, axis)).tolist())


def _group(name: str, group: h5py.Group) -> GroupDescription:
    labels = {axis: _labels(group, axis) for axis in SPECTRUM_AXES}
    rank = np.minimum(read_array(_dataset(group, "rows")), read_array(_dataset(group, "columns")))
    matrices = math.prod(len(values) for values in labels.values())
    values = int(rank.sum()) * matrices // max(1, rank.size)
    attributes, contents = _with_texts(group, schema.GROUP_ATTRIBUTES), contents_in(group)
    return GroupDescription(
        name=name,
        arm=arm_of(name),
        baseline=baseline_of(name),
        attributes=attributes,
        unavailable=_reasons(group, attributes),
        rows_sum_to_one=bool(attributes.get(schema.ROWS_SUM_TO_ONE, 1)),
        dimensions={axis: _dataset(group, axis).size for axis in _axes_of(group)},
        labels=labels,
        measures=contents.measures,
        estimated=tuple(sorted(contents.estimated)),
        errors=tuple(sorted(contents.errors)),
        layer_measures=contents.layer_measures or {},
        matrices=matrices,
        methods=_counts(_dataset(group, "method"), schema.METHODS),
        statuses=_counts(_dataset(group, "status"), schema.STATUSES),
        resolved_fraction=_share(_dataset(group, "resolved"), values),
        resolved_model_fraction=_share(_dataset(group, "resolved_model"), values),
    )


def _reasons(group: h5py.Group, attributes: Mapping[str, Attribute]) -> dict[str, str]:
    if schema.UNAVAILABLE not in attributes:
        return {}
    try:
        return read_reasons(attributes[schema.UNAVAILABLE])
    except ValueError as error:
        raise SpectrumFileError(f"{group.file.filename}: {group.name}: {error}") from error


def _axes_of(group: h5py.Group) -> list[str]:
    return [name for name in datasets_in(group) if name in schema.AXIS_VARIABLES]


def _counts(dataset: h5py.Dataset, names: tuple[str, ...]) -> dict[str, int]:
    """How many matrices have each code."""
    counts: Counter[int] = Counter()
    for block in blocks_of(dataset):
        codes, found = np.unique(read_array(dataset, block), return_counts=True)
        counts.update(dict(zip(codes.tolist(), found.tolist(), strict=True)))
    return {
        names[code] if 0 <= code < len(names) else f"unknown code {code}": count
        for code, count in sorted(counts.items())
    }


def _share(dataset: h5py.Dataset, values: int) -> float:
    total = sum(int(read_array(dataset, block).sum(dtype=np.int64)) for block in blocks_of(dataset))
    return total / values if values else float("nan")


def _comparison(groups: Mapping[str, h5py.Group]) -> ComparisonDescription | None:
    if schema.COMPARISON not in groups:
        return None
    group, by_step = groups[schema.COMPARISON], groups.get(schema.COMPARISON_BY_STEP)
    for variable in schema.COMPARISON_VARIABLES:
        if not variable.optional or variable.name in group:
            _dataset(group, variable.name)
    if _labels(group, "bound") != schema.BOUNDS:
        raise SpectrumFileError(
            f"{group.file.filename}: {group.name}/bound must be {', '.join(schema.BOUNDS)}, got others. Restore a copy."
        )
    return ComparisonDescription(
        attributes=attributes_of(group),
        measures=_labels(group, "measure"),
        regions=_labels(group, "region"),
        layers=_labels(group, "layer"),
        steps=() if by_step is None else _labels(by_step, "step"),
    )
