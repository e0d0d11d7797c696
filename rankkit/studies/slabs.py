"""From a plan and spectra to what the store takes: the layout of an arm's group, and its slabs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.masks import MaskKind
from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra import MEASURES, METHODS, STATUSES, OutputSpectrum, Spectrum, spectrum
from rankkit.store import METHODS as STORED_METHODS
from rankkit.store import STATUSES as STORED_STATUSES
from rankkit.store import CutLosses, GroupLayout, LayerSlab, MeasureDescription, Slab, SpectrumWriter
from rankkit.studies.decomposition import untrained
from rankkit.studies.functional import CUTS, FunctionalRank
from rankkit.studies.measure_config import MeasureConfig
from rankkit.studies.measure_plan import APPLIED, Plan, measured_part
from rankkit.studies.run import Run
from rankkit.training.checkpoints import read_facts

__all__ = ["LAYER_MEASURES", "group_layout", "layer_slab", "slab", "write_functional"]

LAYER_MEASURES: Final = ("effective_rank", "stable_rank", "participation_ratio", "energy_rank_90", "frobenius_norm")
"""What is measured of a layer's output."""

_METHOD_CODES = np.array([STORED_METHODS.index(name) for name in METHODS], dtype=np.int8)
_STATUS_CODES = np.array([STORED_STATUSES.index(name) for name in STATUSES], dtype=np.int8)


def group_layout(run: Run, config: MeasureConfig, plan: Plan, arm: str, *, baseline: str | None = None) -> GroupLayout:
    """The layout of an arm's group, or of one of its baselines: under its own mask alone, without layer outputs."""
    declared = run.config.arm(arm)
    seeds = [seed for name, seed in plan.units if name == arm]
    steps = [0] if baseline == "init" else list(plan.steps)
    sizes = np.array([[plan.size(region)] * len(plan.sequences) for region in plan.regions], dtype=np.int32)
    flags = [[untrained(region, layer, declared) for layer in plan.layers] for region in plan.regions]
    estimated = any(method == "matrix-free" for method, _ in plan.methods.values())
    outputs = config.layer_output and baseline is None
    return GroupLayout(
        mask=str(declared.model.mask),
        objective=str(declared.train.objective),
        kind="self",
        seeds=seeds,
        steps=steps,
        regions=plan.regions,
        applied_masks=APPLIED if baseline is None else APPLIED[:1],
        layers=plan.layers,
        heads=plan.heads,
        tokens=plan.sequences.astype(np.int32),
        prefix_length=np.full(len(plan.sequences), plan.prefix_length, dtype=np.int32),
        valid_row=np.ones(plan.sequences.shape, dtype=np.int8),
        rows=sizes,
        columns=sizes,
        untrained=np.array(flags, dtype=np.int8),
        checkpoint_sha256=_checkpoints(run, arm, seeds, steps),
        measures=_descriptions(config.measures),
        attributes=_token_policy(run),
        estimated=[name for name in config.measures if MEASURES[name].needs == "singular_values"] if estimated else (),
        errors=config.measures,
        components=_components(config, plan),
        layer_measures=_descriptions(LAYER_MEASURES) if outputs else {},
        output_components=min(plan.sequence_length, declared.model.d_model) if outputs else None,
        document=plan.documents,
        method_rule="; ".join(f"{region}: {method} ({rule})" for region, (method, rule) in plan.methods.items()),
        unavailable=_unavailable(config, plan, declared.model.mask, baseline),
        rows_sum_to_one=baseline != "logits",
    )


def _checkpoints(run: Run, arm: str, seeds: Sequence[int], steps: Sequence[int]) -> list[list[str]]:
    return [[read_facts(run.directory.checkpoint(arm, seed, step)).weights_sha256 for step in steps] for seed in seeds]


def _components(config: MeasureConfig, plan: Plan) -> int | None:
    """Singular values to keep of each matrix, where none has more than the leading ones."""
    if any(method != "matrix-free" for method, _ in plan.methods.values()):
        return None
    return min(config.matrix_free.leading, max(plan.size(region) for region in plan.regions))


def _unavailable(config: MeasureConfig, plan: Plan, kind: MaskKind, baseline: str | None) -> dict[str, str]:
    """What cannot be had of this group's matrices, asked of small ones of the same structure by the same methods."""
    applied = APPLIED if baseline is None else APPLIED[:1]
    places: dict[str, dict[str, list[tuple[str, str]]]] = {}  # by measure and reason
    asked: dict[tuple[object, ...], Mapping[str, str]] = {}
    for (region, (method, _)), mask in product(plan.methods.items(), applied):
        matrix = _stand_in(plan, region, mask, kind, baseline)
        key = (method, type(matrix), matrix.structure)
        if key not in asked:
            asked[key] = spectrum(matrix, measures=config.measures, method=method).unavailable
        for name, reason in asked[key].items():
            places.setdefault(name, {}).setdefault(reason, []).append((region, mask))
    return {
        name: "; ".join(f"{_where(found, plan.regions, applied)}{reason}" for reason, found in reasons.items())
        for name, reasons in places.items()
    }


def _where(places: Sequence[tuple[str, str]], regions: Sequence[str], applied: Sequence[str]) -> str:
    """Regions and applied masks in words; nothing where it is all of them."""
    masks = [mask for mask in applied if all((region, mask) in places for region in regions)]
    others = [f"{region} under its {mask} mask" for region, mask in places if mask not in masks]
    if len(masks) == len(applied):
        return ""
    return ", ".join([f"{mask} mask" for mask in masks] + others) + ": "


def _stand_in(plan: Plan, region: str, applied: str, kind: MaskKind, baseline: str | None) -> Operator:
    """A small matrix with the structure of one of a group's."""
    if baseline == "logits":
        return DenseOperator(matrix=torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64))
    prefix = min(plan.prefix_length, 4)
    size = prefix + min(plan.sequence_length - plan.prefix_length, 4)
    factor = torch.linspace(-1, 1, size, dtype=torch.float64).reshape(1, size, 1)
    own = AttentionOperator(query=factor, key=factor, mask=kind.at(prefix), scale=1.0)
    attention = measured_part(own, region, applied, kind, prefix)
    return DenseOperator(matrix=attention.dense()) if baseline == "shuffled" else attention


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


def _token_policy(run: Run) -> dict[str, str]:
    described = run.tokens().description
    separator = "each ended by the document token" if described.get("document_token") is not None else "as they come"
    return {
        "bos": "none: sequences are windows of the packed tokens",
        "packing": f"documents one after another, {separator}; split: {described['split']}",
        "truncation": "none: windows do not overlap",
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
