"""Proof on one batch that what was captured is the attention that the model applies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks.any_module import watched_functions
from rankkit.hooks.capture import Mode, capture, capture_mode
from rankkit.hooks.factors import LayerAttention, LayerFactors, LayerMatrices
from rankkit.hooks.masks_seen import SeenMask
from rankkit.hooks.parts import keys_of_heads, visible_rows
from rankkit.hooks.recorder import AttentionCall, Recorder
from rankkit.hooks.transformers_models import registered_attention, with_attention

__all__ = ["Agreement", "check_against_eager"]

TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Entries of attention that differ by more are not the model's. Rounding grows with depth and logits: small float32 models
differ by 1e-6, logits of 100 by 1e-5; a forgotten mask or scale by 0.1 and more, in every layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far capture is from the model itself."""

    mode: str
    """How the model was captured."""
    reason: str
    """Why so."""
    against: str
    """`eager`: the maps of the model's own eager attention in a forward pass of its own. `values`: what
    scaled_dot_product_attention made of the values, where a model has no eager attention that must be the same.
    `softmax`: nothing, for every matrix is the model's own softmax."""
    matrices: float
    """Largest difference: of an entry of A; under `values` of an entry of A V, divided by the largest value. Rows of
    padding are left out."""
    outputs: float
    """Largest difference of the model's output with and without capture; exactly 0 is asked for."""
    compared: int
    """How many matrices were compared."""
    tolerance: float
    """Of `matrices`, for the dtype that the model computes attention in."""

    @property
    def holds(self) -> bool:
        """Whether the output kept its bits and no entry differs by more than the tolerance."""
        return self.outputs == 0 and self.matrices <= self.tolerance


