"""`rankkit train-pair`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import (
    INTERRUPTED,
    Output,
    command_line,
    common_options,
    counted,
    device_option,
    duration,
    examples,
    guarded,
    integers,
    names,
    shard_option,
)

if TYPE_CHECKING:
    from rankkit.cli.training_view import TrainingView
    from rankkit.studies.initial_weights import Source
    from rankkit.studies.monitoring.tensorboard import TensorBoardLog
    from rankkit.studies.plan import TrainingPlan
    from rankkit.studies.run import Run
    from rankkit.training.config import InitialWeights, RunConfig
    from rankkit.training.unit import Message

__all__ = ["command", "new_run", "train_and_report"]

_PRESETS = ("tiny", "small", "base")  # rankkit.training.presets.PRESETS, whose import would make --help slow; tested


@click.command(
    "train-pair",
    epilog=examples(
        "rankkit train-pair                              the tiny pair on this Python's standard library",
        "rankkit train-pair books/ --preset small --out runs/books",
        "rankkit train-pair notes.txt --steps 500 --set model.position=none",
        "rankkit train-pair --arms gpt,unilm,gpt-full --seeds 0-4 --plan",
        "rankkit train-pair --arms bert,mixed-heads,mixed-layers --set train.masked_fraction=0.4",
        "rankkit train-pair --arms gpt,unilm --init-from runs/tiny/gpt --out runs/switched",
        "rankkit train-pair books/ --out runs/books --log-dir logs     then: tensorboard --logdir logs",
        "rankkit train-pair --resume runs/books",
    ),
)
@click.argument("text", nargs=-1)
@click.option("--preset", type=click.Choice(_PRESETS), help="Size; see `rankkit presets`.  [default: tiny]")
@click.option(
    "--config", "config_file", type=click.Path(dir_okay=False), help="TOML file with [model], [train], [data]."
)
@click.option("--steps", type=int, help="Optimizer steps of every arm and seed.")
@click.option("--tokens", type=int, help="Tokens read by every arm and seed, instead of --steps.")
@click.option("--arms", default=None, help="Arms to train; an unknown name has them all listed.  [default: gpt,unilm]")
@click.option("--seeds", default=None, help="One seed gives no verdict.  [default: 0,1,2]")
@click.option(
    "--init-from", metavar="RUN/ARM[@STEP]", help="Go on from a trained arm, seed by seed, under a fresh optimizer."
)
@click.option("--prefix-fraction", type=float, help="One prefix length for all; otherwise one is drawn per sequence.")
@click.option("--tokenizer", help="bytes, bpe:VOCAB, or a tokenizer.json.")
@click.option("--text-key", help="Key or column that holds the text in .jsonl and .parquet.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting: train.learning_rate=3e-4")
@click.option("--compile", "compiled", is_flag=True, help="Let torch.compile fuse what surrounds attention.")
@click.option("--workers", type=click.IntRange(1), help="Units trained side by side.  [default: one per core]")
@click.option("--shard", default="0/1", show_default=True, help="Train part i of n; later --resume completes the run.")
@click.option("--resume", type=click.Path(file_okay=False), help="Continue this run to the same bits.")
@click.option("--log-dir", type=click.Path(file_okay=False), help="Also log to this folder for TensorBoard.")
@click.option("--out", type=click.Path(), help="Run directory to make.  [default: runs/PRESET]")
@click.option("--force", is_flag=True, help="Replace an existing run.")
@click.option(
    "--plan", is_flag=True, help="Print time, memory, disk and the smallest resolvable difference; do nothing."
)
@device_option
@common_options
@guarded
def command(
    output: Output,
    resume: str | None,
    device: str,
    workers: int | None,
    shard: str,
    log_dir: str | None,
    **options: Any,
) -> None:
    """Train models that differ only in the attention mask, prove the match, compare the losses.

    TEXT is files, folders or globs of .txt, .jsonl, .parquet, or token ids (.npy, .bin); without it the standard library
    of this Python is the text. Settings: an option beats --config, which beats the preset. Ctrl-C saves; --resume
    continues.
    """
    from rankkit.studies.run import open_run
    from rankkit.training.environment import choose_device

    place = choose_device(device)
    part, log = shard_option(shard), _log(log_dir)
    if resume is not None:
        _refuse_with_resume(options)
        output.result(train_and_report(open_run(Path(resume)), output, place, workers, part, log=log))
        return
    config, source = _configuration(**options), _source(options["init_from"])
    if source is not None:
        source.check(config)
    if options["plan"]:
        _show_plan(config, output, place, workers)
        return
    out = Path(options["out"] or f"runs/{options['preset'] or 'tiny'}")
    run = new_run(config, out, place, workers, options["force"], output, source=source)
    output.result(train_and_report(run, output, place, workers, part, log=log))


def _log(folder: str | None) -> TensorBoardLog | None:
    """TensorBoard's, where it is asked for; refused before anything is made where it cannot be had."""
    from rankkit.studies.monitoring.tensorboard import TensorBoardLog

    return TensorBoardLog(folder) if folder is not None else None


