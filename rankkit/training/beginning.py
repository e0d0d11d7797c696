"""Trained weights that a unit begins with instead of drawn ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rankkit.errors import RunError
from rankkit.files import sha256_of_file
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import Transformer
from rankkit.training.checkpoints import load_weights

__all__ = ["Beginning"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """A file of weights and how far its stream was read; the optimizer is not continued."""

    weights: Path
    """A copy of a checkpoint's model.safetensors, in the run that goes on from it."""
    sha256: str
    """Of that file."""
    batches: int
    """Batches of the unit's stream that the weights have read; it goes on behind them."""

    def model(self, config: ModelConfig) -> Transformer:
        """The model at step 0, on the CPU.

        Raises:
            RunError: the file is missing, does not match its hash, or holds other names, shapes or dtypes.
        """
        try:
            found = sha256_of_file(self.weights)
        except OSError as error:
            raise RunError(
                f"{self.weights} must be readable, got: {error.strerror}. Restore it, or make the run again with "
                "--init-from."
            ) from error
        if found != self.sha256:
            raise RunError(
                f"{self.weights} must match its hash in run.toml, but it does not. Restore it, or make the run again with "
                "--init-from."
            )
        try:
            weights = load_file(self.weights)
        except SafetensorError as error:
            raise RunError(f"{self.weights} must be a safetensors file, got: {error}. Make the run again.") from error
        model = Transformer(config)
        load_weights(model, weights, self.weights)
        return model
