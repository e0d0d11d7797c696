"""What a monitor has measured: by probe while training runs, as arrays over all of them, as means to log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import numpy as np
from einops import reduce
from numpy.typing import NDArray

from rankkit.files import write_atomically

__all__ = ["LayerValues", "MonitorHistory", "Probed", "means", "stacked"]

LayerValues: TypeAlias = dict[str, NDArray[np.float64]]
"""By measure, or one end of its bracket: "sequence head" of a layer, "sequence layer head" of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What one forward pass gave."""

    step: int
    """Of training."""
    layers: tuple[str, ...]
    """Names, in the order in which they ran."""
    values: LayerValues
    """"sequence layer head"."""
    failed: int
    """Matrices that could not be measured."""
    seconds: float
    """That it took, measuring included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MonitorHistory:
    """Everything that a monitor has measured."""

    steps: NDArray[np.int64]
    """"step": those that were probed, in the order of time."""
    layers: tuple[str, ...]
    """Names on the axis layer: layer_0, encoder/layer_0, decoder/cross/layer_0, ..."""
    values: Mapping[str, NDArray[np.float64]]
    """"step sequence layer head" by measure (or its `_lower` and `_upper`); nan where a matrix could not be measured, or a
    layer has fewer heads."""
    failed: NDArray[np.int64]
    """"step": matrices that could not be measured."""
    seconds: NDArray[np.float64]
    """"step": that the probe took."""

    @classmethod
    def of(cls, probes: Sequence[Probed]) -> MonitorHistory:
        """What probes of the same layers found, in their order."""
        names = dict.fromkeys(name for probed in probes for name in probed.values)
        return cls(
            steps=np.array([probed.step for probed in probes], dtype=np.int64),
            layers=probes[-1].layers if probes else (),
            values=MappingProxyType({name: _column(name, probes) for name in names}),
            failed=np.array([probed.failed for probed in probes], dtype=np.int64),
            seconds=np.array([probed.seconds for probed in probes], dtype=np.float64),
        )

    def save(self, path: str | Path) -> None:
        """Write one .npz file, whole or not at all, that `numpy.load` reads without pickle.

        Its arrays are `steps`, `layers`, `failed`, `seconds` and `values/MEASURE`.

        Raises:
            StorageError: the file system refused.
        """
        arrays: dict[str, NDArray[Any]] = {
            "steps": self.steps,
            "layers": np.array(self.layers, dtype=np.str_),
            "failed": self.failed,
            "seconds": self.seconds,
            **{f"values/{name}": values for name, values in self.values.items()},
        }

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **cast(Any, arrays))

        write_atomically(Path(path), write)


def stacked(layers: list[LayerValues]) -> LayerValues:
    """From "sequence head" by layer to "sequence layer head", nan where a layer has fewer heads or lacks a measure."""
    shapes = [values.shape for columns in layers for values in columns.values()]
    sequences, heads = (max((shape[axis] for shape in shapes), default=0) for axis in (0, 1))
    found: LayerValues = {}
    for position, columns in enumerate(layers):
        for name, values in columns.items():
            whole = found.setdefault(name, np.full((sequences, len(layers), heads), np.nan))
            whole[: values.shape[0], position, : values.shape[1]] = values
    return found


def _column(name: str, probes: Sequence[Probed]) -> NDArray[np.float64]:
    """One measure, "step sequence layer head"; nan in probes that lack it."""
    shape = next(probed.values[name].shape for probed in probes if name in probed.values)
    return np.stack([probed.values.get(name, np.full(shape, np.nan)) for probed in probes])


def means(layers: tuple[str, ...], values: LayerValues) -> dict[str, float]:
    """What is logged: means over all but nan, by layer and over all layers; nan where there is nothing else."""
    logged = {}
    for name, whole in values.items():
        known = ~np.isnan(whole)
        sums, counts = (
            reduce(part, "sequence layer head -> layer", "sum")
            for part in (np.where(known, whole, 0.0), known.astype(float))
        )
        for layer, total, count in zip(layers, sums, counts, strict=True):
            logged[f"rank/{name}/{layer}"] = float(total / count) if count else math.nan
        logged[f"rank/{name}/mean"] = float(sums.sum() / counts.sum()) if counts.sum() else math.nan
    return logged
