"""Which targets are one study: the same configuration, measured alike, under other seeds."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rankkit.axes import SPECTRUM_AXES
from rankkit.report.page.subject import Source
from rankkit.store import describe, read_group

__all__ = ["grouped"]

_OF_THE_RUN: Final = ("command", "created", "environment")
"""Sections of run.toml that say where and when, not what."""


def grouped(sources: Sequence[Source]) -> list[tuple[Source, ...]]:
    """Sources of one study together, in the order of the first of each.

    Args:
        sources: in the order in which they were named.
    """
    studies: list[list[Source]] = []
    for source in sources:
        home = next((study for study in studies if _belongs(source, study)), None)
        if home is None:
            studies.append([source])
        else:
            home.append(source)
    return [tuple(study) for study in studies]


def _belongs(source: Source, study: Sequence[Source]) -> bool:
    """Whether a source is of the study, and has no seed of it."""
    seeds = [seed for one in study for seed in _seeds(one)]
    first = study[0]
    what = _what(source)
    return (
        what is not None
        and what == _what(first)
        and not set(seeds) & set(_seeds(source))
        and (source.run is None) == (first.run is None)
        and _measured_alike(source.file, first.file)
    )


def _what(source: Source) -> dict[str, Any] | None:
    """The configuration without seeds, place and time; None for a file that has none of ours."""
    try:
        table = tomllib.loads(source.configuration)
    except tomllib.TOMLDecodeError:
        return None
    if "rankkit_run" not in table or not isinstance(table.get("run"), dict):
        return None
    run = {name: value for name, value in table["run"].items() if name != "seeds"}
    return {name: value for name, value in table.items() if name not in _OF_THE_RUN} | {"run": run}


def _seeds(source: Source) -> tuple[int, ...]:
    """Those of the file, or of the run where nothing was measured."""
    if source.file is None:
        return () if source.run is None else source.run.config.seeds
    return tuple({int(seed) for group in describe(source.file).groups for seed in group.labels["seed"]})


def _measured_alike(one: Path | None, other: Path | None) -> bool:
    """Whether two files differ in their seeds alone: the same groups, labels, measures and tokens."""
    if one is None or other is None:
        return one is other
    first, second = describe(one), describe(other)
    if [_shape(group) for group in first.groups] != [_shape(group) for group in second.groups]:
        return False
    return all(
        np.array_equal(
            read_group(one, group.name, ["tokens"])["tokens"], read_group(other, group.name, ["tokens"])["tokens"]
        )
        for group in first.groups
    )


def _shape(group: Any) -> Iterable[Any]:
    labels = {axis: group.labels[axis] for axis in SPECTRUM_AXES if axis != "seed"}
    return group.name, labels, sorted(group.measures), sorted(group.estimated)
