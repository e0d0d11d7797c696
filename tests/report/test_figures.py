"""Claims about what is drawn, read back from the artists; the pictures themselves were looked at."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rankkit.errors import ConfigurationError, StorageError
from rankkit.report import losses, measure_by_layer, save, spectra_by_layer
from rankkit.report.figures import measure_by_head, measure_by_step
from rankkit.report.style import arm_styles
from rankkit.statistics import mean_interval

FLOORS = {"arithmetic": 1e-7, "model": 4e-6}
STEPS = np.arange(0, 500, 50)
NO_INTERVAL = "one seed: no interval"
PAIR = "unilm \N{MINUS SIGN} gpt"


def curves(arms=("gpt", "unilm"), seeds=3, steps=STEPS):
    generator = np.random.default_rng(1)
    fall = 2.2 + 3.3 * np.exp(-steps / 100)
    return {arm: {seed: (steps, fall + generator.normal(0, 0.02, steps.size)) for seed in range(seeds)} for arm in arms}


def spectra(arms=("gpt", "unilm"), layers=4, components=64):
    decay = np.exp(-np.linspace(0.1, 0.4, layers)[:, None] * np.arange(components))
    return {arm: decay ** (1 + number / 2) for number, arm in enumerate(arms)}


def values(arms=("gpt", "unilm"), seeds=3, layers=4):
    generator = np.random.default_rng(2)
    return {arm: 40 - 5 * number + generator.normal(size=(seeds, layers)) for number, arm in enumerate(arms)}


def through(arms=("gpt", "unilm"), seeds=3, steps=4):
    generator = np.random.default_rng(3)
    return {arm: np.cumsum(generator.random((seeds, steps)), axis=1) + 9 * number for number, arm in enumerate(arms)}


def maps(seeds=3, layers=4, heads=4, **changes):
    generator = np.random.default_rng(4)
    own, change = generator.gamma(4, 20, (seeds, layers, heads)), generator.normal(0, 8, (seeds, layers, heads))
    named = {"changed": np.abs(change) > 8, "label": "effective rank, gpt", "mark_label": "changed"}
    return measure_by_head(own, change, **(named | changes))


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def containers(axes):
    return {one.get_label(): one for one in axes.containers}


def words(axes):
    legends = [legend for legend in (axes.get_legend(), *axes.figure.legends) if legend is not None]
    return [text.get_text() for text in (*axes.texts, *itertools.chain(*(legend.get_texts() for legend in legends)))]


def corners(axes, label):
    """Every vertex of a band, rounded, as a set."""
    (band,) = [one for one in axes.collections if one.get_label() == label]
    return {tuple(point) for point in band.get_paths()[0].vertices.round(9).tolist()}


def test_losses_draw_one_thin_line_per_seed_and_their_mean_thicker():
    given_curves = curves()
    upper, _ = losses(given_curves)
    for arm, runs in given_curves.items():
        mean = line(upper, f"_{arm} mean")
        np.testing.assert_allclose(mean.get_ydata(), np.mean([loss for _, loss in runs.values()], axis=0))
        for seed, (steps, loss) in runs.items():
            seen = line(upper, f"_{arm} seed {seed}")
            np.testing.assert_array_equal(seen.get_xydata(), np.stack([steps, loss], axis=1))
            assert seen.get_linewidth() < mean.get_linewidth()
        intervals = [mean_interval(column) for column in np.stack([loss for _, loss in runs.values()]).T]
        expected = {
            (float(step), round(bound, 9))
            for step, interval in zip(STEPS, intervals, strict=True) for bound in (interval.lower, interval.upper)
        }  # fmt: skip
        assert expected <= corners(upper, f"_{arm} interval")
    assert "95% t interval over 3 seeds" in words(upper)


def test_mean_loss_is_taken_at_the_steps_that_every_seed_has():
    short = {0: (STEPS, 5 - STEPS / 500), 1: (STEPS[:4], 4 - STEPS[:4] / 500)}
    upper, lower = losses({"gpt": short, "unilm": curves()["unilm"]})
    np.testing.assert_allclose(
        line(upper, "_gpt mean").get_xydata(), np.stack([STEPS[:4], 4.5 - STEPS[:4] / 500], axis=1)
    )
    assert line(lower, f"_{PAIR} seed 0").get_xdata().size == STEPS.size


@pytest.mark.parametrize("seeds", [2, 3])
def test_difference_is_taken_within_each_seed_and_its_band_is_the_paired_interval_at_every_step(seeds):
    drawn = curves(seeds=seeds)
    _, lower = losses(drawn)
    gaps = np.stack([drawn["unilm"][seed][1] - drawn["gpt"][seed][1] for seed in range(seeds)])
    for seed in range(seeds):
        np.testing.assert_allclose(line(lower, f"_{PAIR} seed {seed}").get_ydata(), gaps[seed])
    np.testing.assert_allclose(line(lower, f"_{PAIR} mean").get_ydata(), gaps.mean(axis=0))
    intervals = [mean_interval(column) for column in gaps.T]
    expected = {
        (float(step), round(bound, 9)) for step, i in zip(STEPS, intervals, strict=True) for bound in (i.lower, i.upper)
    }
    assert expected <= corners(lower, f"_{PAIR} interval")
    assert any(np.ptp(one.get_ydata()) == 0 and one.get_ydata()[0] == 0 for one in lower.lines), "no zero line"
    assert f"95% paired t interval over {seeds} seeds" in words(lower)


def test_one_seed_draws_no_band_and_says_so():
    for axes in losses(curves(seeds=1)):
        assert not axes.collections
        assert NO_INTERVAL in words(axes)
    axes = measure_by_layer(values(seeds=1), label="effective rank", swapped=values(seeds=1))
    assert not axes.containers
    assert NO_INTERVAL in words(axes)


def test_a_pair_with_one_common_seed_is_named_beside_a_pair_that_has_an_interval():
    drawn = curves(("gpt", "unilm", "gpt-full"))
    drawn["gpt-full"] = {2: drawn["gpt-full"][2]}
    _, lower = losses(drawn, differences=[("unilm", "gpt"), ("gpt-full", "gpt")])
    assert f"{NO_INTERVAL} (gpt-full \N{MINUS SIGN} gpt)" in words(lower)
    assert len(lower.collections) == 1


@pytest.mark.parametrize(
    ("arms", "label"),
    [(("gpt", "unilm"), PAIR), (("unilm", "x", "gpt"), PAIR), (("gpt", "window"), "window \N{MINUS SIGN} gpt")],
)
def test_default_difference_is_unilm_minus_gpt_or_the_second_arm_minus_the_first(arms, label):
    _, lower = losses(curves(arms))
    assert line(lower, f"_{label} mean")
    assert lower.get_ylabel() == f"{label}\n(nats per token)"


@pytest.mark.parametrize("drawn", [curves(("gpt",)), {"gpt": {0: (STEPS, STEPS)}, "unilm": {1: (STEPS, STEPS)}}])
def test_losses_say_that_there_is_no_difference_where_no_seed_has_two_arms(drawn):
    assert "no seed was trained in two arms: no paired difference" in words(losses(drawn)[1])


def test_baselines_are_drawn_at_their_loss_and_their_names_neither_overlap_nor_change_order():
    levels = {"unigram": 3.2, "bigram": 2.48, "uniform attention, gpt": 2.46, "uniform attention, unilm": 2.47}
    upper, _ = losses(curves(), baselines=levels)
    heights = [one.get_ydata()[0] for one in upper.lines if one.get_xydata().shape == (2, 2)]
    assert sorted(heights) == sorted(levels.values())
    upper.figure.draw_without_rendering()
    texts = sorted(upper.texts, key=lambda text: text.get_position()[1])
    assert [text.get_text().split()[-1] for text in texts] == ["2.46", "2.47", "2.48", "3.20"]
    boxes = [text.get_window_extent() for text in texts]
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))


def test_spectra_are_drawn_against_the_component_counted_from_one_on_a_log_axis():
    drawn = spectra()
    for layer, axes in enumerate(spectra_by_layer(drawn, floors=FLOORS)):
        assert axes.get_yscale() == "log"
        for arm, spectrum in drawn.items():
            expected = np.stack([np.arange(1, 65), spectrum[layer]], axis=1)
            np.testing.assert_array_equal(line(axes, f"_{arm}").get_xydata(), expected)


def test_both_floors_are_dashed_lines_over_shaded_ground_in_every_layer():
    floors = {"arithmetic": 2e-7, "model": [1e-6, 2e-6, 3e-6, 4e-6]}
    for layer, axes in enumerate(spectra_by_layer(spectra(), floors=floors)):
        levels = {"arithmetic": 2e-7, "model": floors["model"][layer]}
        bottom = axes.get_ylim()[0]
        assert bottom < 2e-7
        for name, level in levels.items():
            floor = line(axes, f"_{name} floor")
            assert set(floor.get_ydata()) == {level}
            assert floor.is_dashed()
        shaded = sorted(patch.get_y() + patch.get_height() for patch in axes.patches)
        np.testing.assert_allclose(shaded, sorted(levels.values()))
        np.testing.assert_allclose([patch.get_y() for patch in axes.patches], bottom)
    assert {"arithmetic floor", "model floor", "not resolved"} <= set(words(axes))


def test_quantile_bands_are_drawn_for_the_arms_that_have_them():
    drawn = spectra()
    low, high = drawn["gpt"] / 2, drawn["gpt"] ** 0.5
    for layer, axes in enumerate(
        spectra_by_layer(drawn, floors=FLOORS, bands={"gpt": (low, high)}, band_label="10-90%")
    ):
        (band,) = axes.collections
        assert to_hex(band.get_facecolor()[0]).upper() == arm_styles(["gpt"])["gpt"].colour
        ends = band.get_paths()[0].vertices
        assert {low[layer, 5], high[layer, 5]} <= set(ends[ends[:, 0] == 6, 1])
    assert "10-90%" in words(axes)


def test_a_spectrum_of_one_value_and_one_with_zeros_stay_inside_the_frame():
    (axes,) = spectra_by_layer({"gpt": [[1.0]]}, floors=FLOORS)
    assert line(axes, "_gpt").get_marker() == "o"
    (axes,) = spectra_by_layer({"gpt": [[1.0, 1e-3, 0.0]]}, floors=FLOORS)
    axes.figure.draw_without_rendering()
    assert axes.get_ylim()[0] == pytest.approx(1e-7 / 30)


@pytest.mark.parametrize("layers", [1, 4, 5, 12, 24])
def test_every_layer_has_a_panel_of_the_same_scale_and_its_title(layers):
    panels = spectra_by_layer(spectra(layers=layers), floors=FLOORS, untrained_layers=[layers - 1])
    titles = [f"layer {layer}" for layer in range(layers - 1)] + [f"layer {layers - 1}\nhardly trained"]
    assert [axes.get_title() for axes in panels] == titles
    assert len({axes.get_ylim() for axes in panels}) == 1
    numbered = sum(axes.xaxis.get_tick_params()["labelbottom"] for axes in panels)
    assert numbered == {1: 1, 4: 4, 5: 3, 12: 4, 24: 6}[layers]


@pytest.mark.parametrize("seeds", [2, 3])
def test_measure_draws_every_seed_the_mean_and_the_t_interval(seeds):
    drawn = values(seeds=seeds)
    axes = measure_by_layer(drawn, label="effective rank")
    for arm, array in drawn.items():
        dots = line(axes, f"_{arm} seeds").get_xydata()
        np.testing.assert_array_equal(dots[:, 1], array.ravel())
        np.testing.assert_array_equal(dots[:, 0].round().reshape(seeds, 4), np.tile(np.arange(4), (seeds, 1)))
        np.testing.assert_allclose(line(axes, f"_{arm} mean").get_ydata(), array.mean(axis=0))
        (bars,) = containers(axes)[f"_{arm} interval"].lines[2]
        for layer, segment in enumerate(bars.get_segments()):
            interval = mean_interval(array[:, layer])
            np.testing.assert_allclose(segment[:, 1], [interval.lower, interval.upper])
    assert axes.get_ylabel() == "effective rank"
    assert f"mean, 95% t interval over {seeds} seeds" in words(axes)


def test_swapped_values_are_hollow_and_dashed_in_the_colour_of_their_arm_and_beside_their_own():
    own, swapped = values(), {"unilm": values()["unilm"] + 3}
    axes = measure_by_layer(own, label="effective rank", swapped=swapped)
    mean, dots = line(axes, "_unilm swapped mean"), line(axes, "_unilm swapped seeds")
    np.testing.assert_allclose(mean.get_ydata(), swapped["unilm"].mean(axis=0))
    assert mean.is_dashed()
    assert not line(axes, "_unilm mean").is_dashed()
    assert (dots.get_markerfacecolor(), dots.get_markeredgecolor()) == ("white", arm_styles(["unilm"])["unilm"].colour)
    assert len({axes_line.get_xdata()[0] for axes_line in axes.lines if axes_line.get_label().endswith("mean")}) == 3
    assert "under the other arm's mask" in words(axes)


def test_untrained_layers_are_hatched_named_and_left_out_of_the_line_of_means_but_not_hidden():
    drawn = values(("gpt", "gpt-full"))
    axes = measure_by_layer(drawn, label="effective rank", untrained_layers={"gpt": [3]})
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "3\nhardly\ntrained:\ngpt"]
    (ground,) = axes.patches
    assert (ground.get_x(), ground.get_width(), ground.get_hatch()) == (2.5, 1, "////")
    np.testing.assert_array_equal(np.isnan(line(axes, "_gpt mean").get_ydata()), [False, False, False, True])
    assert not np.isnan(line(axes, "_gpt-full mean").get_ydata()).any()
    assert line(axes, "_gpt seeds").get_xdata().max() > 2.5
    every = measure_by_layer(drawn, label="effective rank", untrained_layers=[3])
    assert every.get_xticklabels()[-1].get_text() == "3\nhardly\ntrained"


def test_an_arm_has_one_colour_in_every_figure():
    arms = ("gpt", "unilm", "gpt-full", "window-64")
    upper, lower = losses(curves(arms), differences=[("window-64", "gpt")])
    (panel, *_), axes = spectra_by_layer(spectra(arms), floors=FLOORS), measure_by_layer(values(arms), label="rank")
    seen = {
        arm: {
            line(upper, f"_{arm} mean").get_color(),
            line(panel, f"_{arm}").get_color(),
            line(axes, f"_{arm} mean").get_color(),
        }
        for arm in arms
    }
    assert seen == {arm: {style.colour} for arm, style in arm_styles(arms).items()}
    assert line(lower, "_window-64 \N{MINUS SIGN} gpt mean").get_color() == arm_styles(arms)["window-64"].colour


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=5))
def test_arms_have_distinct_styles_whatever_their_order_and_the_named_ones_never_change(further):
    arms = ["gpt", "unilm", "gpt-full", *further]
    styles = arm_styles(arms)
    assert arm_styles(reversed(arms)) == styles
    assert (
        len({style.colour for style in styles.values()})
        == len({style.marker for style in styles.values()})
        == len(styles)
    )
    assert [styles[arm].colour for arm in arms[:3]] == ["#0072B2", "#D55E00", "#009E73"]


# Severity 1 of Machado, Oliveira and Fernandes (2009), on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [
    [0.4339, 0.3762, 0.1899],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0177567, 0.1094680, 0.8727755],
]  # relative to D65


def lab(colour, vision):
    parts = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.asarray(VISIONS[vision]) @ linear, 0, 1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_stay_apart_in_every_kind_of_colour_vision(vision):
    named = ["gpt", "unilm", "gpt-full", "bert", "mixed-heads", "mixed-layers"]
    colours = [style.colour for style in arm_styles([*named, *"abcde"]).values()]
    assert min(np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in itertools.combinations(colours, 2)) > 15
    assert np.linalg.norm(lab(colours[0], vision) - lab(colours[1], vision)) > 60


CASES = {
    "two arms": lambda: losses(curves(), baselines={"unigram": 3.2, "bigram": 2.48})[0],
    "one seed": lambda: losses(curves(seeds=1))[0],
    "one arm": lambda: losses(curves(("gpt",)))[0],
    "one step": lambda: losses(curves(steps=STEPS[:1]))[0],
    "three arms": lambda: losses(
        curves(("gpt", "unilm", "gpt-full")), differences=[("unilm", "gpt"), ("gpt-full", "gpt")]
    )[0],
    "spectra": lambda: spectra_by_layer(spectra(layers=2), floors=FLOORS)[0],
    "spectra of 12 layers": lambda: spectra_by_layer(
        spectra(("gpt", "unilm", "gpt-full"), 12), floors=FLOORS, untrained_layers={"gpt": [11], "unilm": [11]}
    )[0],
    "measure of 12 layers": lambda: measure_by_layer(
        values(layers=12), label="effective rank", swapped=values(layers=12), untrained_layers=[11]
    ),
    "measure with baselines": lambda: measure_by_layer(
        values(),
        label="effective rank",
        swapped=values(),
        baselines={"uniform": {"gpt": [9.0] * 4, "unilm": [1.0] * 4}},
    ),
    "measure through training": lambda: measure_by_step(
        through(), steps=[0, 10, 100, 1000], label="effective rank", swapped=through()
    ),
    "one step, one seed": lambda: measure_by_step(through(seeds=1, steps=1), steps=[7], label="effective rank"),
    "heads": lambda: maps(untrained_layers=[3])[0],
    "heads of one seed": lambda: maps(1)[0],
    "heads of a large model": lambda: maps(3, 24, 16, untrained_layers=[23])[0],
    "heads of many seeds": lambda: maps(8, 12, 12)[0],
    "measure of 32 layers": lambda: measure_by_layer(values(layers=32), label="effective rank", untrained_layers=[31]),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_cut_and_no_legend_lies_over_data(case):
    figure = CASES[case]().figure
    figure.draw_without_rendering()
    box = figure.get_tightbbox()  # inches
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()
    frames = [axes.get_window_extent() for axes in figure.axes]
    legends = [
        legend for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)) if legend is not None
    ]
    assert legends
    assert not any(legend.get_window_extent().overlaps(frame) for legend in legends for frame in frames)
    assert {text.get_fontsize() for legend in legends for text in legend.get_texts()} == {7.5}


@pytest.mark.parametrize("case", ["two arms", "spectra", "measure of 12 layers", "heads", "measure through training"])
def test_saving_gives_the_same_bytes_twice_and_from_a_second_drawing(case, tmp_path):
    axes = CASES[case]()
    first = save(axes.figure, tmp_path / "first", "name")
    second = save(axes.figure, tmp_path / "second", "name")
    third = save(CASES[case]().figure, tmp_path / "third", "name")
    assert [path.name for path in first] == ["name.png", "name.svg"]
    for paths in (second, third):
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in first]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["name.png", "name.svg"]
    png, svg = (path.read_bytes() for path in first)
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert b"Software" not in png
    assert b"date" not in svg


def test_a_pdf_is_written_where_it_is_asked_for_and_says_neither_when_nor_by_what_it_was_made(tmp_path):
    figure = CASES["two arms"]().figure
    plain = save(figure, tmp_path / "plain", "name")
    (pdf,) = save(figure, tmp_path / "asked", "name", formats=["pdf"])
    assert pdf.name == "name.pdf"
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/FontType 42" in data or b"/Subtype /Type0" in data or b"/TrueType" in data
    assert not any(word in data for word in (b"CreationDate", b"Creator", b"Producer", b"Type3"))
    again = save(figure, tmp_path / "again", "name", formats=("svg", "pdf", "png"))
    assert [path.suffix for path in again] == [".svg", ".pdf", ".png"]
    assert [again[2].read_bytes(), again[0].read_bytes()] == [path.read_bytes() for path in plain]
    assert again[1].read_bytes() == data


PDF = """
import pathlib, sys
import numpy as np
from rankkit.report import measure_by_layer, save
axes = measure_by_layer({"gpt": np.arange(8.0).reshape(2, 4), "bert": np.ones((1, 4))}, label="r", untrained_layers=[3])
save(axes.figure, pathlib.Path(sys.argv[1]), "x", formats=("png", "svg", "pdf"))
"""


def test_files_are_the_same_in_every_process(tmp_path):
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": seed}
        subprocess.run([sys.executable, "-c", PDF, str(tmp_path / seed)], check=True, env=environment)
    first, second = ([path.read_bytes() for path in sorted((tmp_path / seed).iterdir())] for seed in "12")
    assert len(first) == 3
    assert first == second


def test_saving_refuses_other_formats(tmp_path):
    figure = measure_by_layer({"gpt": [[1.0]]}, label="rank").figure
    for formats in (("png", "eps"), (), "pdf"):
        with pytest.raises(ConfigurationError, match="formats must be some of png, svg, pdf, got"):
            save(figure, tmp_path, "x", formats=formats)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_the_figure_as_it_was(tmp_path):
    upper, _ = losses(curves(), baselines={"unigram": 3.2})
    before = upper.get_position().bounds
    save(upper.figure, tmp_path, "losses")
    assert upper.get_position().bounds == before
    assert upper.get_in_layout()


def test_saving_refuses_a_name_with_a_folder_and_a_folder_that_is_a_file(tmp_path):
    figure = losses(curves())[0].figure
    for name in ("", "a/b", "a/"):
        with pytest.raises(ConfigurationError, match="name must be a file name without a folder"):
            save(figure, tmp_path, name)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StorageError, match="must be writable"):
        save(figure, tmp_path / "file" / "inner", "losses")
    assert (tmp_path / "file").read_text() == "kept"


def test_given_axes_are_drawn_on_and_none_are_added():
    figure = Figure(layout="constrained")
    grid = figure.subplots(2, 2)
    assert losses(curves(), ax=grid[0]) == tuple(grid[0])
    assert measure_by_layer(values(), label="effective rank", ax=grid[1, 0]) is grid[1, 0]
    assert spectra_by_layer(spectra(layers=1), floors=FLOORS, ax=grid[1, 1:]) == (grid[1, 1],)
    assert figure.axes == grid.ravel().tolist()
    assert all(axes.lines and axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    other = Figure().subplots(2, 2)
    assert spectra_by_layer(spectra(), floors=FLOORS, ax=other) == tuple(other.ravel())


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: losses({"gpt": {0: (STEPS, STEPS)}}, baselines={"unigram": np.nan}, ax=ax),
        lambda ax: spectra_by_layer(spectra([*"abcdef"], 2), floors=FLOORS, ax=ax),
        lambda ax: measure_by_layer(values([*"abcdef"]), label="rank", ax=ax[0]),
    ],
)
def test_given_axes_are_left_empty_when_an_argument_is_refused(draw):
    axes = Figure().subplots(1, 2)
    with pytest.raises(ConfigurationError):
        draw(axes)
    assert not any(one.lines or one.patches or one.get_ylabel() for one in axes)


def cells(axes):
    """The values of a map, "layer head", nan where there is none."""
    (mesh,) = axes.collections
    return np.ma.filled(mesh.get_array(), np.nan)


def test_heads_are_drawn_seed_below_seed_layers_upwards_their_values_beside_their_changes():
    own, change = np.arange(24.0).reshape(2, 3, 4), np.linspace(-3, 5, 24).reshape(2, 3, 4)
    changed = np.zeros((2, 3, 4), dtype=bool)
    changed[1, 2, 0] = changed[1, 0, 3] = True
    panels = measure_by_head(own, change, changed=changed, label="rank", mark_label="it changed", seeds=[5, 8],
                             layer_numbers=[0, 6, 7], head_numbers=[1, 2, 5, 9], untrained_layers=[2])  # fmt: skip
    for seed, number in enumerate((5, 8)):
        left, right = panels[2 * seed : 2 * seed + 2]
        np.testing.assert_array_equal(cells(left), own[seed])
        np.testing.assert_array_equal(cells(right), change[seed])
        assert left.get_ylabel() == f"seed {number}\nlayer"
        assert [text.get_text() for text in left.get_yticklabels()] == ["0", "6", "7*"]
        assert left.get_xlim()[0] < left.get_xlim()[1], "head 0 is on the left"
        assert left.get_ylim()[0] < left.get_ylim()[1], "layer 0 is the lowest row"
        marks = {(int(y), int(x)) for x, y in line(right, "_changed").get_xydata()}
        assert marks == {tuple(at) for at in np.argwhere(changed[seed]).tolist()}
        assert not left.lines
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == ["1", "2", "5", "9"]
    assert {"it changed", "* hardly trained layer"} <= set(words(panels[0]))
    assert "no value" not in words(panels[0])
    assert [panels[0].get_title(), panels[1].get_title()] == ["under its own mask", "change under the other arm's mask"]


def test_maps_share_their_colours_over_seeds_and_changes_are_white_at_zero():
    panels = maps(3)
    values_of, changes_of = ([axes.collections[0].get_clim() for axes in panels[side::2]] for side in (0, 1))
    assert len(set(values_of)) == len(set(changes_of)) == 1
    assert values_of[0] == (
        min(cells(axes).min() for axes in panels[::2]), max(cells(axes).max() for axes in panels[::2]),
    )  # fmt: skip
    low, high = changes_of[0]
    assert low == -high == -max(np.abs(cells(axes)).max() for axes in panels[1::2])
    mesh = panels[1].collections[0]
    assert min(mesh.cmap(mesh.norm(0.0))[:3]) > 0.95
    given_limits = maps(1, limits=(0.0, 500.0), change_limit=60.0)
    assert [axes.collections[0].get_clim() for axes in given_limits] == [(0.0, 500.0), (-60.0, 60.0)]
    still = measure_by_head(np.ones((1, 2, 2)), np.zeros((1, 2, 2)), changed=np.zeros((1, 2, 2), dtype=bool),
                            label="rank", mark_label="changed")  # fmt: skip
    assert still[1].collections[0].get_clim() == (-1.0, 1.0)


def test_a_head_without_a_value_is_grey_and_named():
    own, change = np.ones((1, 2, 2)), np.ones((1, 2, 2))
    own[0, 0, 1] = change[0, 0, 1] = np.nan
    left, right = measure_by_head(
        own, change, changed=np.zeros((1, 2, 2), dtype=bool), label="rank", mark_label="changed"
    )
    for axes in (left, right):
        assert np.isnan(cells(axes)).tolist() == [[False, True], [False, False]]
        assert to_hex(axes.get_facecolor()) == "#cccccc"
    assert "no value" in words(left)
    empty = np.full((1, 2, 2), np.nan)
    panels = measure_by_head(empty, empty, changed=np.zeros((1, 2, 2), dtype=bool), label="r", mark_label="c")
    assert np.isnan(cells(panels[0])).all()


@pytest.mark.parametrize(("layers", "heads"), [(4, 4), (24, 16), (48, 32)])
def test_numbers_of_layers_and_heads_never_touch_and_the_untrained_one_is_always_there(layers, heads):
    panels = maps(3, layers, heads, untrained_layers=[layers - 1])
    panels[0].figure.draw_without_rendering()
    left = panels[-2]
    for labels, axis in ((left.get_yticklabels(), 1), (left.get_xticklabels(), 0)):
        boxes = [label.get_window_extent() for label in labels]
        ends = [(box.y0, box.y1) if axis else (box.x0, box.x1) for box in boxes]
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
    assert left.get_yticklabels()[-1].get_text() == f"{layers - 1}*"


def test_heads_are_drawn_on_given_axes_with_colour_bars_below():
    figure = Figure(layout="constrained")
    grid = figure.subplots(2, 2)
    assert maps(2, ax=grid) == tuple(grid.ravel())
    assert len(figure.axes) == 4 + 2


@pytest.mark.parametrize("seeds", [2, 3])
def test_training_is_a_line_per_seed_their_mean_and_the_interval_at_every_step(seeds):
    drawn, steps = through(seeds=seeds), [0, 10, 100, 1000]
    axes = measure_by_step(drawn, steps=steps, label="effective rank", swapped={"gpt": drawn["gpt"] + 2})
    for arm, table in drawn.items():
        for number, seed in enumerate(table):
            np.testing.assert_array_equal(
                line(axes, f"_{arm} seed {number}").get_xydata(), np.stack([steps, seed], axis=1)
            )
        np.testing.assert_allclose(line(axes, f"_{arm} mean").get_ydata(), table.mean(axis=0))
        intervals = [mean_interval(column) for column in table.T]
        expected = {
            (float(step), round(bound, 9))
            for step, interval in zip(steps, intervals, strict=True) for bound in (interval.lower, interval.upper)
        }  # fmt: skip
        assert expected <= corners(axes, f"_{arm} interval")
    swapped = line(axes, "_gpt swapped mean")
    np.testing.assert_allclose(swapped.get_ydata(), drawn["gpt"].mean(axis=0) + 2)
    assert swapped.is_dashed()
    outline = [one.get_ydata() for one in axes.lines if one.get_label() == "_gpt swapped interval"]
    intervals = [mean_interval(column + 2) for column in drawn["gpt"].T]
    np.testing.assert_allclose(outline, [[one.lower for one in intervals], [one.upper for one in intervals]])
    notes = {f"95% t interval over {seeds} seeds", "one seed", "under the other arm's mask", "its 95% t interval"}
    assert notes <= set(words(axes))


def test_training_of_one_seed_has_no_band_and_says_so():
    alone = through(seeds=1)
    axes = measure_by_step(alone, steps=[0, 10, 100, 1000], label="effective rank", swapped=alone)
    assert not axes.collections
    assert NO_INTERVAL in words(axes)
    assert "its 95% t interval" not in words(axes)


def test_a_baseline_is_a_level_across_every_layer_in_the_colour_of_its_arm():
    levels = {"uniform": {"gpt": [9.0, 8.0, 7.0, 6.0]}, "gaussian": {"unilm": [1.0] * 4}}
    axes = measure_by_layer(values(), label="effective rank", baselines=levels)
    (drawn,) = [one for one in axes.collections if one.get_label() == "_gpt uniform"]
    for layer, segment in enumerate(drawn.get_segments()):
        assert segment.tolist() == [[layer - 0.5, levels["uniform"]["gpt"][layer]], [layer + 0.5, 9.0 - layer]]
    assert to_hex(drawn.get_color()[0]).upper() == arm_styles(["gpt"])["gpt"].colour
    assert {"uniform baseline", "gaussian baseline"} <= set(words(axes))
    styles = [one.get_linestyle() for one in axes.collections if (one.get_label() or "").endswith(("form", "sian"))]
    assert styles[0] != styles[1]


def test_a_figure_changes_neither_the_rcparams_nor_loads_pyplot():
    program = """
