"""A probe for anybody's training loop: every so many steps, the spectra of a model's attention on fixed tokens.

    monitor = rankkit.Monitor(model, tokens, every=500, log=wandb.log)
    for step in range(steps):
        ...
        monitor(step)

Names of what is logged, which stay the same between versions:

    rank/MEASURE/LAYER       mean over sequences and heads; LAYER is layer_0, encoder/layer_0 or decoder/cross/layer_0
    rank/MEASURE/mean        over all layers too
    rank/failed              matrices that could not be measured (not finite); means are over the others
    rank/seconds_share       of the wall time since the monitor was made, spent in it

Where a measure is estimated (`method="matrix-free"`), MEASURE_lower and MEASURE_upper stand in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from rankkit.errors import CaptureError, ConfigurationError
from rankkit.hooks.capture import capture, capture_mode
from rankkit.hooks.factors import LayerAttention, LayerFactors
from rankkit.models.transformer import Transformer
from rankkit.spectra import DEFAULT_MEMORY_BUDGET, MatrixFreeConfig, MethodName, Spectrum, check_measures, spectrum
from rankkit.studies.monitoring.history import LayerValues, MonitorHistory, Probed, means, stacked
from rankkit.studies.monitoring.undisturbed import (
    device_of,
    is_compiled,
    uncompiled_parts,
    undisturbed,
    without_autocast,
)
from rankkit.studies.pretrained.files import transformers

__all__ = ["Log", "Monitor", "ProbeTokens"]

Log: TypeAlias = Callable[[dict[str, float], int], object]
"""Called with values by name and the step; `wandb.log` is one."""

ProbeTokens: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the model is called with: one tensor, positional arguments, or arguments by name."""

_UNPROBED: Final = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "ScriptModule", "PipelineStage")
"""Classes whose weights are not all here, or whose attention is not run by Python."""


class Monitor:
    """Measures a model's attention while it trains, without a trace in the training.

    The model runs once on the probe tokens, in evaluation mode and without gradients; each layer is measured as it comes
    and nothing of it is kept. Modes, gradients, buffers, generators, autocast, hooks and the attention implementation are
    afterwards as they were, also after an exception. Called inside an autocast context, the model runs under it.

    It works with a rankkit `Transformer`, Hugging Face models, and any module that calls `scaled_dot_product_attention`.
    What torch.compile has compiled (the model, or parts of it) runs uncompiled in the probe, so it may differ from training
    in its last bits. Of `DistributedDataParallel` and `DataParallel` the module inside is run: call the monitor on one rank.
    Models whose weights are not all on one rank (FSDP, DeepSpeed) and TorchScript are refused.

    Args:
        model: that trains; the very object, not a copy.
        tokens: what to call it with: `tokens`, `(tokens, prefix_lengths)` for a rankkit `Transformer`, or
            `{"input_ids": ..., "attention_mask": ...}`. Copied, and moved to where the model is.
        every: steps from one probe to the next.
        measures: names from `rankkit.spectra.MEASURES`.
        layers: which of each stack; None for all.
        heads: which of each layer; None for all.
        method: how singular values are computed; see `rankkit.spectrum`.
        matrix_free: how far an estimate goes.
        workers: threads for singular values; None for the available cores.
        memory_budget: bytes for dense matrices.
        log: called after every probe with values by name (see the module's docstring) and the step:
            `log=wandb.log`, or `log=lambda values, step: print(step, values)`.

    Raises:
        ConfigurationError: an argument that cannot hold, or a model that cannot be probed.
        CaptureError: the model has no attention that can be captured.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: ProbeTokens,
        *,
        every: int = 500,
        measures: Sequence[str] = ("effective_rank", "stable_rank", "sink_mass"),
        layers: Collection[int] | None = None,
        heads: Collection[int] | None = None,
        method: MethodName = "auto",
        matrix_free: MatrixFreeConfig | None = None,
        workers: int | None = None,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        log: Log | None = None,
    ) -> None:
        if every < 1:
            raise ConfigurationError(f"every must be at least 1, got {every}. Pass 1 to probe at every step.")
        if not measures:
            raise ConfigurationError("measures must hold at least one name, got none. Name one.")
        check_measures(measures)
        self._model, self._every, self._log = model, every, log
        self._inputs = _copied(tokens, _inside(model))
        self._layers, self._heads = layers, heads
        self._how = {
            "measures": tuple(measures), "method": method, "matrix_free": matrix_free, "workers": workers,
            "memory_budget": memory_budget,
        }  # fmt: skip
        self._probes: list[Probed] = []
        self._made = time.perf_counter()
        with uncompiled_parts(_inside(model)):
            self.mode, self.mode_reason = capture_mode(_inside(model))
        """How the model is looked into, and why; see `rankkit.capture`."""
        self.unavailable: dict[str, str] = {}
        """Measures that do not hold for some layer's matrices, with the reason; filled by probes."""

    def __call__(self, step: int) -> dict[str, float] | None:
        """Probe, if this step's turn has come: at multiples of `every`, once.

        Args:
            step: of the training loop, optimizer steps as a rule.

        Returns:
            What was logged; None where nothing was done.

        Raises:
            CaptureError: the model's attention cannot be captured.
        """
        if step % self._every or (self._probes and self._probes[-1].step == step):
            return None
        return self.probe(step)

    def probe(self, step: int) -> dict[str, float]:
        """Probe now, whatever the step.

        Args:
            step: recorded with the values.

        Returns:
            What was logged.

        Raises:
            CaptureError: the model's attention cannot be captured, or it has other layers than before.
        """
        inside = _inside(self._model)
        device = device_of(inside)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what training has queued is not the probe's time
        start = time.perf_counter()
        layers, failed = self._measured(inside, device)
        names, values = tuple(layers), stacked(list(layers.values()))
        if self._probes and self._probes[-1].layers != names:
            raise CaptureError(
                f"layers must be the same in every probe, got {', '.join(names)} after "
                f"{', '.join(self._probes[-1].layers)}. Make a new monitor for a model that has changed its shape."
            )
        seconds = time.perf_counter() - start
        self._probes.append(Probed(step=step, layers=names, values=values, failed=failed, seconds=seconds))
        logged = {**means(names, values), "rank/failed": float(failed), "rank/seconds_share": self.share}
        if self._log is not None:
            self._log(logged, step)
        return logged

    @property
    def share(self) -> float:
        """Share of the wall time since the monitor was made that was spent in probes, 0 to 1."""
        return sum(probed.seconds for probed in self._probes) / (time.perf_counter() - self._made)

    @property
    def history(self) -> MonitorHistory:
        """Everything so far, as arrays."""
        return MonitorHistory.of(self._probes)

    def as_callback(self) -> Any:
        """A `transformers.TrainerCallback` that probes before the first step and after every optimizer step.

        Only the main process probes. For the trainer's own loggers pass `log=lambda values, step: trainer.log(values)`.

        Raises:
            ConfigurationError: transformers is not installed.
        """
        transformers()
        from transformers import TrainerCallback

        monitor = self

        class MonitorCallback(TrainerCallback):
            """Calls a `Monitor`."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                """Probe the model as training finds it."""
                self.on_step_end(args, state, control)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                """Probe, if this step's turn has come."""
                if state.is_world_process_zero:
                    monitor(state.global_step)

        return MonitorCallback()

    def _measured(self, model: nn.Module, device: torch.device) -> tuple[dict[str, LayerValues], int]:
        """Values "sequence head" of every layer by its name, and how many matrices failed."""
        layers: dict[str, LayerValues] = {}
        failed = 0

        def receive(found: LayerAttention) -> None:
            nonlocal failed
            with without_autocast(model):
                layers[_name(found)], count = self._layer(found)
            failed += count

        positional, named = _moved(self._inputs, device)
        with undisturbed(model), capture(model, layers=self._layers, heads=self._heads, on_layer=receive):
            model(*positional, **named)
        return layers, failed

    def _layer(self, found: LayerAttention) -> tuple[LayerValues, int]:
        heads = (found.query if isinstance(found, LayerFactors) else found.matrices).shape[1]
        precision = (found.query if isinstance(found, LayerFactors) else found.matrices).dtype
        values: LayerValues = {}
        failed = 0
        for place, operator in found.operators_by_mask():
            measured = spectrum(operator, precision=precision, **cast(Any, self._how))
            self.unavailable.update(measured.unavailable)
            failed += int(measured.failed.sum())
            for name, tensor in _columns(measured).items():
                values.setdefault(name, np.full((len(found.masks), heads), np.nan))[place] = tensor.numpy(force=True)
        return values, failed


