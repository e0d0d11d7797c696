"""What `spectrum` says of a measurement: its plan, its progress, its tables, figures and files."""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import click

from rankkit.cli.console import INTERRUPTED, Output, command_line, counted, duration, size_words
from rankkit.errors import SpectrumFileError

if TYPE_CHECKING:
    from rankkit.studies.measuring.config import MeasureConfig
    from rankkit.studies.measuring.measure import Measured
    from rankkit.studies.measuring.plan import Plan
    from rankkit.studies.measuring.source import Source

__all__ = ["check_some_measured", "figures_folder", "measure_and_report", "show_plan"]

SWAPPED_MASK: Final = "swapped_mask"
"""Attribute of groups that stand by themselves: which mask was swapped in, or why none was."""


def show_plan(source: Source, config: MeasureConfig, output: Output) -> None:
    """Sizes, methods and expected time; nothing is measured."""
    from rankkit.studies.measuring.measure import check_kept, kept_bytes, plan_functional

    plan, cuts = source.plan(config), plan_functional(source, config)
    check_kept(plan, config)
    _warn_of_length(source, plan, output)
    seconds, kept = _expected_seconds(source, config, plan), kept_bytes(plan, config)
    output.say(
        f"matrices: {plan.matrices:,}; sequences: {len(plan.sequences):,}; steps: {', '.join(map(str, plan.steps))}"
    )
    for region, (method, rule) in plan.methods.items():
        output.say(f"  {region}: {' x '.join(map(str, plan.shape(region)))}, {method} ({rule})")
    if cuts is not None:
        output.say(
            f"functional rank: {counted(cuts.passes, 'forward pass')}, {counted(cuts.decompositions, 'matrix')} decomposed"
        )
    if kept:
        output.say(f"kept: {size_words(kept)} before compression, of at most {size_words(config.keep_limit)}")
    output.say(f"time: about {duration(seconds)} (from a little of the work done now)")
    output.result(
        {
            "matrices": plan.matrices,
            "sequences": len(plan.sequences),
            "steps": list(plan.steps),
            "seconds": seconds,
            "kept_bytes": kept,
            "sizes": {region: plan.size(region) for region in plan.regions},
            "methods": {region: method for region, (method, _) in plan.methods.items()},
            "rules": {region: rule for region, (_, rule) in plan.methods.items()},
            "functional": None
            if cuts is None
            else {"forward_passes": cuts.passes, "matrices_decomposed": cuts.decompositions, "ranks": list(cuts.ranks)},
        }
    )


def _expected_seconds(source: Source, config: MeasureConfig, plan: Plan) -> float:
    """Of the spectra, and of the cuts where those are asked for."""
    from rankkit.studies import functional_sweep
    from rankkit.studies.measuring.measure import plan_functional
    from rankkit.studies.measuring.plan import expected_seconds
    from rankkit.studies.measuring.run_source import RunSource

    cuts, of_cuts = plan_functional(source, config), 0.0
    if cuts is not None and isinstance(source, RunSource):
        of_cuts = functional_sweep.expected_seconds(source.run, cuts, workers=config.workers)
    return expected_seconds(plan, config) + of_cuts


def _warn_of_length(source: Source, plan: Plan, output: Output) -> None:
    from rankkit.studies.measuring.run_source import RunSource
    from rankkit.studies.pretrained.source import ModelSource

    trained = None
    if isinstance(source, RunSource):
        trained = source.run.config.base.model.sequence_length
    elif isinstance(source, ModelSource):
        trained = source.trained_length
    if trained is not None and plan.sequence_length > trained:
        output.note(
            f"warning: {plan.sequence_length:,} tokens are more than the {trained:,} that the models were trained on."
        )


def measure_and_report(
    source: Source,
    config: MeasureConfig,
    path: Path,
    output: Output,
    device: Any,
    *,
    force: bool,
    resume: bool = False,
    next_step: bool = True,
) -> dict[str, Any]:
    """Measure with progress, then show the decomposition and draw the figures; returns the same as plain values."""
    from rankkit.studies.measuring.measure import check_kept, kept_bytes

    plan = source.plan(config)
    check_kept(plan, config)
    _warn_of_length(source, plan, output)
    _note_agreement(plan, output)
    output.note(f"{counted(plan.matrices, 'matrix')}, about {duration(_expected_seconds(source, config, plan))}")
    if kept := kept_bytes(plan, config):
        output.note(f"keeping {size_words(kept)} before compression")
    started = perf_counter()
    found = _measured(source, config, path, plan, output, device, force=force, resume=resume)
    elapsed = perf_counter() - started
    if found.resumed:
        output.note(f"finished slabs taken over: {found.resumed:,}")
    if found.damaged:
        output.note(f"warning: finished slabs that were damaged and computed again: {found.damaged:,}. Check the disk.")
    shown = _show(found, path, output)
    figures = _figures(found, path)
    peak = _peak_bytes() / 2**20
    output.say(f"\n{counted(plan.matrices, 'matrix')} in {elapsed:.0f} s, peak memory {peak:.0f} MiB")
    output.say(f"file: {path}")
    if pictures := [figure for figure in figures if figure.suffix == ".png"]:
        output.say(f"figures: {len(pictures)} in {figures_folder(path)}, such as {pictures[0].name}")
    if next_step:
        output.say(f"page: rankkit report {shlex.quote(str(path))}")
        output.say(f"next: rankkit inspect {shlex.quote(str(path))} --verify")
    return {
        "file": str(path),
        "matrices": plan.matrices,
        "seconds": elapsed,
        "peak_mebibytes": peak,
        "resumed": found.resumed,
        "figures": [str(figure) for figure in figures],
        **shown,
    }


