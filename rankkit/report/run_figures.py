"""The figures of a run, from its files: what is read and averaged here, `figures` draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankkit.files import read_json_lines
from rankkit.report.figures import (
    losses,
    losses_by_position,
    measure_by_head,
    measure_by_layer,
    measure_by_step,
    spectra_by_layer,
)
from rankkit.report.measured_arms import MeasuredArm, measured_arms, uniform_levels
from rankkit.report.style import save
from rankkit.studies.heads import HeadMaps
from rankkit.studies.losses import LossComparison
from rankkit.studies.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "draw_heads",
    "draw_losses",
    "draw_spectra",
    "head_axes",
    "loss_axes",
    "loss_curve",
    "measure_axes",
    "position_axes",
    "spectrum_axes",
    "training_axes",
]

Array = NDArray[np.float64]

_BAND = (0.25, 0.75)  # quantiles over seeds, sequences and heads
_WORDS = {
    "full": "whole matrix",
    "prefix_block": "prefix block",
    "first_key_removed": "first key removed",
    "prefix_block_first_key_removed": "prefix block, first key removed",
}


def draw_losses(run: Run, comparison: LossComparison) -> list[Path]:
    """Validation losses of all arms and their paired differences, by step and by position, into the run's `figures` folder.

    Losses over different targets have figures of their own: `losses` and `losses_by_position` for the suffix loss,
    `losses_masked` and `losses_by_position_masked` for the masked one.

    Returns:
        The files, each PNG followed by its SVG.
    """
    written = []
    folder, by_position = run.directory.figures, position_axes(run, comparison)
    for task, by_step in loss_axes([run], comparison).items():
        ending = "" if task == "suffix" else f"_{task}"
        written += save(by_step.figure, folder, f"losses{ending}")  # type: ignore[arg-type]
        written += save(by_position[task].figure, folder, f"losses_by_position{ending}")  # type: ignore[arg-type]
    return written


def loss_axes(runs: Sequence[Run], comparison: LossComparison) -> dict[str, Axes]:
    """The figure of every task: losses over steps, and their paired differences below.

    Args:
        runs: one, or several of one study under other seeds.
        comparison: of them all.
    """
    found = {}
    for task, references in comparison.references.items():
        arms = [arm for arm in comparison.arms if arm.task == task]
        curves = {arm.arm: {seed: loss_curve(runs, arm.arm, seed) for seed in arm.seeds} for arm in arms}
        found[task], _ = losses(curves, differences=_pairs(comparison, task), baselines=dict(references), task=task)
    return found


def position_axes(run: Run, comparison: LossComparison) -> dict[str, Axes]:
    """The figure of every task: losses by position, and their paired differences below.

    Args:
        run: one of those compared, for the tasks of their arms.
        comparison: of them all.
    """
    found = {}
    for task in comparison.references:
        arms = [arm for arm in comparison.arms if arm.task == task]
        config = run.config.arm(arms[0].arm)
        targets = config.task.in_evaluation().target_positions(config.model.sequence_length, comparison.prefix_length)
        found[task], _ = losses_by_position(
            {arm.arm: arm.by_position for arm in arms},
            prefix_length=targets.start,
            seeds={arm.arm: arm.seeds for arm in arms},
            differences=_pairs(comparison, task),
            task=task,
        )
    return found


def _pairs(comparison: LossComparison, task: str) -> list[tuple[str, str]] | None:
    return [difference.arms for difference in comparison.differences if difference.task == task] or None


def loss_curve(runs: Sequence[Run], arm: str, seed: int) -> tuple[list[int], list[float]]:
    """Steps and validation losses of a unit, from the log of the run that has it."""
    run = next(run for run in runs if (arm, seed) in run.config.units)
    lines = [line for line in read_json_lines(run.directory.metrics(arm, seed)) if line["kind"] == "evaluation"]
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def draw_spectra(path: Path, folder: Path, *, measure: str = "effective_rank") -> list[Path]:
    """Everything a spectrum file shows of each region: spectra and a measure by layer, by step and by head.

    The last step is drawn, but for the measure through training, where there are several. What a file does not hold, or
    holds only as estimates, is left out: singular values past the leading ones, arms without a value of the measure, maps
    of heads where the documents of the sequences are not known or no mask was swapped.

    Args:
        path: of the HDF5 file.
        folder: for the pictures.
        measure: which to draw.

    Returns:
        The files, each PNG followed by its SVG.
    """
    arms = measured_arms(path, measure)
    levels = uniform_levels(path, measure)
    written = []
    for region in dict.fromkeys(region for arm in arms for region in arm.regions):
        having = [arm for arm in arms if region in arm.regions]
        for name, axes in {
            f"spectrum_{region}": spectrum_axes(having, region),
            f"{measure}_{region}": measure_axes(having, region, measure, levels),
            f"{measure}_by_step_{region}": training_axes(having, region, measure),
        }.items():
            written += [] if axes is None else save(axes.figure, folder, name)  # type: ignore[arg-type]
        written += draw_heads([maps for arm in having if (maps := arm.head_maps(region, measure)) is not None], folder)
    return written


def draw_heads(maps: Sequence[HeadMaps], folder: Path) -> list[Path]:
    """The maps of one region and measure, a figure for each arm, all in the same colours.

    Args:
        maps: of several arms; those in which no head has a value are left out.
        folder: for the pictures.

    Returns:
        The files, each PNG followed by its SVG.
    """
    written = []
    for one, axes in head_axes(maps):
        name = f"{one.measure}_heads_{one.region}_{one.arm.replace('/', '-')}"
        written += save(axes.figure, folder, name)  # type: ignore[arg-type]
    return written


def head_axes(maps: Sequence[HeadMaps]) -> list[tuple[HeadMaps, Axes]]:
    """The maps of one region and measure, each with its figure, all in the same colours; without those that are empty."""
    drawn = [one for one in maps if not np.isnan(one.own).all()]
    if not drawn:
        return []
    own, change = (np.concatenate([getattr(one, name).ravel() for one in drawn]) for name in ("own", "change"))
    limits = float(np.nanmin(own)), float(np.nanmax(own))
    most = float(np.nanmax(np.abs(change), initial=0.0))
    found = []
    for one in drawn:
        axes = measure_by_head(
            one.own, one.change, changed=one.changed, label=f"{_label(one.measure, one.region)}, {one.arm}",
            mark_label=_mark_label(one), seeds=one.seeds, layer_numbers=one.layers, head_numbers=one.heads,
            untrained_layers=np.flatnonzero(one.untrained).tolist(), limits=limits, change_limit=most,
        )  # fmt: skip
        found.append((one, axes[0]))
    return found


def _mark_label(maps: HeadMaps) -> str:
    if not maps.family:
        return f"a mark would need two documents, and there is {maps.documents}"
    said = f"changed: p ≤ 0.05 after Holm's correction for {maps.family:,} heads, {maps.documents} documents"
    return f"{said} (few: rests on normality)" if maps.rests_on_normality else said


def spectrum_axes(arms: Sequence[MeasuredArm], region: str) -> Axes | None:
    """Spectra by layer; None where no arm has them.

    Medians, because a mean over resolved and unresolved heads would lie where no head is.
    """
    spectra = {arm.name: found for arm in arms if (found := arm.relative_spectra(region)) is not None}
    if not spectra:
        return None
    floors = {name: np.max([of.floors[name] for of in spectra.values()], axis=0) for name in ("arithmetic", "model")}
    width = min(of.values.shape[-1] for of in spectra.values())
    known = {name: of.values[..., :width] for name, of in spectra.items()}
    panels = spectra_by_layer(
        {name: np.nanmedian(values, axis=1) for name, values in known.items()},
        layer_numbers=arms[0].layers,
        floors=floors,
        bands={name: tuple(np.nanquantile(values, _BAND, axis=1)) for name, values in known.items()},
        band_label="middle half over seeds, sequences, heads",
        untrained_layers={arm.name: arm.untrained(region) for arm in arms if arm.name in spectra},
    )
    return panels[0]


def measure_axes(
    arms: Sequence[MeasuredArm], region: str, measure: str, levels: Mapping[tuple[str, str], Array]
) -> Axes | None:
    """A measure by layer, with the uniform baseline of `levels`; None where no arm has a value in every layer."""
    own = _whole((arm, arm.by_layer(region, "own")) for arm in arms)
    if not own:
        return None
    drawn = [arm for arm in arms if arm.name in own]
    uniform = {name: levels[name, region] for name in own if (name, region) in levels}
    return measure_by_layer(
        own,
        label=_label(measure, region),
        untrained_layers={arm.name: arm.untrained(region) for arm in drawn},
        layer_numbers=drawn[0].layers,
        swapped=_whole((arm, arm.by_layer(region, "swapped")) for arm in drawn),
        baselines={"uniform": uniform} if uniform else None,
    )


def training_axes(arms: Sequence[MeasuredArm], region: str, measure: str) -> Axes | None:
    """A measure through training; None where there is one step, or no arm has a value at every one."""
    several = [arm for arm in arms if len(arm.steps) > 1 and arm.steps == arms[0].steps]
    own = _whole((arm, arm.by_step(region, "own")) for arm in several)
    if not own:
        return None
    return measure_by_step(
        own,
        steps=several[0].steps,
        label=f"{_label(measure, region)},\nmean over trained layers",
        swapped=_whole((arm, arm.by_step(region, "swapped")) for arm in several if arm.name in own),
    )


def _whole(tables: Iterable[tuple[MeasuredArm, Array | None]]) -> dict[str, Array]:
    """By arm, those tables that are there and have a value everywhere."""
    return {arm.name: table for arm, table in tables if table is not None and np.isfinite(table).all()}


def _label(measure: str, region: str) -> str:
    return f"{measure.replace('_', ' ')}, {_WORDS.get(region, region)}"
