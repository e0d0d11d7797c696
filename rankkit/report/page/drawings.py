"""Figures as SVG inside the page: its type, its two grounds, a tenth of a point, and no style that its rules forbid.

Matplotlib writes colours and type as `style` attributes, which the Content-Security-Policy of the page refuses, with six
decimals and identifiers that two figures share. Here styles become presentation attributes, ink, grid and ground become
classes that follow the colour scheme, and so do the colours of arms, which keep their contrast on both grounds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from rankkit.report.style import INK, MUTED

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes

__all__ = ["Drawing", "drawing"]

Array = NDArray[np.float64]

_SVG: Final = "{http://www.w3.org/2000/svg}"
_HREF: Final = "{http://www.w3.org/1999/xlink}href"
_SALT: Final = "rankkit"  # seeds identifiers, which are random otherwise
_DECIMALS: Final = 1  # of a point: a seventh of a pixel where a figure is as wide as the page
_STRAIGHT: Final = 0.06  # points that a line may be off where points are left out: under what rounding does
_PAPER: Final = {
    INK: "ink",
    "#000000": "ink",
    MUTED: "muted",
    "#ebebeb": "grid",
    "#ffffff": "ground",
    "#cccccc": "none",
}
"""Colours of the house that follow the page: to the name of its variable."""
_KEPT_STYLES: Final = (
    "fill-opacity",
    "font-size",
    "font-style",
    "font-weight",
    "opacity",
    "stroke-dasharray",
    "stroke-dashoffset",
    "stroke-opacity",
    "stroke-width",
    "text-anchor",
)
_NUMBER: Final = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_STEP: Final = re.compile(r"([MLCQz])([^MLCQz]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One figure."""

    svg: str
    """Markup, safe to put into the page as it is."""
    says: str
    """What is seen, with numbers: the alternative text."""
    caption: str
    """What it shows and how to read it."""


