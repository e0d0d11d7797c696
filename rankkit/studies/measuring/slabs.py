"""From a plan and spectra to what the store takes: the layout of an arm's group, and its slabs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra import MEASURES, METHODS, STATUSES, OutputSpectrum, Spectrum, spectrum
from rankkit.store import METHODS as STORED_METHODS
from rankkit.store import STATUSES as STORED_STATUSES
from rankkit.store import CutLosses, GroupLayout, KeptSlab, LayerSlab, MeasureDescription, Slab, SpectrumWriter
from rankkit.studies.functional import CUTS, FunctionalRank
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import EXAMPLE_SIZE, Plan, PlannedArm, measured_part
from rankkit.studies.run import Run

__all__ = [
    "LAYER_MEASURES",
    "beside",
    "group_layout",
    "kept_names",
    "kept_slabs",
    "layer_slab",
    "reason_text",
    "slab",
    "write_functional",
]

LAYER_MEASURES: Final = ("effective_rank", "stable_rank", "participation_ratio", "energy_rank_90", "frobenius_norm")
"""What is measured of a layer's output."""

_METHOD_CODES = np.array([STORED_METHODS.index(name) for name in METHODS], dtype=np.int8)
_STATUS_CODES = np.array([STORED_STATUSES.index(name) for name in STATUSES], dtype=np.int8)


def group_layout(config: MeasureConfig, plan: Plan, arm: PlannedArm, *, baseline: str | None = None) -> GroupLayout:
    """The layout of an arm's group, or of one of its baselines: under its own mask alone, without layer outputs."""
    shapes = np.array([plan.shapes(region) for region in plan.regions], dtype=np.int32)
    whole = np.ones((len(plan.sequences), plan.queries), dtype=np.int8)
    estimated = any(method == "matrix-free" for method, _ in plan.methods.values())
    own = baseline is None
    kept = kept_names(config) if own else ()
    return GroupLayout(
        mask=arm.facts.mask,
        objective=arm.facts.objective,
        kind=arm.kind,
        seeds=arm.seeds,
        steps=[0] if baseline == "init" else list(plan.steps),
        regions=plan.regions,
        applied_masks=plan.applied if own else plan.applied[:1],
        layers=plan.layers,
        heads=plan.heads,
        sequences=plan.sequence_numbers,
        tokens=plan.sequences.astype(np.int32),
        prefix_length=np.full(len(plan.sequences), plan.prefix_length, dtype=np.int32),
        valid_row=whole if plan.valid_rows is None else plan.valid_rows.astype(np.int8),
        rows=shapes[..., 0],
        columns=shapes[..., 1],
        untrained=arm.facts.untrained.astype(np.int8),
        checkpoint_sha256=arm.initial_sha256 if baseline == "init" else arm.checkpoint_sha256,
        measures=_descriptions(config.measures),
        attributes=arm.attributes,
        estimated=[name for name in config.measures if MEASURES[name].needs == "singular_values"] if estimated else (),
        errors=config.measures,
        components=_components(config, plan),
        layer_measures=_descriptions(LAYER_MEASURES) if config.layer_output and own else {},
        output_components=arm.output_components if own else None,
        document=plan.documents,
        method_rule="; ".join(f"{region}: {method} ({rule})" for region, (method, rule) in plan.methods.items()),
        unavailable=_unavailable(config, plan, arm, baseline),
        rows_sum_to_one=baseline != "logits"
        and all({"non_negative", "rows_sum_to_one"} <= one.structure for one in _examples(arm).values()),
        kept=kept,
        features=arm.features if "queries" in kept else None,
        logit_scale=arm.logit_scale if "queries" in kept else None,
    )


def kept_names(config: MeasureConfig) -> tuple[str, ...]:
    """The variables that are kept beside the measures."""
    return (("queries", "keys") if config.keep_qk else ()) + (("attention",) if config.keep_attention else ())


def _components(config: MeasureConfig, plan: Plan) -> int | None:
    """Singular values to keep of each matrix, where none has more than the leading ones."""
    if any(method != "matrix-free" for method, _ in plan.methods.values()):
        return None
    return min(config.matrix_free.leading, max(plan.size(region) for region in plan.regions))


def _unavailable(config: MeasureConfig, plan: Plan, arm: PlannedArm, baseline: str | None) -> dict[str, str]:
    """What cannot be had of this group's matrices, asked of small ones of the same structure by the same methods."""
    applied = plan.applied if baseline is None else plan.applied[:1]
    found: dict[str, dict[str, str]] = {}  # by measure and layers
    for layers, example in _examples(arm).items():
        one = replace(arm, example=example)
        for name, reason in _unavailable_of(config, plan, one, baseline, applied).items():
            found.setdefault(name, {})[layers] = reason
    return {name: _by_layers(reasons, len(_examples(arm))) for name, reasons in found.items()}