import sys
import rankkit.report
assert "matplotlib" not in sys.modules
import matplotlib, pathlib, tempfile
before = matplotlib.rcParams.copy()
from rankkit.report import losses, measure_by_layer, save, spectra_by_layer
from rankkit.report.figures import measure_by_head, measure_by_step
with tempfile.TemporaryDirectory() as folder:
    figure = losses({"gpt": {0: ([0, 1], [5, 4])}})[0].figure
    save(figure, pathlib.Path(folder), "losses")
measure_by_layer({"gpt": [[1.0]]}, label="rank")
spectra_by_layer({"gpt": [[1.0, 0.5]]}, floors={"arithmetic": 1e-7, "model": 1e-6})
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


GPT = {0: (STEPS, STEPS)}
BAD_LOSSES = [
    ({}, {}, r"curves must hold at least one arm, got none. Pass one."),
    ({"gpt": {}}, {}, r"curves\['gpt'\] must hold at least one seed, got none"),
    ({"gpt": {0: ([0, 1], [1.0])}}, {}, r"curves\['gpt'\]\[0\] must have one loss per step, got 2 steps and 1 losses"),
    ({"gpt": {0: ([], [])}}, {}, r"steps must be an array of axes \(step\), not empty, got shape \(0,\)"),
    ({"gpt": {0: ([[0]], [1])}}, {}, r"steps must be an array of axes \(step\), not empty, got shape \(1, 1\)"),
    ({"gpt": {0: ([0, 1], [1.0, np.nan])}}, {}, r"loss must be finite, got nan in 1 of 2 places"),
    ({"gpt": {0: ([0, 1], ["a", "b"])}}, {}, r"loss must be an array of axes \(step\), got list"),
    ({"gpt": {0: ([1, 1], [1, 2])}}, {}, r"steps must ascend, got \[1.0, 1.0\]"),
    ({"gpt": {0: [1, 2, 3]}}, {}, r"curves\['gpt'\]\[0\] must be a pair, got \[1, 2, 3\]"),
    ({"gpt": {0: ([0], [1]), 1: ([1], [1])}}, {}, r"must share at least one step over its seeds, got none"),
    ({"gpt": GPT}, {"differences": [("gpt", "bert")]}, r"differences must name arms among gpt, got bert"),
    ({"gpt": GPT}, {"differences": ["gpt"]}, r"differences must be a pair, got 'gpt'"),
    ({"gpt": GPT, "b": {1: GPT[0]}}, {"differences": [("b", "gpt")]}, r"must share a seed, got \[1\] and \[0\]"),
    ({"gpt": GPT, "b": {0: ([7], [1])}}, {}, r"the pair b, gpt must share at least one step"),
    ({"gpt": GPT}, {"baselines": {"unigram": [1, 2]}}, r"baselines\['unigram'\] must be one number"),
    ({"gpt": GPT}, {"ax": Figure().subplots(1, 3)}, r"ax must hold 2 axes, one per panel, got 3"),
]


