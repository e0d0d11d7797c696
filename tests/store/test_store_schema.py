import numpy as np
import pytest

import rankkit.store
from rankkit.axes import AXES, SPECTRUM_AXES
from rankkit.store import schema
from rankkit.store.schema import MeasureDescription, measure_range, measure_variable


def test_public_names_are_sorted_and_exist() -> None:
    for module in (rankkit.store, schema):
        constants = sorted(name for name in module.__all__ if name.isupper())
        classes = sorted(name for name in module.__all__ if name[0].isupper() and not name.isupper())
        functions = sorted(name for name in module.__all__ if name.islower())
        assert [*constants, *classes, *functions] == list(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_every_dimension_of_every_variable_has_a_coordinate() -> None:
    for variable in (*schema.GROUP_VARIABLES, *schema.COMPARISON_VARIABLES):
        assert set(variable.dimensions) <= set(schema.AXIS_VARIABLES)
    assert set(schema.AXIS_VARIABLES) <= {*AXES, *schema.COMPARISON_AXES}


def test_dimensions_stand_in_the_order_of_the_axis_vocabulary() -> None:
    for variable in schema.GROUP_VARIABLES:
        assert list(variable.dimensions) == sorted(variable.dimensions, key=AXES.index)


def test_codes_are_the_positions_of_their_meanings() -> None:
    flagged = {variable.name: variable.attributes for variable in schema.GROUP_VARIABLES if variable.flags}
    assert flagged["method"]["flag_meanings"] == "gram svd krylov quadrature"
    assert np.array_equal(flagged["status"]["flag_values"], [0, 1, 2, 3])
    assert set(flagged) == {"method", "status", "valid_row", "untrained"}


def test_a_measure_carries_its_definition() -> None:
    description = MeasureDescription(long_name="rank", definition="count", source="us", units="nat")
    variable = measure_variable("rank", description)
    assert variable.dimensions == SPECTRUM_AXES
    assert variable.attributes == {"long_name": "rank", "units": "nat", "definition": "count", "source": "us"}


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [
        ("numerical_rank", 0, [4, 6]),
        ("effective_rank", 1, [4, 6]),
        ("energy_rank_90", 1, [4, 6]),
        ("mass_rank_80", 1, [4, 6]),
        ("attention_entropy", 0, np.log([8, 6])),
        ("mean_ipr", 0, [1, 1]),
        ("sink_position", 0, [8, 6]),
        ("spectral_ratio", 1, [np.inf, np.inf]),
    ],
)
def test_ranges_follow_the_size_of_the_matrix(name: str, lower: float, upper: list[float]) -> None:
    limits = measure_range(name)
    assert limits is not None
    assert limits.lower == lower
    np.testing.assert_array_equal(limits.greatest(np.array([4, 6]), np.array([8, 6])), upper)


@pytest.mark.parametrize("name", ["log_abs_det", "energy_rank_all", "decay_exponent"])
def test_a_measure_without_a_known_range_may_take_any_value(name: str) -> None:
    assert measure_range(name) is None
