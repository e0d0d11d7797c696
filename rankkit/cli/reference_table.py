"""Tables beside the closing one: what a rank is held against, and the rank of whole layers. Read from the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.cli.console import Output, counted, new_table
from rankkit.statistics import Interval, mean_interval
from rankkit.studies.head_means import filled, mean_of_known

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["show_baselines", "show_errors", "show_layer_outputs"]

Array = NDArray[np.float64]

_OUTPUT: Final = "layer_output_effective_rank"


def show_baselines(path: Path, measure: str, output: Output) -> None:
    """The measure of every arm and baseline by region: means over trained layers, heads and sequences."""
    from rankkit.spectra.baselines import BASELINE_DEFINITIONS
    from rankkit.store import describe, read_group

    groups = describe(path)
    if not groups.baselines:
        return
    names = list(dict.fromkeys(group.baseline for group in groups.baselines if group.baseline is not None))
    arms = {group.name: read_group(path, group.name) for group in groups.groups}
    missing = 0
    for region in map(str, next(iter(arms.values()))["region"]):
        table = new_table(f"{region.replace('_', ' ')}: {_spoken(measure)} and baselines", ["arm", "own", *names])
        for arm, own in arms.items():
            beside = [read_group(path, f"baselines/{name}/{arm}") for name in names]
            cells = [_of_region(group, measure, region) for group in (own, *beside)]
            missing += sum(count for _, count in cells)
            table.add_row(arm, *(text for text, _ in cells))
        output.table(table)
    output.say("Means over trained layers, heads and sequences; ± = half of the 95% interval over seeds.")
    if missing:
        output.say(f"left out for want of a finite value: {counted(missing, 'matrix')}.")
    for name in names:
        output.say(f"{name} = {BASELINE_DEFINITIONS[name]}.")


def _of_region(group: Mapping[str, NDArray[Any]], measure: str, region: str) -> tuple[str, int]:
    """Mean over trained layers, sequences and heads under the own mask at the last step, over seeds; and how many lack.

    As in the closing table, a matrix without a value takes its head's mean over the other sequences, and an estimate
    counts with the middle of its bracket.
    """
    index = [str(name) for name in group["region"]].index(region)
    trained = group["untrained"][index] == 0
    where = (slice(None), -1, index, 0)
    values = group[measure][where][:, :, trained]
    if f"{measure}_lower" in group:
        lower, upper = (group[f"{measure}_{end}"][where][:, :, trained] for end in ("lower", "upper"))
        values = np.where(np.isfinite(values), values, (lower + upper) / 2)
    known = np.where(np.isfinite(values), values, np.nan)
    if not np.isfinite(known).any():
        return "-", known.size
    by_seed = mean_of_known(filled(known, axis=1).reshape(len(known), -1), axis=1)
    interval = mean_interval(by_seed[~np.isnan(by_seed)], kind="t over seeds")
    return _shown(interval), int(np.isnan(known).sum())


def show_layer_outputs(path: Path, output: Output) -> None:
    """Effective rank of what each layer adds to the residual stream, by arm, with their paired difference."""
    from rankkit.store import describe, read_group

    arms = {group.name: read_group(path, group.name) for group in describe(path).groups}
    if any(_OUTPUT not in group for group in arms.values()):
        return
    outputs = {arm: group[_OUTPUT][:, -1] for arm, group in arms.items()}  # seed sequence layer
    by_layer = {arm: mean_of_known(values, axis=1) for arm, values in outputs.items()}
    first, *others = by_layer
    pairs = [f"{first} - {other}" for other in others]
    table = new_table("layer outputs: effective rank", ["layer", *by_layer, *pairs])
    for index, layer in enumerate(next(iter(arms.values()))["layer"].tolist()):
        own = [_shown(mean_interval(values[:, index], kind="t over seeds")) for values in by_layer.values()]
        gaps = [_shown(mean_interval(by_layer[first][:, index] - by_layer[other][:, index]), "+") for other in others]
        table.add_row(str(layer), *own, *gaps)
    output.table(table)
    if missing := sum(int(np.isnan(values).sum()) for values in outputs.values()):
        output.say(f"left out, not having been measured: {counted(missing, 'output')}.")
    output.say(
        "Of sum_h A_h X W_V^h W_O^h, what a layer adds to the residual stream. It is not the rank of its heads:\n"
        "    heads of low rank may write into different directions."
    )


def show_errors(path: Path, measure: str, output: Output) -> None:
    """How far both noise floors may have moved the measure of one matrix."""
    from rankkit.store import describe, read_group

    for group in describe(path).groups:
        errors = read_group(path, group.name).get(f"{measure}_error")
        if errors is not None and np.isfinite(errors).any():
            output.say(
                f"{group.name}: the floors may have moved one matrix's {_spoken(measure)} by {np.nanmedian(errors):.2g} "
                f"(median), {np.nanmax(errors):.2g} at most"
            )


def _shown(interval: Interval, sign: str = "") -> str:
    if np.isnan(interval.mean):
        return "-"
    if np.isnan(interval.half_width):
        return f"{interval.mean:{sign}.1f}"
    return f"{interval.mean:{sign}.1f} ± {interval.half_width:.1f}"


def _spoken(measure: str) -> str:
    return measure.replace("_", " ")
