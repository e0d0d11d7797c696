"""`rankkit run` of an experiment on trained arms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import click

from rankkit.cli.console import INTERRUPTED, Output, command_line, counted, duration, new_table
from rankkit.cli.experiment_folder import check_folder, write_results, write_values

if TYPE_CHECKING:
    import torch

    from rankkit.studies.experiments.experiment import Experiment
    from rankkit.studies.experiments.study import Study
    from rankkit.studies.experiments.trained import TrainedResult
    from rankkit.studies.run import Run
    from rankkit.training.unit import Message

__all__ = ["RUNS", "run_trained"]

RUNS: Final = Path("runs") / "experiments"
"""Where the runs of all experiments lie, each named by the hash of what decides it."""


def run_trained(
    experiment: Experiment, folder: Path, output: Output, device: torch.device, *, force: bool, plan: bool
) -> None:
    """Train what is missing, measure, judge, and leave the results."""
    from rankkit.studies.drive import interruption
    from rankkit.studies.experiments.study import resolve
    from rankkit.studies.experiments.trained import analyse
    from rankkit.studies.experiments.trained_runs import train_study
    from rankkit.studies.measuring.measure import MeasurementInterruptedError

    study = resolve(experiment.config, experiment.name, experiment.reused)
    if plan:
        _show_plan(experiment, study, output, device)
        return
    check_folder(folder, force=force)
    started = perf_counter()
    try:
        with interruption() as request:
            runs = train_study(
                study, RUNS, device=device, command=command_line(), watch=_watching(output), stop=request
            )
            with output.progress(1) as advance:
                result = analyse(study, runs, device=device, command=command_line(), on_progress=advance, stop=request)
    except MeasurementInterruptedError as error:
        click.echo(f"Interrupted: {error}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    seconds = perf_counter() - started
    found = {"title": experiment.title, "kind": experiment.kind, "seconds": seconds, **result.as_dict()}
    _write(experiment, result, folder, found, device)
    _show(experiment, result, output)
    output.say(f"{duration(seconds)}; everything is in {folder}, the runs are in {RUNS}")
    output.result({"folder": str(folder), **found})


def _watching(
    output: Output,
) -> Callable[[str, Run], contextlib.AbstractContextManager[Callable[[Message], None]]]:
    """Says what is trained, and shows how far it is."""
    from rankkit.cli.training_view import TrainingView

    @contextlib.contextmanager
    def watching(name: str, run: Run) -> Iterator[Callable[[Message], None]]:
        output.note(f"training {name} ({len(run.unfinished)} of {len(run.config.units)} units) in {run.directory.path}")
        view = TrainingView(run, output)
        with view.showing():
            yield view

    return watching


def _write(
    experiment: Experiment, result: TrainedResult, folder: Path, found: dict[str, Any], device: torch.device
) -> None:
    """Everything at once, or nothing."""
    from rankkit.files import atomic_directory, write_text
    from rankkit.report.experiment_figures import draw_trained
    from rankkit.studies.experiments.trained_table import markdown

    with atomic_directory(folder) as temporary:
        write_results(experiment, temporary, found, device)
        write_text(temporary / "table.md", markdown(result))
        write_values(temporary, result.values())
        draw_trained(result, temporary / "figures")


def _show(experiment: Experiment, result: TrainedResult, output: Output) -> None:
    """Numbers, then a sentence for every claim."""
    table = new_table(experiment.title, ("run/arm", "of", "seeds", "mean", "95% over seeds", "n-gram reference"))
    for row in result.rows:
        interval = row.interval
        bounds = "" if interval.lower != interval.lower else f"{interval.lower:.4g} to {interval.upper:.4g}"
        reference = "" if row.reference != row.reference else f"{row.reference:.4f}"
        table.add_row(row.cell, row.of, str(interval.count), f"{interval.mean:.4f}", bounds, reference)
    if result.rows:
        output.table(table)
    for verdict in result.verdicts:
        output.say(verdict.sentence())


def _show_plan(experiment: Experiment, study: Study, output: Output, device: torch.device) -> None:
    """What would be trained, and what the seeds could show."""
    from rankkit.studies.experiments.trained_plan import plan_study

    found = plan_study(study, RUNS, device=device)
    output.say(f"{experiment.title}\nquestion: {study.config.question}")
    table = new_table("runs", ("run", "folder", "arms", "seeds", "tokens each", "units", "to train", "minutes"))
    for run in found.runs:
        table.add_row(
            run.name, run.folder, ", ".join(run.arms), str(run.seeds), f"{run.tokens:,}", str(run.units),
            str(run.missing), f"{run.seconds / 60:.1f}",
        )  # fmt: skip
    output.table(table)
    for line in found.resolvable:
        output.say(line)
    output.say(
        f"training: about {duration(found.seconds)} on {device} from one timed step of every run; declared cost of "
        f"everything: {counted(round(study.config.cost), 'CPU minute')}"
    )
    output.result(found.as_dict())
