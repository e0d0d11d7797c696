"""`rankkit spectrum`."""

from __future__ import annotations

import resource
import shlex
import sys
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
    from rankkit.studies.measure import MeasureConfig
    from rankkit.studies.run import Run

__all__ = ["command", "measure_and_report"]


@click.command(
    "spectrum",
    epilog=examples(
        "rankkit spectrum runs/tiny",
        "rankkit spectrum runs/tiny --samples 8 --layers 0,2-3 --regions prefix_block",
        "rankkit spectrum runs/tiny --measures effective_rank,stable_rank --method svd --out exact.h5",
        "rankkit spectrum runs/tiny --plan",
    ),
)
@click.argument("run")
@click.option("--samples", type=click.IntRange(1), help="Held-out sequences.  [default: 32]")
@click.option("--sequence-length", type=click.IntRange(1), help="Tokens per sequence.  [default: the run's]")
@click.option(
    "--prefix-length", type=click.IntRange(0), help="One p for all samples.  [default: the evaluation's, half]"
)
@click.option("--layers", help="Such as 0,2-3.  [default: all]")
@click.option("--heads", help="Such as 0-3.  [default: all]")
@click.option("--regions", default="full,prefix_block", show_default=True, help="Parts of each matrix.")
@click.option("--measures", help="Names, or `all`.  [default: ranks, entropy, sinks, logit_std]")
@click.option("--method", type=click.Choice(["auto", "gram", "svd"]), default="auto", show_default=True,
              help="auto: gram; svd where gram fails or a measure needs what it cannot resolve.")  # fmt: skip
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
    other arm's (the mask-swap control): gap = mask effect + learned effect.
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
    samples: int | None,
    sequence_length: int | None,
    prefix_length: int | None,
    layers: str | None,
    heads: str | None,
    regions: str,
    measures: str | None,
    method: str,
    memory: int,
    workers: int | None,
) -> MeasureConfig:
    from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES
    from rankkit.studies.measure import MeasureConfig

    chosen = tuple(MEASURES) if measures == "all" else names(measures) if measures else DEFAULT_MEASURES
    return MeasureConfig(
        samples=samples,
        sequence_length=sequence_length,
        prefix_length=prefix_length,
        layers=integers(layers, "--layers"),
        heads=integers(heads, "--heads"),
        regions=names(regions),
        measures=chosen,
        method=method,  # type: ignore[arg-type]
        memory_budget=memory << 20,
        workers=workers,
    )


def _show_plan(run: Run, config: MeasureConfig, output: Output) -> None:
    from rankkit.studies.measure import expected_seconds, plan_measurement

    plan = plan_measurement(run, config)
    seconds = expected_seconds(plan, config)
    output.say(
        f"matrices: {plan.matrices:,}; regions {', '.join(f'{r} {plan.size(r)} x {plan.size(r)}' for r in plan.regions)}"
    )
    output.say(f"time: about {seconds / 60:.1f} minutes (from a few matrices measured now)")
    output.result({"matrices": plan.matrices, "seconds": seconds, "sizes": {r: plan.size(r) for r in plan.regions}})


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
    from rankkit.cli.spectrum_table import decomposition_as_dict, show_companions, show_decomposition
    from rankkit.report.run_figures import draw_spectra
    from rankkit.store import describe
    from rankkit.studies.drive import interruption
    from rankkit.studies.measure import MeasurementInterruptedError, expected_seconds, measure_run, plan_measurement

    plan = plan_measurement(run, config)
    if plan.sequence_length > run.config.base.model.sequence_length:
        output.note(f"warning: {plan.sequence_length} tokens are more than the model was trained on.")
    seconds = expected_seconds(plan, config)
    expected = f"{seconds / 60:.1f} minutes" if seconds >= 30 else f"{seconds:.0f} seconds"
    output.note(f"{plan.matrices:,} matrices, about {expected}")
    started = perf_counter()
    try:
        with interruption() as request, _progress(output, plan.matrices) as advance:
            found = measure_run(
                run, config, path, device=device, command=command_line(), force=force, on_progress=advance, stop=request
            )
    except MeasurementInterruptedError as error:
        click.echo(f"Interrupted: {error}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    elapsed = perf_counter() - started
    if found is not None:
        headline = "effective_rank" if "effective_rank" in found.measures else found.measures[0]
        show_decomposition(found, headline, output)
        show_companions(found, output)
    else:
        output.say("No gap to split: the run has no causal and prefix arm with the same objective.")
    groups = {group.name: group for group in describe(path).groups}
    for name, group in groups.items():
        output.say(f"{name}: {_resolved(path, name, group)}")
    figures = draw_spectra(path, path.parent / "figures")
    peak = _peak_bytes() / 2**20
    output.say(f"\n{plan.matrices:,} matrices in {elapsed:.0f} s, peak memory {peak:.0f} MiB")
    output.say(f"file: {path}")
    output.say("figures: " + ", ".join(str(figure) for figure in figures if figure.suffix == ".png"))
    if next_step:
        output.say(f"next: rankkit inspect {shlex.quote(str(path))} --verify")
    return {
        "file": str(path),
        "matrices": plan.matrices,
        "seconds": elapsed,
        "peak_mebibytes": peak,
        "figures": [str(figure) for figure in figures],
        "comparison": decomposition_as_dict(found) if found is not None else None,
    }


def _resolved(path: Path, name: str, group: Any) -> str:
    """How many singular values of an arm's own whole matrices lie above the floors."""
    from rankkit.store import read_group

    arrays = read_group(path, name)
    own = (slice(None), slice(None), 0, 0)
    size = int(arrays["rows"][0].max())
    arithmetic, model = arrays["resolved"][own].mean(), arrays["resolved_model"][own].mean()
    region = str(arrays["region"][0])
    return (
        f"{arithmetic:.0f} of {size} singular values of the {region} matrix lie above the arithmetic floor, "
        f"{model:.0f} above the model floor (means)"
    )


def _progress(output: Output, total: int) -> Any:
    """A progress bar as a context manager that gives the callback."""
    import contextlib
    from collections.abc import Callable, Iterator

    from rankkit.studies.measure import Progress as Step

    @contextlib.contextmanager
    def showing() -> Iterator[Callable[[Step], None]]:
        if not output.live:
            yield lambda step: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=output.err) as progress:
            task = progress.add_task("measuring", total=total)
            yield lambda step: progress.update(task, completed=step.done, description=step.label)

    return showing()


def _peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
