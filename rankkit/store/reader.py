"""Reading spectra back, and saying what is in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.hdf5 import DEFAULT_LIMIT, attributes_of, datasets_in, h5py, opened, read_array, read_strings
from rankkit.store.layout import Attribute

__all__ = [
    "ComparisonDescription",
    "FileDescription",
    "GroupDescription",
    "Root",
    "describe",
    "measure_groups",
    "measures_in",
    "read_group",
    "read_root",
]


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
    """Such as "gpt" or "t5/encoder"."""
    attributes: Mapping[str, Attribute]
    """Mask, objective, kind and token policy."""
    dimensions: Mapping[str, int]
    """Length of every axis."""
    labels: Mapping[str, tuple[int | str, ...]]
    """Labels of the axes of an attention matrix (SPECTRUM_AXES)."""
    measures: Mapping[str, schema.MeasureDescription]
    """Measures with their definitions."""
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
        name: such as "gpt", "t5/encoder" or "comparison".
        variables: names of those to read; all unless given. The group's labels come under the names of its axes.
        limit: bytes that all of them together may take in memory.

    Returns:
        Arrays by name, with the axes that the schema says; texts as NumPy strings.

    Raises:
        SpectrumFileError: the file is missing, damaged, foreign, newer or hostile, or does not hold what was asked for.
    """
    with opened(path, limit=limit) as file:
        known = [*measure_groups(file), *([schema.COMPARISON] if schema.COMPARISON in file else [])]
        if name not in known:
            raise SpectrumFileError(f"{path} must hold group {name!r}, got {', '.join(known)}. Choose one of them.")
        datasets = datasets_in(file[name])
        wanted = list(datasets) if variables is None else list(variables)
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
        return FileDescription(
            path=path,
            size=path.stat().st_size,
            root=_root(file),
            groups=tuple(_group(name, file[name]) for name in measure_groups(file)),
            comparison=_comparison(file[schema.COMPARISON]) if schema.COMPARISON in file else None,
        )


def measure_groups(file: h5py.File) -> list[str]:
    """The names of all groups that hold spectra, in storage order, at any depth."""

    def walk(group: h5py.Group, prefix: str) -> Iterator[str]:
        for name, entry in group.items():
            if isinstance(entry, h5py.Group) and prefix + name != schema.COMPARISON:
                if datasets_in(entry):
                    yield prefix + name
                yield from walk(entry, f"{prefix}{name}/")

    return list(walk(file, ""))


def measures_in(group: h5py.Group) -> dict[str, schema.MeasureDescription]:
    """The measures a group holds: its variables that carry a definition."""
    found = {}
    for name, dataset in datasets_in(group).items():
        texts = attributes_of(dataset)
        if "definition" in texts:
            fields = {key: str(texts.get(key, "")) for key in ("long_name", "definition", "source", "units")}
            found[name] = schema.MeasureDescription(**fields)
    return found


def _root(file: h5py.File) -> Root:
    texts = {variable.name: read_strings(_dataset(file, variable.name))[0] for variable in schema.ROOT_STRINGS}
    return Root(attributes=attributes_of(file), **texts)


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise SpectrumFileError(
            f"{group.file.filename}: {group.name} must hold {name}, got nothing of that name. Restore a copy."
        )
    return found


def _group(name: str, group: h5py.Group) -> GroupDescription:
    labels = {axis: tuple(read_array(_dataset(group, axis)).tolist()) for axis in SPECTRUM_AXES}
    rank = np.minimum(read_array(_dataset(group, "rows")), read_array(_dataset(group, "columns")))
    matrices = math.prod(len(values) for values in labels.values())
    values = int(rank.sum()) * matrices // max(1, rank.size)
    return GroupDescription(
        name=name,
        attributes=attributes_of(group),
        dimensions={axis: _dataset(group, axis).size for axis in _axes_of(group)},
        labels=labels,
        measures=measures_in(group),
        matrices=matrices,
        methods=_counts(_dataset(group, "method"), schema.METHODS),
        statuses=_counts(_dataset(group, "status"), schema.STATUSES),
        resolved_fraction=_share(_dataset(group, "resolved"), values),
        resolved_model_fraction=_share(_dataset(group, "resolved_model"), values),
    )


def _axes_of(group: h5py.Group) -> list[str]:
    return [name for name in datasets_in(group) if name in schema.AXIS_VARIABLES]


def _counts(dataset: h5py.Dataset, names: tuple[str, ...]) -> dict[str, int]:
    codes, counts = np.unique(read_array(dataset), return_counts=True)
    return {
        names[code] if 0 <= code < len(names) else f"unknown code {code}": int(count)
        for code, count in zip(codes.tolist(), counts, strict=True)
    }


def _share(dataset: h5py.Dataset, values: int) -> float:
    return float(read_array(dataset).sum(dtype=np.int64) / values) if values else float("nan")


def _comparison(group: h5py.Group) -> ComparisonDescription:
    return ComparisonDescription(
        attributes=attributes_of(group),
        measures=tuple(read_array(_dataset(group, "measure")).tolist()),
        regions=tuple(read_array(_dataset(group, "region")).tolist()),
        layers=tuple(read_array(_dataset(group, "layer")).tolist()),
    )
