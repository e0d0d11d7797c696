"""Which labels of which axes to take: what `layer=0:3 region=full` means.

A choice is a label, or a half-open range of whole numbers: `0:3` takes the labels 0, 1 and 2, `4:` all from 4 on. These
are labels, not positions: in a file of the layers 2 and 5, `layer=0:3` takes layer 2. Choices about one axis add up, and
choices about different axes must all hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError

__all__ = ["Choice", "Select", "Selection", "read_terms"]

Choice = int | str | slice
"""One label, a text as on the command line such as "full", "0:3" or "1,4:", or a slice of labels."""

Select = Mapping[str, Choice | Iterable[Choice]]
"""What to take, by the name of the axis."""

_RANGE = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?")
_WHOLE = re.compile(r"-?\d{1,18}")
_SHOWN = 12  # labels that an error names


def read_terms(terms: Iterable[str]) -> dict[str, list[Choice]]:
    """Choices as typed: `layer=0:3`, `head=1,4:`, `arm=gpt`; one text may hold several, separated by spaces.

    Raises:
        ConfigurationError: a term is not of that form.
    """
    chosen: dict[str, list[Choice]] = {}
    for term in (part for text in terms for part in text.split()):
        axis, _, labels = term.partition("=")
        if not axis or not labels:
            raise ConfigurationError(f"select must be AXIS=LABELS, got {term!r}. Write layer=0:3 or region=full.")
        chosen.setdefault(axis, []).append(labels)
    return chosen


@dataclass(frozen=True, slots=True)
class Selection:
    """Choices by axis; an axis without one is taken whole.

    Raises:
        ConfigurationError: an axis is given no label, or a range has a step or ends that are no whole numbers.
    """

    choices: Mapping[str, tuple[str | slice, ...]]
    """Single labels as texts, and ranges."""

    @classmethod
    def of(cls, select: Select | None) -> Selection:
        """From what a caller wrote."""
        return cls({axis: tuple(_choices(axis, value)) for axis, value in (select or {}).items()})

    def __post_init__(self) -> None:
        """Check every range."""
        for axis, choices in self.choices.items():
            if not choices:
                raise ConfigurationError(
                    f"{axis} must be given at least one label, got none. Name one or leave it out."
                )
            for choice in choices:
                ends = (choice.start, choice.stop) if isinstance(choice, slice) else ()
                stepped = isinstance(choice, slice) and choice.step is not None
                if stepped or not all(isinstance(end, int | None) for end in ends):
                    raise ConfigurationError(
                        f"{axis} must have ranges of whole numbers without a step, got {_written(choice)!r}. "
                        "Write 0:3, or name the labels."
                    )

    def check(self, labels: Mapping[str, NDArray[np.generic]]) -> None:
        """Refuse choices that choose nothing.

        Args:
            labels: all that there are, by axis.

        Raises:
            ConfigurationError: an axis does not exist, a label or range holds nothing that exists, or a range is given
                for an axis of texts.
        """
        for axis, choices in self.choices.items():
            if axis not in labels:
                raise ConfigurationError(
                    f"select must name one of {', '.join(labels)}, got {axis!r}. Choose among them."
                )
            there = labels[axis]
            for choice in choices:
                if isinstance(choice, slice) and there.dtype.kind not in "iu":
                    raise ConfigurationError(
                        f"{axis} must be chosen by name among {_listed(there)}, got the range {_written(choice)!r}. "
                        "Name them, separated by commas."
                    )
                if not _matches(there, choice).any():
                    raise ConfigurationError(
                        f"{axis} must be among {_listed(there)}, got {_written(choice)!r}. Choose what the file holds."
                    )

    def places(self, axis: str, labels: NDArray[np.generic]) -> NDArray[np.intp]:
        """The positions, ascending, of the labels that are chosen."""
        if axis not in self.choices:
            return np.arange(labels.size)
        chosen = np.zeros(labels.shape, dtype=np.bool_)
        for choice in self.choices[axis]:
            chosen |= _matches(labels, choice)
        return np.flatnonzero(chosen)


def _choices(axis: str, value: Choice | Iterable[Choice]) -> list[str | slice]:
    if isinstance(value, slice):
        return [value]
    if isinstance(value, str):
        return [_choice(axis, text) for text in value.split(",")]
    if isinstance(value, Iterable):
        return [choice for entry in value for choice in _choices(axis, entry)]
    return [str(value)]


def _choice(axis: str, text: str) -> str | slice:
    if not text:
        raise ConfigurationError(f"{axis} must have labels between its commas, got an empty one. Remove a comma.")
    found = _RANGE.fullmatch(text)
    if found is None and ":" in text:
        raise ConfigurationError(
            f"{axis} must have ranges of whole numbers without a step, got {text!r}. Write 0:3, or name the labels."
        )
    return text if found is None else slice(*(None if end is None else int(end) for end in found.groups()))


def _matches(labels: NDArray[np.generic], choice: str | slice) -> NDArray[np.bool_]:
    """Which labels a choice takes; a range takes no text."""
    none = np.zeros(labels.shape, dtype=np.bool_)
    if labels.dtype.kind not in "iu":
        return none if isinstance(choice, slice) else np.asarray(labels == choice)
    if isinstance(choice, slice):
        after = ~none if choice.start is None else labels >= choice.start
        return np.asarray(after if choice.stop is None else after & (labels < choice.stop))
    return np.asarray(labels == int(choice)) if _WHOLE.fullmatch(choice) else none


def _written(choice: str | slice) -> str:
    if isinstance(choice, str):
        return choice
    ends = (choice.start, choice.stop) if choice.step is None else (choice.start, choice.stop, choice.step)
    return ":".join("" if end is None else str(end) for end in ends)


def _listed(labels: NDArray[np.generic]) -> str:
    """Labels for a message: `0 to 31`, or their names."""
    if not labels.size:
        return "none"
    if labels.dtype.kind in "iu" and labels.size > 2 and np.all(np.diff(labels) == 1):
        return f"{labels[0]} to {labels[-1]}"
    shown = ", ".join(map(str, labels[:_SHOWN].tolist()))
    return f"{shown}, ..." if labels.size > _SHOWN else shown
