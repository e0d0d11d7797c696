from itertools import chain

import numpy as np
import pytest

import rankkit.store
from rankkit.axes import AXES, SPECTRUM_AXES
from rankkit.store import ranges, schema, variables
from rankkit.store.contents import GroupContents
from rankkit.store.ranges import measure_range
from rankkit.store.variables import MeasureDescription, Variable, measure_variable

WHOLE = GroupContents(
    measures={"rank": MeasureDescription(long_name="rank", definition="count", source="us")},
    estimated=("rank",),
    errors=("rank",),
    layer_measures={"rank": MeasureDescription(long_name="rank", definition="count", source="us")},
)
TABLES: tuple[tuple[Variable, ...], ...] = (
    schema.ROOT_STRINGS,
    WHOLE.variables,
    schema.COMPARISON_VARIABLES,
    schema.COMPARISON_BY_STEP_VARIABLES,
    schema.FUNCTIONAL_VARIABLES,
)


def test_public_names_are_sorted_and_exist() -> None:
    for module in (rankkit.store, schema, ranges, variables):
        constants = sorted(name for name in module.__all__ if name.isupper())
        classes = sorted(name for name in module.__all__ if name[0].isupper() and not name.isupper())
        functions = sorted(name for name in module.__all__ if name.islower())
        assert [*constants, *classes, *functions] == list(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_every_dimension_of_every_variable_has_a_coordinate() -> None:
    for variable in chain(*TABLES):
        assert set(variable.dimensions) <= set(schema.AXIS_VARIABLES)
    assert set(schema.AXIS_VARIABLES) <= {*AXES, *schema.COMPARISON_AXES}


def test_dimensions_stand_in_the_order_of_the_axis_vocabulary() -> None:
    for variable in (*WHOLE.variables, *schema.FUNCTIONAL_VARIABLES):
        assert list(variable.dimensions) == sorted(variable.dimensions, key=AXES.index)


def test_every_variable_says_what_it_is_and_no_name_is_used_twice_in_a_group() -> None:
    for table in TABLES:
        assert len({variable.name for variable in table}) == len(table)
        assert all(variable.long_name for variable in table)
        computed = [variable for variable in table if variable.dtype == "float64"]
        assert all(variable.units for variable in computed)
    for variable in (*schema.COMPARISON_VARIABLES, *(v for v in WHOLE.variables if "rank" in v.name)):
        assert variable.definition, variable.name


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
        ("off_diagonal_block_rank", 0, [2, 3]),
        ("log_abs_det", -np.inf, [0, 0]),
        ("log_abs_det_bound", 0, [np.inf, np.inf]),
        ("log10_smallest_singular_value", -np.inf, [0, 0]),
        ("decay_exponent", -np.inf, [0, 0]),
        ("decay_exponent_standard_error", 0, [np.inf, np.inf]),
        ("decay_exponent_r_squared", 0, [1, 1]),
    ],
)
def test_ranges_follow_the_size_of_the_matrix(name: str, lower: float, upper: list[float]) -> None:
    limits = measure_range(name)
    assert limits is not None
    assert limits.lower == lower
    np.testing.assert_array_equal(limits.greatest(np.array([4, 6]), np.array([8, 6])), upper)


@pytest.mark.parametrize("name", ["my_measure", "energy_rank_all"])
def test_a_measure_without_a_known_range_may_take_any_value(name: str) -> None:
    assert measure_range(name) is None


DEFINED_INFINITIES = {
    "log_abs_det": -np.inf,
    "log10_smallest_singular_value": -np.inf,
    "log_abs_det_bound": np.inf,
    "spectral_ratio": np.inf,
}


def excluded(name: str, value: float, *, rows_sum_to_one: bool = True) -> bool:
    size, values = np.array([4]), np.array([[value]])
    return bool(ranges.excluded([name], values, size, size, rows_sum_to_one=rows_sum_to_one)[0, 0])


@pytest.mark.parametrize("name", [*ranges._RANGES, "energy_rank_90"])
def test_infinity_is_a_value_only_of_measures_whose_definition_gives_it(name: str) -> None:
    for infinity in (-np.inf, np.inf):
        for rows_sum_to_one in (True, False):
            allowed = DEFINED_INFINITIES.get(name) == infinity
            assert excluded(name, infinity, rows_sum_to_one=rows_sum_to_one) is not allowed
    assert not excluded(name, np.nan)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("log_abs_det", 9e-4, 2e-3),
        ("log10_smallest_singular_value", 0.0, 1e-3),
        ("attention_entropy", 1.3, 1.5),
        ("mean_ipr", 1.0, 1.1),
        ("sink_mass", 0.0, -0.1),
        ("diagonal_mass", 1.0, 1.1),
    ],
)
def test_ranges_of_attention_hold_for_no_other_matrix(name: str, inside: float, outside: float) -> None:
    assert not excluded(name, inside)
    assert excluded(name, outside)
    assert not excluded(name, outside, rows_sum_to_one=False)


@pytest.mark.parametrize(("name", "outside"), [("effective_rank", 4.1), ("stable_rank", 0.9), ("mass_at_quarter", 1.1)])
def test_ranges_of_spectra_hold_for_every_matrix(name: str, outside: float) -> None:
    assert excluded(name, outside, rows_sum_to_one=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("effective_rank", "between 1 and r"),
        ("attention_entropy", "between 0 and log m"),
        ("nuclear_norm", "between 0 and inf, finite"),
        ("log_abs_det", "between -inf and 0"),
        ("decay_exponent", "between -inf and 0, finite"),
    ],
)
def test_a_range_is_said_in_words(name: str, words: str) -> None:
    assert str(measure_range(name)) == words
