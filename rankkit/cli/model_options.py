"""Options about Hugging Face models, which `spectrum` and `compare` share, and the source that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from rankkit.cli.console import names

if TYPE_CHECKING:
    from rankkit.studies.pretrained.source import ModelSource

__all__ = ["PREFIX", "check_no_model_options", "is_model", "model_options", "model_source", "take_model_options"]

PREFIX: Final = "hf:"
"""Before the folder or hub name of a model."""

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option("--text", multiple=True, metavar="FILE", help="What it reads: a file, folder or glob; may be repeated."),
    click.option("--text-key", help="Key or column of the text in .jsonl and tables.  [default: text]"),
    click.option("--tokens", type=click.Path(dir_okay=False), help="Token ids (.npy) instead of --text."),
    click.option("--pixels", type=click.Path(dir_okay=False), help="Processed images (.npy) instead of --text."),
    click.option("--bos", type=click.Choice(("auto", "yes", "no")),
                 help="Special tokens around every sequence.  [default: auto, as the tokenizer does]"),
    click.option("--packing", type=click.Choice(("packed", "documents")),
                 help="Windows across documents, or one document a sequence, with padding.  [default: packed]"),
    click.option("--truncation", type=click.Choice(("right", "left", "drop")),
                 help="Of long documents: keep the beginning or the end, or leave them out.  [default: right]"),
    click.option("--padding-side", type=click.Choice(("auto", "left", "right")),
                 help="Of short documents.  [default: auto, the tokenizer's]"),
    click.option("--target-length", type=click.IntRange(2),
                 help="Tokens of the decoder beside an encoder.  [default: as many as the encoder's]"),
    click.option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")),
                 help="Of the weights.  [default: float32]"),
    click.option("--batch", type=click.IntRange(1, 8), help="Sequences in one forward pass.  [default: 8]"),
    click.option("--swap-mask", help="Also put this mask on Q and K: causal, bidirectional or prefix:P.  [default: none]"),
    click.option("--revision", help="Of the hub, or sub-folders, such as step0,step1000: they become steps."),
    click.option("--unused", help="Prefixes of weights in the checkpoint that the model's class may lack."),
    click.option("--allow-pickle", is_flag=True, help="Load pickled weights where there are no safetensors."),
    click.option("--allow-disagreement", is_flag=True, help="Measure where captured attention is not the model's own."),
)  # fmt: skip
_NAMES: Final = (
    "text", "text_key", "tokens", "pixels", "bos", "packing", "truncation", "padding_side", "target_length", "dtype",
    "batch", "swap_mask", "revision", "unused", "allow_pickle", "allow_disagreement",
)  # fmt: skip


def model_options(command: F) -> F:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_model(target: str) -> bool:
    """Whether a target names a Hugging Face model."""
    return target.startswith(PREFIX)


def take_model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options about models out of a command's."""
    return {name: options.pop(name) for name in _NAMES}


def check_no_model_options(options: Mapping[str, Any]) -> None:
    """Refuse options about models for something else.

    Raises:
        click.UsageError: one was given.
    """
    for name in _NAMES:
        if options[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} must stand with {PREFIX}PATH: only a model needs it.")


def model_source(target: str, device: Any, options: Mapping[str, Any]) -> ModelSource:
    """The model that a target and its options describe.

    Args:
        target: hf:PATH.
        device: where it runs.
        options: from `take_model_options`.

    Raises:
        RankkitError: it cannot be found or loaded, or there is nothing for it to read.
    """
    from rankkit.studies.pretrained.opening import Reading, open_model
    from rankkit.studies.pretrained.plan import SwapMask
    from rankkit.studies.pretrained.source import ModelSettings
    from rankkit.studies.pretrained.text import TokenPolicy

    given = {name: value for name, value in options.items() if value}
    chosen = ("bos", "packing", "truncation", "padding_side", "text_key")
    reading = Reading(
        text=tuple(options["text"]),
        tokens=Path(given["tokens"]) if "tokens" in given else None,
        pixels=Path(given["pixels"]) if "pixels" in given else None,
        policy=TokenPolicy(**{name: given[name] for name in chosen if name in given}),
        target_length=options["target_length"],
    )
    swap = given.get("swap_mask")
    settings = ModelSettings(
        swap=None if swap is None else SwapMask.parsed(swap),
        allow_disagreement=options["allow_disagreement"],
        **({"batch": given["batch"]} if "batch" in given else {}),
    )
    return open_model(
        target.removeprefix(PREFIX),
        reading,
        device,
        revisions=names(given.get("revision", "")),
        dtype=given.get("dtype", "float32"),
        settings=settings,
        allow_pickle=options["allow_pickle"],
        unused=names(given.get("unused", "")),
    )
