"""Where in a model a captured attention stands: its stack, its layer, and whether it looks at another sequence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

__all__ = ["Place", "Places", "is_cross"]

CROSS = re.compile(r"cross|enc_?dec|encoder_att(entio)?n", re.IGNORECASE)
"""Names of modules that attend to another sequence: crossattention, EncDecAttention, encoder_attn, ..."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of one attention in one forward pass."""

    stack: str
    """Empty where there is one stack of blocks."""
    layer: int
    """Counted from 0 over the stack and kind."""
    kind: str
    """`self` or `cross`."""
    module: str
    """Name in the model."""


def is_cross(module: str) -> bool:
    """Whether a module's name says that it attends to another sequence."""
    return any(CROSS.search(part) for part in module.split("."))


class Places:
    """Numbers the attentions of a model as a forward pass comes to them.

    A layer's number is that of its block in its stack; one more than the layer before where that number is taken
    already (blocks that are used again, blocks inside blocks) or where there is none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stacks = _stacks(model)
        self._last: dict[tuple[str, str], int] = {}

    def restart(self) -> None:
        """At the start of a forward pass."""
        self._last.clear()

    def name(self, module: nn.Module) -> str:
        """In the model; that of its class where it is no part of it."""
        name: str = self._names.get(id(module), type(module).__name__)
        return name

    def next(self, module: str, *, cross: bool) -> Place:
        """The place of the attention that is computed now.

        Args:
            module: name of the module that computes it.
            cross: whether it is known to look at another sequence; if not, its name may still say so.
        """
        kind = "cross" if cross or is_cross(module) else "self"
        stack, block = self._stack(module)
        last = self._last.get((stack, kind), -1)
        layer = max(block, last + 1)
        self._last[stack, kind] = layer
        return Place(stack, layer, kind, module)

    def _stack(self, module: str) -> tuple[str, int]:
        """The stack's name and the block's number, -1 outside blocks."""
        for prefix, stack in self._stacks.items():
            if module.startswith(prefix):
                block = module.removeprefix(prefix).split(".")[0]
                return stack, int(block) if block.isdigit() else -1
        return "", -1


def _stacks(model: nn.Module) -> dict[str, str]:
    """Lists of blocks with attention by their prefix, named by the first part in which the prefixes differ."""
    prefixes: list[str] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        inner = any(prefix.startswith(outer) for outer in prefixes)
        if isinstance(module, nn.ModuleList | nn.Sequential) and not inner and _has_attention(module):
            prefixes.append(prefix)
    if len(prefixes) == 1:
        return {prefixes[0]: ""}
    parts = [prefix.split(".") for prefix in prefixes]
    same = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), 0)
    return {prefix: part[same] for prefix, part in zip(prefixes, parts, strict=True)}


def _has_attention(blocks: nn.Module) -> bool:
    return any("att" in f"{name} {type(module).__name__}".lower() for name, module in blocks.named_modules())