def _source(name: str | None) -> Source | None:
    """The trained arm to go on from."""
    from rankkit.studies.initial_weights import open_source

    return open_source(name) if name is not None else None


def _refuse_with_resume(options: dict[str, Any]) -> None:
    given = sorted(name for name, value in options.items() if value)
    if given:
        raise click.UsageError(
            f"--resume must stand without {given[0]}: a run continues with the configuration it was made with."
        )


def _configuration(
    text: tuple[str, ...],
    preset: str | None,
    config_file: str | None,
    steps: int | None,
    tokens: int | None,
    arms: str | None,
    seeds: str | None,
    prefix_fraction: float | None,
    tokenizer: str | None,
    text_key: str | None,
    assignments: tuple[str, ...],
    compiled: bool,
    **_: Any,
) -> RunConfig:
    """Defaults, preset, file, --set and options, each over the one before."""
    from rankkit.studies.configure import run_config

    if steps is not None and tokens is not None:
        raise click.UsageError("--steps and --tokens must not stand together: one follows from the other.")
    chosen: dict[str, dict[str, Any]] = {"train": {}, "data": {}}
    for section, key, value in (
        ("train", "steps", steps),
        ("train", "prefix_fraction", prefix_fraction),
        ("train", "compile", compiled or None),
        ("data", "text", list(text) or None),
        ("data", "tokenizer", tokenizer),
        ("data", "text_key", text_key),
    ):
        if value is not None:
            chosen[section][key] = value
    return run_config(
        preset=preset,
        file=Path(config_file) if config_file else None,
        assignments=assignments,
        options=chosen,
        arms=names(arms) if arms else None,
        seeds=integers(seeds, "--seeds"),
        tokens=tokens,
    )