def _inside(model: nn.Module) -> nn.Module:
    """The module that does the work inside torch.compile's and data parallelism's wrappers.

    Raises:
        ConfigurationError: some of its weights are elsewhere, or Python does not run it.
    """
    while True:
        if is_compiled(model):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = cast(nn.Module, model.module)
        else:
            break
    for module in model.modules():
        refused = sorted({kind.__name__ for kind in type(module).__mro__} & set(_UNPROBED))
        if refused:
            raise ConfigurationError(
                f"model must be whole on one rank and run by Python, got a {refused[0]}. Probe saved checkpoints instead: "
                "rankkit spectrum."
            )
    return model


def _copied(tokens: ProbeTokens, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments that nobody else can change.

    Raises:
        ConfigurationError: there is no tensor among them, or a rankkit model is not told its prefixes.
    """
    if isinstance(model, Transformer) and isinstance(tokens, Tensor):
        raise ConfigurationError(
            "tokens must be (tokens, prefix_lengths) for a rankkit Transformer, got tokens alone. Pass (tokens, 0) for no "
            "prefix."
        )
    positional = (tokens,) if isinstance(tokens, Tensor) else () if isinstance(tokens, Mapping) else tuple(tokens)
    named = dict(tokens) if isinstance(tokens, Mapping) else {}
    if not any(isinstance(value, Tensor) for value in (*positional, *named.values())):
        raise ConfigurationError(
            f"tokens must hold a tensor, got {type(tokens).__name__} without one. Pass what the model is called with."
        )

    def copy(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, Tensor) else value

    return tuple(map(copy, positional)), {name: copy(value) for name, value in named.items()}


def _moved(inputs: tuple[tuple[Any, ...], dict[str, Any]], device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    positional, named = inputs
    return [move(value) for value in positional], {name: move(value) for name, value in named.items()}


def _name(found: LayerAttention) -> str:
    parts = (found.stack, "cross" if found.kind == "cross" else "", f"layer_{found.layer}")
    return "/".join(part for part in parts if part)


def _columns(measured: Spectrum) -> dict[str, Tensor]:
    """Values by measure, and the ends of brackets where it was estimated."""
    ends = [
        (f"{name}_{end}", values)
        for name, bracket in measured.brackets.items()
        for end, values in zip(("lower", "upper"), bracket, strict=True)
    ]
    return {**measured.measures, **dict(ends)}
