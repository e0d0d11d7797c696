"""What the one file of many holds: every group with the labels of all its parts, and what does not depend on a matrix.

Numbers rise along an axis, regions and masks stand in the order of the schema. What two files say of the same label must
agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import MatchError
from rankkit.spectra import MEASURES
from rankkit.store import GroupLayout, Variable, schema
from rankkit.store.consistency import cell_name
from rankkit.store.names import arm_of, baseline_of
from rankkit.studies.merging.matching import COUNTED, check_parts, refusal, same, shown, united_labels
from rankkit.studies.merging.parts import STATIC_VARIABLES, Part, StudyFile
from rankkit.studies.merging.texts import merged_reasons, merged_rule, rules_by_region

__all__ = ["MergedGroup", "check_axis", "merged_groups"]

_OF_A_SEQUENCE: Final = ("tokens", "prefix_length", "document")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedGroup:
    """One group of the merged file."""

    name: str
    """Such as "gpt" or "baselines/uniform/gpt"."""
    parts: tuple[Part, ...]
    """Where its cells come from, each from one of them."""
    layout: GroupLayout
    """Its axes and everything that does not depend on a matrix."""
    labels: Mapping[str, tuple[Any, ...]]
    """Of every axis."""

    @property
    def matrices(self) -> int:
        """How many."""
        return math.prod(len(self.labels[axis]) for axis in SPECTRUM_AXES)


def merged_groups(files: Sequence[StudyFile]) -> list[MergedGroup]:
    """Every group of the merged file, each arm before its baselines.

    Raises:
        MatchError: what two files say differs, or a cell is given twice or by no file.
    """
    order = _measure_order(files)
    groups = [
        _merged_group(name, [file.parts[name] for file in files if name in file.parts], order)
        for name in _in_order(files)
    ]
    _check_baselines(groups)
    _check_sequences(groups)
    for group in groups:
        _check_prefix_lengths(group)
    return groups


def _in_order(files: Sequence[StudyFile]) -> Iterator[str]:
    """Names of groups: arms as the files have them, each followed by its baselines as the files have those."""
    places: dict[str, int] = {}
    for file in files:
        for place, name in enumerate(file.parts):
            places[name] = min(place, places.get(name, place))
    names = sorted(places, key=lambda name: (places[name], name))
    arms = dict.fromkeys([name for name in names if baseline_of(name) is None] + [arm_of(name) for name in names])
    for arm in arms:
        yield from (name for name in names if name == arm)
        yield from (name for name in names if arm_of(name) == arm != name)


def _measure_order(files: Sequence[StudyFile]) -> list[str]:
    """Names in the order in which they were asked for, as a comparison tells it; that of the registry by default.

    A comparison leaves out measures without a mean, so it is believed only where it is not the order of the registry.
    """
    registry = list(MEASURES)
    asked = next((list(file.compared) for file in files if file.compared), [])
    known = [name for name in registry if name in asked]
    return registry if asked == known else [*asked, *registry]


def _merged_group(name: str, parts: Sequence[Part], order: Sequence[str]) -> MergedGroup:
    labels = united_labels(parts)
    check_parts(name, parts, labels)
    try:
        layout = _layout(name, parts, labels, order)
    except ValueError as error:  # what its parts may hold one by one, but not all together: too many bytes
        raise MatchError(f"{name} must fit into one file, but {error}") from error
    every = {axis: tuple(found) for axis, found in layout.labels.items()}
    return MergedGroup(name=name, parts=tuple(parts), layout=layout, labels=every)


def _layout(
    name: str, parts: Sequence[Part], labels: Mapping[str, tuple[Any, ...]], order: Sequence[str]
) -> GroupLayout:
    first = parts[0]
    measures, outputs = _ordered(first.contents.measures, order), _ordered(first.layer_measures, list(MEASURES))
    sizes = {axis: len(first.places[axis]) for axis in COUNTED if axis in first.places}
    arrays = _arrays(name, parts, {**labels, **{axis: tuple(range(size)) for axis, size in sizes.items()}})
    named = (*schema.GROUP_ATTRIBUTES, *schema.OPTIONAL_GROUP_ATTRIBUTES)
    scale = first.attributes.get(schema.LOGIT_SCALE)
    return GroupLayout(
        mask=str(first.attributes["mask"]),
        objective=str(first.attributes["objective"]),
        kind=str(first.attributes["kind"]),
        seeds=labels["seed"],
        steps=labels["step"],
        regions=labels["region"],
        applied_masks=labels["applied_mask"],
        sequences=labels["sequence"],
        layers=labels["layer"],
        heads=labels["head"],
        **arrays,
        measures={measure: first.contents.measures[measure] for measure in measures},
        attributes={key: value for key, value in first.attributes.items() if key not in named},
        estimated=[measure for measure in measures if any(measure in part.contents.estimated for part in parts)],
        errors=[measure for measure in measures if measure in first.contents.errors],
        components=_components(parts, arrays),
        layer_measures={measure: first.layer_measures[measure] for measure in outputs},
        output_components=sizes.get("output_component"),
        method_rule=merged_rule(name, parts, labels["region"]),
        unavailable=merged_reasons(name, parts, labels["region"], labels["applied_mask"]),
        rows_sum_to_one=bool(first.attributes.get(schema.ROWS_SUM_TO_ONE, 1)),
        kept=first.kept,
        features=sizes.get("feature"),
        logit_scale=None if scale is None else float(scale),
    )


def _arrays(name: str, parts: Sequence[Part], labels: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """What does not depend on a matrix, as a layout takes it."""
    given = {v.name: v for v in STATIC_VARIABLES if v.name in parts[0].arrays}
    arrays: dict[str, Any] = {key: _agreed(name, variable, parts, labels) for key, variable in given.items()}
    return {**arrays, "checkpoint_sha256": arrays["checkpoint_sha256"].tolist()}


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Names as they stand in an order, and others after them, sorted."""
    found = set(names)
    return [*(name for name in dict.fromkeys(order) if name in found), *sorted(found - set(order))]


