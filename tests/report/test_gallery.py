"""The gallery shows every figure, by the call that the README prints; and what holds for all of them, held once for each."""

from __future__ import annotations

import inspect
from functools import cache

import pytest
from generated import written
from matplotlib.figure import Figure
from report.gallery import FOLDER, GALLERY, PAGE, Picture, drawn, read_numbers, tables

from rankkit.report import figures, save
from rankkit.report.style import arm_styles
from rankkit.training.config import ARMS

numbers = cache(read_numbers)
EVERY = pytest.mark.parametrize("picture", GALLERY, ids=[picture.name for picture in GALLERY])


def words(figure: Figure) -> str:
    """Everything that is written in a picture."""
    texts = [figure.get_supxlabel(), figure.get_supylabel()]
    legends = [*figure.legends]
    for axes in figure.axes:
        texts += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_title(loc="left")]
        texts += [text.get_text() for text in axes.texts]
        legends += [axes.get_legend()] if axes.get_legend() else []
    return "\n".join([*texts, *(text.get_text() for legend in legends for text in legend.get_texts())])


def test_every_figure_has_one_picture() -> None:
    functions = [name for name in figures.__all__ if inspect.isfunction(getattr(figures, name))]
    assert sorted(picture.name for picture in GALLERY) == functions
    assert all(picture.call.startswith(f"{picture.name}(") for picture in GALLERY)


def test_the_gallery_of_the_readme_is_that_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, tables()) == page, "the gallery has changed: run `make page`"


@EVERY
def test_the_picture_is_a_small_png(picture: Picture) -> None:
    data = (FOLDER / f"{picture.name}.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 60_000


def test_nothing_else_lies_in_the_folder() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {"numbers.json", *(f"{picture.name}.png" for picture in GALLERY)}


@EVERY
def test_the_call_draws_what_says_its_axes_its_intervals_and_whether_it_is_simulated(picture: Picture) -> None:
    first = drawn(picture, numbers())
    figure = first.figure
    said = words(figure)
    if picture.name != "numbers_by_cell":  # whose arms are named below the axis
        assert figure.get_supxlabel() or any(axes.get_xlabel() for axes in figure.axes)
    assert figure.get_supylabel() or first.get_ylabel() or first.get_title(loc="left")
    assert ("simulated" in said) == picture.simulated
    bands = {"measure_by_head": "Holm", "spectra_by_layer": "arithmetic floor"}  # a test and floors instead
    assert bands.get(picture.name, "95%") in said


@EVERY
def test_given_axes_come_back_and_the_same_call_gives_the_same_bytes(picture: Picture, tmp_path) -> None:
    found = eval(picture.call, dict(vars(figures)), dict(numbers()[picture.name]))
    alone = not isinstance(found, tuple)
    count = 1 if alone else len(found)
    own = Figure(layout="constrained")
    grid = own.subplots(1, count, squeeze=False)[0]
    call = f"{picture.call[:-1]}, ax=ax)"
    given = eval(call, dict(vars(figures)), dict(numbers()[picture.name]) | {"ax": grid[0] if alone else grid})
    assert ([given] if alone else [*given]) == [*grid]
    assert all(axes.has_data() for axes in grid)
    first, second = found if alone else found[0], drawn(picture, numbers())
    formats = ("png", "svg", "pdf")
    paths = [save(axes.figure, tmp_path / name, "x", formats=formats) for axes, name in ((first, "a"), (second, "b"))]
    assert [path.read_bytes() for path in paths[0]] == [path.read_bytes() for path in paths[1]]


def test_every_arm_that_is_trained_has_a_style_of_its_own_whatever_else_is_drawn() -> None:
    alone = {arm: arm_styles([arm])[arm] for arm in ARMS}
    assert arm_styles([*"abcde", *ARMS]) == arm_styles([*"abcde"]) | alone
    assert len({style.colour for style in alone.values()} | {s.colour for s in arm_styles("abcde").values()}) == 11
    assert len({style.marker for style in alone.values()} | {s.marker for s in arm_styles("abcde").values()}) == 11
