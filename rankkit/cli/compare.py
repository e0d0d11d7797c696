"""`rankkit compare`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rankkit.cli.console import (
    Output,
    command_line,
    common_options,
    counted,
    device_option,
    examples,
    guarded,
    integers,
    names,
)
from rankkit.cli.model_options import check_no_model_options, is_model, model_options, model_source, take_model_options

if TYPE_CHECKING:
    from rankkit.studies.compared_side import Side
    from rankkit.studies.measuring.config import MeasureConfig
    from rankkit.studies.measuring.plan import Plan
    from rankkit.studies.pretrained.source import ModelSource

__all__ = ["command"]

OTHER: Final = "other"
"""Of --swap-mask: the mask of the other side."""


@click.command(
    "compare",
    epilog=examples(
        "rankkit compare hf:bert-base-uncased hf:./causal-bert --text documents.jsonl --swap-mask other",
        "rankkit compare gpt2-spectrum.h5 distilgpt2-spectrum.h5",
        "rankkit compare spectrum.h5::gpt2 spectrum.h5::baselines/shuffled/gpt2",
        "rankkit compare runs/a::gpt runs/b::gpt --measures stable_rank",
        "rankkit compare hf:./model gpt2-spectrum.h5 --text documents.jsonl --samples 8",
    ),
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--step", type=int, help="Of the checkpoint, of both.  [default: each one's last]")
@click.option("--measures", help="Names to show, or `all`.  [default: effective_rank, or the first there is]")
@click.option("--samples", type=click.IntRange(1), help="hf: sequences.  [default: 32; 1 where matrix-free]")
@click.option("--sequence-length", type=click.IntRange(1), help="hf: tokens.  [default: 512, or what the model has]")
@click.option("--layers", help="hf: such as 0,2-3.  [default: all]")
@click.option("--heads", help="hf: such as 0-3.  [default: all]")
@click.option("--memory", type=click.IntRange(1), default=512, show_default=True, help="hf: MiB for dense matrices.")
@click.option("--workers", type=click.IntRange(1), help="hf: threads for the singular values.  [default: one per core]")
@click.option("--out", type=click.Path(file_okay=False), help="hf: folder for NAME-spectrum.h5.  [default: here]")
@click.option("--force", is_flag=True, help="hf: replace existing files.")
@model_options
@device_option
@common_options
@guarded
def command(
    output: Output,
    first: str,
    second: str,
    step: int | None,
    measures: str | None,
    device: str,
    out: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Hold two models against each other, on the same tokens: means by layer, their gap and its interval.

    A and B are hf:PATH (measured now, with the same --text), a spectrum file, FILE::GROUP where it holds several groups, or
    RUN::ARM. What did not read the same tokens is refused. Without paired seeds there is no verdict: two models that were
    trained alike differ too. With --swap-mask other, a causal and a bidirectional model are each measured under the other's
    mask too, and get the table of a trained pair: gap = mask effect + learned effect.
    """
    from rankkit.cli.model_table import comparison_as_dict, show_compared
    from rankkit.files import check_output_file
    from rankkit.studies.compare import compare
    from rankkit.training.environment import choose_device

    about_models = take_model_options(options)
    if not (is_model(first) or is_model(second)):
        check_no_model_options(about_models)
    config = _configuration(options)
    sides = _opened((first, second), config, about_models, choose_device(device))
    paths = [_path(side, Path(out or "."), number if first == second else None) for number, side in enumerate(sides)]
    for path in (path for side, path in zip(sides, paths, strict=True) if side.source is not None):
        check_output_file(path, force=force)  # before the first of them is measured
    _check_models([side for side in sides if side.source is not None], config)
    read = [_read(side, path, config, output, force=force, step=step) for side, path in zip(sides, paths, strict=True)]
    found = compare(read[0], read[1])
    known = list(found.rows)
    chosen = known if measures == "all" else list(names(measures)) if measures else _headline(known)
    if unknown := [name for name in chosen if name not in found.rows]:
        raise click.BadParameter(f"must be among {', '.join(known)}, got {unknown[0]}", param_hint="--measures")
    for measure in chosen:
        show_compared(found, measure, output)
    output.result(comparison_as_dict(found))


def _headline(known: list[str]) -> list[str]:
    return ["effective_rank"] if "effective_rank" in known else known[:1]


