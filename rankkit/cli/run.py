"""`rankkit run`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import click

from rankkit.cli.console import (
    INTERRUPTED,
    Output,
    common_options,
    counted,
    device_option,
    duration,
    examples,
    guarded,
    new_table,
)
from rankkit.cli.experiment_folder import check_folder, write_results, write_values
from rankkit.cli.trained_experiment import run_trained

if TYPE_CHECKING:
    import torch

    from rankkit.studies.experiments.experiment import Experiment
    from rankkit.studies.experiments.findings import Finding
    from rankkit.studies.experiments.random_logits import RandomLogits

__all__ = ["command"]

SAME: Final = 1e-9  # relative: a standard error below is rounding in its own sum


@click.command(
    "run",
    epilog=examples(
        "rankkit run experiments/phase_diagram.toml",
        "rankkit run experiments/null_table.toml --out runs/null --force",
        "rankkit run experiments/gpt_vs_unilm.toml --plan",
        "rankkit run experiments/gpt_vs_unilm.toml --set base.preset=base",
    ),
)
@click.argument("experiment", type=click.Path())
@click.option("--out", type=click.Path(), help="Folder to make.  [default: runs/ and the experiment's name]")
@click.option("--force", is_flag=True, help="Replace the results of an earlier run.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Over the file and those that it reuses; repeatable.",
)
@click.option("--plan", is_flag=True, help="Print what it would take; do nothing.")
@device_option
@common_options
@guarded
def command(
    output: Output,
    experiment: str,
    out: str | None,
    force: bool,
    assignments: tuple[str, ...],
    plan: bool,
    device: str,
) -> None:
    """Run a declared experiment and hold what it finds against what was expected.

    EXPERIMENT is a TOML file; its `kind` chooses the study. Results appear in the output folder when all of them are
    there: the declaration, results.json, values.csv and figures. An expectation that is not reproduced is a result, and
    the exit code is 0. What is trained lies in runs/experiments and is never trained twice: after an interruption the same
    command goes on.
    """
    from rankkit.studies.experiments.experiment import load_experiment
    from rankkit.training.environment import choose_device

    loaded = load_experiment(experiment, assignments)
    folder = Path(out) if out else Path("runs") / loaded.name
    _RUNNERS[loaded.kind](loaded, folder, output, choose_device(device), force=force, plan=plan)


def _random_logits(
    experiment: Experiment, folder: Path, output: Output, device: torch.device, *, force: bool, plan: bool
) -> None:
    from rankkit.studies.drive import interruption
    from rankkit.studies.experiments.random_logits import expected_seconds, measure_random_logits
    from rankkit.studies.measuring.measure import MeasurementInterruptedError

    config = experiment.config
    if plan:
        seconds = expected_seconds(config, device=device)
        output.say(f"{experiment.title}\nmatrices: {config.total:,}\ntime: about {duration(seconds)} (measured now)")
        output.result({"matrices": config.total, "seconds": seconds})
        return
    check_folder(folder, force=force)
    output.note(
        f"{experiment.title}: {counted(config.total, 'matrix')}, about {duration(expected_seconds(config, device=device))}"
    )
    started = perf_counter()
    try:
        with interruption() as request, output.progress(config.total) as advance:
            result = measure_random_logits(config, device=device, on_progress=advance, stop=request)
    except MeasurementInterruptedError as error:
        click.echo(f"Interrupted: {error}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    found: dict[str, Any] = {
        "title": experiment.title,
        "kind": experiment.kind,
        "seconds": perf_counter() - started,
        "expectations": [finding.as_dict() for finding in result.findings()],
        "crossings": [crossing.as_dict() for crossing in result.crossings()],
    }
    _write(experiment, result, folder, found, device)
    _show_crossings(result, output)
    _show_findings(list(result.findings()), output)
    output.say(f"{counted(config.total, 'matrix')} in {duration(found['seconds'])}; everything is in {folder}")
    output.result({"folder": str(folder), **found})


_RUNNERS: Final[Mapping[str, Callable[..., None]]] = {"random-logits": _random_logits, "trained": run_trained}
"""By kind of experiment."""


def _write(
    experiment: Experiment, result: RandomLogits, folder: Path, found: Mapping[str, Any], device: torch.device
) -> None:
    """Everything at once, or nothing."""
    from rankkit.files import atomic_directory
    from rankkit.report.experiment_figures import draw_random_logits

    with atomic_directory(folder) as temporary:
        write_results(experiment, temporary, {**found, "means": list(result.means())}, device)
        write_values(temporary, result.rows())
        draw_random_logits(result, temporary / "figures")


def _show_crossings(result: RandomLogits, output: Output) -> None:
    """A table for every pair of masks: measures down, families across."""
    for (first, second), group in groupby(result.crossings(), key=lambda crossing: (crossing.first, crossing.second)):
        cells: dict[str, dict[str, str]] = {}
        for crossing in group:
            size = crossing.family.label.replace("n = ", "").replace("d = ", "")
            error = "" if math.isnan(crossing.standard_error) else f"±{crossing.standard_error:.3f}"
            text = "none" if math.isnan(crossing.std) else f"{crossing.std:.3f}{error}"
            cells.setdefault(crossing.measure, {})[size] = text
        output.say(
            f"Logit std above which {first} is below {second}, by n and head size, with its standard error (jackknife) "
            f"over {counted(len(result.config.seeds), 'seed')}:"
        )
        table = new_table("", ("measure", *next(iter(cells.values()))))
        for measure, row in cells.items():
            table.add_row(measure, *row.values())
        output.table(table)


def _show_findings(findings: list[Finding], output: Output) -> None:
    """One line for every expectation, and a sentence for every one that was not met."""
    for (where, seeds, overall), group in groupby(findings, key=lambda f: (f.where, f.seeds, f.overall_seeds)):
        more = () if seeds == overall else (counted(overall, "seed"),)
        table = new_table(where, ("", "expected", counted(seeds, "seed"), "off by", "allowed", *more, "reproduced"))
        for finding in group:
            table.add_row(
                finding.what,
                finding.expected,
                _number(finding.found, finding.standard_error),
                "" if math.isnan(finding.error) else f"{finding.error:+.1g}",
                f"{finding.allowed:.2g}",
                *(_number(finding.overall, finding.overall_error) for _ in more),
                "yes" if finding.reproduced else "NO",
            )
        output.table(table)
    missed = [finding for finding in findings if not finding.reproduced]
    for finding in missed:
        output.say(finding.sentence())
    if findings:
        output.say(f"{len(findings) - len(missed)} of {len(findings)} expectations reproduced.")


def _number(value: float, error: float) -> str:
    """Value and standard error, where there is one and seeds differ; a crossing that is not there is none."""
    if math.isnan(value):
        return "none"
    return f"{value:.4g} ± {error:.1g}" if error > abs(value) * SAME else f"{value:.4g}"
