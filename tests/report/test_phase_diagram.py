"""Claims about curves over the logit std, read back from the artists; the pictures themselves were looked at."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from rankkit.errors import ConfigurationError
from rankkit.report import experiment_figures
from rankkit.report.experiment_figures import draw_random_logits
from rankkit.report.figures import phase_diagram
from rankkit.report.style import save
from rankkit.statistics import mean_interval
from rankkit.studies.experiments.findings import Tolerance
from rankkit.studies.experiments.random_logits import RandomLogits
from rankkit.studies.experiments.random_logits_config import (
    CrossingsConfig,
    ExpectedRow,
    MatricesConfig,
    RandomLogitsConfig,
    ValuesConfig,
)

STDS = np.array([0.1, 0.3, 1.0, 2.0])
NONE = np.full(4, np.nan)


def curve(factor=1.0, half=0.1):
    return STDS, factor / STDS, np.full(4, half)


def draw(panels=None, **changes):
    given = {"label": "ratio", "interval": "95% t interval, 3 seeds"} | changes
    return phase_diagram(panels or {"rank": {"a": curve(), "b": curve(2)}, "norm": {"b": curve(3)}}, **given)


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def words(axes):
    legends = [one.get_legend() for one in axes[0].figure.axes if one.get_legend() is not None]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_every_panel_has_its_curves_its_title_and_a_logarithmic_axis():
    axes = draw()
    assert [one.get_title(loc="left") for one in axes] == ["rank", "norm"]
    np.testing.assert_array_equal(line(axes[0], "b").get_xydata(), np.stack([STDS, 2 / STDS], axis=1))
    np.testing.assert_array_equal(line(axes[1], "b").get_xydata(), np.stack([STDS, 3 / STDS], axis=1))
    assert [one.get_xscale() for one in axes] == ["log", "log"]
    assert [one.get_yscale() for one in axes] == ["linear", "linear"]
    assert axes[0].figure.get_supxlabel() == "standard deviation of the logits"
    assert axes[0].figure.get_supylabel() == "ratio"


def test_a_line_keeps_its_look_in_every_panel_and_no_two_look_alike():
    axes = draw({"rank": {str(name): curve(name) for name in range(1, 9)}, "norm": {"8": curve(3), "2": curve(1)}})
    looks = [(to_hex(one.get_color()), one.get_linestyle()) for one in axes[0].lines]
    assert len(set(looks)) == len({colour for colour, _ in looks}) == 8
    for name in ("2", "8"):
        first, second = (line(one, name) for one in axes)
        assert to_hex(first.get_color()) == to_hex(second.get_color())
        assert first.get_linestyle() == second.get_linestyle()


def test_bands_are_the_half_widths_and_are_explained():
    axes = draw()
    band = axes[0].collections[0]
    corners = {tuple(point) for point in band.get_paths()[0].vertices.round(9).tolist()}
    assert {(float(x), round(1 / x + sign * 0.1, 9)) for x in STDS for sign in (-1, 1)} <= corners
    assert words(axes) == ["a", "b", "95% t interval, 3 seeds"]


def test_no_interval_is_drawn_where_there_is_none_and_the_legend_says_so():
    axes = draw({"rank": {"a": (STDS, 1 / STDS, NONE)}})
    assert not axes[0].collections
    assert words(axes) == ["a", "no intervals"]


def test_points_lie_where_they_were_given_in_the_colour_of_their_line():
    axes = draw(points={"rank": {"b": ([0.5], [4.0])}}, points_label="equal means", reference=4.0)
    marks = line(axes[0], "_b points")
    np.testing.assert_array_equal(marks.get_xydata(), [[0.5, 4.0]])
    assert to_hex(marks.get_markerfacecolor()) == to_hex(line(axes[0], "b").get_color())
    for one in axes:
        assert any(np.ptp(level.get_ydata()) == 0 and level.get_ydata()[0] == 4.0 for level in one.lines)
    assert "equal means" in words(axes)


def test_a_logarithmic_panel_shows_a_factor_of_two_around_its_reference_and_no_band_below_zero():
    flat = (STDS, np.full(4, 1.01), np.full(4, 5.0))
    (axes,) = draw({"rank": {"a": flat}}, reference=1.0, logarithmic=True)
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 0 < low <= 0.5
    assert high >= 2
    vertices = axes.collections[0].get_paths()[0].vertices
    assert vertices[:, 1].min() > 0


@pytest.mark.parametrize(
    ("panels", "changes", "message"),
    [
        ({}, {}, None),
        ({"rank": {}}, {}, r"panels\['rank'\] must hold at least one line, got none"),
        ({"rank": {"a": (STDS, [1, 2, np.nan, 3], NONE)}}, {}, r"panels\['rank'\]\['a'\] must be finite, got nan"),
        ({"rank": {"a": (STDS, [1, 2], NONE)}}, {}, r"must have shape \(4,\) as its stds have, got \(2,\)\. Give one"),
        ({"rank": {"a": (STDS, 1 / STDS, [0.1])}}, {}, r"half widths of .* must have shape \(4,\), got \(1,\)\. Give one"),
        ({"rank": {"a": (STDS - 0.1, STDS, NONE)}}, {}, r"must be positive on a logarithmic axis, got 0\.0\. Leave 0 out"),
        ({"rank": {"a": (STDS, STDS - 0.1, NONE)}}, {"logarithmic": True}, r"must be positive on a logarithmic axis"),
        (None, {"points": {"rank": {"c": ([1.0], [1.0])}}}, r"points\['rank'\]\['c'\] must be of a line that is drawn"),
        (None, {"points": {"size": {"a": ([1.0], [1.0])}}}, r"points\['size'\]\['a'\] must be of a line that is drawn"),
        (None, {"points": {"rank": {"a": ([1.0], [1.0, 2.0])}}}, r"points\['rank'\]\['a'\] must have shape \(1,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(panels, changes, message):
    if message is None:
        with pytest.raises(ConfigurationError, match="panels must hold at least one panel, got none"):
            phase_diagram({}, label="", interval="")
        return
    with pytest.raises(ConfigurationError, match=message):
        draw(panels, **changes)


def test_the_same_curves_give_the_same_bytes_and_no_global_state_changes(tmp_path):
    before = dict(mpl.rcParams)
    files = [save(draw(points={"rank": {"a": ([1.0], [2.0])}})[0].figure, tmp_path / name, "x") for name in "ab"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert dict(mpl.rcParams) == before


# What feeds it.


def result(**changes):
    """Causal 2, 2, 1, 1 against bidirectional 1, 1, 2, 2, and a share of the seed that is three times larger there."""
    family = MatricesConfig(n=8, head_dim=2, stds=(0.0, 0.5, 1.0, 2.0))
    settings = {"seeds": (0, 1, 2), "measures": ("effective_rank", "stable_rank"), "matrices": (family,)} | changes
    config = RandomLogitsConfig(**settings)
    share = np.array([0.0, 0.1, 0.2])
    values = np.array([[2.0, 2, 1, 1], [1, 1, 2, 2]])[..., None] + np.array([1, 3])[:, None, None] * share
    return RandomLogits(config=config, values={family.family: dict.fromkeys(("effective_rank", "stable_rank"), values)})


def test_ratios_are_of_means_with_the_paired_interval_and_cross_one_where_the_means_are_equal():
    pair = CrossingsConfig(measures=("stable_rank",), seeds=(0,))
    panels, points = experiment_figures._ratios(result(crossings=(pair,)), pair)
    ((stds, ratio, half),) = panels["stable rank"].values()
    np.testing.assert_array_equal(stds, [0.5, 1.0, 2.0])
    np.testing.assert_allclose(ratio, [2.1 / 1.3, 1.1 / 2.3, 1.1 / 2.3])
    expected = mean_interval(np.array([0.0, -0.2, -0.4])).half_width
    np.testing.assert_allclose(half, [expected / 1.3, expected / 2.3, expected / 2.3])
    (crossing,) = points["stable rank"].values()
    assert crossing == ([pytest.approx(0.5 + 0.5 * 0.8 / 2.0)], [1.0])


def test_an_experiment_draws_a_figure_per_pair_of_masks_and_one_per_family_with_expectations(tmp_path):
    pair = CrossingsConfig(measures=("stable_rank",), seeds=(0,))
    row = ExpectedRow(n=8, head_dim=2, mask="causal", std=1.0, expected=("1.1",))
    claim = ValuesConfig(measures=("effective_rank",), seeds=(0,), tolerance=Tolerance(relative=0.1), rows=(row,))
    files = draw_random_logits(result(crossings=(pair,), values=(claim,)), tmp_path)
    stems = ["causal_over_bidirectional"] * 2 + ["measures_dot-product_8_2"] * 2
    assert [path.stem for path in files] == stems
    assert all(path.stat().st_size > 0 for path in files)
    points = experiment_figures._expected(result(values=(claim,)), result().config.matrices[0])
    assert points == {"effective rank": {"causal": ([1.0], [1.1])}}


def test_too_few_standard_deviations_draw_nothing(tmp_path):
    family = MatricesConfig(n=8, head_dim=2, stds=(0.0, 1.0, 2.0))
    pair = CrossingsConfig(measures=("stable_rank",), seeds=(0,))
    row = ExpectedRow(n=8, head_dim=2, mask="causal", std=1.0, expected=("1",))
    claim = ValuesConfig(measures=("stable_rank",), seeds=(0,), rows=(row,))
    config = RandomLogitsConfig(
        seeds=(0,), measures=("stable_rank",), matrices=(family,), crossings=(pair,), values=(claim,)
    )
    found = RandomLogits(config=config, values={family.family: {"stable_rank": np.ones((2, 3, 1))}})
    assert draw_random_logits(found, tmp_path) == []
