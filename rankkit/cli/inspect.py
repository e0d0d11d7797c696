"""`rankkit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import FAILED, Output, common_options, examples, guarded

if TYPE_CHECKING:
    from rankkit.store import FileDescription

__all__ = ["command"]


@click.command(
    "inspect", epilog=examples("rankkit inspect runs/tiny --verify", "rankkit inspect runs/tiny/spectrum.h5 --verify")
)
@click.argument("target", metavar="RUN|FILE")
@click.option("--verify", is_flag=True, help="Check that it is whole and consistent; exit code 1 if it is not.")
@common_options
@guarded
def command(output: Output, target: str, verify: bool) -> None:
    """What a run directory or a spectrum file holds; with --verify, whether to believe it.

    A run is verified from its files: configuration, text and seed are turned into initial weights and batches again,
    and compared with what every arm hashed of itself while it trained. A spectrum file is read whole: checksums, shapes,
    ranges, the order of the measures, and every measure of the singular values computed again.
    """
    path = Path(target)
    found, problems = _inspect_run(path, output, verify) if path.is_dir() else _inspect_file(path, output, verify)
    if verify:
        for problem in problems:
            output.say(f"PROBLEM {problem}")
        output.say(f"{target}: {'whole and consistent' if not problems else f'{len(problems)} problems'}")
    output.result({**found, "verified": verify, "problems": problems})
    if problems:
        raise click.exceptions.Exit(FAILED)


def _inspect_run(path: Path, output: Output, verify: bool) -> tuple[dict[str, Any], list[str]]:
    from rankkit.studies.run import open_run
    from rankkit.studies.verify import verify_run

    run = open_run(path)
    config = run.config
    units = {f"{arm} seed {seed}": _unit_state(run, arm, seed) for arm, seed in config.units}
    model = config.base.model
    output.say(f"run {path}, made {run.facts['created']} by: {run.facts['command']}")
    output.say(
        f"{model.num_layers} layers, d_model {model.d_model}, {model.num_heads} heads of {model.head_dim}, "
        f"n = {model.sequence_length}, {model.parameters:,} parameters, {config.base.train.steps} steps"
    )
    for name, state in units.items():
        output.say(f"  {name}: {state}")
    problems = verify_run(run) if verify else []
    return {"run": str(path), "units": units}, problems


def _unit_state(run: Any, arm: str, seed: int) -> str:
    steps = run.directory.checkpoint_steps(arm, seed)
    if run.finished(arm, seed):
        return f"finished, checkpoints at {', '.join(map(str, steps))}"
    return f"at step {steps[-1]}" if steps else "not begun"


def _inspect_file(path: Path, output: Output, verify: bool) -> tuple[dict[str, Any], list[str]]:
    from rankkit.store import describe
    from rankkit.studies.verify import verify_file

    description = describe(path)
    _show_file(description, output)
    problems = verify_file(path) if verify else []
    return {"file": str(path), "groups": [group.name for group in description.groups]}, problems


def _show_file(description: FileDescription, output: Output) -> None:
    root = description.root.attributes
    output.say(f"{description.path}: {root['title']}, {description.size / 2**20:.1f} MiB")
    output.say(
        f"schema {root['rankkit_schema']}, rankkit {root['rankkit_version']}, made {root['created']} by: "
        f"{description.root.command}"
    )
    for group in description.groups:
        sizes = ", ".join(f"{axis} {size}" for axis, size in group.dimensions.items())
        output.say(
            f"/{group.name}: mask {group.attributes['mask']}, objective {group.attributes['objective']}; {sizes}"
        )
        used = ", ".join(f"{count:,} by {method}" for method, count in group.methods.items())
        states = ", ".join(f"{count:,} {status}" for status, count in group.statuses.items())
        output.say(
            f"  {group.matrices:,} matrices ({used}; {states}); of the singular values {group.resolved_fraction:.1%} lie "
            f"above the arithmetic floor, {group.resolved_model_fraction:.1%} above the model floor"
        )
    for name, measure in description.groups[0].measures.items():
        source = f" [{measure.source}]" if measure.source else ""
        output.say(f"  {name}: {measure.definition}{source}")
    if description.comparison is not None:
        output.say("/comparison: gap, mask_effect, learned_effect, interaction")