@pytest.mark.parametrize(("given_curves", "options", "message"), BAD_LOSSES)
def test_losses_refuse(given_curves, options, message):
    with pytest.raises(ConfigurationError, match=message):
        losses(given_curves, **options)


ONE = [[1.0, 0.1]]
BAD_SPECTRA = [
    ({}, {}, r"spectra must hold at least one arm, got none"),
    (
        {"gpt": [1.0, 0.1]},
        {},
        r"spectra\['gpt'\] must be an array of axes \(layer component\), not empty, got shape \(2,\)",
    ),
    ({"gpt": [[1.0, np.inf]]}, {}, r"spectra\['gpt'\] must be finite, got inf in 1 of 2 places"),
    ({"gpt": [[3.0, 0.1]]}, {}, r"spectra\['gpt'\] must be between 0 and 1, got 0.1 to 3. Divide"),
    ({"gpt": ONE, "unilm": [*ONE, *ONE]}, {}, r"same number of layers in every arm, got \{'gpt': 1, 'unilm': 2\}"),
    ({"gpt": ONE, "unilm": [[1.0]]}, {}, r"same number of components in every arm, got \{'gpt': 2, 'unilm': 1\}"),
    ({"gpt": ONE}, {"floors": {"model": 1e-6}}, r"floors must be arithmetic and model, got \['model'\]"),
    (
        {"gpt": ONE},
        {"floors": FLOORS | {"model": 0}},
        r"floors\['model'\] must be one number or one per layer \(1\), between",
    ),
    (
        {"gpt": ONE},
        {"floors": FLOORS | {"model": [1e-6] * 3}},
        r"floors\['model'\] must be one number or one per layer",
    ),
    ({"gpt": ONE}, {"floors": FLOORS | {"model": np.nan}}, r"floors\['model'\] must be finite"),
    ({"gpt": ONE}, {"bands": {"bert": (ONE, ONE)}}, r"bands must name arms among gpt, got bert"),
    ({"gpt": ONE}, {"bands": {"gpt": (ONE, ONE, ONE)}}, r"bands\['gpt'\] must be a pair"),
    ({"gpt": ONE}, {"bands": {"gpt": ([[1.0]], [[1.0]])}}, r"must be shaped like its spectra, \(1, 2\), got \(1, 1\)"),
    ({"gpt": ONE}, {"bands": {"gpt": ([[1.0, 0.2]], ONE)}}, r"bands\['gpt'\] must be \(low, high\), got a low above"),
    ({"gpt": ONE}, {"untrained_layers": [1]}, r"untrained_layers must be between 0 and 0, got 1. Count layers from 0"),
    ({"gpt": ONE}, {"untrained_layers": {"b": [0]}}, r"untrained_layers must name arms among gpt, got b"),
    ({"gpt": ONE}, {"ax": Figure().subplots(1, 2)}, r"ax must hold 1 axes, one per panel, got 2"),
]


