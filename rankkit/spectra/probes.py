"""Random vectors that are a function of a seed and a name alone: the same bits on every machine and in every batch.

Every matrix of a batch meets the same vectors, so what is found for one does not depend on which others came along, and
differences between matrices of one size (two masks, say) share part of their error.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CUBE_SLICING", "signs", "uniform"]

CUBE_SLICING: Final = (2 / 3) ** 0.5
"""P(|v . w| <= t) <= sqrt(2/3) t for every unit vector v and a vector w of independent `uniform` entries.

The density of v . w is a slice of a cube of side 2 sqrt(3), and no slice of the unit cube is larger than sqrt(2).
Source: Ball (1986), Cube slicing in R^n. (Of normal entries it is sqrt(2/pi), hardly less.)
"""


def uniform(seed: int, name: str, rows: int, columns: int, *, device: torch.device) -> Tensor:
    """Independent uniform numbers of mean 0 and variance 1: "row column", float64, in [-sqrt(3), sqrt(3))."""
    unit = (_bits(seed, name, rows * columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1), exact
    return torch.from_numpy((2 * unit - 1) * 3**0.5).reshape(rows, columns).to(device)


def signs(seed: int, name: str, rows: int, columns: int, *, device: torch.device) -> Tensor:
    """Independent signs: "row column", float64, -1 or 1."""
    bits = _bits(seed, name, rows * columns) >> np.uint64(63)
    return torch.from_numpy(2 * bits.astype(np.float64) - 1).reshape(rows, columns).to(device)


def _bits(seed: int, name: str, count: int) -> NDArray[np.uint64]:
    """Philox keyed by the first 128 bits of a SHA-256, as initial weights are."""
    key = np.frombuffer(hashlib.sha256(f"rankkit probe {seed} {name}".encode()).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key.astype(np.uint64)).random_raw(count)
