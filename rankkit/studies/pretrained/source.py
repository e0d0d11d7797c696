"""Attention of a Hugging Face model, or of any module that `rankkit.capture` knows, while it runs as it would have run."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from rankkit.errors import CaptureError, ConfigurationError
from rankkit.hooks.capture import capture, capture_mode
from rankkit.hooks.factors import LayerAttention
from rankkit.spectra import chosen_method
from rankkit.store import SEQUENCES_PER_CHUNK
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import Plan, shard_rows, spread
from rankkit.studies.measuring.source import Place, Receiver, SourceFacts
from rankkit.studies.pretrained.agreement import agreement
from rankkit.studies.pretrained.inputs import ModelInputs, check_vocabulary
from rankkit.studies.pretrained.plan import ModelFacts, SwapMask, model_plan
from rankkit.studies.pretrained.probe import AttentionGroup, LayerFacts, attention_groups, class_of
from rankkit.studies.pretrained.valid import valid_operator

__all__ = ["ModelSettings", "ModelSource", "Models", "Reader"]

DEFAULT_SAMPLES: Final = 32  # as for a run: means are then known to a few percent of a head's spread
"""Sequences, where none are asked for."""


class Models(Protocol):
    """The checkpoints of one model."""

    name: str
    """As a group's name."""
    steps: tuple[int, ...]
    """Rising."""
    sha256: tuple[str, ...]
    """Of the weights, by step."""

    @property
    def description(self) -> Mapping[str, Any]:
        """For the file's configuration."""
        ...

    def load(self, step: int) -> nn.Module:
        """The model at a step, in evaluation mode."""
        ...