@pytest.mark.parametrize(("given_spectra", "options", "message"), BAD_SPECTRA)
def test_spectra_refuse(given_spectra, options, message):
    with pytest.raises(ConfigurationError, match=message):
        spectra_by_layer(given_spectra, **({"floors": FLOORS} | options))


BAD_VALUES = [
    ({}, {}, r"values must hold at least one arm, got none"),
    ({"gpt": [1.0]}, {}, r"values\['gpt'\] must be an array of axes \(seed layer\), not empty, got shape \(1,\)"),
    ({"gpt": [[1.0, np.nan]]}, {}, r"values\['gpt'\] must be finite, got nan in 1 of 2 places"),
    ({"gpt": [[1.0], [1.0, 2.0]]}, {}, r"values\['gpt'\] must be an array of axes \(seed layer\), got list"),
    ({"gpt": [[1.0]], "unilm": ONE}, {}, r"values must have the same number of layers in every arm"),
    ({"gpt": ONE}, {"swapped": {"b": ONE}}, r"swapped must name arms among gpt, got b"),
    ({"gpt": ONE}, {"swapped": {"gpt": [[1.0]]}}, r"must have the shape of its values, \(1, 2\), got \(1, 1\)"),
    ({"gpt": ONE}, {"untrained_layers": [-1]}, r"untrained_layers must be between 0 and 1, got -1"),
    (dict.fromkeys("abcdef", ONE), {}, r"arms must hold at most 5 names beyond bert, gpt, .*unilm, got \['a', "),
]


