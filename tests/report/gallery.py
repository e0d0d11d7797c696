"""Draws every figure of `rankkit.report.figures` once, from `numbers.json`, and shows it in the README: run `make page`.

Here and not in the package, because a user needs the figures and not their gallery. The call that the README shows is
the one that drew the picture; its arguments are the entries of `numbers.json`, and `gallery_numbers.py` made those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generated import written
from report.gallery_numbers import NUMBERS

from rankkit.files import write_atomically
from rankkit.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GALLERY", "Picture", "drawn", "read_numbers", "tables"]

PAGE = Path(__file__).parents[2] / "README.md"
FOLDER = NUMBERS.parent
DPI = 100  # 650 pixels across, in a cell half as wide; `rankkit.report.save` writes 160
SHADES = 256  # of each picture: colour bars need them
COLUMNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of the gallery."""

    name: str
    """Of the function."""
    call: str
    """That makes it; its free names are keys of the function's entry in numbers.json."""
    shows: str
    """What is seen: caption and alternative text."""
    simulated: bool = False
    """Whether its numbers are those of a small simulation, and not of the demo."""


GALLERY = (
    Picture(
        name="losses",
        call="losses(curves, baselines=baselines)",
        shows="Loss by step, and the paired difference below",
    ),
    Picture(
        name="losses_by_position",
        call="losses_by_position(values, prefix_length=128)",
        shows="Loss by position, and the paired difference below",
    ),
    Picture(
        name="spectra_by_layer",
        call="spectra_by_layer(spectra, floors=floors, bands=bands, untrained_layers=[3])",
        shows="Singular values of the prefix block by layer, median and middle half, over both noise floors",
    ),
    Picture(
        name="measure_by_layer",
        call='measure_by_layer(values, label="effective rank", swapped=swapped, untrained_layers=[3])',
        shows="A measure by layer, under each arm's own mask and under the other's",
    ),
    Picture(
        name="measure_by_head",
        call='measure_by_head(own, change, changed=changed, label="effective rank, gpt", mark_label=mark_label)',
        shows="One arm's heads, seed by seed, and what the other arm's mask changes",
    ),
    Picture(
        name="measure_by_step",
        call='measure_by_step(values, steps=steps, label="effective rank", swapped=swapped)',
        shows="A measure through training, under each arm's own mask and under the other's",
    ),
    Picture(
        name="measure_against_loss",
        call='measure_against_loss(points, label="effective rank, prefix block")',
        shows="A measure against the loss, a line for each seed",
    ),
    Picture(
        name="measure_by_size",
        call='measure_by_size(values, label="effective rank (simulated)")',
        shows="A measure or loss over model sizes",
        simulated=True,
    ),
    Picture(
        name="extra_loss_by_rank",
        call="extra_loss_by_rank(extra_loss, ranks=ranks, plain=plain)",
        shows="Functional rank: the loss when attention keeps k singular triplets",
    ),
    Picture(
        name="phase_diagram",
        call='phase_diagram(panels, label="causal / bidirectional", interval="95% t, 10 seeds", reference=1)',
        shows="Measures of random attention over the standard deviation of its logits",
        simulated=True,
    ),
    Picture(
        name="numbers_by_cell",
        call="numbers_by_cell(cells)",
        shows="Quantities by arm, a dot for each seed, and the model that counts",
    ),
    Picture(
        name="claims_by_quantity",
        call="claims_by_quantity(claims)",
        shows="Claims with their intervals, what the seeds could have found, and the same-mask control",
    ),
)


def read_numbers() -> dict[str, dict[str, Any]]:
    """By function, what the names in its call stand for."""
    numbers: dict[str, dict[str, Any]] = json.loads(NUMBERS.read_text(encoding="utf-8"), object_pairs_hook=_numbered)
    cells = numbers["numbers_by_cell"]["cells"]
    numbers["numbers_by_cell"]["cells"] = {
        quantity: {name: figures.CellNumbers(**cell) for name, cell in by_name.items()}
        for quantity, by_name in cells.items()
    }
    claims = numbers["claims_by_quantity"]["claims"]
    numbers["claims_by_quantity"]["claims"] = {
        quantity: tuple(figures.ClaimMark(**{**mark, "control": _or_nan(mark["control"])}) for mark in marks)
        for quantity, marks in claims.items()
    }
    return numbers


def _numbered(pairs: list[tuple[str, Any]]) -> dict[str | int, Any]:
    """Seeds and sizes are numbers, which JSON cannot have as names."""
    return {int(key) if key.isdigit() else key: value for key, value in pairs}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def drawn(picture: Picture, numbers: Mapping[str, Mapping[str, Any]]) -> Axes:
    """The first axes of a picture, made by its call."""
    found = eval(picture.call, dict(vars(figures)), dict(numbers[picture.name]))
    return found[0] if isinstance(found, tuple) else found


INTRODUCTION = """\
## Figures

Each is a function of `rankkit.report.figures` that takes plain arrays and gives matplotlib axes back, a new figure's or
those passed as `ax=`. An arm has the same colour and marker in all of them, told apart in every kind of colour vision;
intervals over seeds and noise floors are always drawn, and one seed is said to have none. `rankkit.report.save(figure,
folder, name)` writes PNG and SVG, and with `formats=("pdf",)` a PDF for a paper, the same bytes every time. These are
the demo's numbers, but for two small simulations; the arguments of every call are in
[numbers.json](experiments/figures/gallery/numbers.json), what they mean in the functions' docstrings.
"""


def tables() -> dict[str, str]:
    """The generated part of the page by the name in its markers."""
    rows = [GALLERY[start : start + COLUMNS] for start in range(0, len(GALLERY), COLUMNS)]
    lines = ["| | |", "| --- | --- |", *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]
    return {"gallery": "\n".join([INTRODUCTION, *lines, ""])}


def _cell(picture: Picture) -> str:
    path = (FOLDER / f"{picture.name}.png").relative_to(PAGE.parent)
    source = " (simulated numbers)" if picture.simulated else ""
    return f"![{picture.shows}{source}]({path}) {picture.shows}{source}: `{picture.call}`"


def _write(picture: Picture, numbers: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """As PNG of few colours, a third of the size of one with all: the README is read over networks."""
    from PIL import Image

    whole = BytesIO()
    drawn(picture, numbers).figure.savefig(whole, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    with Image.open(whole) as image:
        image.convert("RGB").quantize(SHADES, dither=Image.Dither.NONE).save(path, format="png", optimize=True)


if __name__ == "__main__":
    found = read_numbers()
    for picture in GALLERY:
        write_atomically(FOLDER / f"{picture.name}.png", partial(_write, picture, found))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
