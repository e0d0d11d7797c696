"""The names of groups and measures: which they may have, and what groups' names say."""

from __future__ import annotations

import re
from collections.abc import Collection

from rankkit.axes import AXES
from rankkit.store import schema
from rankkit.store.variables import LAYER_OUTPUT

__all__ = ["arm_of", "baseline_of", "baseline_problem", "check_group_name", "is_group_name", "is_measure_name"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*){0,3}")
_MEASURE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESERVED = {
    *(variable.name for variable in (*schema.GROUP_VARIABLES, *schema.KEPT_VARIABLES)),
    *AXES,
    *schema.COMPARISON_AXES,
    "baseline",
}
_TAKEN = {schema.COMPARISON, schema.FUNCTIONAL, *(variable.name for variable in schema.ROOT_STRINGS)}


def check_group_name(name: str, written: Collection[str]) -> None:
    """Check the name of an arm's group, or of one of its baselines.

    Args:
        name: such as "gpt", "t5/encoder" or "baselines/uniform/gpt".
        written: names of the groups there are.

    Raises:
        ValueError: it is not of that form, taken, or of an unknown baseline.
    """
    if not is_group_name(name) or name in written:
        raise ValueError(
            f"name must be new, of lower-case letters, digits, '_', '-' and '.', at most four levels, "
            f"got {name!r}. Rename the group."
        )


def is_group_name(name: str) -> bool:
    """Whether an arm's group, or that of a baseline, may have this name."""
    return _NAME.fullmatch(name) is not None and name.split("/")[0] not in _TAKEN


def is_measure_name(name: str) -> bool:
    """Whether a measure may have this name: no axis and no other variable of a group has it."""
    return _MEASURE_NAME.fullmatch(name) is not None and name not in _RESERVED and not name.startswith(LAYER_OUTPUT)


def baseline_problem(name: str, *, rows_sum_to_one: bool) -> str | None:
    """What is wrong with the place of a group among the baselines, or None.

    Args:
        name: of a group.
        rows_sum_to_one: whether it holds attention.
    """
    baseline = baseline_of(name)
    if baseline is None:
        return None
    if baseline not in schema.BASELINES or not arm_of(name):
        known = ", ".join(schema.BASELINES)
        return f"{name} must be {schema.BASELINE_GROUP}/<name>/<arm> with a name among {known}, got another"
    if baseline in schema.SIGNED_BASELINES and rows_sum_to_one:
        return f"{name} must have {schema.ROWS_SUM_TO_ONE} 0, for its matrices are signed, got 1"
    return None


def baseline_of(name: str) -> str | None:
    """The baseline that a group belongs to, or None for an arm itself."""
    first, *rest = name.split("/")
    return (rest[0] if rest else "") if first == schema.BASELINE_GROUP else None


def arm_of(name: str) -> str:
    """The arm that a group is about: "gpt" for "gpt" and for "baselines/uniform/gpt"."""
    return name if baseline_of(name) is None else "/".join(name.split("/")[2:])
