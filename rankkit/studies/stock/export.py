"""A run's arm as a folder that the transformers library loads, proven equal before the folder appears."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast

import torch
from safetensors.torch import save as serialized
from torch import Tensor

from rankkit.data.evaluation import evaluation_sequences
from rankkit.data.tokenizers import Tokenizer, load_tokenizer
from rankkit.errors import OutputExistsError, RunError
from rankkit.files import atomic_directory, sha256_of_file, write_json, write_text
from rankkit.models.transformer import Transformer
from rankkit.studies.pretrained.files import find_model, transformers
from rankkit.studies.pretrained.loading import load_checkpoint
from rankkit.studies.run import Run, load_model, open_run
from rankkit.studies.stock.model import ARCHITECTURE, stock_config, stock_weights
from rankkit.studies.stock.tokenizer import TOKENIZER_FILES, reads_alike, write_tokenizer
from rankkit.training.checkpoints import read_facts

__all__ = ["ExportedModel", "export_model"]

_FACTS: Final = "rankkit.json"
"""Provenance; a folder with it is ours to replace."""
_WEIGHTS: Final = "model.safetensors"

TOLERANCE: Final = 1e-5
"""Of the largest logit: float32 logits of trained models differ between two ways of computing them by 1e-6."""
ROUNDING: Final = 10
"""Where float32 itself is further from float64 (logits of attention in the hundreds), so many times that distance:
transformers rounds the angles of rotary positions to float32, rankkit only their cosines."""
_COMPARED: Final = 2
"""Held-out sequences whose logits are compared."""
_TEXT: Final = 4096
"""Held-out tokens whose text both tokenizers read."""

_CARD: Final = """---
library_name: transformers
tags:
- rankkit
---
# {title}

One arm of a rankkit run: models that differ in their attention mask alone. Exported as {architecture}, the stock
architecture that it is, with the run's own weights.

| | |
| --- | --- |
{table}

