"""Slabs as flat mappings from names to arrays, which a journal keeps, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["slab_arrays", "slab_from"]

S = TypeVar("S", bound="DataclassInstance")


def slab_arrays(slab: DataclassInstance) -> dict[str, NDArray[Any]]:
    """The arrays of a slab by name: `field`, `field/name` of a mapping, `field/name/0` and `/1` of a mapping of pairs.

    Args:
        slab: a dataclass whose fields are arrays or numbers, mappings of such or of pairs of such, or None.

    Returns:
        As the writer would see them; a number has shape (), and None is left out.

    Raises:
        ValueError: a name in a mapping has a "/", or is empty.
    """
    return {
        path: np.asarray(value)
        for field in fields(slab)
        if getattr(slab, field.name) is not None
        for path, value in _leaves(field.name, getattr(slab, field.name))
    }


def _leaves(path: str, value: object) -> Iterator[tuple[str, ArrayLike]]:
    """What lies under a path: of mappings by name, of pairs by number."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if not name or "/" in name:
                raise ValueError(f'names in {path} must be words without a "/", got {name!r}. Rename it.')
            yield from _leaves(f"{path}/{name}", entry)
    elif isinstance(value, tuple):
        for number, entry in enumerate(value):
            yield from _leaves(f"{path}/{number}", entry)
    else:
        yield path, value  # type: ignore[misc]  # the writer refuses what is not an array


def slab_from(kind: type[S], arrays: Mapping[str, NDArray[Any]]) -> S:
    """The slab that `slab_arrays` took apart.

    Args:
        kind: its class, such as Slab, LayerSlab or KeptSlab.
        arrays: by name, all of them, in that order.

    Returns:
        One with the same arrays bit for bit; a field without any has its default.

    Raises:
        ValueError: a name belongs to no field, or a field without a default has no array.
    """
    values: dict[str, Any] = {}
    for path, array in arrays.items():
        field, *rest = path.split("/")
        match rest:
            case []:
                values[field] = array
            case [name]:
                values.setdefault(field, {})[name] = array
            case [name, _]:
                entries = values.setdefault(field, {})
                entries[name] = (*entries.get(name, ()), array)
    known = {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(kind)}
    wrong = [name for name in values if name not in known]
    wrong += [name for name, needed in known.items() if needed and name not in values]
    if wrong:
        raise ValueError(
            f"arrays must be those of a {kind.__name__}, got one too many or none for {wrong[0]!r}. "
            "Give what slab_arrays gave."
        )
    return kind(**values)
