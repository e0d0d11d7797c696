"""The figures of a run, from its files: what is read and averaged here, `figures` draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from rankkit.files import read_json_lines
from rankkit.report.figures import losses, measure_by_layer, spectra_by_layer
from rankkit.report.style import save
from rankkit.store import describe, read_group
from rankkit.studies.losses import LossComparison
from rankkit.studies.run import Run

__all__ = ["draw_losses", "draw_spectra"]

Array = NDArray[np.float64]

_BAND = (0.25, 0.75)  # quantiles over seeds, sequences and heads
_AXES = "seed step region applied_mask sequence layer head component"


def draw_losses(run: Run, comparison: LossComparison) -> list[Path]:
    """Validation losses of all arms and their paired difference, into the run's `figures` folder.

    Returns:
        The files, PNG first.
    """
    curves: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    for arm in comparison.arms:
        curves[arm.arm] = {seed: _curve(run, arm.arm, seed) for seed in arm.seeds}
    pairs = [difference.arms for difference in comparison.differences]
    upper, _ = losses(curves, differences=pairs or None, baselines=dict(comparison.ngrams))
    return save(upper.figure, run.directory.figures, "losses")  # type: ignore[arg-type]


def _curve(run: Run, arm: str, seed: int) -> tuple[list[float], list[float]]:
    lines = [line for line in read_json_lines(run.directory.metrics(arm, seed)) if line["kind"] == "evaluation"]
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def draw_spectra(path: Path, folder: Path, *, measure: str = "effective_rank") -> list[Path]:
    """Median spectrum per layer, and a measure by layer with its swapped control, for each region of a spectrum file.

    Args:
        path: of the HDF5 file.
        folder: for the pictures.
        measure: which to draw by layer; skipped where the file does not hold it.

    Returns:
        The files, each PNG followed by its SVG.
    """
    description = describe(path)
    names = [group.name for group in description.groups]
    groups = {name: read_group(path, name) for name in names}
    regions = [str(region) for region in next(iter(groups.values()))["region"]]
    written = []
    for region in regions:
        panels = _spectra(groups, region)
        written += save(panels[0].figure, folder, f"spectrum_{region}")
        if all(measure in group for group in groups.values()):
            axes = _measure(groups, region, measure)
            written += save(axes.figure, folder, f"{measure}_{region}")
    return written


def _spectra(groups: Mapping[str, Mapping[str, NDArray]], region: str):  # type: ignore[no-untyped-def, type-arg]
    means: dict[str, Array] = {}
    bands: dict[str, tuple[Array, Array]] = {}
    floors: dict[str, list[Array]] = {"arithmetic": [], "model": []}
    for arm, group in groups.items():
        index = [str(name) for name in group["region"]].index(region)
        width = int(group["rows"][index].max())
        sigma = group["singular_values"][:, -1, index, 0, ..., :width]
        largest = sigma[..., :1]
        floor = group["floor_arithmetic"][:, -1, index, 0]
        # What lies under the floor is noise, zeros included: it is drawn at a hundredth of the floor, below the frame.
        relative = np.maximum(sigma, floor[..., None] / 100) / largest
        by_layer = rearrange(relative, "seed sequence layer head component -> layer (seed sequence head) component")
        # The median, because a mean over resolved and unresolved heads would lie where no head is.
        means[arm] = np.nanmedian(by_layer, axis=1)
        low, high = np.nanquantile(by_layer, _BAND, axis=1)
        bands[arm] = (low, high)
        for name in floors:
            part = group[f"floor_{name}"][:, -1, index, 0] / largest[..., 0]
            floors[name].append(np.nanmean(part, axis=(0, 1, 3)))
    return spectra_by_layer(
        means,
        layer_numbers=_layers(groups),
        floors={name: np.max(parts, axis=0) for name, parts in floors.items()},
        bands=bands,
        band_label="middle half over seeds, sequences, heads",
        untrained_layers=_untrained(groups, region),
    )


def _measure(groups: Mapping[str, Mapping[str, NDArray]], region: str, measure: str):  # type: ignore[no-untyped-def, type-arg]
    own, swapped = {}, {}
    for arm, group in groups.items():
        index = [str(name) for name in group["region"]].index(region)
        values = np.nanmean(group[measure][:, -1, index], axis=(2, 4))  # seed applied_mask layer
        own[arm] = values[:, 0]
        swapped[arm] = values[:, 1]
    words = {"full": "whole matrix", "prefix_block": "prefix block"}.get(region, region)
    return measure_by_layer(
        own,
        label=f"{measure.replace('_', ' ')}, {words}",
        untrained_layers=_untrained(groups, region),
        layer_numbers=_layers(groups),
        swapped=swapped,
    )


def _layers(groups: Mapping[str, Mapping[str, NDArray]]) -> list[int]:  # type: ignore[type-arg]
    """Numbers of the measured layers, the same in every arm."""
    return [int(layer) for layer in next(iter(groups.values()))["layer"]]


def _untrained(groups: Mapping[str, Mapping[str, NDArray]], region: str) -> dict[str, list[int]]:  # type: ignore[type-arg]
    flags = {}
    for arm, group in groups.items():
        index = [str(name) for name in group["region"]].index(region)
        flags[arm] = np.flatnonzero(group["untrained"][index]).tolist()
    return flags
