"""Whether a finished file is whole and consistent with itself.

Three passes: every variable the schema asks for is there, with its type and axes; every chunk and text matches its
checksum; the numbers agree with one another (rankkit.store.consistency). A later pass runs only where the earlier ones
found nothing, and no more than a few mebibytes of each variable are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES
from rankkit.store import schema
from rankkit.store.checksums import damaged_parts
from rankkit.store.consistency import (
    Cells,
    Recompute,
    Spectra,
    Violation,
    cell_name,
    contradictions,
    layer_violations,
    violations,
)
from rankkit.store.contents import GroupContents
from rankkit.store.door.chunks import whole_chunks
from rankkit.store.door.hdf5 import (
    DEFAULT_LIMIT,
    array_reader,
    attributes_of,
    datasets_in,
    h5py,
    is_newer,
    opened,
    read_array,
)
from rankkit.store.door.library import damage
from rankkit.store.groups.comparison import comparison_problems, step_problems
from rankkit.store.groups.datasets import has_type
from rankkit.store.groups.functional import functional_problems
from rankkit.store.groups.kept import attention_violations, kept_problems
from rankkit.store.groups.tree import comparison_groups, contents_in, functional_groups, measure_groups
from rankkit.store.names import baseline_problem, is_group_name, is_measure_name
from rankkit.store.reasons import read_reasons
from rankkit.store.variables import LAYER_OUTPUT, Variable

__all__ = ["verify", "verify_written"]

_SLAB_BYTES = 4 << 20  # of all variables at a time; comparing them takes about five times as much
_BLOCK_BYTES = 1 << 20  # of an attention matrix at a time: as much as a chunk may take


def verify(path: str | Path, recompute: Recompute | None = None, *, limit: int = DEFAULT_LIMIT) -> list[str]:
    """Read a whole file and list what is wrong with it.

    Args:
        path: a finished file.
        recompute: measures of a spectrum to be computed again: name to function of `Spectra` of one length each. Measures
            the file lacks are skipped.
        limit: bytes that one array may take in memory.

    Returns:
        One line for each problem; empty when the file is whole and consistent.

    Raises:
        SpectrumFileError: the file cannot be opened safely (see `rankkit.store.door.hdf5.opened`), or is damaged so far that
            what it holds cannot be told.
    """
    with opened(path, limit=limit) as file:
        problems = list(_structure(file)) or list(damaged_parts(file))
        return problems or [*_small_numbers(file), *_numbers(file, recompute or {})]


def verify_written(path: str | Path) -> list[str]:
    """What the writer asks of its own file: the same, but for the numbers of slabs, which it checked as they came.

    Their checksums were made from the numbers that were checked, so that a chunk which matches its checksum holds them.

    Args:
        path: a finished file.

    Returns:
        One line for each problem.

    Raises:
        SpectrumFileError: as for `verify`.
    """
    with opened(path) as file:
        return list(_structure(file)) or list(damaged_parts(file, unpack=False)) or list(_small_numbers(file))


def _structure(file: h5py.File) -> Iterator[str]:
    required = (*schema.ROOT_ATTRIBUTES, *schema.HOST_ATTRIBUTES)
    newer = is_newer(file)
    yield from _missing("/", required, attributes_of(file))
    yield from _variables("", file, schema.ROOT_STRINGS, newer=newer)
    groups = measure_groups(file)
    if not groups:
        yield "/ must hold the spectra of at least one arm, got none"
    if not newer:
        known = {*groups, *comparison_groups(file), *(f"{schema.FUNCTIONAL}/{arm}" for arm in functional_groups(file))}
        yield from _unknown_groups(file, known)
    for name, group in groups.items():
        contents, attributes = contents_in(group), attributes_of(group)
        yield from _names(name, contents)
        yield from _attributes(name, attributes)
        yield from (f"{name}: {problem}" for problem in kept_problems(datasets_in(group), attributes))
        yield from _variables(f"{name}/", group, contents.variables, newer=newer)
    tables = {
        schema.COMPARISON: schema.COMPARISON_VARIABLES,
        schema.COMPARISON_BY_STEP: schema.COMPARISON_BY_STEP_VARIABLES,
    }
    for name, group in comparison_groups(file).items():
        yield from _variables(f"{name}/", group, tables[name], newer=newer)
    for arm, group in functional_groups(file).items():
        name = f"{schema.FUNCTIONAL}/{arm}"
        if arm not in groups:
            yield f"{name} must be of an arm in this file, got none of that name"
        yield from _missing(name, schema.FUNCTIONAL_ATTRIBUTES, attributes_of(group))
        yield from _variables(f"{name}/", group, schema.FUNCTIONAL_VARIABLES, newer=newer)


def _unknown_groups(file: h5py.File, known: Collection[str]) -> Iterator[str]:
    """Groups that are none of ours, nor on the way to one."""
    above = {name[:place] for name in known for place, letter in enumerate(name) if letter == "/"}
    found: list[str] = []
    file.visititems(lambda name, entry: found.append(name) if isinstance(entry, h5py.Group) else None)
    yield from (f"{name} must be in the schema, got an unknown group" for name in found if name not in {*known, *above})


def _names(name: str, contents: GroupContents) -> Iterator[str]:
    """Names that the writer would not take."""
    if not is_group_name(name):
        yield f"{name} must have a name that an arm may have, got another"
    for measure in (*contents.measures, *(contents.layer_measures or ())):
        if not is_measure_name(measure):
            yield f"{name}/{measure} must have a name that a measure may have, got another"


def _attributes(name: str, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Compare the attributes of an arm's group with the schema."""
    yield from _missing(name, (*schema.GROUP_ATTRIBUTES, *schema.TOKEN_ATTRIBUTES), attributes)
    rows_sum_to_one = attributes.get(schema.ROWS_SUM_TO_ONE, 1)
    if rows_sum_to_one not in (0, 1):
        yield f"{name} must have {schema.ROWS_SUM_TO_ONE} 0 or 1, got {rows_sum_to_one!r:.40}"
    problem = baseline_problem(name, rows_sum_to_one=rows_sum_to_one == 1)
    if problem is not None:
        yield problem
    if schema.UNAVAILABLE in attributes:
        try:
            read_reasons(attributes[schema.UNAVAILABLE])
        except ValueError as error:
            yield f"{name}: {error}"


