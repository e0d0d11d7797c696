"""How far a measure can have moved when every singular value moved by at most delta.

By Weyl's inequality a perturbation E of the matrix moves each singular value by at most ||E||, so the larger noise floor
of a spectrum is such a delta. Counts and ratios have exact extremes over all spectra within delta. A smooth measure has the
bound

    delta sum_i max |d measure / d sigma_i|,

each maximum over three spectra: the values, and the values with every other one up by delta and the rest down, both ways.
The first gives the first order. The others give what is left where that vanishes: a flat spectrum, or a flat part of one,
has no derivative but can be spread, which changes every derivative by delta times its own slope. Derivatives are taken at
max(sigma_i, delta), where the logarithm's are finite. The bound is never less than the change at four spectra within delta:
every value moved the way that its derivative points, the extremes of a measure that is monotone in every value, and every
other value, both ways.

That is not proven: derivatives that depend on the sum of many moves are not followed. Searched for perturbations of 1e-5 to
1e-2 sigma_1 that exceed it, every corner {-1, 0, 1}^n of 4000 spectra of 2 to 6 values, and corners of blocks (still, up,
down, alternating, or split) with coordinate ascent from the best on 28 spectra of up to 360 values, random, geometric and
of flat blocks: none did, and the largest changes reached it.

All return "...", float64, at least 0; nan where the measure or delta is nan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from rankkit.spectra.measures.of_singular_values import (
    CUMULATIVE_SLACK,
    components,
    descending,
    first_quarter,
    spectral_ratio,
)

__all__ = ["moved", "moved_mass_at_quarter", "moved_numerical_rank", "moved_share_rank", "moved_spectral_ratio"]

_EPS: Final = 2.0**-52  # eps64: a sum of r terms is off by up to r of them


def moved(measure: Callable[[Tensor], Tensor], singular_values: Tensor, delta: Tensor) -> Tensor:
    """Largest change of a smooth measure, by its derivatives at three spectra.

    Args:
        measure: from "... component" to "...", differentiable by autograd.
        singular_values: "... component", non-negative; nan is padding.
        delta: "...", at least 0, in the units of the singular values.
    """
    with torch.inference_mode(False):
        sigma, step = singular_values.detach().to(torch.float64), delta.detach().to(torch.float64).unsqueeze(-1)
        value = measure(sigma)
        spread = step * _alternating(sigma)
        slopes = torch.stack([_gradient(measure, point, step) for point in (sigma, sigma + spread, sigma - spread)])
        bound = (step * slopes.abs().amax(dim=0)).where(step > 0, 0.0).nan_to_num(nan=0.0).sum(dim=-1)
        moves = [way * move for move in (step * slopes[0].sign(), spread) for way in (1, -1)]
        change = torch.stack([(measure((sigma + move).clamp(min=0.0)) - value).abs() for move in moves]).amax(dim=0)
        rounding = components(sigma) * _EPS * value.abs()
        return torch.maximum(bound, change) + rounding


def _gradient(measure: Callable[[Tensor], Tensor], sigma: Tensor, step: Tensor) -> Tensor:
    """D measure / d sigma "... component" at max(sigma, step); 0 for padding."""
    with torch.enable_grad():
        point = torch.maximum(sigma, step).clone().requires_grad_()
        (slope,) = torch.autograd.grad(measure(point).sum(), point)
    return slope.where(~sigma.isnan(), 0.0)


def _alternating(sigma: Tensor) -> Tensor:
    """+1, -1, +1, ..., "component"."""
    return 1.0 - 2.0 * (torch.arange(sigma.shape[-1], device=sigma.device) % 2)


def moved_numerical_rank(singular_values: Tensor, delta: Tensor, /, *, tolerance: Tensor) -> Tensor:
    """Largest change of the count above tolerance * sigma_1: exact, sigma_1 moving against all others.

    Args:
        singular_values: "... component", non-negative; nan is padding.
        delta: "...", at least 0.
        tolerance: relative to sigma_1, "..." or one.
    """
    sigma, step = descending(singular_values), delta.to(torch.float64).unsqueeze(-1)
    limit = torch.as_tensor(tolerance).to(sigma).unsqueeze(-1)
    first, present = sigma[..., :1], _present(singular_values)
    count, most, least = (
        ((sigma + way * step > limit * (first - way * step).clamp(min=0.0)) & present).sum(dim=-1).to(torch.float64)
        for way in (0, 1, -1)
    )
    return torch.maximum(most - count, count - least).where(_known(singular_values, delta), torch.nan)


def moved_share_rank(singular_values: Tensor, delta: Tensor, /, *, fraction: float, power: int) -> Tensor:
    """Largest change of the least k whose k largest sigma^power sum to the fraction of all.

    The share of the k largest is greatest when they rise and all others fall, and least the other way round, so k lies
    between the counts of those two spectra.

    Args:
        singular_values: "... component", non-negative; nan is padding.
        delta: "...", at least 0.
        fraction: in (0, 1].
        power: 1 for mass, 2 for energy.
    """
    sigma, step = descending(singular_values), delta.to(torch.float64).unsqueeze(-1)
    first = sigma[..., :1]
    up, down = (
        (((sigma + way * step).clamp(min=0.0) / first) ** power).where(_present(singular_values), 0.0)
        for way in (1, -1)
    )
    rounding = sigma.shape[-1] * _EPS
    still = (sigma / first) ** power
    count = _least(still, still, fraction - CUMULATIVE_SLACK)
    fewest = _least(up, down, fraction - CUMULATIVE_SLACK - rounding)
    most = _least(down, up, fraction - CUMULATIVE_SLACK + rounding).clamp(max=components(singular_values).unsqueeze(-1))
    change = torch.maximum(count - fewest, most - count).squeeze(-1)
    return change.where(_known(singular_values, delta) & (first.squeeze(-1) > 0), torch.nan)


def _least(head: Tensor, tail: Tensor, target: float) -> Tensor:
    """Least k with (first k of head) / (first k of head + rest of tail) >= target, "... 1"."""
    first = head.cumsum(dim=-1)
    rest = tail.flip(-1).cumsum(dim=-1).flip(-1) - tail
    return (first < target * (first + rest)).sum(dim=-1, keepdim=True).to(torch.float64) + 1


def moved_mass_at_quarter(singular_values: Tensor, delta: Tensor, /) -> Tensor:
    """Largest change of `mass_at_quarter`: the first quarter moves against all others, whether or not they then overtake.

    Args:
        singular_values: "... component", non-negative; nan is padding.
        delta: "...", at least 0.
    """
    sigma, step = descending(singular_values), delta.to(torch.float64).unsqueeze(-1)
    up, down = (((sigma + way * step).clamp(min=0.0)).where(_present(singular_values), 0.0) for way in (1, -1))
    first = torch.arange(sigma.shape[-1], device=sigma.device) < first_quarter(singular_values).unsqueeze(-1)

    def share(head: Tensor, tail: Tensor) -> Tensor:
        mass = head.where(first, 0.0).sum(dim=-1)
        return mass / (mass + tail.where(~first, 0.0).sum(dim=-1))

    value = share(sigma, sigma)
    rounding = sigma.shape[-1] * _EPS
    return torch.maximum(share(up, down) - value, value - share(down, up)) + rounding


def moved_spectral_ratio(singular_values: Tensor, delta: Tensor, /, *, floor: Tensor | None) -> Tensor:
    """Largest change of sigma_1 / sigma_2: inf where sigma_2 may be noise, nan where it is and the ratio infinite."""
    ratio = spectral_ratio(singular_values, floor=floor)
    sigma, step = descending(singular_values), delta.to(torch.float64)
    first, second = sigma[..., 0], sigma[..., min(1, sigma.shape[-1] - 1)]
    limit = torch.zeros_like(step) if floor is None else floor.to(step)
    largest = ((first + step) / (second - step)).where(second - step > limit, torch.inf)
    smallest = ((first - step) / (second + step)).clamp(min=1.0)
    change = torch.maximum(largest - ratio, ratio - smallest) + 4 * _EPS * ratio
    return change.where(ratio.isfinite() & ~step.isnan(), torch.nan)


def _present(singular_values: Tensor) -> Tensor:
    """Which places of the sorted values are not padding, "... component"."""
    place = torch.arange(singular_values.shape[-1], device=singular_values.device)
    return place < components(singular_values).unsqueeze(-1)


def _known(singular_values: Tensor, delta: Tensor) -> Tensor:
    return (components(singular_values) > 0) & ~delta.isnan()
