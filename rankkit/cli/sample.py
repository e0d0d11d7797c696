"""`rankkit sample`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from rankkit.cli.console import Output, common_options, device_option, examples, guarded

__all__ = ["command"]


@click.command(
    "sample",
    epilog=examples(
        "rankkit sample runs/tiny/gpt --prompt prompt.txt",
        "rankkit sample runs/tiny/unilm/seed-1 --prompt prompt.txt --temperature 0.8 --seed 3",
        "echo 'def main(' | rankkit sample runs/tiny/unilm --prompt -",
    ),
)
@click.argument("arm", metavar="RUN/ARM[/seed-N]")
@click.option(
    "--prompt", type=click.File("rb"), required=True, help="File to continue; - for stdin. It is UniLM's prefix."
)
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens to write.  [default: to the model's length]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
@device_option
@common_options
@guarded
def command(
    output: Output,
    arm: str,
    prompt: BinaryIO,
    max_tokens: int | None,
    temperature: float,
    seed: int,
    device: str,
) -> None:
    """What a trained arm writes after a prompt.

    Without seed-N the run's first seed speaks.
    """
    from rankkit.data import load_tokenizer
    from rankkit.errors import DataError
    from rankkit.models.generation import generate
    from rankkit.studies.run import load_model, open_run
    from rankkit.training.environment import choose_device

    folder, name, train_seed = _split(Path(arm))
    run = open_run(folder)
    chosen = run.config.seeds[0] if train_seed is None else train_seed
    model = load_model(folder, arm=name, seed=chosen).to(choose_device(device))
    tokenizer = load_tokenizer(run.directory.tokenizer)
    try:
        text = prompt.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt must be UTF-8, got byte {error.start} that is not. Convert the file.") from error
    tokens = [int(token) for token in tokenizer.encode(text)]
    room = model.config.sequence_length - len(tokens)
    pieces = list(
        generate(
            model, tokens, max_tokens=max_tokens or max(room, 1), temperature=temperature, seed=seed,
            vocab_size=run.tokens().vocab_size,
        )
    )  # fmt: skip
    written = tokenizer.decode(pieces)
    output.say(text + written)
    output.result({"arm": name, "seed": chosen, "prompt": text, "text": written, "tokens": pieces})


def _split(path: Path) -> tuple[Path, str, int | None]:
    """RUN, ARM and the seed of RUN/ARM[/seed-N]."""
    seed = path.name.removeprefix("seed-")
    if path.name.startswith("seed-") and seed.isdigit():
        return path.parent.parent, path.parent.name, int(seed)
    return path.parent, path.name, None
