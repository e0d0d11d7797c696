"""Any torch module: attention seen where it calls `scaled_dot_product_attention`, or else a softmax over keys.

A torch-function mode sees every call of the torch functions that a module makes. What they compute is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rankkit.errors import CaptureError
from rankkit.hooks.recorder import AttentionCall, Recorder

__all__ = ["watched_functions"]

SOFTMAX: Final = (F.softmax, torch.softmax, Tensor.softmax)
CLOSED: Final = {
    F.multi_head_attention_forward: "nn.MultiheadAttention",
    torch._native_multi_head_attention: "nn.MultiheadAttention",
    torch._transformer_encoder_layer_fwd: "nn.TransformerEncoderLayer",
}
"""Functions that compute attention whole: what they call themselves is not seen."""


@contextmanager
def watched_functions(
    model: nn.Module, recorder: Recorder, on_mixed: Callable[[Tensor, Tensor], None] | None = None
) -> Iterator[None]:
    """Record the attention of a module while the context lasts.

    Args:
        model: any module.
        recorder: gets factors from `scaled_dot_product_attention`, and the matrices themselves from a softmax over keys.
        on_mixed: called after each `scaled_dot_product_attention` with its values "sequence group key feature" and what
            it returned, "sequence head query feature".
    """
    with recorder.watching(model.modules()), _Functions(recorder, on_mixed):
        yield


class _Functions(TorchFunctionMode):
    """Sees calls of torch functions; switched off by torch while it handles one."""

    def __init__(self, recorder: Recorder, on_mixed: Callable[[Tensor, Tensor], None] | None) -> None:
        super().__init__()
        self._recorder, self._on_mixed = recorder, on_mixed

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        module = self._recorder.innermost
        if module is None:
            return function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            self._recorder.record(_call(self._recorder.name(module), module, *args, **kwargs))
        output = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention and self._on_mixed is not None:
            value = args[2] if len(args) > 2 else kwargs["value"]
            self._on_mixed(_four_axes(value.detach()), _four_axes(output.detach()))
        elif function in SOFTMAX:
            self._softmax(module, output, args, kwargs)
        elif function in CLOSED:
            self._recorder.note_closed(CLOSED[function])
        return output

    def _softmax(self, module: nn.Module, output: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record a softmax over the last axis whose rows and columns are as many as a sequence that runs has positions."""
        given = dict(zip(("input", "dim"), args, strict=False)) | dict(kwargs)
        logits, axis = given.get("input", given.get("self")), given.get("dim")
        if not isinstance(logits, Tensor) or axis not in (-1, logits.dim() - 1):
            return
        sequences = self._sequences(output)
        if sequences:
            weights, logits = (
                rearrange(t.detach(), "... query key -> (...) query key")
                .unflatten(0, (sequences, -1)) for t in (output, logits)
            )  # fmt: skip
            self._recorder.record_matrices(
                self._recorder.name(module), weights, logits, "only the softmax of its attention can be seen"
            )

    def _sequences(self, weights: Tensor) -> int:
        """How many sequences matrices "sequence head query key" or "(sequence head) query key" are of; 0 for no attention.

        A mixture of experts takes softmaxes too: over as many experts, not keys.
        """
        queries, keys = weights.shape[-2:] if weights.dim() in (3, 4) else (0, 0)
        for sequences, length in self._recorder.lengths:
            fits = weights.shape[0] == sequences if weights.dim() == 4 else (
                weights.shape[0] % sequences == 0 and weights.shape[0] > sequences
            )  # fmt: skip
            if fits and length == queries and (sequences, keys) in self._recorder.lengths:
                return sequences
        return 0


def _call(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """The arguments of `scaled_dot_product_attention`, with axes "sequence head position feature"."""
    return AttentionCall(
        module=name,
        query=_four_axes(query.detach()),
        key=_four_axes(key.detach()),
        mask=None if attn_mask is None else _mask_axes(attn_mask, query.dim()),
        causal=is_causal,
        scale=scale,
        keeps_cache=bool(getattr(module, "is_causal", False)),
    )


def _four_axes(tensor: Tensor) -> Tensor:
    """Heads between the first axis and the positions: one of them where there are three axes, all the others' product."""
    if tensor.dim() < 4:
        return tensor[(None,) * (3 - tensor.dim())][:, None]
    return tensor.flatten(1, -3)


def _mask_axes(mask: Tensor, dims: int) -> Tensor:
    """A mask for queries of so many axes, as one of queries with four."""
    if dims == 4 or mask.dim() == 2:
        return mask
    if dims == 3:
        return mask[:, None]
    raise CaptureError(
        f"queries must have at most 4 axes (sequence, head, query, feature) beside a mask, got {dims}. Join the others "
        "before calling scaled_dot_product_attention."
    )
