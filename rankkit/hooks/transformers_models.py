"""Hugging Face models: attention seen where they call the attention function that their configuration names.

`qk`: under a name of our own stands SDPA, and in front of it a look at queries, keys and mask; with it the mask function
of SDPA, for without one transformers drops the padding in silence. `eager`: the same with the model's own eager function,
for models that SDPA cannot serve (soft cap, sinks). Everything is as before when the context ends.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from types import ModuleType
from typing import Any, Final

from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks.recorder import AttentionCall, Recorder

__all__ = ["attention_mode", "pretrained_parts", "registered_attention", "with_attention"]

NUMBERS: Final = count()
"""Makes the registered names of captures inside captures differ."""
ASKS_BY_NAME: Final = re.compile(r"_attn_implementation\s*(==|!=|in|not in)\s*[^\n]*[\"']sdpa[\"']")
"""Code that treats SDPA under another name differently."""


def pretrained_parts(model: nn.Module) -> list[Any]:
    """Every `PreTrainedModel` in a module, itself first; none where transformers was never imported."""
    home = sys.modules.get("transformers.modeling_utils")
    return [] if home is None else [part for part in model.modules() if isinstance(part, home.PreTrainedModel)]


def attention_mode(parts: list[Any]) -> tuple[str, str]:
    """How to capture a model, and why.

    Args:
        parts: of the model, as from `pretrained_parts`.

    Returns:
        `qk`, `eager` or `torch`, and the reason.
    """
    for part in parts:
        name = type(part).__name__
        if not part._can_set_attn_implementation():
            return "torch", f"{name} does not let its attention function be set"
        if ASKS_BY_NAME.search(_source(part)):
            return "torch", f"{name} asks for SDPA by name"
    without = [type(part) for part in parts if not part._supports_sdpa]
    if not without:
        return "qk", f"{type(parts[0]).__name__} supports SDPA"
    for kind in without:
        if not hasattr(sys.modules[kind.__module__], "eager_attention_forward"):
            return "torch", f"{kind.__name__} supports no SDPA and has no eager function of its own"
    return "eager", f"{without[0].__name__} does not support SDPA"


def _source(part: Any) -> str:
    try:
        return inspect.getsource(sys.modules[type(part).__module__])
    except OSError:  # a class typed into a prompt has no file
        return ""


@contextmanager
def registered_attention(model: nn.Module, mode: str, recorder: Recorder) -> Iterator[None]:
    """Record the attention of a Hugging Face model while the context lasts.

    Args:
        model: with a `PreTrainedModel` in it.
        mode: `qk` or `eager`.
        recorder: gets the factors; in mode `eager` the matrices where factors do not give them back.

    Raises:
        CaptureError: another capture of this model is in another mode.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    before = {id(config): config._attn_implementation for config in _configurations(model)}
    mine = f"rankkit_{mode}_{next(NUMBERS)}"
    others = {name for name in before.values() if (name or "").startswith("rankkit_")}
    if not all(name.startswith(f"rankkit_{mode}_") for name in others):
        raise CaptureError(
            f"captures of one model must share a mode, got {mode} inside {min(others)}. Pass the same mode to both."
        )
    original = sdpa_attention_forward if mode == "qk" else _own_eager

    def inner(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """What this capture stands in front of: another capture's function, or the original."""
        name = before.get(id(getattr(module, "config", None)))
        return _registry()._global_mapping.get(name, original) if name in others else original

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        call = _call(recorder.name(module), module, query, key, attention_mask, kwargs, eager=mode == "eager")
        if mode == "qk":
            recorder.record(call)
            return inner(module)(module, query, key, value, attention_mask, **kwargs)
        output, weights = inner(module)(module, query, key, value, attention_mask, **kwargs)
        recorder.record(call, None if kwargs.get("dropout") else weights)  # with dropout they are not the softmax
        return output, weights

    mask = sdpa_mask if mode == "qk" else eager_mask
    with with_attention(model, mine, attention, mask), recorder.watching({model, *pretrained_parts(model)}):
        yield


@contextmanager
def with_attention(
    model: nn.Module, name: str, attention: Callable[..., Any] | None = None, mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Let a model use another attention implementation while the context lasts.

    Args:
        model: with a `PreTrainedModel` in it.
        name: of the implementation.
        attention: registered under that name; None where it is known to transformers.
        mask: the function that makes its masks.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    with ExitStack() as undo:
        for interface, function in ((AttentionInterface, attention), (AttentionMaskInterface, mask)):
            if function is not None:
                interface.register(name, function)
                undo.callback(interface._global_mapping.pop, name)
        for config in _configurations(model):
            undo.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation_internal)
            config._attn_implementation_internal = name  # the property would also set those inside it
        yield


def _configurations(model: nn.Module) -> list[Any]:
    """Every configuration that a module of the model holds: encoder and decoder have copies of their own."""
    from transformers import PreTrainedConfig

    held = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in held if isinstance(config, PreTrainedConfig)}.values())


def _registry() -> Any:
    from transformers import AttentionInterface

    return AttentionInterface


def _own_eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The eager function of the file that a module comes from."""
    home: ModuleType = sys.modules[type(module).__module__]
    if not hasattr(home, "eager_attention_forward"):
        raise CaptureError(
            f"{type(module).__name__} must have an eager_attention_forward in {home.__name__}, got none. Pass mode='torch'."
        )
    found: tuple[Tensor, Tensor | None] = home.eager_attention_forward(module, *args, **kwargs)
    return found


def _call(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
    *,
    eager: bool,
) -> AttentionCall:
    """The arguments of an attention function; SDPA knows no cap and no sink, whatever it is given."""
    given = kwargs.get("is_causal")
    is_causal = bool(getattr(module, "is_causal", True) if given is None else given)
    return AttentionCall(
        module=name,
        query=query,
        key=key,
        mask=mask,
        causal=is_causal and mask is None and not eager and (query.shape[-2] > 1 or key.shape[-2] == 1),
        scale=kwargs.get("scaling"),
        softcap=kwargs.get("softcap") if eager else None,
        bias=kwargs.get("position_bias"),
        sink=kwargs.get("s_aux") if eager else None,
        accumulation=query.dtype if eager else None,
        keeps_cache=bool(getattr(module, "is_causal", False)),
    )