def _missing(name: str, required: Sequence[str], found: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} must have the attribute {key}, got none" for key in required if key not in found)


def _variables(prefix: str, group: h5py.Group, variables: Sequence[Variable], *, newer: bool) -> Iterator[str]:
    """Compare a group's datasets with the schema: no more (but in a newer file), no fewer, each with type and axes."""
    found = datasets_in(group)
    variables = [variable for variable in variables if not variable.optional or variable.name in found]
    axes = {axis for variable in variables for axis in variable.dimensions}
    expected = {v.name: v for v in (*variables, *(schema.AXIS_VARIABLES[axis] for axis in sorted(axes)))}
    yield from (f"{prefix}{name} must exist, got nothing of that name" for name in expected if name not in found)
    strangers = [] if newer else [name for name in found if name not in expected]
    yield from (f"{prefix}{name} must be in the schema, got an unknown variable" for name in strangers)
    for name in (name for name in expected if name in found):
        variable, dataset = expected[name], found[name]
        if not has_type(dataset, variable):
            yield f"{prefix}{name} must be of type {variable.dtype}, got {dataset.dtype}"
        shape = tuple(found[axis].size if axis in found else -1 for axis in variable.dimensions)
        if dataset.shape != shape:
            yield f"{prefix}{name} must have shape {shape} ({', '.join(variable.dimensions)}), got {dataset.shape}"
        elif not _has_scales(dataset, variable, found):
            yield f"{prefix}{name} must have its axes labelled {', '.join(variable.dimensions)}, got other labels"


def _has_scales(dataset: h5py.Dataset, variable: Variable, found: Mapping[str, h5py.Dataset]) -> bool:
    """Whether each axis is labelled by the coordinate variable of its own group, and by nothing else."""
    if variable.dimensions == (variable.name,):
        return bool(dataset.is_scale)
    with damage(dataset.file.filename, f"the axes of {dataset.name}"):
        return [axis.values() for axis in dataset.dims] == [[found[axis]] for axis in variable.dimensions]


