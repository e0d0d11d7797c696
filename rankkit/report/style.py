"""How every figure looks: one colour and marker per arm, type for paper width, files that repeat byte for byte.

Nothing here touches pyplot or the global rcParams, so a figure never changes the session of whoever asked for it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.errors import ConfigurationError
from rankkit.files import write_atomically
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Key: TypeAlias = "Artist | tuple[Artist, ...]"  # one entry of a legend; a tuple is drawn side by side

__all__ = [
    "BAND_ALPHA",
    "INK",
    "LABEL_SIZE",
    "MUTED",
    "PAPER_WIDTH",
    "SMALL_SIZE",
    "ArmStyle",
    "Key",
    "arm_styles",
    "band_key",
    "blank_key",
    "dress",
    "interval_notes",
    "legend_above",
    "legend_look",
    "new_figure",
    "outline_interval",
    "outline_key",
    "save",
    "size_in_points",
]

PAPER_WIDTH: Final = 6.5  # inches: the text width of A4 and letter paper, so that a figure is printed unscaled
LABEL_SIZE: Final = 8.5  # points, axis labels; a caption is set in 9 or 10
SMALL_SIZE: Final = 7.5  # points, tick labels and legends; below 7 a printed figure is hard to read
PNG_DPI: Final = 160  # 1040 pixels across at paper width: sharp on a screen, tens of kilobytes
INK: Final = "#222222"  # text, zero lines and keys that belong to no arm
MUTED: Final = "#6b6b6b"  # floors and baselines: behind the data, still 5:1 contrast on white

BAND_ALPHA: Final = 0.2  # a band lets the lines and the other band through
OUTLINE_WIDTH: Final = 0.7  # points
OUTLINE_DASHES: Final = (0, (1, 2))  # points
LETTER_WIDTH: Final = 0.55  # of the type size: the mean letter of DejaVu Sans, matplotlib's own font, rounded up
KEY_LENGTH: Final = 2.2  # of the type size: the line or swatch of a legend entry
KEY_GAP: Final = 0.8  # of the type size: between that and the words
COLUMN_GAP: Final = 1.4  # of the type size: between two columns of a legend

_POINTS_PER_INCH: Final = 72
_HASH_SALT: Final = "rankkit"  # seeds the identifiers inside an SVG, which are random otherwise
# Without these values matplotlib writes the date and its own version.
_METADATA: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
_TRUE_TYPE: Final = 42  # whole outlines with their letters: publishers refuse matplotlib's default, Type 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmStyle:
    """How one arm is drawn in every figure."""

    colour: str
    """Hexadecimal colour."""
    marker: str
    """Matplotlib marker: tells arms apart where colour cannot."""


_NAMED: Final = {
    "bert": ArmStyle(colour="#8510F5", marker=">"),
    "gpt": ArmStyle(colour="#0072B2", marker="o"),
    "gpt-full": ArmStyle(colour="#009E73", marker="^"),
    "mixed-heads": ArmStyle(colour="#8F5C33", marker="<"),
    "mixed-layers": ArmStyle(colour="#00338F", marker="p"),
    "unilm": ArmStyle(colour="#D55E00", marker="s"),
}
# With these, any two of the eleven colours differ by at least 16 (CIE76) in normal, protan, deutan and tritan vision.
_FURTHER: Final = (
    ArmStyle(colour="#E69F00", marker="D"),
    ArmStyle(colour="#56B4E9", marker="v"),
    ArmStyle(colour="#CC79A7", marker="P"),
    ArmStyle(colour="#882255", marker="X"),
    ArmStyle(colour="#661100", marker="*"),
)


def arm_styles(arms: Iterable[str], /) -> dict[str, ArmStyle]:
    """One style per arm, the same in every figure that shows the same arms.

    The arms that rankkit trains have theirs. Any further name takes the slot its SHA-256 points at, and the next free one
    where an alphabetically earlier name holds that slot: the order in which arms are given never matters.

    Args:
        arms: names, in any order.

    Returns:
        The style of each name, in the order given.

    Raises:
        ConfigurationError: more further arms than colours that colour-blind readers can tell apart.

    Source: colours by Okabe and Ito (2008), wine and dark brown by Tol (2021); those of bert and the mixed arms were
    searched for what is farthest from these.
    """
    names = list(dict.fromkeys(arms))
    further = sorted(set(names) - _NAMED.keys())
    if len(further) > len(_FURTHER):
        raise ConfigurationError(
            f"arms must hold at most {len(_FURTHER)} names beyond {', '.join(_NAMED)}, got {further!r}. "
            "Draw fewer arms in one figure."
        )
    holders: dict[int, str] = {}
    for name in further:
        slot = hashlib.sha256(name.encode()).digest()[0] % len(_FURTHER)
        while slot in holders:
            slot = (slot + 1) % len(_FURTHER)
        holders[slot] = name
    styles = _NAMED | {name: _FURTHER[slot] for slot, name in holders.items()}
    return {name: styles[name] for name in names}


def new_figure(height: float, /) -> Figure:
    """An empty figure of paper width that belongs to no window system and no pyplot state.

    Args:
        height: in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(PAPER_WIDTH, height), layout="constrained", facecolor="white")


