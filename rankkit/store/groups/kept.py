"""What spectra came from, where it was kept: queries and keys, or attention itself, read back one layer at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.consistency import Violation
from rankkit.store.door.hdf5 import DEFAULT_LIMIT, datasets_in, h5py, opened, read_array
from rankkit.store.groups.datasets import has_type
from rankkit.store.groups.tree import measure_groups
from rankkit.store.variables import Variable

__all__ = ["attention_violations", "kept_in", "kept_problems", "read_kept"]

_PAST_ONE: Final = 1e-3  # float32 rows of 1e5 entries, and softmax by blocks in half precision, sum to 1 within this
_OF_ONE_LAYER: Final = schema.KEPT_AXES[:-1]
_BY_NAME: Final[Mapping[str, Variable]] = {variable.name: variable for variable in schema.KEPT_VARIABLES}


def kept_in(source: str | Path | h5py.File, group: str, *, limit: int = DEFAULT_LIMIT) -> tuple[str, ...]:
    """Which of queries, keys and attention a group keeps.

    Args:
        source: a path, or a file from `rankkit.store.door.hdf5.opened`.
        group: such as "gpt".
        limit: bytes that one array may take in memory, where `source` is a path.

    Returns:
        Names in the order of the schema; empty where nothing was kept.

    Raises:
        SpectrumFileError: the file cannot be opened safely, or has no such group.
    """
    with _file(source, limit) as file:
        return tuple(_kept_datasets(file, group))


def read_kept(
    source: str | Path | h5py.File, group: str, index: Mapping[str, int], *, limit: int = DEFAULT_LIMIT
) -> dict[str, NDArray[np.float32]]:
    """Read what the spectra of one layer of one sequence came from, and nothing else.

    A path is looked through from end to end every time; to read many layers, open the file once and pass it.

    Args:
        source: a path, or a file from `rankkit.store.door.hdf5.opened`.
        group: such as "gpt".
        index: position (not label) along seed, step, sequence and layer.
        limit: bytes that one array may take in memory, where `source` is a path.

    Returns:
        What the group keeps of it by name: "head query feature" queries, "head key feature" keys, "head query key"
        attention, float32.

    Raises:
        ValueError: the index lacks an axis, has another, or lies outside.
        SpectrumFileError: the file cannot be opened safely, is damaged, or keeps nothing of that group.
    """
    if set(index) != set(_OF_ONE_LAYER):
        raise ValueError(
            f"index must name {', '.join(_OF_ONE_LAYER)}, got {', '.join(index) or 'nothing'}. Give one position each."
        )
    with _file(source, limit) as file:
        datasets = _kept_datasets(file, group)
        if not datasets:
            raise SpectrumFileError(
                f"{file.filename}: {group} must keep queries and keys, or attention, got neither. "
                "Measure with --keep-qk or --keep-attention."
            )
        return {name: _one_layer(dataset, index) for name, dataset in datasets.items()}


def _file(source: str | Path | h5py.File, limit: int) -> contextlib.AbstractContextManager[h5py.File]:
    return contextlib.nullcontext(source) if isinstance(source, h5py.File) else opened(source, limit=limit)


def _kept_datasets(file: h5py.File, group: str) -> dict[str, h5py.Dataset]:
    """By name, each of the type and with the axes of the schema."""
    groups = measure_groups(file)
    if group not in groups:
        raise SpectrumFileError(
            f"{file.filename} must hold group {group!r}, got {', '.join(groups)}. Choose one of them."
        )
    found = datasets_in(groups[group])
    for variable in (_BY_NAME[name] for name in _BY_NAME if name in found):
        dataset = found[variable.name]
        shape = tuple(found[axis].size if axis in found else 0 for axis in variable.dimensions)
        if not has_type(dataset, variable) or dataset.shape != shape:
            raise SpectrumFileError(
                f"{file.filename}: {dataset.name} must be of type {variable.dtype} with axes "
                f"({', '.join(variable.dimensions)}), got {dataset.dtype} of shape {dataset.shape}. Restore a copy."
            )
    return {name: found[name] for name in _BY_NAME if name in found}


def _one_layer(dataset: h5py.Dataset, index: Mapping[str, int]) -> NDArray[np.float32]:
    for axis, size in zip(_OF_ONE_LAYER, dataset.shape, strict=False):
        if not 0 <= index[axis] < size:
            raise ValueError(
                f"{axis} must be a position from 0 to {size - 1}, got {index[axis]!r}. Pass positions, not labels."
            )
    return read_array(dataset, tuple(int(index[axis]) for axis in _OF_ONE_LAYER))


def kept_problems(found: Iterable[str], attributes: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with what a group keeps, its numbers aside, one line each.

    Args:
        found: names of the group's variables.
        attributes: of the group.
    """
    both = {"queries", "keys"} & set(found)
    if len(both) == 1:
        yield f"queries and keys must be kept together, got {both.pop()} alone"
    scale = attributes.get(schema.LOGIT_SCALE)
    if both and scale is None:
        yield f"{schema.LOGIT_SCALE} must be given beside queries and keys, got none"
    if scale is not None and not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        yield f"{schema.LOGIT_SCALE} must be a finite number, got {scale!r:.40}"


def attention_violations(blocks: Iterable[NDArray[np.float32]]) -> Iterator[Violation]:
    """Every claim about matrices of attention that these numbers break; nan, for a row that failed, breaks none.

    Args:
        blocks: "... query key", the rows of the same matrices one after another.

    Yields:
        The claim, and "...", bool, true where it fails; only claims that fail somewhere.
    """
    least, greatest, row_sum = np.float32(np.inf), np.float32(-np.inf), np.float32(-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):  # nan is what a failed row holds; inf is found below
        for block in blocks:
            least = np.fmin(least, np.fmin.reduce(block, axis=(-2, -1)))
            greatest = np.fmax(greatest, np.fmax.reduce(block, axis=(-2, -1)))
            row_sum = np.fmax(row_sum, np.fmax.reduce(block.sum(axis=-1), axis=-1))
    checks = (
        ("attention must be between 0 and 1", (least < 0) | (greatest > 1 + _PAST_ONE)),
        ("rows of attention must sum to at most 1", np.asarray(row_sum > 1 + _PAST_ONE)),
    )
    yield from ((claim, np.asarray(broken)) for claim, broken in checks if np.any(broken))
