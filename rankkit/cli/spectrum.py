"""`rankkit spectrum`."""

from __future__ import annotations

import contextlib
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
    shard_option,
)

if TYPE_CHECKING:
    from rankkit.studies.functional import Scope
    from rankkit.studies.measure import Measured
    from rankkit.studies.measure_config import MeasureConfig
    from rankkit.studies.measure_plan import Plan
    from rankkit.studies.source import Source

__all__ = ["command", "measure_and_report"]

_METHODS = ("auto", "exact", "gram", "svd", "matrix-free")


@click.command(
    "spectrum",
    epilog=examples(
        "rankkit spectrum runs/tiny",
        "rankkit spectrum runs/tiny --resume",
        "rankkit spectrum runs/tiny --samples 8 --layers 0,2-3 --regions prefix_block",
        "rankkit spectrum runs/tiny --checkpoints every:100 --samples 4 --out training.h5",
        "rankkit spectrum runs/tiny --baselines uniform,init,shuffled --layer-output --functional",
        "rankkit spectrum runs/tiny --sequence-length 16384 --method matrix-free --layers 1 --heads 0 --regions full",
        "rankkit spectrum runs/tiny --measures all --method svd --out exact.h5",
        "rankkit spectrum runs/tiny --keep-qk --samples 4 --out kept.h5",
        "rankkit spectrum kept.h5 --method svd --out again.h5",
        "rankkit spectrum attention.npz --mask prefix:128",
        "rankkit spectrum runs/tiny --plan",
    ),
)
@click.argument("target", metavar="RUN|FILE|ARRAYS")
@click.option("--samples", type=click.IntRange(1), help="Held-out sequences.  [default: 32; 1 where matrix-free]")
@click.option(
    "--shard", default="0/1", show_default=True, help="Part i of n of the samples; `rankkit merge` joins them."
)
@click.option("--seeds", help="Such as 0,2.  [default: all that are finished]")
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
@click.option("--keep-qk", is_flag=True, help="Also keep Q and K: the file can be measured again without the model.")
@click.option("--keep-attention", is_flag=True, help="Also keep the attention matrices under their own mask.")
@click.option("--keep-limit", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True,
              help="GiB that may be kept.")  # fmt: skip
@click.option("--mask", help="ARRAYS: the mask they were made under: causal, prefix:P or none.")
@click.option("--scale", type=float, help="ARRAYS of Q and K: factor of the logits.  [default: 1/sqrt(features)]")
@click.option("--memory", type=click.IntRange(1), default=512, show_default=True, help="MiB for dense matrices.")
@click.option("--workers", type=click.IntRange(1), help="Threads for the singular values.  [default: one per core]")
@click.option("--out", type=click.Path(dir_okay=False),
              help="HDF5 file to make.  [default: RUN/spectrum.h5, or NAME-measured.h5 beside FILE or ARRAYS]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file, or what an interrupted measurement kept.")
@click.option("--resume", is_flag=True, help="Continue an interrupted measurement: the same command, with this.")
@click.option("--plan", is_flag=True, help="Print the number of matrices, bytes kept and expected time; do nothing.")
@device_option
@common_options
@guarded
def command(
    output: Output,
    target: str,
    device: str,
    out: str | None,
    force: bool,
    resume: bool,
    plan: bool,
    mask: str | None,
    scale: float | None,
    **options: Any,
) -> None:
    """Capture Q and K of every head, measure the singular values, write HDF5, split the rank gap.

    RUN is a run directory of `rankkit train-pair`. Every head of every arm is measured under its own mask and under the
    other arm's (the mask-swap control): gap = mask effect + learned effect. Regions: the whole matrix, the prefix block
    (only there can a prefix mask lose rank), and both without the first key, where the sink usually is.

    FILE is a spectrum file made with --keep-qk: the same numbers without the model. ARRAYS (.npy, .npz, .h5) holds
    attention matrices, or queries and keys, that other tools made; say their --mask.
    """
    from rankkit.training.environment import choose_device

    place, path = choose_device(device), Path(target)
    config = _configuration(**options)
    with _opened(path, place, mask, scale) as source:
        if plan:
            _show_plan(source, config, output)
            return
        made = Path(out) if out else _default_output(source, path)
        output.result(measure_and_report(source, config, made, output, place, force=force, resume=resume))


