"""Running somebody else's model in the middle of its training, and leaving everything as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["device_of", "is_compiled", "uncompiled_parts", "undisturbed", "without_autocast"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients while the context lasts; afterwards training goes on as if nothing had been.

    Every module's own `training` flag and other attributes, every buffer, the states of torch's generators on the CPU and
    on CUDA, autocast and the stance of torch.compile are as before, also after an exception; no gradient is touched. Flags
    are set one by one rather than by `model.eval()`, which modules may override (to merge weights, say). What torch.compile
    has compiled runs uncompiled.

    Args:
        model: any.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(_generators())
        undo.enter_context(_without_compilation())
        for device in _autocast_devices(model):
            undo.enter_context(_without_autocast_cache(device))
        undo.enter_context(torch.no_grad())
        undo.enter_context(_kept_state(model))
        undo.enter_context(uncompiled_parts(model))
        for module in model.modules():
            module.training = False
        yield


@contextlib.contextmanager
def uncompiled_parts(model: nn.Module) -> Iterator[None]:
    """What torch.compile has wrapped inside a model stands there itself while the context lasts."""
    wrapped = [
        (module._modules, name, child)
        for module in model.modules()
        for name, child in module._modules.items()
        if child is not None and is_compiled(child)
    ]
    try:
        for children, name, child in wrapped:
            children[name] = child._modules["_orig_mod"]
        yield
    finally:
        for children, name, child in wrapped:
            children[name] = child


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made this wrapper."""
    return "_orig_mod" in module._modules


@contextlib.contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Arithmetic in the dtypes of its operands: a measurement must not be rounded because the model is."""
    with contextlib.ExitStack() as undo:
        for device in _autocast_devices(model):
            undo.enter_context(torch.autocast(device, enabled=False))
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weight or buffer is; the CPU where it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _autocast_devices(model: nn.Module) -> list[str]:
    return sorted({"cpu", device_of(model).type})


def _generators() -> contextlib.AbstractContextManager[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices, device_type="cuda")


def _without_compilation() -> contextlib.AbstractContextManager[object]:
    """Nothing is compiled before Dynamo was imported, which takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _without_autocast_cache(device: str) -> contextlib.AbstractContextManager[object]:
    """Autocast as the caller has it, without its cache.

    In older torch weights that were cast without gradients stay in the cache, and the caller's next forward pass uses
    them: its gradients are lost in silence.
    """
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


@contextlib.contextmanager
def _kept_state(model: nn.Module) -> Iterator[None]:
    """Every attribute of every module, and what its buffers hold, as they were.

    A forward pass may change them in evaluation mode too: counters, rotary tables that grow with their recorded length.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    copies = [
        (buffer, buffer.detach().clone())
        for _, _, buffers in before
        for buffer in buffers.values()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            _restore(vars(module), attributes)
            _restore(module._buffers, buffers)
        for buffer, copy in copies:
            if not torch.equal(buffer, copy):
                buffer.copy_(copy)


def _restore(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    now.update(before)