def _agreed(
    name: str, variable: Variable, parts: Sequence[Part], labels: Mapping[str, tuple[Any, ...]]
) -> NDArray[Any]:
    """A variable on all labels, from every part that has some; where several have the same, they must agree."""
    axes = variable.dimensions
    shape = [len(labels[axis]) for axis in axes]
    found = np.empty(shape, dtype=object if variable.dtype == "string" else variable.dtype)
    giver = np.full(shape, -1)
    places = {axis: {label: place for place, label in enumerate(labels[axis])} for axis in axes}
    for number, part in enumerate(parts):
        where = np.ix_(*([places[axis][label] for label in part.places[axis]] for axis in axes))
        values = part.arrays[variable.name]
        different = (giver[where] >= 0) & (found[where] != values)
        if different.any():
            at = tuple(np.argwhere(different)[0].tolist())
            cell = cell_name({axis: part.labels(axis) for axis in axes}, at, axes)
            before = parts[giver[where][at]].path
            raise refusal(
                f"{part.path}: {name}: {variable.name} of {cell}",
                f"be {found[where][at]} as in {before}",
                shown(values[at].item()),
            )
        found[where], giver[where] = values, number
    return found


def _components(parts: Sequence[Part], arrays: Mapping[str, NDArray[Any]]) -> int:
    """Singular values kept of each matrix: whole spectra, where one region has them, or the leading ones."""
    if any(_has_whole_spectra(part) for part in parts):
        return _longest(arrays)
    return max(len(part.places["component"]) for part in parts)


def _has_whole_spectra(part: Part) -> bool:
    """Whether there is room for all singular values, and not because there are no more than the leading ones."""
    rules = rules_by_region(str(part.attributes.get(schema.METHOD_RULE, "")), part.labels("region")) or {"": ""}
    leading = all(rule.startswith("matrix-free") for rule in rules.values())
    return len(part.places["component"]) == _longest(part.arrays) and not leading


def _longest(arrays: Mapping[str, NDArray[Any]]) -> int:
    return max(1, int(np.minimum(arrays["rows"], arrays["columns"]).max()))


# Between groups.


def check_axis(group: MergedGroup, other: MergedGroup, axis: str, remedy: str) -> None:
    """Refuse two groups with different labels along an axis.

    Raises:
        MatchError: naming the first label that one of them lacks.
    """
    ours, theirs = group.labels[axis], other.labels[axis]
    if ours != theirs:
        lacking = [label for label in theirs if label not in ours]
        more = [label for label in ours if label not in theirs]
        got = f"no {axis} {lacking[0]}" if lacking else f"{axis} {more[0]} too"
        raise refusal(group.name, f"hold what {other.name} holds along {axis}", got, remedy)


def _check_baselines(groups: Sequence[MergedGroup]) -> None:
    """Refuse a baseline that some of its arm's matrices lack; `init` is of one step alone."""
    first: dict[str, MergedGroup] = {}
    for group in groups:
        known = first.setdefault(arm_of(group.name), group)
        steps = () if "init" in (baseline_of(known.name), baseline_of(group.name)) else ("step",)
        for axis in ("seed", *steps, "region", "sequence", "layer", "head"):
            check_axis(group, known, axis, f"Measure a baseline with every part of {known.name}, or with none.")


def _check_sequences(groups: Sequence[MergedGroup]) -> None:
    """Refuse groups of one kind with different sequences under one number, but where one file holds both of them."""
    first: dict[str, MergedGroup] = {}
    for group in groups:
        known = first.setdefault(group.layout.kind, group)
        for name in _OF_A_SEQUENCE:
            ours, theirs = _by_sequence(known, name), _by_sequence(group, name)
            for label in sorted(ours.keys() & theirs.keys()):
                if not np.array_equal(ours[label], theirs[label]) and not _givers(known, label) & _givers(group, label):
                    raise refusal(
                        f"{min(_givers(group, label))}: {group.name}: {name} of sequence {label}",
                        f"be that of {known.name} in {min(_givers(known, label))}",
                        "another",
                    )


def _check_prefix_lengths(group: MergedGroup) -> None:
    """Refuse parts that each have one prefix length, but not the same: measures grow with it, and no mean is across it."""
    first, *others = ({int(length) for length in part.arrays["prefix_length"]} for part in group.parts)
    for part, lengths in zip(group.parts[1:], others, strict=True):
        if len(first) == len(lengths) == 1 and lengths != first:
            same(f"{part.path}: {group.name}: prefix_length", group.parts[0], *first, *lengths)


def _by_sequence(group: MergedGroup, name: str) -> dict[int, NDArray[Any]]:
    """A variable by number of the sequence; nothing where the group lacks it."""
    array = group.layout.arrays.get(name)
    return {} if array is None else dict(zip(group.labels["sequence"], array, strict=True))


def _givers(group: MergedGroup, label: int) -> set[Path]:
    """Files with a sequence of a group."""
    return {part.path for part in group.parts if label in part.places["sequence"]}
