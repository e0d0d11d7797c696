"""`rankkit spectrum`."""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import (
    INTERRUPTED,
    Output,
    command_line,
    common_options,
    device_option,
    examples,
    guarded,
    integers,
    names,
)

if TYPE_CHECKING:
    from rankkit.studies.functional import Scope
    from rankkit.studies.measure import Measured
    from rankkit.studies.measure_config import MeasureConfig
    from rankkit.studies.measure_plan import Plan
    from rankkit.studies.run import Run

__all__ = ["command", "measure_and_report"]

_METHODS = ("auto", "exact", "gram", "svd", "matrix-free")


@click.command(
    "spectrum",
    epilog=examples(
        "rankkit spectrum runs/tiny",
        "rankkit spectrum runs/tiny --samples 8 --layers 0,2-3 --regions prefix_block",
        "rankkit spectrum runs/tiny --checkpoints every:100 --samples 4 --out training.h5",
        "rankkit spectrum runs/tiny --baselines uniform,init,shuffled --layer-output --functional",
        "rankkit spectrum runs/tiny --sequence-length 16384 --method matrix-free --layers 1 --heads 0 --regions full",
        "rankkit spectrum runs/tiny --measures all --method svd --out exact.h5",
        "rankkit spectrum runs/tiny --plan",
    ),
)
@click.argument("run")
@click.option("--samples", type=click.IntRange(1), help="Held-out sequences.  [default: 32; 1 where matrix-free]")
@click.option("--sequence-length", type=click.IntRange(1), help="Tokens per sequence.  [default: the run's]")
@click.option(
    "--prefix-length", type=click.IntRange(0), help="One p for all samples.  [default: the evaluation's, half]"
)
@click.option("--layers", help="Such as 0,2-3.  [default: all]")
@click.option("--heads", help="Such as 0-3.  [default: all]")
@click.option(
    "--regions", help="full, prefix_block, first_key_removed, prefix_block_first_key_removed.  [default: all]"
)
@click.option("--checkpoints", default="last", show_default=True, help="last, all or every:N steps.")
@click.option("--measures", help="Names, or `all`.  [default: ranks, entropy, sinks, logit_std]")
@click.option("--baselines", help="uniform, init, shuffled, gaussian, logits, or `all`.  [default: none]")
@click.option("--layer-output", is_flag=True, help="Also the rank of each layer's output, the sum over its heads.")
@click.option(
    "--functional", is_flag=True, help="Also the last step's loss when attention is cut to k singular triplets."
)
@click.option("--functional-scopes", help="Cut at once: all, layer, head.  [default: all,layer]")
@click.option("--functional-ranks", help="k, such as 1,4,16-18.  [default: 1, 2, 4, ... and n]")
@click.option("--method", type=click.Choice(_METHODS), default="auto", show_default=True,
              help="auto: exact where a matrix fits --memory, else matrix-free. exact: gram, and svd where a measure "
                   "needs what gram cannot resolve.")  # fmt: skip
@click.option("--leading", type=click.IntRange(1), default=32, show_default=True, help="Matrix-free: singular values.")
@click.option("--half-width", type=float, default=0.05, show_default=True,
              help="Matrix-free: stop when the effective rank's bracket is +- this share.")  # fmt: skip
@click.option("--memory", type=click.IntRange(1), default=512, show_default=True, help="MiB for dense matrices.")
@click.option("--workers", type=click.IntRange(1), help="Threads for the singular values.  [default: one per core]")
@click.option("--out", type=click.Path(dir_okay=False), help="HDF5 file to make.  [default: RUN/spectrum.h5]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--plan", is_flag=True, help="Print the number of matrices and the expected time; do nothing.")
@device_option
@common_options
@guarded
def command(output: Output, run: str, device: str, out: str | None, force: bool, plan: bool, **options: Any) -> None:
    """Capture Q and K of every head, measure the singular values, write HDF5, split the rank gap.

    RUN is a run directory of `rankkit train-pair`. Every head of every arm is measured under its own mask and under the
    other arm's (the mask-swap control): gap = mask effect + learned effect. Regions: the whole matrix, the prefix block
    (only there can a prefix mask lose rank), and both without the first key, where the sink usually is.
    """
    from rankkit.studies.run import open_run
    from rankkit.training.environment import choose_device

    place = choose_device(device)
    opened = open_run(Path(run))
    config = _configuration(**options)
    if plan:
        _show_plan(opened, config, output)
        return
    path = Path(out) if out else opened.directory.spectrum
    output.result(measure_and_report(opened, config, path, output, place, force=force))