def size_in_points(container: Axes | Figure | SubFigure, /) -> tuple[float, float]:
    """Width and height of axes, a figure or a subfigure, before any layout engine has moved it."""
    box = container.bbox
    scale = _POINTS_PER_INCH / container.figure.dpi
    return box.width * scale, box.height * scale


def dress(axes: Axes, /, *, x: str = "", y: str = "") -> None:
    """Give axes their labels, type sizes, open frame and a faint horizontal grid."""
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=INK)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=INK)
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def legend_look(handles: Sequence[Key], available: float, /) -> dict[str, Any]:
    """Keyword arguments of every legend: its entries and type, in as many columns as its words leave room for.

    Args:
        handles: what to explain; the artists of a tuple share one entry, labelled by the first.
        available: the width that the legend may take, in points.
    """
    from matplotlib.legend_handler import HandlerTuple

    labels = [str((key[0] if isinstance(key, tuple) else key).get_label()) for key in handles]
    return {
        "handles": list(handles),
        "labels": labels,
        "handler_map": {tuple: HandlerTuple(ndivide=None, pad=0)},
        "ncols": _columns_that_fit(labels, available),
        "fontsize": SMALL_SIZE,
        "columnspacing": COLUMN_GAP,
        "handlelength": KEY_LENGTH,
        "handletextpad": KEY_GAP,
    }


def legend_above(axes: Axes, handles: Sequence[Key], /) -> None:
    """Put a legend above the frame, where it cannot hide data, no wider than the axes."""
    width, _ = size_in_points(axes)
    look = legend_look(handles, width)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.3, **look)


def _columns_that_fit(labels: Sequence[str], available: float) -> int:
    """The most columns, filled downwards as matplotlib does, whose longest words fit into `available` points."""
    widths = np.array([LETTER_WIDTH * len(label) + KEY_LENGTH + KEY_GAP + COLUMN_GAP for label in labels])
    for columns in range(len(labels), 1, -1):
        rows, longer = divmod(len(labels), columns)
        ends = np.cumsum([rows + (column < longer) for column in range(columns)])[:-1]
        if sum(max(column) for column in np.split(widths, ends)) - COLUMN_GAP <= available / SMALL_SIZE:
            return columns
    return 1


def interval_notes(counts: Mapping[str, int], /, *, kind: str) -> tuple[str, str]:
    """What a legend says about the intervals of a figure.

    Args:
        counts: what is drawn to its number of seeds.
        kind: name of the interval, such as `95% t interval`.

    Returns:
        The label of the intervals drawn, and the note on what has none; each "" where it does not apply.
    """
    several = sorted({count for count in counts.values() if count > 1})
    alone = [name for name, count in counts.items() if count == 1]
    drawn = f"{kind} over {' or '.join(map(str, several))} seeds" if several else ""
    note = "one seed: no interval" if alone else ""
    if alone and several:
        note = f"{note} ({', '.join(alone)})"
    return drawn, note


