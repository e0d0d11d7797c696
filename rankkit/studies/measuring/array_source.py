"""Attention matrices, or queries and keys, that somebody else's tools made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import torch

from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.files import sha256_of_file
from rankkit.masks import Bidirectional, Cross, Mask, MaskKind
from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.store.arrays.opening import GivenArrays, read_arrays
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

__all__ = ["ArrayMask", "ArraySource", "array_source"]

ARM: Final = "arrays"
"""Name of the only group."""

_UNKNOWN: Final = "unknown: arrays made elsewhere"
_HIDDEN_MASS: Final = 1e-6  # what float32 softmax leaves where a large negative number stands for the mask is exactly 0


@dataclass(frozen=True, slots=True)
class ArrayMask:
    """The mask under which arrays were made, as said by whoever made them."""

    kind: MaskKind
    """`bidirectional` where there was none."""
    prefix_length: int | None = None
    """p of a prefix mask."""

    @classmethod
    def parsed(cls, text: str) -> ArrayMask:
        """`causal`, `prefix:P` or `none`.

        Raises:
            ConfigurationError: something else.
        """
        name, _, length = text.partition(":")
        if name == "prefix" and length.isdecimal():
            return cls(MaskKind.PREFIX, int(length))
        if text in ("causal", "none"):
            return cls(MaskKind.CAUSAL if text == "causal" else MaskKind.BIDIRECTIONAL)
        raise ConfigurationError(f"mask must be causal, prefix:P or none, got {text!r}. Write prefix:128 for p = 128.")

    def at(self, queries: int, keys: int, prefix_length: int) -> Mask:
        """The mask of matrices of that size."""
        if self.kind is MaskKind.BIDIRECTIONAL:
            return Bidirectional() if queries == keys else Cross(queries, keys)
        return self.kind.at(prefix_length)


@contextlib.contextmanager
def array_source(
    path: Path, mask: ArrayMask, device: torch.device, *, scale: float | None = None
) -> Iterator[ArraySource]:
    """Open arrays for as long as they are measured.

    Args:
        path: of an .npy, .npz or HDF5 file; see `store.read_arrays`.
        mask: under which they were made.
        device: where matrices are formed.
        scale: of the logits of queries and keys; 1/sqrt(features) unless given.

    Raises:
        SpectrumFileError: they cannot be read safely.
        ConfigurationError: the mask cannot be theirs.
    """
    with read_arrays(path) as arrays:
        yield ArraySource(path, arrays, mask, device, scale)


class ArraySource:
    """One group of matrices, of one seed and step."""

    def __init__(
        self, path: Path, arrays: GivenArrays, mask: ArrayMask, device: torch.device, scale: float | None
    ) -> None:
        self._path, self._arrays, self._mask, self._device = path, arrays, mask, device
        if arrays.queries_count != arrays.keys_count and mask.kind is not MaskKind.BIDIRECTIONAL:
            raise ConfigurationError(
                f"mask must be none for {arrays.queries_count} queries and {arrays.keys_count} keys, got {mask.kind}. "
                "A causal or prefix mask is of one sequence with itself."
            )
        if mask.prefix_length is not None and mask.prefix_length > arrays.keys_count:
            raise ConfigurationError(
                f"mask must have a prefix of at most {arrays.keys_count} (keys), got {mask.prefix_length}. Shorten it."
            )
        if not self._has_factors and scale is not None:
            raise ConfigurationError(
                f"scale must stand with queries and keys, got {scale} for attention. Leave it out."
            )
        self._check_hidden()
        features = arrays.features
        self._scale = (None if features is None else features**-0.5) if scale is None else scale

    @property
    def _has_factors(self) -> bool:
        return self._arrays.what == "factors"

    def _check_hidden(self) -> None:
        """Refuse a mask that the matrices themselves contradict."""
        if self._has_factors or self._mask.kind is MaskKind.BIDIRECTIONAL:
            return
        allowed = self._mask.kind.at(self._mask.prefix_length or 0).allowed(self._arrays.keys_count).numpy()
        found = self._arrays.hidden_mass(allowed)
        if found > _HIDDEN_MASS:
            raise ConfigurationError(
                f"mask must hide what is 0 in the matrices, but {self._mask.kind} hides an entry of {found:.3g}. Choose "
                "another --mask."
            )

    def _check_finite(self, rows: Sequence[int], layers: Sequence[int], heads: Sequence[int]) -> None:
        """Refuse entries that no matrix with singular values has."""
        for sequence, layer in product(rows, layers):
            for name, block in self._arrays.block(slice(sequence, sequence + 1), layer, heads).items():
                found = np.argwhere(~np.isfinite(block))
                if found.size:
                    _, head, row, column = found[0].tolist()
                    raise SpectrumFileError(
                        f"{self._path} must hold finite numbers, got {block[tuple(found[0])]} at entry ({row}, {column}) of "
                        f"{name}, sequence {sequence}, layer {layer}, head {heads[head]}. Leave it out with --layers or "
                        "--heads, or save it again."
                    )

    @property
    def facts(self) -> SourceFacts:
        """Where the arrays came from."""
        described = {
            "arrays": self._path.name,
            "sha256": sha256_of_file(self._path),
            "dtype": str(self._arrays.dtype),
            "precision": self._arrays.precision,
            "mask": str(self._mask.kind),
            "prefix_length": self._mask.prefix_length,
            "scale": self._scale,
        }
        return SourceFacts(
            configuration=json.dumps(described, indent=1, sort_keys=True),
            certificate="",
            precision=getattr(torch, self._arrays.precision),
            attributes={"arrays_from": self._path.name},
        )

    def plan(self, config: MeasureConfig) -> Plan:
        """Resolve what to measure against the arrays.

        Raises:
            ConfigurationError: layers, heads, samples, regions or baselines that they do not have.
            SpectrumFileError: an entry that would be measured is not finite.
        """
        arrays = self._arrays
        self._check_config(config)
        p = self._prefix_length(config)
        wanted = arrays.sequences if config.samples is None else config.samples
        if wanted > arrays.sequences:
            raise ConfigurationError(
                f"samples must be at most {arrays.sequences} (in {self._path}), got {wanted}. Ask for fewer."
            )
        rows = spread(arrays.sequences, wanted)[shard_rows(wanted, config.shard)]
        methods = region_methods(self._possible(config), min(arrays.queries_count, arrays.keys_count), p)
        layers = chosen_numbers("layers", config.layers, range(arrays.layers))
        heads = chosen_numbers("heads", config.heads, range(arrays.heads))
        self._check_finite(rows, layers, heads)
        return Plan(
            sequence_length=arrays.keys_count,
            queries=arrays.queries_count,
            prefix_length=p,
            regions=tuple(methods),
            applied=APPLIED if self._swappable else APPLIED[:1],
            layers=layers,
            heads=heads,
            arms=(self._arm(tuple(methods), layers, p),),
            steps=(0,),
            sequences=np.full((len(rows), arrays.keys_count), -1, dtype=np.int64),
            sequence_numbers=tuple(rows),
            documents=None,
            baselines=config.baselines,
            methods=methods,
        )

    @property
    def _swappable(self) -> bool:
        return self._has_factors and self._mask.kind is not MaskKind.BIDIRECTIONAL

    def _prefix_length(self, config: MeasureConfig) -> int:
        """P of the mask, or of the mask that is swapped in."""
        own, asked = self._mask.prefix_length, config.prefix_length
        if own is not None and asked not in (None, own):
            raise ConfigurationError(f"prefix_length must be {own} (the mask's), got {asked}. Leave it out.")
        chosen = next((length for length in (own, asked) if length is not None), self._arrays.keys_count // 2)
        if chosen > self._arrays.keys_count:
            raise ConfigurationError(
                f"prefix_length must be at most {self._arrays.keys_count} (keys), got {chosen}. Shorten it."
            )
        return chosen

    def _possible(self, config: MeasureConfig) -> MeasureConfig:
        """The regions that such matrices have: the prefix block needs a mask, another softmax needs logits."""
        square = self._arrays.queries_count == self._arrays.keys_count
        without_prefix = ("full", "first_key_removed") if self._has_factors and square else ("full",)
        possible = config.regions if self._swappable else without_prefix
        chosen = tuple(region for region in config.regions if region in possible)
        if not chosen:
            raise ConfigurationError(
                f"regions must be among {', '.join(possible)} for these arrays, got {', '.join(config.regions)}. "
                "Choose from them."
            )
        return replace(config, regions=chosen)

    def _check_config(self, config: MeasureConfig) -> None:
        """Refuse what would need a model, or logits."""
        if config.layer_output:
            raise ConfigurationError("layer_output must have a model, got arrays. Leave it out.")
        if config.sequence_length not in (None, self._arrays.keys_count):
            raise ConfigurationError(
                f"sequence_length must be {self._arrays.keys_count} (keys of the arrays), got {config.sequence_length}. "
                "Leave it out."
            )
        if config.seeds not in (None, (0,)):
            raise ConfigurationError(f"seeds must be 0 for arrays, got {list(config.seeds or ())}. Leave them out.")
        known = {"uniform", "shuffled", "gaussian", "logits"} if self._has_factors else set()
        if unknown := sorted(set(config.baselines) - known):
            raise ConfigurationError(
                f"baselines must be among {', '.join(sorted(known)) or 'none'} for these arrays, got {unknown[0]}. "
                "Leave it out."
            )

    def _arm(self, regions: Sequence[str], layers: Sequence[int], p: int) -> PlannedArm:
        arrays, factors = self._arrays, self._has_factors
        return PlannedArm(
            facts=ArmFacts(
                name=ARM,
                mask=str(self._mask.kind),
                objective="unknown",
                untrained=np.zeros((len(regions), len(layers)), dtype=np.bool_),
            ),
            kind="self" if arrays.queries_count == arrays.keys_count else "cross",
            seeds=(0,),
            checkpoint_sha256=((sha256_of_file(self._path),),),
            attributes=dict.fromkeys(("bos", "packing", "truncation"), _UNKNOWN),
            example=self._example(p) if factors else dense_example(self._structure),
            features=arrays.features,
            logit_scale=self._scale,
        )

    @property
    def _structure(self) -> set[str]:
        """What holds for every matrix."""
        found = set(self._arrays.structure)
        if self._arrays.queries_count == self._arrays.keys_count:
            found |= {"square", *(("triangular",) if self._mask.kind is MaskKind.CAUSAL else ())}
        return found

    def _example(self, p: int) -> Operator:
        if self._arrays.queries_count == self._arrays.keys_count:
            return factor_example(str(self._mask.kind), p, self._arrays.keys_count)
        factor = torch.linspace(-1, 1, 3, dtype=torch.float64).reshape(1, 3, 1)
        return AttentionOperator(query=factor[:, :2], key=factor, mask=Cross(2, 3), scale=1.0)

    def visit(self, plan: Plan, place: Place, rows: slice, receive: Receiver, *, outputs: bool) -> None:
        """Read one layer after another."""
        assert not outputs, "the plan has refused outputs"
        for layer in plan.layers:
            blocks = [
                self._arrays.block(slice(number, number + 1), layer, plan.heads)
                for number in plan.sequence_numbers[rows]
            ]
            tensors = {
                name: torch.from_numpy(np.concatenate([block[name] for block in blocks])).to(self._device)
                for name in blocks[0]
            }
            receive(layer, [self._operator(tensors, plan)], None)

    def _operator(self, tensors: dict[str, torch.Tensor], plan: Plan) -> Operator:
        if not self._has_factors:
            return DenseOperator(matrix=tensors["attention"], precision=getattr(torch, self._arrays.precision))
        mask = self._mask.at(plan.queries, plan.sequence_length, plan.prefix_length)
        assert self._scale is not None, "factors have a scale"
        return AttentionOperator(query=tensors["queries"], key=tensors["keys"], mask=mask, scale=self._scale)
