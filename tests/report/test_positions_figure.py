"""Losses by position, read back from the artists; the pictures themselves were looked at."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from rankkit.errors import ConfigurationError
from rankkit.report.figures import losses_by_position
from rankkit.statistics import mean_interval

PAIR = "unilm \N{MINUS SIGN} gpt"
FIRST = 20
WINDOW = 5


def tables(arms=("gpt", "unilm"), seeds=3, positions=40):
    draw = np.random.default_rng(1)
    return {arm: 2 + draw.normal(0, 0.3, (seeds, positions)) for arm in arms}


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def corners(axes, label):
    (band,) = [one for one in axes.collections if one.get_label() == label]
    return {tuple(point) for point in band.get_paths()[0].vertices.round(9).tolist()}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def running_mean(row, window=WINDOW):
    return np.array([np.nanmean(row[start : start + window]) for start in range(row.size - window + 1)])


def interval_corners(positions, smooth):
    bounds = [(mean_interval(column).lower, mean_interval(column).upper) for column in smooth.T]
    return {(float(at), round(bound, 9)) for at, both in zip(positions, bounds, strict=True) for bound in both}


def test_each_seed_is_its_running_mean_at_the_centre_of_the_window_and_the_band_is_their_interval():
    given = tables()
    upper, _ = losses_by_position(given, prefix_length=FIRST, window=WINDOW)
    centres = np.arange(FIRST, FIRST + 40 - WINDOW + 1) + (WINDOW - 1) / 2
    for arm, table in given.items():
        smooth = np.stack([running_mean(row) for row in table])
        for seed, values in enumerate(smooth):
            np.testing.assert_allclose(line(upper, f"_{arm} seed {seed}").get_xydata(), np.stack([centres, values], 1))
        np.testing.assert_allclose(line(upper, f"_{arm} mean").get_ydata(), smooth.mean(axis=0))
        assert interval_corners(centres, smooth) <= corners(upper, f"_{arm} interval")
    assert "95% t interval over 3 seeds" in legend(upper)
    assert upper.get_ylabel() == "suffix loss\n(nats per token)"


def test_the_difference_is_of_equal_seeds_and_its_band_is_paired():
    given = tables()
    numbers = {"gpt": (4, 7, 9), "unilm": (9, 4, 1)}
    _, lower = losses_by_position(given, prefix_length=FIRST, window=WINDOW, seeds=numbers)
    gaps = np.stack(
        [running_mean(given["unilm"][1] - given["gpt"][0]), running_mean(given["unilm"][0] - given["gpt"][2])]
    )
    np.testing.assert_allclose(line(lower, f"_{PAIR} seed 4").get_ydata(), gaps[0])
    np.testing.assert_allclose(line(lower, f"_{PAIR} seed 9").get_ydata(), gaps[1])
    centres = line(lower, f"_{PAIR} mean").get_xdata()
    assert interval_corners(centres, gaps) <= corners(lower, f"_{PAIR} interval")
    assert "95% paired t interval over 2 seeds" in legend(lower)
    assert any(np.ptp(one.get_ydata()) == 0 and one.get_ydata()[0] == 0 for one in lower.lines), "no zero line"


def test_the_window_is_an_eighth_of_the_positions_and_the_axis_says_so_and_where_the_prefix_is():
    _, lower = losses_by_position(tables(), prefix_length=FIRST)
    assert lower.get_xlabel() == "position in the sequence (prefix: 0 to 19; running mean of 5)"
    _, lower = losses_by_position(tables(), prefix_length=0, window=1)
    assert lower.get_xlabel() == "position in the sequence"
    _, lower = losses_by_position(tables(positions=3), prefix_length=0)
    assert line(lower, f"_{PAIR} mean").get_xdata().tolist() == [0, 1, 2]


def test_positions_that_nothing_predicts_count_in_no_mean_and_a_window_of_such_is_left_out():
    hidden = tables(("bert",), positions=12)
    hidden["bert"][:, [0, 1, 2, 6]] = np.nan
    upper, _ = losses_by_position(hidden, prefix_length=0, window=3, task="masked")
    smooth = np.stack([running_mean(row[1:], 3) for row in hidden["bert"]])
    drawn = line(upper, "_bert mean")
    np.testing.assert_allclose(drawn.get_ydata(), smooth.mean(axis=0))
    assert drawn.get_xdata().tolist() == list(range(2, 11))
    assert upper.get_ylabel().startswith("masked loss")


def test_one_seed_has_no_band_and_says_so_and_one_arm_has_no_difference():
    upper, lower = losses_by_position(tables(seeds=1), prefix_length=0)
    assert not upper.collections
    assert not lower.collections
    assert "one seed: no interval" in legend(upper)
    assert "one seed: no interval" in legend(lower)
    _, lower = losses_by_position(tables(("gpt",)), prefix_length=0)
    assert lower.texts[0].get_text() == "no seed was trained in two arms: no paired difference"


ONE = {"gpt": [[1.0, 2.0]]}
APART = {"gpt": [[1.0, np.nan], [np.nan, 1.0]]}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {}, "values must hold at least one arm, got none"),
        (
            {"gpt": [1.0]},
            {},
            r"values\['gpt'\] must be an array of axes \(seed position\), not empty, got shape \(1,\)",
        ),
        (
            {"gpt": [[1.0, np.inf]]},
            {},
            r"values\['gpt'\] must be finite, or nan where nothing is predicted, got inf or",
        ),
        ({"gpt": [[1.0], [np.nan]]}, {}, r"values\['gpt'\] must be finite, or nan .* a seed of nan alone"),
        (ONE | {"b": [[1.0]]}, {}, r"same number of positions in every arm, got \{'gpt': 2, 'b': 1\}"),
        (ONE, {"window": 3}, r"window must be between 1 and 2 \(positions\), got 3"),
        (ONE, {"window": 0}, r"window must be between 1 and 2 \(positions\), got 0"),
        (ONE, {"prefix_length": -1}, "prefix_length must be at least 0, got -1"),
        (ONE, {"seeds": {"gpt": [1, 2]}}, r"seeds\['gpt'\] must hold 1 different numbers, got \[1, 2\]"),
        ({"gpt": [[1.0], [2.0]]}, {"seeds": {"gpt": [1, 1]}}, r"must hold 2 different numbers, got \[1, 1\]"),
        (ONE, {"seeds": {"b": [1]}}, "seeds must name arms among gpt, got b"),
        (ONE, {"differences": [("gpt", "b")]}, "differences must name arms among gpt, got b"),
        (APART, {}, "values must share a position with a loss over seeds and pairs, got none within 1 positions"),
        (ONE, {"ax": Figure().subplots(1, 3)}, "ax must hold 2 axes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, options, message):
    with pytest.raises(ConfigurationError, match=message):
        losses_by_position(values, **({"prefix_length": 0} | options))
