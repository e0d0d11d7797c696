"""What a measurement of a model would do: regions, swapped mask, padding and attributes of each of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.masks import Bidirectional, Causal, MaskKind, Window
from rankkit.studies.decomposition import ArmFacts
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import APPLIED, Plan, PlannedArm, chosen_numbers, region_methods
from rankkit.studies.pretrained.inputs import ModelInputs
from rankkit.studies.pretrained.probe import OTHER, AttentionGroup, LayerFacts

__all__ = ["ModelFacts", "SwapMask", "model_plan"]

_PLAIN_BASELINES: Final = ("uniform", "shuffled", "gaussian", "logits")
_UNKNOWN_TOKEN: Final = -1


@dataclass(frozen=True, slots=True)
class SwapMask:
    """The mask that is put on a model's own queries and keys, to see what the mask alone does."""

    kind: MaskKind
    """Causal, bidirectional or prefix."""
    prefix_length: int = 0
    """p of a prefix mask."""

    @classmethod
    def parsed(cls, text: str) -> SwapMask:
        """`causal`, `bidirectional` or `prefix:P`.

        Raises:
            ConfigurationError: something else.
        """
        name, _, length = text.partition(":")
        if name == "prefix" and length.isdecimal() and int(length) > 0:
            return cls(MaskKind.PREFIX, int(length))
        if text in (MaskKind.CAUSAL, MaskKind.BIDIRECTIONAL):
            return cls(MaskKind(text))
        raise ConfigurationError(
            f"swap_mask must be causal, bidirectional or prefix:P, got {text!r}. Write prefix:128 for p = 128."
        )

    def __str__(self) -> str:
        return f"prefix:{self.prefix_length}" if self.kind is MaskKind.PREFIX else str(self.kind)

    def refusal(self, facts: Sequence[LayerFacts]) -> str:
        """Why it cannot stand for the masks of these layers; empty where it can.

        A bias is known only where the model's own mask lets a query see the key.
        """
        for one in facts:
            if one.reason:
                return "there are matrices without queries and keys"
            if one.name in (OTHER, "cross", "padded cross"):
                return f"a mask of class {one.name} cannot be swapped"
            if one.has_bias and not isinstance(one.mask, Bidirectional):
                return "the bias of keys that the model hides is not known"
        own = {Causal(): MaskKind.CAUSAL, Bidirectional(): MaskKind.BIDIRECTIONAL}
        if all(own.get(one.mask) is self.kind for one in facts):
            return "it is the model's own"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What every group of one model's file says."""

    name: str
    """Of the model, as a group's name."""
    objective: str
    """What it was trained for, by its class."""
    steps: tuple[int, ...]
    """Of the checkpoints."""
    checkpoint_sha256: tuple[str, ...]
    """By step."""
    attributes: Mapping[str, str | float]
    """Of every group."""


def model_plan(
    groups: Sequence[AttentionGroup],
    facts: ModelFacts,
    inputs: ModelInputs,
    numbers: Sequence[int],
    config: MeasureConfig,
    swap: SwapMask | None,
    batch: int,
) -> Plan:
    """The plan of all groups: that of the first, whose arms carry their own.

    Args:
        groups: of the model.
        facts: that all groups share.
        inputs: the sequences that are measured.
        numbers: their labels.
        config: what to measure.
        swap: a mask to swap in, or None.
        batch: sequences in one forward pass.

    Raises:
        ConfigurationError: layers, heads, regions, baselines or masks that the model does not have.
    """
    if swap is not None:
        refusals = [swap.refusal(group.only(_layers(group, config))) for group in groups]
        if all(refusals):
            raise ConfigurationError(
                f"swap_mask must be one that the model's attention can have, got {swap}: {refusals[0]}. Leave it out."
            )
    _check_layers(groups, config)
    parts = [_part(group, facts, inputs, numbers, config, swap, batch) for group in groups]
    planned = [part for part in parts if part is not None]
    return replace(planned[0], arms=tuple(replace(part.arms[0], part=part) for part in planned))


def _check_layers(groups: Sequence[AttentionGroup], config: MeasureConfig) -> None:
    """Refuse layers that no stack has: stacks may differ in depth."""
    known = {facts.layer for group in groups for facts in group.layers}
    if config.layers is not None and not (config.layers and known.issuperset(config.layers)):
        raise ConfigurationError(
            f"layers must be within 0..{max(known)}, got {list(config.layers)}. Choose layers that there are."
        )


def _layers(group: AttentionGroup, config: MeasureConfig) -> tuple[int, ...]:
    """Of those asked for, the ones that a stack has."""
    known = [facts.layer for facts in group.layers]
    return tuple(known) if config.layers is None else tuple(layer for layer in known if layer in config.layers)


def _part(
    group: AttentionGroup,
    facts: ModelFacts,
    inputs: ModelInputs,
    numbers: Sequence[int],
    config: MeasureConfig,
    swap: SwapMask | None,
    batch: int,
) -> Plan | None:
    """The plan of one group; None where it has none of the layers."""
    layers = _layers(group, config)
    if not layers:
        return None
    chosen = group.only(layers)
    valid_rows, valid_keys = _valid(inputs, group)
    refusal = "not asked for" if swap is None else swap.refusal(chosen)
    applied = APPLIED[:1] if refusal else APPLIED
    p = 0 if swap is None or refusal else swap.prefix_length
    _check_lengths(valid_rows, valid_keys, group, p)
    _check_baselines(config, chosen, group)
    methods = region_methods(_possible(config, group, chosen, p), min(group.queries, group.keys), p)
    tokens = _tokens(inputs, group)
    return Plan(
        sequence_length=group.keys,
        queries=group.queries,
        prefix_length=p,
        regions=tuple(methods),
        applied=applied,
        layers=layers,
        heads=chosen_numbers("heads", config.heads, range(chosen[0].heads)),
        arms=(_arm(group, facts, config, chosen, tuple(methods), swap, refusal, inputs.policy, p),),
        steps=facts.steps,
        sequences=tokens,
        sequence_numbers=tuple(numbers),
        documents=inputs.documents,
        baselines=config.baselines,
        methods=methods,
        valid_rows=valid_rows,
        valid_keys=valid_keys,
        batch=batch,
    )


