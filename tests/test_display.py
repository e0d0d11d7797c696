"""What a notebook shows: the numbers, escaped, in any theme, and short texts elsewhere."""

from __future__ import annotations

import html
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_run import FAST, measured
from small_run import new_run, run_config, trained_run
from tiny import STEPS, N

import rankkit
from rankkit.display import html_table, plus_minus, short
from rankkit.files import RunDirectory
from rankkit.operators import AttentionOperator, DenseOperator
from rankkit.studies import Measured, Run, compare_losses

HOSTILE = "<script>alert('x')</script>&\"gpt"


class Cells(HTMLParser):
    """Tags and texts of cells, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")


def shown(value: Any) -> Cells:
    """What a notebook would show of it, which is small, and a table that no theme hides."""
    text = value._repr_html_()
    found = Cells(text)
    assert set(found.tags) <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert {name for name, _ in found.attributes} <= {"style", "scope"}
    styles = ";".join(setting or "" for name, setting in found.attributes if name == "style")
    assert "background" not in styles
    assert re.findall(r"color:(\w+)", styles) == ["inherit"] * found.tags.count("caption")
    assert len(text) < 50_000
    assert len(repr(value)) < 300
    assert "tensor(" not in repr(value)
    return found


def table(cells: Cells) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in cells.rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def found(run: Run) -> Measured:
    return measured(run, run.directory.spectrum, samples=2, regions=("full", "prefix_block"))


def operator(**changes: Any) -> AttentionOperator:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 16, 8).unbind(0)
    return AttentionOperator(**{"query": query, "key": key, "mask": rankkit.Prefix(5), "scale": 0.25, **changes})


def test_cells_are_escaped_and_the_first_of_a_row_is_its_heading() -> None:
    text = html_table(HOSTILE, ("a", HOSTILE), [[HOSTILE, "1"], ["b", HOSTILE]], notes=[HOSTILE])
    assert "<script" not in text
    assert text.count(html.escape(HOSTILE)) == 5
    assert Cells(text).rows == [["a", HOSTILE], [HOSTILE, "1"], ["b", HOSTILE]]
    assert text.count('<th scope="row"') == 2


def test_facts_have_no_head() -> None:
    text = html_table("it", (), [("mask", "Causal()")])
    assert "<thead" not in text
    assert Cells(text).rows == [["mask", "Causal()"]]


@pytest.mark.parametrize(
    ("mean", "half", "sign", "text"),
    [
        (5.234, 2.345, "", "5.2 ± 2.3"), (0.02408, 0.272, "+", "+0.02 ± 0.27"), (1234.5, 345.6, "", "1,234 ± 346"),
        (3.0, math.nan, "+", "+3"), (-2.5, 0.0, "", "-2.5"), (math.nan, 1.0, "", "-"),
        (0.001234, 1e-5, "", "0.001234 ± 0.000010"),
    ],
)  # fmt: skip
def test_a_mean_has_two_digits_of_its_error(mean: float, half: float, sign: str, text: str) -> None:
    assert plus_minus(mean, half, sign=sign) == text


def test_short_numbers_have_four_digits_and_what_is_none_is_a_dash() -> None:
    assert [short(value) for value in (100.6234, 1e-9, math.inf, math.nan)] == ["100.6", "1e-09", "inf", "-"]


def test_a_spectrum_shows_its_measures_with_their_errors() -> None:
    spectrum = rankkit.spectrum(operator())
    cells = shown(spectrum)
    ranks = spectrum.effective_rank
    expected = [short(float(value)) for value in (ranks.mean(), ranks.min(), ranks.max())]
    assert table(cells)["effective_rank"][:3] == expected
    assert table(cells)["effective_rank"][3] == short(float(spectrum.errors["effective_rank"].max()))
    assert "Spectra of 2 x 3 matrices" in cells.texts
    assert (
        repr(spectrum)
        == f"Spectrum(2 x 3 matrices, 6 ok; mean effective_rank {expected[0]}; measures {len(spectrum.measures)})"
    )


def test_an_estimate_shows_brackets_and_what_is_not_known() -> None:
    spectrum = rankkit.spectrum(operator(), method="matrix-free", matrix_free=FAST)
    rows = table(shown(spectrum))
    lower, upper = spectrum.brackets["effective_rank"]
    assert rows["effective_rank, bracket"][0] == f"{short(float(lower.mean()))} to {short(float(upper.mean()))}"
    assert "effective_rank" not in rows
    other = shown(rankkit.spectrum(torch.rand(3, 5, 7)))
    assert "no attention_entropy: its definition needs rows that sum to 1, and these do not" in other.texts


def test_a_spectrum_with_failed_matrices_says_of_how_many_its_means_are() -> None:
    matrices = torch.rand(4, 6, 6)
    matrices[1, 2, 3] = math.nan
    spectrum = rankkit.spectrum(matrices)
    assert table(shown(spectrum))["effective_rank"][0].endswith(" (of 3)")
    assert "3 ok, 1 failed" in repr(spectrum)
    nothing = shown(rankkit.spectrum(torch.full((2, 3, 3), math.nan)))
    assert table(nothing)["effective_rank"][:3] == ["-", "-", "-"]


def test_operators_show_what_they_are_made_of_and_compute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a display must not compute")

    for name in ("dense", "_logits", "__matmul__", "allowed", "row_statistics"):
        monkeypatch.setattr(AttentionOperator, name, refuse)
    monkeypatch.setattr(DenseOperator, "structure", refuse)
    one = operator(softcap=30.0, sink=torch.zeros(3), labels={"layer": HOSTILE})
    rows = table(shown(one))
    assert rows["matrices"] == ["2 x 3"]
    assert rows["size"] == ["16 x 16"]
    assert rows["mask"] == ["Prefix(length=5)"]
    assert rows["queries and keys"] == ["8 features, float32"]
    assert rows["softcap"] == ["30"]
    assert rows["layer"] == [HOSTILE]
    assert "bias" not in rows
    assert repr(operator()) == (
        "AttentionOperator(matrices: 2 x 3, size: 16 x 16, device: cpu, mask: Prefix(length=5), scale: 0.25, queries and "
        "keys: 8 features, float32)"
    )
    assert repr(operator() - operator()) == "SumOperator(matrices: 2 x 3, size: 16 x 16, device: cpu)"
    dense = DenseOperator(matrix=torch.zeros(2, 3, 4, dtype=torch.bfloat16), labels={"head": 1})
    assert table(shown(dense)) == {
        "matrices": ["2"], "size": ["3 x 4"], "device": ["cpu"], "entries": ["bfloat16"], "head": ["1"]
    }  # fmt: skip


def test_a_run_shows_how_far_every_unit_is(run: Run, tmp_path: Path) -> None:
    rows = table(shown(run))
    assert rows["gpt"] == ["causal", "suffix", "finished", "finished"]
    assert rows["unilm"][0] == "prefix"
    assert repr(run) == f"Run({str(run.directory.path)!r}, arms gpt, unilm, seeds 0, 1)"
    begun = new_run(tmp_path / "run", run_config(seeds=(0,)))
    assert table(shown(begun))["gpt"][-1] == "not begun"
    begun.directory.checkpoint("gpt", 0, 4).mkdir(parents=True)
    assert table(shown(begun))["gpt"][-1] == "step 4"
    named = replace(begun, directory=RunDirectory(tmp_path / "<b>"))
    assert f"Run {tmp_path}/<b>" in shown(named).texts


def test_losses_show_what_their_difference_shows(run: Run) -> None:
    comparison = compare_losses(run)
    cells = shown(comparison)
    (difference,) = comparison.differences
    assert table(cells)["gpt"][2] == f"{comparison.arm('gpt').loss:.4f}"
    interval = difference.interval
    assert table(cells)["unilm - gpt"][2] == plus_minus(interval.mean, interval.half_width, sign="+")
    assert rankkit.studies.verdict(difference) in cells.texts
    hostile = replace(comparison, arms=(replace(comparison.arms[0], arm=HOSTILE),), differences=())
    assert HOSTILE in table(shown(hostile))


def test_a_decomposition_shows_every_row_with_its_interval(found: Measured) -> None:
    split = found.decomposition
    assert split is not None
    rows = shown(split).rows
    assert rows[0] == ["region", "layer", "gpt", "unilm", "gap", "mask effect", "learned effect", "interaction"]
    assert len(rows) == 1 + len(split.rows["effective_rank"])
    for cells, row in zip(rows[1:], split.rows["effective_rank"], strict=True):
        gap = row.effects["gap"]
        assert cells[4] == plus_minus(gap.mean, gap.half_width, sign="+")
        assert cells[1].rstrip("*~") == ("mean" if row.layer is None else str(row.layer))
        assert ("*" in cells[1]) == row.untrained
        assert ("~" in cells[1]) == row.order_matters


def test_a_decomposition_of_many_layers_shows_their_mean(found: Measured) -> None:
    split = found.decomposition
    assert split is not None
    many = replace(split, rows={name: rows * 30 for name, rows in split.rows.items()})
    cells = shown(many)
    assert {row[1].rstrip("~") for row in cells.rows[1:]} == {"mean"}
    assert "By layer: .rows['effective_rank']." in cells.texts


def test_one_seed_has_no_verdict_in_a_notebook_either(found: Measured) -> None:
    split = found.decomposition
    assert split is not None
    assert any(text.endswith("one seed, no verdict.") for text in shown(replace(split, seeds=1)).texts)


def test_a_measurement_shows_means_under_the_own_mask_and_the_split(found: Measured) -> None:
    cells = shown(found)
    of_rank = {row[1]: row[2:] for row in cells.rows if row[0] == "effective_rank"}
    for region, name in enumerate(("full", "prefix block")):
        expected = [
            short(float(np.mean(values.measures["effective_rank"][:, -1, region, 0])))
            for values in found.values.values()
        ]
        assert of_rank[name] == expected
    assert "gap" in cells.rows[-7]  # the split's own table follows
    assert f"n = {N}, sequences 2, layers 2, heads 3, step {STEPS}" in repr(found)


def test_a_display_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, torch, rankkit; before = set(sys.modules)\n"
        "s = rankkit.spectrum(torch.rand(2, 4, 4)); s._repr_html_(); repr(s)\n"
        "print({'matplotlib', 'h5py', 'IPython', 'jinja2', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
