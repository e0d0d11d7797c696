"""Proof on a model's first sequences that captured attention is its own, as numbers for the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks.check import check_against_eager
from rankkit.studies.pretrained.inputs import ModelInputs
from rankkit.studies.pretrained.probe import AttentionGroup

__all__ = ["agreement"]

_COPIES: Final = 4  # of a layer's matrices that an eager forward pass and the comparison hold at once

_AGAINST: Final = {
    "eager": "{} matrices of {}, against its own eager attention",
    "values": "{} matrices of {}, against what it made of its values",
    "softmax": "every matrix is the model's own softmax; the output of {1}",
}
"""What was compared, by the kinds of `Agreement.against`."""


def agreement(
    model: nn.Module,
    inputs: ModelInputs,
    groups: Sequence[AttentionGroup],
    *,
    batch: int,
    memory_budget: int,
    device: torch.device,
    allow_disagreement: bool,
) -> dict[str, str | float]:
    """Compare the first batch with the model's own eager attention, and the output with that of an uncaptured pass.

    Eager attention forms its matrices, so sequences are cut, and fewer of them are taken, until one layer's fit the budget.

    Args:
        model: in evaluation mode.
        inputs: that are measured.
        groups: of the model.
        batch: sequences in one forward pass.
        memory_budget: bytes for dense matrices.
        device: where the model is.
        allow_disagreement: return the numbers whatever they are.

    Returns:
        Attributes of every group.

    Raises:
        CaptureError: they differ by more than rounding.
    """
    heads = max(layer.heads for group in groups for layer in group.layers)
    whole = max(max(group.queries, group.keys) for group in groups)
    length = min(whole, max(2, math.isqrt(memory_budget // (_COPIES * 4 * heads))))
    count = max(1, min(batch, len(inputs), memory_budget // (_COPIES * 4 * heads * length**2)))
    arguments = _cut(inputs[:count].on(device), length)
    found = check_against_eager(model, arguments)
    if not found.holds and not allow_disagreement:
        raise CaptureError(
            f"captured attention must be the model's own within {found.tolerance:g}, got a largest difference of "
            f"{found.matrices:.3g} from its {found.against}, and of {found.outputs:.3g} in its output. Report this model, "
            "or measure it all the same with --allow-disagreement."
        )
    checked = f"the first {len(next(iter(arguments.values())))} sequences, {length} positions each"
    return {
        "agreement": _AGAINST[found.against].format(found.compared, checked),
        "agreement_attention": found.matrices,
        "agreement_output": found.outputs,
        "agreement_tolerance": found.tolerance,
    }


def _cut(arguments: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The first positions of token ids and their masks; the last, where padding stands before them."""
    found = {}
    for name, values in arguments.items():
        mask = arguments.get("decoder_attention_mask" if name.startswith("decoder_") else "attention_mask")
        from_end = mask is not None and mask.dim() == 2 and not bool(mask[:, 0].all())
        is_sequence = values.dim() == 2 and not values.is_floating_point()
        found[name] = (values[:, -length:] if from_end else values[:, :length]) if is_sequence else values
    return found