@contextlib.contextmanager
def _opened(path: Path, device: Any, mask: str | None, scale: float | None) -> Iterator[Source]:
    """The run, kept factors or arrays of that name."""
    from rankkit.studies.array_source import ArrayMask, array_source
    from rankkit.studies.kept_source import kept_source
    from rankkit.studies.run import open_run
    from rankkit.studies.run_source import RunSource

    arrays = path.suffix in (".npy", ".npz")
    if arrays and mask is None:
        raise click.UsageError("--mask must say under which mask ARRAYS were made: causal, prefix:P or none.")
    if mask is None and scale is not None:
        raise click.UsageError("--scale must stand with ARRAYS and their --mask: a run or spectrum file has its own.")
    if mask is not None and path.is_dir():
        raise click.UsageError("--mask must stand with ARRAYS: a run says its own.")
    if mask is not None:
        with array_source(path, ArrayMask.parsed(mask), device, scale=scale) as given:
            yield given
    elif path.is_file():
        with kept_source(path, device) as kept:
            yield kept
    else:
        yield RunSource(open_run(path), device)


def _default_output(source: Source, path: Path) -> Path:
    from rankkit.studies.run_source import RunSource

    if isinstance(source, RunSource):
        return source.run.directory.spectrum
    return path.with_name(f"{path.stem}-measured.h5")


def _configuration(
    regions: str | None,
    measures: str | None,
    baselines: str | None,
    layers: str | None,
    heads: str | None,
    seeds: str | None,
    shard: str,
    functional: bool,
    functional_scopes: str | None,
    functional_ranks: str | None,
    leading: int,
    half_width: float,
    memory: int,
    keep_limit: float,
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
        seeds=integers(seeds, "--seeds"),
        shard=shard_option(shard),
        regions=chosen(regions, REGIONS, REGIONS),
        measures=chosen(measures, tuple(MEASURES), DEFAULT_MEASURES),
        baselines=chosen(baselines, BASELINES, ()),
        functional_scopes=_scopes(functional, functional_scopes, functional_ranks),
        functional_ranks=integers(functional_ranks, "--functional-ranks"),
        matrix_free=MatrixFreeConfig(leading=leading, half_width=half_width),
        memory_budget=memory << 20,
        keep_limit=int(keep_limit * 2**30),
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


def _show_plan(source: Source, config: MeasureConfig, output: Output) -> None:
    from rankkit.studies.measure import check_kept, kept_bytes, plan_functional

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
        output.say(f"functional rank: {cuts.passes:,} forward passes, {cuts.decompositions:,} matrices decomposed")
    if kept:
        output.say(f"kept: {_size(kept)} before compression, of at most {_size(config.keep_limit)}")
    output.say(f"time: about {_duration(seconds)} (from a little of the work done now)")
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
    from rankkit.studies.measure import plan_functional
    from rankkit.studies.measure_plan import expected_seconds
    from rankkit.studies.run_source import RunSource

    cuts, of_cuts = plan_functional(source, config), 0.0
    if cuts is not None and isinstance(source, RunSource):
        of_cuts = functional_sweep.expected_seconds(source.run, cuts, workers=config.workers)
    return expected_seconds(plan, config) + of_cuts


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 30 else f"{seconds:.0f} seconds"


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _warn_of_length(source: Source, plan: Plan, output: Output) -> None:
    from rankkit.studies.run_source import RunSource

    if not isinstance(source, RunSource):
        return
    trained = source.run.config.base.model.sequence_length
    if plan.sequence_length > trained:
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
    from rankkit.studies.measure import check_kept, kept_bytes

    plan = source.plan(config)
    check_kept(plan, config)
    _warn_of_length(source, plan, output)
    output.note(f"{plan.matrices:,} matrices, about {_duration(_expected_seconds(source, config, plan))}")
    if kept := kept_bytes(plan, config):
        output.note(f"keeping {_size(kept)} before compression")
    started = perf_counter()
    found = _measured(source, config, path, plan, output, device, force=force, resume=resume)
    elapsed = perf_counter() - started
    if found.resumed:
        output.note(f"{found.resumed:,} finished slabs were taken over")
    if found.damaged:
        output.note(f"warning: {found.damaged:,} finished slabs were damaged and computed again. Check the disk.")
    shown = _show(found, path, output)
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
        "resumed": found.resumed,
        "figures": [str(figure) for figure in figures],
        **shown,
    }


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
    from rankkit.studies.drive import interruption
    from rankkit.studies.measure import MeasurementInterruptedError, measure_attention

    first = command_line(without=("--resume",))
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
    if split is None:
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
    }


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
    """What the ranks below depend on, in a line."""
    plan = found.plan
    of = "" if plan.documents is None else f" of {len(set(plan.documents.tolist()))} documents"
    steps = ", ".join(map(str, plan.steps))
    return (
        f"n = {plan.sequence_length}, p = {plan.prefix_length}; {len(plan.sequences)} sequences{of}; "
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
    import numpy as np

    from rankkit.store import describe, read_group

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
