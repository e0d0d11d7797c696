"""Studies whose every cell is known from its labels, so that any part of one can be written, and the whole of it too.

Written in the order of a measurement, without any code of the merge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from store.spectra_file import FUNCTIONS, MEASURES, TOKEN_POLICY, new_writer

from rankkit.axes import REGIONS
from rankkit.store import CUTS, METHODS, STATUSES, CutLosses, GroupLayout, GroupWriter, KeptSlab, LayerSlab, Slab
from rankkit.studies.arm_values import ArmValues, decompositions, write_comparison
from rankkit.studies.decomposition import ArmFacts

Labels = Mapping[str, tuple[Any, ...]]
"""Of SPECTRUM_AXES."""

LENGTH, PREFIX, WIDTH, FEATURES = 6, 4, 4, 2
SIZES = dict(zip(REGIONS, (6, 4, 5, 3), strict=True))
MASKS = ("own", "swapped")
ESTIMATED = ("effective_rank", "stable_rank")
ERRORS = ("attention_entropy", "effective_rank")
NAMES = ("effective_rank", "stable_rank", "participation_ratio", "attention_entropy")
OUTPUT_MEASURES = {name: MEASURES[name] for name in ("effective_rank", "stable_rank")}
WHOLE: Labels = {
    "seed": (0, 3),
    "step": (4, 12),
    "region": ("full", "prefix_block"),
    "applied_mask": MASKS,
    "sequence": tuple(range(10)),
    "layer": (0, 2),
    "head": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one file holds."""

    labels: Labels
    arms: tuple[str, ...] = ("gpt", "unilm")
    baselines: tuple[str, ...] = ()
    outputs: bool = False
    kept: bool = False
    functional: bool = False
    names: tuple[str, ...] = NAMES
    """Measures."""
    losses: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the functional rank."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Changes of every group's layout."""
    root: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the file's texts and attributes."""

    def of(self, **labels: tuple[Any, ...]) -> Piece:
        """The same on fewer labels."""
        return replace(self, labels={**self.labels, **labels})

    def write(self, path: Path) -> Path:
        """The file that measuring this would give."""
        with new_writer(path, **self.root) as writer:
            for arm in self.arms:
                names = [arm, *(f"baselines/{name}/{arm}" for name in self.baselines)]
                groups = {name: _Group(self, name, writer.group(name, self._layout(name))) for name in names}
                late = [group for name, group in groups.items() if "/init/" in name]
                usual = [group for group in groups.values() if group not in late]
                for seed in self.labels["seed"]:
                    for group_set, steps in ((usual, self.labels["step"]), (late, (0,))):
                        self._write_seed(group_set, seed, steps)
            if set(self.arms) >= {"gpt", "unilm"} and self.labels["applied_mask"] == MASKS:
                write_comparison(writer, self._comparison())
            for arm in self.arms if self.functional else ():
                writer.functional(arm, cut_losses(arm, **{"seeds": self.labels["seed"], **self.losses}))
        return path

    def _write_seed(self, groups: Sequence[_Group], seed: int, steps: tuple[int, ...]) -> None:
        count = len(self.labels["sequence"])
        batches = [slice(start, min(start + 8, count)) for start in range(0, count, 8)]
        for step, rows, layer in product(steps, batches, self.labels["layer"]):
            for group in groups:
                group.write(seed, step, rows, layer)
            for group in groups:
                group.write_rest(seed, step, rows, layer)

    def _layout(self, name: str) -> GroupLayout:
        labels, arm = self.labels_of(name), name.split("/")[-1]
        sizes = np.array([[SIZES[region]] * len(labels["sequence"]) for region in labels["region"]])
        own = "/" not in name
        values: dict[str, Any] = {
            "mask": {"gpt": "causal", "unilm": "prefix"}[arm],
            "objective": "suffix",
            "kind": "self",
            "seeds": labels["seed"],
            "steps": labels["step"],
            "regions": labels["region"],
            "applied_masks": labels["applied_mask"],
            "layers": labels["layer"],
            "heads": labels["head"],
            "sequences": labels["sequence"],
            "tokens": np.array([(np.arange(LENGTH) * 7 + 5 * number) % 97 for number in labels["sequence"]]),
            "prefix_length": np.full(len(labels["sequence"]), PREFIX),
            "valid_row": np.ones((len(labels["sequence"]), LENGTH), dtype=np.int8),
            "rows": sizes,
            "columns": sizes,
            "untrained": np.array([[int(r != "full" and n == 2) for n in labels["layer"]] for r in labels["region"]]),
            "checkpoint_sha256": [[checkpoint(arm, s, t) for t in labels["step"]] for s in labels["seed"]],
            "measures": {name: MEASURES[name] for name in self.names},
            "attributes": TOKEN_POLICY,
            "estimated": [name for name in ESTIMATED if name in self.names],
            "errors": [name for name in ERRORS if name in self.names],
            "document": np.array([number // 3 for number in labels["sequence"]]),
            "method_rule": "; ".join(f"{region}: exact (asked for)" for region in labels["region"]),
        }
        if self.outputs and own:
            values |= {"layer_measures": OUTPUT_MEASURES, "output_components": WIDTH}
        if self.kept and own:
            values |= {"kept": ("queries", "keys", "attention"), "features": FEATURES, "logit_scale": 0.5}
        return GroupLayout(**(values | dict(self.layout)))

    def labels_of(self, name: str) -> Labels:
        """Labels of an arm's group, or of one of its baselines."""
        if "/" not in name:
            return self.labels
        return {**self.labels, "applied_mask": ("own",)} | ({"step": (0,)} if "/init/" in name else {})

    def _comparison(self) -> Any:
        labels = self.labels
        flags = np.asarray(self._layout("gpt").untrained, dtype=np.bool_)
        facts = [ArmFacts(name=n, mask=m, objective="suffix", untrained=flags) for n, m in
                 (("gpt", "causal"), ("unilm", "prefix"))]  # fmt: skip
        values = {arm: _arm_values(arm, labels, self.names) for arm in ("gpt", "unilm")}
        documents = np.array([number // 3 for number in labels["sequence"]], dtype=np.int64)
        found = decompositions(facts, values, labels["step"], documents, labels["layer"], labels["region"])
        return dict(found)


class _Group:
    def __init__(self, piece: Piece, name: str, target: GroupWriter) -> None:
        self.piece, self.name, self.target, self.labels = piece, name, target, piece.labels_of(name)

    def write(self, seed: int, step: int, rows: slice, layer: int) -> None:
        sequences, heads = self.labels["sequence"][rows], self.labels["head"]
        for region, mask in product(self.labels["region"], self.labels["applied_mask"]):
            place = (self.name, seed, step, region, mask)
            cells = [[cell(*place, sequence, layer, head) for head in heads] for sequence in sequences]
            index = self.index(seed, step, rows, layer)
            index |= {axis: self.labels[axis].index(v) for axis, v in (("region", region), ("applied_mask", mask))}
            self.target.write(index, _slab(cells, self.piece.names))

    def write_rest(self, seed: int, step: int, rows: slice, layer: int) -> None:
        if "/" in self.name:
            return
        index, sequences = self.index(seed, step, rows, layer), self.labels["sequence"][rows]
        if self.piece.outputs:
            values = np.stack([output(self.name, seed, step, sequence, layer) for sequence in sequences])
            measures = {name: FUNCTIONS[name](values) for name in OUTPUT_MEASURES}
            taken = LayerSlab(singular_values=values, floor_arithmetic=1e-12, measures=measures)
            self.target.write_layer_output(index, taken)
        for number, sequence in enumerate(sequences if self.piece.kept else ()):
            heads = [kept(self.name, seed, step, sequence, layer, head) for head in self.labels["head"]]
            one = {name: np.stack([head[name] for head in heads]) for name in heads[0]}
            self.target.write_kept({**index, "sequence": rows.start + number}, KeptSlab(**one))

    def index(self, seed: int, step: int, rows: slice, layer: int) -> dict[str, int | slice]:
        where: dict[str, int | slice] = {
            axis: self.labels[axis].index(label) for axis, label in (("seed", seed), ("step", step), ("layer", layer))
        }
        return where | {"sequence": rows}


def checkpoint(arm: str, seed: int, step: int) -> str:
    return hashlib.sha256(f"{arm} {seed} {step}".encode()).hexdigest()


def _generator(*labels: object) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(repr(labels).encode()).digest()[:8]))


@cache
def cell(
    name: str, seed: int, step: int, region: str, mask: str, sequence: int, layer: int, head: int
) -> dict[str, Any]:
    """Every number of one matrix: exact, estimated where labels add up to a multiple of 3, failed at one place."""
    wave, size = _generator(name, seed, step, region, mask, sequence, layer, head), SIZES[region]
    estimated, failed = (seed + sequence + layer + head) % 3 == 0, (sequence, layer, head) == (1, 0, 1)
    values = -np.sort(-wave.uniform(0.01, 2, size))
    values[2 if estimated else size :] = np.nan
    values[0 if failed else size :] = np.nan
    exact = not estimated and not failed
    floor = 0.02 if not failed else np.nan
    method = "krylov" if estimated else "svd"
    return {
        "singular_values": values,
        "floor_arithmetic": floor,
        "floor_model": 0.3,
        "resolved": int(np.nansum(values > 0.02)),
        "resolved_model": int(np.nansum(values > 0.3)),
        "method": METHODS.index(method),
        "status": STATUSES.index("failed" if failed else "estimated" if estimated else "ok"),
        **{measure: function(values) if exact else np.nan for measure, function in FUNCTIONS.items()},
        "attention_entropy": wave.uniform(0, np.log(size)),
        **{f"{measure}_lower": 1.5 if estimated and not failed else np.nan for measure in ESTIMATED},
        **{f"{measure}_upper": 2 + wave.uniform() if estimated and not failed else np.nan for measure in ESTIMATED},
        "effective_rank_error": 0.25 if exact else np.nan,
        "attention_entropy_error": 1e-3,
    }


def _slab(cells: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Slab:
    one = {name: np.array([[head[name] for head in row] for row in cells]) for name in cells[0][0]}
    per_matrix = ("floor_arithmetic", "floor_model", "resolved", "resolved_model", "method", "status")
    return Slab(
        singular_values=one["singular_values"],
        **{name: one[name] for name in per_matrix},
        measures={name: one[name] for name in names},
        brackets={name: (one[f"{name}_lower"], one[f"{name}_upper"]) for name in ESTIMATED if name in names},
        errors={name: one[f"{name}_error"] for name in ERRORS if name in names},
    )


def _arm_values(arm: str, labels: Labels, names: Sequence[str]) -> ArmValues:
    axes = ("seed", "step", "region", "applied_mask", "sequence", "layer", "head")
    shape = tuple(len(labels[axis]) for axis in axes)
    cells = [cell(arm, *place) for place in product(*(labels[axis] for axis in axes))]

    def table(name: str) -> NDArray[np.float64]:
        return np.array([one[name] for one in cells], dtype=np.float64).reshape(shape)

    return ArmValues(
        measures={name: table(name) for name in names},
        brackets={name: (table(f"{name}_lower"), table(f"{name}_upper")) for name in ESTIMATED if name in names},
        status=table("status").astype(np.int8),
    )


def output(arm: str, seed: int, step: int, sequence: int, layer: int) -> NDArray[np.float64]:
    """Singular values of a layer's output."""
    return -np.sort(-_generator("output", arm, seed, step, sequence, layer).uniform(0.01, 2, WIDTH))


def kept(arm: str, seed: int, step: int, sequence: int, layer: int, head: int) -> dict[str, NDArray[np.float32]]:
    """Queries, keys and a matrix whose rows sum to 1."""
    wave = _generator("kept", arm, seed, step, sequence, layer, head)
    factors = wave.normal(size=(2, LENGTH, FEATURES)).astype(np.float32)
    weights = wave.uniform(size=(LENGTH, LENGTH))
    attention = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return {"queries": factors[0], "keys": factors[1], "attention": attention}


def cut_losses(arm: str, seeds: Sequence[int], **changes: Any) -> CutLosses:
    """Functional rank, of four sequences."""
    waves = [_generator("functional", arm, seed) for seed in seeds]
    values: dict[str, Any] = {
        "seeds": seeds,
        "kept_ranks": (1, 6),
        "cuts": CUTS,
        "layers": (0, 2),
        "loss_uncut": np.stack([wave.uniform(4, 5, 4) for wave in waves]),
        "extra_loss_all": np.stack([wave.uniform(0, 1, (4, 2, 2)) for wave in waves]),
        "extra_loss_layer": np.stack([wave.uniform(0, 1, (2, 2, 2)) for wave in waves]),
        "document": np.array([0, 0, 1, 1]),
        "attributes": {"mask": "causal", "objective": "suffix", "step": 12},
    }
    return CutLosses(**(values | changes))


def boxes(labels: Labels, cuts: Sequence[tuple[int, str, frozenset[Any]]]) -> Iterator[Labels]:
    """Disjoint parts of some labels: each cut splits one of them along an axis, into the chosen labels and the rest."""
    found = [dict(labels)]
    for number, axis, chosen in cuts:
        box = found[number % len(found)]
        inside = tuple(label for label in box[axis] if label in chosen)
        outside = tuple(label for label in box[axis] if label not in chosen)
        if inside and outside:
            box[axis] = inside
            found.append({**box, axis: outside})
    yield from found
