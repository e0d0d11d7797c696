"""Claims about the figure of functional rank, read back from the artists; the picture itself was looked at."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rankkit.errors import ConfigurationError
from rankkit.report.figures.functional import extra_loss_by_rank
from rankkit.report.functional_figures import draw_functional_rank
from rankkit.report.style import arm_styles
from rankkit.statistics import mean_interval
from rankkit.studies.functional import ArmCuts, FunctionalRank

RANKS = (1, 4, 16, 64)
PANELS = ("all heads", "layer 0")
ARMS = ("gpt", "unilm")


def tables(seeds: int = 3, *, panels: int = 2, scale: float = 1.0) -> dict[str, Any]:
    """ "seed panel kept_rank" of two arms."""
    draw = np.random.default_rng(4)
    fall = np.array([0.9, 0.3, 0.02, 0.0])
    return {arm: scale * fall * draw.uniform(0.8, 1.2, (seeds, panels, 4)) for arm in ARMS}


def line(axes: Axes, label: str) -> Any:
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def words(axes: Axes) -> list[str]:
    legends = axes.figure.legends
    return [text.get_text() for text in itertools.chain(*(legend.get_texts() for legend in legends))]


def test_each_panel_draws_every_seed_thinly_and_the_mean_thicker_with_its_interval() -> None:
    values = tables()
    axes = extra_loss_by_rank(values, ranks=RANKS, panels=PANELS)
    assert [panel.get_title() for panel in axes] == list(PANELS)
    for index, arm in itertools.product(range(2), ARMS):
        table = values[arm][:, index]
        mean = line(axes[index], f"_{arm} mean")
        np.testing.assert_allclose(mean.get_xydata(), np.stack([RANKS, table.mean(axis=0)], axis=1))
        assert mean.get_color() == arm_styles([arm])[arm].colour
        for seed in range(3):
            seen = line(axes[index], f"_{arm} seed {seed}")
            np.testing.assert_array_equal(seen.get_ydata(), table[seed])
            assert seen.get_linewidth() < mean.get_linewidth()
        (band,) = [one for one in axes[index].collections if one.get_label() == f"_{arm} interval"]
        corners = {tuple(point) for point in band.get_paths()[0].vertices.round(9).tolist()}
        for rank, column in zip(RANKS, table.T, strict=True):
            interval = mean_interval(column)
            if math.isnan(interval.lower):  # uncut heads lose the same, nothing, in every seed
                continue
            assert {(float(rank), round(interval.lower, 9)), (float(rank), round(interval.upper, 9))} <= corners


def test_both_axes_are_logarithmic_but_linear_around_no_loss() -> None:
    axes = extra_loss_by_rank(tables(), ranks=RANKS, panels=PANELS, threshold=0.05)
    for panel in axes:
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "symlog")
        assert panel.yaxis.get_transform().linthresh == 0.05
        assert set(line(panel, "_threshold").get_ydata()) == {0.05}
        assert any(set(one.get_ydata()) == {0.0} for one in panel.lines), "no zero line"
    assert "0.05 nats" in words(axes[0])


def test_the_cut_without_remasking_is_dashed_and_named() -> None:
    plain = tables(scale=0.5)
    (panel, _) = extra_loss_by_rank(tables(), ranks=RANKS, panels=PANELS, plain={"gpt": plain["gpt"]})
    dashed = line(panel, "_gpt plain")
    np.testing.assert_allclose(dashed.get_ydata(), plain["gpt"][:, 0].mean(axis=0))
    assert dashed.get_linestyle() == "--"
    assert not [one for one in panel.lines if one.get_label() == "_unilm plain"]
    assert "not re-masked: mixes in the future" in words(panel)
    assert "not re-masked: mixes in the future" not in words(
        extra_loss_by_rank(tables(), ranks=RANKS, panels=PANELS)[0]
    )


def test_one_seed_draws_no_band_and_says_so() -> None:
    axes = extra_loss_by_rank(tables(1), ranks=RANKS, panels=PANELS)
    assert not any(panel.collections for panel in axes)
    assert "one seed: no interval" in words(axes[0])
    assert "95% t interval over 3 seeds" in words(extra_loss_by_rank(tables(), ranks=RANKS, panels=PANELS)[0])


def test_the_rank_at_which_nothing_is_cut_is_always_named() -> None:
    every = (*(2**k for k in range(9)), 300)
    values = {"gpt": np.zeros((2, 5, len(every)))}
    axes = extra_loss_by_rank(values, ranks=every, panels=[f"layer {layer}" for layer in range(5)])
    names = [text.get_text() for text in axes[-1].get_xticklabels()]
    assert names[-1] == "300"
    assert len(names) <= 5
    single = extra_loss_by_rank({"gpt": np.zeros((2, 1, len(every)))}, ranks=every)[0]
    assert [text.get_text() for text in single.get_xticklabels()] == [str(rank) for rank in every]


def test_axes_that_are_given_are_drawn_on_and_labelled() -> None:
    figure = Figure()
    given = figure.subplots(1, 2)
    assert extra_loss_by_rank(tables(), ranks=RANKS, panels=PANELS, ax=given) == tuple(given)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra_loss": {}}, "extra_loss must hold at least one arm"),
        ({"ranks": (4, 1, 16, 64)}, r"ranks must ascend from at least 1, got \[4\.0, 1\.0"),
        ({"ranks": (0, 1, 16, 64)}, r"ranks must ascend from at least 1"),
        ({"ranks": (1, 4)}, r"extra_loss\['gpt'\] must hold 2 panels of 2 ranks for each seed, got \(2, 4\)"),
        ({"panels": ("one",)}, r"extra_loss\['gpt'\] must hold 1 panels of 4 ranks"),
        ({"threshold": 0.0}, r"threshold must be above 0, got 0\.0"),
        ({"plain": {"bert": np.zeros((3, 2, 4))}}, "plain must name arms among gpt, unilm, got bert"),
        ({"plain": {"gpt": np.full((3, 2, 4), np.nan)}}, r"plain\['gpt'\] must be finite"),
        ({"ax": [Figure().subplots()]}, "ax must hold 2 axes"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_line_is_drawn(changes: dict[str, Any], message: str) -> None:
    arguments = {"extra_loss": tables(), "ranks": RANKS, "panels": PANELS, **changes}
    with pytest.raises(ConfigurationError, match=message):
        extra_loss_by_rank(arguments.pop("extra_loss"), **arguments)


def functional_rank_of(scopes: tuple[Any, ...]) -> FunctionalRank:
    draw = np.random.default_rng(1)
    shapes = {"all": (2, 3), "layer": (2, 3, 2), "head": (2, 3, 2, 2)}
    arms = tuple(
        ArmCuts(
            arm=name,
            seeds=(0, 1),
            loss_uncut=np.ones((2, 3)),
            extra_loss={scope: draw.uniform(0, 1, (*shapes[scope], 4, 2)) for scope in scopes},
            removed_share=np.zeros((2, 3, 2, 2, 4)),
            cut_error=np.zeros((2, 3, 2, 2, 4, 2)),
        )
        for name in ARMS
    )
    return FunctionalRank(
        ranks=RANKS, scopes=scopes, sequence_length=64, prefix_length=32, documents=np.arange(3), arms=arms, pair=ARMS
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scopes", "panels"),
    [(("all",), ["all heads"]), (("layer", "head"), ["layer 0", "layer 1"]),
     (("all", "layer"), ["all heads", "layer 0", "layer 1"])],
)  # fmt: skip
def test_a_measured_run_is_drawn_with_its_means_over_sequences(
    scopes: tuple[Any, ...], panels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = functional_rank_of(scopes), []

    def listen(*arguments: Any, **named: Any) -> Any:
        calls.append((arguments, named))
        return extra_loss_by_rank(*arguments, **named)

    monkeypatch.setattr("rankkit.report.functional_figures.extra_loss_by_rank", listen)
    written = draw_functional_rank(found, tmp_path, threshold=0.02)
    assert [path.name for path in written] == ["functional_rank.png", "functional_rank.svg"]
    assert all(path.stat().st_size > 0 for path in written)
    ((remasked,), named) = calls[0]
    assert (list(named["panels"]), named["ranks"], named["threshold"]) == (panels, RANKS, 0.02)
    for arm in found.arms:
        for c, drawn in enumerate((remasked[arm.arm], named["plain"][arm.arm])):
            if "all" in scopes:
                np.testing.assert_allclose(drawn[:, 0], arm.extra_loss["all"][..., c].mean(axis=1))
            if "layer" in scopes:
                np.testing.assert_allclose(drawn[:, -2:], arm.extra_loss["layer"][..., c].mean(axis=1))


def test_single_heads_alone_are_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="scopes must hold all or layer to be drawn, got head alone"):
        draw_functional_rank(functional_rank_of(("head",)), tmp_path)