def _note_agreement(plan: Plan, output: Output) -> None:
    """How a model was looked into, and how near that is to its own attention."""
    attributes = plan.arms[0].attributes
    if "agreement_attention" in attributes:
        output.note(
            f"captured ({attributes['capture']}) and checked ({attributes['agreement']}): largest difference of attention "
            f"{attributes['agreement_attention']:.1e}, of the output {attributes['agreement_output']:g}"
        )


def _measured(
    source: Source,
    config: MeasureConfig,
    path: Path,
    plan: Plan,
    output: Output,
    device: Any,
    *,
    force: bool,
    resume: bool,
) -> Measured:
    """Measure under a progress bar; an interruption says what is kept and how to go on."""
    from rankkit.store.journal.slabs import journal_path
    from rankkit.studies.drive import interruption
    from rankkit.studies.measuring.finished import finished_measurement
    from rankkit.studies.measuring.measure import MeasurementInterruptedError, measure_attention

    first = command_line(without=("--resume",))
    if resume and path.is_file() and not journal_path(path).exists():
        found = finished_measurement(source, config, path, command=first)
        output.note(f"{path} is finished: this very command made it, of the same checkpoints and tokens.")
        return found
    try:
        with interruption() as request, output.progress(plan.matrices) as advance:
            return measure_attention(
                source,
                config,
                path,
                device=device,
                command=first,
                force=force,
                resume=resume,
                on_progress=advance,
                stop=request,
            )
    except MeasurementInterruptedError as error:
        click.echo(f"Interrupted: {error}\nContinue with: {first} --resume", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _show(found: Measured, path: Path, output: Output) -> dict[str, Any]:
    """Tables and sentences; the same as plain values."""
    from rankkit.cli.functional_table import functional_as_dict, show_functional
    from rankkit.cli.reference_table import show_baselines, show_errors, show_layer_outputs
    from rankkit.cli.spectrum_table import (
        decomposition_as_dict,
        show_companions,
        show_decomposition,
        show_training,
    )

    split, headline = found.decomposition, _headline(found)
    output.say(_setting(found))
    models = _show_models(found, path, headline, output)
    if split is None:
        if len(found.plan.arms) > 1 and not _of_models(found):
            output.say(f"No gap to split: {_why_no_gap(found)}.")
    else:
        show_decomposition(split, headline, output)
        if len(found.by_step) > 1:
            show_training(list(found.by_step.values()), headline, output)
        show_companions(split, output)
    show_baselines(path, headline, output)
    show_layer_outputs(path, output)
    for line in _quality(path, found):
        output.say(line)
    show_errors(path, headline, output)
    if found.functional is not None:
        show_functional(found.functional, output)
    return {
        "comparison": None if split is None else decomposition_as_dict(split),
        "functional": None if found.functional is None else functional_as_dict(found.functional),
        "statuses": _statuses(found),
        **({"models": models} if models else {}),
    }


def _show_models(found: Measured, path: Path, headline: str, output: Output) -> dict[str, Any]:
    """A table for each group where no gap was split, as of a model, which has no partner; the same as plain values."""
    from rankkit.cli.model_table import show_side, show_steps, side_as_dict
    from rankkit.studies.compared_side import SEPARATOR, read_side

    shown = {}
    for arm in found.plan.arms:
        if found.decomposition is None or SWAPPED_MASK in arm.attributes:
            name = f"{path}{SEPARATOR}{arm.name}"
            sides = [read_side(name, step=step) for step in found.plan.steps]
            if headline in sides[-1].values:
                show_side(sides[-1], headline, output)
                show_steps(sides, headline, output)
            shown[arm.name] = {str(side.step): side_as_dict(side) for side in sides}
    return shown


def _of_models(found: Measured) -> bool:
    """Whether the groups are models, each by itself."""
    return all(SWAPPED_MASK in arm.attributes for arm in found.plan.arms)


def _headline(found: Measured) -> str:
    """The measure that tables and figures show: the effective rank, or the first that there is."""
    measures = next(iter(found.values.values())).measures
    known = measures if found.decomposition is None else found.decomposition.measures
    return "effective_rank" if "effective_rank" in known else next(iter(known))


def _why_no_gap(found: Measured) -> str:
    from rankkit.studies.decomposition import causal_and_prefix

    if causal_and_prefix(found.plan.facts) is None:
        return "there are no causal and prefix arm with the same objective"
    if "swapped" not in found.plan.applied:
        return "without queries and keys no mask can be swapped"
    return "nothing was measured that has a mean"


def _setting(found: Measured) -> str:
    """What the ranks below depend on, in a line: without p or a step where they mean nothing."""
    plan = found.plan
    prefix = f", p = {plan.prefix_length}" if _has_prefix(plan) else ""
    of = "" if plan.documents is None else f" of {counted(len(set(plan.documents.tolist())), 'document')}"
    steps = "" if plan.steps == (0,) else f"; step {', '.join(map(str, plan.steps))}"
    return (
        f"n = {plan.sequence_length}{prefix}; {counted(len(plan.sequences), 'sequence')}{of}; "
        f"layers {_ranges(plan.layers)}, heads {_ranges(plan.heads)}{steps}\n"
    )


def _has_prefix(plan: Plan) -> bool:
    """Whether p is in a number below: through a region, or a mask, own or swapped in."""
    from rankkit.masks import MaskKind
    from rankkit.studies.measuring.plan import swapped_mask

    masks = [arm.facts.mask for arm in plan.arms]
    if "swapped" in plan.applied:
        masks += [str(arm.swapped or swapped_mask(arm.facts.mask)) for arm in plan.arms]
    return str(MaskKind.PREFIX) in masks or any(region.startswith("prefix_block") for region in plan.regions)


def _ranges(numbers: tuple[int, ...]) -> str:
    """0-3 for 0, 1, 2, 3; others one by one."""
    first, last = numbers[0], numbers[-1]
    whole = numbers == tuple(range(first, last + 1)) and last > first
    return f"{first}-{last}" if whole else ", ".join(map(str, numbers))


def _statuses(found: Measured) -> dict[str, dict[str, int]]:
    """How many matrices of each arm are ok, estimated, degenerate or failed."""
    from rankkit.store import STATUSES

    return {
        arm: {name: int((values.status == code).sum()) for code, name in enumerate(STATUSES)}
        for arm, values in found.values.items()
    }


def _quality(path: Path, found: Measured) -> Iterator[str]:
    """How much of the spectra was resolved, how exact the numbers are, and what could not be had."""
    import numpy as np

    from rankkit.store import describe, read_group
    from rankkit.store.schema import TRAINED_ENOUGH

    description = describe(path)
    precision = description.root.attributes.get("precision", "the model's precision")
    for group in description.groups:
        names = ("rows", "region", "resolved", "resolved_model", "floor_model", "component")
        arrays = read_group(path, group.name, names)
        own = (slice(None), -1, 0, 0)
        size, region = int(arrays["rows"][0].max()), str(arrays["region"][0])
        arithmetic, model = arrays["resolved"][own].mean(), arrays["resolved_model"][own].mean()
        floor, known = np.nanmean(arrays["floor_model"][own]), arrays["component"].size
        of = f"{size}" if known == size else f"the {known} leading"
        yield (
            f"{group.name}: {arithmetic:.0f} of {of} singular values of the {region} matrix lie above the arithmetic "
            f"floor, {model:.0f} above the model floor ({floor:.1e}, of {precision}; means)"
        )
        for name, reason in group.unavailable.items():
            yield f"{group.name}: no {name.replace('_', ' ')} ({reason})"
        if group.attributes.get(TRAINED_ENOUGH) == 0:
            yield (
                f"note: {group.name} is not trained enough: its final loss is not below that of the model that counts by "
                "two standard errors; its ranks are those of its start."
            )
    for arm, counts in _statuses(found).items():
        if counts["failed"] or counts["degenerate"]:
            yield f"{arm}: of the matrices {counts['failed']:,} failed and {counts['degenerate']:,} are degenerate"


def check_some_measured(shown: Mapping[str, Any]) -> None:
    """Refuse to call a measurement done of which nothing came.

    Args:
        shown: what `measure_and_report` returned.

    Raises:
        SpectrumFileError: every matrix failed.
    """
    counts = [of_arm for of_arm in shown["statuses"].values() if sum(of_arm.values())]
    if all(of_arm["failed"] == sum(of_arm.values()) for of_arm in counts):
        total = sum(of_arm["failed"] for of_arm in counts)
        raise SpectrumFileError(
            f"{shown['file']} must hold spectra, but all {total:,} matrices failed: their entries are not finite, or no "
            "method converged. Look for nan or inf in the weights or arrays."
        )


def figures_folder(path: Path) -> Path:
    """Where the pictures of a spectrum file go: a run's own beside it, those of another file under its name."""
    return path.parent / ("figures" if path.name == "spectrum.h5" else f"{path.stem}-figures")


def _figures(found: Measured, path: Path) -> list[Path]:
    from rankkit.report.functional_figures import draw_functional_rank
    from rankkit.report.run_figures import draw_spectra

    folder = figures_folder(path)
    figures = draw_spectra(path, folder, measure=_headline(found))
    if found.functional is not None and {"all", "layer"} & set(found.functional.scopes):
        figures += draw_functional_rank(found.functional, folder)
    return figures


def _peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
