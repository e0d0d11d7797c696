"""`rankkit inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import FAILED, Output, common_options, counted, examples, guarded, visible

if TYPE_CHECKING:
    from rankkit.store import ComparisonDescription, FileDescription, GroupDescription
    from rankkit.training.config import RunConfig

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
    found, checks, problems = (_inspect_run if path.is_dir() else _inspect_file)(path, output, verify)
    if verify:
        output.say(f"checked {checks}")
        for problem in problems:
            output.say(f"PROBLEM {problem}")
        output.say(f"{target}: {counted(len(problems), 'problem') if problems else 'whole and consistent'}")
    else:
        output.say(f"{target}: not verified; --verify does it")
    output.result({**found, "verified": verify, "checked": checks if verify else None, "problems": problems})
    if problems:
        raise click.exceptions.Exit(FAILED)


def _inspect_run(path: Path, output: Output, verify: bool) -> tuple[dict[str, Any], str, list[str]]:
    """What is there, what a verification checks of it, and what is wrong."""
    from rankkit.cli.train_pair import initial_note
    from rankkit.studies.run import open_run
    from rankkit.studies.verify import verify_run
    from rankkit.training.settings import to_table

    run = open_run(path)
    config = run.config
    units = {f"{arm} seed {seed}": _unit_state(run, arm, seed) for arm, seed in config.units}
    model = config.base.model
    output.say(f"run {path}, made {run.facts['created']} by: {run.facts['command']}")
    output.say(
        f"{counted(model.num_layers, 'layer')}, d_model {model.d_model}, {counted(model.num_heads, 'head')} of "
        f"{model.head_dim}, n = {model.sequence_length}, {counted(model.parameters, 'parameter')}, "
        f"{counted(config.base.train.steps, 'step')}"
    )
    if config.initial is not None:
        output.say(initial_note(config.initial))
    arms = _show_arms(config, output)
    for name, state in units.items():
        output.say(f"  {name}: {state}")
    checkpoints = sum(len(run.directory.checkpoint_steps(*unit)) for unit in config.units)
    checks = f"tokens, certificate, and {counted(checkpoints, 'checkpoint')} of {counted(len(config.units), 'unit')}"
    checks += f", and {run.directory.spectrum.name}" if run.directory.spectrum.is_file() else ""
    initial = None if config.initial is None else to_table(config.initial)
    return {"run": str(path), "initial": initial, **arms, "units": units}, checks, verify_run(run) if verify else []


def _show_arms(config: RunConfig, output: Output) -> dict[str, Any]:
    """What each arm is and in what every two differ; the same as plain values."""
    from rankkit.studies.certificate import declared_fields

    found = {name: config.arm(name) for name in config.arms}
    arms = {
        name: {"mask": str(arm.model.mask), "objective": str(arm.train.objective), "task": arm.task.evaluated_as}
        for name, arm in found.items()
    }
    for name, facts in arms.items():
        output.say(
            f"  {name}: mask {facts['mask']}, objective {facts['objective']}, evaluated by its {facts['task']} loss"
        )
    pairs = []
    for one, other in combinations(found, 2):
        declared, one_task = declared_fields(one, other), arms[one]["task"] == arms[other]["task"]
        pairs.append({"arms": [one, other], "declared": declared, "losses_subtracted": one_task})
        apart = "" if one_task else "; their losses are over different targets"
        output.say(f"  {one} and {other} differ in {' and '.join(declared)}{apart}")
    return {"arms": arms, "pairs": pairs}


def _unit_state(run: Any, arm: str, seed: int) -> str:
    steps = run.directory.checkpoint_steps(arm, seed)
    if run.finished(arm, seed):
        return f"finished, checkpoints at {', '.join(map(str, steps))}"
    return f"at step {steps[-1]}" if steps else "not begun"


def _inspect_file(path: Path, output: Output, verify: bool) -> tuple[dict[str, Any], str, list[str]]:
    """What is there, what a verification checks of it, and what is wrong."""
    from rankkit.store import describe
    from rankkit.studies.verify import verify_file

    description = describe(path)
    _show_file(description, output)
    return _file_as_dict(description), _checks(description), verify_file(path) if verify else []


def _checks(description: FileDescription) -> str:
    """What is read, and how much of it is computed again."""
    from rankkit.spectra import MEASURES

    groups = (*description.groups, *description.baselines)
    matrices = sum(group.matrices for group in groups)
    values = sum(group.matrices * len(group.measures) for group in groups)
    again = 0
    for group in groups:
        whole = sum(group.statuses.get(status, 0) for status in ("ok", "degenerate"))
        again += whole * sum(name in MEASURES and MEASURES[name].needs == "singular_values" for name in group.measures)
    failed = sum(group.statuses.get("failed", 0) for group in groups)
    without = (
        f"; {counted(failed, 'matrix')} failed and {'has' if failed == 1 else 'have'} no numbers" if failed else ""
    )
    return (
        f"every checksum, {counted(matrices, 'matrix')} and {counted(values, 'value')} of measures, {again:,} of them "
        f"computed again from singular values{without}"
    )


def _show_file(description: FileDescription, output: Output) -> None:
    from rankkit.spectra.baselines import BASELINE_DEFINITIONS
    from rankkit.store import kept_in

    root = description.root.attributes
    output.say(f"{description.path}: {visible(root['title'])}, {description.size / 2**20:.1f} MiB")
    output.say(
        f"schema {visible(root['rankkit_schema'])}, rankkit {visible(root['rankkit_version'])}, made "
        f"{visible(root['created'])} by: {visible(description.root.command)}"
    )
    for group in description.groups:
        sizes = ", ".join(f"{axis} {size}" for axis, size in group.dimensions.items())
        output.say(
            f"/{group.name}: mask {visible(group.attributes['mask'])}, objective "
            f"{visible(group.attributes['objective'])}; {sizes}"
        )
        _show_group(group, output)
        if kept := kept_in(description.path, group.name):
            output.say(f"  kept: {', '.join(kept)}; measure them again with rankkit spectrum FILE")
    rules = {group.name: group.attributes.get("method_rule") for group in description.groups}
    for group in description.baselines:
        output.say(f"/{group.name}: {BASELINE_DEFINITIONS.get(str(group.baseline), 'a baseline')}")
        _show_group(group, output, known_rule=rules.get(group.arm))
    _show_definitions(description, output)
    if description.comparison is not None:
        _show_comparison(description.comparison, output)
        if not output.as_json:
            from rankkit.cli.comparison_table import show_comparison

            show_comparison(
                description.path, max((group.dimensions["seed"] for group in description.groups), default=0), output
            )
    for arm in description.functional:
        output.say(f"/functional/{arm}: loss when attention is cut to its leading singular triplets")


def _show_group(group: GroupDescription, output: Output, *, known_rule: object = None) -> None:
    """How its matrices were measured, what that is worth, and what is missing; of the rule only what is not known yet."""
    from rankkit.store.schema import TRAINED_ENOUGH

    used = ", ".join(f"{count:,} by {method}" for method, count in group.methods.items())
    states = ", ".join(f"{count:,} {status}" for status, count in group.statuses.items())
    output.say(
        f"  {counted(group.matrices, 'matrix')} ({used}; {states}); of the singular values {group.resolved_fraction:.1%} "
        f"lie above the arithmetic floor, {group.resolved_model_fraction:.1%} above the model floor"
    )
    if group.attributes.get(TRAINED_ENOUGH) == 0 and group.baseline is None:
        output.say("  not trained enough: its final loss was not below that of the model that counts")
    if not group.rows_sum_to_one:
        output.say("  rows need not sum to 1: these are not attention")
    if (rule := group.attributes.get("method_rule")) != known_rule:
        output.say(f"  method: {visible(rule)}")
    for name, reason in group.unavailable.items():
        output.say(f"  no {name}: {reason}")


def _show_definitions(description: FileDescription, output: Output) -> None:
    """Every measure of any group once, with what stands beside it."""
    groups = (*description.groups, *description.baselines)
    measures = {name: measure for group in reversed(groups) for name, measure in group.measures.items()}
    outputs = {name: measure for group in reversed(groups) for name, measure in group.layer_measures.items()}
    for title, found in (("measures", measures), ("of layer outputs", outputs)):
        if found:
            output.say(f"{title}:")
        for name, measure in found.items():
            beside = _beside(name, groups) if title == "measures" else ""
            source = f" [{measure.source}]" if measure.source else ""
            output.say(f"  {name}: {visible(measure.definition + source)}{beside}")


def _beside(name: str, groups: Sequence[GroupDescription]) -> str:
    """Which companions of a measure are in the file."""
    found = [f"{name}_error"] if any(name in group.errors for group in groups) else []
    found += [f"{name}_lower", f"{name}_upper"] if any(name in group.estimated for group in groups) else []
    return f"; beside it {', '.join(found)}" if found else ""


def _show_comparison(comparison: ComparisonDescription, output: Output) -> None:
    facts = comparison.attributes  # a file of ours has them all; another's may not
    arms = [visible(facts[role]) for role in ("causal_arm", "prefix_arm") if role in facts]
    between = f" of {' and '.join(arms)}" if arms else ""
    interval = f"; {visible(facts['interval'])}" if "interval" in facts else ""
    output.say(f"/comparison: gap, mask_effect, learned_effect, interaction{between}{interval}")
    if comparison.steps:
        output.say(f"/comparison/by_step: the same at steps {', '.join(f'{step:,}' for step in comparison.steps)}")


def _file_as_dict(description: FileDescription) -> dict[str, Any]:
    groups = (*description.groups, *description.baselines)
    comparison = description.comparison
    return {
        "file": str(description.path),
        "groups": [group.name for group in description.groups],
        "baselines": [group.name for group in description.baselines],
        "functional": [f"functional/{arm}" for arm in description.functional],
        "comparison": None
        if comparison is None
        else {
            "measures": list(comparison.measures),
            "regions": list(comparison.regions),
            "layers": list(comparison.layers),
            "steps": list(comparison.steps),
        },
        "measured": {group.name: _group_as_dict(group) for group in groups},
    }


def _group_as_dict(group: GroupDescription) -> dict[str, Any]:
    return {
        "matrices": group.matrices,
        "methods": dict(group.methods),
        "method_rule": group.attributes.get("method_rule"),
        "statuses": dict(group.statuses),
        "measures": list(group.measures),
        "unavailable": dict(group.unavailable),
    }