def _configuration(
    regions: str | None,
    measures: str | None,
    baselines: str | None,
    layers: str | None,
    heads: str | None,
    functional: bool,
    functional_scopes: str | None,
    functional_ranks: str | None,
    leading: int,
    half_width: float,
    memory: int,
    **others: Any,
) -> MeasureConfig:
    from rankkit.axes import REGIONS
    from rankkit.spectra import DEFAULT_MEASURES, MEASURES, MatrixFreeConfig
    from rankkit.spectra.baselines import BASELINES
    from rankkit.studies.measure_config import MeasureConfig

    def chosen(text: str | None, every: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
        return default if text is None else every if text == "all" else names(text)

    return MeasureConfig(
        layers=integers(layers, "--layers"),
        heads=integers(heads, "--heads"),
        regions=chosen(regions, REGIONS, REGIONS),
        measures=chosen(measures, tuple(MEASURES), DEFAULT_MEASURES),
        baselines=chosen(baselines, BASELINES, ()),
        functional_scopes=_scopes(functional, functional_scopes, functional_ranks),
        functional_ranks=integers(functional_ranks, "--functional-ranks"),
        matrix_free=MatrixFreeConfig(leading=leading, half_width=half_width),
        memory_budget=memory << 20,
        **others,
    )


def _scopes(functional: bool, scopes: str | None, ranks: str | None) -> tuple[Scope, ...]:
    """Which heads are cut at once; none where functional rank was not asked for."""
    for option, given in (("--functional-scopes", scopes), ("--functional-ranks", ranks)):
        if given is not None and not functional:
            raise click.UsageError(f"{option} must stand with --functional: nothing is cut without it.")
    chosen = names("all,layer" if scopes is None else scopes) if functional else ()
    if functional and not chosen:
        raise click.BadParameter(f"must be among all, layer, head, got {scopes!r}", param_hint="--functional-scopes")
    return chosen  # type: ignore[return-value]  # checked by MeasureConfig


def _show_plan(run: Run, config: MeasureConfig, output: Output) -> None:
    from rankkit.studies.measure import plan_functional
    from rankkit.studies.measure_plan import plan_measurement

    plan, cuts = plan_measurement(run, config), plan_functional(run, config)
    _warn_of_length(run, plan, output)
    seconds = _expected_seconds(run, config, plan)
    output.say(
        f"matrices: {plan.matrices:,}; sequences: {len(plan.sequences):,}; steps: {', '.join(map(str, plan.steps))}"
    )
    for region, (method, rule) in plan.methods.items():
        output.say(f"  {region}: {plan.size(region)} x {plan.size(region)}, {method} ({rule})")
    if cuts is not None:
        output.say(f"functional rank: {cuts.passes:,} forward passes, {cuts.decompositions:,} matrices decomposed")
    output.say(f"time: about {_duration(seconds)} (from a little of the work done now)")
    output.result(
        {
            "matrices": plan.matrices,
            "sequences": len(plan.sequences),
            "steps": list(plan.steps),
            "seconds": seconds,
            "sizes": {region: plan.size(region) for region in plan.regions},
            "methods": {region: method for region, (method, _) in plan.methods.items()},
            "rules": {region: rule for region, (_, rule) in plan.methods.items()},
            "functional": None
            if cuts is None
            else {"forward_passes": cuts.passes, "matrices_decomposed": cuts.decompositions, "ranks": list(cuts.ranks)},
        }
    )


def _expected_seconds(run: Run, config: MeasureConfig, plan: Plan) -> float:
    """Of the spectra, and of the cuts where those are asked for."""
    from rankkit.studies import functional_sweep
    from rankkit.studies.measure import plan_functional
    from rankkit.studies.measure_plan import expected_seconds

    cuts = plan_functional(run, config)
    of_cuts = 0.0 if cuts is None else functional_sweep.expected_seconds(run, cuts, workers=config.workers)
    return expected_seconds(plan, config) + of_cuts


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 30 else f"{seconds:.0f} seconds"


def _warn_of_length(run: Run, plan: Plan, output: Output) -> None:
    trained = run.config.base.model.sequence_length
    if plan.sequence_length > trained:
        output.note(
            f"warning: {plan.sequence_length:,} tokens are more than the {trained:,} that the models were trained on."
        )


def measure_and_report(
    run: Run,
    config: MeasureConfig,
    path: Path,
    output: Output,
    device: Any,
    *,
    force: bool,
    next_step: bool = True,
) -> dict[str, Any]:
    """Measure with progress, then show the decomposition and draw the figures; returns the same as plain values."""
    from rankkit.studies.drive import interruption
    from rankkit.studies.measure import MeasurementInterruptedError, measure_run
    from rankkit.studies.measure_plan import plan_measurement

    plan = plan_measurement(run, config)
    _warn_of_length(run, plan, output)
    output.note(f"{plan.matrices:,} matrices, about {_duration(_expected_seconds(run, config, plan))}")
    started = perf_counter()
    try:
        with interruption() as request, output.progress(plan.matrices) as advance:
            found = measure_run(
                run, config, path, device=device, command=command_line(), force=force, on_progress=advance, stop=request
            )
    except MeasurementInterruptedError as error:
        click.echo(f"Interrupted: {error}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    elapsed = perf_counter() - started
    shown = _show(run, found, path, output)
    figures = _figures(found, path)
    peak = _peak_bytes() / 2**20
    output.say(f"\n{plan.matrices:,} matrices in {elapsed:.0f} s, peak memory {peak:.0f} MiB")
    output.say(f"file: {path}")
    if pictures := [figure for figure in figures if figure.suffix == ".png"]:
        output.say(f"figures: {len(pictures)} in {figures_folder(path)}, such as {pictures[0].name}")
    if next_step:
        output.say(f"next: rankkit inspect {shlex.quote(str(path))} --verify")
    return {
        "file": str(path),
        "matrices": plan.matrices,
        "seconds": elapsed,
        "peak_mebibytes": peak,
        "figures": [str(figure) for figure in figures],
        **shown,
    }


def _show(run: Run, found: Measured, path: Path, output: Output) -> dict[str, Any]:
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
    if split is None:
        output.say(f"No gap to split: {_why_no_gap(run)}.")
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
    }


def _headline(found: Measured) -> str:
    """The measure that tables and figures show: the effective rank, or the first that there is."""
    measures = next(iter(found.values.values())).measures
    known = measures if found.decomposition is None else found.decomposition.measures
    return "effective_rank" if "effective_rank" in known else next(iter(known))


def _why_no_gap(run: Run) -> str:
    from rankkit.studies.decomposition import causal_and_prefix

    if causal_and_prefix(run) is None:
        return "the run has no causal and prefix arm with the same objective"
    return "nothing was measured that has a mean"


def _setting(found: Measured) -> str:
    """What the ranks below depend on, in a line."""
    plan = found.plan
    documents = len(set(plan.documents.tolist()))
    steps = ", ".join(map(str, plan.steps))
    return (
        f"n = {plan.sequence_length}, p = {plan.prefix_length}; {len(plan.sequences)} sequences of {documents} documents; "
        f"layers {_ranges(plan.layers)}, heads {_ranges(plan.heads)}; step {steps}\n"
    )


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
    from rankkit.store import describe, read_group

    for group in describe(path).groups:
        arrays = read_group(path, group.name, ("rows", "region", "resolved", "resolved_model", "component"))
        own = (slice(None), -1, 0, 0)
        size, region = int(arrays["rows"][0].max()), str(arrays["region"][0])
        arithmetic, model = arrays["resolved"][own].mean(), arrays["resolved_model"][own].mean()
        known = arrays["component"].size
        of = f"{size}" if known == size else f"the {known} leading"
        yield (
            f"{group.name}: {arithmetic:.0f} of {of} singular values of the {region} matrix lie above the arithmetic "
            f"floor, {model:.0f} above the model floor (means)"
        )
        for name, reason in group.unavailable.items():
            yield f"{group.name}: no {name.replace('_', ' ')} ({reason})"
    for arm, counts in _statuses(found).items():
        if counts["failed"] or counts["degenerate"]:
            yield f"{arm}: {counts['failed']} matrices failed and {counts['degenerate']} are degenerate"


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
