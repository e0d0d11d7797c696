"""The colours of the page: arms keep theirs, lighter or darker as far as each ground asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rankkit.report.style import arm_styles

__all__ = ["DARK", "LIGHT", "arm_variables", "colour_map", "contrast", "style_rules", "visible_on"]

LIGHT: Final = "#ffffff"
"""Ground of the light scheme."""
DARK: Final = "#15181c"
"""Ground of the dark scheme."""

_LEAST: Final = 3.2  # contrast: WCAG 2.2, 1.4.11 asks for 3 of what is no text, and rounding takes some
_LEAST_ON_DARK: Final = 5.0  # thin lines look fainter on a dark ground
_STEPS: Final = 50  # from a colour to black or white


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two hexadecimal colours, 1 to 21.

    Source: WCAG 2.2, relative luminance and contrast ratio.
    """
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def visible_on(ground: str, colour: str) -> str:
    """The colour, mixed with black or white until it stands out from the ground as graphics must."""
    is_light = _luminance(ground) > 0.5
    end, least = ((0, 0, 0), _LEAST) if is_light else ((255, 255, 255), _LEAST_ON_DARK)
    for step in range(_STEPS + 1):
        share = step / _STEPS
        mixed = [round(a + share * (b - a)) for a, b in zip(_channels(colour), end, strict=True)]
        found = "#" + "".join(f"{channel:02x}" for channel in mixed)
        if contrast(found, ground) >= least:
            return found
    return found


def arm_variables(arms: Iterable[str]) -> dict[str, str]:
    """Colour of every arm, lower case, to the name of the page's variable for it."""
    styles = arm_styles(arms)
    return {style.colour.lower(): f"c{style.colour[1:].lower()}" for style in styles.values()}


def style_rules(colours: Iterable[str]) -> str:
    """Rules that give every variable of `arm_variables` its colour on both grounds, and shapes their classes."""
    names = sorted({colour.lower() for colour in colours})
    light = "".join(f"--c{name[1:]}:{visible_on(LIGHT, name)};" for name in names)
    dark = "".join(f"--c{name[1:]}:{visible_on(DARK, name)};" for name in names)
    classes = "".join(
        f".f-c{name[1:]}{{fill:var(--c{name[1:]})}}.s-c{name[1:]}{{stroke:var(--c{name[1:]})}}"
        f".k-c{name[1:]}{{color:var(--c{name[1:]})}}"
        for name in names
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"


def colour_map(name: str, count: int) -> list[str]:
    """So many colours of one of matplotlib's maps, evenly from its beginning to its end."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[name](place / (count - 1))) for place in range(count)]


def _luminance(colour: str) -> float:
    red, green, blue = (_linear(channel / 255) for channel in _channels(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
