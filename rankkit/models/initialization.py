"""Initial weights that are a function of (configuration, seed) alone.

Every parameter draws from its own counter-based generator, keyed by the seed and the parameter's name: construction
order, device, precision and the other arms' parameters cannot change it. Weights are uniform with the stated
standard deviation, because a uniform number is made from random bits by exactly rounded operations only; a
normal one goes through a logarithm, whose last bit differs between machines.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

from rankkit.models.config import ModelConfig

__all__ = ["initialize", "uniform_tensor"]

_RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.output.weight")


def uniform_tensor(seed: int, name: str, shape: tuple[int, ...], standard_deviation: float) -> Tensor:
    """Independent uniform numbers with mean 0, the same bits on every machine.

    Args:
        seed: of the run.
        name: of the parameter; together with the seed it keys the generator (Philox, first 128 bits of a SHA-256).
        shape: of the result.
        standard_deviation: of each number; the bound is sqrt(3) times it.

    Returns:
        float64 of that shape.
    """
    key = np.frombuffer(hashlib.sha256(f"rankkit weight {seed} {name}".encode()).digest()[:16], dtype="<u8")
    bits = np.random.Philox(key=key.astype(np.uint64)).random_raw(math.prod(shape))
    unit = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1), exact
    return torch.from_numpy((2 * unit - 1) * (standard_deviation * math.sqrt(3))).reshape(shape)


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place: matrices by `uniform_tensor`, gains of norms with 1.

    Args:
        model: whose `named_parameters` are filled, in whatever dtype and on whatever device they are.
        config: for the standard deviation and the depth.
        seed: of the run.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0)
            continue
        deviation = config.initial_std
        if name.endswith(_RESIDUAL_OUTPUTS):
            deviation /= math.sqrt(2 * config.num_layers)
        parameter.copy_(uniform_tensor(seed, name, tuple(parameter.shape), deviation))