class _Comparison:
    """The largest difference so far."""

    def __init__(self) -> None:
        self.largest, self.compared = 0.0, 0
        self.dtype = torch.float64

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Of the matrices of one sequence."""
        difference = float((ours - theirs).abs().nan_to_num(nan=torch.inf).max()) if ours.numel() else 0.0
        self.largest, self.compared = max(self.largest, difference), self.compared + len(ours)
        self.dtype = theirs.dtype


def check_against_eager(
    model: nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    mode: Mode = "auto",
) -> Agreement:
    """Compare captured attention with the model's own, layer by layer, and its output with and without capture.

    Needs the queries and keys of all layers and the matrices of one, and three forward passes.

    Args:
        model: in evaluation mode; any but a rankkit `Transformer`, whose kernel is what is hooked.
        inputs: of one batch, by name or by position; without a key-value cache.
        layers: as for `capture`.
        heads: as for `capture`.
        mode: as for `capture`.

    Raises:
        CaptureError: as `capture`, or the model is in training mode or rankkit's own.
    """
    chosen, reason = capture_mode(model, mode)
    if chosen == "own":
        raise CaptureError(
            f"model must not be rankkit's own, got {type(model).__name__}. Its kernel is what is hooked: leave the check "
            "out."
        )
    if model.training:
        raise CaptureError(
            f"model must be in evaluation mode, got {type(model).__name__} in training mode. Call model.eval() first."
        )

    def run() -> Any:
        with torch.no_grad():
            return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)

    with _implementation(model, chosen):
        plain = list(_tensors(run()))
    comparison = _Comparison()
    compare = _with_values if chosen == "torch" else _with_eager
    during = list(_tensors(compare(model, run, comparison, layers, heads, mode)))
    outputs = max((_difference(*pair) for pair in zip(plain, during, strict=True)), default=0.0)
    return Agreement(
        mode=chosen,
        reason=reason,
        against="softmax" if not comparison.compared else "values" if chosen == "torch" else "eager",
        matrices=comparison.largest,
        outputs=outputs,
        compared=comparison.compared,
        tolerance=TOLERANCE[comparison.dtype],
    )


def _implementation(model: nn.Module, mode: str) -> AbstractContextManager[None]:
    """The attention that a captured forward pass is to have the bits of."""
    return nullcontext() if mode == "torch" else with_attention(model, "sdpa" if mode == "qk" else "eager")


def _with_eager(
    model: nn.Module,
    run: Callable[[], Any],
    comparison: _Comparison,
    layers: Collection[int] | None,
    heads: Collection[int] | None,
    mode: Mode,
) -> Any:
    """Capture, then let the eager attention make each layer's maps; returns the captured pass's output."""
    with capture(model, layers=layers, heads=heads, mode=mode) as captured:
        output = run()
    waiting = iter(captured.found)
    queries: dict[str, tuple[SeenMask, ...]] = {}  # of a stack: its own attention says which queries are padding

    def compare(theirs: LayerAttention) -> None:
        ours = next(waiting)
        assert isinstance(theirs, LayerMatrices)
        assert (ours.module, ours.layer, ours.kind) == (theirs.module, theirs.layer, theirs.kind)
        if ours.kind == "self":
            queries[ours.stack] = ours.seen
        if isinstance(ours, LayerFactors):
            _compare_layer(ours, theirs, queries.get(ours.stack, ours.seen), comparison)

    with registered_attention(model, "eager", _Maps(model, layers, heads, compare)):
        run()
    return output


class _Maps(Recorder):
    """Hands over what the eager function returned."""

    def record(self, call: AttentionCall, weights: Tensor | None = None) -> None:
        """The weights, whatever the factors are."""
        assert weights is not None  # in evaluation mode there is no dropout
        self.record_weights(call, weights, "asked for")


def _compare_layer(
    ours: LayerFactors, theirs: LayerMatrices, queries: tuple[SeenMask, ...], comparison: _Comparison
) -> None:
    """Every sequence, on the rows that are no padding; inf where the two do not agree on those."""
    for sequence, operator in enumerate(ours.operators()):
        seen, map_ = ours.seen[sequence], theirs.matrices[sequence]
        rows, their_rows = (visible_rows(each, operator.rows) for each in (seen, theirs.seen[sequence]))
        agreed = torch.equal(rows, their_rows)
        rows = (rows & visible_rows(queries[sequence], operator.rows)).to(map_.device)
        matrix = operator.dense(_at_least_float32(map_))
        if seen.keys is not None:
            matrix = torch.zeros_like(map_, dtype=matrix.dtype).index_copy_(-1, _numbers(seen.keys, map_), matrix)
        comparison.add(matrix[:, rows], map_[:, rows] if agreed else torch.full_like(map_[:, rows], torch.inf))


def _numbers(keys: slice, like: Tensor) -> Tensor:
    return torch.arange(keys.start, keys.stop, device=like.device)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _with_values(
    model: nn.Module,
    run: Callable[[], Any],
    comparison: _Comparison,
    layers: Collection[int] | None,
    heads: Collection[int] | None,
    _: Mode,
) -> Any:
    """Compare A V with what scaled_dot_product_attention returned, call by call; returns the captured pass's output."""
    chosen = None if heads is None else sorted(set(heads))
    last: list[LayerAttention] = []

    def compare(value: Tensor, mixed: Tensor) -> None:
        if not last:
            return  # a layer that was not asked for
        factors = last.pop()
        assert isinstance(factors, LayerFactors)
        values = keys_of_heads(value, mixed.shape[1], chosen)
        for sequence, operator in enumerate(factors.operators()):
            seen = factors.seen[sequence]
            rows = visible_rows(seen, operator.rows).to(mixed.device)
            own = values[sequence].to(_at_least_float32(value))
            theirs = mixed[sequence] if chosen is None else mixed[sequence, chosen]
            product = operator.dense(own.dtype) @ (own if seen.keys is None else own[:, seen.keys])
            largest = float(own.abs().max()) or 1.0
            comparison.add(product[:, rows] / largest, theirs[:, rows] / largest)

    with watched_functions(model, Recorder(model, layers, heads, _keep_factors(last)), compare):
        return run()


def _keep_factors(last: list[LayerAttention]) -> Callable[[LayerAttention], None]:
    def keep(found: LayerAttention) -> None:
        last[:] = [found] if isinstance(found, LayerFactors) else []

    return keep


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every floating-point tensor of a model's output; caches are no part of it."""
    if isinstance(output, Tensor):
        yield from (output,) if output.is_floating_point() else ()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def _difference(first: Tensor, second: Tensor) -> float:
    """Largest difference, 0 where a nan meets a nan; inf for other shapes and other nans."""
    if first.shape != second.shape:
        return float("inf")
    both = first.isnan() & second.isnan()
    return float((first - second).abs().masked_fill(both, 0).nan_to_num(nan=torch.inf).max()) if first.numel() else 0.0
