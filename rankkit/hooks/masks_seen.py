"""Masks told from what a model really used: nothing with `is_causal`, a boolean tensor, or one that is added.

A mask value is only given (`Causal`, `Prefix`, ...) where every entry agrees with its definition `allowed(n)`. Anything
else is `other`: all keys count as visible and the hidden ones get a bias of -inf, which switches the theorems off. A
position of self-attention whose key nobody sees is padding: its row, whatever it holds, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankkit.hooks.biases_seen import bias_of
from rankkit.masks import Backward, Bidirectional, Causal, Cross, LayerMask, Mask, Padded, Prefix, Window
from rankkit.operators import Bias, DenseBias

__all__ = ["HIDDEN", "MaskReader", "SeenMask", "classify", "mask_name"]

HIDDEN = -3e4
"""A number of at most this, added to a logit, hides the key: models write -inf or the least number of a dtype (-65504 in
float16). No bias comes near it, and exp(-3e4) is 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenMask:
    """Who sees whom in one sequence, and what is added to the logits of those who do."""

    mask: Mask
    """Of the queries and the visible keys."""
    name: str
    """Of its class, as `mask_name` gives it, or `other`."""
    bias: Bias | None = None
    """With leading axis "head" of size 1 or that of the layer."""
    keys: slice | None = None
    """Those keys of another sequence that are not padding; None for all."""


def mask_name(mask: LayerMask) -> str:
    """The class in lower case, with `padded` before it where there is padding: `causal`, `padded window`."""
    name = type(mask).__name__.lower()
    return f"{name} {mask_name(mask.mask)}" if isinstance(mask, Padded) else name


class MaskReader:
    """Classifies the masks of one forward pass, each distinct tensor once.

    Tensors are told apart by memory and version, and held until `forget`, so that their memory is not used again.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], tuple[SeenMask, ...]] = {}
        self._held: list[Tensor | None] = []

    def forget(self) -> None:
        """At the end of a forward pass."""
        self._seen.clear()
        self._held.clear()

    def read(
        self, mask: Tensor | None, added: Tensor | None, *, causal: bool, shape: tuple[int, int, int], kind: str
    ) -> tuple[SeenMask, ...]:
        """One per sequence; as `classify`."""
        key = (_identity(mask), _identity(added), mask is None and causal, shape, kind)
        if key not in self._seen:
            self._seen[key] = classify(mask, added, causal=causal, shape=shape, kind=kind)
            self._held += [mask, added]
        return self._seen[key]


def _identity(tensor: Tensor | None) -> tuple[object, ...] | None:
    if tensor is None:
        return None
    version = 0 if tensor.is_inference() else tensor._version  # written to in place, it is another mask
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride(), version


def classify(
    mask: Tensor | None, added: Tensor | None, *, causal: bool, shape: tuple[int, int, int], kind: str
) -> tuple[SeenMask, ...]:
    """What the mask of each sequence is; equal neighbours share one value.

    Args:
        mask: "sequence head query key", the first two of size 1 where they do not matter: bool, True where a query sees
            a key, or floating-point, added to the logits; None for none.
        added: a bias beside the mask, same axes, or None.
        causal: whether row i sees keys 0..i alone; decides where `mask` is None.
        shape: sequences, queries, keys.
        kind: `self` or `cross`.
    """
    sequences, queries, keys = shape
    if mask is None and added is None and (not causal or queries == keys):
        return (_without_tensors(causal, queries, keys, kind),) * sequences
    if mask is None:
        device = None if added is None else added.device
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        mask = mask.tril() if causal else mask
    found: list[SeenMask] = []
    last: list[Tensor] = []
    for sequence in range(sequences):
        own = [tensor[min(sequence, len(tensor) - 1)] for tensor in (mask, added) if tensor is not None]
        same = found and all(map(_equal, own, last))
        found.append(found[-1] if same else _of_sequence(*own, shape=(queries, keys), kind=kind))
        last = own
    return tuple(found)


def _without_tensors(causal: bool, queries: int, keys: int, kind: str) -> SeenMask:
    mask: Mask = Causal() if causal else Bidirectional() if kind == "self" else Cross(queries, keys)
    return SeenMask(mask=mask, name=mask_name(mask))


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def _of_sequence(mask: Tensor, added: Tensor | None = None, *, shape: tuple[int, int], kind: str) -> SeenMask:
    """Of "head query key"."""
    by_head = (mask if mask.dtype == torch.bool else mask > HIDDEN).expand(-1, *shape)
    bias = added if mask.dtype == torch.bool else mask if added is None else mask + added
    bias = None if bias is None else bias.expand(-1, *shape)
    allowed = by_head[0]
    inside = _one_run(allowed.any(dim=0)) if len(by_head) == 1 or bool((by_head == allowed).all()) else None
    if inside is None:
        return _other(by_head, bias, kind)
    if kind == "cross":
        return _between(allowed, bias, inside) or _other(by_head, bias, kind)
    inner = _within(allowed[inside, inside])
    if inner is None:
        return _other(by_head, bias, kind)
    length = inside.stop - inside.start
    value = inner if length == len(allowed) else Padded(inner, length, inside.start)
    return SeenMask(
        mask=value, name=mask_name(value), bias=None if bias is None else bias_of(bias, allowed, inside)
    )  # fmt: skip


def _one_run(seen: Tensor) -> slice | None:
    """Where a vector is True, if that is one run."""
    positions = seen.nonzero()[:, 0]
    if len(positions) == 0:
        return None
    start, stop = int(positions[0]), int(positions[-1]) + 1
    return slice(start, stop) if stop - start == len(positions) else None


def _within(allowed: Tensor) -> Mask | None:
    """The mask of self-attention with this definition; what the first and the last row see leaves few to compare."""
    n = len(allowed)
    first, last = int(allowed[0].sum()), int(allowed[-1].sum())
    candidates: list[Mask] = []
    if (first, last) == (1, n):
        candidates = [Causal()]
    elif (first, last) == (n, 1):
        candidates = [Backward()]
    elif (first, last) == (n, n):
        candidates = [Bidirectional()]
    elif last == n:
        candidates = [Prefix(first)]
    if first and last:
        candidates.append(Window(last - 1, first - 1))
    return next((mask for mask in candidates if torch.equal(mask.allowed(n).to(allowed.device), allowed)), None)


def _between(allowed: Tensor, bias: Tensor | None, keys: slice) -> SeenMask | None:
    """Attention to another sequence, of which every query sees the same keys: its padding is left out."""
    visible = allowed[:, keys]
    if not bool(visible.all()):
        return None
    whole = visible.shape == allowed.shape
    added = None if bias is None or not bool(bias[..., keys].any()) else DenseBias(values=bias[..., keys])
    return SeenMask(
        mask=Cross(*visible.shape), name="cross" if whole else "padded cross", bias=added, keys=None if whole else keys
    )


def _other(allowed: Tensor, bias: Tensor | None, kind: str) -> SeenMask:
    """Hidden by a bias of -inf: "head query key"."""
    numbers = torch.zeros((), device=allowed.device) if bias is None else bias
    values = torch.where(allowed, numbers, -torch.inf)
    mask = Bidirectional() if kind == "self" else Cross(*allowed.shape[1:])
    return SeenMask(mask=mask, name="other", bias=DenseBias(values=values))