class Reader(Protocol):
    """Gives a model something to read."""

    def read(self, model: nn.Module, length: int | None) -> ModelInputs:
        """All sequences that there are.

        Args:
            model: that reads them.
            length: tokens of each; None for a default.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How a model is measured, beside what is measured of it."""

    swap: SwapMask | None = None
    """Mask to put on its queries and keys instead of its own; None for none."""
    batch: int = SEQUENCES_PER_CHUNK
    """Sequences in one forward pass."""
    allow_disagreement: bool = False
    """Measure on where captured attention is not the model's own."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= SEQUENCES_PER_CHUNK:
            raise ConfigurationError(
                f"batch must be between 1 and {SEQUENCES_PER_CHUNK} (sequences in a chunk of the file), got {self.batch}. "
                "Choose one of these."
            )


class ModelSource:
    """One model at one or several checkpoints; every stack and kind of its attention is an arm."""

    def __init__(self, models: Models, reader: Reader, device: torch.device, settings: ModelSettings) -> None:
        self._models, self._reader, self._device, self._settings = models, reader, device, settings
        self._loaded: tuple[int, nn.Module] | None = None
        self._read: dict[int | None, ModelInputs] = {}
        self._groups: dict[int | None, tuple[AttentionGroup, ...]] = {}
        self._agreed: dict[tuple[int, int | None, int | None], dict[str, str | float]] = {}
        self._layers: dict[tuple[str, str, int], LayerFacts] = {}
        self._inputs: ModelInputs | None = None
        self._planned: tuple[ModelInputs, MeasureConfig, tuple[AttentionGroup, ...]] | None = None

    @property
    def models(self) -> Models:
        """What is measured."""
        return self._models

    @property
    def trained_length(self) -> int | None:
        """Positions that the model was made for, where its configuration says so."""
        found = getattr(getattr(self._model(self._models.steps[0]), "config", None), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def swapping(self, swap: SwapMask) -> ModelSource:
        """The same model and sequences, to be measured under another mask too."""
        found = copy.copy(self)
        found._settings = replace(self._settings, swap=swap)
        return found

    @property
    def facts(self) -> SourceFacts:
        """Where the numbers come from; after `plan`, for the sequences are part of it."""
        assert self._planned is not None, "a measurement is planned first"
        inputs, _, _ = self._planned
        model = self._model(self._models.steps[0])
        described = {
            **self._models.description,
            "class": type(model).__name__,
            "dtype": str(_dtype(model)),
            "inputs_sha256": inputs.sha256,
            "inputs": dict(inputs.policy),
            "swap_mask": None if self._settings.swap is None else str(self._settings.swap),
            "batch": self._settings.batch,
        }
        return SourceFacts(
            configuration=json.dumps(described, indent=1, sort_keys=True),
            certificate="",
            precision=_dtype(model),
            attributes={"model": self._models.name},
        )

    def plan(self, config: MeasureConfig) -> Plan:
        """Resolve what to measure against the model: it runs once, on the longest sequence.

        Raises:
            ConfigurationError: lengths, samples, layers, heads, regions, baselines or masks that it does not have.
            CaptureError: its attention cannot be seen, or is not what its own eager function computes.
        """
        _check_config(config)
        model = self._model(self._models.steps[0])
        whole = self._whole(model, config.sequence_length)
        groups = self._groups_of(model, config.sequence_length, whole)
        chosen = _chosen(config, len(whole), groups[0])
        shard = shard_rows(len(chosen), config.shard)
        every = whole[chosen]  # what a file says of itself is the same of all its shards
        self._inputs, self._planned = every[shard], (every, config, groups)
        self._layers = {(group.stack, group.kind, one.layer): one for group in groups for one in group.layers}
        facts = ModelFacts(
            name=self._models.name,
            objective=_objective(type(model).__name__),
            steps=self._models.steps,
            checkpoint_sha256=self._models.sha256,
            attributes=self._attributes(model, every) | self._agreement(self._models.steps[0]),
        )
        numbers = range(len(chosen))[shard]
        settings = self._settings
        return model_plan(groups, facts, self._inputs, numbers, config, settings.swap, settings.batch)

    def _whole(self, model: nn.Module, length: int | None) -> ModelInputs:
        """All sequences of that length."""
        if length not in self._read:
            found = self._reader.read(model, length)
            check_vocabulary(found, _vocabulary(model))
            self._read[length] = found
        return self._read[length]

    def _groups_of(self, model: nn.Module, length: int | None, whole: ModelInputs) -> tuple[AttentionGroup, ...]:
        if length not in self._groups:
            self._groups[length] = attention_groups(model, _arguments(model, whole[[whole.longest]].on(self._device)))
        return self._groups[length]

    def _attributes(self, model: nn.Module, inputs: ModelInputs) -> dict[str, str | float]:
        mode, reason = capture_mode(model)
        return {
            "architecture": type(model).__name__,
            "capture": f"{mode}: {reason}",
            "inputs_sha256": inputs.sha256,
            "revisions": str(self._models.description.get("revisions", "0: as given")),
        }

    def _agreement(self, step: int) -> dict[str, str | float]:
        """Of one checkpoint on the first sequences that are measured, checked once."""
        assert self._planned is not None, "the sequences have been chosen"
        inputs, config, groups = self._planned
        key = (step, config.sequence_length, config.samples)
        if key not in self._agreed:
            self._agreed[key] = agreement(
                self._model(step),
                inputs,
                groups,
                batch=self._settings.batch,
                memory_budget=config.memory_budget,
                device=self._device,
                allow_disagreement=self._settings.allow_disagreement,
            )
        return self._agreed[key]

    def visit(self, plan: Plan, place: Place, rows: slice, receive: Receiver, *, outputs: bool) -> None:
        """One forward pass."""
        assert not outputs, "the plan has refused outputs"
        assert self._inputs is not None, "a measurement is planned first"
        model = self._model(place.step)
        self._agreement(place.step)
        (arm,) = plan.arms
        kind, stack = arm.kind, str(arm.attributes["stack"])
        valid_rows, valid_keys = (
            None if valid is None else valid[rows] for valid in (plan.valid_rows, plan.valid_keys)
        )

        def hand_over(seen: LayerAttention) -> None:
            if (seen.kind, seen.stack or "only") != (kind, stack):
                return
            self._check(seen, place)
            receive(seen.layer, [valid_operator(seen, valid_rows, valid_keys)], None)

        arguments = _arguments(model, self._inputs[rows].on(self._device))
        with torch.no_grad(), capture(model, layers=plan.layers, heads=plan.heads, on_layer=hand_over):
            model(**arguments)

    def _check(self, seen: LayerAttention, place: Place) -> None:
        """Refuse a mask that is not what the file says of the layer."""
        expected = self._layers[seen.stack, seen.kind, seen.layer]
        if class_of(seen) != expected.name and not expected.covers(seen):
            raise CaptureError(
                f"layer {seen.layer} of {place.arm} must keep the mask that it had on the longest sequence, "
                f"{expected.name}, got {class_of(seen)}. Capture this model with rankkit.capture."
            )

    def _model(self, step: int) -> nn.Module:
        """The model at a step, kept until another is asked for."""
        if self._loaded is None or self._loaded[0] != step:
            self._loaded = None  # before the next is loaded, so that two never stand side by side
            self._loaded = step, self._models.load(step)
        return self._loaded[1]


def _check_config(config: MeasureConfig) -> None:
    """Refuse what would need a run."""
    if config.layer_output:
        raise ConfigurationError("layer_output must have a rankkit model, got another. Leave it out.")
    if config.seeds not in (None, (0,)):
        raise ConfigurationError(f"seeds must be 0 for a model, got {list(config.seeds or ())}. Leave them out.")
    if config.prefix_length is not None:
        raise ConfigurationError(
            f"prefix_length must stand in --swap-mask prefix:P for a model, got {config.prefix_length}. Leave it out."
        )
    if config.checkpoints not in ("last", "all"):
        raise ConfigurationError(
            f"checkpoints must be named as revisions for a model, got {config.checkpoints!r}. Use --revision A,B."
        )


def _chosen(config: MeasureConfig, available: int, group: AttentionGroup) -> list[int]:
    """Which sequences, evenly spread."""
    size = min(group.queries, group.keys)
    method, _ = chosen_method(config.method, size, size, config.memory_budget, config.measures)
    default = 1 if method == "matrix-free" else DEFAULT_SAMPLES
    wanted = min(default, available) if config.samples is None else config.samples
    if wanted > available:
        raise ConfigurationError(
            f"samples must be at most {available} (sequences in the text), got {wanted}. Give more text or ask for fewer."
        )
    return spread(available, wanted)


def _arguments(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """With logits of the last position alone, where a model can do that: those of all positions take much memory."""
    accepted = inspect.signature(model.forward).parameters
    return {**inputs, **({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})}


def _dtype(model: nn.Module) -> torch.dtype:
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def _vocabulary(model: nn.Module) -> int | None:
    """Rows of the table of tokens; None where a model has none."""
    find = getattr(model, "get_input_embeddings", None)
    table = find() if callable(find) else None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _objective(architecture: str) -> str:
    """What a class is trained for, by the end of its name."""
    known = {"ForCausalLM": "causal lm", "LMHeadModel": "causal lm", "ForMaskedLM": "masked lm"}
    return next((words for end, words in known.items() if architecture.endswith(end)), architecture)
