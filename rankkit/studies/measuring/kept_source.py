"""Attention out of the factors, or matrices, that a spectrum file kept: it can be measured again without the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.axes import REGIONS, SPECTRUM_AXES
from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.masks import MaskKind
from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra import MEASURES
from rankkit.store import GroupDescription, describe, kept_in, read_group, read_kept
from rankkit.store.door.hdf5 import opened, read_array
from rankkit.store.schema import TRAINED_ENOUGH
from rankkit.studies.decomposition import ArmFacts
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import (
    APPLIED,
    Plan,
    PlannedArm,
    chosen_numbers,
    dense_example,
    factor_example,
    region_methods,
    shard_rows,
    spread,
)
from rankkit.studies.measuring.source import Place, Receiver, SourceFacts

__all__ = ["KeptSource", "kept_source"]

_OF_THE_PREFIX: Final = ("prefix_block", "prefix_block_first_key_removed")
_STATIC: Final = ("tokens", "prefix_length", "valid_row", "untrained", "region", "sequence", "checkpoint_sha256")
_CARRIED: Final = (
    "bos", "packing", "truncation", "architecture", "capture", "masks", "logits", "swapped_mask", TRAINED_ENOUGH,
)  # fmt: skip
"""Group attributes that hold for a measurement of what was kept, too."""
_PLAIN: Final = "plain"
_PRECISIONS: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextlib.contextmanager
def kept_source(path: Path, device: torch.device) -> Iterator[KeptSource]:
    """Open a file for as long as it is measured.

    Args:
        path: of a spectrum file made with --keep-qk or --keep-attention.
        device: where matrices are formed.

    Raises:
        SpectrumFileError: it cannot be opened safely, or kept nothing.
    """
    with opened(path) as file:
        yield KeptSource(path, file, device)


class KeptSource:
    """What one open file kept of its arms."""

    def __init__(self, path: Path, file: Any, device: torch.device) -> None:
        self._path, self._file, self._device = path, file, device
        description = describe(path)
        self._root = description.root
        self._groups = {group.name: group for group in description.groups if kept_in(file, group.name)}
        if not self._groups:
            raise SpectrumFileError(
                f"{path} must keep queries and keys, or attention, to be measured again, got neither. "
                "Measure the run with --keep-qk."
            )
        documented = all("document" in file[name] for name in self._groups)
        names = (*_STATIC, *(("document",) if documented else ()))
        self._static = {name: read_group(path, name, names) for name in self._groups}
        self._factors = {name: "queries" in kept_in(file, name) for name in self._groups}

    @property
    def facts(self) -> SourceFacts:
        """Configuration and certificate of the run that the factors came from."""
        stored = str(self._root.attributes.get("precision", "float32"))
        if stored not in _PRECISIONS:
            raise SpectrumFileError(
                f"{self._path}: precision must be among {', '.join(_PRECISIONS)}, got {stored[:20]!r}. Restore a copy."
            )
        return SourceFacts(
            configuration=self._root.configuration,
            certificate=self._root.certificate,
            precision=_PRECISIONS[stored],
            attributes={"factors_from": self._path.name},
        )

    def as_kept(self, config: MeasureConfig, *, regions: bool, measures: bool) -> MeasureConfig:
        """What to measure where nobody asked: what the file holds of every group.

        Args:
            config: whose other settings stay.
            regions: whether to take the file's; of matrices without queries and keys `full`.
            measures: the same.
        """
        held = [set(static["region"].tolist()) for static in self._static.values()]
        of_file = (
            tuple(name for name in REGIONS if all(name in one for one in held)) if self._all_factors else ("full",)
        )
        known = tuple(name for name in MEASURES if all(name in group.measures for group in self._groups.values()))
        return replace(
            config,
            regions=of_file if regions and of_file else config.regions,
            measures=known if measures and known else config.measures,
        )

    def plan(self, config: MeasureConfig) -> Plan:
        """Resolve what to measure against what was kept.

        Raises:
            ConfigurationError: layers, heads, seeds, samples, lengths, regions or baselines that the file does not have.
            SpectrumFileError: the arms do not have the same sequences, or rows are padding.
        """
        first = next(iter(self._groups.values()))
        static = self._static[first.name]
        labels = {axis: [int(label) for label in first.labels[axis]] for axis in ("seed", "step", "layer", "head")}
        self._check_arms(first)
        n, p = static["tokens"].shape[1], int(static["prefix_length"][0])
        self._check_config(config, n, p)
        rows = self._rows(config, len(static["tokens"]))
        methods = region_methods(self._possible(config), n, p)
        layers = chosen_numbers("layers", config.layers, labels["layer"])
        seeds = chosen_numbers("seeds", config.seeds, labels["seed"])
        steps = config.steps(labels["step"])
        return Plan(
            sequence_length=n,
            queries=static["valid_row"].shape[1],
            prefix_length=p,
            regions=tuple(methods),
            applied=APPLIED if self._all_factors and "swapped" in first.labels["applied_mask"] else APPLIED[:1],
            layers=layers,
            heads=chosen_numbers("heads", config.heads, labels["head"]),
            arms=tuple(
                self._arm(group, tuple(methods), layers, seeds, steps, config) for group in self._groups.values()
            ),
            steps=steps,
            sequences=static["tokens"][rows].astype(np.int64),
            sequence_numbers=tuple(static["sequence"][rows].tolist()),
            documents=static["document"][rows].astype(np.int64) if "document" in static else None,
            baselines=config.baselines,
            methods=methods,
        )

    @property
    def _all_factors(self) -> bool:
        return all(self._factors.values())

    def _possible(self, config: MeasureConfig) -> MeasureConfig:
        """Of matrices without their logits, the region `full` alone."""
        if self._all_factors:
            return config
        if "full" not in config.regions:
            raise ConfigurationError(
                f"regions must hold full where matrices were kept without queries and keys, got "
                f"{', '.join(config.regions)}. Measure the run with --keep-qk."
            )
        return replace(config, regions=("full",))

    def _rows(self, config: MeasureConfig, available: int) -> list[int]:
        wanted = available if config.samples is None else config.samples
        if wanted > available:
            raise ConfigurationError(f"samples must be at most {available} (kept in {self._path}), got {wanted}.")
        picked = spread(available, wanted)
        return picked[shard_rows(wanted, config.shard)]

    def _check_arms(self, first: GroupDescription) -> None:
        """Refuse arms that one plan does not fit, and padding."""
        shared = ("seed", "step", "sequence", "layer", "head", "applied_mask")
        for group in self._groups.values():
            static = self._static[group.name]
            if any(group.labels[axis] != first.labels[axis] for axis in shared) or not np.array_equal(
                static["tokens"], self._static[first.name]["tokens"]
            ):
                raise SpectrumFileError(
                    f"{self._path}: {group.name} must keep the same seeds, steps, sequences, layers and heads as "
                    f"{first.name}, got others. Measure them in files of their own."
                )
            if not static["valid_row"].all() or len(set(static["prefix_length"].tolist())) > 1:
                raise SpectrumFileError(
                    f"{self._path}: {group.name} must keep whole sequences with one prefix length to be measured again, "
                    "got padding or several prefixes. Measure the model again."
                )
            kind, logits = (str(group.attributes.get(name, _PLAIN))[:80] for name in ("kind", "logits"))
            if self._factors[group.name] and (logits != _PLAIN or kind != "self"):
                raise SpectrumFileError(
                    f"{self._path}: {group.name} must be self-attention with plain logits (scale Q K^T) to be measured "
                    f"again, got {kind} attention with {logits!r}. Measure the model again."
                )
            if not self._factors[group.name] and "full" not in group.labels["region"]:
                raise SpectrumFileError(
                    f"{self._path}: {group.name} must hold the region full, whose floor is that of kept attention, got "
                    f"{', '.join(map(str, group.labels['region']))}. Measure the run with --keep-qk."
                )
            known = [str(kind) for kind in MaskKind if not kind.is_mixed]
            if str(group.attributes["mask"]) not in known and self._factors[group.name]:
                raise SpectrumFileError(
                    f"{self._path}: {group.name} must have a mask among {', '.join(known)} to be measured again, got "
                    f"{str(group.attributes['mask'])[:40]!r}. Measure the model again."
                )

    def _check_config(self, config: MeasureConfig, n: int, p: int) -> None:
        """Refuse what would need the model."""
        for name, asked, kept in (
            ("sequence_length", config.sequence_length, n),
            ("prefix_length", config.prefix_length, p),
        ):
            if asked not in (None, kept):
                raise ConfigurationError(
                    f"{name} must be {kept}, with which the factors were kept, got {asked}. Measure the run instead."
                )
        if config.layer_output:
            raise ConfigurationError("layer_output must have the model, got kept factors. Measure the run instead.")
        if "init" in config.baselines:
            raise ConfigurationError("baselines must not hold init without the model, got it. Measure the run instead.")
        if config.baselines and not self._all_factors:
            raise ConfigurationError(
                "baselines must have queries and keys, got attention matrices alone. Measure the run with --keep-qk."
            )

    def _arm(
        self,
        group: GroupDescription,
        regions: tuple[str, ...],
        layers: tuple[int, ...],
        seeds: tuple[int, ...],
        steps: tuple[int, ...],
        config: MeasureConfig,
    ) -> PlannedArm:
        static, labels = self._static[group.name], group.labels
        mask, p, n = str(group.attributes["mask"]), int(static["prefix_length"][0]), static["tokens"].shape[1]
        factors = self._factors[group.name]
        picked = [static["checkpoint_sha256"][labels["seed"].index(seed)] for seed in seeds]
        return PlannedArm(
            facts=ArmFacts(
                name=group.name,
                mask=mask,
                objective=str(group.attributes["objective"]),
                untrained=np.array([[_flag(group, static, region, layer) for layer in layers] for region in regions]),
            ),
            kind=str(group.attributes["kind"]),
            seeds=seeds,
            checkpoint_sha256=tuple(tuple(str(row[labels["step"].index(step)]) for step in steps) for row in picked),
            attributes={name: group.attributes[name] for name in _CARRIED if name in group.attributes},
            swapped=_swapped(group),
            example=factor_example(mask, p, n) if factors else dense_example(_structure(group, mask, n, static)),
            features=group.dimensions["feature"] if factors else None,
            logit_scale=float(group.attributes["logit_scale"]) if factors else None,
        )

    def visit(self, plan: Plan, place: Place, rows: slice, receive: Receiver, *, outputs: bool) -> None:
        """Read one layer after another."""
        assert not outputs, "the plan has refused outputs"
        group = self._groups[place.arm]
        labels = group.labels
        heads = [labels["head"].index(head) for head in plan.heads]
        where = {"seed": labels["seed"].index(place.seed), "step": labels["step"].index(place.step)}
        for layer in plan.layers:
            of_layer = {**where, "layer": labels["layer"].index(layer)}
            kept = [
                self._read(group, {**of_layer, "sequence": labels["sequence"].index(number)})
                for number in plan.sequence_numbers[rows]
            ]
            receive(layer, [self._operator(group, kept, heads, plan.prefix_length)], None)

    def _read(self, group: GroupDescription, where: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        """What was kept of one layer of one sequence, by head; of attention also the error that it brings along."""
        found: dict[str, NDArray[Any]] = dict(read_kept(self._file, group.name, where))
        if not self._factors[group.name]:
            found["applied_error"] = self._applied_error(group, where, found["attention"])
        return found

    def _applied_error(
        self, group: GroupDescription, where: Mapping[str, int], attention: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """The model's floor over sigma_1, "head", as it was when the matrices were kept; nan where they are not finite."""
        masks = group.labels["applied_mask"]
        at = {**where, "region": group.labels["region"].index("full"), "applied_mask": masks.index("own")}
        place = tuple(at.get(axis, slice(None)) for axis in SPECTRUM_AXES)
        stored = self._file[group.name]
        floor = read_array(stored["floor_model"], place)
        largest = read_array(stored["singular_values"], (*place, 0))
        error: NDArray[np.float64] = np.divide(
            floor, largest, out=np.zeros(floor.shape), where=largest != 0
        )  # zeros bring along nothing
        if np.isfinite(attention[np.isnan(error)]).all(axis=(-2, -1)).any():
            raise SpectrumFileError(
                f"{self._path}: {group.name} must hold the floor and the largest singular value of kept attention to be "
                "measured again, got nan. Measure the run with --keep-qk."
            )
        return error

    def _operator(
        self, group: GroupDescription, kept: list[dict[str, NDArray[Any]]], heads: list[int], prefix_length: int
    ) -> Operator:
        def stacked(name: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([one[name][heads] for one in kept])).to(self._device)

        if not self._factors[group.name]:
            return DenseOperator(
                matrix=stacked("attention"), precision=torch.float32, applied_error=stacked("applied_error")
            )
        eager = str(group.attributes.get("capture", "")).startswith("eager:")
        return AttentionOperator(
            query=stacked("queries"),
            key=stacked("keys"),
            mask=MaskKind(str(group.attributes["mask"])).at(prefix_length),
            scale=float(group.attributes["logit_scale"]),
            accumulation=self.facts.precision if eager else None,
        )


