"""Functional ranks of one arm from several files: one file for each seed, put together along that axis alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store import CutLosses, schema
from rankkit.store.door.hdf5 import attributes_of, datasets_in, read_array
from rankkit.studies.merging.matching import refusal, same
from rankkit.studies.merging.parts import StudyFile

__all__ = ["merged_losses"]

_LABELS: Final = {"sequence": "sequences", "layer": "layers", "head": "heads", "kept_rank": "kept_ranks", "cut": "cuts"}
_ADVICE: Final = (
    "A functional rank holds means over sequences, which shards of them do not give: measure it in one file."
)


def merged_losses(arm: str, files: Sequence[StudyFile], seeds: Sequence[int]) -> CutLosses | None:
    """What cutting the rank of one arm's attention costs, over all seeds.

    Args:
        arm: name of a group.
        files: those that are merged.
        seeds: of the merged arm.

    Returns:
        None where no file says it.

    Raises:
        MatchError: files differ in more than the seed, hold the same one, or lack one of the arm's.
        SpectrumFileError: a file is damaged.
    """
    name = f"{schema.FUNCTIONAL}/{arm}"
    given = {file: _arrays(file, arm) for file in files if arm in file.functional}
    if not given:
        return None
    first, *others = given
    for other in others:
        ours, theirs = _facts(first, arm, given[first]), _facts(other, arm, given[other])
        for fact in dict.fromkeys((*ours, *theirs)):
            same(f"{other.path}: {name}: {fact}", first, ours.get(fact), theirs.get(fact))
    giver = _givers(name, given)
    missing = [seed for seed in seeds if seed not in giver]
    if missing:
        raise refusal(name, f"hold every seed of {arm}", f"none of seed {missing[0]}", "Add the file that holds it.")
    return _together(arm, first, given)


def _arrays(file: StudyFile, arm: str) -> dict[str, NDArray[Any]]:
    found = {name: read_array(dataset) for name, dataset in datasets_in(file.functional[arm]).items()}
    numbers = found["sequence"].tolist()
    if numbers != list(range(len(numbers))):
        raise SpectrumFileError(
            f"{file.path}: {schema.FUNCTIONAL}/{arm}: sequence must count from 0, got {numbers[:8]}. Measure again."
        )
    return found


def _facts(file: StudyFile, arm: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Hashable]:
    """What all files must agree on, in words."""
    facts: dict[str, Hashable] = dict(attributes_of(file.functional[arm]))
    facts |= {plural: str(arrays[axis].tolist()) for axis, plural in _LABELS.items() if axis in arrays}
    facts["variables"] = ", ".join(sorted(arrays))
    facts["document"] = str(arrays["document"].tolist()) if "document" in arrays else None
    return facts


def _givers(name: str, given: Mapping[StudyFile, Mapping[str, NDArray[Any]]]) -> dict[int, Path]:
    """Which file has which seed."""
    giver: dict[int, Path] = {}
    for file, arrays in given.items():
        for seed in arrays["seed"].tolist():
            if seed in giver:
                raise refusal(
                    f"{file.path}: {name}", f"hold no seed of {giver[seed]}", f"both with seed {seed}", _ADVICE
                )
            giver[seed] = file.path
    return giver


def _together(arm: str, first: StudyFile, given: Mapping[StudyFile, Mapping[str, NDArray[Any]]]) -> CutLosses:
    seeds = np.concatenate([arrays["seed"] for arrays in given.values()])
    order, one = np.argsort(seeds), given[first]
    by_seed = [v.name for v in schema.FUNCTIONAL_VARIABLES if "seed" in v.dimensions and v.name in one]
    return CutLosses(
        seeds=seeds[order].tolist(),
        kept_ranks=one["kept_rank"].tolist(),
        cuts=one["cut"].tolist() if "cut" in one else (),
        layers=one["layer"].tolist() if "layer" in one else (),
        heads=one["head"].tolist() if "head" in one else (),
        **{name: np.concatenate([arrays[name] for arrays in given.values()])[order] for name in by_seed},
        document=one.get("document"),
        attributes=attributes_of(first.functional[arm]),
    )
