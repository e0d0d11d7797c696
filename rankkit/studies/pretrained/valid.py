"""The part of captured attention that is no padding, as one operator."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import CaptureError
from rankkit.hooks.factors import LayerAttention, LayerFactors
from rankkit.masks import Cross, Mask, Padded
from rankkit.operators import AttentionOperator, DenseOperator, Operator

__all__ = ["valid_operator"]

Valid: TypeAlias = NDArray[np.bool_] | None


def valid_operator(seen: LayerAttention, valid_rows: Valid, valid_keys: Valid) -> Operator:
    """One operator "sequence head ..." for a batch whose sequences have padding in the same number of places.

    Args:
        seen: of one layer, handed over by `rankkit.capture`.
        valid_rows: "sequence query", False for padding; None where there is none.
        valid_keys: "sequence key", the same.

    Raises:
        CaptureError: sequences of the batch do not share a mask, or padding took part in attention.
    """
    found = list(seen.operators_by_mask())
    if len(found) > 1:
        raise CaptureError(
            f"sequences of one batch must share masks and biases, got {len(found)} of them in layer {seen.layer}. Use "
            "--batch 1."
        )
    ((_, operator),) = found
    rows, keys = _run(valid_rows, operator.rows), _run(valid_keys, _keys(seen))
    columns = (0, operator.columns) if seen.kind == "cross" else keys
    checked: Operator
    if isinstance(operator, AttentionOperator):
        checked = _part(operator, rows, columns)
    else:
        assert isinstance(operator, DenseOperator), "capture gives factors or matrices"
        checked = replace(operator, matrix=operator.matrix[..., slice(*rows), slice(*columns)])
    if (checked.rows, checked.columns) != (rows[1] - rows[0], keys[1] - keys[0]):
        raise CaptureError(
            f"padding must take no part in attention, got {checked.columns} visible keys of {keys[1] - keys[0]} in layer "
            f"{seen.layer}. Give the model its attention_mask."
        )
    return checked


def _keys(seen: LayerAttention) -> int:
    """Positions of the key side, padding among them."""
    return seen.key.shape[-2] if isinstance(seen, LayerFactors) else seen.matrices.shape[-1]


def _run(valid: Valid, length: int) -> tuple[int, int]:
    """First and last position that is no padding, of a batch in which all sequences have them in the same places."""
    if valid is None:
        return 0, length
    if not (valid == valid[0]).all():
        raise CaptureError("sequences of one batch must have padding in the same places, got others. Use --batch 1.")
    inside = np.flatnonzero(valid[0])
    return int(inside[0]), int(inside[-1]) + 1


def _part(operator: AttentionOperator, rows: tuple[int, int], columns: tuple[int, int]) -> AttentionOperator:
    """Those rows and keys; of cross attention the keys are cut already."""
    mask: Mask = operator.mask
    if isinstance(mask, Padded):
        inside = mask.visible_positions(operator.rows)
        rows = columns = (inside.start, inside.stop)
        mask = mask.mask
    elif isinstance(mask, Cross):
        mask = Cross(rows[1] - rows[0], operator.columns)
    return replace(
        operator,
        query=operator.query[..., slice(*rows), :],
        key=operator.key[..., slice(*columns), :],
        mask=mask,
        bias=operator.scores.within(rows, columns, operator.rows).bias,
    )