def _examples(arm: PlannedArm) -> Mapping[str, Operator]:
    """Small matrices that stand for an arm's, by words for the layers or heads that have that structure."""
    return arm.examples or {"": arm.example}


def _by_layers(reasons: Mapping[str, str], kinds: int) -> str:
    """One reason where all layers have it, else each with its layers."""
    if len(reasons) == kinds and len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{layers}: {reason}" for layers, reason in reasons.items())


def _unavailable_of(
    config: MeasureConfig, plan: Plan, arm: PlannedArm, baseline: str | None, applied: Sequence[str]
) -> dict[str, str]:
    """The same of layers with one structure."""
    found: dict[str, dict[tuple[str, str], str]] = {}  # by measure, region and mask
    asked: dict[tuple[object, ...], Mapping[str, str]] = {}
    for (region, (method, _)), mask in product(plan.methods.items(), applied):
        matrix = _stand_in(plan, arm, region, mask, baseline)
        key = (method, type(matrix), matrix.structure)
        if key not in asked:
            asked[key] = spectrum(matrix, measures=config.measures, method=method).unavailable
        for name, reason in asked[key].items():
            found.setdefault(name, {})[region, mask] = reason
    return {name: reason_text(reasons, plan.regions, applied) for name, reasons in found.items()}


def reason_text(reasons: Mapping[tuple[str, str], str], regions: Sequence[str], masks: Sequence[str]) -> str:
    """Why something is unavailable, with the regions and applied masks where it is, unless that is everywhere.

    Args:
        reasons: by region and applied mask; those without one are left out.
        regions: of the group, in order.
        masks: applied in the group, in order.
    """
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for place in (place for place in product(regions, masks) if place in reasons):
        by_reason.setdefault(reasons[place], []).append(place)
    return "; ".join(f"{_heading(places, regions, masks)}{reason}" for reason, places in by_reason.items())


def _heading(places: Sequence[tuple[str, str]], regions: Sequence[str], masks: Sequence[str]) -> str:
    """Places in words; nothing where it is all of them."""
    whole = [mask for mask in masks if all((region, mask) in places for region in regions)]
    others = [f"{region} under its {mask} mask" for region, mask in places if mask not in whole]
    return "" if len(whole) == len(masks) else ", ".join([f"{mask} mask" for mask in whole] + others) + ": "


def _stand_in(plan: Plan, arm: PlannedArm, region: str, applied: str, baseline: str | None) -> Operator:
    """A small matrix with the structure of one of a group's."""
    if baseline == "logits":
        return DenseOperator(matrix=torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64))
    matrix = measured_part(arm.example, region, applied, arm, min(plan.prefix_length, EXAMPLE_SIZE))
    return DenseOperator(matrix=matrix.dense()) if baseline == "shuffled" else matrix


def _descriptions(names: Collection[str]) -> Mapping[str, MeasureDescription]:
    return {
        name: MeasureDescription(
            long_name=MEASURES[name].long_name,
            definition=MEASURES[name].definition,
            source=MEASURES[name].source,
            units=MEASURES[name].units,
        )
        for name in names
    }


def slab(found: Spectrum, measures: Sequence[str], size: int) -> Slab:
    """A spectrum "sequence head" of matrices with `size` singular values as the writer takes it.

    A measure that is not available here is nan, and so is an error without a bound.
    """
    nothing = np.full(tuple(found.status.shape), np.nan)
    exact = {name: values.numpy() for name, values in found.measures.items()}
    status = found.status
    if found.singular_values.shape[-1] < size:  # a zero matrix is stored as whole only where all its values are
        status = status.where(status != STATUSES.index("degenerate"), STATUSES.index("estimated"))
    brackets, settled = {}, (status == STATUSES.index("degenerate")).numpy()
    for name, (lower, upper) in found.brackets.items():
        ends = lower.numpy(), upper.numpy()
        exact[name] = np.where(settled, ends[0], np.nan)  # a matrix without structure has values, not brackets
        brackets[name] = tuple(np.where(settled, np.nan, end) for end in ends)
    return Slab(
        singular_values=found.singular_values.numpy(),
        floor_arithmetic=found.floor_arithmetic.numpy(),
        floor_model=found.floor_model.numpy(),
        resolved=found.resolved.numpy(),
        resolved_model=found.resolved_model.numpy(),
        method=_METHOD_CODES[found.method.numpy()],
        status=_STATUS_CODES[status.numpy()],
        measures={name: exact.get(name, nothing) for name in measures},
        brackets={name: (ends[0], ends[1]) for name, ends in brackets.items()},
        errors={name: _known(error, exact.get(name, nothing)) for name, error in found.errors.items()},
    )


