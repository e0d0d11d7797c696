"""A seeded grammar that writes the same documents on every machine.

Document k of seed s is a pure function of (s, k): Philox, a counter-based generator, gives raw 64-bit integers, and
everything after it is integer arithmetic. The text rewards both local statistics (a small vocabulary, balanced
brackets) and attention (names introduced early come back later).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

__all__ = ["write_document"]

_SYLLABLES: Final = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ra", "su", "ta", "ve", "zo")
_OPERATORS: Final = ("plus", "minus", "times", "over")
_DEEPEST: Final = 3  # levels of brackets: deep enough to need a stack, short enough for one window
_BLOCK: Final = 256  # raw integers drawn at a time


class _Dice:
    """Choices from one counter-based stream."""

    def __init__(self, seed: int, document: int) -> None:
        self._generator = np.random.Philox(key=np.array([seed, document], dtype=np.uint64))
        self._rolled: list[int] = []

    def below(self, bound: int) -> int:
        """An integer in [0, bound); the remainder's bias is below bound / 2**64."""
        if not self._rolled:
            self._rolled = self._generator.random_raw(_BLOCK).tolist()
        return self._rolled.pop() % bound

    def pick(self, choices: Sequence[str]) -> str:
        """One of the choices."""
        return choices[self.below(len(choices))]


def _word(dice: _Dice) -> str:
    return "".join(dice.pick(_SYLLABLES) for _ in range(2 + dice.below(2)))


def _expression(dice: _Dice, names: Sequence[str], depth: int) -> str:
    kind = dice.below(4)
    if depth < _DEEPEST and kind == 0:
        left, right = (_expression(dice, names, depth + 1) for _ in range(2))
        return f"({left} {dice.pick(_OPERATORS)} {right})"
    return str(dice.below(100)) if kind == 1 or not names else dice.pick(names)


def _sentence(dice: _Dice, names: list[str]) -> str:
    kind = dice.below(3)
    if kind == 0 or not names:
        value = _expression(dice, names, 0)
        names.append(_word(dice))
        return f"let {names[-1]} be {value}.\n"
    if kind == 1:
        return (
            f"if {dice.pick(names)} is {_expression(dice, names, 0)} then {dice.pick(names)} is {dice.pick(names)}.\n"
        )
    return f"{dice.pick(names)} {dice.pick(_OPERATORS)} {dice.pick(names)} is {_expression(dice, names, 0)}.\n"


def write_document(seed: int, document: int, /) -> str:
    """Write one document of 20 to 79 sentences, ASCII, about 1.5 kB.

    Args:
        seed: of the corpus, in [0, 2**64).
        document: its number, in [0, 2**64).

    Returns:
        The text, the same on every machine.
    """
    dice, names = _Dice(seed, document), list[str]()
    return "".join(_sentence(dice, names) for _ in range(20 + dice.below(60)))
