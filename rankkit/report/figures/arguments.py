"""Checks of what a figure is given: every array finite, of the stated axes, and matching its neighbours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Array",
    "common_length",
    "finite_array",
    "given_axes",
    "non_empty",
    "numbered_layers",
    "subset_of_arms",
    "two",
    "untrained_by_layer",
    "untrained_label",
]

Array: TypeAlias = NDArray[np.float64]
Item = TypeVar("Item")


def finite_array(name: str, values: ArrayLike, axes: str, /) -> Array:
    """Check one array.

    Args:
        name: how the message calls it.
        values: anything NumPy can read.
        axes: the axes it must have, an einops pattern such as "seed layer"; "" for a single number.

    Returns:
        The values as float64.

    Raises:
        ConfigurationError: not numbers, of other axes, empty, or not finite.
    """
    wanted = f"an array of axes ({axes})" if axes else "one number"
    remedy = f"Pass {wanted} of finite numbers."
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} must be {wanted}, got {type(values).__name__}: {error}. {remedy}") from error
    if array.ndim != len(axes.split()) or array.size == 0:
        raise ConfigurationError(f"{name} must be {wanted}, not empty, got shape {array.shape}. {remedy}")
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)]
        raise ConfigurationError(
            f"{name} must be finite, got {float(bad[0])!r} in {bad.size} of {array.size} places. {remedy}"
        )
    return array


def non_empty(name: str, mapping: Mapping[str, object], what: str, /) -> None:
    """Check that there is something to draw.

    Raises:
        ConfigurationError: the mapping is empty.
    """
    if not mapping:
        raise ConfigurationError(f"{name} must hold at least one {what}, got none. Pass one.")


def subset_of_arms(name: str, given: Iterable[str], arms: Collection[str], /) -> None:
    """Check that an optional argument speaks only of arms that are drawn.

    Raises:
        ConfigurationError: an unknown arm.
    """
    unknown = sorted(set(given) - set(arms))
    if unknown:
        raise ConfigurationError(
            f"{name} must name arms among {', '.join(arms)}, got {', '.join(unknown)}. Leave those out."
        )


def common_length(name: str, arrays: Mapping[str, Array], axis: int, what: str, /) -> int:
    """The length of one axis that all arms must share.

    Args:
        name: how the message calls the mapping.
        arrays: arm to array.
        axis: which axis to compare.
        what: what the axis counts, in the plural.

    Raises:
        ConfigurationError: the arms differ.
    """
    lengths: dict[str, int] = {arm: array.shape[axis] for arm, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigurationError(
            f"{name} must have the same number of {what} in every arm, got {lengths!r}. Draw such arms apart."
        )
    return next(iter(lengths.values()))


def two(name: str, values: tuple[Item, Item], /) -> tuple[Item, Item]:
    """Take a pair apart.

    Raises:
        ConfigurationError: not two things.
    """
    if isinstance(values, str) or not isinstance(values, Sized) or len(values) != 2:
        raise ConfigurationError(f"{name} must be a pair, got {values!r}. Pass a tuple of two.")
    first, second = values
    return first, second


def untrained_by_layer(
    layers: Collection[int] | Mapping[str, Collection[int]], arms: Sequence[str], num_layers: int, /
) -> dict[int, list[str]]:
    """Which layers to flag, and for which arms.

    Args:
        layers: hardly trained layers of all arms, or of each arm.
        arms: the arms that are drawn.
        num_layers: of the model.

    Returns:
        Hardly trained layer to the arms that hardly trained it, both in order.

    Raises:
        ConfigurationError: a layer that the model does not have, or an unknown arm.
    """
    by_arm = layers if isinstance(layers, Mapping) else dict.fromkeys(arms, layers)
    subset_of_arms("untrained_layers", by_arm, arms)
    flagged = sorted({layer for chosen in by_arm.values() for layer in chosen})
    for layer in flagged:
        if layer not in range(num_layers):
            raise ConfigurationError(
                f"untrained_layers must be between 0 and {num_layers - 1}, got {layer!r}. Count layers from 0."
            )
    return {layer: [arm for arm in arms if layer in by_arm.get(arm, ())] for layer in flagged}


def numbered_layers(numbers: Sequence[int] | None, count: int, /) -> list[int]:
    """The numbers that layers have in their model: 0, 1, ... unless given.

    Raises:
        ConfigurationError: another number of them than there are layers.
    """
    found = list(range(count)) if numbers is None else list(numbers)
    if len(found) != count:
        raise ConfigurationError(f"layer_numbers must name {count} layers, got {found}. Give one for each layer drawn.")
    return found


def untrained_label(untrained: Collection[str], arms: Collection[str], /) -> str:
    """`hardly trained` where that is so in every arm, with the names of the arms where it is in some, "" where in none."""
    if not untrained:
        return ""
    return "hardly trained" if len(untrained) == len(arms) else f"hardly trained: {', '.join(untrained)}"


def given_axes(ax: Iterable[Axes], count: int, /) -> tuple[Axes, ...]:
    """The axes that were passed in, flattened.

    Raises:
        ConfigurationError: another number of axes than there are panels.
    """
    flat: tuple[Axes, ...] = tuple(np.array(ax, dtype=object).ravel())
    if len(flat) != count:
        raise ConfigurationError(f"ax must hold {count} axes, one per panel, got {len(flat)}. Make that many.")
    return flat