def drawing(axes: Axes, key: str, *, says: str, caption: str, arm_colours: Mapping[str, str]) -> Drawing:
    """A figure as markup.

    Args:
        axes: any of the figure's.
        key: letters and digits, another for every figure of the page: what its identifiers begin with.
        says: the alternative text.
        caption: below it.
        arm_colours: colour to the name of the page's variable for it.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure, buffer = axes.figure, io.BytesIO()
    assert isinstance(figure, Figure), "every figure of ours is one of its own"
    with rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "none"}):
        # savefig draws twice, and lays everything out each time.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Creator": None, "Date": None})  # type: ignore[no-untyped-call]
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314  # matplotlib's own, made a line above
    _Slimmer(key, {**_PAPER, **arm_colours}).slim(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", says)
    root.set("focusable", "false")
    ElementTree.register_namespace("", _SVG.strip("{}"))
    text = ElementTree.tostring(root, encoding="unicode")
    return Drawing(svg=text.replace("ns0:", ""), says=says, caption=caption)


class _Slimmer:
    """Walks one SVG and leaves what the page needs of it."""

    def __init__(self, key: str, colours: Mapping[str, str]) -> None:
        self._key, self._colours = key, colours

    def slim(self, root: Element) -> None:
        """In place."""
        for unwanted in ("metadata", "style"):
            _remove(root, f"{_SVG}{unwanted}")
        used = {match for element in root.iter() for match in _references(element)}
        names = {old: f"{self._key}{number}" for number, old in enumerate(sorted(used))}
        for element in root.iter():
            self._element(element, names)
        _flatten(root)

    def _element(self, element: Element, names: Mapping[str, str]) -> None:
        element.text = (element.text or "").strip() if element.tag not in _WORDS else element.text
        element.tail = "" if element.tag != f"{_SVG}tspan" else (element.tail or "").strip()
        self._style(element)
        old = element.attrib.pop("id", "")
        if old in names:
            element.set("id", names[old])
        if (href := element.attrib.pop(_HREF, None)) is not None:
            element.set("href", f"#{names[href[1:]]}" if href.startswith("#") else href)
        for name, value in list(element.attrib.items()):
            element.set(name, self._value(name, value, names))
        if re.fullmatch(r"rotate\(-?0( [-\d. ]+)?\)", element.get("transform", "")):
            del element.attrib["transform"]

    def _style(self, element: Element) -> None:
        """Declarations as attributes; known colours as classes."""
        parts = [part.partition(":") for part in element.attrib.pop("style", "").split(";") if ":" in part]
        declared = {name.strip(): value.strip() for name, _, value in parts}
        classes = []
        if element.tag == f"{_SVG}text" and "fill" not in declared:
            classes.append("f-ink")  # matplotlib leaves black unsaid
        for name, value in declared.items():
            if name in ("fill", "stroke"):
                known = self._colours.get(value.lower())
                if known is not None:
                    classes.append(f"{name[0]}-{known}")
                else:
                    element.set(name, value)
            elif name in _KEPT_STYLES:
                element.set(name, value.removesuffix("px"))
        if classes:
            element.set("class", " ".join(classes))

    def _value(self, name: str, value: str, names: Mapping[str, str]) -> str:
        if name == "d":
            return _slim_path(value)
        if name == "clip-path":
            return re.sub(r"#(\w+)", lambda match: f"#{names[match[1]]}", value)
        if name in ("class", "id", "href", "viewBox"):
            return value
        # `scale(0.1 -0.1)` and the like of mathematical text keep their digits.
        return (
            value
            if "scale" in value or "matrix" in value
            else _NUMBER.sub(lambda match: _short(float(match[0])), value)
        )


_WORDS: Final = (f"{_SVG}text", f"{_SVG}tspan")


def _remove(root: Element, tag: str) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == tag]:
            parent.remove(child)


def _references(element: Element) -> list[str]:
    """Identifiers that an element points at."""
    found = re.findall(r"url\(#(\w+)\)", element.get("clip-path", ""))
    href = element.get(_HREF, "")
    return [*found, href[1:]] if href.startswith("#") else found


def _flatten(root: Element) -> None:
    """Groups that say nothing give way to what is in them; empty ones go."""
    for child in list(root):
        _flatten(child)
    for child in list(root):
        if child.tag in (f"{_SVG}g", f"{_SVG}defs") and not len(child) and not child.get("id"):
            root.remove(child)
        elif child.tag == f"{_SVG}g" and not child.attrib:
            place = list(root).index(child)
            root.remove(child)
            for offset, inner in enumerate(list(child)):
                root.insert(place + offset, inner)


def _slim_path(path: str) -> str:
    """The same path to a tenth of a point, without points that lie on the line between their neighbours."""
    parts, run = [], list[list[float]]()
    for letter, text in _STEP.findall(path.replace("\n", " ")):
        numbers = [float(number) for number in text.split()]
        if letter in "ML" and len(numbers) == 2:
            if letter == "M" and run:
                parts.append(_polyline(run))
                run = []
            run.append(numbers)
            continue
        if run:
            parts.append(_polyline(run))
            run = []
        parts.append(letter + " ".join(_short(number) for number in numbers))
    if run:
        parts.append(_polyline(run))
    return "".join(parts)


def _polyline(points: list[list[float]]) -> str:
    """`Mx yLx y...`; a run that begins in the middle of a path goes on with lines."""
    kept = _simplified(np.array(points)) if len(points) > 2 else points
    words = [f"{_short(x)} {_short(y)}" for x, y in kept]
    lasting = [word for number, word in enumerate(words) if number == 0 or word != words[number - 1]]
    return f"M{lasting[0]}" + "".join(f"L{word}" for word in lasting[1:])


def _simplified(points: Array) -> Array:
    """Ramer's rule without recursion: ends of a stretch stay, and the point that is farthest off, if it is far enough."""
    keep = np.zeros(len(points), dtype=np.bool_)
    keep[[0, -1]] = True
    stretches = [(0, len(points) - 1)]
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        start, inner = points[first], points[first + 1 : last]
        along = points[last] - start
        length = float(np.hypot(*along))
        offsets = inner - start
        if length > 0:
            distance = np.abs(along[0] * offsets[:, 1] - along[1] * offsets[:, 0]) / length
        else:
            distance = np.hypot(offsets[:, 0], offsets[:, 1])
        farthest = int(distance.argmax())
        if distance[farthest] > _STRAIGHT:
            middle = first + 1 + farthest
            keep[middle] = True
            stretches += [(first, middle), (middle, last)]
    return np.asarray(points[keep])


def _short(number: float) -> str:
    text = f"{number:.{_DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