def new_run(
    config: RunConfig,
    out: Path,
    device: Any,
    workers: int | None,
    force: bool,
    output: Output,
    *,
    source: Source | None = None,
) -> Run:
    """Make a run directory and say what text is in it and what its arms begin with."""
    from rankkit.studies.run import create_run
    from rankkit.studies.train_pair import default_workers

    default, threads = default_workers(device, len(config.units))
    if workers is not None and device.type == "cpu":
        threads = max(1, default * threads // workers)
    output.note(f"preparing text in {out}")
    run = create_run(config, out, device=device, threads=threads, command=command_line(), force=force, source=source)
    tokens = run.tokens()
    output.note(
        f"text: {tokens.description['corpus']['description'] if 'corpus' in tokens.description else 'token ids'}; "
        f"{len(tokens.train):,} training and {len(tokens.validation):,} validation tokens"
    )
    asked, n = run.config.base.train.evaluation_sequences, run.config.base.model.sequence_length
    fitting = len(tokens.validation) // n
    if fitting < asked:
        output.note(f"evaluation: {counted(asked, 'sequence')} asked for, room in the held-out tokens for {fitting}")
    if run.config.initial is not None:
        output.note(initial_note(run.config.initial))
    return run


def initial_note(initial: InitialWeights) -> str:
    """What a run goes on from, and what it does not take over."""
    text = "" if initial.same_text else ", on other text, which this run's held-out text may have been among"
    return (
        f"every arm begins with the weights of {initial.source}, trained on {counted(initial.batches, 'batch')}{text}; its "
        "optimizer starts fresh, and the table counts tokens from here"
    )


def train_and_report(
    run: Run,
    output: Output,
    device: Any,
    workers: int | None,
    shard: tuple[int, int],
    *,
    log: TensorBoardLog | None = None,
    next_step: bool = True,
) -> dict[str, Any]:
    """Train what is unfinished, then show the table and draw the losses; returns the same as plain values."""
    from rankkit.cli.loss_table import losses_as_dict, show_losses
    from rankkit.cli.training_view import TrainingView
    from rankkit.report.run_figures import draw_losses
    from rankkit.studies.drive import interruption
    from rankkit.studies.losses import compare_losses
    from rankkit.studies.train_pair import default_workers, shard_of, train_units

    view = TrainingView(run, output, shard_of(run.config.units, shard))
    default, _ = default_workers(device, len(run.config.units))
    path = run.directory.path
    resume = f"rankkit train-pair --resume {shlex.quote(str(path))}"
    with interruption() as request, view.showing(), log or contextlib.nullcontext():
        complete = train_units(
            run,
            device=device,
            workers=workers or default,
            shard=shard,
            on_message=_listeners(run, view, log),
            stop=request,
        )
    if view.interrupted or (request.requested and not complete):
        click.echo(f"Interrupted; every finished step is saved in {path}. Continue with: {resume}", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if not complete:
        left = ", ".join(f"{arm} seed {seed}" for arm, seed in run.unfinished)
        output.say(
            f"Shard {shard[0]}/{shard[1]} ({counted(len(shard_of(run.config.units, shard)), 'unit')}) is done; left: {left}."
        )
        output.say(f"Bring the other shards' folders into {path}, then: {resume}")
        return {"run": str(path), "complete": False, "unfinished": [list(unit) for unit in run.unfinished]}
    comparison = compare_losses(run)
    show_losses(comparison, output)
    figures = draw_losses(run, comparison)
    output.say(f"\nproof of the match: {run.directory.certificate}")
    for line in _different_machines(run):
        output.say(line)
    output.say(f"figure: {figures[0]}")
    if next_step:
        output.say(f"next: rankkit spectrum {shlex.quote(str(path))}")
    return {"run": str(path), "complete": True, **losses_as_dict(comparison), "figures": [str(f) for f in figures]}


def _listeners(run: Run, view: TrainingView, log: TensorBoardLog | None) -> Callable[[Message], None]:
    """The view, and after it the log where there is one."""
    from rankkit.studies.training_log import TrainingLog

    if log is None:
        return view
    told = TrainingLog(run, log)

    def receive(message: Message) -> None:
        view(message)
        told(message)

    return receive


def _different_machines(run: Run) -> list[str]:
    """What the certificate knows of arms that were trained on different machines or versions."""
    import json

    certificate = json.loads(run.directory.certificate.read_text(encoding="utf-8"))
    return [
        f"note: {' and '.join(pair['arms'])}, seed {pair['seed']}, were trained with different "
        f"{', '.join(pair['environment'])}, so their rounding differs."
        for pair in certificate["pairs"]
        if pair["environment"]
    ]


def _show_plan(config: RunConfig, output: Output, device: Any, workers: int | None) -> None:
    from rankkit.studies.plan import SEED_DEVIATION, plan_training

    plan = plan_training(config, device=device, workers=workers)
    resolvable = (
        f"{plan.smallest_difference:.3f} nats per token (80% power, if differences vary by {SEED_DEVIATION} between seeds)"
        if plan.smallest_difference == plan.smallest_difference
        else "none: one seed gives no verdict"
    )
    product = f"{counted(len(config.arms), 'arm')} x {counted(len(config.seeds), 'seed')}"
    lines = {
        "units": f"{plan.units} ({product}), {plan.workers} side by side",
        "each": f"{counted(plan.parameters, 'parameter')}, {counted(plan.steps, 'step')}, {counted(plan.tokens, 'token')}",
        "time": f"about {duration(plan.seconds)} on {device} (from one timed step)",
        "memory": f"about {plan.memory_bytes / 2**30:.1f} GiB",
        "disk": f"about {plan.disk_bytes / 2**30:.2f} GiB",
        "smallest resolvable difference": resolvable,
        "with other numbers of seeds": ", ".join(f"{n}: {size:.3f}" for n, size in plan.resolvable.items()),
    }
    for name, line in lines.items():
        output.say(f"{name}: {line}")
    _show_arms(plan, output)
    output.result(plan.as_dict())


def _show_arms(plan: TrainingPlan, output: Output) -> None:
    """What each arm is asked, and which losses will not be subtracted."""
    for name, arm in plan.arms.items():
        output.say(
            f"{name}: mask {arm.mask}, objective {arm.objective}, {arm.loss_tokens / plan.tokens:.0%} of the tokens "
            f"predicted; its {arm.task} loss must come below a {arm.reference} model's"
        )
    if plan.apart:
        output.say(
            "suffix and masked losses are means over different targets and will not be subtracted from each other"
        )
    if any(arm.task != "suffix" for arm in plan.arms.values()):
        output.say("the variation between seeds was measured on suffix losses; other losses may vary more or less")
