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
from rankkit.studies.experiments.verdicts import Outcome
from rankkit.training.config import ARMS


def mark(label="a < b", **changes):
    given = {"outcome": "supported", "found_as": "left - right", "mean": -1.0, "lower": -1.5, "upper": -0.5,
             "detectable": 0.4, "control": 0.2}  # fmt: skip
    return ClaimMark(label=label, **{**given, **changes})


def cell():
    return CellNumbers(arm="gpt", by_seed={0: 1.0})


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
    assert line(first, "_a < b").get_marker() != line(first, "_c > d").get_marker()
    assert [text.get_text() for text in first.texts] == ["a < b: supported", "c > d: contradicted"]
    assert first.get_xlabel() == "left - right"
    assert legend(first.figure) == [
        "supported", "contradicted", "95% interval", "below the minimum detectable effect", "± same-mask control",
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
    assert legend(axes.figure) == ["supported", "no line: no interval"]
    assert [one.get_label() for one in axes.lines if one.get_label().startswith("_a")] == ["_a < b"]


@pytest.mark.parametrize("outcome", Outcome)
def test_no_outcome_has_the_colour_of_an_arm(outcome):
    (axes,) = claims_by_quantity({"loss": (mark(outcome=str(outcome)),)})
    colours = {to_hex(style.colour) for style in arm_styles([*ARMS, *"abcde"]).values()}
    assert to_hex(line(axes, "_a < b").get_color()) not in colours


def test_every_arm_has_its_seeds_its_mean_and_its_interval():
    values = {0: 1.0, 1: 2.0, 2: 4.0}
    cells = {"pair/gpt": CellNumbers(arm="gpt", by_seed=values, reference=3.0),
             "pair/unilm": CellNumbers(arm="unilm", by_seed={1: 5.0})}  # fmt: skip
    axes, _ = numbers_by_cell({"loss": cells, "rank": {"pair/gpt": CellNumbers(arm="gpt", by_seed=values)}})
    np.testing.assert_array_equal(line(axes, "_pair/gpt seeds").get_ydata(), [1, 2, 4])
    assert to_hex(line(axes, "_pair/gpt seeds").get_color()) == arm_styles(["gpt"])["gpt"].colour.lower()
    interval = mean_interval([1.0, 2.0, 4.0])
    assert line(axes, "_pair/gpt mean").get_ydata()[0] == pytest.approx(interval.mean)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((interval.lower, interval.upper))
    assert len(axes.collections) == 1  # one seed has no interval
    np.testing.assert_array_equal(line(axes, "_seed 1").get_ydata(), [2.0, 5.0])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["pair/gpt", "pair/unilm"]
    assert axes.get_ylabel() == "loss"
    notes = ["95% t interval over 3 seeds", "one seed: no interval (pair/unilm)", "n-gram model"]
    assert legend(axes.figure)[-3:] == notes


def test_a_cross_is_the_mean_of_the_last_step_with_both_intervals():
    measure, loss = np.array([[0.0, 1.0], [5.0, 3.0], [1.0, 8.0]]), np.array([[9.0, 4.0], [8.0, 5.0], [7.0, 9.0]])
    points = {"a": ("gpt", measure, loss), "b": ("unilm", [[1.0, 2.0]], [[2.0, 1.0]])}
    axes = measure_against_loss(points, label="rank")
    (cross,) = axes.containers
    assert cross.get_label() == "_a intervals"
    (across,), (up,) = (bars.get_segments() for bars in cross.lines[2])
    x, y = mean_interval(measure[:, -1]), mean_interval(loss[:, -1])
    np.testing.assert_allclose(across, [[x.lower, y.mean], [x.upper, y.mean]])
    np.testing.assert_allclose(up, [[x.mean, y.lower], [x.mean, y.upper]])
    notes = [text.get_text() for text in axes.get_legend().get_texts()]
    assert notes[2:] == ["mean of the last step, 95% t intervals over 3 seeds", "one seed: no interval (b)"]


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
        (
            lambda: claims_by_quantity({"loss": (mark(outcome="proven"),)}),
            "outcome must be one of supported, contradicted, .*, got proven",
        ),
        (lambda: claims_by_quantity({"loss": (mark(),)}, ax=()), "ax must hold 1 axes, one per panel, got 0"),
        (lambda: numbers_by_cell({"loss": {"a": cell()}}, ax=()), "ax must hold 1 axes, one per panel, got 0"),
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
