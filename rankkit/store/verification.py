"""Whether a finished file is whole and consistent with itself.

Three passes: every variable the schema asks for is there, with its type and axes; every chunk and text matches its
checksum; the numbers agree with one another (rankkit.store.consistency). A later pass runs only where the earlier ones
found nothing, and no more than one layer of one arm is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.consistency import Cells, Recompute, cell_name, contradictions, violations
from rankkit.store.hdf5 import (
    DEFAULT_LIMIT,
    attributes_of,
    axis_names,
    datasets_in,
    h5py,
    has_all_chunks,
    opened,
    read_array,
    read_strings,
    sha256_of_attributes,
    sha256_of_strings,
)
from rankkit.store.reader import measure_groups, measures_in
from rankkit.store.schema import Variable

__all__ = ["verify"]

_BLOCK_AXES = SPECTRUM_AXES[:4]  # one value of each of these, and one layer, is read at a time


def verify(path: str | Path, recompute: Recompute | None = None, *, limit: int = DEFAULT_LIMIT) -> list[str]:
    """Read a whole file and list what is wrong with it.

    Args:
        path: a finished file.
        recompute: measures that are functions of the singular values alone, to be computed again: name to function of
            "... component" (float64, descending, without nan) that returns "...". Measures the file lacks are skipped.
        limit: bytes that one array may take in memory.

    Returns:
        One line for each problem; empty when the file is whole and consistent.

    Raises:
        SpectrumFileError: the file cannot be opened safely (see `rankkit.store.hdf5.opened`), or is damaged so far that
            what it holds cannot be told.
    """
    with opened(path, limit=limit) as file:
        problems = list(_structure(file)) or list(_checksums(file))
        if not problems:
            for name in measure_groups(file):
                problems += _contents(name, file[name], recompute or {})
            if schema.COMPARISON in file:
                problems += _intervals(file[schema.COMPARISON])
    return problems


def _structure(file: h5py.File) -> Iterator[str]:
    required = (*schema.ROOT_ATTRIBUTES, *schema.HOST_ATTRIBUTES)
    yield from _missing("/", required, attributes_of(file))
    yield from _variables("", file, schema.ROOT_STRINGS)
    names = measure_groups(file)
    if not names:
        yield "/ must hold the spectra of at least one arm, got none"
    for name in names:
        group = file[name]
        yield from _missing(name, (*schema.GROUP_ATTRIBUTES, *schema.TOKEN_ATTRIBUTES), attributes_of(group))
        yield from _variables(f"{name}/", group, schema.group_variables(measures_in(group)))
    if schema.COMPARISON in file:
        yield from _variables(f"{schema.COMPARISON}/", file[schema.COMPARISON], schema.COMPARISON_VARIABLES)


def _missing(name: str, required: Sequence[str], found: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} must have the attribute {key}, got none" for key in required if key not in found)


def _variables(prefix: str, group: h5py.Group, variables: Sequence[Variable]) -> Iterator[str]:
    """Compare a group's datasets with the schema: no more, no fewer, each with its type and axes."""
    axes = {axis for variable in variables for axis in variable.dimensions}
    expected = {v.name: v for v in (*variables, *(schema.AXIS_VARIABLES[axis] for axis in sorted(axes)))}
    found = datasets_in(group)
    yield from (f"{prefix}{name} must exist, got nothing of that name" for name in expected if name not in found)
    yield from (
        f"{prefix}{name} must be in the schema, got an unknown variable" for name in found if name not in expected
    )
    for name in (name for name in expected if name in found):
        variable, dataset = expected[name], found[name]
        if not _has_type(dataset, variable):
            yield f"{prefix}{name} must be of type {variable.dtype}, got {dataset.dtype}"
        shape = tuple(found[axis].size if axis in found else -1 for axis in variable.dimensions)
        if dataset.shape != shape:
            yield f"{prefix}{name} must have shape {shape} ({', '.join(variable.dimensions)}), got {dataset.shape}"
        elif not _has_scales(dataset, variable):
            yield f"{prefix}{name} must have its axes labelled {', '.join(variable.dimensions)}, got other labels"


