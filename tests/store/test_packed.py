"""A slab is the same after it was taken apart into arrays, kept in a journal and put together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankkit.store import LayerSlab, Slab
from rankkit.store.journal.packed import slab_arrays, slab_from
from rankkit.store.journal.slabs import Journal
from rankkit.store.slabs import KeptSlab

SHAPE = (2, 3)
RANDOM = np.random.default_rng(0)


def table() -> Any:
    return RANDOM.normal(size=SHAPE)


SLAB = Slab(
    singular_values=RANDOM.normal(size=(*SHAPE, 4)),
    floor_arithmetic=table(),
    floor_model=1e-7,
    resolved=np.full(SHAPE, 3),
    resolved_model=2,
    method=np.zeros(SHAPE, dtype=np.int8),
    status=0,
    measures={"rank_stable": table(), "entropy": 0.5},
    brackets={"entropy": (table(), np.nan), "rank_stable": (0.0, table())},
    errors={"entropy": table()},
)
LEAN = Slab(
    singular_values=np.zeros(4), floor_arithmetic=0, floor_model=0, resolved=0, resolved_model=0, method=0, status=0
)  # fmt: skip
LAYER = LayerSlab(singular_values=table(), floor_arithmetic=0.0, measures={"entropy": table()[0]})
KEPT = KeptSlab(attention=RANDOM.normal(size=(2, 2)).astype(np.float32))


def leaves(value: object) -> Any:
    """Nested arrays with their types."""
    if isinstance(value, dict):
        return {name: leaves(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(leaves(entry) for entry in value)
    return None if value is None else (np.asarray(value).dtype.str, np.shape(value), np.asarray(value).tobytes())


@pytest.mark.parametrize("slab", [SLAB, LEAN, LAYER, KEPT], ids=lambda slab: type(slab).__name__)
def test_a_slab_comes_back_from_a_journal_bit_for_bit(slab: Any, tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal", {}, resume=False, force=False) as journal:
        journal.put("slab", slab_arrays(slab))
        arrays = journal.get("slab")
    assert arrays is not None
    found = slab_from(type(slab), arrays)
    for field in fields(slab):
        assert leaves(getattr(found, field.name)) == leaves(getattr(slab, field.name)), field.name


def test_names_say_where_an_array_belongs() -> None:
    assert list(slab_arrays(SLAB))[7:] == [
        "measures/rank_stable", "measures/entropy", "brackets/entropy/0", "brackets/entropy/1",
        "brackets/rank_stable/0", "brackets/rank_stable/1", "errors/entropy",
    ]  # fmt: skip
    assert list(slab_arrays(KEPT)) == ["attention"]


@dataclass
class Mapped:
    values: Any


@pytest.mark.parametrize("name", ["a/b", ""])
def test_names_that_would_not_come_back_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf'names in values must be words without a "/", got {name!r}'):
        slab_arrays(Mapped(values={name: 1.0}))


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"other": np.zeros(1)}, "other"),
        ({"other/name": np.zeros(1)}, "other"),
        ({"floor_arithmetic": None}, "floor_arithmetic"),
    ],
)
def test_arrays_of_another_slab_are_refused(changed: dict[str, Any], wrong: str) -> None:
    arrays = {name: array for name, array in (slab_arrays(LAYER) | changed).items() if array is not None}
    with pytest.raises(
        ValueError, match=rf"arrays must be those of a LayerSlab, got one too many or none for '{wrong}'"
    ):
        slab_from(LayerSlab, arrays)
