"""Attention of a run's trained models."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import ConfigurationError, MatchError, RunError
from rankkit.hooks.capture import capture
from rankkit.hooks.factors import LayerFactors
from rankkit.masks import MaskKind, Mixed
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import Transformer
from rankkit.store.schema import TRAINED_ENOUGH
from rankkit.studies.certificate import build_certificate, certificate_problems
from rankkit.studies.decomposition import arms_of
from rankkit.studies.losses import ArmLosses, compare_losses
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import (
    APPLIED,
    Plan,
    PlannedArm,
    chosen_numbers,
    factor_example,
    own_regions,
    region_methods,
    shard_rows,
    spread,
    swapped_mask,
)
from rankkit.studies.measuring.source import Place, Receiver, SourceFacts
from rankkit.studies.run import Run
from rankkit.training.checkpoints import load_model, read_facts

__all__ = ["RunSource", "plan_measurement"]

DEFAULT_SAMPLES: Final = 32  # means over heads and sequences are then known to a few percent of a head's spread


class RunSource:
    """The models of a run, under the fused forward pass that they were trained with."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run = run
        self._device = device
        self._loaded: tuple[Place, Transformer] | None = None

    @property
    def facts(self) -> SourceFacts:
        """Configuration, proof of the match, and precision.

        Raises:
            MatchError: the arms do not match.
        """
        certificate = build_certificate(self.run)
        unmatched = certificate_problems(certificate)
        if unmatched:
            raise MatchError(f"arms must match to be compared, but {unmatched[0]}. See rankkit inspect RUN --verify.")
        return SourceFacts(
            configuration=self.run.directory.configuration.read_text(encoding="utf-8"),
            certificate=json.dumps(certificate, indent=1, sort_keys=True),
            precision=self._precision,
        )

    @property
    def _precision(self) -> torch.dtype:
        """Dtype in which the models run here: their own on CUDA, float32 where there is no autocast for it."""
        own = self.run.config.base.train.precision == "bfloat16" and self._device.type == "cuda"
        return torch.bfloat16 if own else torch.float32

    def plan(self, config: MeasureConfig) -> Plan:
        """What a measurement would do; see `plan_measurement`."""
        return plan_measurement(self.run, config)

    def visit(self, plan: Plan, place: Place, rows: slice, receive: Receiver, *, outputs: bool) -> None:
        """One forward pass."""
        model = self._model(place)
        tokens = torch.from_numpy(plan.sequences[rows].copy()).to(self._device)
        autocast: AbstractContextManager[object] = nullcontext()
        if self._precision != torch.float32:
            autocast = torch.autocast(self._device.type, dtype=self._precision)

        def hand_over(factors: LayerFactors) -> None:
            # One prefix length for all samples: parts differ in heads alone.
            receive(factors.layer, [operator for _, operator in factors.operators_by_mask()], factors.output)

        listening = capture(model, layers=plan.layers, heads=plan.heads, on_layer=hand_over, outputs=outputs)
        with torch.no_grad(), autocast, listening:
            model(tokens, plan.prefix_length)

    def _model(self, place: Place) -> Transformer:
        """The model of a checkpoint, kept until another is asked for."""
        if self._loaded is None or self._loaded[0] != place:
            folder = self.run.directory.checkpoint(place.arm, place.seed, place.step)
            model = load_model(folder, self.run.config.arm(place.arm).model).to(self._device)
            self._loaded = place, model
        return self._loaded[1]


