"""Claims, numbers and correlations as they are drawn, read back from the artists; the pictures themselves were looked at."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from rankkit.errors import ConfigurationError
from rankkit.report.figures import CellNumbers, ClaimMark, claims_by_quantity, measure_against_loss, numbers_by_cell
from rankkit.report.style import arm_styles, save
from rankkit.statistics import mean_interval


def mark(label="a < b", **changes):
    given = {"outcome": "supported", "found_as": "left - right", "mean": -1.0, "lower": -1.5, "upper": -0.5,
             "detectable": 0.4, "control": 0.2}  # fmt: skip
    return ClaimMark(label=label, **{**given, **changes})


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def legend(figure):
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_every_claim_has_its_interval_its_words_and_its_colour():
    first, second = claims_by_quantity(
        {"loss": (mark(), mark("c > d", outcome="contradicted")), "rank": (mark("e < f"),)}
    )
    assert [one.get_title(loc="left") for one in (first, second)] == ["loss", "rank"]
    np.testing.assert_array_equal(line(first, "_a < b interval").get_xdata(), [-1.5, -0.5])
    np.testing.assert_array_equal(line(first, "_a < b").get_xdata(), [-1.0])
    assert line(first, "_a < b").get_color() != line(first, "_c > d").get_color()
    assert [text.get_text() for text in first.texts] == ["a < b: supported", "c > d: contradicted"]
    assert first.get_xlabel() == "left - right"
    assert legend(first.figure) == [
        "supported", "contradicted", "below the minimum detectable effect", "± same-mask control",
    ]  # fmt: skip


def test_what_could_be_detected_and_the_control_lie_around_zero():
    (axes,) = claims_by_quantity({"loss": (mark(),)})
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 0].min(), band[:, 0].max()) == (-0.4, 0.4)
    assert any(list(one.get_xdata()) == [-0.2, 0.2] and one.get_marker() == "|" for one in axes.lines)


def test_one_seed_is_drawn_without_an_interval():
    nothing = dict.fromkeys(("lower", "upper", "detectable", "control"), math.nan)
    (axes,) = claims_by_quantity({"loss": (mark(**nothing),)})
    assert not axes.collections
    assert [one.get_label() for one in axes.lines if one.get_label().startswith("_a")] == ["_a < b"]


def test_every_arm_has_its_seeds_its_mean_and_its_interval():
    values = {0: 1.0, 1: 2.0, 2: 4.0}
    cells = {"pair/gpt": CellNumbers(arm="gpt", by_seed=values, reference=3.0),
             "pair/unilm": CellNumbers(arm="unilm", by_seed={1: 5.0})}  # fmt: skip
    (axes,) = numbers_by_cell({"loss": cells})
    np.testing.assert_array_equal(line(axes, "_pair/gpt seeds").get_ydata(), [1, 2, 4])
    assert to_hex(line(axes, "_pair/gpt seeds").get_color()) == arm_styles(["gpt"])["gpt"].colour.lower()
    interval = mean_interval([1.0, 2.0, 4.0])
    assert line(axes, "_pair/gpt mean").get_ydata()[0] == pytest.approx(interval.mean)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((interval.lower, interval.upper))
    assert len(axes.collections) == 1  # one seed has no interval
    np.testing.assert_array_equal(line(axes, "_seed 1").get_ydata(), [2.0, 5.0])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["pair/gpt", "pair/unilm"]
    assert legend(axes.figure)[-1] == "n-gram model"


def test_a_course_of_training_is_a_line_for_each_seed_and_one_checkpoint_a_point():
    measure, loss = np.arange(6.0).reshape(2, 3), -np.arange(6.0).reshape(2, 3)
    axes = measure_against_loss({"pair/gpt": ("gpt", measure, loss), "none/gpt": ("gpt", measure, loss)}, label="rank")
    np.testing.assert_array_equal(line(axes, "_pair/gpt seed 1").get_xydata(), [[3, -3], [4, -4], [5, -5]])
    first, second = (line(axes, f"_{name} seed 0") for name in ("pair/gpt", "none/gpt"))
    assert first.get_color() == second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    (points,) = measure_against_loss({"a": ("gpt", [[1.0]], [[2.0]])}, label="rank").lines
    assert points.get_linestyle() == "None"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: claims_by_quantity({}), "panels must hold at least one panel, got none"),
        (lambda: claims_by_quantity({"loss": ()}), r"panels\['loss'\] must hold at least one claim, got none"),
        (lambda: claims_by_quantity({"loss": (mark(mean=math.nan),)}), r"panels\['loss'\] must be finite, got nan"),
        (lambda: numbers_by_cell({}), "panels must hold at least one panel, got none"),
        (lambda: numbers_by_cell({"loss": {}}), r"panels\['loss'\] must hold at least one arm, got none"),
        (
            lambda: numbers_by_cell({"loss": {"a": CellNumbers(arm="gpt", by_seed={0: math.inf})}}),
            r"panels\['loss'\]\['a'\] must be finite, got inf",
        ),
        (lambda: measure_against_loss({}, label=""), "points must hold at least one arm, got none"),
        (
            lambda: measure_against_loss({"a": ("gpt", [[1.0, 2.0]], [[1.0]])}, label=""),
            r"points\['a'\] must hold a loss for every measure, got shapes \(1, 2\) and \(1, 1\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ConfigurationError, match=message):
        draw()


def test_the_same_claims_give_the_same_bytes_and_no_global_state_changes(tmp_path):
    before = dict(mpl.rcParams)
    files = [save(claims_by_quantity({"loss": (mark(),)})[0].figure, tmp_path / name, "x") for name in "ab"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert dict(mpl.rcParams) == before
