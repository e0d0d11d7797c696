"""`rankkit demo`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import click

from rankkit.cli.console import Output, common_options, device_option, duration, examples, guarded, integers

__all__ = ["command"]


@click.command("demo", epilog=examples("rankkit demo", "rankkit demo --seeds 0 --out runs/quick"))
@click.option(
    "--seeds", default="0,1,2", show_default=True, help="One seed takes a third of the time and gives no verdict."
)
@click.option("--out", type=click.Path(), default="runs/demo", show_default=True, help="Run directory to make.")
@click.option("--force", is_flag=True, help="Replace an existing run.")
@click.option("--workers", type=click.IntRange(1), help="Units trained side by side.  [default: one per core]")
@device_option
@common_options
@guarded
def command(output: Output, seeds: str, out: str, force: bool, workers: int | None, device: str) -> None:
    """Train the tiny pair on text that is already here, measure it, draw it: all of rankkit in some minutes."""
    from rankkit.cli.spectrum import measure_and_report
    from rankkit.cli.train_pair import new_run, train_and_report
    from rankkit.report.page.build import write_report
    from rankkit.studies.configure import run_config
    from rankkit.studies.measuring.config import MeasureConfig
    from rankkit.studies.measuring.run_source import RunSource
    from rankkit.training.environment import choose_device

    started = perf_counter()
    place = choose_device(device)
    config = run_config(seeds=integers(seeds, "--seeds"))
    run = new_run(config, Path(out), place, workers, force, output)
    trained = train_and_report(run, output, place, workers, (0, 1), next_step=False)
    output.say()
    measured = measure_and_report(
        RunSource(run, place), MeasureConfig(), run.directory.spectrum, output, place, force=force, next_step=False
    )
    page = write_report([out], force=True).path
    output.say(f"\nEverything is in {out} ({duration(perf_counter() - started)}). Open {page} in a browser.")
    output.result({"training": trained, "spectrum": measured, "report": str(page)})
