"""The figures of a subject: drawn as `RUN/figures` are, each with what is seen in it in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rankkit.report.figures import extra_loss_by_rank, measure_against_loss
from rankkit.report.measured_arms import MeasuredArm
from rankkit.report.page.colours import arm_variables
from rankkit.report.page.drawings import Drawing, drawing
from rankkit.report.page.numbers import Numbers
from rankkit.report.page.subject import Subject
from rankkit.report.run_figures import (
    head_axes,
    loss_axes,
    loss_curve,
    measure_axes,
    position_axes,
    spectrum_axes,
    training_axes,
)
from rankkit.store import read_group
from rankkit.studies.functional import CUTS
from rankkit.studies.heads import HeadMaps
from rankkit.studies.words import number_text, region_words, spoken

__all__ = ["Pictures"]

Array = NDArray[np.float64]
T = TypeVar("T")

_MOST_CELLS = 200  # of the maps of an arm under all seeds: each is drawn by itself
_MOST_ARMS = 5  # whose colours can be told apart, whatever their names
_HARDLY = "Hardly trained: the loss hardly reaches the matrices of that layer."


class Pictures:
    """Draws what a subject has.

    Args:
        subject: open.
        measure: which.
        key: letters and digits that no other subject of the page has.
    """

    def __init__(self, subject: Subject, measure: str, key: str) -> None:
        self._subject, self._measure, self._key = subject, measure, key
        self._drawn = 0
        numbers = subject.numbers
        names = [] if numbers is None else [arm.name for arm in numbers.arms]
        names += [] if subject.losses is None else [arm.arm for arm in subject.losses.arms]
        some = _some(list(dict.fromkeys(names)))
        self.colours = {colour: name for arms in some for colour, name in arm_variables(arms).items()}
        self._arms: list[MeasuredArm] = [] if numbers is None else [arm.measured(measure) for arm in numbers.arms]
        self._levels = {} if numbers is None else _uniform_levels(numbers, measure)

    def _drawing(self, axes: object, says: str, caption: str) -> Drawing:
        self._drawn += 1
        return drawing(axes, f"{self._key}f{self._drawn}x", says=says, caption=caption, arm_colours=self.colours)  # type: ignore[arg-type]

    def _having(self, region: str) -> list[MeasuredArm]:
        return [arm for arm in self._arms if region in arm.regions]

    def _together(self, region: str) -> list[Sequence[MeasuredArm]]:
        """Arms that one figure can hold: with the same layers and steps, and not more than there are colours."""
        alike: dict[object, list[MeasuredArm]] = {}
        for arm in self._having(region):
            alike.setdefault((tuple(arm.layers), tuple(arm.steps)), []).append(arm)
        return [some for arms in alike.values() for some in _some(arms)]

    def losses(self) -> dict[str, Drawing]:
        """By task."""
        comparison = self._subject.losses
        if comparison is None:
            return {}
        found = {}
        for task, axes in loss_axes(self._subject.runs, comparison).items():
            arms = [f"{arm.arm} ends at {arm.loss:.4f}" for arm in comparison.arms if arm.task == task]
            gaps = [
                f"{one.arms[0]} - {one.arms[1]} is {one.interval.mean:+.4f} at the end, 95% interval {one.interval.words()}"
                for one in comparison.differences
                if one.task == task
            ]
            says = f"Validation loss against the optimizer step, nats per token: {'; '.join([*arms, *gaps])}."
            caption = (
                "Above: validation loss, a thin line for each seed and a thick one for their mean. Below: the difference "
                "within each seed, its mean and 95% paired t interval; where the band holds 0, nothing is resolved."
            )
            found[task] = self._drawing(axes, says, caption)
        return found

    def losses_by_position(self) -> dict[str, Drawing]:
        """By task."""
        comparison = self._subject.losses
        if comparison is None:
            return {}
        found = {}
        for task, axes in position_axes(self._subject.runs[0], comparison).items():
            means = {arm.arm: np.nanmean(arm.by_position, axis=0) for arm in comparison.arms if arm.task == task}
            halves = {name: np.array_split(mean, 2) for name, mean in means.items()}
            said = [f"{name} {np.nanmean(one):.4f}, then {np.nanmean(two):.4f}" for name, (one, two) in halves.items()]
            caption = (
                "The loss along the sequence, a running mean whose width the axis says: a thin line for each seed, a thick "
                "one for their mean, and the 95% t interval; below, the difference within each seed."
            )
            says = f"Loss by position, nats per token; means of the first and second half of the targets: {'; '.join(said)}."
            found[task] = self._drawing(axes, says, caption)
        return found

    def by_layer(self, region: str) -> list[Drawing]:
        """The measure of every arm under both masks."""
        return _present(self._by_layer(region, arms) for arms in self._together(region))

    def _by_layer(self, region: str, arms: Sequence[MeasuredArm]) -> Drawing | None:
        axes = measure_axes(arms, region, self._measure, self._levels)
        if axes is None:
            return None
        words = f"{spoken(self._measure)}, {region_words(region)}"
        rows = [f"{arm.name} {_listed(arm.by_layer(region, 'own'))}" for arm in arms]
        swapped = [
            f"{arm.name} {_listed(table)}" for arm in arms if (table := arm.by_layer(region, "swapped")) is not None
        ]
        other = f" Under the other arm's mask: {'; '.join(swapped)}." if swapped else ""
        caption = (
            f"{words.capitalize()}, by layer. One mark for each seed, lines between the means of an arm, bars their 95% "
            f"intervals; hollow marks: the same queries and keys under the other arm's mask. {_HARDLY}"
        )
        return self._drawing(axes, f"{words} by layer, mean over seeds: {'; '.join(rows)}.{other}", caption)

    def spectra(self, region: str) -> list[Drawing]:
        """Singular values by layer with both floors."""
        return _present(self._spectra(region, [arm.name for arm in arms]) for arms in self._together(region))

    def _spectra(self, region: str, names: Sequence[str]) -> Drawing | None:
        numbers = self._subject.numbers
        assert numbers is not None, "a region is one of the numbers"
        arms = [numbers.arm(name).measured(self._measure, spectra=True) for name in names]
        axes = spectrum_axes(arms, region)
        if axes is None:
            return None
        said = []
        for arm in arms:
            if (found := arm.relative_spectra(region)) is not None:
                place = min(9, found.values.shape[-1] - 1)
                middle = float(np.nanmedian(found.values[..., place]))
                said.append(f"{arm.name}: the median of component {place + 1} is {middle:.2g} of the largest")
        caption = (
            f"Singular values of the {region_words(region)} over the largest of their matrix: median and middle half over "
            "seeds, sequences and heads, by layer. What lies in the grey, under a noise floor, is not resolved."
        )
        return self._drawing(axes, f"Singular values by layer, {region_words(region)}. {'; '.join(said)}.", caption)

    def training(self, region: str) -> list[Drawing]:
        """The measure through training."""
        return _present(self._training(region, arms) for arms in self._together(region))

    def _training(self, region: str, arms: Sequence[MeasuredArm]) -> Drawing | None:
        axes = training_axes(arms, region, self._measure)
        if axes is None:
            return None
        said = []
        for arm in arms:
            table = arm.by_step(region, "own")
            if table is not None and np.isfinite(table).all():
                first, last = table.mean(axis=0)[[0, -1]]
                said.append(f"{arm.name} from {first:.1f} at step {arm.steps[0]} to {last:.1f} at step {arm.steps[-1]}")
        words = f"{spoken(self._measure)}, {region_words(region)}, mean over trained layers"
        caption = f"{words.capitalize()}, through training; dashed: under the other arm's mask."
        return self._drawing(axes, f"{words}: {'; '.join(said)}.", caption)

    def heads(self, region: str, *, full: bool) -> list[Drawing]:
        """Maps of every arm alone, as they stand where no script runs; of many heads those of the first seed, or of all."""
        maps = [one for arm in self._having(region) if (one := arm.head_maps(region, self._measure)) is not None]
        if not full and any(one.own.size > _MOST_CELLS for one in maps):
            maps = [_of_first_seed(one) for one in maps]
        found = []
        for one, axes in head_axes(maps):
            low, high = float(np.nanmin(one.own)), float(np.nanmax(one.own))
            changed, known = int(one.changed.sum()), int(np.isfinite(one.change).sum())
            says = (
                f"{spoken(one.measure)} of every head of {one.arm}, {region_words(region)}: {low:.1f} to {high:.1f}; the "
                f"other arm's mask changes {changed} of {known} heads by more than chance."
            )
            seeds = "seed" if len(one.seeds) == 1 else "seeds"
            rows = f"{seeds} {', '.join(map(str, one.seeds))}"
            caption = f"{one.arm} alone, {rows}: its heads, and what the other arm's mask changes in them."
            found.append(self._drawing(axes, says, caption))
        return found

    def against_loss(self, region: str) -> Drawing | None:
        """The measure against the validation loss, at the steps that both logs have."""
        found = dict(list(self._loss_points(region).items())[:_MOST_ARMS])
        points = {name: (name, *tables) for name, tables in found.items()}
        if not points:
            return None
        words = f"{spoken(self._measure)}, {region_words(region)}"
        axes = measure_against_loss(points, label=f"{words}, mean over trained layers")
        said = [
            f"{name}: from {ranks[:, 0].mean():.1f} at a loss of {losses[:, 0].mean():.3f} to {ranks[:, -1].mean():.1f} at "
            f"{losses[:, -1].mean():.3f}"
            if ranks.shape[1] > 1
            else f"{name}: {ranks.mean():.1f} at a loss of {losses.mean():.3f}"
            for name, (_, ranks, losses) in points.items()
        ]
        caption = (
            f"{words.capitalize()}, against the validation loss: a line for each seed through training, or a point where "
            "one step was measured. Both move with training, so a line is no effect of one on the other."
        )
        return self._drawing(axes, f"{words} against validation loss. {'; '.join(said)}.", caption)

    def _loss_points(self, region: str) -> dict[str, tuple[Array, Array]]:
        """By arm, measure and loss, "seed step", at the steps whose loss was logged under every seed."""
        runs = self._subject.runs
        units, found = {unit for run in runs for unit in run.config.units}, {}
        for arm in self._having(region):
            ranks = arm.by_step(region, "own")
            seeds = [int(seed) for seed in arm.group["seed"]]
            if ranks is None or any((arm.name, seed) not in units for seed in seeds):
                continue
            curves = [dict(zip(*loss_curve(runs, arm.name, seed), strict=True)) for seed in seeds]
            steps = [step for step in arm.steps if all(step in curve for curve in curves)]
            places = [arm.steps.index(step) for step in steps]
            table = ranks[:, places]
            if steps and np.isfinite(table).all():
                found[arm.name] = table, np.array([[curve[step] for step in steps] for curve in curves])
        return found

    def functional(self) -> Drawing | None:
        """What cutting attention costs, from the groups that the file holds."""
        numbers = self._subject.numbers
        if numbers is None or len(numbers.files) > 1 or not numbers.description.functional:
            return None
        groups = {
            arm: read_group(numbers.description.path, f"functional/{arm}") for arm in numbers.description.functional
        }
        scopes = [scope for scope in ("all", "layer") if all(f"extra_loss_{scope}" in one for one in groups.values())]
        if not scopes:
            return None
        first = next(iter(groups.values()))
        panels = ["all heads"] if "all" in scopes else []
        panels += [f"layer {layer}" for layer in first["layer"].tolist()] if "layer" in scopes else []
        ranks = [int(rank) for rank in first["kept_rank"]]
        cuts = {
            cut: {arm: _cut_table(one, scopes, place) for arm, one in groups.items()} for place, cut in enumerate(CUTS)
        }
        axes = extra_loss_by_rank(cuts["remasked"], ranks=ranks, panels=panels, plain=cuts["plain"])
        middle = len(ranks) // 2
        said = [f"{arm} {table[:, 0, middle].mean():+.3f}" for arm, table in cuts["remasked"].items()]
        caption = (
            "Extra loss when attention matrices are cut to their k leading singular triplets and masked again (dashed: not "
            "masked again, so that rows mix in values of their future)."
        )
        says = f"Extra loss against triplets kept. With {ranks[middle]}, {panels[0]}: {', '.join(said)} nats per token."
        return self._drawing(axes[0], says, caption)


def _of_first_seed(maps: HeadMaps) -> HeadMaps:
    """The maps of one network. Its p values stay those of all seeds: the family that the correction is for."""
    arrays = ("own", "swapped", "change", "lower", "upper", "adjusted", "sequences")
    return replace(maps, seeds=maps.seeds[:1], **{name: getattr(maps, name)[:1] for name in arrays})


def _present(drawings: Iterable[Drawing | None]) -> list[Drawing]:
    return [one for one in drawings if one is not None]


def _some(items: Sequence[T]) -> list[Sequence[T]]:
    """Parts of at most `_MOST_ARMS`."""
    return [items[first : first + _MOST_ARMS] for first in range(0, len(items), _MOST_ARMS)]


def _cut_table(group: Mapping[str, NDArray[np.float64]], scopes: Sequence[str], cut: int) -> Array:
    """One cut, "seed panel kept_rank"."""
    parts = []
    if "all" in scopes:
        parts.append(group["extra_loss_all"][..., cut].mean(axis=1)[:, np.newaxis])
    if "layer" in scopes:
        parts.append(group["extra_loss_layer"][..., cut])
    return np.concatenate(parts, axis=1)


def _uniform_levels(numbers: Numbers, measure: str) -> dict[tuple[str, str], Array]:
    """The measure of uniform attention by (arm, region), "layer"."""
    levels = {}
    for (name, arm), baseline in numbers.baselines.items():
        if name == "uniform" and measure in baseline.description.measures:
            one = baseline.measured(measure)
            for region in one.regions:
                table = one.by_layer(region, "own")
                if table is not None and np.isfinite(table).all():
                    levels[arm, region] = table.mean(axis=0)
    return levels


def _listed(table: Array | None) -> str:
    """Means over seeds, layer by layer."""
    if table is None:
        return "not measured"
    return ", ".join(number_text(float(value), 1) if math.isfinite(value) else "none" for value in table.mean(axis=0))