def _sides(group: AttentionGroup) -> tuple[str, str]:
    """Stacks that the queries and the keys are tokens of."""
    return group.stack, "encoder" if group.kind == "cross" else group.stack


def _tokens(inputs: ModelInputs, group: AttentionGroup) -> NDArray[np.int64]:
    """Token ids of the keys, "sequence key"; -1 where keys are not tokens (patches of an image)."""
    found = inputs.tokens(_sides(group)[1])
    if found is not None and found.shape[1] == group.keys:
        return found
    return np.full((len(inputs), group.keys), _UNKNOWN_TOKEN, dtype=np.int64)


def _valid(inputs: ModelInputs, group: AttentionGroup) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """What is no padding, "sequence query" and "sequence key"; None where nothing is padding."""
    found: list[NDArray[np.bool_] | None] = []
    for stack, length in zip(_sides(group), (group.queries, group.keys), strict=True):
        valid = inputs.valid(stack)
        if valid is not None and valid.shape[1] != length:
            raise ConfigurationError(
                f"padding must be of {length} positions (of {group.name or 'the model'}), got {valid.shape[1]}. Give "
                "sequences of one length."
            )
        found.append(valid)
    return found[0], found[1]


def _check_lengths(
    valid_rows: NDArray[np.bool_] | None, valid_keys: NDArray[np.bool_] | None, group: AttentionGroup, p: int
) -> None:
    sides = zip((valid_rows, valid_keys), (group.queries, group.keys), strict=True)
    shortest = min(whole if valid is None else int(valid.sum(axis=1).min()) for valid, whole in sides)
    least = max(2, p)
    if shortest < least:
        raise ConfigurationError(
            f"sequences must have at least {least} tokens{f' (prefix of swap_mask: {p})' if p > 2 else ''}, got {shortest}. "
            f"{'Shorten the prefix, or leave' if p > 2 else 'Leave'} out shorter ones."
        )


def _possible(config: MeasureConfig, group: AttentionGroup, layers: Sequence[LayerFacts], p: int) -> MeasureConfig:
    """The regions that these matrices have: another softmax needs logits, the prefix block a mask that closes it."""
    possible = ["full"]
    if group.kind == "self" and all(not facts.reason and facts.name != OTHER for facts in layers):
        possible.append("first_key_removed")
        closed = all(_closes_prefixes(facts) for facts in layers)
        possible += ["prefix_block", "prefix_block_first_key_removed"] if p and closed else []
    chosen = tuple(region for region in config.regions if region in possible)
    if not chosen:
        raise ConfigurationError(
            f"regions must be among {', '.join(possible)} for {group.name or 'this model'}, got "
            f"{', '.join(config.regions)}. Choose from them; a prefix block takes --swap-mask prefix:P over a causal mask."
        )
    return replace(config, regions=chosen)


def _closes_prefixes(facts: LayerFacts) -> bool:
    """Whether the first rows see no later key, whatever their number."""
    return facts.mask == Causal() or (isinstance(facts.mask, Window) and not facts.mask.ahead)


def _check_baselines(config: MeasureConfig, layers: Sequence[LayerFacts], group: AttentionGroup) -> None:
    """Refuse baselines that these matrices do not have."""
    possible: tuple[str, ...] = _PLAIN_BASELINES
    if any(not facts.has_plain_logits for facts in layers):
        possible = () if any(facts.reason or facts.name == OTHER for facts in layers) else ("shuffled",)
    if unknown := sorted(set(config.baselines) - set(possible)):
        raise ConfigurationError(
            f"baselines must be among {', '.join(possible) or 'none'} for {group.name or 'this model'} (logits: "
            f"{group.logits}), got {unknown[0]}. Leave it out."
        )


def _arm(
    group: AttentionGroup,
    facts: ModelFacts,
    config: MeasureConfig,
    layers: Sequence[LayerFacts],
    regions: Sequence[str],
    swap: SwapMask | None,
    refusal: str,
    policy: Mapping[str, str],
    p: int,
) -> PlannedArm:
    examples = group.examples([one.layer for one in layers], p, min(group.queries, group.keys))
    scales = {one.scale for one in layers}
    if config.keep_qk and len(scales) > 1:
        raise ConfigurationError("keep_qk must have one scale for all layers, got several. Name layers one by one.")
    attributes = {
        **policy,
        **facts.attributes,
        "stack": group.stack or "only",
        "masks": group.masks,
        "logits": group.logits,
        "swapped_mask": str(swap) if swap is not None and not refusal else f"none: {refusal}",
    }
    return PlannedArm(
        facts=ArmFacts(
            name=f"{facts.name}/{group.name}" if group.name else facts.name,
            mask=group.mask,
            objective=facts.objective,
            untrained=np.zeros((len(regions), len(layers)), dtype=np.bool_),
        ),
        kind=group.kind,
        seeds=(0,),
        checkpoint_sha256=(facts.checkpoint_sha256,),
        attributes=attributes,
        example=next(iter(examples.values())),
        features=layers[0].features if all(one.features == layers[0].features for one in layers) else None,
        logit_scale=scales.pop() if len(scales) == 1 else None,
        swapped=None if swap is None or refusal else swap.kind,
        examples=examples if len(examples) > 1 else {},
    )
