"""Loading a Hugging Face model, only where every weight of it is the checkpoint's."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from rankkit.errors import ConfigurationError
from rankkit.studies.pretrained.files import CONFIG, ModelCheckpoint, first_line, some_of, transformers

__all__ = ["DTYPES", "load_checkpoint", "quietly"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of weights, by name."""


def load_checkpoint(
    checkpoint: ModelCheckpoint, *, dtype: torch.dtype, device: torch.device, unused: Sequence[str] = ()
) -> nn.Module:
    """Load a model whose every weight comes from the checkpoint, for evaluation and without a key-value cache.

    The class is the one that config.json names first. No code of the checkpoint is run.

    Args:
        checkpoint: from `find_model`.
        dtype: of the weights.
        device: where to.
        unused: prefixes of weights in the checkpoint that this class does not have (a pooler, another head).

    Raises:
        ConfigurationError: the class is not one of transformers, the files cannot be read, weights are missing or have
            other shapes, or the checkpoint has weights that were not named as unused.
    """
    library = transformers()
    name = _architecture(checkpoint.folder)
    kind: Any = getattr(library, name, None)
    if not isinstance(kind, type) or not issubclass(kind, library.PreTrainedModel):
        raise ConfigurationError(
            f"{checkpoint.folder / CONFIG} must name a model class of transformers {library.__version__} under "
            f"architectures, got {name!r:.80}. Code that comes with a model is never run."
        )
    with _errors_of_loading(checkpoint, name), quietly(library):
        made: Any = kind
        model, report = made.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=not checkpoint.pickled,
            output_loading_info=True,
        )
    _check_report(checkpoint, name, report, unused)
    if getattr(model.config, "use_cache", None):
        model.config.use_cache = False
    loaded: nn.Module = model.to(device).eval()
    return loaded


def _architecture(folder: Path) -> str:
    named = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise ConfigurationError(
            f"{folder / CONFIG} must name the model's class under architectures, got {named!r:.80}. Save the model with "
            "save_pretrained."
        )
    return named[0]


@contextlib.contextmanager
def _errors_of_loading(checkpoint: ModelCheckpoint, name: str) -> Iterator[None]:
    """One error for everything that a damaged configuration or weight file raises in three libraries."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    own = (SafetensorError, StrictDataclassError, pickle.UnpicklingError)
    builtin = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError)
    try:
        yield
    except (*own, *builtin) as error:
        raise ConfigurationError(
            f"{checkpoint.folder} must load as {name}, got {type(error).__name__}: {first_line(error)} Check that the "
            "folder is whole and its weights fit its config.json."
        ) from error


def _check_report(checkpoint: ModelCheckpoint, name: str, report: Mapping[str, Any], unused: Sequence[str]) -> None:
    """Refuse weights that were drawn at random, and weights that nobody wanted."""
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, report.get(what) or ())):
            raise ConfigurationError(
                f"{checkpoint.folder} must hold every weight of {name}, got {len(found)} {what.replace('_', ' ')}: "
                f"{some_of(found)}. They would be random; take the folder of the whole model."
            )
    extra = sorted(key for key in report.get("unexpected_keys") or () if not key.startswith(tuple(unused)))
    if extra:
        raise ConfigurationError(
            f"{checkpoint.folder} must hold no weight that {name} lacks, got {len(extra)}: {some_of(extra)}. If they belong "
            "to a part that is not measured, name their prefixes with --unused."
        )


@contextlib.contextmanager
def quietly(library: ModuleType) -> Iterator[None]:
    """Without the library's bars and reports: what they say is checked, and said in one line."""
    log = library.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
