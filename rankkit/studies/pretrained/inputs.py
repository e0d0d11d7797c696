"""What a model reads: token ids or pixels, sequence by sequence, with what is padding in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankkit.errors import ConfigurationError, DataError

__all__ = ["ModelInputs", "check_vocabulary", "read_array"]

DECODER: Final = "decoder"
"""Name of the stack that reads `decoder_input_ids`, where there are two."""

_MASKS: Final = ("attention_mask", "decoder_attention_mask")
_UNKNOWN: Final = "unknown: made elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelInputs:
    """The sequences that a model reads.

    Raises:
        DataError: arguments of different lengths, or padding inside a sequence or all over it.
    """

    arguments: Mapping[str, Tensor]
    """"sequence ...": keyword arguments of the model's forward pass."""
    documents: NDArray[np.int64] | None = None
    """"sequence", number of the document in which each starts; None where that is not known."""
    policy: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(("bos", "packing", "truncation"), _UNKNOWN))
    """Token policy: bos, packing and truncation in words."""

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.arguments.items()}
        if not lengths or len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise DataError(f"inputs must have as many sequences in every argument, got {lengths}. Stack them alike.")
        for name in _MASKS:
            if name in self.arguments:
                _check_padding(name, self.arguments[name])

    def __len__(self) -> int:
        return len(next(iter(self.arguments.values())))

    def __getitem__(self, rows: slice | list[int]) -> ModelInputs:
        """Some of the sequences."""
        documents = None if self.documents is None else self.documents[rows]
        return replace(
            self, arguments={name: values[rows] for name, values in self.arguments.items()}, documents=documents
        )

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The arguments there; masks that hide nothing are left out, so that the model may leave them out too."""
        return {
            name: values.to(device)
            for name, values in self.arguments.items()
            if name not in _MASKS or not bool(values.all())
        }

    def tokens(self, stack: str) -> NDArray[np.int64] | None:
        """Token ids that a stack reads, "sequence position"; None where it reads none."""
        found = self.arguments.get("decoder_input_ids" if stack == DECODER else "input_ids")
        return None if found is None else found.numpy(force=True).astype(np.int64)

    def valid(self, stack: str) -> NDArray[np.bool_] | None:
        """False for padding, "sequence position"; None where there is none."""
        found = self.arguments.get("decoder_attention_mask" if stack == DECODER else "attention_mask")
        return None if found is None or bool(found.all()) else found.numpy(force=True).astype(np.bool_)

    @property
    def longest(self) -> int:
        """Number of the first sequence with the least padding: it shows windows that shorter ones fit into."""
        padding = sum((self.arguments[name] == 0).sum(dim=1) for name in _MASKS if name in self.arguments)
        return int(padding.argmin()) if isinstance(padding, Tensor) else 0

    @property
    def sha256(self) -> str:
        """Of all arguments, by name."""
        digest = hashlib.sha256()
        for name, values in sorted(self.arguments.items()):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().view(torch.uint8).numpy(force=True).tobytes())
        return digest.hexdigest()


def _check_padding(name: str, mask: Tensor) -> None:
    """Refuse what is not one run of positions."""
    if mask.dim() != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise DataError(
            f"{name} must be (sequence, position) of 0 and 1, got {tuple(mask.shape)}. Give the padding mask."
        )
    edges = torch.nn.functional.pad(mask.long(), (1, 1)).diff(dim=1)
    if not bool(((edges == 1).sum(dim=1) == 1).all()):
        raise DataError(
            f"{name} must be 1 in one run of positions of every sequence, got holes or a sequence of padding alone. Pad "
            "on one side."
        )


def read_array(path: Path, argument: str) -> ModelInputs:
    """Inputs from an .npy file.

    Args:
        path: of token ids "sequence position" or pixels "sequence channel height width".
        argument: of the model: `input_ids` or `pixel_values`.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} must be a readable .npy file, got: {error!s:.100}. Save it with numpy.save."
        ) from error
    axes, kinds = (2, "iu") if argument == "input_ids" else (4, "f")
    if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.kind not in kinds or 0 in array.shape:
        words = "whole numbers (sequence, position)" if axes == 2 else "numbers (sequence, channel, height, width)"
        shape, dtype = getattr(array, "shape", ()), getattr(array, "dtype", "an archive")
        raise DataError(f"{path} must hold {words}, got {dtype} of shape {shape}. Save such an array.")
    values = array.astype(np.int64 if axes == 2 else np.float32)
    if axes == 2 and (values.min() < 0 or (array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max)):
        raise DataError(f"{path} must hold token ids of at least 0, got {values.min()}. Save ids.")
    said = f"{path.name}: made elsewhere"
    return ModelInputs(
        arguments={argument: torch.from_numpy(values)}, policy=dict.fromkeys(("bos", "packing", "truncation"), said)
    )


def check_vocabulary(inputs: ModelInputs, vocabulary: int | None) -> None:
    """Refuse token ids that a model does not have.

    Args:
        inputs: that it is to read.
        vocabulary: how many ids there are; None where nothing is known of them.

    Raises:
        ConfigurationError: there is one.
    """
    for name in ("input_ids", "decoder_input_ids"):
        if (
            vocabulary is not None
            and name in inputs.arguments
            and (largest := int(inputs.arguments[name].max())) >= vocabulary
        ):
            raise ConfigurationError(
                f"{name} must be below {vocabulary} (the model's vocabulary), got {largest}. Use the model's own tokenizer."
            )
