"""A measurement that is already finished: whether a file is what a command would make, and its numbers out of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from rankkit.errors import OutputExistsError
from rankkit.store import GroupDescription, describe, read_group, read_root
from rankkit.studies.arm_values import ArmValues, decompositions
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.measure import Measured
from rankkit.studies.measuring.plan import APPLIED, Plan
from rankkit.studies.measuring.source import Source

__all__ = ["finished_measurement"]

_WITHOUT_EFFECT: Final = ("--resume", "--force", "--quiet", "--json", "--debug")
"""Flags that change no number."""


def finished_measurement(source: Source, config: MeasureConfig, path: Path, *, command: str) -> Measured:
    """The numbers of a file that this very command would make.

    Compared are the words of the command, the configuration and certificate of what was measured, and of every arm its
    checkpoints, tokens, seeds, steps, regions, masks, layers, heads, sequences and measures.

    Args:
        source: of the command.
        config: the same.
        path: of the finished file.
        command: that asks for it.

    Returns:
        As `measure_attention`, without functional rank.

    Raises:
        OutputExistsError: it is another measurement.
        SpectrumFileError: the file cannot be read safely.
        RankkitError: as the source raises.
    """
    plan = source.plan(config)
    difference = next(_differences(source, config, path, plan, command), None)
    if difference is not None:
        raise OutputExistsError(
            f"{path} must be what this command makes to be taken as finished, but {difference}. Name another --out."
        )
    values = {arm.name: _values(path, arm.name, config) for arm in plan.arms}
    by_step = {}
    if plan.applied == APPLIED and plan.documents is not None:
        by_step = dict(decompositions(plan.facts, values, plan.steps, plan.documents, plan.layers, plan.regions))
    return Measured(plan=plan, values=values, by_step=by_step)


def _differences(source: Source, config: MeasureConfig, path: Path, plan: Plan, command: str) -> Iterator[str]:
    """What is not the same, in words, one after the other."""
    root, facts, groups = read_root(path), source.facts, {group.name: group for group in describe(path).groups}
    if _words(root.command) != _words(command):
        yield f"it was made by {root.command!r}, which is not {command!r}"
    if root.configuration != facts.configuration or root.certificate != facts.certificate:
        yield "the configuration or certificate of what it measured was another"
    if list(groups) != [arm.name for arm in plan.arms]:
        yield f"it holds {', '.join(groups)} instead of {', '.join(arm.name for arm in plan.arms)}"
    for part in plan.parts:
        (arm,) = part.arms
        if arm.name in groups:
            yield from (f"{arm.name} has other {what}" for what in _other(path, groups[arm.name], part, config))


def _words(command: str) -> list[str]:
    """The words of a command that matter, in any order."""
    return sorted(word for word in shlex.split(command) if word not in _WITHOUT_EFFECT)


def _other(path: Path, group: GroupDescription, plan: Plan, config: MeasureConfig) -> Iterator[str]:
    """What of an arm is not as planned."""
    (arm,) = plan.arms
    axes: dict[str, Any] = {
        "seed": arm.seeds, "step": plan.steps, "region": plan.regions, "applied_mask": plan.applied,
        "sequence": plan.sequence_numbers, "layer": plan.layers, "head": plan.heads,
    }  # fmt: skip
    for axis, wanted in axes.items():
        if [str(label) for label in group.labels[axis]] != [str(label) for label in wanted]:
            yield f"{axis.replace('_', ' ')}s"
    if sorted(group.measures) != sorted(config.measures):
        yield "measures"
    stored = read_group(path, group.name, ("tokens", "checkpoint_sha256"))
    if not np.array_equal(stored["tokens"], plan.sequences):
        yield "tokens"
    if [list(map(str, row)) for row in stored["checkpoint_sha256"]] != [list(row) for row in arm.checkpoint_sha256]:
        yield "checkpoints"


def _values(path: Path, arm: str, config: MeasureConfig) -> ArmValues:
    """The numbers of an arm."""
    stored = read_group(path, arm)
    found = ArmValues.unfilled(config.measures, stored["status"].shape)
    found.status[...] = stored["status"]
    for name in config.measures:
        found.measures[name][...] = stored[name]
        if f"{name}_error" in stored:
            found.errors[name][...] = stored[f"{name}_error"]
        if f"{name}_lower" in stored:
            for table, end in zip(found.brackets[name], ("lower", "upper"), strict=True):
                table[...] = stored[f"{name}_{end}"]
    return found
