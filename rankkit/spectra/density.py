"""The density of singular values on a logarithmic axis, smoothed by a kernel of stated width.

A density from probes has no bracket. What is drawn is the true one seen through the kernel and through the cells of the
quadrature, which near 0 are wider: below about sigma_{k+1} / steps nothing is resolved.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError

__all__ = ["KERNEL_WIDTH", "density"]

KERNEL_WIDTH: Final = 0.1  # decades; standard deviation of the kernel


def density(values: Tensor, counts: Tensor, grid: Tensor, /, *, width: float = KERNEL_WIDTH) -> Tensor:
    """Singular values per decade.

    sum_i counts_i N(grid; log10 values_i, width^2); values of 0 have no place on the axis.

    Args:
        values: "node", at least 0: singular values, or those of `Estimates.distribution`.
        counts: "node": how many singular values each stands for.
        grid: "point", log10 of where to evaluate.
        width: of the kernel, in decades.

    Returns:
        "point", float64; it integrates over the grid to the number of singular values that are not 0.

    Raises:
        ConfigurationError: a width that is not positive.
    """
    if not width > 0:
        raise ConfigurationError(f"width must be above 0, got {width!r}. Pass 0.1 for a tenth of a decade.")
    positive = values > 0
    centres = values[positive].to(torch.float64).log10()
    distance = (rearrange(grid.to(centres), "point -> point 1") - centres) / width
    kernel = torch.exp(-distance.square() / 2) / (width * math.sqrt(2 * math.pi))
    return kernel @ counts[positive].to(centres)
