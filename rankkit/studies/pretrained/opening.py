"""Opening a model to measure it: from a folder or the hub with text, or one that is there with its inputs."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from rankkit.errors import ConfigurationError
from rankkit.models.transformer import Transformer
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.measure import Measured, measure_attention
from rankkit.studies.pretrained.files import FoundModel, find_model, group_name, transformers
from rankkit.studies.pretrained.inputs import ModelInputs, read_array
from rankkit.studies.pretrained.loading import DTYPES, load_checkpoint
from rankkit.studies.pretrained.plan import SwapMask
from rankkit.studies.pretrained.source import Models, ModelSettings, ModelSource, Reader
from rankkit.studies.pretrained.text import ModelText, TokenPolicy

__all__ = ["GivenModel", "PretrainedModels", "Reading", "measure_model", "open_model", "positions"]

DEFAULT_LENGTH: Final = 512
"""Tokens, where none are asked for: all heads of GPT-2 then take minutes."""

_READABLE: Final = {
    "input_ids": "text, or token ids with --tokens FILE.npy",
    "pixel_values": "images with --pixels FILE.npy",
}
"""What a model may read, and how it is given."""

_TABLE: Final = re.compile(r"position|wpe", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model is given to read: one of text, tokens and pixels."""

    text: tuple[str, ...] = ()
    """Files, folders or globs."""
    tokens: Path | None = None
    """.npy of token ids "sequence position"."""
    pixels: Path | None = None
    """.npy of numbers "sequence channel height width", scaled as the model's image processor would."""
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    """How text becomes sequences."""
    target_length: int | None = None
    """Tokens that a decoder reads beside its encoder; None for as many as the encoder."""

    def __post_init__(self) -> None:
        given = [name for name in ("text", "tokens", "pixels") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigurationError(
                f"exactly one of text, tokens and pixels must be given, got {', '.join(given) or 'none'}. Pass --text FILE."
            )
        if not self.text and (self.policy != TokenPolicy() or self.target_length is not None):
            raise ConfigurationError(
                f"bos, packing, truncation, padding_side, text_key and target_length must stand with text, got {given[0]}. "
                "Leave them out."
            )


class PretrainedModels:
    """The checkpoints of a found model, loaded one at a time.

    Args:
        found: where they are.
        dtype: of the weights.
        device: where to.
        unused: prefixes of weights in the checkpoint that may be left over.
    """

    def __init__(self, found: FoundModel, dtype: torch.dtype, device: torch.device, unused: Sequence[str] = ()) -> None:
        self._found, self._dtype, self._device, self._unused = found, dtype, device, tuple(unused)
        self.name = found.name
        self.steps = tuple(each.step for each in found.checkpoints)
        self.sha256 = tuple(each.sha256 for each in found.checkpoints)

    @property
    def description(self) -> Mapping[str, Any]:
        """For the file's configuration."""
        return {
            "model": self._found.name,
            "config": dict(self._found.settings),
            "revisions": "; ".join(f"{each.step}: {each.label}" for each in self._found.checkpoints),
            "weights": {each.label: each.sha256 for each in self._found.checkpoints},
            "weights_pickled": any(each.pickled for each in self._found.checkpoints),
            "weights_unused": list(self._unused),
            "transformers_version": transformers().__version__,
        }

    def load(self, step: int) -> nn.Module:
        """The model at a step.

        Raises:
            ConfigurationError: as `load_checkpoint`.
        """
        checkpoint = self._found.checkpoints[self.steps.index(step)]
        return load_checkpoint(checkpoint, dtype=self._dtype, device=self._device, unused=self._unused)


class GivenModel:
    """A model that is there already.

    Args:
        model: any that `rankkit.capture` knows.
        name: of its group.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model, self.name = model, group_name(name)
        self.steps: tuple[int, ...] = (0,)
        self.sha256: tuple[str, ...] = (_sha256_of(model),)

    @property
    def description(self) -> Mapping[str, Any]:
        """For the file's configuration."""
        return {"model": self.name, "weights": self.sha256[0]}

    def load(self, step: int) -> nn.Module:
        """The model."""
        assert step == 0, "it has one step"
        return self._model


class _FromText:
    """Sequences of text, of whatever length is asked for."""

    def __init__(self, text: ModelText, target_length: int | None) -> None:
        self._text, self._target_length = text, target_length

    def read(self, model: nn.Module, length: int | None) -> ModelInputs:
        """All sequences."""
        limit, config = positions(model), getattr(model, "config", None)
        wanted = min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH) if length is None else length
        _check_length(wanted, limit)
        if getattr(model, "main_input_name", "input_ids") != "input_ids":
            raise ConfigurationError(
                f"text must be for a model that reads token ids, got {type(model).__name__}, which reads "
                f"{getattr(model, 'main_input_name', '')}. Give pixels with --pixels FILE.npy, or use rankkit.measure_model."
            )
        if not getattr(config, "is_encoder_decoder", False):
            if self._target_length is not None:
                raise ConfigurationError(
                    f"target_length must be of a model with encoder and decoder, got {self._target_length}. Leave it out."
                )
            return self._text.sequences(wanted)
        second = wanted if self._target_length is None else self._target_length
        _check_length(second, limit)
        return self._text.sequences(wanted, target_length=second, start=_decoder_start(model))


