"""`rankkit presets`."""

from __future__ import annotations

import click

from rankkit.cli.console import Output, common_options, examples, guarded, new_table

__all__ = ["command"]


@click.command("presets", epilog=examples("rankkit presets", "rankkit presets --json"))
@common_options
@guarded
def command(output: Output) -> None:
    """Sizes, with parameters, tokens, memory and expected time on this machine.

    Times are measured: each preset's model takes a training step on one sequence here and now, and the rest is
    multiplication.
    """
    from rankkit.studies.plan import plan_training
    from rankkit.training.config import RunConfig
    from rankkit.training.environment import choose_device
    from rankkit.training.presets import PRESETS

    headings = ("preset", "layers", "d_model", "heads x size", "n", "parameters", "tokens per arm", "memory", "time")
    table = new_table("presets, for the pair gpt and unilm under one seed", headings)
    found = {}
    for name, make in PRESETS.items():
        config = RunConfig(seeds=(0,), base=make())
        plan = plan_training(config, device=choose_device("auto"))
        model = config.base.model
        found[name] = plan.as_dict()
        table.add_row(
            name, str(model.num_layers), str(model.d_model), f"{model.num_heads} x {model.head_dim}",
            str(model.sequence_length), f"{model.parameters / 1e6:.1f} M", f"{plan.tokens / 1e6:.1f} M",
            f"{plan.memory_bytes / 2**30:.1f} GiB", _duration(plan.seconds),
        )  # fmt: skip
    output.table(table)
    output.result(found)


def _duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, name = next((unit for unit in units if seconds >= 2 * unit[0]), units[-1])
    count = seconds / size
    return f"{count:,.{0 if count >= 10 else 1}f} {name}"
