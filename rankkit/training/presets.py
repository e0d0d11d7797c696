"""Sizes that are known to work together. A preset is a function returning what all arms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from rankkit.data.config import DataConfig
from rankkit.errors import ConfigurationError
from rankkit.models.config import ModelConfig
from rankkit.training.config import ArmConfig, TrainConfig

__all__ = ["PRESETS", "base", "preset", "small", "tiny"]


def tiny() -> ArmConfig:
    """Two minutes per arm and seed on one core: bytes, n / head_dim = 8, below the bigram model after a third of it."""
    return ArmConfig()


def small() -> ArmConfig:
    """About 10 million weights, byte pairs, n / head_dim = 8: an hour or two on a workstation GPU or overnight on a CPU."""
    return ArmConfig(
        model=ModelConfig(
            vocab_size=4096, sequence_length=512, num_layers=7, d_model=320, num_heads=5, head_dim=64, mlp_ratio=4
        ),
        train=TrainConfig(
            steps=6000,
            batch_size=32,
            learning_rate=1e-3,
            evaluation_interval=250,
            checkpoint_interval=500,
            log_interval=20,
        ),
        data=DataConfig(tokenizer="bpe:4096"),
    )


def base() -> ArmConfig:
    """GPT-2's shape: 124 million weights, n / head_dim = 16; for GPUs and a corpus of your own."""
    return ArmConfig(
        model=ModelConfig(
            vocab_size=50257, sequence_length=1024, num_layers=12, d_model=768, num_heads=12, head_dim=64,
            position="learned",
        ),
        train=TrainConfig(
            steps=10000, batch_size=256, micro_batch_size=16, learning_rate=6e-4, precision="bfloat16",
            evaluation_interval=500, checkpoint_interval=1000, log_interval=20,
        ),
        data=DataConfig(tokenizer="bpe:50257"),
    )  # fmt: skip


PRESETS: Final[Mapping[str, Callable[[], ArmConfig]]] = MappingProxyType({"tiny": tiny, "small": small, "base": base})


def preset(name: str) -> ArmConfig:
    """A preset by name.

    Raises:
        ConfigurationError: no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigurationError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}. Choose one of them.")
    return PRESETS[name]()