def _has_type(dataset: h5py.Dataset, variable: Variable) -> bool:
    if variable.dtype == "string":
        return h5py.check_string_dtype(dataset.dtype) is not None
    return bool(dataset.dtype == np.dtype(variable.dtype).newbyteorder("<"))


def _has_scales(dataset: h5py.Dataset, variable: Variable) -> bool:
    if variable.dimensions == (variable.name,):
        return bool(dataset.is_scale)
    return axis_names(dataset) == [[axis] for axis in variable.dimensions]


def _checksums(file: h5py.File) -> Iterator[str]:
    """Read everything once: fletcher32 speaks up on numbers, SHA-256 on texts."""
    if sha256_of_attributes(file) != attributes_of(file).get(schema.ATTRIBUTES_SUM):
        yield "attributes must match their checksum, got other texts"
    datasets: list[h5py.Dataset] = []

    def collect(_: str, entry: h5py.Group | h5py.Dataset) -> None:
        if isinstance(entry, h5py.Dataset):
            datasets.append(entry)

    file.visititems(collect)
    for dataset in datasets:
        name = dataset.name.removeprefix("/")
        try:
            if dataset.chunks:
                if not has_all_chunks(dataset):
                    yield f"{name} must have every chunk, got a lost or unchecked one"
                for chunk in dataset.iter_chunks():
                    read_array(dataset, chunk)
            elif sha256_of_strings(read_strings(dataset)) != attributes_of(dataset).get("sha256"):
                yield f"{name} must match its checksum, got another text"
        except SpectrumFileError:
            yield f"{name} must match its checksum, got a damaged chunk"


def _contents(name: str, group: h5py.Group, recompute: Recompute) -> list[str]:
    """Problems in the numbers of one arm."""
    small = {key: read_array(dataset) for key, dataset in datasets_in(group).items() if dataset.ndim <= 2}
    problems = [f"{name}: {problem}" for problem in contradictions(small)]
    if problems:
        return problems
    found: dict[str, tuple[int, str]] = {}
    for index, cells in _blocks(group, small):
        for claim, broken in violations(cells, recompute):
            count, first = found.get(claim, (0, ""))
            sequence, head = np.argwhere(broken)[0].tolist()
            where = first or cell_name(small, (*index[:4], sequence, index[4], head))
            found[claim] = (count + int(broken.sum()), where)
    return [f"{name}: {claim}, got {n} matrices that break it, the first at {at}" for claim, (n, at) in found.items()]


def _blocks(group: h5py.Group, small: Mapping[str, NDArray[Any]]) -> Iterator[tuple[tuple[int, ...], Cells]]:
    """One layer at a time: its index (seed, step, region, applied_mask, layer) and its numbers, "sequence head"."""
    datasets, measures = datasets_in(group), measures_in(group)
    names = [variable.name for variable in schema.GROUP_VARIABLES if variable.dimensions[:4] == _BLOCK_AXES]
    sizes = [small[axis].size for axis in (*_BLOCK_AXES, "layer")]
    heads = small["head"].size
    for index in product(*map(range, sizes)):
        selection = (*index[:4], slice(None), index[4])
        rows, columns = small["rows"][index[2]], small["columns"][index[2]]
        yield (
            index,
            Cells(
                **{name: read_array(datasets[name], selection) for name in names},
                rank=np.repeat(np.minimum(rows, columns).astype(np.int64)[:, np.newaxis], heads, axis=1),
                columns=np.repeat(columns.astype(np.int64)[:, np.newaxis], heads, axis=1),
                measures={name: read_array(datasets[name], selection) for name in measures},
            ),
        )


def _intervals(group: h5py.Group) -> Iterator[str]:
    axes = {axis: read_array(group[axis]) for axis in schema.COMPARISON_AXES}
    yield from (f"{schema.COMPARISON}: {problem}" for problem in contradictions(axes))
    for variable in schema.COMPARISON_VARIABLES:
        mean, lower, upper = np.moveaxis(read_array(group[variable.name]), -1, 0)
        with np.errstate(invalid="ignore"):
            broken = int(((lower > mean) | (upper < mean)).sum())
        if broken:
            yield f"{schema.COMPARISON}: {variable.name} must lie inside its interval, got {broken} outside"
