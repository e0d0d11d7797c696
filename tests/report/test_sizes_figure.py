"""A quantity over model sizes, read back from the artists; the pictures themselves were looked at."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from rankkit.errors import ConfigurationError
from rankkit.report.figures import measure_by_size
from rankkit.statistics import mean_interval

VALUES = {"gpt": {8_000_000: [5.0, 6.0, 8.0], 100_000: [2.0, 3.0]}, "unilm": {100_000: [1.0], 8_000_000: [4.0, 4.5]}}


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_seed_is_a_dot_at_its_size_and_the_mean_has_its_interval():
    axes = measure_by_size(VALUES, label="loss (nats per token)")
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "loss (nats per token)")
    assert axes.get_xlabel() == "non-embedding parameters"
    dots = line(axes, "_gpt seeds").get_xydata()
    np.testing.assert_allclose(dots[:, 0], [100_000] * 2 + [8_000_000] * 3, rtol=0.1)
    np.testing.assert_array_equal(dots[:, 1], [2, 3, 5, 6, 8])
    np.testing.assert_allclose(line(axes, "_gpt mean").get_ydata(), [2.5, 19 / 3])
    bars = {one.get_label(): one.lines[2][0].get_segments() for one in axes.containers}
    for segment, seeds in zip(bars["_gpt interval"], ([2.0, 3.0], [5.0, 6.0, 8.0]), strict=True):
        interval = mean_interval(seeds)
        np.testing.assert_allclose(segment[:, 1], [interval.lower, interval.upper])
    assert len(bars["_unilm interval"]) == 1
    assert {"mean, 95% t interval over 2 or 3 seeds", "one seed: no interval (unilm 100.0k)"} <= set(legend(axes))


def test_arms_of_one_size_stand_side_by_side_by_less_than_a_tenth_of_it():
    axes = measure_by_size(VALUES, label="rank")
    first, second = (line(axes, f"_{arm} mean").get_xdata() for arm in ("gpt", "unilm"))
    assert (first < second).all()
    np.testing.assert_allclose(first, second, rtol=0.2)


@pytest.mark.parametrize("size", [1, 37, 787_584, 4_100_000_000])
def test_one_size_of_one_seed_has_a_named_tick_and_no_interval(size):
    axes = measure_by_size({"gpt": {size: [1.0]}}, label="rank")
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert low < size < high
    assert [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert not axes.containers
    assert "one seed: no interval" in legend(axes)


def test_sizes_are_written_in_thousands_and_millions_on_given_axes():
    ax = Figure().subplots()
    assert measure_by_size(VALUES, label="rank", ax=ax) is ax
    ax.figure.draw_without_rendering()
    assert {"100k", "1M", "10M"} <= {text.get_text() for text in ax.get_xticklabels()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "values must hold at least one arm, got none"),
        ({"gpt": {}}, r"values\['gpt'\] must hold at least one size, got none"),
        ({"gpt": {0: [1.0]}}, r"values\['gpt'\] must be of sizes of at least 1, got 0"),
        ({"gpt": {8: [np.nan]}}, r"values\['gpt'\]\[8\] must be finite, got nan"),
        ({"gpt": {8: []}}, r"values\['gpt'\]\[8\] must be an array of axes \(seed\), not empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, message):
    with pytest.raises(ConfigurationError, match=message):
        measure_by_size(values, label="rank")