def band_key(label: str, colours: Iterable[str], /) -> tuple[Artist, ...]:
    """A legend entry for bands: one swatch per colour, side by side."""
    from matplotlib.patches import Patch

    return tuple(Patch(facecolor=colour, alpha=BAND_ALPHA, label=label) for colour in colours)


def outline_interval(axes: Axes, at: ArrayLike, table: NDArray[np.float64], colour: str, label: str, /) -> None:
    """The 95% t interval over seeds as two fine lines: a second band in the colour of a first would hide it.

    Args:
        axes: where.
        at: "point".
        table: "seed point", of at least two seeds.
        colour: of the arm.
        label: of the lines.
    """
    intervals = [mean_interval(column) for column in table.T]
    for bounds in ([interval.lower for interval in intervals], [interval.upper for interval in intervals]):
        axes.plot(at, bounds, color=colour, linewidth=OUTLINE_WIDTH, linestyle=OUTLINE_DASHES, label=label)


def outline_key() -> Artist:
    """The legend entry of outlined intervals, to follow that of the line they belong to."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, linewidth=OUTLINE_WIDTH, linestyle=OUTLINE_DASHES, label="its 95% t interval")


def blank_key(label: str, /) -> Artist:
    """A legend entry of words alone."""
    from matplotlib.patches import Patch

    return Patch(facecolor="none", edgecolor="none", label=label)


def save(figure: Figure, folder: Path, name: str, *, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a figure as NAME.png and NAME.svg, each whole or absent, the same bytes for the same figure.

    The files carry no date and no version, and the identifiers inside the SVG are derived from its content. A PDF is
    written where it is asked for: a run has dozens of figures, and the few that a paper takes are named by hand.

    Args:
        figure: what to write; it is left as it was.
        folder: where to; made if it is missing.
        name: file name without its ending.
        formats: among png, svg and pdf.

    Returns:
        The paths, in the order of `formats`.

    Raises:
        ConfigurationError: the name is empty or holds a folder, or a format is another.
        StorageError: the file system refused; what was there before is intact.
    """
    if not name or Path(name).name != name:
        raise ConfigurationError(f"name must be a file name without a folder, got {name!r}. Put the folder in folder.")
    if isinstance(formats, str) or not formats or not set(formats) <= _METADATA.keys():
        raise ConfigurationError(f"formats must be some of {', '.join(_METADATA)}, got {formats!r}. Name those.")
    paths = [folder / f"{name}.{file_format}" for file_format in formats]
    for path, file_format in zip(paths, formats, strict=True):
        write_atomically(path, partial(_write, figure, file_format))
    return paths


def _write(figure: Figure, file_format: str, path: Path) -> None:
    from matplotlib import rc_context

    # The salt and the font types can be given in no other way; the context puts them back.
    fixed: Any = {"svg.hashsalt": _HASH_SALT, "svg.fonttype": "path", "pdf.fonttype": _TRUE_TYPE}
    with _positions_kept(figure), rc_context(fixed):
        figure.savefig(path, format=file_format, dpi=PNG_DPI, facecolor="white", metadata=_METADATA[file_format])


@contextlib.contextmanager
def _positions_kept(figure: Figure) -> Iterator[None]:
    """Put the axes back afterwards: a layout that starts from the last one ends 1e-6 beside it, in other bytes."""
    before = [(axes, axes.get_position(original=True).frozen(), axes.get_in_layout()) for axes in figure.axes]
    try:
        yield
    finally:
        for axes, position, in_layout in before:
            axes.set_position(position)
            axes.set_in_layout(in_layout)  # set_position takes axes out of the layout