On {compared} held-out tokens the logits of transformers differ from rankkit's by at most {difference} of the largest logit,
both in float32; rankkit's float32 differs from its float64 by {rounding}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
{tokenizer}```

Trained on documents one after another, each ended by its document token, in windows of {length} tokens that begin anywhere:
put no token before a text.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A folder that was written."""

    folder: str
    """Where it is."""
    architecture: str
    """Class of transformers."""
    run: str
    """The run directory, as it was named."""
    arm: str
    """Name of the arm."""
    seed: int
    """Under which it was trained."""
    step: int
    """Of the checkpoint."""
    parameters: int
    """Weights, the tied ones once."""
    checkpoint_sha256: str
    """Of the run's weight file."""
    weights_sha256: str
    """Of model.safetensors."""
    logits_difference: float
    """Largest difference of logits between transformers and rankkit, both in float32, over the largest logit."""
    own_rounding: float
    """The same between rankkit's float32 and its float64."""
    compared_tokens: int
    """Held-out tokens on which logits were compared."""
    tokenizer: str
    """`yes`, or why there is none."""
    command: str
    """That made it."""
    rankkit_version: str
    """Of this library."""
    transformers_version: str
    """Of the library that checked it."""


def export_model(
    path: str | Path,
    out: str | Path,
    *,
    arm: str,
    seed: int | None = None,
    step: int | None = None,
    command: str = "",
    force: bool = False,
) -> ExportedModel:
    """Write a trained arm as a Hugging Face model: config.json, model.safetensors, the tokenizer, and a model card.

    The folder is loaded again before it appears, and its logits on held-out text are compared with the arm's.

    Args:
        path: of the run directory.
        out: the folder to make.
        arm: a causal one with rotary positions.
        seed: under which it was trained; None for the run's first.
        step: of the checkpoint; None for the last.
        command: recorded.
        force: whether a folder that an earlier export made may be replaced.

    Raises:
        ConfigurationError: the stock architecture cannot be this arm, or transformers is not installed.
        RunError: no such run, arm, seed or step, or logits that differ by more than rounding explains.
        OutputExistsError: `out` exists, and is no earlier export or `force` is false.
        StorageError: the file system refused; nothing is left of the folder.
    """
    out = Path(out)
    run = open_run(path)
    seed = run.config.seeds[0] if seed is None else seed
    model = load_model(path, arm=arm, seed=seed, step=step)
    step = run.directory.checkpoint_steps(arm, seed)[-1] if step is None else step
    tokenizer = load_tokenizer(run.directory.tokenizer) if run.directory.tokenizer.is_file() else None
    config = stock_config(model.config, document_token=None if tokenizer is None else tokenizer.document_token)
    _check_out(out, force=force)
    with atomic_directory(out) as folder:
        config.save_pretrained(folder)
        weights = stock_weights(model)
        (folder / _WEIGHTS).write_bytes(serialized(weights, metadata={"format": "pt"}))
        spoken = _write_tokenizer(tokenizer, run, folder)
        difference, rounding, count = _compared(run, model, folder)
        facts = ExportedModel(
            folder=str(out),
            architecture=ARCHITECTURE,
            run=str(path),
            arm=arm,
            seed=seed,
            step=step,
            parameters=sum(tensor.numel() for tensor in weights.values()),
            checkpoint_sha256=read_facts(run.directory.checkpoint(arm, seed, step)).weights_sha256,
            weights_sha256=sha256_of_file(folder / _WEIGHTS),
            logits_difference=difference,
            own_rounding=rounding,
            compared_tokens=count,
            tokenizer=spoken,
            command=command,
            rankkit_version=version("rankkit"),
            transformers_version=str(transformers().__version__),
        )
        write_json(folder / _FACTS, asdict(facts))
        write_text(folder / "README.md", _card(facts, run))
    return facts


def _check_out(out: Path, *, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputExistsError(f"{out} must not exist yet. Add --force to replace it, or choose another --out.")
    if not (out / _FACTS).is_file() or out.resolve() == Path.cwd():
        raise OutputExistsError(
            f"{out} must be an earlier export to be replaced, got something without {_FACTS}, or the folder that you are "
            "in. Choose another --out."
        )


def _write_tokenizer(tokenizer: Tokenizer | None, run: Run, folder: Path) -> str:
    """Write the tokenizer where it is one of the transformers library too; `yes`, or why not."""
    if tokenizer is None:
        return "no: the run was given token ids, without their tokenizer"
    write_tokenizer(tokenizer, folder, sequence_length=run.config.base.model.sequence_length)
    if reads_alike(tokenizer, folder, tokenizer.decode(run.tokens().validation[:_TEXT])):
        return "yes"
    for name in TOKENIZER_FILES:
        (folder / name).unlink()
    return "no: transformers reads text otherwise than the run's own tokenizer"


def _compared(run: Run, model: Transformer, folder: Path) -> tuple[float, float, int]:
    """Largest difference from transformers and from float64, over the largest logit, and on how many tokens.

    Raises:
        RunError: transformers differs by more than rounding explains.
    """
    length = model.config.sequence_length
    sequences = evaluation_sequences(run.tokens(), count=_COMPARED, sequence_length=length)
    tokens = torch.from_numpy(sequences.tokens.copy())
    (checkpoint,) = find_model(str(folder)).checkpoints
    stock = load_checkpoint(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    double = Transformer(model.config).double()
    double.load_state_dict(model.state_dict())
    with torch.no_grad():
        own, exact = (one.logits(one(tokens, 0)) for one in (model, double))
        found = cast(Tensor, stock(input_ids=tokens).logits)
    difference, rounding = (float((own - other).abs().max() / own.abs().max()) for other in (found, exact))
    if not difference <= max(TOLERANCE, ROUNDING * rounding):
        raise RunError(
            f"logits of {ARCHITECTURE} must be those of the arm within {max(TOLERANCE, ROUNDING * rounding):.1e} of the "
            f"largest, got a difference of {difference:.1e}. Keep to rankkit.load_model, and report it."
        )
    return difference, rounding, tokens.numel()


def _card(facts: ExportedModel, run: Run) -> str:
    """README.md: what the model is, where it comes from, and how to load it."""
    arm = run.config.arm(facts.arm)
    tokenizer = "" if facts.tokenizer != "yes" else f'tokenizer = AutoTokenizer.from_pretrained("{facts.folder}")\n'
    rows = {
        "run": f"`{facts.run}`",
        "arm": f"{facts.arm}: mask {arm.model.mask}, objective {arm.train.objective}",
        "seed": facts.seed,
        "step": f"{facts.step} of {arm.train.steps}",
        "weights": f"{facts.parameters:,}",
        "SHA-256 of the checkpoint's weights": f"`{facts.checkpoint_sha256}`",
        "SHA-256 of model.safetensors": f"`{facts.weights_sha256}`",
        "command": f"`{facts.command}`" if facts.command else "from Python",
        "versions": f"rankkit {facts.rankkit_version}, transformers {facts.transformers_version}",
        "tokenizer": facts.tokenizer,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return _CARD.format(
        title=f"{facts.arm}, seed {facts.seed}, step {facts.step}",
        table=table,
        architecture=facts.architecture,
        compared=f"{facts.compared_tokens:,}",
        difference=f"{facts.logits_difference:.1e}",
        rounding=f"{facts.own_rounding:.1e}",
        folder=facts.folder,
        tokenizer=tokenizer,
        length=arm.model.sequence_length,
    )