def _structure(group: GroupDescription, mask: str, n: int, static: Mapping[str, NDArray[Any]]) -> set[str]:
    """What holds for every kept matrix of a group."""
    found = {"non_negative", "rows_sum_to_one"} if group.rows_sum_to_one else set()
    if static["valid_row"].shape[1] == n:
        found.add("square")
        found |= {"triangular"} if mask == MaskKind.CAUSAL else set()
    return found


def _swapped(group: GroupDescription) -> MaskKind | None:
    """The mask that a model's file says was swapped in; of a run the other of causal and prefix."""
    said = str(group.attributes.get("swapped_mask", "")).partition(":")[0]
    return MaskKind(said) if said in set(MaskKind) else None


def _flag(group: GroupDescription, static: Mapping[str, NDArray[Any]], region: str, layer: int) -> bool:
    """Whether the loss hardly reaches a region of a layer, by what the file says of a region of the same rows."""
    of_the_prefix = region in _OF_THE_PREFIX
    known = [r for r, name in enumerate(static["region"].tolist()) if (name in _OF_THE_PREFIX) == of_the_prefix]
    if not known and of_the_prefix:
        raise ConfigurationError(
            f"regions must be among {', '.join(static['region'].tolist())}, which were measured when the factors were "
            f"kept, got {region}. Write --regions {','.join(static['region'].tolist())}."
        )
    return bool(known) and bool(static["untrained"][known[0], group.labels["layer"].index(layer)])
