"""Gap, mask effect, learned effect and interaction of a study, by measure, region, layer and step.

Of one file they are those that it holds; of several under other seeds they are computed from their numbers, because
intervals over seeds are no sum of intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.report.page.numbers import ArmNumbers, Numbers
from rankkit.statistics import Interval
from rankkit.store import read_group
from rankkit.studies.decomposition import EFFECTS, ArmFacts, Decomposition, causal_and_prefix, decompose

__all__ = ["MeanEffects", "decomposed", "mean_effects", "pair_of"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanEffects:
    """The effects on one measure of one region, of the mean over trained layers at one step."""

    measure: str
    region: str
    step: int
    effects: Mapping[str, Interval]
    """By name from `EFFECTS`."""
    same_mask: float
    """Root mean square difference between two single seeds of one arm; nan where it is not known."""


def pair_of(numbers: Numbers) -> tuple[str, str] | None:
    """The first (causal arm, prefix arm) with one objective and both masks on their logits; None without such two."""
    found = causal_and_prefix(_facts(numbers.arms))
    if found is None:
        return None
    causal, prefix = (numbers.arm(name) for name in found)
    same = all(causal.labels(axis) == prefix.labels(axis) for axis in ("region", "layer", "sequence", "step"))
    alike = same and causal.seeds == prefix.seeds and causal.documents is not None
    return found if alike and causal.is_swapped and prefix.is_swapped else None


def decomposed(numbers: Numbers, measures: Sequence[str], *, step: int | None = None) -> Decomposition | None:
    """The effects on some measures, from the numbers of every matrix.

    Args:
        numbers: open.
        measures: names; those that an arm of the pair lacks are left out.
        step: place along the axis; the last unless given.

    Returns:
        None where there are no two arms to compare, or none of the measures.
    """
    pair = pair_of(numbers)
    if pair is None:
        return None
    arms = [numbers.arm(name) for name in pair]
    place = len(arms[0].labels("step")) - 1 if step is None else step
    known = [name for name in measures if all(name in arm.description.measures for arm in arms)]
    if not known:
        return None
    values = {arm.name: {name: arm.values(name)[:, place] for name in known} for arm in arms}
    brackets = {
        arm.name: {
            name: (ends[0][:, place], ends[1][:, place]) for name in known if (ends := arm.bracket(name)) is not None
        }
        for arm in arms
    }
    documents = arms[0].documents
    assert documents is not None, "pair_of asks for them"
    return decompose(
        _facts(arms),
        values,
        documents,
        arms[0].labels("layer"),
        arms[0].labels("region"),
        step=int(arms[0].labels("step")[place]),
        brackets=brackets,
    )


def _facts(arms: Iterable[ArmNumbers]) -> list[ArmFacts]:
    return [
        ArmFacts(
            name=arm.name,
            mask=str(arm.description.attributes["mask"]),
            objective=str(arm.description.attributes["objective"]),
            untrained=arm.untrained,
        )
        for arm in arms
    ]


def mean_effects(numbers: Numbers) -> list[MeanEffects]:
    """Of every measure and region at every step that the comparison knows, steps rising.

    Of several files: of the last step alone.
    """
    if pair_of(numbers) is None:
        return []
    if len(numbers.files) > 1:
        found = decomposed(numbers, numbers.measures)
        return [] if found is None else list(_computed(found))
    comparison = numbers.description.comparison
    if comparison is None:
        return []
    group = "comparison/by_step" if comparison.steps else "comparison"
    stored = read_group(numbers.description.path, group)
    if f"mean_{EFFECTS[0]}" not in stored:
        return []
    steps = comparison.steps or (int(numbers.arms[0].labels("step")[-1]),)
    kind, seeds = str(comparison.attributes.get("interval", "as stored")), len(numbers.arms[0].seeds)
    return [
        _stored(stored, str(measure), str(region), step, (*([s] if comparison.steps else []), m, r), (kind, seeds))
        for s, step in enumerate(steps)
        for m, measure in enumerate(stored["measure"])
        for r, region in enumerate(stored["region"])
    ]


def _computed(found: Decomposition) -> Iterable[MeanEffects]:
    for measure in found.measures:
        for row in found.means(measure):
            yield MeanEffects(
                measure=measure, region=row.region, step=found.step, effects=row.effects, same_mask=row.same_mask
            )


def _stored(
    stored: Mapping[str, NDArray[Any]],
    measure: str,
    region: str,
    step: int,
    where: tuple[int, ...],
    about: tuple[str, int],
) -> MeanEffects:
    control = stored.get("mean_same_mask")
    return MeanEffects(
        measure=measure,
        region=region,
        step=step,
        effects={name: _interval(stored[f"mean_{name}"][where], *about) for name in EFFECTS},
        same_mask=float("nan") if control is None else float(control[where]),
    )


def _interval(bounds: NDArray[np.float64], kind: str, count: int) -> Interval:
    mean, lower, upper = bounds.tolist()
    return Interval(mean=mean, lower=lower, upper=upper, count=count, kind=kind)
