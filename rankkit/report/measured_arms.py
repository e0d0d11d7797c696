"""The arms of a spectrum file, averaged as figures want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from rankkit.store import describe, read_group
from rankkit.studies.head_means import filled, mean_of_known
from rankkit.studies.heads import HeadMaps, head_maps

__all__ = ["MeasuredArm", "RelativeSpectra", "measured_arms", "uniform_levels"]

Array = NDArray[np.float64]

_BELOW: Final = (
    100  # what lies under a floor is noise, zeros included: at a hundredth of the floor it is below the frame
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelativeSpectra:
    """The singular values of one region over their largest, and the noise floors."""

    values: Array
    """"layer matrix component", in [0, 1]: matrices of all seeds, sequences and heads; nan for one without a spectrum."""
    floors: Mapping[str, Array]
    """`arithmetic` and `model`: "layer", relative to the largest singular value, mean over matrices."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredArm:
    """One arm's group, whose variables are "seed step region applied_mask sequence layer head ..."."""

    name: str
    measure: Array | None
    """None where the file does not hold it."""
    group: Mapping[str, NDArray[Any]]

    @property
    def regions(self) -> list[str]:
        """Labels of the axis."""
        return self._labels("region")

    @property
    def layers(self) -> list[int]:
        """Labels of the axis."""
        return self._numbers("layer")

    @property
    def steps(self) -> list[int]:
        """Labels of the axis, ascending."""
        return self._numbers("step")

    def untrained(self, region: str) -> list[int]:
        """Places along `layer` that the loss hardly reaches."""
        return np.flatnonzero(self.group["untrained"][self.regions.index(region)]).tolist()

    def relative_spectra(self, region: str) -> RelativeSpectra | None:
        """Under the arm's own mask at the last step, as far as every layer has them; None where one has none."""
        index = self.regions.index(region)
        width = int(self.group["rows"][index].max())
        sigma = self.group["singular_values"][:, -1, index, 0, ..., :width]
        largest = np.where(sigma[..., :1] > 0, sigma[..., :1], np.nan)
        floor = self.group["floor_arithmetic"][:, -1, index, 0]
        raised = np.where(np.isnan(sigma), np.nan, np.fmax(sigma, floor[..., None] / _BELOW))
        values = rearrange(
            raised / largest, "seed sequence layer head component -> layer (seed sequence head) component"
        )
        known = (~np.isnan(values)).any(axis=1).all(axis=0)
        count = int(np.argmin(known)) if not known.all() else known.size
        floors = {
            name: mean_of_known(
                rearrange(
                    self.group[f"floor_{name}"][:, -1, index, 0] / largest[..., 0],
                    "seed sequence layer head -> layer (seed sequence head)",
                ),
                axis=-1,
            )
            for name in ("arithmetic", "model")
        }
        if count == 0 or any(np.isnan(level).any() for level in floors.values()):
            return None
        return RelativeSpectra(values=values[..., :count], floors=floors)

    def by_layer(self, region: str, applied: str) -> Array | None:
        """The measure at the last step, "seed layer", mean over heads and sequences; None where it was not measured."""
        means = self._means(region, applied)
        return None if means is None else means[:, -1]

    def by_step(self, region: str, applied: str) -> Array | None:
        """The measure over trained layers, "seed step"; None where it was not measured, or no layer is trained."""
        means, flags = self._means(region, applied), self.untrained(region)
        trained = [layer for layer in range(len(self.layers)) if layer not in flags]
        return None if means is None or not trained else np.asarray(means[..., trained].mean(axis=-1))

    def head_maps(self, region: str, measure: str) -> HeadMaps | None:
        """Maps at the last step; None without the measure, the swapped mask or the documents of the sequences."""
        if self.measure is None or self._labels("applied_mask") != ["own", "swapped"] or "document" not in self.group:
            return None
        index = self.regions.index(region)
        (maps,) = head_maps(
            self.measure[:, -1, index : index + 1],
            self.group["document"],
            arm=self.name,
            measure=measure,
            seeds=self._numbers("seed"),
            regions=[region],
            layers=self.layers,
            heads=self._numbers("head"),
            untrained=self.group["untrained"][index : index + 1] > 0,
            step=self.steps[-1],
        )
        return maps

    def _means(self, region: str, applied: str) -> Array | None:
        """Mean over heads and sequences, "seed step layer"; nan where no matrix has a value."""
        masks = self._labels("applied_mask")
        if self.measure is None or applied not in masks:
            return None
        values = self.measure[:, :, self.regions.index(region), masks.index(applied)]
        known = np.where(np.isfinite(values), values, np.nan)
        return mean_of_known(mean_of_known(filled(known, axis=2), axis=2), axis=-1)

    def _labels(self, axis: str) -> list[str]:
        return [str(label) for label in self.group[axis]]

    def _numbers(self, axis: str) -> list[int]:
        return [int(label) for label in self.group[axis]]


def measured_arms(path: Path, measure: str) -> list[MeasuredArm]:
    """The arms of a file in storage order, without the baselines."""
    arms = []
    for description in describe(path).groups:
        group = read_group(path, description.name)
        values = group[measure] if measure in description.measures else None
        arms.append(MeasuredArm(name=description.name, measure=values, group=group))
    return arms


def uniform_levels(path: Path, measure: str) -> dict[tuple[str, str], Array]:
    """The measure of uniform attention under the same mask, where the file holds that baseline.

    Returns:
        By (arm, region): "layer", mean over everything else.
    """
    levels = {}
    for description in describe(path).baselines:
        if description.baseline == "uniform" and measure in description.measures:
            axes = ("region", "layer", "applied_mask", "step", "untrained")
            group = read_group(path, description.name, (measure, *axes))
            arm = MeasuredArm(name=description.arm, measure=group[measure], group=group)
            for region in arm.regions:
                table = arm.by_layer(region, "own")
                if table is not None and np.isfinite(table).all():
                    levels[arm.name, region] = table.mean(axis=0)
    return levels