class _AsGiven:
    """Sequences that are there already."""

    def __init__(self, inputs: ModelInputs) -> None:
        self._inputs = inputs

    def read(self, model: nn.Module, length: int | None) -> ModelInputs:
        """All sequences."""
        tokens = self._inputs.tokens("")
        own = None if tokens is None else tokens.shape[1]
        if length not in (None, own):
            raise ConfigurationError(
                f"sequence_length must be {own} (of the inputs), got {length}. Leave it out, or give others."
            )
        if own is not None:
            _check_length(own, positions(model))
        reads = getattr(model, "main_input_name", None)
        if reads in _READABLE and not {reads, "inputs_embeds"} & self._inputs.arguments.keys():
            raise ConfigurationError(
                f"inputs of {type(model).__name__} must hold {reads}, got {', '.join(self._inputs.arguments)}. Give "
                f"{_READABLE[reads]}."
            )
        two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        if two and "decoder_input_ids" not in self._inputs.arguments:
            raise ConfigurationError(
                f"inputs of {type(model).__name__} must hold decoder_input_ids, got {', '.join(self._inputs.arguments)}. "
                "Give --text, or both to rankkit.measure_model."
            )
        return self._inputs


def _check_length(length: int, limit: int | None) -> None:
    if limit is not None and length > limit:
        raise ConfigurationError(
            f"sequence_length must be at most {limit} (the model's table of positions), got {length}. Shorten it."
        )


def positions(model: nn.Module) -> int | None:
    """How many positions a model's tables of learned positions have; None without one."""
    sizes = [
        module.num_embeddings - (getattr(module, "offset", 0) or (module.padding_idx + 1 if module.padding_idx else 0))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _TABLE.search(name.rsplit(".", maxsplit=1)[-1])
    ]
    return min(sizes, default=None)


def _decoder_start(model: nn.Module) -> int:
    """The token that a decoder reads first."""
    for name in ("config", "generation_config"):
        found = getattr(getattr(model, name, None), "decoder_start_token_id", None)
        if isinstance(found, int):
            return found
    raise ConfigurationError(
        f"{type(model).__name__} must say its decoder_start_token_id, got none. Give decoder_input_ids to "
        "rankkit.measure_model."
    )


def _sha256_of(model: nn.Module) -> str:
    """Of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        if isinstance(values, Tensor):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_model(
    path: str,
    reading: Reading,
    device: torch.device,
    *,
    revisions: Sequence[str] = (),
    dtype: str = "float32",
    settings: ModelSettings | None = None,
    allow_pickle: bool = False,
    unused: Sequence[str] = (),
) -> ModelSource:
    """A Hugging Face model as something to measure.

    Args:
        path: a folder, or a name on the hub.
        reading: what it reads.
        device: where it runs.
        revisions: of the hub, or sub-folders; they become steps.
        dtype: of the weights: float32, bfloat16 or float16.
        settings: how it is measured.
        allow_pickle: whether pickled weights may be loaded.
        unused: prefixes of weights in the checkpoint that may be left over.

    Raises:
        RankkitError: it cannot be found or loaded, or text cannot be read.
    """
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be among {', '.join(DTYPES)}, got {dtype!r}. Choose one.")
    found = find_model(path, revisions, allow_pickle=allow_pickle)
    reader: Reader
    if reading.text:
        reader = _FromText(ModelText(found, reading.text, reading.policy), reading.target_length)
    elif reading.tokens is not None:
        reader = _AsGiven(read_array(reading.tokens, "input_ids"))
    else:
        assert reading.pixels is not None, "Reading holds one of the three"
        reader = _AsGiven(read_array(reading.pixels, "pixel_values"))
    models: Models = PretrainedModels(found, DTYPES[dtype], device, unused)
    return ModelSource(models, reader, device, settings or ModelSettings())


def measure_model(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path | str,
    *,
    name: str = "model",
    config: MeasureConfig | None = None,
    swap_mask: str | None = None,
    batch: int = 1,
    allow_disagreement: bool = False,
    force: bool = False,
    resume: bool = False,
) -> Measured:
    """Measure the spectrum of every head of a model that is in memory, into an HDF5 file.

        rankkit.measure_model(model, tokenizer(texts, padding=True, return_tensors="pt"), "spectrum.h5")

    The model runs as it would have run, in evaluation mode and without gradients; afterwards it is as it was.

    Args:
        model: a Hugging Face model, or any other module that `rankkit.capture` knows but a rankkit `Transformer`.
        inputs: "sequence ...", keyword arguments of its forward pass; `attention_mask` says what is padding.
        path: of the file.
        name: of the group in it.
        config: what to measure; None for the defaults.
        swap_mask: `causal`, `bidirectional` or `prefix:P`: also measure its queries and keys under that mask.
        batch: sequences in one forward pass.
        allow_disagreement: measure on where captured attention is not the model's own.
        force: replace an existing file.
        resume: take over what an interrupted measurement has kept.

    Returns:
        What was measured.

    Raises:
        RankkitError: as `measure_attention`; or the inputs cannot be used.
    """
    if any(isinstance(module, Transformer) for module in model.modules()):
        raise ConfigurationError(
            f"model must not be rankkit's own, nor hold it, got {type(model).__name__}. Measure its run "
            "with rankkit.measure_run, or capture it and call rankkit.spectrum."
        )
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    settings = ModelSettings(
        swap=None if swap_mask is None else SwapMask.parsed(swap_mask),
        batch=batch,
        allow_disagreement=allow_disagreement,
    )
    tensors = {key: values.detach().cpu() for key, values in inputs.items() if isinstance(values, Tensor)}
    with _evaluating(model):
        reader = _AsGiven(ModelInputs(arguments=tensors))
        source = ModelSource(GivenModel(model, name), reader, device, settings)
        return measure_attention(
            source,
            config or MeasureConfig(),
            Path(path),
            device=device,
            command="rankkit.measure_model",
            force=force,
            resume=resume,
        )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, every module afterwards in its own again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
