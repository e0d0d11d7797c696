"""Whether files are of one study: what must be the same in all of them, and that they give every cell once.

What does not match is refused by name: which file, which group, which cell, and which file says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, zip_longest
from typing import Any, Final

from rankkit.axes import REGIONS, SPECTRUM_AXES
from rankkit.errors import MatchError
from rankkit.store import schema
from rankkit.store.consistency import cell_name
from rankkit.store.layout import Attribute
from rankkit.studies.merging.parts import Part, StudyFile

__all__ = ["COUNTED", "check_parts", "check_roots", "refusal", "root_attributes", "same", "shown", "united_labels"]

COUNTED: Final = ("query", "key", "feature", "output_component")
"""Axes that all parts of a group have at one length."""

_ORDERS: Final = {"region": REGIONS, "applied_mask": schema.APPLIED_MASKS}
_OF_PLACES: Final = (schema.METHOD_RULE, schema.UNAVAILABLE)  # attributes that speak of regions one by one
_SAME_IN_ROOT: Final = ("precision",)  # floors depend on it; other facts of a machine change the last bits alone
_MEASURED_WITH: Final = "measured_with_rankkit"
_SHOWN: Final = 80  # characters of a file's text in a message


def refusal(where: str, must: str, found: str, remedy: str = "Merge files of one study.") -> MatchError:
    """The error that names what does not match."""
    return MatchError(f"{where} must {must}, got {found}. {remedy}")


def shown(value: object) -> str:
    """A value from a file in a message: escaped, and short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def same(where: str, first: Part | StudyFile, ours: object, theirs: object) -> None:
    """Refuse what is not as in the first file that says it.

    Args:
        where: which file and what of it.
        first: who says it first.
        ours: what it says; None for nothing.
        theirs: what the other says.

    Raises:
        MatchError: the two differ.
    """
    if ours != theirs:
        wanted = "absent" if ours is None else shown(ours)
        raise refusal(where, f"be {wanted} as in {first.path}", "nothing" if theirs is None else shown(theirs))


# The file as a whole.


def check_roots(files: Sequence[StudyFile]) -> None:
    """Refuse files of different runs.

    Raises:
        MatchError: configurations, certificates or precisions differ.
    """
    remedies = {
        "configuration": "Merge files that were measured from one run.",
        "certificate": "The run went on in between, or its seeds were trained in runs of their own: then no file proves "
        "that all arms match. Put the run together, and measure its parts when it is whole.",
    }
    first = files[0]
    for other in files[1:]:
        for name, remedy in remedies.items():
            number, ours, theirs = _first_difference(getattr(first.root, name), getattr(other.root, name))
            if number:
                got = f"{shown(theirs)} instead of {shown(ours)} in line {number}"
                raise refusal(f"{other.path}: {name}", f"be that of {first.path}", got, remedy)
        for name in _SAME_IN_ROOT:
            same(f"{other.path}: {name}", first, first.root.attributes.get(name), other.root.attributes.get(name))


def _first_difference(first: str, second: str) -> tuple[int, str, str]:
    """The first line that differs, counted from 1, in both texts; 0 where none does."""
    lines = zip_longest(first.split("\n"), second.split("\n"))
    for number, (ours, theirs) in enumerate(lines, start=1):
        if ours != theirs:
            return number, ours or "", theirs or ""
    return 0, "", ""


def root_attributes(files: Sequence[StudyFile], version: str) -> dict[str, Attribute]:
    """What the merged file says of the machines: a value that all files share, or the different ones joined by "; ".

    Args:
        files: those that are merged.
        version: of this rankkit, which the writer records; where a file was measured with another, that is kept too.
    """
    given: dict[str, list[Attribute]] = {}
    for file in files:
        own = {name: value for name, value in file.root.attributes.items() if name not in schema.ROOT_ATTRIBUTES}
        own.setdefault(_MEASURED_WITH, file.root.attributes["rankkit_version"])
        for name, value in own.items():
            given.setdefault(name, []).append(value)
    joined = {name: _joined(values) for name, values in given.items()}
    if joined[_MEASURED_WITH] == version:
        del joined[_MEASURED_WITH]
    return joined


