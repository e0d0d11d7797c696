"""Claims about arms, as text and as arithmetic: `none/unilm - none/gpt > pair/unilm - pair/gpt`.

A claim has two sides with < or > between them. A side is 0, or terms joined by + and -, with spaces around every sign:

    [NUMBER *] RUN/ARM            the number of one arm of one run, under its own mask
    [NUMBER *] RUN/ARM@swapped    the same Q and K under the other arm's mask (rank measures)
    [NUMBER *] RUN/EFFECT         gap, mask_effect, learned_effect or interaction of the run's causal and prefix arm
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.studies.decomposition import EFFECTS

__all__ = ["EFFECT_TERMS", "Cell", "Contrast", "Place", "parse_contrast"]

Cell: TypeAlias = tuple[str, str]
"""(run, arm)."""
Place: TypeAlias = tuple[str, str, bool]
"""(run, arm, under the other arm's mask)."""
Array: TypeAlias = NDArray[np.float64]

EFFECT_TERMS: Final = {
    "gap": (1.0, 0.0, -1.0, 0.0),
    "mask_effect": (0.5, -0.5, -0.5, 0.5),
    "learned_effect": (0.5, 0.5, -0.5, -0.5),
    "interaction": (1.0, -1.0, 1.0, -1.0),
}
"""Each of `EFFECTS` as coefficients of the causal arm's own and swapped number and the prefix arm's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A claim that a weighted sum of arms' numbers lies on one side of 0."""

    text: str
    """As it was written."""
    direction: int
    """1 where left minus right is claimed to be above 0, -1 where below."""
    weights: Mapping[Place, float]
    """Of left minus right, in the order of the text."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The arms that it speaks of, each once."""
        return tuple(dict.fromkeys((run, arm) for run, arm, _ in self.weights))

    @property
    def swaps(self) -> bool:
        """Whether a number under another arm's mask is among them."""
        return any(swapped for _, _, swapped in self.weights)

    def parts(self, values: Mapping[Place, Mapping[int, float]]) -> tuple[tuple[int, ...], dict[Cell, Array]]:
        """What each arm adds to left minus right.

        Args:
            values: by place and seed.

        Returns:
            The seeds that all arms have, rising, and "seed" for every arm; the differences are their sum.
        """
        common = set.intersection(*(set(values[place]) for place in self.weights))
        seeds = tuple(sorted(seed for seed in common if all(math.isfinite(values[p][seed]) for p in self.weights)))
        parts: dict[Cell, Array] = {cell: np.zeros(len(seeds)) for cell in self.cells}
        for (run, arm, swapped), weight in self.weights.items():
            parts[run, arm] += weight * np.array([values[run, arm, swapped][seed] for seed in seeds])
        return seeds, parts


def parse_contrast(
    text: str, arms: Mapping[str, tuple[str, ...]], pairs: Mapping[str, tuple[str, str] | None]
) -> Contrast:
    """Read a claim.

    Args:
        text: of the claim.
        arms: of every run that it may name.
        pairs: (causal arm, prefix arm) of every run, None where it has none.

    Raises:
        ConfigurationError: not a claim, a run or arm that there is not, or both sides are the same.
    """
    words = text.split()
    signs = [word for word in words if word in ("<", ">")]
    if len(signs) != 1:
        raise ConfigurationError(
            f"claim must have one < or > with spaces around it, got {text!r}. Write for example 'pair/gpt < pair/unilm'."
        )
    cut = words.index(signs[0])
    weights: dict[Place, float] = {}
    for side, sign in ((words[:cut], 1.0), (words[cut + 1 :], -1.0)):
        for place, weight in _terms(side, text, arms, pairs):
            weights[place] = weights.get(place, 0.0) + sign * weight
    weights = {place: weight for place, weight in weights.items() if weight}
    if not weights:
        raise ConfigurationError(f"claim must compare two different things, got {text!r}. Name another arm.")
    return Contrast(text=text, direction=1 if signs[0] == ">" else -1, weights=weights)


def _terms(
    words: list[str], text: str, arms: Mapping[str, tuple[str, ...]], pairs: Mapping[str, tuple[str, str] | None]
) -> list[tuple[Place, float]]:
    """The terms of one side, each with its coefficient."""
    if words == ["0"]:
        return []
    found: list[tuple[Place, float]] = []
    rest = words if words[:1] and words[0] in ("+", "-") else ["+", *words]
    while rest:
        sign, *rest = rest
        coefficient = 1.0
        if rest[1:2] == ["*"]:
            coefficient, rest = _number(rest[0], text), rest[2:]
        if sign not in ("+", "-") or not rest:
            raise ConfigurationError(
                f"claim must join terms by + and - with spaces around them, got {text!r}. Write '2 * a/gpt - b/gpt > 0'."
            )
        name, *rest = rest
        weight = coefficient if sign == "+" else -coefficient
        found += [(place, weight * share) for place, share in _places(name, text, arms, pairs)]
    return found


def _number(word: str, text: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigurationError(f"claim must multiply by numbers, got {word!r} in {text!r}. Write '2 * a/gpt'.")
    return value


def _places(
    name: str, text: str, arms: Mapping[str, tuple[str, ...]], pairs: Mapping[str, tuple[str, str] | None]
) -> list[tuple[Place, float]]:
    """What a name stands for."""
    run, _, what = name.partition("/")
    arm, at, mask = what.partition("@")
    if run not in arms or (at and mask != "swapped"):
        raise ConfigurationError(
            f"claim must name runs among {', '.join(arms)}, as RUN/ARM or RUN/ARM@swapped, got {name!r} in {text!r}. "
            "Correct the name."
        )
    pair = pairs.get(run)
    if what in EFFECTS and pair is not None:
        places = [(run, arm, swapped) for arm in pair for swapped in (False, True)]
        return [(place, weight) for place, weight in zip(places, EFFECT_TERMS[what], strict=True) if weight]
    if arm not in arms[run]:
        effects = f", {', '.join(EFFECTS)}" if pair is not None else ""
        raise ConfigurationError(
            f"claim must name of run {run} one of {', '.join(arms[run])}{effects}, got {name!r} in {text!r}. Correct it."
        )
    return [((run, arm, bool(at)), 1.0)]