def _configuration(options: dict[str, Any]) -> MeasureConfig:
    from rankkit.studies.measuring.config import MeasureConfig

    return MeasureConfig(
        samples=options["samples"],
        sequence_length=options["sequence_length"],
        layers=integers(options["layers"], "--layers"),
        heads=integers(options["heads"], "--heads"),
        memory_budget=options["memory"] << 20,
        workers=options["workers"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """One of the two."""

    name: str
    """As given, without its group."""
    group: str
    """As given behind ::, or empty."""
    source: ModelSource | None
    """What is to be measured; None for a file."""
    device: Any
    """Where."""


def _opened(
    targets: tuple[str, str], config: MeasureConfig, about_models: dict[str, Any], device: Any
) -> tuple[_Target, _Target]:
    """Both targets; with --swap-mask other each model is to be measured under the mask of the other target."""
    from rankkit.studies.compared_side import SEPARATOR

    each_other = about_models["swap_mask"] == OTHER
    options = about_models | ({"swap_mask": None} if each_other else {})
    found = []
    for target in targets:
        name, _, group = target.partition(SEPARATOR)
        source = model_source(name, device, options) if is_model(target) else None
        found.append(_Target(name=name, group=group, source=source, device=device))
    if each_other:
        from rankkit.studies.pretrained.plan import SwapMask

        masks = [_mask(target, config) for target in found]
        found = [
            target if target.source is None else replace(target, source=target.source.swapping(SwapMask.parsed(mask)))
            for target, mask in zip(found, reversed(masks), strict=True)
        ]
    return found[0], found[1]


def _check_models(targets: list[_Target], config: MeasureConfig) -> None:
    """Refuse what could not be compared, before anything is measured: groups that are not there, other tokens."""
    import numpy as np

    chosen = [_part(target, config) for target in targets]
    if len(chosen) == 2 and not np.array_equal(chosen[0].sequences, chosen[1].sequences):
        raise click.UsageError(
            "A and B must read the same tokens, got others. Models with different tokenizers cannot be compared by tokens."
        )


def _part(target: _Target, config: MeasureConfig) -> Plan:
    """The plan of the one group of a model that is to be compared."""
    assert target.source is not None, "a model"
    name, plan = target.source.models.name, target.source.plan(config)
    arms = {arm.name: part for arm, part in zip(plan.arms, plan.parts, strict=True)}
    wanted = f"{name}/{target.group}" if target.group else next(iter(arms))
    if wanted not in arms or (len(arms) > 1 and not target.group):
        known = [arm.removeprefix(f"{name}/") for arm in arms] if len(arms) > 1 else ["one alone"]
        raise click.UsageError(
            f"{target.name} must have one kind of attention, or one be named, got {', '.join(known)}. Write "
            f"{target.name}{f'::{known[0]}' if len(arms) > 1 else ''}."
        )
    return arms[wanted]


def _mask(target: _Target, config: MeasureConfig) -> str:
    """Name of a target's own mask."""
    if target.source is None:
        from rankkit.studies.compared_side import SEPARATOR, read_side

        return read_side(f"{target.name}{SEPARATOR}{target.group}" if target.group else target.name).mask
    arms = {arm.name: arm.facts.mask for arm in target.source.plan(config).arms}
    wanted = "/".join(filter(None, (target.source.models.name, target.group)))
    return arms.get(wanted, next(iter(arms.values())))


def _path(target: _Target, folder: Path, number: int | None) -> Path:
    """The file of a target; two models of one name get different ones."""
    if target.source is None:
        return Path(target.name)
    label = "" if number is None else f"-{'ab'[number]}"
    return folder / f"{target.source.models.name}{label}-spectrum.h5"


def _read(target: _Target, path: Path, config: MeasureConfig, output: Output, *, force: bool, step: int | None) -> Side:
    """One side, measured before where it is a model."""
    from rankkit.studies.compared_side import SEPARATOR, read_side

    group = target.group
    if target.source is not None:
        _measure(target.source, path, config, output, target.device, force=force)
        group = group and f"{target.source.models.name}/{group}"
    return read_side(f"{path}{SEPARATOR}{group}" if group else str(path), step=step)


def _measure(
    source: ModelSource, path: Path, config: MeasureConfig, output: Output, device: Any, *, force: bool
) -> None:
    from rankkit.cli.console import INTERRUPTED
    from rankkit.studies.drive import interruption
    from rankkit.studies.measuring.measure import MeasurementInterruptedError, measure_attention

    plan = source.plan(config)
    output.note(f"{source.models.name}: {counted(plan.matrices, 'matrix')}, into {path}")
    try:
        with interruption() as request, output.progress(plan.matrices) as advance:
            measure_attention(
                source,
                config,
                path,
                device=device,
                command=command_line(),
                force=force,
                on_progress=advance,
                stop=request,
            )
    except MeasurementInterruptedError:
        click.echo(f"Interrupted. Measure it with rankkit spectrum, and compare {path}.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
