"""`rankkit spectrum`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import Output, common_options, device_option, examples, guarded, integers, names, shard_option
from rankkit.cli.measuring import check_some_measured, measure_and_report, show_plan
from rankkit.cli.model_options import (
    PREFIX,
    check_no_model_options,
    is_model,
    model_options,
    model_source,
    take_model_options,
)

if TYPE_CHECKING:
    from rankkit.studies.functional import Scope
    from rankkit.studies.measuring.config import MeasureConfig
    from rankkit.studies.measuring.source import Source

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
        "rankkit spectrum hf:./gpt2 --text documents.jsonl --samples 8",
        "rankkit spectrum hf:bert-base-uncased --text documents.jsonl --packing documents --swap-mask causal",
        "rankkit spectrum hf:EleutherAI/pythia-70m --text documents.jsonl --revision step1000,step10000,step100000",
        "rankkit spectrum runs/tiny --plan",
    ),
)
@click.argument("target", metavar="RUN|FILE|ARRAYS|hf:PATH")
@click.option("--samples", type=click.IntRange(1), help="Held-out sequences.  [default: 32; 1 where matrix-free]")
@click.option(
    "--shard",
    default="0/1",
    show_default=True,
    help="Part i of n of the samples, in whole batches of 8; `rankkit merge` joins them.",
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
              help="HDF5 file to make.  [default: RUN/spectrum.h5, NAME-measured.h5 beside FILE or ARRAYS, or "
                   "NAME-spectrum.h5 here]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file, or what an interrupted measurement kept.")
@click.option("--resume", is_flag=True, help="Continue an interrupted measurement: the same command, with this.")
@click.option("--plan", is_flag=True, help="Print the number of matrices, bytes kept and expected time; do nothing.")
@model_options
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

    hf:PATH is a Hugging Face model, in a folder or by its name on the hub, reading --text with its own tokenizer. It runs as
    it would have run; weights that are missing, left over or pickled are refused, and its first batch is checked against its
    own eager attention. A mask is swapped in where --swap-mask says so.
    """
    from rankkit.training.environment import choose_device

    place, about_models = choose_device(device), take_model_options(options)
    asked = _configuration(**options)
    with _opened(target, place, mask, scale, about_models) as source:
        config = _of_file(asked, source, options)
        if plan:
            show_plan(source, config, output)
            return
        made = Path(out) if out else _default_output(source, Path(target))
        shown = measure_and_report(source, config, made, output, place, force=force, resume=resume)
        output.result(shown)
        check_some_measured(shown)


@contextlib.contextmanager
def _opened(
    target: str, device: Any, mask: str | None, scale: float | None, about_models: dict[str, Any]
) -> Iterator[Source]:
    """The model, run, kept factors or arrays of that name."""
    from rankkit.files import RunDirectory
    from rankkit.studies.measuring.array_source import ArrayMask, array_source
    from rankkit.studies.measuring.kept_source import kept_source
    from rankkit.studies.measuring.run_source import RunSource
    from rankkit.studies.run import open_run

    if is_model(target):
        if mask is not None or scale is not None:
            raise click.UsageError("--mask and --scale must stand with ARRAYS: a model has its own.")
        yield model_source(target, device, about_models)
        return
    check_no_model_options(about_models)
    path = Path(target)
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
    elif (path / "config.json").is_file() and not RunDirectory(path).configuration.is_file():
        raise click.UsageError(f"{path} is a Hugging Face model: write {PREFIX}{path}.")
    else:
        yield RunSource(open_run(path), device)


def _of_file(config: MeasureConfig, source: Source, options: dict[str, Any]) -> MeasureConfig:
    """The same; of a file what it holds, where no option asked for something else."""
    from rankkit.studies.measuring.kept_source import KeptSource

    if not isinstance(source, KeptSource):
        return config
    return source.as_kept(config, regions=options["regions"] is None, measures=options["measures"] is None)


def _default_output(source: Source, path: Path) -> Path:
    from rankkit.studies.measuring.run_source import RunSource
    from rankkit.studies.pretrained.source import ModelSource

    if isinstance(source, RunSource):
        return source.run.directory.spectrum
    if isinstance(source, ModelSource):
        return Path(f"{source.models.name}-spectrum.h5")
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
    from rankkit.studies.measuring.config import MeasureConfig

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