def _joined(values: Sequence[Attribute]) -> Attribute:
    """The one value, or all different ones; those that were joined before are taken apart."""
    if len({(type(value), value) for value in values}) == 1:
        return values[0]
    return "; ".join(sorted({text for value in values for text in str(value).split("; ")}))


# A group.


def united_labels(parts: Sequence[Part]) -> dict[str, tuple[Any, ...]]:
    """Labels of SPECTRUM_AXES over all parts: numbers rising, names in the order of the schema."""
    return {axis: _united(axis, parts) for axis in SPECTRUM_AXES}


def _united(axis: str, parts: Sequence[Part]) -> tuple[Any, ...]:
    labels = {label for part in parts for label in part.places[axis]}
    order = _ORDERS.get(axis)
    return tuple(sorted(labels) if order is None else (label for label in order if label in labels))


def check_parts(name: str, parts: Sequence[Part], labels: Mapping[str, Sequence[Any]]) -> None:
    """Refuse parts of a group that say different things of it as a whole, or do not give every cell exactly once.

    Args:
        name: of the group.
        parts: all of them.
        labels: from `united_labels`.

    Raises:
        MatchError: naming the first fact or cell.
    """
    first, *others = parts
    ours = _facts(first)
    for other in others:
        theirs = _facts(other)
        for fact in dict.fromkeys((*ours, *theirs)):
            same(f"{other.path}: {name}: {fact}", first, ours.get(fact), theirs.get(fact))
    for one, other in combinations(parts, 2):
        _check_apart(name, one, other)
    missing = _first_hole(parts, labels)
    if missing is not None:
        raise refusal(name, "be whole", f"no file with {missing}", "Add the file that holds it, or measure it.")


def _facts(part: Part) -> dict[str, Hashable]:
    """What all parts of a group must agree on, in words."""
    attributes = {schema.ROWS_SUM_TO_ONE: 1} | dict(part.attributes)
    facts: dict[str, Hashable] = {name: value for name, value in attributes.items() if name not in _OF_PLACES}
    facts |= {f"length of axis {axis}": len(part.places[axis]) for axis in COUNTED if axis in part.places}
    outputs = {f"{name} of layer outputs": text for name, text in part.layer_measures.items()}
    measures = {**part.contents.measures, **outputs}
    facts["measures"] = ", ".join(sorted(measures))
    facts["measures with errors"] = ", ".join(sorted(part.contents.errors))
    facts["kept variables"] = ", ".join(part.kept)
    facts["document"] = "given" if "document" in part.arrays else None
    for name, text in measures.items():
        facts |= {
            f"{field} of {name}": getattr(text, field) for field in ("definition", "long_name", "source", "units")
        }
    return facts


def _check_apart(name: str, one: Part, other: Part) -> None:
    """Refuse two parts with a cell in common: two boxes of labels that meet along every axis."""
    met = []
    for axis in SPECTRUM_AXES:
        common = [label for label in one.places[axis] if label in other.places[axis]]
        if not common:
            return
        met.append(f"{axis} {common[0]}")
    raise refusal(
        f"{other.path}: {name}",
        f"hold no matrix of {one.path}",
        f"both with {', '.join(met)}",
        "Leave one of them out.",
    )


def _first_hole(parts: Sequence[Part], labels: Mapping[str, Sequence[Any]]) -> str | None:
    """In words, the first cell that no part has.

    Parts are boxes of labels without a cell in common, so they fill what lies under a label exactly where their volumes
    there add up to it.
    """
    cell: list[int] = []
    for depth, axis in enumerate(SPECTRUM_AXES):
        deeper = SPECTRUM_AXES[depth + 1 :]
        whole = math.prod(len(labels[a]) for a in deeper)
        for place, label in enumerate(labels[axis]):
            under = [part for part in parts if label in part.places[axis]]
            if sum(math.prod(len(part.places[a]) for a in deeper) for part in under) < whole:
                parts = under
                cell.append(place)
                break
        else:
            return None
    return cell_name(labels, cell)
