"""What is told fast of spectra in order is what is told slowly of any."""

from dataclasses import fields
from functools import cached_property

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankkit.store.consistency import Cells, violations

NAN, INF = float("nan"), float("inf")
NUMBERS = st.sampled_from([NAN, -1.0, 0.0, 0.25, 0.5, 1.0, 2.0, INF])


class Slow(Cells):
    """Spectra of which nothing is known beforehand."""

    @cached_property
    def is_in_order(self) -> bool:
        return False


def cells_of(kind: type[Cells], values: NDArray[np.float64], floor: list[float], counts: list[int]) -> Cells:
    size, width = values.shape
    return kind(
        singular_values=values,
        rows=np.full(size, width),
        columns=np.full(size, width),
        floor_arithmetic=np.array(floor),
        floor_model=np.array(floor[::-1]),
        measures={},
        rows_sum_to_one=True,
        resolved=np.array(counts, dtype=np.int32),
        resolved_model=np.array(counts[::-1], dtype=np.int32),
        method=np.zeros(size, dtype=np.int8),
        status=np.zeros(size, dtype=np.int8),
        brackets={},
        errors={},
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data(), size=st.integers(1, 3), width=st.integers(0, 4), in_order=st.booleans())
def test_both_ways_find_the_same_violations(data: st.DataObject, size: int, width: int, in_order: bool) -> None:
    rows = data.draw(st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=size, max_size=size))
    floor = data.draw(st.lists(NUMBERS, min_size=size, max_size=size))
    counts = data.draw(st.lists(st.integers(-1, width + 1), min_size=size, max_size=size))
    values = np.array(rows, dtype=np.float64).reshape(size, width)
    if in_order:
        values = -np.sort(-np.abs(values), axis=-1)
        values[np.isinf(values)] = 3.0
    fast, slow = (
        {claim: broken.tolist() for claim, broken in violations(cells_of(kind, values, floor, counts), {})}
        for kind in (Cells, Slow)
    )
    assert fast == slow
    assert cells_of(Cells, values, floor, counts).is_in_order or not in_order


def test_every_field_of_the_slow_ones_is_that_of_the_fast_ones() -> None:
    assert [field.name for field in fields(Slow)] == [field.name for field in fields(Cells)]