def _known(error: torch.Tensor, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nan where there is no value, or the floors leave it open without a bound."""
    return np.where(np.isnan(values) | np.isinf(error.numpy()), np.nan, error.numpy())


def layer_slab(found: OutputSpectrum) -> LayerSlab:
    """The spectrum of a layer's output, "sequence", as the writer takes it."""
    return LayerSlab(
        singular_values=found.singular_values.numpy(),
        floor_arithmetic=found.floor_arithmetic.numpy(),
        measures={name: values.numpy() for name, values in found.measures.items()},
    )


def beside(parts: Sequence[Slab]) -> Slab:
    """Slabs "sequence head" of neighbouring heads as one of all of them.

    Args:
        parts: made by `slab`, with the same measures.
    """
    if len(parts) == 1:
        return parts[0]
    width = max(part.singular_values.shape[-1] for part in parts)
    nothing = [np.full(np.shape(part.status), np.nan) for part in parts]

    def joined(name: str, of: str) -> NDArray[Any]:
        arrays = [getattr(part, of).get(name, empty) for part, empty in zip(parts, nothing, strict=True)]
        return np.concatenate(arrays, axis=1)

    def ends(name: str, end: int) -> NDArray[Any]:
        known = [part.brackets.get(name, (empty, empty))[end] for part, empty in zip(parts, nothing, strict=True)]
        return np.concatenate([np.asarray(values) for values in known], axis=1)

    plain = ("floor_arithmetic", "floor_model", "resolved", "resolved_model", "method", "status")
    return Slab(
        singular_values=np.concatenate([_widened(part.singular_values, width) for part in parts], axis=1),
        measures={name: joined(name, "measures") for name in parts[0].measures},
        brackets={name: (ends(name, 0), ends(name, 1)) for part in parts for name in part.brackets},
        errors={name: joined(name, "errors") for part in parts for name in part.errors},
        **{name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in plain},
    )


def _widened(values: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    return np.pad(values, ((0, 0), (0, 0), (0, width - values.shape[-1])), constant_values=np.nan)


def kept_slabs(own: Sequence[Operator], names: Collection[str]) -> Iterator[KeptSlab]:
    """What is kept of the matrices "sequence head" under their own masks, one sequence "head ..." at a time.

    Args:
        own: as the model applied them, in parts of neighbouring heads.
        names: from `kept_names`.
    """
    for number in range(own[0].batch_shape[0]):
        parts = [part[number : number + 1] for part in own]
        kept: dict[str, NDArray[np.float32]] = {}
        if "queries" in names:
            factors = [part for part in parts if isinstance(part, AttentionOperator)]
            assert len(factors) == len(parts), "the plan keeps factors only where there are any"
            kept = {"queries": _stored([one.query for one in factors]), "keys": _stored([one.key for one in factors])}
        if "attention" in names:
            kept["attention"] = _stored([part.dense() for part in parts])
        yield KeptSlab(**kept)


def _stored(tensors: Sequence[torch.Tensor]) -> NDArray[np.float32]:
    """The heads of the only sequence of a batch in float32, which holds bfloat16 and float16 exactly."""
    arrays = [tensor[0].to(device="cpu", dtype=torch.float32).numpy() for tensor in tensors]
    found: NDArray[np.float32] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return found


def write_functional(writer: SpectrumWriter, run: Run, found: FunctionalRank) -> None:
    """Store what cutting attention costs every arm; means over sequences, but where all heads are cut."""
    model, step = run.config.base.model, run.config.base.train.steps
    for arm in found.arms:
        declared = run.config.arm(arm.arm)
        means = {scope: table.mean(axis=1) for scope, table in arm.extra_loss.items()}
        losses = CutLosses(
            seeds=arm.seeds,
            kept_ranks=found.ranks,
            cuts=CUTS,
            loss_uncut=arm.loss_uncut,
            layers=range(model.num_layers),
            heads=range(model.num_heads),
            extra_loss_all=arm.extra_loss.get("all"),
            extra_loss_layer=means.get("layer"),
            extra_loss_head=means.get("head"),
            removed_share=arm.removed_share.mean(axis=1),
            cut_error=arm.cut_error.mean(axis=1),
            document=found.documents,
            attributes={"mask": str(declared.model.mask), "objective": str(declared.train.objective), "step": step},
        )
        writer.functional(arm.arm, losses)