@pytest.mark.parametrize(("given_values", "options", "message"), BAD_VALUES)
def test_measure_refuses(given_values, options, message):
    with pytest.raises(ConfigurationError, match=message):
        measure_by_layer(given_values, label="rank", **options)


CUBE = np.ones((1, 2, 2))
NONE = np.zeros((1, 2, 2), dtype=bool)
BAD_HEADS = [
    (CUBE[0], CUBE, {}, r"own must be an array of axes \(seed layer head\), not empty, got shape \(2, 2\)"),
    (CUBE * np.inf, CUBE, {}, r"own must be finite, or nan for no value, got inf"),
    (CUBE, CUBE[:, :1], {}, r"change and changed must have the shape of own, \(1, 2, 2\), .* got \(1, 1, 2\)"),
    (CUBE, CUBE, {"changed": CUBE}, r"the latter of bool, got .* of float64"),
    (CUBE, CUBE, {"seeds": [1, 2]}, r"seeds must hold 1 numbers, got \[1, 2\]"),
    (CUBE, CUBE, {"head_numbers": [1]}, r"head_numbers must hold 2 numbers, got \[1\]"),
    (CUBE, CUBE, {"layer_numbers": [1]}, r"layer_numbers must name 2 layers, got \[1\]"),
    (CUBE, CUBE, {"untrained_layers": [2]}, r"untrained_layers must be between 0 and 1, got 2"),
    (CUBE, CUBE, {"limits": (3.0, 1.0)}, r"limits must ascend and change_limit must be at least 0, got 3.0, 1.0"),
    (CUBE, CUBE, {"change_limit": -1.0}, r"change_limit must be at least 0, got 1.0, 1.0 and -1.0"),
    (CUBE, CUBE, {"ax": Figure().subplots(1, 3)}, r"ax must hold 2 axes, one per panel, got 3"),
]