def plan_measurement(run: Run, config: MeasureConfig) -> Plan:
    """Resolve what to measure against a run.

    Raises:
        RunError: no arm has finished a seed, arms have finished different seeds, or checkpoints differ between units.
        ConfigurationError: layers, heads, seeds, lengths or regions that this run does not have.
    """
    model = run.config.base.model
    n = config.sequence_length or model.sequence_length
    if n > model.sequence_length and model.position == "learned":
        raise ConfigurationError(
            f"sequence_length must be at most {model.sequence_length} with learned positions, got {n}. Shorten it."
        )
    p = run.prefix_length * n // model.sequence_length if config.prefix_length is None else config.prefix_length
    if not 0 <= p <= n:
        raise ConfigurationError(f"prefix_length must be between 0 and {n} (sequence_length), got {p}. Shorten it.")
    seeds = chosen_numbers("seeds", config.seeds, _finished_seeds(run))
    steps = config.steps(_saved_steps(run, seeds))
    methods = region_methods(config, n, p)
    estimated = any(method == "matrix-free" for method, _ in methods.values())
    tokens, documents = _samples(run, config, n, default=1 if estimated else DEFAULT_SAMPLES)
    layers = chosen_numbers("layers", config.layers, range(model.num_layers))
    kept = shard_rows(len(tokens), config.shard)
    heads = chosen_numbers("heads", config.heads, range(model.num_heads))
    regions = {arm: _regions(run, arm, tuple(methods), (n, p)) for arm in run.config.arms}
    methods = {name: method for name, method in methods.items() if any(name in those for those in regions.values())}
    losses = compare_losses(run)
    whole = Plan(
        sequence_length=n,
        queries=n,
        prefix_length=p,
        regions=tuple(methods),
        applied=APPLIED,
        layers=layers,
        heads=heads,
        arms=tuple(
            _arm(run, arm, config, regions[arm], losses.arm(arm), (layers, heads), seeds, steps, (n, p))
            for arm in run.config.arms
        ),
        steps=steps,
        sequences=tokens[kept],
        sequence_numbers=tuple(range(len(tokens))[kept]),
        documents=documents[kept],
        baselines=config.baselines,
        methods=methods,
    )
    return replace(whole, arms=tuple(_with_part(whole, arm, regions[arm.name]) for arm in whole.arms))


def _regions(run: Run, arm: str, regions: tuple[str, ...], lengths: tuple[int, int]) -> tuple[str, ...]:
    """Those of an arm, for sequences of n tokens with a prefix of p."""
    (n, p), kind = lengths, run.config.arm(arm).model.mask
    swapped = swapped_mask(kind)
    assert swapped is not None, "models have masks of a kind"
    found = own_regions((*kind.masks(p), *swapped.masks(p)), regions, n, p)
    if not found:
        raise ConfigurationError(
            f"regions must exist in every arm, got {', '.join(regions)}, which arm {arm} (mask {kind}) lacks: rows of its "
            "prefix see beyond it. Measure region full too."
        )
    return found


def _with_part(plan: Plan, arm: PlannedArm, regions: tuple[str, ...]) -> PlannedArm:
    """An arm that lacks some of the regions with a plan of its own."""
    if regions == plan.regions:
        return arm
    left_out = ", ".join(region for region in plan.regions if region not in regions)
    said = {"regions_left_out": f"{left_out}: rows of the prefix see beyond it"}
    arm = replace(arm, attributes={**arm.attributes, **said})
    methods = {region: plan.methods[region] for region in regions}
    return replace(arm, part=replace(plan, arms=(arm,), regions=regions, methods=methods))


def _arm(
    run: Run,
    name: str,
    config: MeasureConfig,
    regions: tuple[str, ...],
    losses: ArmLosses,
    places: tuple[tuple[int, ...], tuple[int, ...]],
    seeds: tuple[int, ...],
    steps: tuple[int, ...],
    lengths: tuple[int, int],
) -> PlannedArm:
    """One arm, in layers and heads that were chosen, for sequences of n tokens with a prefix of p."""
    (n, p), (layers, heads), model = lengths, places, run.config.arm(name).model
    (facts,) = (facts for facts in arms_of(run, regions, layers) if facts.name == name)
    shares = _shares(model, layers, heads)
    examples = {words: factor_example(facts.mask, p, n, which=which) for words, which in shares.items()}
    return PlannedArm(
        facts=facts,
        seeds=seeds,
        checkpoint_sha256=_checkpoints(run, name, seeds, steps),
        initial_sha256=_checkpoints(run, name, seeds, (0,)) if "init" in config.baselines else (),
        attributes=_token_policy(run)
        | _mask_attributes(model, shares, p)
        | {TRAINED_ENOUGH: int(losses.is_trained_enough)},
        example=next(iter(examples.values())),
        output_components=min(n, model.d_model) if config.layer_output else None,
        features=model.head_dim,
        logit_scale=model.head_dim**-0.5,
        examples=examples if len(examples) > 1 else {},
    )


