"""The comparison of two arms, computed again from merged numbers: intervals over seeds are no sum of intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankkit.store import schema
from rankkit.store.names import baseline_of
from rankkit.store.variables import Variable, bracket_variables, measure_variable
from rankkit.studies.arm_values import ArmValues, Array, decompositions
from rankkit.studies.decomposition import ArmFacts, Decomposition, causal_and_prefix
from rankkit.studies.merging.groups import MergedGroup, check_axis
from rankkit.studies.merging.matching import refusal
from rankkit.studies.merging.parts import assembled

__all__ = ["merged_comparison"]


def merged_comparison(groups: Sequence[MergedGroup]) -> dict[int, Decomposition]:
    """The gap between a causal and a prefix arm at every step.

    Args:
        groups: of the merged file.

    Returns:
        By step; empty where there are no two such arms under both masks.

    Raises:
        MatchError: the two arms hold different seeds, steps, regions, sequences, layers or measures, or do not say from
            which documents their sequences are.
        SpectrumFileError: a file is damaged.
    """
    arms = {group.name: group for group in groups if baseline_of(group.name) is None}
    facts = [_facts(group) for group in arms.values()]
    pair = causal_and_prefix(facts)
    if pair is None or any(arms[name].labels["applied_mask"] != schema.APPLIED_MASKS for name in pair):
        return {}
    causal, prefix = (arms[name] for name in pair)
    _check_pair(causal, prefix)
    document = np.asarray(causal.layout.document, dtype=np.int64)
    by_step: dict[int, Decomposition] = {}
    for step in causal.labels["step"]:
        values = {group.name: _values(group, step) for group in (causal, prefix)}
        layers, regions = causal.labels["layer"], causal.labels["region"]
        by_step |= decompositions(facts, values, (step,), document, layers, regions)
    return by_step


def _facts(group: MergedGroup) -> ArmFacts:
    layout = group.layout
    flags = np.asarray(layout.untrained, dtype=np.bool_)
    return ArmFacts(name=group.name, mask=layout.mask, objective=layout.objective, untrained=flags)


def _check_pair(causal: MergedGroup, prefix: MergedGroup) -> None:
    for axis in ("seed", "step", "region", "sequence", "layer"):
        check_axis(prefix, causal, axis, "Two arms are compared on the same; add the file that holds the rest.")
    ours, theirs = (", ".join(sorted(group.layout.measures)) for group in (causal, prefix))
    if ours != theirs:
        raise refusal(prefix.name, f"hold the measures of {causal.name}, {ours}", theirs)
    if causal.layout.document is None:
        raise refusal(
            causal.name, "say from which document each sequence is", "a file of schema 1.0", "Measure the run again."
        )


def _values(group: MergedGroup, step: int) -> ArmValues:
    """The numbers of one step."""

    def table(variable: Variable) -> Array:
        wanted = {**group.labels, "step": (step,)}
        return assembled(group.parts, variable, wanted)

    described = group.layout.measures
    brackets = {name: bracket_variables(name, described[name]) for name in group.layout.estimated}
    return ArmValues(
        measures={name: table(measure_variable(name, text)) for name, text in described.items()},
        brackets={name: (table(lower), table(upper)) for name, (lower, upper) in brackets.items()},
        status=np.empty(0, dtype=np.int8),
    )