def _small_numbers(file: h5py.File) -> Iterator[str]:
    """Problems in what a file with whole structure says, slabs aside."""
    for name, group in measure_groups(file).items():
        yield from (f"{name}: {problem}" for problem in contradictions(_small(group)))
    compared = {name: _everything(group) for name, group in comparison_groups(file).items()}
    for name, arrays in compared.items():
        yield from comparison_problems(name, arrays)
    if schema.COMPARISON_BY_STEP in compared:
        yield from step_problems(compared[schema.COMPARISON], compared[schema.COMPARISON_BY_STEP])
    for arm, group in functional_groups(file).items():
        yield from (f"{schema.FUNCTIONAL}/{arm}: {problem}" for problem in functional_problems(_everything(group)))


def _small(group: h5py.Group) -> dict[str, NDArray[Any]]:
    """The variables that do not depend on a matrix, by name."""
    return {name: read_array(dataset) for name, dataset in datasets_in(group).items() if dataset.ndim <= 2}


def _everything(group: h5py.Group) -> dict[str, NDArray[Any]]:
    return {name: read_array(dataset) for name, dataset in datasets_in(group).items()}


def _numbers(file: h5py.File, recompute: Recompute) -> Iterator[str]:
    """Problems in the numbers of slabs."""
    for name, group in measure_groups(file).items():
        small = _small(group)
        if not any(contradictions(small)):
            yield from _contents(name, group, small, recompute)


def _contents(name: str, group: h5py.Group, small: Mapping[str, NDArray[Any]], recompute: Recompute) -> Iterator[str]:
    """Problems in the numbers of one arm."""
    contents = contents_in(group)
    matrices = ((index, violations(cells, recompute)) for index, cells in _blocks(group, contents, small))
    yield from _claims(name, small, matrices, "matrices", SPECTRUM_AXES)
    if contents.layer_measures is not None:
        outputs = _layer_blocks(group, contents.layer_measures, small)
        layers = ((index, layer_violations(spectra, recompute)) for index, spectra in outputs)
        yield from _claims(name, small, layers, "layer outputs", LAYER_AXES)
    if "attention" in datasets_in(group) and _rows_sum_to_one(group):
        kept = ((index, attention_violations(blocks)) for index, blocks in _attention_blocks(group, small))
        yield from _claims(name, small, kept, "matrices", schema.KEPT_AXES)


def _rows_sum_to_one(group: h5py.Group) -> bool:
    return bool(attributes_of(group).get(schema.ROWS_SUM_TO_ONE, 1))


def _claims(
    name: str,
    labels: Mapping[str, NDArray[Any]],
    blocks: Iterable[tuple[Mapping[str, int], Iterator[Violation]]],
    things: str,
    axes: Sequence[str],
) -> Iterator[str]:
    """One line for every broken claim: how often, and where first.

    Args:
        name: of the group.
        labels: of every axis.
        blocks: where each begins along the axes, and what its numbers break, along as many last axes as they have.
        things: what the numbers are of.
        axes: all of them.
    """
    found: dict[str, tuple[int, str]] = {}
    for starts, broken_claims in blocks:
        for claim, broken in broken_claims:
            count, first = found.get(claim, (0, ""))
            inside = dict(zip(axes[len(axes) - broken.ndim :], _first(broken), strict=True))
            where = first or cell_name(labels, (starts[axis] + inside.get(axis, 0) for axis in axes), axes)
            found[claim] = (count + int(broken.sum()), where)
    for claim, (count, first) in found.items():
        yield f"{name}: {claim}, got {count} {things} that break it, the first at {first}"


def _first(broken: NDArray[np.bool_]) -> list[int]:
    """Where the first is true."""
    return [int(place) for place in np.unravel_index(int(broken.argmax()), broken.shape)]


def _indices(axes: Sequence[str], labels: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, int]]:
    """Every position along some axes, by name."""
    for position in product(*(range(labels[axis].size) for axis in axes)):
        yield dict(zip(axes, position, strict=True))


