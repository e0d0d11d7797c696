"""What the page is put together from: packed numbers, colours, drawings, intervals on one scale, tables."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankkit.report.figures import measure_by_layer
from rankkit.report.page.blocks import Cell, Forest, ForestPanel, ForestRow, Table, interval_cell
from rankkit.report.page.colours import DARK, LIGHT, arm_variables, colour_map, contrast, style_rules, visible_on
from rankkit.report.page.drawings import drawing
from rankkit.report.page.forest import drawn_forest
from rankkit.report.page.maps import attention_share, packed, script_text, unpacked
from rankkit.report.style import arm_styles
from rankkit.statistics import Interval

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028"
SVG = "{http://www.w3.org/2000/svg}"


def interval(mean: float, half: float) -> Interval:
    return Interval(mean=mean, lower=mean - half, upper=mean + half, count=3, kind="paired t over seeds")


# Packs


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.sampled_from([0.0, 1e-3, 1.0, 1e5]))
def test_a_packed_value_is_within_half_a_unit_of_the_value(values: list[float], unit: float) -> None:
    array = np.array(values)
    pack = packed(array, unit)
    assert np.abs(unpacked(pack) - array).max() <= pack["unit"] * 0.5001 + 1e-8 * np.abs(array).max() + 1e-300
    if pack["bytes"] == 1:
        assert pack["unit"] <= unit * 1.0000001


def test_one_byte_is_taken_only_where_the_errors_justify_it() -> None:
    values = np.linspace(0, 254, 50)
    assert packed(values, 1.0)["bytes"] == 1
    assert packed(values, 0.99)["bytes"] == 2
    assert packed(values, 0.0)["bytes"] == 2


def test_what_has_no_value_stays_without_one() -> None:
    values = np.array([[1.0, np.nan], [np.inf, 3.0]])
    for unit in (0.0, 1.0):
        found = unpacked(packed(values, unit))
        assert np.isnan(found).tolist() == [[False, True], [True, False]]
        assert found[[0, 1], [0, 1]] == pytest.approx([1, 3])
    assert np.isnan(unpacked(packed(np.full(3, np.nan), 0.0))).all()


def test_codes_are_little_endian() -> None:
    assert packed(np.array([0.0, 65534.0]), 0.0)["data"] == "AAD+/w=="


def test_text_in_a_script_ends_neither_it_nor_a_line() -> None:
    text = script_text({"name": HOSTILE})
    assert json.loads(text) == {"name": HOSTILE}
    assert not set("<>&\u2028\u2029") & set(text)


def test_attention_in_blocks_keeps_what_each_query_gives_out() -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(10), size=(2, 10))
    found = attention_share(attention, 4)
    assert found.shape == (2, 4, 4)
    np.testing.assert_allclose(found.sum(axis=-1), 1)
    np.testing.assert_allclose(found[:, 0, 0], attention[:, :2, :2].sum(axis=-1).mean(axis=-1))
    np.testing.assert_array_equal(attention_share(attention, 64), attention)


# Colours


@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_every_colour_of_an_arm_stands_out_from_both_grounds(ground: str) -> None:
    for style in arm_styles(["gpt", "unilm", "gpt-full", "a", "b", "c", "d", "e"]).values():
        assert contrast(visible_on(ground, style.colour), ground) >= 3


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


def test_the_colours_of_the_paper_stay_where_they_can_be_seen() -> None:
    assert visible_on(LIGHT, "#0072b2") == "#0072b2"
    rules = style_rules(arm_variables(["gpt"]))
    assert "--c0072b2:#0072b2" in rules
    assert "prefers-color-scheme:dark" in rules


def test_a_colour_map_runs_from_its_beginning_to_its_end() -> None:
    assert colour_map("cividis", 3) == ["#00224e", "#7d7c78", "#fee838"]


# Drawings


def test_a_drawing_has_no_style_and_no_colour_that_the_page_cannot_change() -> None:
    axes = measure_by_layer(
        {"gpt": [[1.0, 2.0], [2.0, 3.0]], "unilm": [[2.0, 2.0], [4.0, 3.0]]}, label=HOSTILE.strip("\u2028")
    )
    one = drawing(axes, "a", says=HOSTILE, caption="", arm_colours=arm_variables(["gpt", "unilm"]))
    root = ElementTree.fromstring(one.svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == HOSTILE
    elements = list(root.iter())
    assert {element.tag for element in elements} <= {
        f"{SVG}{name}" for name in ("svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect")
    }
    assert not [element for element in elements if "style" in element.attrib]
    assert "c0072b2" in one.svg
    assert not re.findall(r"(?:fill|stroke)=\"#(?:222222|000000|ffffff|0072b2|d55e00)\"", one.svg.lower())
    assert not re.findall(r"\.\d{2}", "".join(element.get("d", "") for element in elements))


def test_identifiers_of_a_drawing_are_its_own_and_lead_somewhere() -> None:
    axes = measure_by_layer({"gpt": [[1.0, 2.0], [2.0, 3.0]]}, label="rank")
    root = ElementTree.fromstring(drawing(axes, "key7", says="", caption="", arm_colours={}).svg)
    known = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(known) == len(set(known))
    assert all(str(name).startswith("key7") for name in known)
    used = {str(element.get("href"))[1:] for element in root.iter() if element.get("href")}
    used |= {match for element in root.iter() for match in re.findall(r"url\(#(\w+)\)", element.get("clip-path", ""))}
    assert used == set(known)


# Forests


def forest(*rows: ForestRow) -> Forest:
    return Forest(
        key="a", panels=(ForestPanel(title="gap", rows=rows), ForestPanel(title="mask", rows=rows)), says="", caption=""
    )


def test_zero_stands_in_the_middle_and_intervals_on_their_side_of_it() -> None:
    rows = [
        ForestRow(label="mean", interval=interval(2.0, 1.0), control=0.5, text="", strong=True),
        ForestRow(label="layer", interval=interval(-2.0, 3.0), control=math.nan, text=""),
    ]
    found = drawn_forest(forest(*rows))
    for panel in found.panels:
        assert panel.zero == pytest.approx((panel.left + panel.right) / 2, abs=0.06)
        above, across = panel.rows
        assert panel.zero < above.start < above.x < above.end <= panel.right
        assert above.resolved
        assert above.band is not None
        assert across.start < across.x < panel.zero < across.end
        assert not across.resolved
        assert across.band is None
    assert found.panels[0].right < found.panels[1].left


def test_an_interval_wider_than_the_axis_is_cut_and_says_so() -> None:
    narrow = [
        ForestRow(label=str(n), interval=interval(0.5, 1.0), control=math.nan, text="", strong=n == 0) for n in range(9)
    ]
    wide = ForestRow(label="wide", interval=interval(0.0, 100.0), control=math.nan, text="")
    panel = drawn_forest(forest(*narrow, wide)).panels[0]
    assert [row.is_cut for row in panel.rows] == [(False, False)] * 9 + [(True, True)]
    assert panel.rows[-1].start == panel.left
    assert panel.rows[-1].end == panel.right


def test_rows_without_an_interval_are_drawn_as_points() -> None:
    alone = Interval(mean=1.0, lower=math.nan, upper=math.nan, count=1, kind="t")
    (row,) = drawn_forest(forest(ForestRow(label="", interval=alone, control=math.nan, text=""))).panels[0].rows
    assert not row.has_interval
    assert not row.resolved


# Tables


def test_an_interval_takes_three_columns_of_a_csv() -> None:
    rows = (("0", interval_cell(interval(1.23456, 0.5), 1), "yes"), ("1", Cell("-", ("",)), "no"))
    table = Table(caption="", headings=("layer", "gap", "ok"), rows=rows)
    assert table.csv_headings == ("layer", "gap", "gap lower", "gap upper", "ok")
    assert table.rows[0][1] == Cell("+1.2 ± 0.5", ("1.23456", "0.73456", "1.73456"))
    assert table.numeric == (False, True, False)