def _shares(model: ModelConfig, layers: tuple[int, ...], heads: tuple[int, ...]) -> dict[str, int]:
    """Which of its kind's masks an arm has where, by words for the chosen layers or heads."""
    word, first = "layers", model.mask_in(0, 0)
    applied = {layer: model.mask_in(layer, 0) for layer in layers}
    if isinstance(first, Mixed):  # then all layers are alike
        word, applied = "heads", {head: first.masks[head] for head in heads}
    groups: dict[int, list[int]] = {}
    for number, mask in applied.items():
        groups.setdefault(model.mask.masks(0).index(mask), []).append(number)
    return {f"{word} {', '.join(map(str, numbers))}": which for which, numbers in groups.items()}


def _mask_attributes(model: ModelConfig, shares: Mapping[str, int], p: int) -> dict[str, str]:
    """What a group says of masks and logits, where they are not those of a causal or prefix model."""
    kind, found = model.mask, {}
    if kind not in (MaskKind.CAUSAL, MaskKind.PREFIX):
        found["swapped_mask"] = str(swapped_mask(kind))
    if kind.is_mixed:
        found["masks"] = "; ".join(f"{words}: {kind.masks(p)[which]}" for words, which in shares.items())
    if model.position == "alibi":
        found["logits"] = "bias"  # of alibi; whoever measures kept factors again must not leave it out
    return found


def _checkpoints(run: Run, arm: str, seeds: tuple[int, ...], steps: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(read_facts(run.directory.checkpoint(arm, seed, step)).weights_sha256 for step in steps) for seed in seeds
    )


def _token_policy(run: Run) -> dict[str, str]:
    described = run.tokens().description
    separator = "each ended by the document token" if described.get("document_token") is not None else "as they come"
    return {
        "bos": "none: sequences are windows of the packed tokens",
        "packing": f"documents one after another, {separator}; split: {described['split']}",
        "truncation": "none: windows do not overlap",
    }


def _finished_seeds(run: Run) -> tuple[int, ...]:
    units = tuple(unit for unit in run.config.units if run.finished(*unit))
    seeds = {arm: tuple(seed for name, seed in units if name == arm) for arm in run.config.arms}
    if not units or len(set(seeds.values())) > 1:
        raise RunError(
            f"{run.directory.path} must have finished the same seeds in every arm, got {seeds}. Continue it with "
            f"rankkit train-pair --resume {shlex.quote(str(run.directory.path))}."
        )
    return next(iter(seeds.values()))


def _saved_steps(run: Run, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Steps at which every unit has a checkpoint: an interruption leaves one more in some of them."""
    saved = [set(run.directory.checkpoint_steps(arm, seed)) for arm in run.config.arms for seed in seeds]
    return tuple(sorted(set.intersection(*saved)))


def _samples(run: Run, config: MeasureConfig, n: int, *, default: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Evenly spread windows, from those of the evaluation when the length is the run's."""
    train, trained, wanted = run.config.base.train, run.config.base.model.sequence_length, config.samples
    count = default if wanted is None else wanted
    evaluated = train.evaluation_sequences if n == trained else count
    windows = evaluation_sequences(run.tokens(), count=evaluated, sequence_length=n)
    available = len(windows.tokens)
    if wanted is not None and wanted > available:
        raise ConfigurationError(
            f"samples must be at most {available} (evaluation sequences of this run), got {wanted}. Ask for fewer."
        )
    picked = spread(available, min(count, available))
    return windows.tokens[picked], windows.documents[picked]