@pytest.mark.parametrize(("own", "change", "options", "message"), BAD_HEADS)
def test_heads_refuse(own, change, options, message):
    named = {"changed": NONE, "label": "rank", "mark_label": "changed"}
    with pytest.raises(ConfigurationError, match=message):
        measure_by_head(own, change, **(named | options))


BAD_STEPS = [
    ({}, [0, 1], {}, r"values must hold at least one arm, got none"),
    ({"gpt": ONE}, [1, 1], {}, r"steps must ascend, got \[1.0, 1.0\]"),
    ({"gpt": ONE}, [0, 1, 2], {}, r"values\['gpt'\] must hold 3 steps, got 2"),
    ({"gpt": [[1.0, np.nan]]}, [0, 1], {}, r"values\['gpt'\] must be finite"),
    ({"gpt": ONE}, [0, 1], {"swapped": {"b": ONE}}, r"swapped must name arms among gpt, got b"),
    ({"gpt": ONE}, [0, 1], {"swapped": {"gpt": [[1.0]]}}, r"swapped\['gpt'\] must hold 2 steps, got 1"),
]


@pytest.mark.parametrize(("given_values", "steps", "options", "message"), BAD_STEPS)
def test_training_refuses(given_values, steps, options, message):
    with pytest.raises(ConfigurationError, match=message):
        measure_by_step(given_values, steps=steps, label="rank", **options)


BAD_BASELINES = [
    ({"uniform": {"b": [1.0, 1.0]}}, r"baselines\['uniform'\] must name arms among gpt, got b"),
    ({"uniform": {"gpt": [1.0]}}, r"baselines\['uniform'\]\['gpt'\] must hold 2 layers, got 1"),
    ({name: {} for name in "abcd"}, r"baselines must hold at most 3 names, got a, b, c, d"),
]


@pytest.mark.parametrize(("baselines", "message"), BAD_BASELINES)
def test_baselines_refuse(baselines, message):
    with pytest.raises(ConfigurationError, match=message):
        measure_by_layer({"gpt": ONE}, label="rank", baselines=baselines)