def _slabs(
    spectra: h5py.Dataset, axes: Sequence[str], others: int
) -> Iterator[tuple[dict[str, int], tuple[slice, ...]]]:
    """A few mebibytes of all variables at a time, however long their axes are.

    Args:
        spectra: singular values; their chunks are cut through only where one is too much.
        axes: its axes but the last.
        others: how many variables hold one number for each of its spectra.

    Yields:
        Where each slab begins, and a slice for each axis.
    """
    each = (spectra.shape[-1] + others) * spectra.dtype.itemsize
    chunk = list(spectra.chunks[:-1])
    while math.prod(chunk) * each > _SLAB_BYTES and max(chunk) > 1:
        longest = chunk.index(max(chunk))
        chunk[longest] = -(-chunk[longest] // 2)
    for slab in whole_chunks(spectra.shape[:-1], tuple(chunk), each):
        yield {axis: along.start for axis, along in zip(axes, slab, strict=True)}, slab


def _blocks(
    group: h5py.Group, contents: GroupContents, small: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[dict[str, int], Cells]]:
    """A few mebibytes at a time: where they begin, and the numbers, over SPECTRUM_AXES."""
    datasets = datasets_in(group)
    names = [variable.name for variable in schema.GROUP_VARIABLES if variable.dimensions[:4] == SPECTRUM_AXES[:4]]
    ends = [f"{name}_{end}" for name in contents.estimated for end in ("lower", "upper")]
    every = [*names, *contents.measures, *ends, *(f"{name}_error" for name in contents.errors)]
    readers = {name: array_reader(datasets[name]) for name in every}
    rows_sum_to_one = _rows_sum_to_one(group)
    for starts, slab in _slabs(datasets["singular_values"], SPECTRUM_AXES, len(every)):
        arrays = {name: read(slab) for name, read in readers.items()}
        regions, sequences = slab[SPECTRUM_AXES.index("region")], slab[SPECTRUM_AXES.index("sequence")]
        sides: dict[str, NDArray[Any]] = {
            side: np.broadcast_to(
                rearrange(small[side][regions, sequences].astype(np.int64), "region sequence -> region 1 sequence 1 1"),
                arrays["status"].shape,
            )
            for side in ("rows", "columns")
        }
        yield (
            starts,
            Cells(
                **{name: arrays[name] for name in names},
                **sides,
                measures={name: arrays[name] for name in contents.measures},
                brackets={name: (arrays[f"{name}_lower"], arrays[f"{name}_upper"]) for name in contents.estimated},
                errors={name: arrays[f"{name}_error"] for name in contents.errors},
                rows_sum_to_one=rows_sum_to_one,
            ),
        )


def _layer_blocks(
    group: h5py.Group, measures: Iterable[str], small: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[dict[str, int], Spectra]]:
    """The outputs of layers, a few mebibytes at a time: where they begin, and the numbers, over LAYER_AXES."""
    datasets, names = datasets_in(group), ("singular_values", "floor_arithmetic", *measures)
    readers = {name: array_reader(datasets[f"{LAYER_OUTPUT}{name}"]) for name in names}
    for starts, slab in _slabs(datasets[f"{LAYER_OUTPUT}singular_values"], LAYER_AXES, len(names)):
        arrays = {name: read(slab) for name, read in readers.items()}
        sides = np.full(arrays["floor_arithmetic"].shape, small["output_component"].size, dtype=np.int64)
        yield (
            starts,
            Spectra(
                singular_values=arrays.pop("singular_values"),
                floor_arithmetic=arrays.pop("floor_arithmetic"),
                rows=sides,
                columns=sides,
                measures=arrays,
                rows_sum_to_one=False,
            ),
        )


def _attention_blocks(
    group: h5py.Group, small: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[dict[str, int], Iterator[NDArray[np.float32]]]]:
    """Kept attention, one head of one sequence at a time: where it is, and its rows, block by block."""
    dataset = group["attention"]
    rows, keys = dataset.shape[-2:]
    block = min(dataset.chunks[-2], max(1, _BLOCK_BYTES // (keys * dataset.dtype.itemsize)))
    for index in _indices(schema.KEPT_AXES, small):
        place = tuple(index[axis] for axis in schema.KEPT_AXES)
        yield index, (read_array(dataset, (*place, slice(start, start + block))) for start in range(0, rows, block))
